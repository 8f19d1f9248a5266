"""Do other people's tools run our students, and do we run their networks? spandrel is the loader behind chaiNNer and many upscalers: it finds the architecture
from the keys alone. It is optional: `pip install --no-deps spandrel einops` (without `--no-deps` it brings torchvision, whose wheels do not import beside a PyTorch for CPUs)."""
import importlib

import pytest, torch

from lsfd.distill import Distill, METHODS
from lsfd.lam import lam
from lsfd.models import ModelError, create_model, detect, load_model, save_model
from lsfd.models.edsr import EDSR
from lsfd.models.foreign import loader
from lsfd.models.layouts import from_released
from lsfd.models.rcan import RCAN
from lsfd.taps import taps_of

SIZES = [dict(), dict(scale=3, n_groups=3, n_blocks=2, n_feats=32, reduction=8), dict(scale=4, n_groups=2, n_blocks=1)]
torch.set_num_threads(1)

@pytest.fixture
def spandrel():
    if not loader(): pytest.skip('pip install --no-deps spandrel einops')
    return importlib.import_module('spandrel')

def student(**sizes):
    torch.manual_seed(0)
    net = RCAN(**sizes).eval()
    for p in (*net.sub_mean.parameters(), *net.add_mean.parameters()): p.data += .01*torch.randn_like(p)   # drifted, as released ones are
    return net

@pytest.mark.parametrize('sizes', SIZES, ids=str)
@pytest.mark.parametrize('suffix, layout', [('.pth', 'released'), ('.pt', 'released'), ('.safetensors', 'released'), ('.safetensors', None)])
@torch.no_grad()
def test_it_runs_our_students(spandrel, tmp_path, suffix, layout, sizes):
    net, lr = student(**sizes), torch.rand(1, 3, 20, 24)
    file = save_model(tmp_path/f'student{suffix}', net, layout=layout)      # None: a file of ours, as training leaves it
    found = spandrel.ModelLoader().load_from_file(file)
    assert (found.architecture.id, found.scale, found.purpose) == ('RCAN', net.scale, 'SR')
    want = net(lr*255)/255
    assert torch.equal(found.model(lr.clone()), want)                       # a clone, since it multiplies its input in place
    assert torch.equal(found(lr.clone()), want.clamp(0, 1))

@pytest.mark.parametrize('layout', ['fakd', 'basicsr'])
def test_it_knows_the_released_layout_only(spandrel, layout):
    net = student(**SIZES[2])
    theirs = from_released(detect(net.state_dict())[0], net.state_dict(), layout)
    with pytest.raises(spandrel.UnsupportedModelError): spandrel.ModelLoader().load_from_state_dict(theirs)

def test_it_knows_no_edsr(spandrel):
    with pytest.raises(spandrel.UnsupportedModelError): spandrel.ModelLoader().load_from_state_dict(EDSR(n_blocks=2).state_dict())

# --- their networks here: what load_model makes of weights drawn at random, against their own forward

SMALL = {   # module of spandrel: arguments of its class of the same name
    'SwinIR': dict(upscale=2, img_size=16, window_size=8, depths=[2, 2], num_heads=[2, 2], embed_dim=16, mlp_ratio=2, upsampler='pixelshuffledirect'),
    'DAT': dict(upscale=3, img_size=16, split_size=[8, 8], depth=[2], num_heads=[2], embed_dim=64, expansion_factor=2),
    'PLKSR': dict(dim=16, n_blocks=2, upscaling_factor=2),
    'SPAN': dict(num_in_ch=3, num_out_ch=3, feature_channels=16, upscale=2),
    'SAFMN': dict(dim=16, n_blocks=2, upscaling_factor=4)}
RCANS = [dict(norm=False), dict(rgb_range=1), dict(unshuffle_mod=True, norm=False), dict(scale=8)]

def theirs(name, cls=None, **arguments):
    torch.manual_seed(0)
    return getattr(importlib.import_module(f'spandrel.architectures.{name}'), cls or name)(**arguments).eval()

def agree(path, net, scale, atol=2e-2):
    x = torch.rand(1, 3, 16, 24)*255
    ours = load_model(path)
    assert ours.scale == scale and not ours.training
    with torch.no_grad(): torch.testing.assert_close(ours(x), 255*net(x/255), atol=atol, rtol=1e-4)
    return ours

@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('wrapper', [None, 'params_ema', 'generator'])
@pytest.mark.filterwarnings('ignore')
def test_any_architecture(spandrel, tmp_path, name, wrapper):
    net, file = theirs(name, **SMALL[name]), tmp_path/'theirs.pth'
    state = net.state_dict()
    torch.save({wrapper: state, 'iter': 3} if wrapper else state, file)
    ours = agree(file, net, SMALL[name].get('upscale', SMALL[name].get('upscaling_factor')))
    with torch.no_grad(): assert ours(torch.rand(1, 3, 13, 21)*255).shape[2:] == (13*ours.scale, 21*ours.scale)   # no multiple of any window
    again = load_model(save_model(tmp_path/'again.safetensors', ours, note='x'))                                     # a student of theirs, saved as ours
    assert again.about == dict(note='x') and all(torch.equal(v, again.state_dict()[k]) for k, v in ours.state_dict().items())
    assert ours.about['weights'] == (wrapper or '') and (taps_of(ours).channels > 0).all()

@pytest.mark.parametrize('arguments', RCANS, ids=str)
def test_community_rcans(spandrel, tmp_path, arguments):
    net = theirs('RCAN', **dict(n_resgroups=2, n_resblocks=1, n_feats=16, reduction=4, scale=2) | arguments)
    torch.save(net.state_dict(), tmp_path/'theirs.pth')
    x = torch.rand(1, 3, 16, 24)*255
    with torch.no_grad(): torch.testing.assert_close(load_model(tmp_path/'theirs.pth')(x), 255*net(x.clone()/255), atol=2e-2, rtol=1e-4)

def test_a_foreign_teacher_distils_and_is_attributed(spandrel, tmp_path):
    torch.save(theirs('SwinIR', **SMALL['SwinIR']).state_dict(), tmp_path/'theirs.pth')
    teacher, student = load_model(tmp_path/'theirs.pth'), create_model('rcan_student', n_groups=2, n_blocks=1, n_feats=16, reduction=4)
    x = torch.rand(2, 3, 16, 16)*255
    objective = Distill(student, teacher, **METHODS['LSFD'], at_teacher=['net.conv_first', 'net.conv_after_body', 'net.conv_after_body'])
    losses = objective(x, torch.rand(2, 3, 32, 32)*255); losses['total'].backward()
    assert losses['lsfd'] > 0 and student.head[0].weight.grad.abs().sum() > 0
    assert lam(teacher, x[:1], 8, 8, folds=2).map.shape == (16, 16)

def test_without_it_the_error_says_what_would_help(monkeypatch, tmp_path):
    monkeypatch.setattr('lsfd.models.foreign.loader', lambda: None); monkeypatch.setattr('lsfd.models.loader', lambda: None)
    torch.save({'layers.0.weight': torch.ones(2)}, tmp_path/'x.pth')
    with pytest.raises(ModelError, match=r'neither EDSR, RCAN, SAN: the keys begin with layers.0.weight \(pip install "lsfd\[spandrel\]"'): load_model(tmp_path/'x.pth')
