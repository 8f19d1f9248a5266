"""What happens to runs and results when processes are killed, disks fill up, power fails and files are damaged. Nothing may be lost, silent or raw.
Short by default; `LSFD_LONG=20 python -m pytest -m faults` tries twenty times as much. The counts are printed at the end."""
import errno, fcntl, gzip, hashlib, io, os, random, shutil, signal, socket, struct, subprocess, threading, time, warnings, zipfile
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest, torch
from campaign import TIMES, count
from PIL import Image

from lsfd import ledger as book, state as states, system
from lsfd.bench import note, noted
from lsfd.cli import main
from lsfd.data import PatchPairs, sample_photos
from lsfd.folders import DataError
from lsfd.distill import METHODS, Distill, Group
from lsfd.models import create_model
from lsfd.recipe import Recipe
from lsfd.runs import Train
from lsfd.state import STATES, RunError, read_logs, read_run
from lsfd.system import WriteError, append_rows, read_rows, write_atomically
from lsfd.train import fit

pytestmark = pytest.mark.faults
torch.set_num_threads(1)
fork = get_context('fork')

# --- a run of a second, what it ends with, and a child process to hurt

PHOTOS = {k: v[:64, :64] for k, v in sample_photos('train').items()}
RECIPE = Recipe(steps=8, rate=1e-3, log_every=2, save_every=3)

def pairs(**kw): return PatchPairs(PHOTOS, scale=2, lr_patch=12, batch=2, **kw)
def objective(seed=0, **kw):
    torch.manual_seed(seed)
    return Distill(create_model('edsr_student', **dict(n_blocks=1, n_feats=4) | kw), None, **METHODS['Student'])
def train(out, recipe=RECIPE, **kw): return list(fit(objective(), pairs(), recipe, out, **kw))

def tensors(x, name=''):
    "All tensors and numbers of a state by their place in it, but for the seconds."
    if isinstance(x, dict): return {k: v for key, part in x.items() for k, v in tensors(part, f'{name}/{key}').items()}
    if isinstance(x, (list, tuple)): return tensors(dict(enumerate(x)), name)
    return {} if name.endswith('seconds') else {name: x}

def same(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) if isinstance(v, torch.Tensor) else v == b[k] for k, v in a.items())

def ended(out):
    "The last state and the log of a run."
    return torch.load(out/'run.pt'), [{k: v for k, v in row.items() if k != 'seconds'} for row in read_logs(out)]

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp('whole'); train(out)
    return ended(out)

def child(work, *args, wait=None, send=None):
    "Run `work` in a process of its own; after `wait` seconds, if given, it is sent a signal. Returns its exit code."
    def job():
        os.setpgrp(); signal.signal(signal.SIGINT, signal.default_int_handler)
        try: work(*args)
        except BaseException as e: print(f'{type(e).__name__}: {e}', flush=True); os._exit(3)
        os._exit(0)
    p = fork.Process(target=job); p.start()
    if wait is not None: p.join(wait); p.is_alive() and os.kill(p.pid, send)
    p.join(60); assert p.exitcode is not None, 'hangs'
    return p.exitcode

def continues(what, out, whole, train=train):
    "The same call goes on and ends as an undisturbed run does, and leaves nothing behind."
    code = child(train, out)
    left = {p.name for p in out.iterdir()} - {*STATES, 'log.jsonl', '.lock', 'filler'}
    assert count(what, code == 0 and same(ended(out), whole) and not left), (what, code, left)

# --- kills

def test_kills_at_random(tmp_path, whole):
    rng = random.Random(0)
    for i in range(4*TIMES):
        out, sent = tmp_path/f'{i}', rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        for _ in range(2): child(train, out, wait=rng.uniform(0, .4), send=sent)
        continues('runs killed at random, twice each', out, whole)

def distilled(method, teacher):
    torch.manual_seed(0); net = create_model('rcan_student', n_groups=3, n_blocks=1, n_feats=8, reduction=4)
    return Distill(net, teacher, **METHODS[method])

