"""The explorer in a real browser, in JupyterLab and as a Voilà page: a box is dragged, the maps change, the index is read off the page.
Needs Chromium (`apt-get install chromium`) and Playwright. Screenshots and the console are kept in $LSFD_ARTEFACTS, else in runs/browser."""
import os, re, shutil, signal, socket, struct, subprocess, sys, time, zlib
from pathlib import Path

import nbformat, pytest
from nbdev.config import get_config
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

sync_api = pytest.importorskip('playwright.sync_api', reason='no Playwright: pip install playwright')
expect = sync_api.expect

ROOT = get_config(Path(__file__).parent).config_path
KEPT = Path(os.environ.get('LSFD_ARTEFACTS') or ROOT/'runs/browser')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
SWITCHES = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
MINUTE = 60_000
expect.set_options(timeout=2*MINUTE)      # patience costs nothing where things go well

pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no Chromium: apt-get install chromium')

@pytest.fixture(scope='module')
def chromium():
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=SWITCHES)
        yield browser
        browser.close()

@pytest.fixture
def page(chromium, request):
    "A laptop's page with a finger, whose console and last look are kept."
    page = chromium.new_context(viewport=dict(width=1366, height=768), has_touch=True, accept_downloads=True).new_page()
    page.set_default_timeout(2*MINUTE)
    page.said, page.errors = [], []
    page.on('console', lambda m: page.said.append(f'{m.type}: {m.text}'))
    page.on('pageerror', lambda e: page.errors.append(str(e)))
    yield page
    KEPT.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=KEPT/f'{request.node.name}.png')
    (KEPT/f'{request.node.name}.console.txt').write_text('\n'.join([*page.said, *page.errors]))
    page.context.close()

# --- servers

@pytest.fixture
def place(tmp_path):
    "A folder with the notebook, its parameters set to a quick run, and nobody's settings."
    nb = load_notebook_node(str(ROOT/'nbs/explore.ipynb'))
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = []
    work = tmp_path/'work'; work.mkdir()
    nbformat.write(parameterize_notebook(nb, dict(folds=10, context=32, image='chelsea')), work/'explore.ipynb')
    settings = tmp_path/'config/labconfig/page_config.json'; settings.parent.mkdir(parents=True)
    settings.write_text('{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}')
    return work

@pytest.fixture
def serve(place, request):
    "Start a server on a free port; when the test is over, end it and its kernels."
    running = []
    def start(*command):
        with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
        own = dict(JUPYTER_CONFIG_DIR='config', JUPYTER_DATA_DIR='data', JUPYTER_RUNTIME_DIR='runtime', IPYTHONDIR='ipython')
        env = os.environ | {k: str(place.parent/v) for k, v in own.items()} | dict(OMP_NUM_THREADS='1')
        env.pop('MPLBACKEND', None)
        KEPT.mkdir(parents=True, exist_ok=True)
        with open(KEPT/f'{request.node.name}.server.txt', 'w') as log:
            running.append(subprocess.Popen([sys.executable, '-m', *command, '--no-browser', f'--port={port}'], cwd=place, env=env,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True))
        return f'http://127.0.0.1:{port}', running[-1]
    yield start
    for process in running:
        os.killpg(process.pid, signal.SIGTERM)
        try: process.wait(20)
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL)

def wait_for(url, process, seconds=120):
    "Until the server listens."
    host = url.removeprefix('http://').split(':')
    for _ in range(2*seconds):
        assert process.poll() is None, f'the server has ended: see {KEPT}'
        try: return socket.create_connection(host, 1).close()
        except OSError: time.sleep(.5)
    pytest.fail(f'nobody answers at {url} in {seconds} s')

# --- what a person does and sees

def status(page): return page.locator('.lsfd-status')
def settled(page, text=''):
    "Wait for the final answer."
    expect(status(page)).to_have_text(re.compile(text + r'.* \d+ folds(, [\d.]+ s)?$'))
    expect(page.locator('.lsfd-busy')).to_have_count(0)

def seen(page):
    "The picture's address and the indices that the page shows."
    rows = page.get_by_role('list', name='Diffusion index').get_by_role('listitem')
    return page.locator('.lsfd-picture img').get_attribute('src'), {row.get_attribute('data-network'): float(row.locator('b').inner_text()) for row in rows.all()}

