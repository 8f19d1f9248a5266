"""A network is one file and a word, a loss is one file and two lines: done in a copy of the package, used as by any user, and taken out again."""
import os, shutil, subprocess, sys
from pathlib import Path

import lsfd

MINI = '''
import torch
from torch import nn
from lsfd.models.layouts import Network

class Mini(nn.Module):
    "x2 by stages of depthwise convolutions: `depths` of them in each."
    def __init__(self, *, depths=(2, 2), options=None, width=8, scale=2):
        super().__init__()
        self.spec, self.scale = dict(arch='mini', depths=list(depths), options=options, width=width, scale=scale), scale
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.stages = nn.ModuleList(nn.Sequential(*(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(n))) for n in depths)
        self.last = nn.Sequential(nn.Conv2d(width, 3*scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.register_buffer('index', torch.arange(4))
        self.tap_points = tuple(range(len(depths)))
    def forward(self, x, taps=False):
        f, features = self.first(x/255 - .5), []
        for stage in self.stages: f = f + stage(f); features.append(f)
        sr = nn.functional.interpolate(x, scale_factor=self.scale, mode='bicubic') + 255*self.last(f)
        return (sr, features) if taps else sr

def recognise(state, sizes):
    depths = [sum(k.startswith(f'stages.{i}.') and k.endswith('weight') for k in state) for i in range(sizes[0])]
    return dict(depths=depths, width=len(state['first.bias']), scale=int((len(state['last.0.bias'])/3)**.5), options=None)

NETWORK = Network('mini', Mini, paper=dict(teacher=dict(depths=[4, 4], width=16), student=dict(depths=[2, 2])),
    demo=dict(teacher=dict(depths=[2, 2], width=16), student=dict(depths=[1, 1])), marks=dict(released=r'stages\\.(\\d+)\\.0'), recognise=recognise)
'''
LOSS = '''
from lsfd.losses.sr import sr_term
def mini_loss(sr_s, sr_t): return (sr_s - sr_t).square().mean()
def mini_term(o): return mini_loss(o.sr_s, o.sr_t)
MINI = dict(terms=dict(sr=sr_term, mini=mini_term))
'''
USE = '''
import sys, torch
from pathlib import Path
import lsfd
assert Path(lsfd.__file__).parent == Path('lsfd').resolve()
from lsfd.data import Benchmark, PatchPairs, sample_photos
from lsfd.distill import Distill, METHODS
from lsfd.evaluate import evaluate
from lsfd.lam import lam
from lsfd.models import DEMO, MODELS, create_model, load_model, save_model
from lsfd.train import Recipe, fit
photos = {k: v[:80, :80] for k, v in sample_photos('train').items()}
teacher, student = (create_model(f'mini_{who}', **DEMO[f'mini_{who}']) for who in ('teacher', 'student'))
odd = create_model('mini_student', depths=[1, 3, 2], options=dict(a=[1, [2, 'x']], b=None))
for net in (student, odd):
    again = load_model(save_model('x.safetensors', net))
    assert again.spec == net.spec and all(torch.equal(v, net.state_dict()[k]) for k, v in again.state_dict().items())
torch.save({'params_ema': {f'module.{k}': v for k, v in create_model('mini_student', depths=[1, 3, 2]).state_dict().items()}}, 'x.pt')
assert load_model('x.pt').spec['depths'] == [1, 3, 2]
pairs = PatchPairs(photos, scale=2, lr_patch=12, batch=2)
for method in ('LSFD', 'MINI'):
    *_, log = fit(Distill(student, teacher, **METHODS[method]), pairs, Recipe.smoke(), f'run_{method}')
    assert log['step'] == 6 and log[method.lower() + ' share'] > 0
assert load_model('run_MINI/run.pt').spec == student.spec
assert evaluate(student, Benchmark(photos, scale=2)).mean.psnr > 10
assert lam(student, pairs.batch(0)[0][:1], 4, 4, folds=2).map.shape == (12, 12)
print('used')
'''
GONE = '''
from lsfd.distill import METHODS
from lsfd.models import ModelError, create_model
assert 'MINI' not in METHODS
try: create_model('mini_student')
except ModelError as e: print('gone', e)
'''

def edited(path, *pairs):
    text = path.read_text()
    for old, new in pairs: assert text.count(old) == 1, (path, old); text = text.replace(old, new)
    path.write_text(text)

def python(code, cwd):
    env = os.environ | dict(PYTHONPATH=str(cwd), OMP_NUM_THREADS='1')
    r = subprocess.run([sys.executable, '-c', code], cwd=cwd, env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    return r.stdout

def test_a_network_and_a_loss_come_and_go(tmp_path):
    home = Path(lsfd.__file__).parent
    copy = shutil.copytree(home, tmp_path/'lsfd', ignore=shutil.ignore_patterns('__pycache__'))
    if (home.parent/'data'/'checkpoints').is_dir(): (tmp_path/'data').symlink_to(home.parent/'data')
    before = {p: p.read_bytes() for p in copy.rglob('*.py')}
    (copy/'models/mini.py').write_text(MINI); (copy/'losses/mini.py').write_text(LOSS)
    edited(copy/'models/__init__.py', ("'edsr', 'rcan', 'san'", "'edsr', 'rcan', 'san', 'mini'"))
    edited(copy/'losses/__init__.py', ('from .dukd import *\n', 'from .dukd import *\nfrom .mini import *\n'), ("'DUKD': DUKD", "'DUKD': DUKD, 'MINI': MINI"))
    assert python(USE, tmp_path).endswith('used\n')
    for path in copy.rglob('*.py'):
        if path not in before: path.unlink()
        elif path.read_bytes() != before[path]: path.write_bytes(before[path])
    assert 'gone no model named' in python(GONE, tmp_path)
