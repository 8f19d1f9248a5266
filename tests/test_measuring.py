"""Scores of networks and pictures that are not as ours: strides, windows, smallest sizes, flat pictures, several outputs, hostile names; and metrics that are added."""
import json, os, subprocess, sys

import numpy as np, pandas as pd, pytest, torch
from campaign import count
from torch import nn
from torch.nn import functional as F

from lsfd import ledger
from lsfd.data import Benchmark, facade
from lsfd.evaluate import Scores, enlarge, evaluate, find_way, flat_images, reach, upscale
from lsfd.images import bicubic, to_tensor, write_image
from lsfd.metrics import METRICS, Protocol
from lsfd.models import load_demo
from lsfd.paired import differences, forest, paired
from lsfd.plots import crop_panel, curves, show_images

torch.set_num_threads(1)
PHOTO = facade()[:150, :171]
BLANK = np.full((64, 64, 3), 128, 'u1')

class Up(nn.Module):
    "×2 by two convolutions and bicubic interpolation."
    def __init__(self, c=16, scale=2):
        super().__init__()
        self.a, self.b, self.r = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, 3*scale**2, 3, padding=1), scale
    def forward(self, x): return F.pixel_shuffle(self.b(F.relu(self.a(x))), self.r) + F.interpolate(x, scale_factor=self.r, mode='bicubic')

class Windows(nn.Module):
    "Mixes each 8x8 window, and pads by itself."
    def __init__(self): super().__init__(); self.up = Up()
    def forward(self, x):
        h, w = x.shape[2:]; x = F.pad(x, (0, -w % 8, 0, -h % 8), 'reflect'); B, C, H, W = x.shape
        y = x.view(B, C, H//8, 8, W//8, 8).mean((3, 5), keepdim=True).expand(-1, -1, -1, 8, -1, 8).reshape(x.shape)
        return self.up(x + .3*y)[..., :2*h, :2*w]

class Strided(nn.Module):
    def __init__(self): super().__init__(); self.a, self.b = nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.Conv2d(32, 48, 3, padding=1)
    def forward(self, x): h, w = x.shape[2:]; return F.pixel_shuffle(self.b(F.relu(self.a(x))), 4)[..., :2*h, :2*w]

class Unshuffle(nn.Module):
    "Takes even sides only."
    def __init__(self): super().__init__(); self.a, self.b = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 48, 3, padding=1)
    def forward(self, x): return F.pixel_shuffle(self.b(F.relu(self.a(F.pixel_unshuffle(x, 2)))), 4)

class Attention(nn.Module):
    "Spatial attention as in RFDN and RLFN: a convolution of stride 2, pooling of 7 by 3, and back; small images are refused."
    def __init__(self, f=8):
        super().__init__()
        self.up, self.one, self.two, self.three, self.back = Up(), nn.Conv2d(3, f, 1), nn.Conv2d(f, f, 3, stride=2), nn.Conv2d(f, f, 3, padding=1), nn.Conv2d(f, 3, 1)
    def forward(self, x):
        small = self.three(F.max_pool2d(self.two(self.one(x)), 7, stride=3))
        return self.up(x*torch.sigmoid(self.back(F.interpolate(small, size=x.shape[2:], mode='bilinear', align_corners=False))))

class Stages(nn.Module):
    "Returns every refinement; the last is the result."
    def forward(self, x): return [F.interpolate(x, scale_factor=2, mode=m) for m in ('nearest', 'bicubic')]

def seeded(net): torch.manual_seed(0); return net()
def off(net, way): x = to_tensor(PHOTO); return float((enlarge(net, x, way) - enlarge(net, x)).abs().max())

@pytest.mark.parametrize('net, label', [
    (Up, 'tiles 256+2 (exact)'), (Strided, 'tiles 256+4/2 (exact)'), (Unshuffle, 'tiles 256+4/2 (exact)'), (Windows, 'tiles 256+8/8 (exact)'),
    (Attention, 'tiles 256+32 (approximate)')])
def test_tiles_are_called_exact_when_they_are(net, label):
    net = seeded(net)
    assert find_way(net, 'tiles')[0] == label
    small = label.replace('256', '40')
    again, way = find_way(net, small)                      # the label, given again, is put to the proof
    assert again == small and (off(net, way) < 1e-2) == ('exact' in label)

@pytest.mark.parametrize('net, way', [(Windows, 'tiles 40+16'), (Windows, 'tiles 51+16'), (Strided, 'tiles 51+15'), (Strided, 'tiles 50+16')])
def test_a_finite_field_of_view_is_not_enough(net, way):
    net = seeded(net)
    assert reach(net) < 16 and off(net, find_way(net, way)[1]) > 1
    assert find_way(net, f'{way} (exact)')[0] == find_way(net, way)[0] == f'{way} (approximate)'

