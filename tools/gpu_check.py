"""On a machine with a GPU: do all engines compute the same, and how fast are they?
    python tools/gpu_check.py [--out FILE]   eight minutes at most; the table comes last
    python tools/gpu_check.py --smoke        tiny networks, on a CPU too: does the check itself run?
Each job is a process of its own with a limit of time, and every result is a row of FILE (data/benchmarks.jsonl) at once: what fails costs its own rows."""
import argparse, copy, io, subprocess, sys, time, traceback, warnings
from contextlib import redirect_stdout
from datetime import date
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import pandas as pd, torch
import lsfd
import lsfd.engine as engines
from lsfd.bench import launches, note, noted, peaks, step_counts
from lsfd.data import PatchPairs, sample_photos
from lsfd.distill import METHODS, Distill, Group, trainable
from lsfd.efficiency import clock
from lsfd.ledger import hardware
from lsfd.models import DEMO, create_model
from lsfd.train import Engine, Recipe

# of the issue, for ×2 and 16 patches: milliseconds to reach; the paper's networks unless the size says demo
GOALS = {'rcan paper LSFD': 20, 'rcan paper FAKD': 22, 'edsr paper LSFD': 11, 'rcan paper Teacher': 32,
         'rcan paper Student+FAKD+FitNet+LFD+LSFD': 75, 'rcan demo LSFD': 3}
LIMITS = {'equality': 90, 'behaviour': 45, 'equality compiled': 120} | dict.fromkeys(GOALS, 100)   # seconds of each job
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

# --- equality: loss and gradient of an engine after one step, against the plain fp32 step

def one_step(case, pairs, engine, precision):
    e = Engine(make(*case.split()).to(where), Recipe(precision=precision, engine=engine))
    total = e.step(pairs.batch(0), 1e-4)['total'].item()
    return e.kind, total, torch.cat([p.grad.flatten().float() for p in trainable(e.objective)])

def equality(keep, smoke, kinds=('eager', 'graph'), cases=None):
    pairs = patches(2, 16) if smoke else patches(4)
    for case in cases or [f'{m} demo LSFD' for m in ('edsr', 'san')] + [f'rcan demo {m}' for m in (*METHODS, 'Student+FAKD+LSFD')]:
        _, loss, grad = one_step(case, pairs, 'eager', 'fp32')
        for precision, bounds in dict(fp32=(1e-3, .02), bf16=(.02, .25)).items():
            for engine in kinds if gpu else ('eager',):
                kind, total, g = one_step(case, pairs, engine, precision)
                apart = abs(total/loss - 1), off(g, grad)
                keep(what='equality', case=case, engine=engine, ran=kind, precision=precision, loss_off=apart[0], gradient_off=apart[1],
                     ok=kind == (engine if gpu else 'eager') and apart[0] < bounds[0] and apart[1] < bounds[1])

def equality_compiled(keep, smoke):
    "As a whole, and by blocks."
    for few, cases in ((10**6, ['edsr demo LSFD', 'edsr demo FAKD']), (0, ['rcan demo LSFD', 'san demo LSFD', 'rcan demo Student+FAKD+LSFD'])):
        engines.FEW = few
        equality(keep, smoke, ['compiled'], cases)

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

def behaviour(keep, smoke):
    kind = 'graph' if gpu else 'eager'
    def check(case, e, want, bound=1e-3, ran=kind, **more):
        apart = off(weights(e.objective), want)
        keep(what='equality', case=case, engine=kind, ran=e.kind, precision='fp32', gradient_off=apart, ok=e.kind == ran and apart <= bound, **more)
    demo = partial(make, 'rcan', 'demo', 'LSFD')
    a, b = (after(noisy(), engine) for engine in ('eager', kind))
    statistics = [dict(e.objective.student.named_buffers())['1.running_mean'] for e in (b, a)]
    check('batch normalisation, dropout, another shape', b, weights(a.objective), statistics_off=off(*statistics))
    for extra in (dict(clip=.1), dict(ema=.9), dict(precision='bf16')):
        a, b = (after(demo().to(where), engine, **extra) for engine in ('eager', kind))
        check(f'several steps, {extra}', b, weights(a.objective), .02)
    whole, half, again = after(demo().to(where), kind), after(demo().to(where), kind, (2, 2)), Engine(demo().to(where), Recipe(engine=kind))
    again.objective.load_state_dict(half.objective.state_dict()); again.load_state_dict(copy.deepcopy(half.state_dict()))
    for i, n in ((2, 1), (3, 2)): again.step(patches(2, 16).batch(i, n), 1e-3)
    check('resumed in the middle', again, weights(whole.objective), bits_equal=torch.equal(weights(again.objective), weights(whole.objective)))
    with redirect_stdout(said := io.StringIO()), warnings.catch_warnings(record=True) as warned: e = after(noisy(reads), kind)
    check('a term that reads a number', e, weights(after(noisy(reads), 'eager').objective), 1e-3, 'eager', said=said.getvalue().strip(), warned=[str(w.message)[:80] for w in warned])
    if gpu:   # a run's step, data and sums included, never waits for the device
        e, pairs, sums = after(demo().to(where), 'graph'), patches(2, 16), 0
        torch.cuda.set_sync_debug_mode('error')
        for i in range(3): sums = sums + e.step(pairs.batch(i), 1e-3)['total']
        torch.cuda.set_sync_debug_mode('default'); keep(what='equality', case='no step waits', engine='graph', ran=e.kind, ok=True)

