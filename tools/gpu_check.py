"""On a machine with a GPU: do all engines compute the same, and how fast are they? One row per step and engine goes to data/benchmarks.jsonl.
    python tools/gpu_check.py            ten minutes or so
    python tools/gpu_check.py --smoke    seconds, tiny networks, on a CPU too: does the check itself run?"""
import argparse, gc, sys
from datetime import date
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import torch
import lsfd
from lsfd.bench import launches, note, peaks, step_counts
from lsfd.data import PatchPairs, sample_photos
from lsfd.distill import METHODS, Distill, Group, trainable
from lsfd.efficiency import clock
from lsfd.engine import Engine
from lsfd.ledger import hardware
from lsfd.models import DEMO, create_model
from lsfd.train import Recipe

# of the issue, for ×2 and 16 patches: milliseconds to reach; the paper's networks unless the size says demo
GOALS = {('rcan', 'paper', 'LSFD'): 20, ('rcan', 'paper', 'FAKD'): 22, ('edsr', 'paper', 'LSFD'): 11, ('rcan', 'paper', 'Teacher'): 32,
         ('rcan', 'paper', 'Student+FAKD+FitNet+LFD+LSFD'): 75, ('rcan', 'demo', 'LSFD'): 3}

def make(model, size, methods):
    "An objective, or a group of those joined by +; the same weights each time."
    def net(role): torch.manual_seed(0); return create_model(f'{model}_{role}', **(DEMO[f'{model}_{role}'] if size == 'demo' else {}))
    if methods == 'Teacher': return Distill(net('teacher'), **METHODS['Student'])
    teacher = net('teacher')
    members = {m: Distill(net('student'), None if METHODS[m].get('alone') else teacher, **METHODS[m]) for m in methods.split('+')}
    return Group(members) if len(members) > 1 else members[methods]

def after_one_step(objective, pairs, engine, precision, where):
    e = Engine(objective.to(where), Recipe(precision=precision, engine=engine))
    total = e.step(pairs.batch(0), 1e-4)['total'].item()
    return e.kind, total, torch.cat([p.grad.flatten().float() for p in trainable(objective)])

def equality(where, pairs, engines, methods):
    "Loss and gradient of each engine against the plain fp32 step; False if one is further off than rounding explains."
    good = True
    for model, method in [(m, 'LSFD') for m in ('edsr', 'rcan', 'san')] + [('rcan', m) for m in methods]:
        _, loss, grad = after_one_step(make(model, 'demo', method), pairs, 'eager', 'fp32', where)
        for precision, bounds in dict(fp32=(1e-3, .02), bf16=(.02, .25)).items():
            for engine in engines:
                kind, total, g = after_one_step(make(model, 'demo', method), pairs, engine, precision, where)
                off = abs(total/loss - 1), ((g - grad).norm()/grad.norm()).item()
                ok = kind == engine and off[0] < bounds[0] and off[1] < bounds[1]; good &= ok
                print(f'{"ok   " if ok else "WRONG"} {model} {method} {precision} {engine}: ran {kind}, loss off by {off[0]:.0e}, gradient by {off[1]:.0e}', flush=True)
    return good

def measure(where, case, pairs, engine, precision, turns):
    "The row of one engine: seconds to start, per step and for the data, launches."
    e = Engine(make(*case).to(where), Recipe(precision=precision, engine=engine))
    start = clock(where); e.step(pairs.batch(0), 1e-4); first = clock(where) - start
    def seconds(f):
        start = clock(where)
        for i in range(turns): f(i)
        return (clock(where) - start)/turns
    step, data = (min(seconds(f) for _ in range(3)) for f in (lambda i: e.step(pairs.batch(i), 1e-4), pairs.batch))
    cast = e.teacher is not None and any(p.dtype == torch.bfloat16 for p in e.teacher.parameters())
    return dict(engine=e.kind, seconds=step, start=first, data_share=data/step, teacher_cast=cast, **launches(lambda: e.step(pairs.batch(0), 1e-4), where))

def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument('--smoke', action='store_true'); parse.add_argument('--out', help='file of the records')
    args = parse.parse_args()
    where = torch.device('cuda' if torch.cuda.is_available() else 'cpu'); gpu = where.type == 'cuda'
    if not gpu and not args.smoke: sys.exit('no CUDA device here: --smoke runs the check at a tiny size')
    engines = ('eager', 'graph', 'compiled') if gpu else ('eager',)
    pairs = PatchPairs(sample_photos('train'), batch=2 if args.smoke else 16, lr_patch=16 if args.smoke else 48, device=where)
    good = equality(where, pairs, engines, ['FAKD', 'Student+LSFD'] if args.smoke else [*METHODS, 'Student+FAKD+LSFD'])
    top = peaks(where, wide=32 if args.smoke else 256, n=256 if args.smoke else 8192)
    about = dict(date=str(date.today()), version=lsfd.__version__, hardware=hardware(), device=torch.cuda.get_device_name() if gpu else 'CPU', precision='bf16')
    for (model, size, methods), goal in GOALS.items():
        case = model, 'demo' if args.smoke else size, methods
        flops = step_counts(partial(make, *case), pairs.n, pairs.lr_patch, 'bf16')['flops'] if '+' not in methods and methods != 'Teacher' else None
        for engine in engines:
            row = measure(where, case, pairs, engine, 'bf16', 2 if args.smoke else 20)
            row |= dict(of_peak=flops/top['bf16']/row['seconds'] if flops else None, goal_ms=goal)
            note([dict(what='engine', case=' '.join(case), **row)], args.out or ROOT/('runs' if args.smoke else 'data')/'benchmarks.jsonl', **about)
            print(' '.join(case), {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
            gc.collect(); gpu and torch.cuda.empty_cache()
    sys.exit(not good)

if __name__ == '__main__': main()
