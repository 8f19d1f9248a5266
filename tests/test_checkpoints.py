"""Checkpoints that are damaged, lie or attack: each is read with the right weights or refused with a ModelError, in seconds and within the memory of its size.

A short campaign; `LSFD_LONG=20` makes it twenty times as long."""
import hashlib, io, json, os, pickle, random, re, resource, struct, time, zipfile
from collections import Counter

import pytest, torch
from campaign import TIMES, count
from safetensors.torch import save

from lsfd.models import ModelError, create_model, detect, load_model, save_model
from lsfd.models.layouts import from_released

pytestmark = pytest.mark.faults
torch.set_num_threads(1)
NET = create_model('rcan_student', n_groups=2, n_blocks=1, n_feats=8, reduction=2)

def pt(held, old=False):
    torch.save(held, out := io.BytesIO(), _use_new_zipfile_serialization=not old)
    return out.getvalue()

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "{name: bytes} of the four kinds of file that hold the same weights."
    folder = tmp_path_factory.mktemp('good')
    run = dict(student=NET.state_dict(), ident=dict(student=NET.spec), at=dict(step=3), optimiser=dict(param_groups=[], state={}))
    return {'ours': save_model(folder/'a.safetensors', NET, note='x').read_bytes(), 'zip': pt(NET.state_dict()), 'run.pt': pt(run),
            'old pickle': pt(NET.state_dict(), old=True), 'foreign safetensors': save(NET.state_dict())}

def outcome(path, content):
    "'same weights', 'other weights', or 'refused'; anything else is raised."
    path.write_bytes(content)
    try: state = load_model(path).state_dict()
    except ModelError as e:
        assert path.name in str(e), f'the error does not name the file: {e}'
        return 'refused'
    same = [*state] == [*NET.state_dict()] and all(torch.equal(v, state[k]) for k, v in NET.state_dict().items())
    return 'same weights' if same else 'other weights'

@pytest.mark.parametrize('kind', ['ours', 'zip', 'run.pt'])
def test_a_flipped_bit_never_changes_the_weights(files, tmp_path, kind):
    rng, good = random.Random(0), files[kind]
    def flipped():
        content = bytearray(good); content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        return bytes(content)
    counts = Counter(outcome(tmp_path/'x.pt', flipped()) for _ in range(60*TIMES))
    for end, n in counts.items():
        for _ in range(n): count('checkpoints with a flipped bit: never other weights', end != 'other weights')
    assert not counts['other weights'] and counts['refused']

@pytest.mark.parametrize('kind', ['old pickle', 'foreign safetensors'])
def test_a_checksum_in_the_name_protects_what_has_none_inside(files, tmp_path, kind):
    rng, good = random.Random(0), files[kind]
    sha = hashlib.sha256(good).hexdigest()
    path = tmp_path/f'net_x2-{sha[:next(n for n in range(8, 65) if not sha[:n].isdigit())]}.pth'    # with a letter: eight digits may be a date
    assert outcome(path, good) == 'same weights' and outcome(tmp_path/'net_x2-20261126.pth', good) == 'same weights'
    for _ in range(20*TIMES):
        at = rng.randrange(len(good))
        assert count('checkpoints with a flipped bit: never other weights', outcome(path, good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1:]) == 'refused')

def mutated(content, rng):
    content = bytearray(content)
    at, how = rng.randrange(len(content)), rng.choice(['bytes', 'head', 'cut', 'out', 'twice', 'number'])
    if how == 'bytes': content[at:at + 8] = rng.randbytes(8)
    if how == 'head': content[at % min(2000, len(content))] = rng.randrange(256)
    if how == 'cut': del content[at:]
    if how == 'out': del content[at:at + rng.randrange(1, 100)]
    if how == 'twice': content[at:at] = content[at:at + rng.randrange(1, 3000)]
    if how == 'number': content[at:at + 8] = rng.choice([b'\xff'*8, bytes(8), b'\xff'*7 + b'\x7f'])
    return bytes(content)

@pytest.mark.filterwarnings('ignore')
def test_mutations_are_read_or_refused(files, tmp_path):
    rng, counts, start = random.Random(1), Counter(), time.process_time()
    for i in range(200*TIMES):
        kind = rng.choice(list(files))
        end = outcome(tmp_path/'x.pt', mutated(files[kind], rng)); counts[kind, end] += 1
        count('checkpoints mutated', end != 'other weights' or kind not in ('ours', 'zip', 'run.pt'))
    assert time.process_time() - start < 60*TIMES
    assert not any(counts[kind, 'other weights'] for kind in ('ours', 'zip', 'run.pt')) and sum(counts.values()) == 200*TIMES

