"""One item per notebook. A component notebook runs in a forked child: torch is imported once, and no notebook sees another's state.
Where there is a GPU the child is a new process instead, for CUDA does not survive a fork.
A run notebook (one with a cell tagged `parameters`) goes through papermill, as its users start it, at profile `smoke` and into a temporary folder.
Cells flagged `slow`, `gpu` or `notest` are left out; LSFD_TEST_FLAGS="slow gpu" runs them too."""
import multiprocessing, os, subprocess, sys
from pathlib import Path

import papermill, pytest, torch
from fastcore.nbio import read_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.frontmatter import nb_frontmatter
from nbdev.test import test_nb as run_cells

CONFIG = get_config(Path(__file__).parent)
ROOT, NBS = CONFIG.config_path, CONFIG.nbs_path
NOTEBOOKS = sorted(nbglob(NBS, as_path=True))
MINUTES = 10
torch.set_num_threads(1)          # before the forks; nothing runs in parallel in this process

def in_child(path, log):
    "The forked child: everything the notebook prints goes to `log`, the error of the failing cell last."
    for stream in 1, 2: os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.stdout = sys.__stdout__ = sys.stderr = sys.__stderr__ = open(2, 'w', buffering=1, closefd=False)
    os.chdir(NBS); os.environ['OMP_NUM_THREADS'] = '1'
    passed, _ = run_cells(path, CONFIG.tst_flags.split(), os.environ.get('LSFD_TEST_FLAGS', '').split(), basepath=ROOT, verbose=True)
    sys.stdout.flush(); os._exit(not passed)

def run_component(path, tmp):
    child = multiprocessing.get_context('spawn' if torch.cuda.is_available() else 'fork').Process(target=in_child, args=(path, tmp/'log')); child.start(); child.join(60*MINUTES)
    if child.is_alive(): child.kill(); child.join()
    if child.exitcode: pytest.fail((tmp/'log').read_text()[-6000:], pytrace=False)

def smoke(parameters, tmp):
    "What a run notebook is given: of these names, those that it declares."
    wanted = dict(profile='smoke', out=tmp/'run', ledger=tmp/'ledger.jsonl')
    if 'checkpoint' in parameters:
        bundled = sorted(ROOT.glob('data/checkpoints/*.safetensors'))
        if not bundled: pytest.skip('no checkpoint under data/checkpoints')
        wanted['checkpoint'] = bundled[0]
    return {name: str(value) for name, value in wanted.items() if name in parameters}

def run_papermill(path, tmp):
    given = [word for name, value in smoke(papermill.inspect_notebook(path), tmp).items() for word in ('-r', name, value)]
    r = subprocess.run([sys.executable, '-m', 'papermill', path, tmp/'out.ipynb', '-k', 'python3', '--no-progress-bar', '--log-output', *given],
        cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1'}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60*MINUTES)
    if r.returncode: pytest.fail(r.stderr[-6000:], pytrace=False)

@pytest.mark.parametrize('path', NOTEBOOKS, ids=[str(path.relative_to(NBS)) for path in NOTEBOOKS])
def test_notebook(path, tmp_path):
    nb = read_nb(path)
    if nb_frontmatter(nb).get('skip_exec'): pytest.skip('skip_exec in its front matter')
    run = run_papermill if any('parameters' in cell.metadata.get('tags', []) for cell in nb.cells) else run_component
    run(path, tmp_path)
