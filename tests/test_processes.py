"""Two processes under torchrun (gloo, CPU): the gradient of the whole batch, a rank that dies, a run that is resumed by another number of ranks."""
import os, signal, subprocess, sys, time
from pathlib import Path

import pytest, torch
from campaign import count
from nbdev.config import get_config

from lsfd.distill import trainable
from lsfd.launch import command, environment
from lsfd.runs import Train, build
from lsfd.train import fit, forward, read_logs

ROOT = get_config(Path(__file__).parent).config_path
pytestmark = pytest.mark.faults
torch.set_num_threads(1)

GRADIENTS = '''
import sys, torch, torch.distributed as dist
from lsfd.runs import Train, build
from lsfd.distill import trainable
from lsfd.train import Engine, forward, rank_batch
torch.set_num_threads(1)
dist.init_process_group('gloo')
for method in sys.argv[2:]:
    objective, pairs, recipe = build(Train(profile='smoke', precision='fp32', device='cpu', method=method))
    engine = Engine(objective, recipe)   # which DDP needs alive in the backward pass
    forward(engine.network, rank_batch(pairs, 0), 'fp32')['total'].backward()
    if dist.get_rank() == 0: torch.save([p.grad for p in trainable(objective)], f'{sys.argv[1]}/{method}.pt')
dist.destroy_process_group()
'''

def run(out, **kw):
    return Train(profile='smoke', precision='fp32', device='cpu', out=out, **kw)

def test_two_ranks_have_the_gradient_of_the_whole_batch(tmp_path):
    (tmp_path/'job.py').write_text(GRADIENTS)
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    subprocess.run([*launcher, tmp_path/'job.py', tmp_path, 'LSFD', 'FAKD'], env=environment(2), cwd=ROOT, check=True, timeout=300)
    for method in 'LSFD', 'FAKD':
        objective, pairs, *_ = build(run(tmp_path, method=method))
        forward(objective.train(), pairs.batch(0), 'fp32')['total'].backward()
        for p, g in zip(trainable(objective), torch.load(tmp_path/f'{method}.pt', weights_only=True)):
            assert (p.grad - g).abs().max() <= 1e-4*p.grad.abs().max() + 1e-7

def ranks_of(job):
    "The launcher's children, oldest first."
    return [int(n) for n in Path(f'/proc/{job.pid}/task/{job.pid}/children').read_text().split()]

@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='needs /proc to find the ranks')
def test_a_rank_that_dies_takes_the_run_down_and_it_resumes(tmp_path):
    p = run(tmp_path/'run', processes=2, steps=60)
    with subprocess.Popen(command(p), env=environment(2), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as job:
        for line in job.stdout:
            if line.strip().startswith('8/60'): break
        os.kill(ranks_of(job)[-1], signal.SIGKILL)
        start = time.time(); job.stdout.read(); code = job.wait(timeout=120)
    assert code != 0 and time.time() - start < 100                        # the other rank did not hang
    at = torch.load(tmp_path/'run/run.pt', weights_only=True)['at']['step']
    assert 6 <= at < 60
    (objective, pairs, recipe), folder = build(p), p.folder                      # one process goes on where two were
    steps = [log['step'] for log in fit(objective, pairs, recipe, folder)]
    assert steps[0] == at + 2 - at % 2 and steps[-1] == 60
    assert count('a rank that is killed: the run resumes', [r['step'] for r in read_logs(folder)] == list(range(2, 61, 2)))

def alive(pid): return Path(f'/proc/{pid}').exists() and ' Z ' not in Path(f'/proc/{pid}/stat').read_text()

@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='needs /proc to find the ranks')
@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGKILL])
def test_ranks_follow_their_launcher_and_save_first(sent, tmp_path):
    p = run(tmp_path/'run', processes=2, steps=400, save_every=1000)      # no state is saved before the end, but for the signal
    with open(tmp_path/'said', 'w') as said, subprocess.Popen(command(p), env=environment(2), cwd=ROOT, stdout=said, stderr=said) as job:
        start = time.time()
        while len(read_logs(p.folder)) < 2: time.sleep(.1); assert time.time() - start < 200, (tmp_path/'said').read_text()
        ranks = ranks_of(job); assert len(ranks) == 2
        job.send_signal(sent); job.wait(60)
    start = time.time()
    while any(map(alive, ranks)) and time.time() - start < 30: time.sleep(.1)
    gone = not any(map(alive, ranks))
    at = torch.load(p.folder/'run.pt')['at']
    assert count('ranks of a killed launcher: saved and gone', gone and 4 <= at['step'] < 400 and [r['step'] for r in at['rows']] == list(range(2, at['step'] + 1, 2)))
    (objective, pairs, recipe), folder = build(p), p.folder
    assert next(fit(objective, pairs, recipe, folder))['step'] == at['step'] + 2 - at['step'] % 2
