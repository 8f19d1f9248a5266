"""One item per notebook. A component notebook runs in a child of a server that has imported torch and done nothing else: no notebook sees another's state.
It is not forked from the process that runs the tests, whose threads and locks, or CUDA, would not survive that.
A run notebook (one with a cell tagged `parameters`) goes through papermill, as its users start it, at profile `smoke` and into a temporary folder.
Cells flagged `slow`, `gpu` or `notest` are left out; LSFD_TEST_FLAGS="slow gpu" runs them too."""
import faulthandler, json, math, multiprocessing, os, re, shutil, subprocess, sys
from pathlib import Path

import nbdev.test, papermill, pytest, torch
from fastcore.nbio import read_nb, write_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.frontmatter import nb_frontmatter

CONFIG = get_config(Path(__file__).parent)
ROOT, NBS = CONFIG.config_path, CONFIG.nbs_path
NOTEBOOKS = sorted(nbglob(NBS, as_path=True))
MINUTES = 10
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['matplotlib.pyplot', 'nbdev.test', 'pandas', 'papermill', 'pytest', 'scipy.stats', 'seaborn', 'torch', 'torch._dynamo'])

# --- stored outputs: the text that a cell prints is what is stored, its figures within a tolerance, timings and memory excepted

NUMBER = re.compile(r'[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?')
VARIES = re.compile(r'\b(s|ms|µs|min|seconds?|minutes?|hours?|steps/s|left|[KMGT]i?B|kB|bytes|[GT]?FLOP\S*|cores?|torch|times as)\b|0x[0-9a-f]+|/tmp/|<IPython|Styler|object at')

def printed(cell):
    "What a cell shows as text."
    for out in cell.get('outputs', []):
        if out['output_type'] == 'stream' and out['name'] == 'stdout': yield ''.join(out['text'])
        if out['output_type'] in ('execute_result', 'display_data'): yield '' if 'text/html' in out['data'] else ''.join(out['data'].get('text/plain', ''))   # a table's text is cut to the screen

def near(a, b):
    "Do two lines say the same, but for figures that another machine rounds elsewhere?"
    a, b = (re.sub(r'\s+', ' ', re.sub(r'\b(?=\w*\d)[0-9a-f]{12,}\b', '#', line.strip())) for line in (a, b))   # fingerprints depend on the last bit
    if VARIES.search(a) and VARIES.search(b): return True
    if NUMBER.sub('#', a) != NUMBER.sub('#', b): return False
    values = zip(*([float(n.replace(',', '').replace('−', '-')) for n in NUMBER.findall(line)] for line in (a, b)))
    return all(math.isclose(x, y, rel_tol=.05, abs_tol=.01) for x, y in values)

def differences(stored, ran):
    "A line for each cell of `stored` that shows something else when it is run."
    fresh = {cell['id']: cell for cell in json.loads(Path(ran).read_text(encoding='utf-8'))['cells']}
    for cell in json.loads(Path(stored).read_text(encoding='utf-8'))['cells']:
        if not cell.get('outputs') or cell['id'] not in fresh or '#| varies' in ''.join(cell['source']): continue   # its author says so
        old, new = (''.join(printed(c)).splitlines() for c in (cell, fresh[cell['id']]))
        if any('skipped' in line for line in (*old, *new)): continue    # data or a device that only one of the two machines has
        bad = next((pair for pair in zip(old, new) if not near(*pair)), None)
        if len(old) != len(new): bad = f'{len(old)} lines', f'{len(new)} lines'
        if bad: yield f'cell {cell["id"]}: stored {bad[0]!r}, now {bad[1]!r}'

def compare(stored, ran):
    if stale := list(differences(stored, ran)): pytest.fail('stored outputs do not agree with the code, execute the notebook again:\n' + '\n'.join(stale), pytrace=False)

@pytest.mark.parametrize('a, b, same', [
    ('33.04 dB', '33.05 dB', True), ('33.04 dB', '31.00 dB', False), ('3 images', '4 images', False), ('a 1', 'b 1', False),
    ('0.53 steps/s  0:01 left', '7.10 steps/s  0:00 left', True), ('-0.010', '-0.012', True), ('12,345', '12,345', True)])
def test_comparison_can_fail(a, b, same): assert near(a, b) == same

def in_child(path, tmp):
    "The forked child: what the notebook prints goes to `log`, the error of the failing cell last, and the notebook with its outputs to `ran.ipynb`."
    log = tmp/'log'
    nbdev.test.write_nb = lambda nb, _: write_nb(nb, tmp/'ran.ipynb')
    for stream in 1, 2: os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.stdout = sys.__stdout__ = sys.stderr = sys.__stderr__ = open(2, 'w', buffering=1, closefd=False)
    faulthandler.dump_traceback_later(60*MINUTES - 10)     # where it hangs, if it does
    os.chdir(NBS); torch.set_num_threads(1); os.environ['OMP_NUM_THREADS'] = '1'
    passed, _ = nbdev.test.test_nb(path, CONFIG.tst_flags.split(), os.environ.get('LSFD_TEST_FLAGS', '').split(), basepath=ROOT, save=True)
    sys.stdout.flush(); os._exit(not passed)

def run_component(path, tmp):
    child = SERVER.Process(target=in_child, args=(path, tmp)); child.start(); child.join(60*MINUTES)
    if child.is_alive(): child.kill(); child.join()
    if child.exitcode: pytest.fail(f'exit status {child.exitcode} (-9: killed, after {MINUTES} minutes at the latest)\n' + (tmp/'log').read_text()[-6000:], pytrace=False)
    compare(path, tmp/'ran.ipynb')

def smoke(parameters, tmp):
    "What a run notebook is given: of these names, those that it declares."
    wanted = dict(profile='smoke', out=tmp/'run') | ({'ledger': tmp/'ledger.jsonl'} if 'profile' in parameters else {})   # the others only read it
    if 'images' in parameters: wanted['images'] = 2        # of a set that may be large
    if 'checkpoint' in parameters:
        bundled = sorted(ROOT.glob('data/checkpoints/*.safetensors'))
        if not bundled: pytest.skip('no checkpoint under data/checkpoints')
        wanted['checkpoint'] = bundled[0]
    return {name: str(value) for name, value in wanted.items() if name in parameters}

def run_papermill(path, tmp):
    chosen = smoke(papermill.inspect_notebook(path), tmp)
    if chosen.keys() == {'out'}: shutil.copytree(ROOT/'figures', tmp/'run')     # the claims read what other pages have left there
    given = [word for name, value in chosen.items() for word in ('-r', name, value)]
    r = subprocess.run([sys.executable, '-m', 'papermill', path, tmp/'out.ipynb', '-k', 'python3', '--no-progress-bar', '--log-output', *given],
        cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1'}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60*MINUTES)
    if r.returncode: pytest.fail(r.stderr[-6000:], pytrace=False)
    if chosen.keys() == {'out'}: compare(path, tmp/'out.ipynb')      # nothing that changes its results

@pytest.mark.parametrize('path', NOTEBOOKS, ids=[str(path.relative_to(NBS)) for path in NOTEBOOKS])
def test_notebook(path, tmp_path):
    nb = read_nb(path)
    if nb_frontmatter(nb).get('skip_exec'): pytest.skip('skip_exec in its front matter')
    run = run_papermill if any('parameters' in cell.metadata.get('tags', []) for cell in nb.cells) else run_component
    run(path, tmp_path)
