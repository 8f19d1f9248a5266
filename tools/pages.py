"""Build the site in _docs/: the notebooks in reading order as they are stored, and an API page for each module. Nothing is executed."""
import json, os, posixpath, re, shutil, subprocess, sys
from readme import FENCED, LINK
from sync_settings import ROOT, settings

C = settings()
NBS, OUT = ROOT/C['nbs_path'], ROOT/C['doc_path']

def notebooks():
    "The paths of all notebooks from `nbs/`, in reading order: front page, tour, chapters, the paper's tables, the runs as the front page names them."
    found = [p.relative_to(NBS).as_posix() for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]
    front = (NBS/'index.ipynb').read_text(encoding='utf-8')
    return sorted(found, key=lambda name: (name != 'index.ipynb', name != 'tour.ipynb', '/' not in name, '/' not in name and front.find(f'({name})'), name))

def outside(link, page):
    "A link of a notebook; one that leaves `nbs/` becomes an address in the repository."
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return f'{C["git_url"]}/blob/{C["branch"]}/{path[3:]}' if path.startswith('../') else link

def relink(text, page):
    parts = FENCED.split(text)
    parts[::2] = [LINK.sub(lambda m: m[1] + outside(m[2], page), part) for part in parts[::2]]
    return ''.join(parts)

def tidy(nb, page):
    "A notebook as a reader needs it: without hidden cells and without directives."
    kept, folded = [], dict(metadata=dict(tags=['remove-input']))
    for cell in nb['cells']:
        source = ''.join(cell['source'])
        if re.search(r'(?m)^#\| *(hide|default_exp)\b', source): continue
        if re.search(r'(?m)^#\| *echo: *false', source): cell = cell | folded
        source = relink(source, page) if cell['cell_type'] == 'markdown' else re.sub(r'(?m)^#\|.*\n?', '', source)
        kept.append(cell | dict(source=source.strip('\n')))
    return nb | dict(cells=kept)

def toctree(caption, pages):
    return f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(re.sub(r'\.ipynb$', '', page) for page in pages) + '\n```'

def contents(pages):
    "The table of contents, hidden at the end of the front page: it makes the sidebar."
    def part(page): return page.split('/')[0] if '/' in page else 'start' if page == 'tour.ipynb' else 'runs'
    def title(part): return dict(paper="The paper's tables and figures", runs='Notebooks to run').get(part) or part.replace('_', ' ').title()
    groups = {p: [page for page in pages[1:] if part(page) == p] for p in dict.fromkeys(map(part, pages[1:]))}
    return '\n\n'.join([toctree(title(p), group) for p, group in groups.items()] + [toctree('Reference', ['api/index'])])

def module_of(nb):
    names = re.findall(r'(?m)^#\| *default_exp +(\S+)', '\n'.join(''.join(cell['source']) for cell in nb['cells']))
    return f'{C["lib_name"]}.{names[0]}'.removesuffix('.__init__') if names else None

def reference(modules):
    "The API pages, from {module: the notebook that exports it}; Sphinx adds what the code says of itself."
    def home(page): return f':doc:`/{page.removesuffix(".ipynb")}`'
    yield 'api/index.rst', ('API reference\n=============\n\n.. toctree::\n   :hidden:\n\n' + ''.join(f'   {m}\n' for m in modules)
        + '\n.. list-table::\n   :header-rows: 1\n\n   * - module\n     - defined, explained and tested in\n'
        + ''.join(f'   * - :doc:`{m}`\n     - {home(page)}\n' for m, page in modules.items()))
    for m, page in modules.items():
        yield f'api/{m}.rst', f'{m}\n{"="*len(m)}\n\nDefined, explained and tested in {home(page)}.\n\n.. automodule:: {m}\n'

def sources():
    "All files of the site's source, {path: text}."
    nbs = {page: json.loads((NBS/page).read_text(encoding='utf-8')) for page in notebooks()}
    modules = {module_of(nb): page for page, nb in nbs.items() if module_of(nb)}
    pages = {page: tidy(nb, page) for page, nb in nbs.items()}
    pages['index.ipynb']['cells'].append(dict(cell_type='markdown', id='contents', metadata={}, source=contents(list(nbs))))
    return {page: json.dumps(nb, ensure_ascii=False) for page, nb in pages.items()} | dict(reference(modules))

if __name__ == '__main__':
    folder = OUT/'source'
    shutil.rmtree(folder, ignore_errors=True)
    for path, text in sources().items():
        (folder/path).parent.mkdir(parents=True, exist_ok=True)
        (folder/path).write_text(text, encoding='utf-8')
    sphinx = [sys.executable, '-m', 'sphinx', '-q', '-E', '-W', '--keep-going', '-j', 'auto', '-c', ROOT/'docs', folder, OUT/'html']
    sys.exit(subprocess.run(sphinx, env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')).returncode)