def spot(page, down, across):
    "Page coordinates of a place on the photo, as shares of its height and width."
    photo = page.locator('.lsfd-pick img'); photo.scroll_into_view_if_needed()
    r = photo.bounding_box()
    return r['x'] + across*r['width'], r['y'] + down*r['height']

def drag(page, start, end):
    page.mouse.move(*spot(page, *start)); page.mouse.down()
    page.mouse.move(*spot(page, *end), steps=8); page.mouse.up()

def label(page): return page.locator('.lsfd-pick').get_attribute('aria-label')

def upload(page, file):
    with page.expect_file_chooser() as chooser: page.get_by_role('button', name='Another photo').click()
    chooser.value.set_files(file)

def start_lab(page, serve):
    url, process = serve('jupyterlab', '--allow-root', '--ip=127.0.0.1', '--IdentityProvider.token=', '--ServerApp.password=', '--ServerApp.root_dir=.')
    wait_for(url, process)
    page.goto(f'{url}/lab/tree/explore.ipynb?reset', wait_until='domcontentloaded')
    page.get_by_text('| Idle').wait_for()           # the status bar; the toolbar says so before the kernel is there
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    page.locator('.lsfd-pick').wait_for()
    settled(page)

def test_lab(serve, page):
    start_lab(page, serve)
    picture, indices = seen(page)
    assert set(indices) == {'Student', 'LSFD', 'Teacher'} and all(0 < n < 100 for n in indices.values())

    drag(page, (.15, .1), (.28, .2))                # a new box
    expect(page.locator('.lsfd-picture img')).not_to_have_attribute('src', picture)
    settled(page, r'Window 45×45 at row 45, column 45\.')
    moved, others = seen(page)
    assert moved != picture and others != indices
    alt = page.locator('.lsfd-picture img').get_attribute('alt')
    assert f'LSFD {others["LSFD"]:.1f}' in alt
    page.screenshot(path=KEPT/'lab_dragged.png')

    drag(page, (.2, .15), (.2, .25))                # from within: it moves
    settled(page, r'Window 45×45 at row 45, column 90\.')
    page.keyboard.press('ArrowDown'); page.keyboard.press('-')
    settled(page, r'Window 43×43 at row 57, column 91\.')
    assert 'Window of 43 pixels at row 57, column 91' in label(page)

    with page.expect_download() as download: page.get_by_role('link', name='Save this picture').click()
    assert download.value.suggested_filename == 'lam.png' and Path(download.value.path()).read_bytes().startswith(b'\x89PNG')
    assert not page.errors, page.errors

def chunk(name, data): return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
BOMB = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 100_000, 100_000, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes(999)))

def test_voila(serve, page):
    url, process = serve('voila', 'explore.ipynb', '--Voila.ip=127.0.0.1')
    wait_for(url, process)
    page.goto(url, wait_until='domcontentloaded')
    page.locator('.lsfd-pick').wait_for()
    try: settled(page)
    except AssertionError:       # seen once: what the kernel sends while the page is being connected can be lost
        page.reload(wait_until='domcontentloaded'); page.locator('.lsfd-pick').wait_for(); settled(page)
    picture, indices = seen(page)

    page.touchscreen.tap(*spot(page, .5, .25))      # a finger
    settled(page, r'Window 16×16 at row 14\d, column 10\d\.')
    assert seen(page)[0] != picture and seen(page)[1] != indices
    page.screenshot(path=KEPT/'voila_tapped.png')

    for name, content, answer in [('notes.txt', b'milk, eggs', 'not a picture'), ('bomb.png', BOMB, 'too large'),
                                  ('large.png', bytes(12_000_000), '12 MB')]:
        upload(page, dict(name=name, mimeType='image/png', buffer=content))
        expect(status(page)).to_contain_text(f'{name}: {answer}')
    before = seen(page)[0]
    upload(page, ROOT/'figures/readme/1.png')
    settled(page)                                   # the kernel lives on
    assert seen(page)[0] != before
    assert not page.errors, page.errors