# --- files that were made to harm

def tensors(header, data=b''):
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data

def claiming(shape, data=b'', **spec):
    lie = dict(format=1, version='0', spec=dict(arch='edsr', scale=2, n_feats=1, res_scale=1., n_blocks=10**8) | spec, about={})
    return tensors({'a': dict(dtype='F32', shape=shape, data_offsets=[0, len(data)]), '__metadata__': dict(lsfd=json.dumps(lie))}, data)

def archive(program, data=None, **parts):
    with zipfile.ZipFile(out := io.BytesIO(), 'w') as z:
        for name, content in {'data.pkl': program, 'version': b'3\n', 'byteorder': b'little', **parts}.items(): z.writestr(f'archive/{name}', content)
        if data is not None: z.writestr('archive/data/0', data)
    return out.getvalue()

class Calls:
    def __init__(self, *call): self.call = call
    def __reduce__(self): return self.call

def storage(n):
    "A program whose tensor `a` claims `n` floats of a storage of ten."
    number = pickle.dumps(n, 2)[2:-1]
    return (b'\x80\x02}U\x01actorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu' + number + b'tQK\x00' + number
            + b'\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs.')

def nested():
    import warnings
    with warnings.catch_warnings(action='ignore'): return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])

cycle = {}; cycle['model'] = cycle
HOSTILE = {
    'a hundred million blocks in 0.3 kB': lambda: claiming([0, 10**9]),
    'a million blocks in 4 MB': lambda: claiming([10**6], bytes(4*10**6), n_blocks=10**6),
    'a billion channels': lambda: claiming([0, 10**9], n_feats=10**9, n_blocks=1),
    'groups without end': lambda: claiming([0, 10**9], arch='rcan', n_groups=10**9, reduction=1),
    'a list for a number': lambda: claiming([0], n_blocks=[1]),
    'a text for a number': lambda: claiming([0], res_scale='x', n_blocks=1),
    'a million blocks by their marks': lambda: pt({f'body.{i}.body.{9999 + i}.body.3.conv_du.0.weight': torch.ones(1) for i in range(2000)}),
    'a bytearray of 3 GB': lambda: archive(pickle.dumps({'a': Calls(bytearray, (3*2**30,))}, 2)),
    'the same in an old pickle': lambda: pickle.dumps({'a': Calls(bytearray, (3*2**30,))}, 2),
    'a storage larger than its record': lambda: archive(storage(12*10**6), bytes(40), pad=bytes(50*10**6)),
    'a storage larger than the file': lambda: archive(storage(12*10**9), bytes(40)),
    'a shell command': lambda: archive(pickle.dumps({'a': Calls(os.system, ('touch PWNED',))}, 2)),
    'nested tensors': lambda: pt(dict(a=nested())),
    'a stride of nothing': lambda: pt(dict(a=torch.ones(1).expand(10**6, 10**6))),
    'sparse': lambda: pt(dict(a=torch.ones(4).to_sparse())),
    'complex': lambda: pt(dict(a=torch.ones(4).cfloat())),
    'a dict in itself': lambda: pt(cycle),
    'a very deep dict': lambda: pt(eval('{"a":'*60 + '{}' + '}'*60)),
    'prefixes without end': lambda: pt({'a.'*5000 + 'w': torch.ones(1)}),
    'a hundred thousand empty tensors': lambda: tensors({f'k{i}': dict(dtype='F32', shape=[0], data_offsets=[0, 0]) for i in range(10**5)}),
    'metadata as deep as a well': lambda: tensors({'a': dict(dtype='F32', shape=[0], data_offsets=[0, 0]), '__metadata__': dict(lsfd='['*10**5)}),
    'whole numbers only': lambda: pt(dict(a=torch.ones(4, dtype=torch.int64))),
}

@pytest.mark.parametrize('case', HOSTILE)
@pytest.mark.filterwarnings('ignore')
def test_hostile_files_are_refused_soon_and_in_little_memory(case, tmp_path):
    content, before, start = HOSTILE[case](), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert outcome(tmp_path/'hostile.pt', content) == 'refused'
    took, grown = time.process_time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/2**10
    assert count('checkpoints made to harm', took < 20 and grown < 400 and not os.path.exists('PWNED')), f'{took:.1f} s, {grown:.0f} MB'

