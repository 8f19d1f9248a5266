"""The jobs that the README promises: its own commands and files, in a folder of a user, at smoke size. No network is at hand, so the
demo RCAN stands for the downloaded teacher and for the released checkpoint, and a few small crops for Set5."""
import os, re, shlex, subprocess, sys
from pathlib import Path

import numpy as np, onnxruntime, pytest, torch
from PIL import Image

from lsfd.data import sample_photos
from lsfd.models import load_demo
from lsfd.system import bundled

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT/'README.md').read_text(encoding='utf-8')
JOBS = README.split('\n## Six jobs\n')[1].split('\n## ')[0].replace('\\\n', '').replace('\\\n', '')
COMMANDS = [shlex.split(line, comments=True)[1:] for line in re.findall(r'(?m)^lsfd .*', JOBS)]
LSFD = [sys.executable, '-c', 'import sys; from lsfd.cli import main; sys.exit(main())']

def small(words):
    "A command at smoke size, without what is downloaded."
    text = re.sub(r' --(steps|batch) \d+', '', ' '.join(words))
    text = re.sub(r'\S+/DAT_light_x2.pth --teacher-taps \S+', f'{bundled("checkpoints/rcan_teacher_demo_x2.safetensors")} --teacher-taps body.4', text)
    return text.split() + ['--profile', 'smoke']*(words[0] in ('train', 'compare'))

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with what the README says a user has."
    home = tmp_path_factory.mktemp('home')
    for name, code in re.findall(r'(?s)```python\n# (my_\w+\.py)\n(.*?)```', JOBS): (home/name).write_text(code)
    for folder, photos in ('my_photos', sample_photos('train')), ('data/benchmark/Set5/HR', sample_photos('valid')):
        (home/folder).mkdir(parents=True)
        for name, photo in photos.items(): Image.fromarray(photo[80:176, 100:228]).save(home/folder/f'{name}.png')
    Image.fromarray(sample_photos('valid')['coffee'][100:160, 150:231]).save(home/'photo.jpg')
    torch.save(load_demo('rcan_teacher').state_dict(), home/'RCAN_BIX2.pt')
    return home

@pytest.fixture(scope='module')
def said(home):
    "What each command printed; a training shows its progress while it runs."
    env = os.environ | dict(PYTHONPATH=str(ROOT), LSFD_DATA=str(home/'data'), OMP_NUM_THREADS='1', PYTHONUNBUFFERED='1', NO_COLOR='1')
    texts = {}
    for words in COMMANDS:
        with subprocess.Popen([*LSFD, *small(words)], cwd=home, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
            lines = [(line, job.poll() is None) for line in job.stdout]
        texts[' '.join(words)] = text = ''.join(line for line, _ in lines)
        assert job.returncode == 0, f'{" ".join(words)}\n{text}'
        if words[0] == 'train': assert next(running for line, running in lines if '2/6' in line)
    return lambda *words: next(text for command, text in texts.items() if all(word in command for word in words))

def files(folder): return {f.name for f in folder.iterdir()}

def test_own_photos(home, said):
    text = said('train', 'runs/mine')
    assert 'held out: 1 images' in text and '6/6' in text
    assert re.search(r'held out +\d\d\.\d{3} +\d\d\.\d{3} +\d\d\.\d{3}\n', text)     # bicubic, student, teacher
    assert {'train.ipynb', 'student.safetensors', 'compared.png', 'ledger.jsonl', 'log.jsonl'} <= files(home/'runs/mine')
    assert 'photo.jpg 81x60 → upscaled/photo_x2.png 162x120' in said('upscale')
    assert files(home/'upscaled') == {'photo_x2.png', 'photo_x2_compared.png'}

@pytest.mark.parametrize('file', ['student.onnx', 'my_net.onnx'])
def test_onnx_of_any_size(home, said, file):
    session = onnxruntime.InferenceSession(home/file)
    for n, h, w in (1, 17, 24), (3, 30, 20):
        sr, = session.run(['sr'], {'lr': np.full((n, 3, h, w), 99, 'float32')})
        assert sr.shape == (n, 3, 2*h, 2*w)

def test_own_network(said):
    assert re.search(r'(?m)^0 +Sequential +24 ', said('taps'))
    assert '6/6' in said('train', 'runs/own') and 'my_net.onnx: differs from the network by at most' in said('export', 'my_net.py')

def test_own_loss_three_seeds_latex(home, said):
    assert 'seed 2' in said('compare')
    *_, head, _, bicubic, student, lsfd, edges, teacher, _, _ = (home/'runs/loss/table.tex').read_text().splitlines()
    assert head == r' & photos \\' and all(row.count(r'$\pm$') == 1 for row in (student, lsfd, edges))
    assert [row.split(' & ')[0] for row in (bicubic, student, lsfd, edges, teacher)] == ['bicubic', 'Student', 'LSFD', 'edges', 'teacher']

def test_released_checkpoint_beside_the_paper(home, said):
    text = said('evaluate')
    assert re.search(r'this network +\d\d\.\d{3}\n', text) and re.search(r'Teacher +38\.271\n', text) and re.search(r'LSFD +38\.189\n', text)
    assert {'scores.csv', 'compared.png', 'evaluate.ipynb'} <= files(home/'runs/scored')