@pytest.mark.parametrize('kind', ['bf16', 'group'])
def test_kills_of_distilled_students(kind, tmp_path):
    "With a teacher and regressors, in half precision; and several at once."
    teacher, rng = create_model('rcan_teacher', n_groups=3, n_blocks=1, n_feats=8, reduction=4), random.Random(0)
    recipe = Recipe(steps=12, rate=1e-3, log_every=2, save_every=3, precision='bf16' if kind == 'bf16' else 'fp32')
    def train(out): list(fit(distilled('LSFD', teacher) if kind == 'bf16' else Group({m: distilled(m, teacher) for m in ('FAKD', 'LSFD')}), pairs(), recipe, out))
    train(tmp_path/'whole'); whole = ended(tmp_path/'whole')
    assert [row['step'] for row in whole[1]] == [2, 4, 6, 8, 10, 12]
    for i in range(2*TIMES):
        for _ in range(2): child(train, tmp_path/f'{i}', wait=rng.uniform(.1, .8), send=signal.SIGKILL)
        continues('runs killed at random, twice each', tmp_path/f'{i}', whole, train)

def at_event(n, act):
    "Have `act` called in place of the n-th time that this process syncs or renames a file."
    left = [n]
    def counted(f):
        def call(*args):
            left[0] -= 1
            return act() if left[0] == 0 else f(*args)
        return call
    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    return left

def die(): os.kill(os.getpid(), signal.SIGKILL)

def test_kills_at_every_write(tmp_path, whole):
    def events(): left = at_event(10**6, die); train(tmp_path/'counted'); (tmp_path/'n').write_text(str(10**6 - left[0]))
    assert child(events) == 0
    n = int((tmp_path/'n').read_text()); assert n >= 15
    for i in range(1, n + 1, 1 if TIMES > 1 else 3):
        out = tmp_path/f'{i}'
        assert child(lambda: (at_event(i, die), train(out))) == -signal.SIGKILL
        continues('runs killed at a write', out, whole)

@pytest.mark.parametrize('sent, error', [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, RunError)], ids=str)
def test_a_signal_between_two_steps_saves(sent, error, tmp_path, whole):
    old = signal.signal(sent, signal.default_int_handler)         # a shell may have it ignored
    try:
        logs = fit(objective(), pairs(), RECIPE.replace(log_every=1, save_every=8), tmp_path/'run'); next(logs)
        with pytest.raises(error, match='the same call goes on from there'): signal.raise_signal(sent)    # while the caller prints, say
        logs.close()
        assert signal.getsignal(sent) is signal.default_int_handler
    finally: signal.signal(sent, old)
    assert count('  between two steps', read_run(tmp_path/'run')['at']['step'] == 1)

@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_saved_at_the_end_of_the_step(sent, tmp_path, whole):
    def job():
        data = pairs(); batch = data.batch
        def until(step):
            if step == 3: os.kill(os.getpid(), sent)     # between two saves
            return batch(step)
        data.batch = until
        list(fit(objective(), data, RECIPE, tmp_path/'run'))
    assert child(job) == 3
    assert count('SIGTERM and SIGINT in a step: saved', read_run(tmp_path/'run')['at']['step'] == 4)
    continues('  continued after a signal', tmp_path/'run', whole)

def test_killed_writers_of_lines_lose_no_row_they_reported(tmp_path):
    path, told = tmp_path/'l.jsonl', tmp_path/'told'
    def write(who):
        fd = os.open(told, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for i in range(10**6): note([dict(who=who, i=i, pad='x'*(i % 300))], path); os.write(fd, f'{who} {i}\n'.encode())
    for r in range(2*TIMES):
        crew = [fork.Process(target=write, args=(4*r + k,)) for k in range(4)]
        for p in crew: p.start()
        time.sleep(.4)
        for p in crew: p.kill(); p.join()
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); rows = noted(path)
    have, promised = {*zip(rows.who, rows.i)}, {tuple(map(int, line.split())) for line in told.read_text().splitlines()}
    for row in promised: count('rows of killed writers', row in have)
    assert len(promised) > 20 and promised <= have and not rows[['who', 'i']].duplicated().any()