def test_a_storage_beyond_its_record_shows_nothing_of_the_memory(tmp_path):
    "Where such a file is small enough to be mapped, what is read comes from the file."
    (tmp_path/'x.pt').write_bytes(archive(storage(1000), bytes(40), pad=bytes(5000)))
    with pytest.raises(ModelError): load_model(tmp_path/'x.pt')

# --- honest files that used to be refused, or read as something else

WRAPPERS = 'params params_ema state_dict model model_state_dict net netG generator g_ema network weights ema student module state'.split()
PREFIXES = 'module. model. _orig_mod. net. netG. generator. model.module. student.model. ema_model.module. g. backbone. network.'.split()

def agrees(path, **which):
    net, x = load_model(path, **which), torch.rand(1, 3, 8, 8)*255
    with torch.no_grad(): return torch.equal(net(x), NET.eval()(x))

@pytest.mark.parametrize('name', WRAPPERS)
def test_any_wrapper(name, tmp_path):
    torch.save({name: NET.state_dict(), 'epoch': 3, 'optimizer': torch.optim.Adam(NET.parameters()).state_dict()}, tmp_path/'x.pt')
    assert agrees(tmp_path/'x.pt')

@pytest.mark.parametrize('prefix', PREFIXES)
def test_any_prefix(prefix, tmp_path):
    torch.save({'state_dict': {prefix + k: v for k, v in NET.state_dict().items()}, 'step': 3}, tmp_path/'x.pt')
    assert agrees(tmp_path/'x.pt')

@pytest.mark.parametrize('raw, average', [('params', 'params_ema'), ('model', 'ema'), ('state_dict', 'state_dict_ema'), ('model', 'model_ema'), ('net', 'avg_net_swa')])
def test_the_moving_average_is_taken_and_said(raw, average, tmp_path):
    torch.save({raw: {k: v + 1 for k, v in NET.state_dict().items()}, average: NET.state_dict()}, tmp_path/'x.pt')
    with pytest.warns(UserWarning, match=f'the moving average was taken: {average}'): assert agrees(tmp_path/'x.pt')
    with pytest.warns(UserWarning): assert load_model(tmp_path/'x.pt').about == dict(weights=average)
    assert not agrees(tmp_path/'x.pt', of=raw)

def test_counters_of_averages_and_of_flat_files(tmp_path):
    average = torch.optim.swa_utils.AveragedModel(NET)
    torch.save(average.state_dict(), tmp_path/'average.pt')
    flat = {f'{who}.{k}': v + (who == 'generator') for who in ('generator', 'generator_ema') for k, v in NET.state_dict().items()}
    torch.save(flat | dict(step_counter=torch.tensor(7)), tmp_path/'flat.pt')
    assert agrees(tmp_path/'average.pt')
    with pytest.warns(UserWarning, match='generator_ema'): assert agrees(tmp_path/'flat.pt')

def test_several_networks_are_for_the_user_to_choose(tmp_path):
    torch.save(dict(a=NET.state_dict(), b=NET.state_dict()), tmp_path/'x.pt')
    with pytest.raises(ModelError, match="holds 2 networks: choose one with of='a' or 'b'"): load_model(tmp_path/'x.pt')
    assert agrees(tmp_path/'x.pt', of='b')

def test_mmagics_names(tmp_path):
    net = create_model('edsr_student', 4, n_blocks=2, n_feats=8).eval()
    theirs = {re.sub(r'upsample\.(\d)', lambda m: f'upsample.{int(m[1])//2}.upsample_conv', f'generator.{k}'): v
              for k, v in from_released(detect(net.state_dict())[0], net.state_dict(), 'basicsr').items()}
    torch.save(dict(meta=dict(epoch=1), state_dict=theirs | dict(step_counter=torch.tensor(3))), tmp_path/'x.pth')
    x = torch.rand(1, 3, 8, 8)*255
    with torch.no_grad(): torch.testing.assert_close(load_model(tmp_path/'x.pth')(x), net(x))

@pytest.mark.parametrize('arch', ['edsr', 'rcan', 'san'])
def test_networks_for_grey_images_are_refused_in_words(arch, tmp_path):
    net = create_model(f'{arch}_student', **dict(n_feats=16) | dict(edsr=dict(n_blocks=2), rcan=dict(n_groups=2, n_blocks=1, reduction=4), san=dict(n_groups=1, n_blocks=1, reduction=4))[arch])
    grey = {k: v[:, :1] if k == 'head.0.weight' else v[:1] if k.startswith('tail.1') else v for k, v in net.state_dict().items() if '_mean' not in k}
    torch.save(grey, tmp_path/'x.pt')
    with pytest.raises(ModelError, match='x.pt is of .* for images of one channel, grey or Y: a network for RGB is needed$'): load_model(tmp_path/'x.pt')

