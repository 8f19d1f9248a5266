"""Any picture becomes what a person would see, or one error that names it: the failures found in the field, and mutated files."""
import io, os, random, struct, subprocess, sys, warnings, zlib
from collections import Counter

import numpy as np
import pytest
from campaign import TIMES, count
from lsfd import reading
from lsfd.reading import ImageError, read_image
from PIL import Image

pytestmark = pytest.mark.faults
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (24, 20, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (24, 20, 4), dtype=np.uint16)

def encoded(image, kind, **options):
    file = io.BytesIO(); Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()

def child(code, *args, **env):
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, env=os.environ | env)

def test_postscript_starts_nothing(tmp_path):
    program = tmp_path/'gs'
    program.write_text(f'#!/bin/sh\ntouch {tmp_path}/started\n'); program.chmod(0o755)
    (tmp_path/'photo.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n')
    r = child('import sys; from lsfd.reading import read_image; read_image(sys.argv[1])', tmp_path/'photo.png', PATH=f'{tmp_path}:{os.environ["PATH"]}')
    assert 'Pillow cannot read this kind of file (PostScript)' in r.stderr and not (tmp_path/'started').exists()

LITTLE_MEMORY = '''import resource, sys
from lsfd.reading import read_image
pages = int(open('/proc/self/statm').read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (4096*pages + 150*2**20,)*2)
read_image(sys.argv[1])'''

@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='needs /proc')
@pytest.mark.parametrize('kind', ['png', 'jpg', 'tif'])
def test_out_of_memory_is_no_damage(tmp_path, kind):
    Image.new('RGB', (7000, 7000), (1, 2, 3)).save(tmp_path/f'big.{kind}')
    error = child(LITTLE_MEMORY, tmp_path/f'big.{kind}').stderr
    assert 'too little free memory' in error and f'big.{kind}' in error, error
    assert 'damaged' not in error

@pytest.mark.parametrize('exif', [b'garbage', b'MM\0*\xff\xff\xff\xff', b'II*\0\x08\0\0\0\xff\xff' + b'\x12\x01\x03\0\1\0\0\0\x06\0\0\0'*3])
def test_garbage_exif_is_ignored(tmp_path, exif):
    png = encoded(RGB, 'PNG')
    chunk = struct.pack('>I', len(exif)) + b'eXIf' + exif + struct.pack('>I', zlib.crc32(b'eXIf' + exif))
    (tmp_path/'a.png').write_bytes(png[:33] + chunk + png[33:])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert read_image(tmp_path/'a.png').size == RGB.size

@pytest.mark.parametrize('compression', [None, 'zlib'])
@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('planar', ['contig', 'separate'])
def test_sixteen_bits_of_colour_are_rounded(tmp_path, compression, order, planar):
    tifffile = pytest.importorskip('tifffile')
    values = DEEP[..., :3] if planar == 'contig' else DEEP[..., :3].transpose(2, 0, 1).copy()
    tifffile.imwrite(tmp_path/'a.tif', values, photometric='rgb', compression=compression, byteorder=order, planarconfig=planar)
    if planar == 'separate':      # which Pillow would read as noise, or without the low bytes
        with pytest.raises(ImageError, match='separate planes'): read_image(tmp_path/'a.tif')
    else: assert (read_image(tmp_path/'a.tif') == np.round(DEEP[..., :3]/257)).all()