def test_given_sizes_are_not_examined():
    class Counts(Up):
        def forward(self, x): Counts.calls += 1; return super().forward(x)
    Counts.calls = 0
    for way in 'whole', '4-crop', 'tiles 64+32', 'tiles 64+32/8': find_way(Counts(), way)
    assert Counts.calls == 0

@pytest.mark.parametrize('net', [Windows, Strided, Unshuffle, Attention])
@pytest.mark.parametrize('way', ['whole', '4-crop', 'tiles', 'tiles 33+7', 'auto'])
@pytest.mark.parametrize('shape', [(75, 63), (21, 34)])
def test_any_size_and_way_gives_an_image(net, way, shape):
    image = PHOTO[:shape[0], :shape[1]]
    assert upscale(seeded(net), image, way).shape == (2*shape[0], 2*shape[1], 3)

def test_where_memory_is_short_auto_takes_smaller_tiles_and_no_error_recommends_it():
    net = seeded(Up)
    assert [find_way(net, 'auto', 10**6, room=n)[0] for n in (10**6, 9*10**5, 2*10**4, 10)] == ['whole', *(f'tiles {n}+2 (exact)' for n in (256, 128, 32))]
    class Greedy(Up):
        def forward(self, x): return torch.empty(2**48) if x.shape[2] > 32 else super().forward(x)
    bench = Benchmark({'wide $x$': PHOTO}, scale=2)
    for way, remedy in dict(whole="use inference='auto', or small tiles", auto="use small tiles, as in inference='tiles 64+32'").items():
        with pytest.raises(RuntimeError, match='^wide \\$x\\$: LR images of 75x85 pixels need more memory than there is') as e: evaluate(Greedy(), bench, Protocol(scale=2, inference=way))
        assert remedy in str(e.value) and (way == 'whole') == ("'auto'" in str(e.value))

LIMITED = """
import resource, torch, numpy as np
from lsfd.data import Benchmark, facade
from lsfd.evaluate import evaluate
from lsfd.metrics import Protocol
from lsfd.models import create_model
torch.set_num_threads(1); torch.manual_seed(0)
net = create_model('edsr_student', n_blocks=2, n_feats=64)
large, small = (Benchmark({'large': np.tile(facade(), (n, n, 1))[:512*n]}, scale=2) for n in (4, 1))
evaluate(net, small)
used = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 450*10**6,)*2)
for way in 'whole', 'auto':
    try: print(evaluate(net, large, Protocol(scale=2, inference=way)).protocol.inference)
    except RuntimeError as e: print(e)
"""