@pytest.mark.parametrize('arch', ['edsr', 'rcan', 'san'])
def test_a_mean_shift_for_0_to_1_is_converted(arch, tmp_path):
    torch.manual_seed(0)
    narrow = create_model(f'{arch}_student', **dict(edsr=dict(n_blocks=2), rcan=dict(n_groups=2, n_blocks=1), san=dict(n_groups=1, n_blocks=1))[arch], n_feats=16, **({} if arch == 'edsr' else dict(reduction=4))).eval()
    for m in narrow.sub_mean, narrow.add_mean: m.bias.data /= 255
    torch.save(narrow.state_dict(), tmp_path/'x.pt')
    x = torch.rand(1, 3, 12, 12)
    with torch.no_grad(): torch.testing.assert_close(load_model(tmp_path/'x.pt')(255*x), 255*narrow(x), atol=1e-2, rtol=1e-4)

def test_a_killed_run_can_be_scored(tmp_path):
    from lsfd.data import PatchPairs, sample_photos
    from lsfd.distill import METHODS, Distill
    from lsfd.train import Recipe, fit
    pairs = PatchPairs({k: v[:80, :80] for k, v in sample_photos('train').items()}, scale=2, lr_patch=12, batch=2)
    net = create_model('rcan_student', n_groups=1, n_blocks=1, n_feats=8, reduction=2)
    run = fit(Distill(net, **METHODS['Student']), pairs, Recipe.smoke(), tmp_path/'run'); next(run); run.close()
    again = load_model(tmp_path/'run'/'run.pt')
    assert again.spec == net.spec and again.about['step'] > 0 and all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())

@pytest.mark.parametrize('names', [('a',), ('a', 'b')])
def test_a_run_is_scored_by_its_moving_average(names, tmp_path):
    from lsfd.data import PatchPairs, sample_photos
    from lsfd.distill import METHODS, Distill, Group
    from lsfd.models.slice import init_from
    from lsfd.train import Recipe, fit
    pairs = PatchPairs({k: v[:80, :80] for k, v in sample_photos('train').items()}, scale=2, lr_patch=12, batch=2)
    members = {name: Distill(create_model('edsr_student', n_blocks=1, n_feats=4), **METHODS['Student']) for name in names}
    list(fit(members['a'] if len(names) == 1 else Group(members), pairs, Recipe.smoke(ema=.9), tmp_path/'run'))     # which leaves the average in the students
    raw, file = torch.load(tmp_path/'run/run.pt'), tmp_path/'run/run.pt'
    for name, d in members.items():
        held, kept = raw['student' if len(names) == 1 else f'{name}/student'], d.student.state_dict()
        again = load_model(file, of=name if len(names) > 1 else None).state_dict()
        assert all(torch.equal(v, again[k]) for k, v in kept.items()) and not all(torch.equal(v, held[k]) for k, v in kept.items())
    if len(names) == 1:
        init_from(new := create_model('edsr_student', n_blocks=1, n_feats=4), file)
        assert all(torch.equal(v, again[k]) for k, v in new.state_dict().items())

def test_old_files_without_a_fingerprint(tmp_path, files):
    size, = struct.unpack('<Q', files['ours'][:8])
    head = json.loads(files['ours'][8:8 + size]); mine = json.loads(head['__metadata__']['lsfd']); del mine['sha256']
    (tmp_path/'x.safetensors').write_bytes(tensors(head | {'__metadata__': dict(lsfd=json.dumps(mine))}, files['ours'][8 + size:]))
    assert agrees(tmp_path/'x.safetensors')

def test_tied_weights_and_counters_are_saved(tmp_path):
    net = create_model('edsr_student', n_blocks=2, n_feats=8)
    net.body[1].body[0] = net.body[0].body[0]
    net.tail[1].register_buffer('seen', torch.tensor(3))
    save_model(tmp_path/'x.safetensors', net, half=True)
    with pytest.raises(ModelError, match='tail.1.seen'): load_model(tmp_path/'x.safetensors')
    del net.tail[1].seen
    again = load_model(save_model(tmp_path/'x.safetensors', net))
    assert torch.equal(again.body[1].body[0].weight, net.body[0].body[0].weight)

def test_a_network_without_a_spec_is_not_saved(tmp_path):
    with pytest.raises(ModelError, match='Linear has no spec'): save_model(tmp_path/'x.safetensors', torch.nn.Linear(2, 2))
