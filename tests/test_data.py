"""A user's own images: LR images are used, refused or asked for, never replaced; sets may exceed the memory."""
import os, subprocess, sys

import numpy as np
import pytest
import torch
from campaign import count
from lsfd.data import Benchmark, DataError, PatchPairs, facade, find_pairs, sample_photos
from lsfd.images import bicubic, to_image, write_image
from PIL import Image

WALL = facade()
NEAREST = WALL[::2, ::2]                # LR that no bicubic makes: whoever takes it, takes the user's

def put(folder, **images):
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items(): write_image(folder/f'{name}.png', image)

LAYOUTS = {      # source: HR folder and name, LR folder and name
    'bench': ('bench/HR', 'a', 'bench/LR_bicubic/X2', 'ax2'), 'lower': ('lower/HR', 'a', 'lower/LR_bicubic/x2', 'ax2'),
    'DIV2K': ('DIV2K/DIV2K_valid_HR', 'a', 'DIV2K/DIV2K_valid_LR_bicubic/X2', 'ax2'), 'DF2K': ('DF2K/DF2K_HR', 'a', 'DF2K/DF2K_LR_bicubic/x2', 'ax2'),
    'pack/HR/Set5/x2': ('pack/HR/Set5/x2', 'a_HR_x2', 'pack/LR/LRBI/Set5/x2', 'a_LRBI_x2'), 'pack/HR/Set5': ('pack/HR/Set5/x2', 'a_HR_x2', 'pack/LR/LRBI/Set5/x2', 'a_LRBI_x2'),
    'basic': ('basic/GTmod12', 'a', 'basic/LRbicx2', 'a'), 'self': ('self/image_SRF_2', 'a_SRF_2_HR', 'self/image_SRF_2', 'a_SRF_2_LR'),
    'plain/HR': ('plain/HR', 'a', 'plain/LR', 'a'), 'mine/shots': ('mine/shots', 'a', 'mine/my_LR_photos', 'a')}

@pytest.mark.parametrize('source', LAYOUTS)
def test_given_lr_images_are_used(source, tmp_path):
    hr, hr_name, lr, lr_name = LAYOUTS[source]
    put(tmp_path/hr, **{hr_name: WALL}); put(tmp_path/lr, **{lr_name: NEAREST})
    bench, pairs = Benchmark(tmp_path/source), PatchPairs(tmp_path/source, batch=1)
    assert [name for name, *_ in bench] == ['a'] and bench.lr_source == pairs.lr_source == 'LR given'
    assert (next(iter(bench))[1] == NEAREST).all() and 'LR given' in bench.describe() and 'LR given' in pairs.describe()
    _, y, x, flip = pairs.draw(0)[0]
    patch = NEAREST[y:y+48, x:x+48]
    assert (to_image(pairs.batch(0)[0]) == (patch[:, ::-1] if flip else patch)).all()
    ours = Benchmark(f'{tmp_path/hr}:')                  # asked for
    if source != 'self': assert ours.lr_source == 'LR made (MATLAB bicubic)' and (next(iter(ours))[1] == bicubic(WALL, 1/2)).all()

def test_an_explicit_lr_folder(tmp_path):
    hr, lr = tmp_path/'α=1: mine'/'big', tmp_path/'rate=0.1:s'/'small'
    put(hr, a=WALL); put(lr, a=NEAREST)
    bench = Benchmark(f'{hr}:{lr}')
    assert (bench.name, bench.lr_source) == ('big', 'LR given') and (next(iter(bench))[1] == NEAREST).all()
    with pytest.raises(DataError, match='does not match at scale 4'): list(Benchmark(f'{hr}:{lr}', scale=4))

@pytest.mark.parametrize('beside, message', [(dict(LR_mine=['b']), 'LR_mine'), (dict(LR_a=['a'], LR_b=['a']), 'LR_a.* and .*LR_b')])
def test_unclear_lr_folders_are_refused_by_name(beside, message, tmp_path):
    put(tmp_path/'HR', a=WALL)
    for folder, names in beside.items(): put(tmp_path/folder, **dict.fromkeys(names, NEAREST))
    with pytest.raises(DataError, match=f'{message}.*HR:LR_FOLDER.*HR:'): find_pairs(tmp_path/'HR')

def test_patches_larger_than_memory():
    photos = sample_photos()
    held, filed = PatchPairs(photos, rotate=True), PatchPairs(photos, rotate=True, room=500_000)
    assert filed.in_file and filed.fingerprint == held.fingerprint
    assert all(torch.equal(a, b) for step in (0, 5) for a, b in zip(held.batch(step), filed.batch(step)))

def test_rotation_gives_eight_orientations_and_leaves_the_default_alone():
    image = np.arange(64*64*3, dtype=np.int64).reshape(64, 64, 3).astype(np.uint8)
    image[..., 2] = np.add.outer(np.arange(64), 2*np.arange(64))
    pairs, plain = PatchPairs({'a': image}, lr_patch=32, batch=64, rotate=True), PatchPairs({'a': image}, lr_patch=32, batch=64)
    assert len({to_image(p).tobytes() for p in pairs.batch(0)[1]}) == 8 and len({to_image(p).tobytes() for p in plain.batch(0)[1]}) == 2
    assert (pairs.draw(0)[:, :3] == plain.draw(0)[:, :3]).all()
    for lr, hr in zip(*pairs.batch(1)): assert np.abs(bicubic(to_image(hr), 1/2).astype(int) - to_image(lr)).mean() < .2     # LR turns with HR

BENCHMARK = '''import resource, sys
from lsfd.data import Benchmark
bench = Benchmark(sys.argv[1])
pages = int(open('/proc/self/statm').read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (4096*pages + 200*2**20,)*2)
bench.room = 20e6
print(sum(hr.shape[0] for _, _, hr in bench), sum(hr.nbytes for _, _, hr in bench))'''

@pytest.mark.faults
@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='needs /proc')
def test_a_benchmark_larger_than_memory(tmp_path):
    for i in range(80): Image.new('RGB', (1000, 1000), (i, 2, 3)).save(tmp_path/f'{i}.png', compress_level=1)
    r = subprocess.run([sys.executable, '-c', BENCHMARK, str(tmp_path)], capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1', MALLOC_ARENA_MAX='2'))
    assert count('limits of memory: named, or tiles', r.stdout.split() == ['80000', '240000000']), r.stderr[-500:]      # 240 MB and their LR through 200