# --- disks

def test_an_error_at_every_write(tmp_path, whole):
    def full(): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    def job(n, out):
        at_event(n, full)
        try: train(out)
        except (WriteError, RunError) as e: assert 'No space left' in str(e) and str(out) in str(e), e; os._exit(7)
    for i in range(1, 40, 1 if TIMES > 1 else 3):
        code = child(job, i, out := tmp_path/f'{i}')
        if code == 0: break
        assert count('a full disk at a write: one error that names it', code == 7)
        continues('  continued after an error', out, whole)

@pytest.fixture
def small_disk(tmp_path):
    "A file system of 4 MB, and a function that fills it but for some bytes."
    place = tmp_path/'disk'; place.mkdir()
    if os.getuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', place], capture_output=True).returncode:
        pytest.skip('this machine does not allow mounting')
    def fill(leave=0):
        with open(place/'filler', 'ab', buffering=0) as f:
            try:
                while True: f.write(bytes(4096))
            except OSError: f.truncate(f.tell() - leave)
    yield place, fill
    subprocess.run(['umount', '-l', place])

def test_a_disk_that_is_full(small_disk, whole):
    disk, fill = small_disk
    for i, leave in enumerate((0, 4096, 8192, 16384, 32768)):
        steps = fit(objective(), pairs(), RECIPE, disk/f'{i}'); next(steps); next(steps)
        fill(leave)
        try: list(steps)
        except WriteError as e: assert count('a run on a full disk', 'No space left' in str(e) and str(disk/f'{i}') in str(e)), e
        (disk/'filler').unlink()
        continues('  continued with room', disk/f'{i}', whole)

def test_a_ledger_on_a_full_disk(small_disk):
    disk, fill = small_disk; path = disk/'l.jsonl'; book.append(ROW, path); fill(4096)
    for write in book.append, lambda row, path: note([row], path):       # where not even the lock has room for a name
        with pytest.raises((book.LedgerError, WriteError), match='cannot write .*new.jsonl: No space'): fill(); write(ROW, disk/'new.jsonl')
    (disk/'filler').unlink(); fill(4096)
    said = {}
    for i in range(1, 20):
        try: said[i] = book.append(ROW | dict(seed=i), path)
        except book.LedgerError as e: said[i] = False; assert 'l.jsonl: No space left' in str(e)
    have = {*book.read(path).seed}
    assert all([count('rows on a full disk: there or refused', ok == (i in have)) for i, ok in said.items()]) and not all(said.values())
    assert path.read_bytes().endswith(b'\n') and count('  no half row', True)

def test_a_notebook_on_a_full_disk(small_disk, capfd):
    disk, fill = small_disk; (disk/'out').mkdir(); fill()
    assert main(['evaluate', '--out', str(disk/'out')]) == 2
    assert count('notebooks on a full disk: named', f'cannot write {disk}/out/evaluate.ipynb: No space left on device' in capfd.readouterr().err)

def test_a_training_that_cannot_fit_is_refused_before_it(small_disk):
    disk, fill = small_disk; fill(100_000)
    with pytest.raises(RunError, match='has room for'): train_big = fit(objective(n_feats=64), pairs(), RECIPE, disk/'run'); next(train_big)

@pytest.mark.parametrize('writer', ['torch', 'text', 'safetensors'])
def test_one_error_for_every_library(writer, tmp_path):
    from safetensors.torch import save_file
    big = torch.zeros(200_000)
    writers = dict(torch=lambda p: torch.save(big, p), text=lambda p: p.write_text('x'*800_000), safetensors=lambda p: save_file(dict(x=big), p))
    def job():
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try: write_atomically(tmp_path/'file.pt', writers[writer])
        except WriteError as e: assert f'cannot write {tmp_path}/file.pt: File too large' in str(e), e; os._exit(7)
    (tmp_path/'file.pt').write_text('old')
    assert count('libraries that hide the cause', child(job) == 7)
    assert (tmp_path/'file.pt').read_text() == 'old' and len([*tmp_path.iterdir()]) == 1

