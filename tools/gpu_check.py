"""On a machine with a GPU: do all engines compute the same, and how fast are they?
    python tools/gpu_check.py [--out FILE]   four minutes, eight at most; the table comes last
    python tools/gpu_check.py --smoke        tiny networks, on a CPU too: does the check itself run?
Each job is a process of its own with a limit of time, and every result is a row of FILE (data/benchmarks.jsonl) at once: what fails costs its own rows.
What is not timed runs first and at once; then the timings, one by one."""
import argparse, copy, gc, io, itertools, subprocess, sys, time, traceback, warnings
from contextlib import redirect_stdout
from datetime import date
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import torch
import lsfd
from lsfd.bench import launches, note, noted, peaks, step_counts
from lsfd.data import PatchPairs, sample_photos
from lsfd.distill import METHODS, Distill, Group, trainable
from lsfd.efficiency import clock
from lsfd.ledger import hardware
from lsfd.models import DEMO, create_model
from lsfd.train import Engine, Recipe

# of the issue, for ×2 and 16 patches: milliseconds to reach; the paper's networks unless the size says demo
GOALS = {'rcan paper LSFD': 20, 'rcan demo LSFD': 3, 'edsr paper LSFD': 11, 'rcan paper FAKD': 22, 'rcan paper Teacher': 32,
         'rcan paper Student+FAKD+FitNet+LFD+LSFD': 75}
FIRST, EACH = 90, 60   # seconds at most: of what is not timed, of each timing
gpu = torch.cuda.is_available(); where = torch.device('cuda' if gpu else 'cpu')

def make(model, size, methods):
    "An objective, or a group of those joined by +; the same weights each time."
    def net(role): torch.manual_seed(0); return create_model(f'{model}_{role}', **(DEMO[f'{model}_{role}'] if size == 'demo' else {}))
    if methods == 'Teacher': return Distill(net('teacher'), **METHODS['Student'])
    teacher = net('teacher')
    names = [methods] if methods in METHODS else methods.split('+')   # 'FAKD+FFT' is one
    members = {m: Distill(net('student'), None if METHODS[m].get('alone') else teacher, **METHODS[m]) for m in names}
    return Group(members) if len(members) > 1 else members[methods]

def patches(n, side=48): return PatchPairs(sample_photos('train'), batch=n, lr_patch=side, device=where)

def weights(objective): return torch.cat([p.detach().flatten().float() for p in trainable(objective)])
def off(a, b): return ((a - b).norm()/b.norm()).item()

def attempt(keep, f, **row):
    "Keep a row with what `f` finds; one that fails says why."
    try: keep(**row, **f())
    except Exception as e: traceback.print_exc(); keep(**row, ok=False, why=f'{type(e).__name__}: {str(e)[:200]}')

# --- equality: loss and gradient of an engine's step, time and again, against the plain fp32 step

def steps(case, pairs, engine, precision, n=5):
    "The kind of engine, its loss and its gradient, again and again without moving: what was to wait and did not would show."
    e = Engine(make(*case.split()).to(where), Recipe(precision=precision, engine=engine))
    for _ in range(n):
        total = e.step(pairs.batch(0), 0.)['total'].item()
        yield (e.kind, aside(e)), total, torch.cat([p.grad.flatten().float() for p in trainable(e.objective)])

def aside(e): return len(e.weights.aside) if e.weights else 0    # layers whose weights' gradients are on lanes

def against_plain(case, pairs, engine, precision, plain={}):
    "What `engine` computes beside the plain step in fp32, which is remembered."
    if case not in plain: plain.clear(); plain[case] = next(steps(case, pairs, 'eager', 'fp32'))
    _, loss, grad = plain[case]
    kinds, *apart = zip(*((kind, abs(total/loss - 1), off(g, grad)) for kind, total, g in steps(case, pairs, engine, precision)))
    (loss_off, gradient_off), bounds = map(max, apart), dict(fp32=(1e-3, .01), bf16=(.02, .25))[precision]
    ran, layers = kinds[-1]
    return dict(ran=ran, aside=layers, loss_off=loss_off, gradient_off=gradient_off, ok=ran == engine and loss_off < bounds[0] and gradient_off < bounds[1])

def equality(keep, smoke):
    pairs = patches(2, 16) if smoke else patches(4)
    for case in [f'{m} demo LSFD' for m in ('edsr', 'san')] + [f'rcan demo {m}' for m in (*METHODS, 'Student+FAKD+LSFD')]:
        for precision, engine in itertools.product(('fp32', 'bf16'), ('eager', 'graph') if gpu else ('eager',)):
            attempt(keep, partial(against_plain, case, pairs, engine, precision), what='equality', case=case, engine=engine, precision=precision)
    case, engine = 'rcan {} Student+FAKD+LSFD'.format('demo' if smoke else 'paper'), 'graph' if gpu else 'eager'
    attempt(keep, partial(against_plain, case, pairs, engine, 'fp32'), what='equality', case=case, engine=engine, precision='fp32')   # large kernels