# --- speed

def speed(keep, smoke, case, kinds=None):
    "The row of each engine: seconds to start, per step and for the data, launches, share of the peak."
    model, size, methods = case.split()
    pairs, build = patches(2, 16) if smoke else patches(16), partial(make, model, 'demo' if smoke else size, methods)
    top = peaks(where, wide=32 if smoke else 256, n=256 if smoke else 8192)['bf16']
    flops = None if '+' in methods else step_counts(build, pairs.n, pairs.lr_patch, 'bf16')['flops']
    for kind in ('compiled', 'graph', 'eager') if gpu else ('eager',):
        e = Engine(build().to(where), Recipe(precision='bf16', engine=kind))
        def seconds(f, turns):
            start = clock(where)
            for i in range(turns): f(i)
            return (clock(where) - start)/turns
        def step(i): e.step(pairs.batch(i), 1e-4)
        first, second = seconds(step, 1), seconds(step, 1)
        turns = 1 if smoke else max(3, min(20, int(1/second)))
        took, data = (sorted(seconds(f, turns) for _ in range(3))[1] for f in (step, pairs.batch))
        row = dict(engine=kind, ran=e.kind, seconds=took, start=first, data_share=data/took, of_peak=flops and flops/top/took, goal_ms=GOALS[case], ok=e.kind == kind,
                   teacher_cast=e.teacher is not None and any(p.dtype == torch.bfloat16 for p in e.teacher.parameters()))
        try: row |= launches(partial(step, 0), where)
        except Exception as wrong: print(f'not counted: {wrong}')
        keep(what='engine', case=case, **row)
        del e; gpu and torch.cuda.empty_cache()

JOBS = {'equality': equality, 'behaviour': behaviour, 'equality compiled': equality_compiled} | {c: partial(speed, case=c) for c in GOALS}

def table(rows):
    "What was found, the shortest way."
    if rows.empty: return print('no results')
    equal, fast = (rows[rows.what == what] for what in ('equality', 'engine'))
    print(f'\n{int(equal.ok.sum())} of {len(equal)} comparisons agree')
    with pd.option_context('display.width', 220, 'display.max_colwidth', 60):
        if len(wrong := equal[~equal.ok.astype(bool)]): print('WRONG\n' + wrong.dropna(axis=1).drop(columns=['date', 'version', 'hardware', 'device', 'what']).to_string(index=False))
        if fast.empty: return
        fast = fast.assign(ms=1000*fast.seconds).reindex(columns='case engine ran ms goal_ms start of_peak data_share launches kernels'.split())
        print(fast.round(dict(ms=2, start=1, of_peak=3, data_share=3)).to_string(index=False))

def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument('--smoke', action='store_true'); parse.add_argument('--out', help='file of the records')
    parse.add_argument('--minutes', type=float, default=7.5, help='for all jobs'); parse.add_argument('--job', choices=JOBS, help='this one alone, here')
    args = parse.parse_args()
    if not gpu and not args.smoke: sys.exit('no CUDA device here: --smoke runs the check at a tiny size')
    place = Path(args.out or ROOT/('runs' if args.smoke else 'data')/'benchmarks.jsonl')
    about = dict(date=str(date.today()), version=lsfd.__version__, hardware=hardware(), device=torch.cuda.get_device_name() if gpu else 'CPU')
    def keep(**row):
        note([dict(precision='bf16') | row], place, **about)
        print({k: float(f'{v:.3g}') if isinstance(v, float) else v for k, v in row.items() if k != 'what'}, flush=True)
    if args.job: return JOBS[args.job](keep, args.smoke)
    end, failed, before = time.monotonic() + 60*args.minutes, [], len(noted(place))
    for job in JOBS:
        left = min(LIMITS[job], end - time.monotonic())
        print(f'--- {job}: at most {left:.0f} s', flush=True)
        if left < 10: failed.append(f'{job}: no time left'); continue
        words = [sys.executable, __file__, '--job', job, '--out', str(place)] + ['--smoke']*args.smoke
        try:
            if args.smoke: JOBS[job](keep, True)   # here, to save starts
            else: subprocess.run(words, timeout=left, check=True)
        except subprocess.TimeoutExpired: failed.append(f'{job}: not done after {left:.0f} s')
        except Exception as e: traceback.print_exc(); failed.append(f'{job}: {type(e).__name__}: {str(e)[-120:]}')
    rows = noted(place).iloc[before:]
    table(rows); print(*failed, sep='\n')
    sys.exit(bool(failed) or not rows.ok.astype(bool).all())

if __name__ == '__main__': main()