@pytest.mark.parametrize('kind, options', [('ext4', 'defaults'), ('ext4', 'noauto_da_alloc'), ('xfs', 'defaults')])
def test_power_cut(kind, options, tmp_path):
    image, place = tmp_path/'image', tmp_path/'disk'; place.mkdir()
    def run(*words): return subprocess.run([str(w) for w in words], capture_output=True).returncode == 0
    made = shutil.which(f'mkfs.{kind}') and run('truncate', '-s', '320M', image) and run(f'mkfs.{kind}', '-q', image)
    def mounted(): return not os.getuid() and run('mount', '-o', f'loop,{options}', image, place)
    if not made or not mounted(): pytest.skip(f'this machine does not mount a file with {kind}')
    try:
        os.sync()
        rows, kept = [], {}
        for n in range(2 + TIMES):
            append_rows(place/'run/log.jsonl', [dict(step=n)]); rows.append(n)
            for name in 'run.pt', f'{n}.pt': write_atomically(place/'run'/name, lambda tmp: torch.save(dict(n=n, w=torch.arange(50_000)), tmp)); kept[name] = n
        fd = os.open(place, os.O_RDONLY)
        fcntl.ioctl(fd, 0x8004587d, struct.pack('I', 2)); os.close(fd)      # EXT4_IOC_SHUTDOWN, of XFS too: nothing more is written
        assert run('umount', place) and mounted()
        for name, n in kept.items():
            assert count(f'files after a power cut, {kind} {options}', torch.load(place/'run'/name)['n'] == n)
        assert count(f'  lines, {kind} {options}', [row['step'] for _, row, _ in read_rows(place/'run/log.jsonl')] == rows)
    finally: run('umount', '-l', place)

# --- damaged files

ROW = dict(model='rcan', role='student', scale=2, method='LSFD', profile='smoke', steps=6, seed=0, data='photos', data_fingerprint='ab', benchmark='photos',
    benchmark_fingerprint='cd', psnr=30.5, ssim=.9, protocol='x2', wall_s=1.5, hardware='h', lr='made')

def flipped(data, rng):
    i = rng.randrange(len(data))
    return data[:i] + bytes([data[i] ^ 1 << rng.randrange(8)]) + data[i+1:]

