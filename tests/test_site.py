"""The site builds without a network or a warning, from the notebooks as they are stored; its parts, on pages made up here."""
import re, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
import pages as site

def cell(source, kind='code'): return dict(cell_type=kind, id='a', metadata={}, source=source, **(dict(outputs=[]) if kind == 'code' else {}))

def test_cells_lose_their_directives_and_hidden_ones_go():
    nb = dict(cells=[cell('#| default_exp a'), cell('#| echo: false\nplot()'), cell('#|hide\nimport os'), cell('#| export\n#| slow\nx = 1  #| no directive'), cell('# Title', 'markdown')])
    shown, *rest = site.tidy(nb, 'a.ipynb')['cells']
    assert [c['source'] for c in rest] == ['x = 1  #| no directive', '# Title']
    assert shown['metadata']['tags'] == ['remove-input'] and shown['source'] == 'plot()'

@pytest.mark.parametrize('link, seen', [('2_b/c.ipynb', '2_b/c.ipynb'), ('../3_d/e.ipynb#f', '../3_d/e.ipynb#f'),
                                        ('../../data/paper', f'{site.C["git_url"]}/blob/main/data/paper')])
def test_links(link, seen):
    assert site.relink(f'[a]({link}) `[a]({link})`', '1_a/b.ipynb') == f'[a]({seen}) `[a]({link})`'

def test_reading_order():
    pages = site.notebooks()
    chapters = [page.split('/')[0] for page in pages if page[0].isdigit()]
    assert pages[:2] == ['index.ipynb', 'tour.ipynb'] and chapters == sorted(chapters) and chapters[0] < chapters[-1]
    assert pages.index(chapters[-1] + '/01_system.ipynb') < pages.index('paper/table1.ipynb') < pages.index('train.ipynb')

@pytest.fixture(scope='module')
def built():
    r = subprocess.run([sys.executable, ROOT/'tools/pages.py'], capture_output=True, text=True)      # warnings are errors
    assert r.returncode == 0, r.stdout + r.stderr
    return site.OUT/'html'

def test_every_notebook_and_module_has_a_page(built):
    pages = {page.removesuffix('.ipynb') for page in site.notebooks()}
    assert not [page for page in pages if not (built/f'{page}.html').is_file()]
    terms = (built/'searchindex.js').read_text(encoding='utf-8')
    assert 'lsfd_loss' in terms and 'psnr_y' in terms
    loss = (built/'api/lsfd.losses.lsfd.html').read_text(encoding='utf-8')
    assert 'id="lsfd.losses.lsfd.sfd_map"' in loss and '<strong>sr_t</strong>' in loss      # comments beside parameters

def test_pages_need_no_network_and_show_no_directive(built):
    for page in built.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//[^"]+', text.replace('rel="canonical"', '')), page
        assert '#| export' not in re.sub('<[^>]+>', '', text), page
    page = (built/'1_method/04_losses.lsfd.html').read_text(encoding='utf-8')
    assert 'mathjax/tex-chtml.js' in page and (built/'_static/mathjax/tex-chtml.js').is_file()
    assert 'colab.research.google.com' in page and 'mybinder.org' in page and 'nbs/1_method/04_losses.lsfd.ipynb' in page