def test_twelve_bits_in_sixteen_are_said(tmp_path):
    Image.fromarray(DEEP[..., 0]//16).save(tmp_path/'dark.png')
    with pytest.warns(UserWarning, match='dark.png: no pixel is brighter than 4'): read_image(tmp_path/'dark.png')

def test_unreadable_kinds_are_named(tmp_path):
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(tmp_path/'float.tif', RGB.astype(np.float32), photometric='rgb')
    (tmp_path/'a.jxl').write_bytes(b'\xff\x0a' + bytes(100))
    for name, kind in (('float.tif', 'TIFF with unusual pixels'), ('a.jxl', 'JPEG XL')):
        with pytest.raises(ImageError, match=kind): read_image(tmp_path/name)

def test_heic(tmp_path, monkeypatch):
    heif = pytest.importorskip('pillow_heif')
    heif.register_heif_opener()
    smooth = np.full((64, 64, 3), (200, 80, 40), np.uint8)
    Image.fromarray(smooth).save(tmp_path/'a.heic', quality=95)
    assert np.abs(read_image(tmp_path/'a.heic').astype(int) - smooth).max() <= 4
    monkeypatch.setattr(reading, 'FORMATS', [f for f in reading.FORMATS if f not in ('HEIF', 'AVIF')])
    with pytest.raises(ImageError, match=r'a.heic: is HEIC.*pip install "lsfd\[heic\]"'): read_image(tmp_path/'a.heic')

def test_lab_and_cmyk_profiles(tmp_path):
    from PIL import ImageCms
    lab = ImageCms.applyTransform(Image.fromarray(RGB), ImageCms.buildTransform(ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), 'RGB', 'LAB'))
    lab.save(tmp_path/'lab.tif', icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile('LAB')).tobytes())
    assert np.abs(read_image(tmp_path/'lab.tif').astype(int) - RGB)[..., 1].mean() < 4
    Image.fromarray(RGB).convert('CMYK').save(tmp_path/'odd.tif', icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    assert (read_image(tmp_path/'odd.tif') == RGB).all()      # a profile for other pixels is passed over

def seeds():
    "One small file of each kind."
    grey, alpha, palette = RGB[..., 0], np.dstack([RGB, RGB[..., 0]]), Image.fromarray(RGB).quantize(16)
    exif = Image.Exif(); exif[274] = 6
    for kind in ('PNG', 'JPEG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'PPM', 'TGA', 'JPEG2000', 'AVIF'):
        try: yield kind, encoded(RGB, kind)
        except (OSError, KeyError): continue
    for kind in ('PNG', 'WEBP', 'TIFF'): yield f'{kind} alpha', encoded(alpha, kind)
    for kind in ('PNG', 'JPEG', 'TIFF'): yield f'{kind} grey', encoded(grey, kind); yield f'{kind} turned', encoded(RGB, kind, exif=exif)
    yield 'PNG 16', encoded(DEEP[..., 0], 'PNG')
    for compression in ('tiff_lzw', 'jpeg', 'packbits'): yield compression, encoded(RGB, 'TIFF', compression=compression)
    file = io.BytesIO(); palette.save(file, 'PNG', transparency=3); yield 'PNG palette', file.getvalue()

def mutated(data, rng):
    "`data` with a few bytes changed, cut, doubled or overwritten."
    data, kind = bytearray(data), rng.choice(['cut', 'flip', 'head', 'big', 'double', 'drop'])
    at = rng.randrange(len(data))
    if kind == 'cut': return bytes(data[:at])
    if kind == 'drop': del data[at:at + rng.randrange(1, 40)]
    if kind == 'double': data[at:at] = data[at:at + 200]*rng.choice([1, 3, 50])
    if kind == 'big': data[min(at, 200):min(at, 200) + 4] = rng.choice([b'\xff'*4, b'\0'*4, b'\x7f\xff\xff\xff', b'\0\0\x40\0'])
    for _ in range(rng.choice([1, 2, 8]) if kind in ('flip', 'head') else 0):
        data[rng.randrange(len(data) if kind == 'flip' else min(64, len(data)))] ^= 1 << rng.randrange(8)
    return bytes(data)

def test_mutated_files(tmp_path):
    rng, files, counts = random.Random(7), list(seeds()), Counter()
    for n in range(250*TIMES):
        kind, data = files[n % len(files)]
        path = tmp_path/f'{n}.png'; path.write_bytes(mutated(data, rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                image = read_image(path)
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, kind
            counts['read'] += 1
        except ImageError as e:
            assert str(path) in str(e), e
            counts['refused'] += 1
        count('images mutated')
        path.unlink()
    assert counts['read'] > 20 and counts['refused'] > 20