def test_a_flipped_bit_of_a_state_never_ends_in_other_weights(tmp_path, capsys):
    train(tmp_path); rng = random.Random(0)
    good, older = ((tmp_path/name).read_bytes() for name in STATES)
    new, old = (torch.load(tmp_path/name) for name in STATES)
    parts = 'student', 'regressors', 'optimiser'
    for _ in range(60*TIMES):
        (tmp_path/'run.pt').write_bytes(flipped(good, rng))
        state = read_run(tmp_path, parts); said = capsys.readouterr().out
        assert count('run.pt with a flipped bit: itself, or the one before', same(state, new) or same(state, old) and 'going on from the state before' in said)
    at = good.index(b'PK\1\2')                                                              # the zip's directory, every bit of an entry
    for bit in range(8*46):
        (tmp_path/'run.pt').write_bytes(good[:at + bit//8] + bytes([good[at + bit//8] ^ 1 << bit % 8]) + good[at + bit//8 + 1:])
        state = read_run(tmp_path, parts)
        assert count('run.pt with a flipped bit: itself, or the one before', same(state, new) or same(state, old)), bit
    capsys.readouterr()
    for damage in (b'', good[:len(good)//2], good[:-1], bytes(len(good)), os.urandom(5000)):
        (tmp_path/'run.pt').write_bytes(damage)
        assert count('run.pt empty, cut, zeros, noise: the one before', same(read_run(tmp_path, parts), old))
    (tmp_path/STATES[1]).write_bytes(older[:-1])
    with pytest.raises(RunError, match='Delete the folder'): read_run(tmp_path, parts)

def changed(out, change):
    for name in STATES:
        state = torch.load(out/name); change(state); torch.save(state, out/name)

@pytest.mark.parametrize('change', [*[lambda s, k=k: s.pop(k) for k in ('student', 'optimiser', 'at', 'rng', 'ident', 'under')],
    lambda s: s['student'].update({'head.0.weight': torch.ones(2)}), lambda s: s['student'].pop('head.0.weight'), lambda s: s.update(ident='x'), lambda s: s['at'].update(new=1),
    lambda s: s.update(format=3), lambda s: s['student']['head.0.weight'].fill_(float('nan')), lambda s: s.update(at=5), lambda s: s['ident']['recipe'].update(new=1)])
def test_a_state_that_does_not_fit_is_refused_in_words(change, tmp_path):
    train(tmp_path, RECIPE.replace(steps=6)); changed(tmp_path, change)
    with pytest.raises(RunError) as e: train(tmp_path, RECIPE.replace(steps=6))
    assert count('states with parts missing, of other shapes, of the future', str(tmp_path) in str(e.value))

LINES = {'blank': b'\n\n', 'number': b'5\n', 'null': b'null\n"x"\n[1]\n', 'no step': b'{"a": 1}\n', 'step is text': b'{"step": "x"}\n', 'deep': b'['*100_000 + b'\n',
    'deep objects': b'{"a":'*50_000 + b'\n', '400 digits': b'{"step": ' + b'9'*400 + b'}\n', '5000 digits': b'{"step": ' + b'9'*5000 + b'}\n', 'NaN': b'{"step": NaN}\n',
    'infinite': b'{"step": 1e999}\n', 'surrogate': b'{"note": "\\ud800"}\n', 'invalid UTF-8': b'{"note": "\xff"}\n', 'NULs': bytes(4096) + b'\n', 'conflict': b'<<<<<<< HEAD\n=======\n',
    'UTF-16': '{"step": 1}\n'.encode('utf-16'), 'glued': b'{"step": 1}{"step": 2}\n', 'torn': b'{"step": 5', 'U+2028': '{"step": "\u2028"}\n'.encode(), 'list values': b'{"role": [1], "step": [1]}\n'}

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', [*LINES, 'BOM', 'CRLF', 'doubled', 'gone'])
def test_a_damaged_line_costs_itself_alone(name, tmp_path, whole):
    def damage(path):
        data = path.read_bytes(); first, rest = data.split(b'\n', 1)
        changed = {'BOM': b'\xef\xbb\xbf' + data, 'CRLF': data.replace(b'\n', b'\r\n'), 'doubled': data + data, 'gone': data}
        path.write_bytes(changed.get(name) or (data + LINES[name] if name == 'torn' else first + b'\n' + LINES[name] + rest))
    ledger = tmp_path/'l.jsonl'
    for i in range(3): book.append(ROW | dict(seed=i), ledger)
    damage(ledger)
    assert not book.append(ROW | dict(seed=1), ledger) and book.append(ROW | dict(seed=3), ledger)
    assert count('damaged lines of the ledger', sorted({*book.read(ledger).seed}) == [0, 1, 2, 3])
    out = tmp_path/'run'; train(out); damage(out/'log.jsonl')
    assert [r['step'] for r in read_logs(out)] == [2, 4, 6, 8]
    if name == 'gone': (out/'log.jsonl').unlink()
    train(out)
    assert count('damaged logs', same(ended(out), whole))

@pytest.mark.filterwarnings('ignore')
def test_flipped_bits_of_line_files_raise_nothing(tmp_path):
    path, rng = tmp_path/'l.jsonl', random.Random(0)
    for i in range(4): book.append(ROW | dict(seed=i), path)
    data = path.read_bytes()
    for i in range(30*TIMES):
        path.write_bytes(flipped(data, rng)); n = len(book.read(path))
        assert count('ledgers with a flipped bit: the other rows are there', n >= 2 and book.append(ROW | dict(seed=9), path) and len(book.read(path)) == n + 1)

# --- at the same time

def test_writers_at_the_same_time(tmp_path):
    def write(who):
        for i in range(25*TIMES): assert book.append(ROW | dict(seed=i, note=f'{who}'), tmp_path/'own.jsonl'); book.append(ROW | dict(seed=i), tmp_path/'same.jsonl')
    crew = [fork.Process(target=write, args=(k,)) for k in range(4)]
    for p in crew: p.start()
    for p in crew: p.join()
    own, shared = book.read(tmp_path/'own.jsonl'), book.read(tmp_path/'same.jsonl')
    assert count('ledgers of four writers', len(own) == len(own[['note', 'seed']].drop_duplicates()) == 100*TIMES)
    assert count('  of the same rows', sorted(shared.seed) == [*range(25*TIMES)])

def test_whoever_waits_says_for_whom(tmp_path, monkeypatch, capsys):
    path, ready = tmp_path/'l.jsonl', fork.Event()
    def hold():
        with system.locked(path): ready.set(); os.kill(os.getpid(), signal.SIGSTOP)
    p = fork.Process(target=hold); p.start(); ready.wait()
    clock = iter(range(0, 10**6, 3)); monkeypatch.setattr(system.time, 'monotonic', lambda: next(clock))
    try:
        with pytest.raises(book.LedgerError, match=f'process {p.pid} on .* has held it for 60'): book.append(ROW, path)
        assert f'waiting for process {p.pid} on' in capsys.readouterr().out
    finally: p.kill(); p.join()
    monkeypatch.undo()
    assert count('locks of a process that hangs', book.append(ROW, path))

def test_a_lock_file_that_is_removed_lets_no_second_writer_in(tmp_path):
    path, inside = tmp_path/'l.jsonl', fork.Value('i', 0); book.append(ROW, path)
    def hold():
        with system.locked(path): inside.value += 1; time.sleep(1); inside.value -= 1
    p = fork.Process(target=hold); p.start()
    while not inside.value: time.sleep(.01)
    Path(f'{path}.lock').unlink()
    with system.locked(path): assert count('a second writer after .lock was removed', inside.value == 0)
    p.join()

def test_two_runs_never_share_a_folder(tmp_path):
    out = tmp_path/'run'; first = fit(objective(), pairs(), RECIPE, out); next(first)
    refused = lambda: pytest.raises(RunError, match='of this very process')
    with refused(): train(out)
    def other(): train(out)
    assert count('a second run', child(other) == 3)
    (out/'.lock').unlink()
    with pytest.raises(RunError, match='is training in'): train(out)
    assert count('a second run after .lock was removed', child(other) == 3)
    first.close(); assert count('  after the first has ended', child(other) == 0)

# --- what was saved is good

@pytest.mark.parametrize('rate', [.3, .1, .05])
@pytest.mark.parametrize('every', [1, 3])
def test_an_explosion_is_never_saved(rate, every, tmp_path):
    recipe = Recipe(steps=30, rate=rate, halve_at=(), log_every=every, save_every=every)
    def big(): return objective(n_feats=16, n_blocks=3)
    with pytest.raises(RunError, match='exploded|became|gradient|finite'): list(fit(big(), pairs(), recipe, tmp_path))
    state = read_run(tmp_path, ['student'])
    lr, hr = pairs().batch(99)
    def loss(d): return (d.student.eval()(lr) - hr).abs().mean().item()
    with torch.no_grad(): before, after = loss(big()), loss(big()) if state is None else None
    if state is not None:
        d = big(); d.student.load_state_dict(state['student'])
        with torch.no_grad(): after = loss(d)
    assert count('explosions: what is saved is near what it began with', after < 30*before), (before, after)

def test_noise_is_no_explosion(tmp_path):
    for seed in range(2*TIMES):
        recipe = Recipe(steps=40, rate=5e-3, halve_at=(), log_every=1, save_every=1)
        rows = list(fit(objective(seed, n_feats=8), pairs(seed=seed), recipe, tmp_path/f'{seed}'))
        assert count('noisy runs that go on', len(rows) == 40)

def test_what_does_not_matter_may_change_and_what_does_is_said(tmp_path, whole, capsys):
    train(tmp_path, RECIPE.replace(steps=6, halve_at=(4/6,)))
    train(tmp_path, RECIPE.replace(log_every=4, save_every=2))                                 # longer, half the rate from step 4 on as well
    assert same(read_run(tmp_path)['student'], whole[0]['student']) and 'bit for bit' not in capsys.readouterr().out
    torch.set_num_threads(2)
    try: train(tmp_path, RECIPE)
    finally: torch.set_num_threads(1)
    assert 'threads 1, now 2' in capsys.readouterr().out
    with pytest.raises(RunError, match='step 4 had the rate 0.0005'): train(tmp_path, RECIPE.replace(steps=16))
    with pytest.raises(RunError, match='first weights'): list(fit(objective(1), pairs(), RECIPE, tmp_path))
    train(tmp_path, RECIPE.replace(steps=10, rate=1e-4), resume=Train(resume='changed').resume)
    state = read_run(tmp_path)
    assert state['at']['step'] == 10 and state['ident']['before'][0]['until'] == 8 and states.FORMAT == state['format']
    assert create_model(**{'name': 'edsr_student', **{k: v for k, v in state['spec'].items() if k in ('n_blocks', 'n_feats')}}).load_state_dict(state['student'])

def test_a_folder_that_moves_or_goes(tmp_path, whole, monkeypatch):
    steps = fit(objective(), pairs(), RECIPE, tmp_path/'gone'); next(steps); next(steps)
    shutil.rmtree(tmp_path/'gone'); list(steps)                                                # it is made again
    monkeypatch.chdir(tmp_path); steps = fit(objective(), pairs(), RECIPE, 'here'); next(steps)
    (tmp_path/'else').mkdir(); monkeypatch.chdir('else'); list(steps)                          # a relative path stays where it was
    for out in tmp_path/'gone', tmp_path/'here': assert count('folders removed, current folders changed', same(torch.load(out/'run.pt'), whole[0]))
    train(tmp_path/'gone')
    assert count('  the log is whole again', same(ended(tmp_path/'gone'), whole))

def test_a_step_without_memory_names_the_remedy(tmp_path):
    def job():
        import resource
        data = PatchPairs(PHOTOS, scale=2, lr_patch=32, batch=64); big = objective(n_feats=64, n_blocks=8)
        used = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 100*10**6,)*2)
        try: list(fit(big, data, RECIPE, tmp_path/'run'))
        except RunError as e: assert 'use a smaller batch or lr_patch' in str(e), e; os._exit(7)
    assert count('limits of memory: named, or tiles', child(job) == 7)

def test_a_map_without_memory_names_the_remedy():
    def job():
        import resource
        from lsfd.lam import LAMError, lam
        net, lr = create_model('edsr_student', n_feats=64, n_blocks=8), torch.rand(1, 3, 256, 256)*255
        lam(net, lr[..., :24, :24], 4, 4, folds=2)
        used = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 100*10**6,)*2)
        try: lam(net, lr, 4, 4, folds=2)
        except LAMError as e: assert 'take a smaller part of the picture (around, context), or batch=1' in str(e), e; os._exit(7)
    assert count('limits of memory: named, or tiles', child(job) == 7)

