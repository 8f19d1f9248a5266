"""Write pyproject.toml, environment.yml and the package's version from settings.ini. With --check: only compare."""
import json, os, re, sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

def settings():
    "The settings, each list (one item a line or a word) still a string."
    parser = ConfigParser(delimiters=['='], interpolation=None)
    parser.read_string((ROOT/'settings.ini').read_text(encoding='utf-8'))
    return parser['DEFAULT']

def publish(files, remedy):
    "Write what differs of `files`, {path from the root: text, bytes or None for no such file}; with --check fail instead."
    new = {ROOT/path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
    differ = [path for path, data in new.items() if (path.read_bytes() if path.exists() else None) != data]
    names = ', '.join(str(path.relative_to(ROOT)) for path in differ)
    if differ and '--check' in sys.argv: sys.exit(f'out of date: {names}. Remedy: {remedy}')
    for path in differ:
        if new[path] is None: path.unlink(); continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + '.part')
        part.write_bytes(new[path]); os.replace(part, path)
    print(f'wrote {names}' if differ else 'in sync')

def quoted(text): return json.dumps(text, ensure_ascii=False)
def array(text): return '[\n' + ''.join(f'    {quoted(item)},\n' for item in text.split()) + ']'

def developing(c): return '\n'.join(c[f'{part}_requirements'] for part in ('dev', 'docs', 'export', 'workflow'))

def packages(c):
    "The folders with modules, and the two that hold data."
    modules = sorted(path.parent.relative_to(ROOT) for path in (ROOT/c['lib_name']).rglob('__init__.py'))
    return ' '.join(['.'.join(path.parts) for path in modules] + [f'{c["lib_name"]}.bundled.data', f'{c["lib_name"]}.bundled.nbs'])

def pyproject(c): return f'''# Written by tools/sync_settings.py: edit settings.ini
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = {quoted(c['lib_name'])}
dynamic = ["version"]
description = {quoted(c['description'])}
readme = "README.md"
requires-python = {quoted('>=' + c['min_python'])}
license = {quoted(c['license'])}
authors = [{{name = {quoted(c['author'])}, email = {quoted(c['author_email'])}}}]
keywords = {array(c['keywords'])}
dependencies = {array(c['requirements'])}

[project.optional-dependencies]
docs = {array(c['docs_requirements'])}
export = {array(c['export_requirements'])}
heic = {array(c['heic_requirements'])}
spandrel = {array(c['spandrel_requirements'])}
workflow = {array(c['workflow_requirements'])}
dev = {array(developing(c))}


[project.scripts]
{c['lib_name']} = "{c['lib_name']}.cli:main"

[project.urls]
Repository = {quoted(c['git_url'])}

[project.entry-points.nbdev]
{c['lib_name']} = "{c['lib_name']}._modidx:d"

[tool.setuptools.dynamic]
version = {{attr = "{c['lib_name']}.__version__"}}

# what travels with the package: one copy in the clone, `lsfd/bundled` where it is installed
[tool.setuptools]
packages = {array(packages(c))}
package-dir = {{"{c['lib_name']}.bundled.data" = "data", "{c['lib_name']}.bundled.nbs" = "{c['nbs_path']}"}}

[tool.setuptools.package-data]
"{c['lib_name']}" = ["widgets/*"]
"{c['lib_name']}.bundled.data" = ["checkpoints/**/*", "paper/*", "*.jsonl"]
"{c['lib_name']}.bundled.nbs" = ["**/*.ipynb"]

[tool.nbdev]
nbs_path = {quoted(c['nbs_path'])}
doc_path = {quoted(c['doc_path'])}
branch = {quoted(c['branch'])}
tst_flags = {quoted(c['tst_flags'])}
allowed_cell_metadata_keys = {json.dumps(c['allowed_cell_metadata_keys'].split())}
allowed_metadata_keys = {json.dumps(c['allowed_metadata_keys'].split())}
jupyter_hooks = {c['jupyter_hooks']}

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["tools"]
addopts = "-rs -n 2 --dist worksteal"
'''

def environment(c): return f'''# Written by tools/sync_settings.py: edit settings.ini
name: {c['lib_name']}
channels:
  - conda-forge
dependencies:
  - python>={c['min_python']}
  - pip
  - pip:
''' + ''.join(f'    - {quoted(r)}\n' for r in (c['requirements'] + '\n' + developing(c)).split()) + '    - "-e ."\n'

def init(c):
    "The package's own file: nbdev writes its docstring, the version is ours."
    path = ROOT/c['lib_name']/'__init__.py'
    text = path.read_text(encoding='utf-8') if path.exists() else ''
    if '__version__' not in text: text += f'"""{c["description"]}"""\n\n__version__ = ""\n'
    return re.sub(r'(?m)^__version__ = .*$', f'__version__ = "{c["version"]}"', text)

if __name__ == '__main__':
    c = settings()
    publish({'pyproject.toml': pyproject(c), 'environment.yml': environment(c), f'{c["lib_name"]}/__init__.py': init(c)},
            'python tools/sync_settings.py')
