"""Do other people's tools run our students? spandrel is the loader behind chaiNNer and many upscalers: it finds the architecture from the keys alone.

It is optional: `pip install --no-deps spandrel einops`. Without `--no-deps` it brings torchvision, whose wheels do not import beside a PyTorch for CPUs. Of
spandrel's 42 architectures two need a function of torchvision, neither of them RCAN. Where torchvision cannot be imported it is replaced by one that has these
names and fails when any is used."""
import importlib.util, sys
from types import ModuleType

import pytest, torch

from lsfd.models import save_model
from lsfd.models.edsr import EDSR
from lsfd.models.layouts import from_released, to_released
from lsfd.models.rcan import RCAN

SIZES = [dict(), dict(scale=3, n_groups=3, n_blocks=2, n_feats=32, reduction=8), dict(scale=4, n_groups=2, n_blocks=1)]

def never(*args, **kwargs): raise AssertionError('torchvision is used after all')

def without_torchvision(monkeypatch):
    functional = ModuleType('torchvision.transforms.functional')
    functional.normalize = functional.rotate = never
    functional.InterpolationMode = type('InterpolationMode', (), dict(NEAREST=0, BILINEAR=1))
    for name in ('torchvision', 'torchvision.transforms', functional.__name__): monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, functional.__name__, functional)

@pytest.fixture
def spandrel(monkeypatch):
    if not all(map(importlib.util.find_spec, ('spandrel', 'einops'))): pytest.skip('pip install --no-deps spandrel einops')
    try: importlib.import_module('torchvision')
    except (ImportError, RuntimeError): without_torchvision(monkeypatch)
    import spandrel
    return spandrel

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
    theirs = from_released(net.state_dict(), layout)
    with pytest.raises(spandrel.UnsupportedModelError): spandrel.ModelLoader().load_from_state_dict(theirs)
    if layout == 'fakd': assert spandrel.ModelLoader().load_from_state_dict(to_released(theirs)[0]).architecture.id == 'RCAN'

def test_it_knows_no_edsr(spandrel):
    with pytest.raises(spandrel.UnsupportedModelError): spandrel.ModelLoader().load_from_state_dict(EDSR(n_blocks=2).state_dict())
