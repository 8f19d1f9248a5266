"""The rules of the house: layers, exports, generated files, links, style. Each notebook is one item, and each failure names the remedy."""
import ast, json, re, shutil, statistics, subprocess, sys
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest, yaml
from packaging.requirements import Requirement
from readme import FENCED, LINK
from sync_settings import developing, settings

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
NBS = {path.relative_to(ROOT/'nbs').as_posix(): json.loads(path.read_text(encoding='utf-8'))
       for path in sorted((ROOT/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in path.parts}
COMPONENTS = [name for name in NBS if re.match(r'\d', name)]
RUNS = [f'{name}.ipynb' for name in ('train', 'evaluate', 'compare', 'benchmarks', 'lam', 'explore')] + [name for name in NBS if name.startswith('paper/')]

def sh(*command, cwd=ROOT): return subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
def sources(nb, kind='code'): return [''.join(cell['source']) for cell in nb['cells'] if cell['cell_type'] == kind]
def each(names): return pytest.mark.parametrize('name', list(names))

@pytest.fixture(scope='session')
def files():
    "What a commit of everything would hold."
    listed = sh('git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard')
    if listed.returncode: pytest.skip('no git here')
    return [Path(name) for name in listed.stdout.split('\0')[:-1] if (ROOT/name).is_file()]

# --- layers: a module imports only from the layers before its own, and within one without a circle; the reading order is free

LAYERS = """system lanes
parameters
reading folders
download
images pixels layers adapt taps regressors
metrics plots data losses models
distill paired efficiency lam lamchecks tiles
ablations recipe evaluate lamplots ledger report causal
state
step
engine
train bench explore
runs workflow
launch export cli
commands""".splitlines()

def module_of(nb):
    "The module that a notebook exports, as one imports it."
    names = re.findall(r'(?m)^#\| *default_exp +(\S+)', '\n'.join(sources(nb)))
    return names and f'lsfd.{names[0]}'.removesuffix('.__init__')

def imported(code):
    "What a cell or a file imports from other packages and from lsfd, as (module, name or None)."
    code = re.sub(r'(?m)^(\s*)[%!].*$', r'\1pass', code)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import): yield from ((a.name, None) for a in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level: yield from ((node.module, a.name) for a in node.names)

def part(module): return (module.split('.') + [''])[1]

def layer_faults(nbs):
    "What each of these notebooks exports that imports from its own layer's followers, from a higher one, or from no layer."
    level, needs = {name: i for i, line in enumerate(LAYERS) for name in line.split()}, {}
    for name, nb in nbs.items():
        home = part(module_of(nb))
        if home not in level: yield f'{name} exports lsfd.{home}, which has no place in LAYERS'
        for cell in sources(nb):
            if not re.search(r'(?m)^#\| *exports?\b', cell): continue
            for module, member in imported(cell):
                if module.split('.')[0] != 'lsfd' or module == 'lsfd' and member not in level: continue   # lsfd.__version__
                other = part(module) or member
                if other not in level: yield f'{name} imports {module}, exported by no notebook'
                elif level[other] > level.get(home, 99): yield f'{name} imports lsfd.{other} from a higher layer'
                elif other != home: needs.setdefault(home, set()).add(other)
    try: tuple(TopologicalSorter(needs).static_order())
    except CycleError as e: yield f'a circle: {" → ".join(e.args[1])}'

def made_up(**code):
    "Notebooks of one cell each."
    return {f'{name}.ipynb': {'cells': [{'cell_type': 'code', 'source': text}]} for name, text in code.items()}

def exports(module, code=''): return f'#| default_exp {module}\n#| export\n{code}'

@pytest.mark.parametrize('code, faults', [
    (dict(b=exports('data', 'from lsfd.images import f')), 0),
    (dict(b=exports('images'), c=exports('data', 'import lsfd.images\nfrom lsfd import __version__')), 0),
    (dict(b=exports('models.__init__', 'from lsfd.models.edsr import EDSR'), c=exports('models.edsr')), 0),
    (dict(b=exports('images', 'from lsfd.data import f')), 1),
    (dict(b=exports('images', '%time 1\ndef f(): from lsfd import data, system')), 1),
    (dict(b=exports('metrics', 'import lsfd.data'), c=exports('data', 'import lsfd.metrics')), 1),
    (dict(b=exports('data', 'import lsfd.nowhere as n')), 1),
    (dict(b=exports('nowhere')), 1)])
def test_layer_check_can_fail(code, faults):
    assert len(list(layer_faults(made_up(**code)))) == faults

def test_layers():
    faults = list(layer_faults({name: NBS[name] for name in COMPONENTS if module_of(NBS[name])}))
    assert not faults, faults

# --- what is generated is what is committed

@pytest.mark.parametrize('command, folder', [('nbdev-export', 'lsfd'), ('nbdev-clean', 'nbs')])
def test_nbdev_leaves_no_diff(command, folder, files, tmp_path):
    for name in files:
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        exported = command == 'nbdev-export' and name.suffix == '.py' and 'autogenerated' in (ROOT/name).read_text()[:500].lower()
        if not exported: shutil.copyfile(ROOT/name, tmp_path/name)          # so that a module without its notebook shows
    r = sh(BIN/command, cwd=tmp_path)
    assert r.returncode == 0, r.stderr
    kept = {name for name in files if name.parts[0] == folder}
    made = {path.relative_to(tmp_path) for path in (tmp_path/folder).rglob('*') if path.is_file()}
    differ = [str(name) for name in sorted(kept | made)
              if not (name in kept and name in made and (ROOT/name).read_bytes() == (tmp_path/name).read_bytes())]
    assert not differ, f'{differ}: run {command} and commit'

@pytest.mark.parametrize('tool', ['sync_settings', 'readme', 'cards', 'cells'])
def test_generated_files(tool):
    r = sh(sys.executable, f'tools/{tool}.py', '--check')
    assert r.returncode == 0, r.stderr

def test_environment_and_metadata_say_the_same():
    c, env = settings(), yaml.safe_load((ROOT/'environment.yml').read_text())
    pip = next(entry['pip'] for entry in env['dependencies'] if isinstance(entry, dict))
    wanted = c['requirements'].split() + developing(c).split()
    assert {str(Requirement(r)) for r in pip if r != '-e .'} == {str(Requirement(r)) for r in wanted}
    assert f"python>={c['min_python']}" in env['dependencies']
    assert f'__version__ = "{c["version"]}"' in (ROOT/'lsfd/__init__.py').read_text()

def tops(code): return {name.split('.')[0] for name, _ in imported(code)}

def test_requirements_name_what_is_imported():
    c, homes = settings(), packages_distributions()
    package = {top for path in (ROOT/'lsfd').rglob('*.py') for top in tops(path.read_text())}
    notebooks = {top for nb in NBS.values() for cell in sources(nb) for top in tops(cell)}
    for used, listed in (package, c['requirements'] + '\n' + c['export_requirements']), (notebooks, c['requirements'] + '\n' + developing(c)):
        names = {Requirement(r).name for r in listed.split()} | {'lsfd'}
        missing = {top for top in used - sys.stdlib_module_names if not names & {d.lower() for d in homes.get(top, [])}}
        assert not missing, f'{missing}: name them in settings.ini'

# --- the README and the links

def test_readme_commands():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    run, test = re.findall(r'(?m)^python3 -m venv .*$', text)
    assert 'papermill nbs/train.ipynb runs/' in run
    assert test.endswith('pytest -q')                                       # .ci/run takes its command from this line
    blocks = re.findall(r'```(?:sh|bash)\n(.*?)```', text, re.S)
    for block in blocks: subprocess.run(['bash', '-nc', block], check=True)
    named = re.findall(r'(?<![\w/])(?:nbs|tools|tests|\.ci)/[\w./-]+', '\n'.join(blocks))
    missing = [name for name in named if not (ROOT/name).exists()]
    assert run in '\n'.join(blocks) and not missing, missing

@each(['README.md', *NBS])
def test_links_resolve(name):
    texts, folder = (sources(NBS[name], 'markdown'), (ROOT/'nbs'/name).parent) if name in NBS else ([(ROOT/name).read_text()], ROOT)
    links = [link for text in texts for part in FENCED.split(text)[::2] for _, link in LINK.findall(part)]
    missing = [link for link in links if not link.startswith('attachment:') and not (folder/link.split('#')[0]).exists()]
    assert not missing, missing

# --- each notebook

@each(NBS)
def test_kind_of_notebook(name):
    nb = NBS[name]
    assert nb['metadata']['kernelspec']['name'] == 'python3', 'papermill finds no other kernel'
    if not name.startswith('7_annexes/'):       # an annex may hold proofs alone
        assert bool(module_of(nb)) == (name in COMPONENTS), 'a notebook of a chapter, and no other, has #| default_exp'
    tagged = sum('parameters' in cell['metadata'].get('tags', []) for cell in nb['cells'])
    assert tagged in ([0] if name in COMPONENTS else [1] if name in RUNS else [0, 1]), f'{tagged} cells tagged parameters'

@each(NBS)
def test_style(name):
    assert (ROOT/'nbs'/name).stat().st_size < 300_000, 'over 300 kB: smaller figures, fewer outputs'
    lines = {code: sum(bool(line.strip()) and line.strip()[0] != '#' for line in code.splitlines()) for code in sources(NBS[name])}
    longest = max([n for code, n in lines.items() if re.search(r'(?m)^#\| *export', code)], default=0)
    assert longest <= 40, f'an export cell of {longest} lines'
    assert statistics.median([n for n in lines.values() if n] or [0]) <= 6, 'cells too long to read'

WORDS = re.compile(r'(?<![\w.])(asks?|asked|asking|tells?|told|knows|boss|pupil)\b|^Next: ', re.M)

@each(NBS)
def test_words(name):
    texts = [FENCED.sub('', text) for text in sources(NBS[name], 'markdown')] + sources(NBS[name])
    found = [text[max(0, m.start() - 40):m.end() + 20] for text in texts for m in WORDS.finditer(text)]
    assert not found, f'{found}: networks and files do not ask, tell or know, and a link says what is behind it'

@each(name for name in COMPONENTS if name[0] in '123456')
def test_length_of_notebook(name):
    n = len(NBS[name]['cells'])
    assert n <= 62, f'{n} cells: at most 62, so move details into an annex'

# --- every file

PRIVATE = re.compile('|'.join([r'/(?:work|root|tmp/w)' + r'/', '/home' + r'/\w', 'extra-' + 'index-url', 'find-' + 'links', r'https?://[\w.:-]+/simp' + r'le\b']))

def test_nothing_of_this_machine(files):
    found = {}
    for name in files:
        try: text = (ROOT/name).read_text(encoding='utf-8')
        except UnicodeDecodeError: continue
        if hit := PRIVATE.search(text): found[str(name)] = hit[0]
    assert not found, f'paths or hosts of one machine: {found}'

def test_ruff():
    r = sh(BIN/'ruff', 'check', '--isolated', '--select=E9,F', '--ignore=F403,F405',
           '--per-file-ignores=lsfd/*:F401', '--output-format=concise', 'lsfd', 'nbs', 'tools', 'tests')
    assert r.returncode == 0, r.stdout
