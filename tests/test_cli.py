"""The command line as a person uses it: in a folder of their own, with what can go wrong."""
import os, shutil, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np, psutil, pytest
from campaign import count
from PIL import Image

from lsfd import commands
from lsfd.cli import main
from lsfd.runs import Evaluate
from lsfd.state import read_run
from lsfd.system import bundled

ROOT = Path(__file__).resolve().parents[1]
ENV = {k: v for k, v in os.environ.items() if k != 'LSFD_DATA'} | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', PYTHONUNBUFFERED='1')

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with a photo."
    tmp = tmp_path_factory.mktemp('home'); (tmp/'photos').mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 81, 3), 'uint8')).save(tmp/'photos/noise=1.png')
    return tmp

@pytest.fixture
def lsfd(home, monkeypatch, capfd):
    "A function that does in `home` what the command line says."
    monkeypatch.chdir(home); monkeypatch.setenv('PYTHONPATH', str(ROOT))
    def run(*words):
        status = main(list(words))
        return SimpleNamespace(status=status, **capfd.readouterr()._asdict())
    return run

def test_a_folder_of_photos(home, lsfd):
    r = lsfd('upscale', 'photos', '--no-compare')
    assert r.status == 0 and 'noise=1.png 81x60 → upscaled/noise=1_x2.png 162x120' in r.out, r.err
    assert [f.name for f in (home/'upscaled').iterdir()] == ['noise=1_x2.png']

@pytest.mark.parametrize('words, status, without', [(['--help'], 0, 'torch'), (['--version'], 0, 'torch'), (['trian'], 2, 'torch'),
                                                    (['upscale', 'photos', '--out', 'quick', '--no-compare'], 0, 'torch._dynamo')], ids=str)
def test_what_is_not_imported(words, status, without, home):
    "PyTorch takes a second or two, its compiler as long again."
    quick = f'import sys; from lsfd.cli import main; print(main(sys.argv[1:]), "{without}" in sys.modules)'
    r = subprocess.run([sys.executable, '-c', quick, *words], cwd=home, env=ENV, capture_output=True, text=True)
    assert r.stdout.splitlines()[-1] == f'{status} False', r.stderr

@pytest.mark.parametrize('command, says', [('upscale', 'image files, or folders of them'), ('train', "side of an LR patch"), ('taps', 'a file, or your own network')])
def test_help_is_what_the_declarations_say(lsfd, command, says):
    r = lsfd(command, '--help')
    assert r.status == 0 and says in ' '.join(r.out.split())

@pytest.mark.parametrize('words, says', {
    'no command':          (['trian'], 'Did you mean "train"?'),
    'no option':           (['train', '--modle', 'edsr'], 'Did you mean --model?'),
    'no value':            (['train', 'esdr'], 'did you mean edsr?'),
    'no number':           (['train', '--steps', 'many'], 'unable to convert "many" into int'),
    'no checkpoint':       (['evaluate', 'none.pt'], 'no file at'),
    'found by a notebook': (['evaluate', '--benchmark', 'photos', '--device', 'cpu', '--inference', 'tiles 0+1', '--out', 'o'], 'tiles 0+1'),
    'no image':            (['upscale', 'mine.txt'], 'no file mine.txt'),
    'no such device':      (['upscale', 'photos', '--device', 'gpu', '--out', 'none'], "choose auto, cpu, cuda or mps, not 'gpu'"),
    'no such network':     (['taps', 'my_net.py:Net'], 'no file at'),
    'no such way':         (['upscale', 'photos', '--inference', 'tilez', '--out', 'none'], "or as in 'tiles 256+32', not 'tilez'"),
    'no format':           (['export', 'checkpoints/rcan_student_demo_x2.safetensors', '--to', 'gif'], "no format 'gif': choose one of onnx, torch, fp16"),
}.values(), ids=str)
def test_one_clear_line(lsfd, words, says):
    r = lsfd(*words)
    assert r.status == 2 and says in r.err and 'Traceback' not in r.out + r.err, r.err
    assert len(r.err.strip().splitlines()) == 1, r.err

def test_any_path_is_taken_as_it_is(home, lsfd):
    "Commas in the name of a folder, equals signs in that of a checkpoint, braces in that of the results."
    shutil.copytree(home/'photos', home/'two, three', dirs_exist_ok=True); shutil.copy(bundled('checkpoints/rcan_student_demo_x2.safetensors'), home/'α=1.safetensors')
    r = lsfd('lam', 'α=1.safetensors', '--image', 'two, three/noise=1.png', '--profile', 'smoke', '--out', '{seed} ü')
    assert r.status == 0 and 'α=1: ' in r.out and 'Passed unknown parameter' not in r.err, r.err
    assert {f.name for f in (home/'{seed} ü').iterdir()} == {'lam.ipynb', 'lam.json', 'lam.png'}
    assert Evaluate(benchmark='two, three').benchmark == ('two, three',)

@pytest.mark.faults
@pytest.mark.parametrize('hit', ['the command', 'its kernel'])
def test_a_training_is_stopped(hit, tmp_path):
    "A batch job that ends, or Ctrl-C, is a signal to the command; the memory's guard kills the kernel."
    words = ['train', '--profile', 'smoke', '--steps', '2000', '--save-every', '2000', '--method', 'Student', '--device', 'cpu', '--out', str(tmp_path/'run')]
    with subprocess.Popen([sys.executable, '-c', 'import sys; from lsfd.cli import main; sys.exit(main())', *words], cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        for line in job.stdout:
            if line.strip().startswith('2/2000'): break
        kernel, = psutil.Process(job.pid).children()
        job.terminate() if hit == 'the command' else kernel.kill()
        said = job.stdout.read().strip().splitlines()[-1]
    if hit == 'the command': assert count('commands that are stopped save and say so', job.returncode == 130 and 'the same call goes on from there' in said and read_run(tmp_path/'run')['at']['step'] >= 2), said
    else: assert job.returncode == 2 and said.startswith('lsfd: Kernel died: killed, or out of memory? What was saved is good'), said
    assert not kernel.is_running()

def test_reproduce_names_what_it_needs(lsfd, monkeypatch):
    monkeypatch.setattr(commands, 'find_spec', lambda name: None)
    r = lsfd('reproduce')
    assert r.status == 2 and 'pip install "lsfd[workflow]"' in r.err
    monkeypatch.setattr(commands, 'repo_root', Path.cwd)
    r = lsfd('reproduce')
    assert r.status == 2 and 'in a clone' in r.err

def test_a_photo_that_is_none_stops_before_anything_is_written(home, lsfd):
    (home/'bad').mkdir(exist_ok=True); (home/'bad/a.png').write_text('no image')
    r = lsfd('upscale', 'bad', '--out', 'none')
    assert r.status == 2 and 'a.png' in r.err and len(r.err.splitlines()) == 1 and not list((home/'none').glob('*.png'))