def equality_compiled(keep, smoke):
    pairs, engine = patches(2, 16) if smoke else patches(4), 'compiled' if gpu else 'eager'
    for case in ('rcan {} LSFD'.format('demo' if smoke else 'paper'), 'rcan demo Student+FAKD+LSFD', 'edsr demo LSFD', 'san demo LSFD', 'edsr demo FAKD', 'rcan demo DUKD'):
        for precision in ('bf16', 'fp32'):
            attempt(keep, partial(against_plain, case, pairs, engine, precision), what='equality', case=case, engine=engine, precision=precision)

def counts(keep, smoke):
    "Operations of each step, by fake tensors."
    for case in (c for c in GOALS if '+' not in c):
        model, size, methods = case.split(); pairs = (2, 16) if smoke else (16, 48)
        attempt(keep, lambda: dict(flops=step_counts(partial(make, model, 'demo' if smoke else size, methods), *pairs, 'bf16')['flops'], ok=True), what='counts', case=case)

# --- behaviour: what a recording must not change, by some steps of the plain engine and of the recorded one

def noisy(term=None):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 1), torch.nn.BatchNorm2d(12), torch.nn.Dropout(.2), torch.nn.PixelShuffle(2))
    return Distill(net, **METHODS['Student'] | (dict(terms=dict(own=term)) if term else {})).to(where)

def after(objective, engine, sizes=(2, 2, 1, 2), **recipe):
    "The engine after steps of batches of these sizes."
    torch.manual_seed(1); e, pairs = Engine(objective, Recipe(rate=1e-3, engine=engine, **recipe)), patches(2, 16)
    for i, n in enumerate(sizes): e.step(pairs.batch(i, n), 1e-3)
    return e

def reads(o): loss = (o.sr_s - o.hr).abs().mean(); loss.item(); return loss

def refuses(o):
    if gpu and torch.cuda.is_current_stream_capturing(): raise RuntimeError('not while recording')
    return (o.sr_s - o.hr).abs().mean()

def behaviour(keep, smoke):
    kind, demo = 'graph' if gpu else 'eager', lambda: make('rcan', 'demo', 'LSFD').to(where)
    def check(case, f, precision='fp32'): attempt(keep, f, what='equality', case=case, engine=kind, precision=precision)
    def same(make, bound=1e-3, ran=kind, **recipe):
        plain, e = (after(make(), engine, **recipe) for engine in ('eager', kind)); plain.finish(); e.finish()   # the average, if there is one
        apart = [off(weights(e.objective), weights(plain.objective))]
        apart += [off(a.float(), b.float()) for a, b in zip(e.objective.student.buffers(), plain.objective.student.buffers())]
        return dict(ran=e.kind, gradient_off=max(apart), ok=e.kind == ran and max(apart) <= bound)
    check('batch normalisation, dropout, another shape', partial(same, noisy))
    for extra in (dict(clip=.1), dict(ema=.9), dict(precision='bf16')): check(f'some steps, {extra}', partial(same, demo, .02, **extra), extra.get('precision', 'fp32'))
    def resumed():
        whole, half, again = after(demo(), kind), after(demo(), kind, (2, 2)), Engine(demo(), Recipe(engine=kind))
        again.objective.load_state_dict(half.objective.state_dict()); again.load_state_dict(copy.deepcopy(half.state_dict()))
        for i, n in ((2, 1), (3, 2)): again.step(patches(2, 16).batch(i, n), 1e-3)
        a, b = weights(again.objective), weights(whole.objective)
        return dict(ran=again.kind, gradient_off=off(a, b), bits_equal=torch.equal(a, b), ok=off(a, b) <= 1e-4)
    check('resumed in the middle', resumed)
    def fallen(term, ran='eager'):
        with redirect_stdout(said := io.StringIO()), warnings.catch_warnings(record=True) as warned: found = same(partial(noisy, term), ran=ran)
        return found | dict(said=said.getvalue().strip(), warned=[str(w.message)[:80] for w in warned])
    check('a term that reads a number', partial(fallen, reads))
    check('a capture that fails', partial(fallen, refuses))
    def never_waits():
        e, pairs, sums = after(demo(), kind, clip=.1, ema=.9), patches(2, 16), 0
        torch.cuda.set_sync_debug_mode('error')
        try:
            for i in range(3): sums = sums + e.step(pairs.batch(i), 1e-3)['total']
        finally: torch.cuda.set_sync_debug_mode('default')
        return dict(ran=e.kind, ok=e.kind == kind)
    def follows():
        "ECO's schedule, which `fit` fills in between steps."
        def run(engine):
            e, pairs = Engine(make('rcan', 'demo', 'ECO').to(where), Recipe(rate=1e-3, engine=engine)), patches(2, 16)
            for i in range(3): e.objective.progress.fill_(i/2); total = e.step(pairs.batch(i), 1e-3)['total'].item()
            return e, total
        (plain, a), (e, b) = run('eager'), run(kind)
        apart = off(weights(e.objective), weights(plain.objective))
        return dict(ran=e.kind, loss_off=abs(b/a - 1), gradient_off=apart, ok=e.kind == kind and abs(b/a - 1) < 1e-3 and apart < 1e-3)
    check('a schedule goes on', follows)
    if gpu: check('a step with its data never waits', never_waits)

