"Sphinx, told what `tools/pages.py` prepared: notebooks with their stored outputs, and an API page for each module."
import re, shutil, sys
from importlib.util import find_spec
from pathlib import Path
from fastcore.docments import docments
sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
from sync_settings import ROOT, settings
sys.path.insert(0, str(ROOT))

c = settings()
project, author, release = c['lib_name'], c['author'], c['version']
copyright, html_title = f'2026, {author}', project
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.viewcode', 'sphinx_copybutton']
nb_execution_mode, nb_merge_streams = 'off', True
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_heading_anchors = 3
suppress_warnings = ['myst.header']                             # a heading that skips a level

autodoc_default_options, autodoc_inherit_docstrings = dict(members=True), False
autodoc_member_order, autodoc_typehints = 'bysource', 'none'
python_maximum_signature_line_length = 90

MATHJAX = Path(find_spec('sphinx-mathjax-offline').submodule_search_locations[0])/'static/mathjax'
mathjax_path = 'mathjax/tex-chtml.js'

html_theme = 'sphinx_book_theme'
html_static_path, html_css_files = [str(ROOT/'docs/static')], ['site.css']
html_show_copyright = html_show_sourcelink = False
html_theme_options = dict(
    repository_url=c['git_url'], repository_branch=c['branch'], path_to_docs=c['nbs_path'],
    use_repository_button=True, show_toc_level=2, navbar_persistent=[],
    launch_buttons=dict(colab_url='https://colab.research.google.com', binderhub_url='https://mybinder.org'))

def rst(text):
    "Markdown's `code` and plain characters in reStructuredText."
    return re.sub(r'`([^`]+)`|([*|\\`]|_\b)', lambda m: rf'\ ``{m[1]}``\ ' if m[1] else '\\' + m[2], text)

def add_docments(app, what, name, obj, options, lines):
    "The comments beside the parameters as the fields of a docstring."
    lines[:] = rst('\n'.join(lines)).split('\n')
    if what not in ('function', 'method', 'class'): return
    try: notes = docments(obj, full=True)
    except (TypeError, ValueError, OSError): return
    said = {name: rst(' '.join(note.docment.split())) for name, note in notes.items() if getattr(note, 'docment', None)}
    lines += [''] + [f':returns: {text}' if name == 'return' else f':param {name}: {text}' for name, text in said.items()]

def only_ours(app, what, name, obj, skip, options):
    "Leave out what a module passes on from another package."
    return True if getattr(obj, '__module__', 'lsfd').split('.')[0] != 'lsfd' else None

def add_mathjax(app, error):
    "The part of MathJax that these pages use, so that formulas need no network."
    for part in 'tex-chtml.js', 'output/chtml', 'input/tex':
        source, target = MATHJAX/part, Path(app.outdir)/'_static/mathjax'/part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target) if source.is_file() else shutil.copytree(source, target, dirs_exist_ok=True)

def setup(app):
    app.connect('autodoc-process-docstring', add_docments)
    app.connect('autodoc-skip-member', only_ours)
    app.connect('build-finished', add_mathjax)
