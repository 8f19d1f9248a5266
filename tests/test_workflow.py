"""The workflow in a copy of the clone, with a papermill that does nothing but leave the files of its job: what is planned, what is done again and what is not, and a job that dies.
LSFD_LONG=1: the whole smoke grid for real."""
import json, os, shutil, subprocess, sys, time
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not find_spec('snakemake'), reason="needs snakemake: pip install -e '.[workflow]'")

PAPERMILL = f'''#!{sys.executable}
import json, os, sys, time
from pathlib import Path
given = dict(zip(sys.argv[5:], sys.argv[6:]))
words = sys.argv[3:]
said = {{words[i + 1]: words[i + 2] for i, w in enumerate(words) if w in ('-p', '-r')}}
out, name = Path(said['out']), Path(sys.argv[1]).stem
with open('jobs.txt', 'a') as f: print(name, file=f)
Path(sys.argv[2]).write_text('half')
if name == os.environ.get('SLOW'): (out/'run.pt').write_text('state'); Path('started').touch(); time.sleep(60)
if name == os.environ.get('FAILS'): sys.exit('died')
if name == 'train': (out/'teacher.safetensors').write_text('weights')
if name == 'compare':
    (out/f'seed{{said["seeds"]}}').mkdir(exist_ok=True)
    for m in said['methods'].split(','): (out/f'seed{{said["seeds"]}}'/f'{{m}}.safetensors').write_text('weights')
if 'ledger' in said and name in ('train', 'compare'): Path(said['ledger']).write_text(json.dumps(dict(method=name, scale=said['scale'])) + '\\n')
Path(sys.argv[2]).write_text('whole')
'''
GRID = '\n'.join(['models: [rcan]', 'scales: [2, 3]', 'seeds: [0]', 'methods: Student,LSFD', 'data: photos', 'benchmark: photos', 'steps: 0', 'teacher_steps: 0'])
TABLES = 'runs/grid/smoke/figures/tables.ipynb'
STUDENTS = 'runs/grid/smoke/rcan_x3_seed0'

@pytest.fixture
def clone(tmp_path):
    "A copy of what the workflow needs, with a small grid and the papermill above."
    for name in ('lsfd', 'nbs', 'data', 'profiles'): shutil.copytree(ROOT/name, tmp_path/name, ignore=shutil.ignore_patterns('__pycache__', '*.png', 'san*.safetensors', 'edsr*.safetensors', '*_x3.safetensors'))
    shutil.copy(ROOT/'Snakefile', tmp_path)
    (tmp_path/'grid.yaml').write_text('smoke:\n' + ''.join(f'  {line}\n' for line in GRID.splitlines()))
    (tmp_path/'bin').mkdir()
    (tmp_path/'bin/papermill').write_text(PAPERMILL); (tmp_path/'bin/papermill').chmod(0o755)
    return tmp_path

def start(clone, *words, **env):
    env = os.environ | dict(PATH=f'{clone/"bin"}:{Path(sys.executable).parent}:{os.environ["PATH"]}', PYTHONPATH=str(clone), OMP_NUM_THREADS='1') | env
    return subprocess.Popen([sys.executable, '-m', 'snakemake', '--cores', '2', *words], cwd=clone, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)

def snakemake(clone, *words, **env):
    "What it printed, its status, and the notebooks that were run."
    (clone/'jobs.txt').unlink(missing_ok=True)
    job = start(clone, *words, **env)
    text, _ = job.communicate(timeout=300)
    done = (clone/'jobs.txt').read_text().split() if (clone/'jobs.txt').exists() else []
    return text, job.returncode, sorted(done)

def stats(text):
    "How many jobs of each rule there are to do."
    rows = [line.split() for line in text.partition('Job stats:')[2].partition('\n\n')[0].splitlines()]
    return {r[0]: int(r[1]) for r in rows if len(r) == 2 and r[1].isdigit()}

def planned(clone, *words):
    text, status, done = snakemake(clone, '-n', *words)
    assert status == 0 and not done, text
    return stats(text), text

def edit(path, old, new):
    text = path.read_text(); assert old in text, old
    path.write_text(text.replace(old, new, 1))

