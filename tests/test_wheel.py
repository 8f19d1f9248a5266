"""The wheel is the whole product: built, installed into an empty folder, and used from another one, with the clone out of sight."""
import os, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

@pytest.fixture(scope='module')
def away(tmp_path_factory):
    "A function that runs Python in an empty folder, where `lsfd` is the wheel's."
    tmp = tmp_path_factory.mktemp('wheel')
    hidden = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for name in 'lsfd', 'nbs', 'data/checkpoints', 'data/paper': shutil.copytree(ROOT/name, tmp/name, ignore=hidden)   # setuptools leaves
    for name in 'pyproject.toml', 'README.md', 'LICENSE', 'data/ledger.jsonl': shutil.copy(ROOT/name, tmp/name)        # files where it builds
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    subprocess.run([*pip, 'wheel', '--no-build-isolation', '--no-deps', '-w', tmp/'dist', tmp], check=True)
    subprocess.run([*pip, 'install', '--no-deps', '--target', tmp/'site', *tmp.glob('dist/*.whl')], check=True)
    for name in 'lsfd', 'nbs', 'data': shutil.rmtree(tmp/name)
    (tmp/'elsewhere').mkdir()
    env = {k: v for k, v in os.environ.items() if k != 'LSFD_DATA'} | dict(PYTHONPATH=str(tmp/'site'), OMP_NUM_THREADS='1')
    def run(*words): return subprocess.run([sys.executable, *map(str, words)], cwd=tmp/'elsewhere', env=env, capture_output=True, text=True)
    run.folder = tmp/'elsewhere'
    return run

LIBRARY = '''
import warnings; warnings.simplefilter('error')
from pathlib import Path
import lsfd
assert 'site' in Path(lsfd.__file__).parts, lsfd.__file__
from lsfd.explore import PatchPicker   # its JavaScript is a file
from lsfd.ledger import paper_table, read
from lsfd.models import load_demo
from lsfd.runs import Train
from lsfd.system import bundled
print(len(paper_table()), len(paper_table(1)), len(read()) > 20, load_demo('rcan_teacher').scale, Train().model)
print(len(list(bundled('nbs').rglob('*.ipynb'))))
'''

def test_library(away):
    r = away('-c', LIBRARY)
    assert r.returncode == 0, r.stderr
    notebooks = len([p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts])
    assert r.stdout.split() == ['240', '6', 'True', '2', 'rcan', str(notebooks)]
    assert not list(away.folder.iterdir())

def test_train_and_upscale(away):
    command = 'from lsfd.cli import main; import sys; sys.exit(main())'
    r = away('-c', command, 'train', '--profile', 'smoke', '--out', 'mine')
    assert r.returncode == 0 and '6/6' in r.stdout, r.stderr
    assert {'student.safetensors', 'train.ipynb'} <= {f.name for f in (away.folder/'mine').iterdir()}
    assert [f.name for f in away.folder.iterdir()] == ['mine']