# --- speed

def timed(build, pairs, kind, smoke):
    "Seconds to start, per step and of it for the data, launches."
    e = Engine(build().to(where), Recipe(precision='bf16', engine=kind)); fixed = pairs.batch(0)
    def seconds(f, turns=1):
        start = clock(where)
        for i in range(turns): f(i)
        return (clock(where) - start)/turns
    def step(i): e.step(pairs.batch(i), 1e-4)
    def bare(i): e.step(fixed, 1e-4)
    start, second = seconds(step), seconds(step)
    turns = 1 if smoke else max(3, min(20, int(1/second)))
    took, without = (sorted(seconds(f, turns) for _ in range(3))[1] for f in (step, bare))
    row = dict(ran=e.kind, aside=aside(e), seconds=took, start=start, data_share=1 - without/took, ok=e.kind == kind,
               teacher_cast=e.teacher is not None and any(p.dtype == torch.bfloat16 for p in e.teacher.parameters()))
    try: row |= launches(partial(step, 0), where)
    except Exception as wrong: print(f'launches not counted: {wrong}')
    return row

def speed(keep, smoke, case, counted={}):
    "A row for each engine, the usual one first."
    model, size, methods = case.split()
    pairs, build = patches(2, 16) if smoke else patches(16), partial(make, model, 'demo' if smoke else size, methods)
    top = peaks(where, wide=32 if smoke else 256, n=256 if smoke else 8192)['bf16']
    def found(kind):
        row = timed(build, pairs, kind, smoke)
        return row | dict(peak=top, of_peak=counted[case]/top/row['seconds'] if case in counted else None)
    for kind in ['compiled'] + ['graph']*('LSFD' == methods) + ['eager']*(case == 'rcan paper LSFD') if gpu else ['eager']:
        attempt(keep, partial(found, kind), what='engine', case=case, engine=kind, goal_ms=GOALS[case])
        gc.collect(); gpu and torch.cuda.empty_cache()

UNTIMED = {'equality': equality, 'behaviour': behaviour, 'equality compiled': equality_compiled, 'counts': counts}
JOBS = UNTIMED | {c: partial(speed, case=c) for c in GOALS}

def table(rows):
    "What was found, the shortest way."
    equal, fast = (rows[rows.what == what] for what in ('equality', 'engine'))
    print(f'\n{int(equal.ok.sum())} of {len(equal)} comparisons agree')
    def show(rows, columns): print(rows.reindex(columns=columns.split()).dropna(axis=1, how='all').to_string(index=False, max_colwidth=60))
    if len(wrong := rows[~rows.ok.astype(bool)]): print('WRONG'); show(wrong, 'case engine ran precision loss_off gradient_off why')
    if len(fast): show(fast.assign(ms=1000*fast.get('seconds', float('nan'))).round(dict(ms=2, start=1, of_peak=3, data_share=3)),
         'case engine ran ms goal_ms start of_peak data_share launches kernels')

def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument('--smoke', action='store_true'); parse.add_argument('--out', help='file of the records')
    parse.add_argument('--job', choices=JOBS, help='this one alone, here')
    args = parse.parse_args()
    if not gpu and not args.smoke: sys.exit('no CUDA device here: --smoke runs the check at a tiny size')
    place = Path(args.out or ROOT/('runs' if args.smoke else 'data')/'benchmarks.jsonl')
    about = dict(date=str(date.today()), version=lsfd.__version__, hardware=hardware(), device=torch.cuda.get_device_name() if gpu else 'CPU')
    def keep(**row):
        note([dict(precision='bf16') | row], place, **about)   # on disk when this returns
        print({k: float(f'{v:.3g}') if isinstance(v, float) else v for k, v in row.items() if k != 'what'}, flush=True)
    def counted():
        rows = noted(place)
        return rows[rows.what == 'counts'].dropna(subset='flops').set_index('case').flops.to_dict() if 'flops' in rows else {}
    def here(job): JOBS[job](keep, args.smoke, **(dict(counted=counted()) if job in GOALS else {}))
    if args.job: return here(args.job)
    failed, before = [], len(noted(place))
    def begin(job): print(f'--- {job}', flush=True); return subprocess.Popen([sys.executable, __file__, '--job', job, '--out', str(place)])
    def end(job, process, seconds):
        try: code = process.wait(seconds)
        except subprocess.TimeoutExpired: process.kill(); process.wait(); code = f'not done after {seconds:.0f} s'
        if code: failed.append(f'{job}: {code}')
    if args.smoke: [here(job) for job in JOBS]      # here, to save starts
    else:
        begun, start = {job: begin(job) for job in UNTIMED}, time.monotonic()
        for job, process in begun.items(): end(job, process, max(1, start + FIRST - time.monotonic()))
        for job in GOALS: end(job, begin(job), EACH)
    rows = noted(place).iloc[before:]
    if len(rows): table(rows)
    print(*failed, sep='\n')
    sys.exit(bool(failed) or rows.empty or not rows.ok.astype(bool).all())

if __name__ == '__main__': main()