def test_what_is_done_again(clone):
    plan, text = planned(clone)
    assert plan == dict(teacher=1, students=2, ledger=1, figure=9, all=1, total=14)
    assert '3 trainings to do' in text and 'teacher of ×3' not in text
    text, status, done = snakemake(clone, TABLES)
    assert status == 0 and done == ['compare', 'compare', 'tables', 'train'], text
    methods = [json.loads(line)['method'] for line in (clone/'runs/grid/smoke/ledger.jsonl').read_text().splitlines()]
    assert sorted(methods) == ['compare', 'compare', 'train']
    assert {p.relative_to(clone).parts[0] for p in clone.rglob('*') if p.is_file()} <= {'lsfd', 'nbs', 'data', 'profiles', 'Snakefile', 'grid.yaml', 'bin', 'jobs.txt', 'runs', '.snakemake'}

    edit(clone/'nbs/compare.ipynb', 'on equal terms', 'on fair terms')                            # prose
    edit(clone/'lsfd/losses/lsfd.py', 'import', '# a comment\nimport')
    plan, text = planned(clone, TABLES)
    assert not plan and 'Nothing to be done' in text and '0 trainings to do' in text, text

    (clone/STUDENTS/'run.pt').write_text('state')
    edit(clone/'lsfd/losses/lsfd.py', 'def sfd_map', 'CHANGED = 1\ndef sfd_map')
    text, status, done = snakemake(clone, TABLES)
    assert status == 0 and done == ['compare', 'compare', 'tables'] and stats(text) == dict(students=2, ledger=1, figure=1, total=4), text   # and no teacher
    assert not (clone/STUDENTS/'run.pt').exists() and len(list(clone.glob('runs/grid/smoke/outdated/rcan_x3_seed0_*/run.pt'))) == 1

    (clone/'runs/grid/smoke/ledger.jsonl').unlink()                                               # two faults at once
    with open(clone/STUDENTS/'ledger.jsonl', 'a') as f: f.write('{"model": "rc')
    (clone/'runs/grid/smoke/rcan_x2_seed0/seed0/LSFD.safetensors').unlink()
    text, status, _ = snakemake(clone, TABLES)
    assert status and f'{STUDENTS}/ledger.jsonl, line 2' in text and 'Delete that file and call snakemake again' in text, text
    assert not (clone/'runs/grid/smoke/ledger.jsonl').exists() or 'half' not in (clone/'runs/grid/smoke/ledger.jsonl').read_text()
    (clone/STUDENTS/'ledger.jsonl').unlink()
    plan, _ = planned(clone, TABLES, 'runs/grid/smoke/figures/figs4_6.ipynb')
    assert plan['students'] == 2 and 'teacher' not in plan                                        # of one the ledger is gone, of one a checkpoint

def test_a_job_that_dies(clone):
    text, status, done = snakemake(clone, TABLES, FAILS='compare')
    assert 'A job has failed.' in text and 'the same command goes on' in text
    assert status and 'train' in done and not (clone/STUDENTS/'compare.ipynb').exists() and not (clone/'runs/grid/smoke/ledger.jsonl').exists()
    assert (clone/'runs/grid/smoke/rcan_teacher_x3/teacher.safetensors').read_text() == 'weights'
    job = start(clone, TABLES, SLOW='compare')
    try:
        while not (clone/'started').exists(): time.sleep(.2); assert job.poll() is None, job.stdout.read()
        text, status, _ = snakemake(clone, TABLES)
        assert status and 'cannot be locked' in text and '--unlock' in text, text                 # two writers
    finally: os.killpg(job.pid, 9); job.wait()
    assert snakemake(clone, '--unlock')[1] == 0
    text, status, done = snakemake(clone, TABLES)
    assert status == 0 and done == ['compare', 'compare', 'tables'], text                         # the teacher is not trained again
    kept = [p for p in (clone/'runs').rglob('*.ipynb')]
    assert kept and all(p.read_text() == 'whole' for p in kept) and list(clone.glob('runs/grid/smoke/*/run.pt'))

def test_a_profile_that_is_none(clone):
    text, status, _ = snakemake(clone, '-n', '--config', 'profile=papper')
    assert status and 'choose one of smoke, demo, short, paper' in text

@pytest.mark.skipif(not shutil.which('sbatch') or not os.environ.get('LSFD_LONG'), reason='on a Slurm cluster, where there is one: LSFD_LONG=1')
def test_slurm(clone):
    "Three jobs by sbatch; one is cancelled while it runs, and the same command goes on."
    words = ['--executor', 'slurm', '--jobs', '3', '--slurm-status-command', 'squeue', '--slurm-no-account', '--default-resources', 'mem_mb=1000', 'runtime=10', '--', f'{STUDENTS}/ledger.jsonl']
    job = start(clone, *words, SLOW='compare')
    while not (clone/'started').exists(): time.sleep(.5); assert job.poll() is None, job.stdout.read()
    number = subprocess.run(['squeue', '-h', '-o', '%i'], capture_output=True, text=True, check=True).stdout.split()[0]
    subprocess.run(['scancel', number], check=True)
    assert job.wait(300) and not (clone/STUDENTS/'compare.ipynb').exists() and (clone/STUDENTS/'run.pt').is_file()
    text, status, done = snakemake(clone, *words)
    assert status == 0 and done == ['compare'] and (clone/STUDENTS/'run.pt').is_file(), text

@pytest.mark.skipif(not os.environ.get('LSFD_LONG'), reason='the whole smoke grid, 25 jobs: LSFD_LONG=1')
def test_the_smoke_grid(tmp_path):
    subprocess.run(['git', 'clone', '-q', str(ROOT), str(tmp_path/'clone')], check=True)
    clone = tmp_path/'clone'; (clone/'bin').mkdir()
    text, status, _ = snakemake_long(clone)
    assert status == 0, text[-3000:]
    figures = clone/'runs/grid/smoke/figures'
    assert {'tables.md', 'tables.tex', 'tables.csv', 'claims.md', 'ablations.md', 'table1.md', 'errata.md', *[f'fig{i}.png' for i in range(1, 7)], 'fig1_causal.md'} <= {p.name for p in figures.iterdir()}
    assert not subprocess.run(['git', 'status', '--porcelain', '--untracked-files=no'], cwd=clone, capture_output=True, text=True).stdout

def snakemake_long(clone):
    env = {k: v for k, v in os.environ.items() if k not in ('LSFD_DATA', 'LSFD_SHARED')} | dict(PYTHONPATH=str(clone), PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}')
    r = subprocess.run([sys.executable, '-m', 'snakemake', '--cores', '2', '--config', 'profile=smoke'], cwd=clone, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return r.stdout + r.stderr, r.returncode, None
