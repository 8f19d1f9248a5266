"""torch.compile: every objective is one graph, taps and losses included, and a compiled run learns what the plain one does."""
import shutil

import pytest, torch

from lsfd.data import PatchPairs, sample_photos
from lsfd.distill import METHODS, Distill, Group, trainable
from lsfd.models import create_model
from lsfd.train import Recipe, fit

torch.set_num_threads(1)
SIZES = dict(edsr=dict(n_blocks=3, n_feats=8), rcan=dict(n_groups=3, n_blocks=1, n_feats=8, reduction=4),
             san=dict(n_groups=3, n_blocks=1, n_feats=16, inter=4))
pairs = PatchPairs({k: v[:96, :96] for k, v in sample_photos('train').items()}, scale=2, lr_patch=12, batch=2)

def objective(arch, method):
    torch.manual_seed(0)
    return Distill(create_model(f'{arch}_student', **SIZES[arch]), create_model(f'{arch}_teacher', **SIZES[arch]), **METHODS[method]).train()

@pytest.mark.parametrize('arch, method', [(a, 'LSFD') for a in SIZES] + [('edsr', m) for m in METHODS if m != 'LSFD'])
def test_one_graph(arch, method):
    o = objective(arch, method)
    whole = torch.compile(o, fullgraph=True, backend='eager')       # a graph break is an error
    for a, b in zip(o(*pairs.batch(0)).values(), whole(*pairs.batch(0)).values()): torch.testing.assert_close(a, b)
    torch._dynamo.reset()

def test_a_group_is_one_graph():
    o = objective('edsr', 'LSFD')
    group = Group({'LSFD': o, 'Student': Distill(create_model('edsr_student', **SIZES['edsr']), o.teacher, **METHODS['Student'])})
    losses = torch.compile(group, fullgraph=True, backend='eager')(*pairs.batch(0))
    assert 'Student/hr' in losses
    torch._dynamo.reset()

@pytest.mark.skipif(not shutil.which('g++'), reason='compiling for a CPU needs g++')
@pytest.mark.skipif(' ' in torch.__file__, reason='PyTorch cannot compile from a path with a space')
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_compiled_run_learns_the_same(precision, capsys):
    plain, fast = objective('edsr', 'LSFD'), objective('edsr', 'LSFD')
    recipe = dict(steps=4, rate=1e-3, log_every=2, precision=precision)
    rows = [list(fit(o, pairs, Recipe(engine=e, **recipe))) for o, e in ((plain, 'eager'), (fast, 'compiled'))]
    for a, b in zip(*rows): assert abs(a['total'] - b['total']) < .02*a['total']
    assert 'engine' not in capsys.readouterr().out                  # nothing fell back
    if precision == 'fp32':
        for p, q in zip(trainable(plain), trainable(fast)): torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