# --- servers

IMAGES = {f'HR/{k}.png': v for k, v in PHOTOS.items()}

def archive(how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(b := io.BytesIO(), 'w', how) as z:
        for name, image in IMAGES.items(): Image.fromarray(image).save(one := io.BytesIO(), 'PNG'); z.writestr(name, one.getvalue())
    return b.getvalue()

BODY = archive()
def head(length=len(BODY), status='200 OK', *more): return '\r\n'.join([f'HTTP/1.1 {status}', *([] if length is None else [f'Content-Length: {length}']), *more, '', '']).encode()
def forever(piece, wait=0):
    while True: yield piece; time.sleep(wait)

SERVERS = {   # what each sends, and whether the images can be had from it
    'good': ([head(), BODY], True), 'in two': ([head(), BODY[:99], BODY[99:]], True), 'no length': ([head(None), BODY], True),
    'short': ([head(1000), BODY[:1000]], False), 'breaks off': ([head(), BODY[:1000]], False), 'long': ([head(len(BODY) + 5000), BODY, bytes(5000)], False),
    'wrong': ([head(), bytes(len(BODY))], False), 'a bit flipped': ([head(), BODY[:3000] + bytes([BODY[3000] ^ 1]) + BODY[3001:]], False), 'empty': ([head(0)], False), 'a page': ([head(4), b'<ht>'], False),
    '404': ([head(2, '404 Not Found'), b'no'], False), '500': ([head(2, '500 Oops'), b'no'], False), '416': ([head(2, '416 Range'), b'no'], False),
    'to itself': ([head(0, '302 Found', 'Location: /')], False), 'to a file': ([head(0, '302 Found', 'Location: file:///etc/passwd')], False), 'garbage': ([b'\xff'*2000], False),
    'silent': ([], False), 'endless head': ([b'HTTP/1.1 200 OK\r\nX: ', b'a'*10**7], False), 'a negative length': ([head(-5), BODY], True), 'no number': ([head('x'), BODY], True),
    'packed': ([head(None, '200 OK', 'Content-Encoding: gzip'), gzip.compress(bytes(10**7))], False), 'endless': (None, False), 'drips': (None, False)}

@contextmanager
def server(pieces):
    def serve():
        while True:
            try: peer, _ = door.accept()
            except OSError: return
            with peer, suppress(OSError):
                peer.recv(2**16)
                for piece in pieces(): peer.sendall(piece)
    with socket.create_server(('127.0.0.1', 0)) as door:
        threading.Thread(target=serve, daemon=True).start()
        yield f'http://127.0.0.1:{door.getsockname()[1]}/tiny.zip'
        door.shutdown(socket.SHUT_RDWR)

@pytest.mark.parametrize('kind', SERVERS)
def test_hostile_servers(kind, tmp_path, monkeypatch):
    from lsfd import download as d
    said, good = SERVERS[kind]
    def pieces():
        if kind == 'endless': yield head(None); yield from forever(bytes(2**16))
        elif kind == 'drips': yield head(); yield from forever(b'P', .05)
        else: yield from said
    monkeypatch.setenv('NO_PROXY', '127.0.0.1'); monkeypatch.setattr(d, 'fetch', partial(d.fetch, tries=2, seconds=2)); start = time.time()
    with server(pieces) as url:
        monkeypatch.setitem(d.ARCHIVES, 'tiny', d.Archive({url: 'HR'}, len(BODY), 'tiny/HR', len(IMAGES), sha256=hashlib.sha256(BODY).hexdigest()))
        try: had = len([*(d.download('tiny', tmp_path)/'HR').iterdir()]) == len(IMAGES)
        except DataError as e: had = False; assert url in str(e) or 'expect' in str(e), e
    there = sum(f.stat().st_size for f in tmp_path.rglob('*') if f.is_file())
    assert count('hostile servers', had == good and there < 2*len(BODY) and time.time() - start < 20), (had, there, time.time() - start)
    assert {f.name for f in tmp_path.iterdir()} <= {'tiny', '.download.lock', 'tiny-tiny.zip.part'}

def test_an_archive_on_a_full_disk_is_named_and_kept(small_disk, monkeypatch):
    from lsfd import download as d
    disk, fill = small_disk; monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with server(lambda: [head(), BODY]) as url:
        monkeypatch.setitem(d.ARCHIVES, 'tiny', d.Archive({url: 'HR'}, len(BODY), 'tiny/HR', len(IMAGES), sha256=hashlib.sha256(BODY).hexdigest()))
        for leave, kept in (8192, False), (len(BODY) + 20_000, True):      # no room for the archive; none for its images
            fill(leave)
            with pytest.raises(WriteError, match=f'cannot write {disk}.*No space left'): d.download('tiny', disk)
            assert count('archives on a full disk: named, kept', ((disk/'tiny-tiny.zip.part').stat().st_size == len(BODY)) == kept)
            (disk/'filler').unlink()
        assert len([*(d.download('tiny', disk)/'HR').iterdir()]) == len(IMAGES)