@pytest.mark.faults
@pytest.mark.skipif(sys.platform != 'linux', reason='limits of memory are tried on Linux')
def test_auto_respects_a_limit_of_memory():
    r = subprocess.run([sys.executable, '-c', LIMITED], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert r.returncode == 0, r.stderr
    whole, auto = r.stdout.splitlines()
    assert count('limits of memory: named, or tiles', "need more memory than there is: use inference='auto'" in whole)
    assert count('limits of memory: named, or tiles', auto.startswith('tiles ') and auto.endswith('+8 (exact)'))

def test_flat_pictures_are_named_and_left_out():
    net = load_demo('rcan_student')
    alone, both = (evaluate(net, Benchmark(images, scale=2)) for images in ({'facade': PHOTO}, {'facade': PHOTO, 'blank': BLANK}))
    assert both.flat == ['blank'] and both.mean.equals(alone.mean) and np.isfinite(both.mean).all()
    assert both.table.bicubic_psnr.blank == np.inf and 'without blank (infinite PSNR)' in str(both) and both.record()['note'] == 'without blank (infinite PSNR)'
    flat = Benchmark({'white': BLANK + 127, 'blank': BLANK}, scale=2)
    with pytest.raises(ValueError, match='no image holds more than a single grey'): flat_images(flat)
    with pytest.raises(ValueError, match='use others'): evaluate(net, flat).mean
    assert flat_images(Benchmark({'facade': PHOTO, 'blank': BLANK}, scale=2)) == ['blank']

def test_several_outputs_are_refused_and_odd_scales_read():
    bench = Benchmark({'facade': PHOTO}, scale=2)
    with pytest.raises(ValueError, match='facade: Stages returns a list with 2 images, not one image'): evaluate(Stages(), bench)
    net = seeded(Up); right = evaluate(net, bench).mean.psnr
    for scale in [2], '2', nn.Parameter(torch.ones(16)), lambda: 2, 16**-.5:
        net = seeded(Up); object.__setattr__(net, 'scale', scale)
        assert evaluate(net, bench).mean.psnr == right
    net = seeded(Up); net.scale = [3]
    with pytest.raises(ValueError, match='the network enlarges ×3, the benchmark is ×2'): evaluate(net, bench)

ROW = dict(model='rcan', role='student', scale=2, method='LSFD', profile='demo', steps=1, seed=0, data='d', data_fingerprint='d', wall_s=1., hardware='h', version='0', time='t')

def test_a_metric_is_one_line(monkeypatch, tmp_path):
    bench = Benchmark({'facade': PHOTO, 'part': PHOTO[:100, :120]}, scale=2)
    before = evaluate(seeded(Up), bench)
    monkeypatch.setitem(METRICS, 'psnr_rgb', lambda sr, hr, shave: float(10*np.log10(255**2/((sr.astype(float) - hr)[shave:-shave, shave:-shave]**2).mean())))
    scores = evaluate(seeded(Up), bench)
    assert list(scores.table) == ['psnr', 'ssim', 'psnr_rgb', 'bicubic_psnr', 'bicubic_ssim', 'bicubic_psnr_rgb'] and scores.mean.psnr == before.mean.psnr
    flat = bicubic(bicubic(PHOTO[:150, :170], 1/2), 2).astype(float) - PHOTO[:150, :170]
    assert scores.record()['lr'] == 'made' and 'LR made (MATLAB bicubic)' in str(scores)
    assert scores.table.bicubic_psnr_rgb.facade == pytest.approx(10*np.log10(255**2/(flat[2:-2, 2:-2]**2).mean()))
    assert f'{scores.mean.psnr_rgb:.3f} dB' in str(scores) and 'psnr_rgb' in scores._repr_html_()
    file = tmp_path/'ledger.jsonl'
    assert ledger.append(ROW | scores.record(), file) and ledger.append(ROW | before.record() | dict(seed=1), file)
    rows = ledger.read(file)
    assert rows.psnr_rgb.isna().tolist() == [False, True] and rows.psnr_rgb[0] == scores.mean.psnr_rgb
    long = pd.concat([s.counted.rename_axis('image').reset_index().assign(method=k, seed=0, benchmark='b') for k, s in dict(a=scores, b=evaluate(load_demo('rcan_student'), bench)).items()])
    assert len(paired(long, 'a', 'psnr_rgb')) == 1 and differences(long, 'a', 'psnr_rgb').shape == (2, 2)
    monkeypatch.undo()
    assert ledger.read(file).psnr_rgb[0] == scores.mean.psnr_rgb                       # read where nobody has the metric
    with pytest.raises(ledger.LedgerError, match="unknown 'psnr_rgb'"): ledger.append(ROW | scores.record(), file)

def test_where_the_lr_images_come_from_is_part_of_a_score(tmp_path):
    hr = PHOTO[:, :170]
    for file, image in {'HR/facade.png': hr, 'LR_bicubic/X2/facadex2.png': bicubic(hr, 1/2)}.items():
        (tmp_path/'set'/file).parent.mkdir(parents=True)
        write_image(tmp_path/'set'/file, image)
    given, made = (evaluate(seeded(Up), Benchmark(source, scale=2)) for source in (tmp_path/'set', {'facade': hr}))
    assert (given.lr, made.lr) == ('LR given', 'LR made (MATLAB bicubic)') and given.mean.equals(made.mean)
    assert [s.record()['lr'] for s in (given, made)] == ['given', 'made'] and 'LR given' in given._repr_html_()

def test_hostile_names_are_text():
    table = pd.DataFrame(dict(psnr=[30.], ssim=[.8], bicubic_psnr=[29.], bicubic_ssim=[.7]), ['<img src=x onerror=alert(1)>|&_$%'])
    s = Scores(table, Protocol(scale=2), '<script>alert(2)</script>', '')
    assert '<img' not in s._repr_html_() and '<script' not in s._repr_html_()
    bad, im = '$\\frac{$', PHOTO[:40, :40]
    figures = [show_images(im, titles=[bad]), crop_panel({bad: im, 'b$': im}, (0, 0, 8, 8), {'b$': bad}),
               curves(pd.DataFrame({'step': [1, 2], bad: [1, 2], '$': [2, 3]}), 'step', [bad, '$']),
               forest(pd.DataFrame(dict(benchmark=bad, method=[bad, '$'], mean=0., low=-1., high=1., images=3, seeds=1)), bad)]
    for figure in figures: figure.canvas.draw()                                        # mathtext would raise

def test_ledger_of_the_clone_is_of_the_present_schema():
    for line in ledger.ledger_path().read_text().splitlines():
        row = json.loads(line)
        assert list(ledger.check_row(row)) == list(row) and row['lr'] in ('given', 'made') and 'group' not in row['note']
