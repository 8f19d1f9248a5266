"""What a notebook should not show: a run killed in the middle, and everything a user can get wrong on the command line."""
import ast, json, os, random, re, signal, subprocess, sys, time
from pathlib import Path

import numpy as np, pytest, torch
from campaign import TIMES, count
from PIL import Image
from fastcore.nbio import read_nb
from papermill.translators import translate_parameters
from nbdev.config import get_config

from lsfd.data import DataError, PatchPairs, sample_photos
from lsfd.distill import METHODS, Distill
from lsfd.ledger import LedgerError, check_ledger
from lsfd.models import DEMO, ModelError, create_model, load_demo, save_model
from lsfd.runs import NOTEBOOKS, ParameterError, Train, Training, build, find_benchmarks, find_teacher, own_network, recipe_of, sources
from lsfd.train import Recipe, RunError, fit, open_run

ROOT = get_config(Path(__file__).parent).config_path
TEACHER = str(ROOT/'data/checkpoints/rcan_teacher_demo_x2.safetensors')
torch.set_num_threads(1)

def rows(out): return [{k: v for k, v in json.loads(line).items() if k != 'seconds'} for line in (out/'log.jsonl').read_text().splitlines()]

# --- the recipe

def test_the_default_recipe_is_what_it_was():
    "The first losses of the demo, as commit 74bf93d computed them, before recipes could clip, average, warm up or fall as a cosine."
    torch.manual_seed(0)
    objective = Distill(create_model('rcan_student', **DEMO['rcan_student']), load_demo('rcan_teacher'), **METHODS['LSFD'])
    pairs = PatchPairs({k: v for k, v in sample_photos().items() if k != 'rocket'})
    logs = [log for log, _ in zip(fit(objective, pairs, Recipe.demo(precision='fp32', log_every=1)), range(3))]
    assert [log['sr'] for log in logs] == pytest.approx([53.3284797668457, 25.8339786529541, 27.066465377807617], rel=1e-4)
    assert [log['lsfd'] for log in logs] == pytest.approx([18.690473556518555, 8.464861869812012, 7.941019058227539], rel=1e-4)

# --- the declarations

@pytest.mark.parametrize('name', ['train', 'compare', 'evaluate', 'lam', 'explore'])
def test_no_variable_of_a_notebook_has_the_name_of_a_parameter(name):
    cells = [c for c in read_nb(ROOT/f'nbs/{name}.ipynb').cells if c.cell_type == 'code' and 'parameters' not in c.metadata.get('tags', [])]
    stored = {n.id for c in cells for top in ast.parse(c.source).body if not isinstance(top, (ast.FunctionDef, ast.ClassDef))
              for n in [x for t in (getattr(top, 'targets', None) or [getattr(top, 'target', None)]) if t for x in ast.walk(t)] if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    assert not stored & {*NOTEBOOKS[name].model_fields}

@pytest.mark.parametrize('name', NOTEBOOKS)
def test_the_parameters_of_a_notebook_are_assigned_once(name):
    code = '\n'.join(re.sub(r'(?m)^%.*', '', c.source) for c in read_nb(ROOT/f'nbs/{name}.ipynb').cells if c.cell_type == 'code')
    tops = [top for top in ast.parse(code).body if not isinstance(top, (ast.FunctionDef, ast.ClassDef))]
    assert sum(isinstance(n, ast.Name) and n.id == 'run' and isinstance(n.ctx, ast.Store) for top in tops for n in ast.walk(top)) == 1

TEXTS = ['', ' ', '\0', 'a\0b', '/dev/null', '/dev/full', '..', '/', '~', '~nobody-here/x', '"""', '\\', '\n', '\x1b[31m', '😀', 'é'*200, 'a'*5000, '/'.join(['a'*200]*30),
         ',', 'photos,photos', '{0}', 'None', '1e5', '\ud800', '$x^{$', '*', 'Set5', 'x.py:y', 'a=b', '=', ':']
VALUES = [None, True, 0, -1, 2**63, 10**400, 1.5, float('nan'), float('inf'), 1e308, [], {}, [1], [[1]], b'x', 3+4j, {1}, object(), print]

def begin(run):
    "What the notebooks do first, as far as it is quick."
    if not isinstance(run, Training): return
    recipe_of(run), run.words()
    if run.teacher: find_teacher(run)
    if run.data != ('photos',): sources(run)
    if run.benchmark: find_benchmarks(sources(run)[1], run.scale)
    if run.ledger: check_ledger(run.ledger_file)
    if run.out:
        with open_run(run.folder): pass

@pytest.mark.faults
@pytest.mark.parametrize('name', NOTEBOOKS)
def test_no_value_ends_in_a_raw_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cls, rng = NOTEBOOKS[name], random.Random(1)
    sets = [{k: v} for k in cls.model_fields for v in VALUES + TEXTS] + [{k: rng.choice(VALUES + TEXTS) for k in rng.sample([*cls.model_fields], min(2, len(cls.model_fields)))} for _ in range(50*TIMES)]
    refused = 0
    for given in sets:
        count('parameter sets')
        try: begin(cls(**given))
        except (ParameterError, RunError, DataError, ModelError, LedgerError) as e: refused += bool(str(e))
    assert refused > len(sets)/3

@pytest.mark.parametrize('value, meant', [(dict(benchmark=2024), ('2024',)), (dict(rate='1e-4'), 1e-4), (dict(resume='true'), True), (dict(scale='3'), 3),
                                          (dict(steps=8.), 8), (dict(data=['a', 'b']), ('a', 'b')), (dict(teacher=None), None), (dict(betas=[.5, .9]), (.5, .9))], ids=str)
def test_values_as_people_give_them(value, meant):
    assert getattr(Train(**value), *value) == meant

def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); run = Train(out='here')
    monkeypatch.chdir('/'); assert run.folder == tmp_path/'here'

@pytest.mark.parametrize('name, first, then', [
    ('lam', dict(), dict(window=20)), ('explore', dict(), dict(image='chelsea')), ('evaluate', dict(checkpoint=TEACHER), dict(inference='tiles')),
    ('train', dict(steps=2), dict(seed=1, steps=2)), ('compare', dict(steps=2, methods='Student,Logits'), dict(steps=2, methods='Student,LSFD'))])
def test_all_cells_run_again_in_one_kernel(name, first, then, tmp_path, small):
    "Someone edits a parameter and runs all cells again; and a start-up file of IPython has left a variable."
    space, usual = dict(DEBUG=False, rows=3), ({} if name == 'evaluate' else dict(profile='smoke')) | ({} if name in ('lam', 'explore') else dict(benchmark=small))
    for turn, given in enumerate((first, first | then)):
        space = notebook(f'{name}.ipynb', space, **usual | dict(out=str(tmp_path/str(turn))) | given)

# --- the command line

def notebook(name, space=None, **given):
    "Run a notebook's cells as papermill would, in this process: the given parameters follow the parameters cell."
    space = {'__name__': '__main__', 'display': lambda *a: None, 'In': []} | (space or {})
    for cell in read_nb(ROOT/'nbs'/name).cells:
        if cell.cell_type != 'code': continue
        run(cell.source, space)
        if 'parameters' in cell.metadata.get('tags', []): run(papermill_cell(given), space)
    return space

def papermill_cell(given): return translate_parameters('python3', 'python', given, 'Parameters')

def run(source, space):
    "One cell, which is then in IPython's `In`."
    space['In'].append(source)
    exec(compile(source, 'cell', 'exec'), space)

def photo(path, h=120, w=140, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), 'uint8')).save(path)
    return path

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A folder of two small photos to score on."
    folder = tmp_path_factory.mktemp('small')
    for name in 'chelsea', 'coffee': Image.fromarray(sample_photos('valid')[name][80:176, 100:228]).save(folder/f'{name}.png')
    return str(folder)

def folder(tmp, kind):
    "A folder of images with something wrong."
    d = tmp/kind; d.mkdir()
    if kind == 'flat': Image.new('RGB', (64, 64), 'white').save(d/'a.png')
    if kind == 'speck': photo(d/'dot.png', 12, 22)
    if kind == 'small': photo(d/'tiny.png', 60, 60)
    if kind == 'corrupt': photo(d/'good.png'); (d/'bad.png').write_bytes((d/'good.png').read_bytes()[:2000])
    if kind == 'text': (d/'notes.txt').write_text('no image')
    if kind == 'pairs': photo(d/'HR/a.png'); photo(d/'LR_bicubic/X2/ax2.png', 40, 40)
    if kind == 'orphans': photo(d/'HR/a.png'); photo(d/'HR/b.png'); photo(d/'LR_bicubic/X2/ax2.png', 60, 70)
    return str(d)

BAD = {
    'unknown name':    (dict(modle='edsr'), 'modle is not a parameter, did you mean model?'),
    'unknown model':   (dict(model='swin'), 'choose one of edsr, rcan, san'),
    'unknown method':  (dict(method='lsfd'), 'choose one of Student, FAKD, FitNet, LFD, LSFD'),
    'scale 5':         (dict(scale=5), 'scale=5: input should be less than or equal to 4'),
    'no boolean':      (dict(resume='maybe'), "resume='maybe': input should be a valid boolean"),
    'negative steps':  (dict(steps=-3), 'steps=-3: input should be greater than or equal to 1'),
    'no such device':  (dict(device='gpu'), "device='gpu': choose auto, cpu, cuda or mps"),
    'no teacher':      (dict(model='san', scale=3), 'needs a san teacher ×3'),
    'lost teacher':    (dict(teacher='nowhere.safetensors'), "teacher='nowhere.safetensors': no file at"),
    'other teacher':   (dict(scale=3, teacher=TEACHER), 'is ×2, the run ×3'),
    'missing folder':  (dict(data='nowhere'), 'nowhere'),
    'empty folder':    (dict(data='empty'), 'no images in'),
    'only text':       (dict(data='text'), '1 other files'),
    'small images':    (dict(data='small'), 'tiny (30x30)'),
    'corrupt image':   (dict(data='corrupt'), 'bad.png'),
    'unlike pairs':    (dict(data='pairs'), "pair 'a'"),
    'missing LR':      (dict(data='orphans'), "first 'b'"),
    'infinite rate':   (dict(rate=float('inf')), 'rate=inf: input should be a finite number'),
    'odd seed':        (dict(seed=2**70), 'input should be less than 4294967296'),
    'no processes':    (dict(processes=0), 'processes=0: input should be greater than or equal to 1'),
    'unused teacher':  (dict(method='Student', teacher=TEACHER), 'would not be used'),
    'no data':         (dict(data=','), 'data=[]'),
    'twin benchmarks': (dict(benchmark='photos,photos'), 'names one twice'),
    'tiny benchmark':  (dict(benchmark='speck'), 'too small to be scored'),
    'lost ledger':     (dict(ledger='/proc/nowhere/l.jsonl'), 'cannot write'),
    'no benchmark':    (dict(benchmark='photos,Set6'), 'Set6'),
}

@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_refused_before_any_work(case, tmp_path):
    given, message = BAD[case]
    if given.get('data') in ('empty', 'text', 'small', 'corrupt', 'pairs', 'orphans'): given = given | dict(data=folder(tmp_path, given['data']))
    if given.get('benchmark') == 'speck': given = dict(benchmark=folder(tmp_path, 'speck'))
    out = tmp_path/'run'
    with pytest.raises((ValueError, RuntimeError)) as e: notebook('train.ipynb', **dict(profile='smoke', out=str(out), ledger=str(tmp_path/'l.jsonl')) | given)
    assert message in str(e.value)
    assert not (out/'log.jsonl').exists() and not (out/'run.pt').exists() and not (tmp_path/'l.jsonl').exists()

def test_unwritable_out(tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(RuntimeError, match='cannot write'): notebook('train.ipynb', profile='smoke', out=str(tmp_path/'file'/'run'), ledger=str(tmp_path/'l.jsonl'))

def test_evaluate_refuses_a_damaged_checkpoint(tmp_path):
    file = save_model(tmp_path/'net.safetensors', create_model('edsr_student', n_blocks=1))
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ValueError, match='damaged'): notebook('evaluate.ipynb', checkpoint=str(file))

BAD_EVALUATE = {
    'unknown name':      (dict(inferense='tiles'), 'inferense is not a parameter, did you mean inference?'),
    'unknown inference': (dict(inference='tile'), "inference='tile': choose one of whole, 4-crop, tiles, auto"),
    'lost checkpoint':   (dict(checkpoint='nowhere.safetensors'), "checkpoint='nowhere.safetensors': no file at"),
    'out is a file':     (dict(out=str(ROOT/'README.md')), 'is no folder that can be written to: choose another'),
    'out in a file':     (dict(out=str(ROOT/'README.md'/'scores')), 'is no folder that can be written to: choose another'),
    'empty benchmark':   (dict(benchmark=','), 'benchmark=[]'),
    'no benchmark':      (dict(benchmark='photos,Set6'), 'Set6'),
    'flat pictures':     (dict(benchmark='flat'), 'flat: no image holds more than a single grey'),
    'no such device':    (dict(device='gpu'), "device='gpu': choose auto, cpu, cuda or mps"),
}

@pytest.mark.parametrize('case', BAD_EVALUATE)
def test_evaluate_refuses_bad_input(case, tmp_path, monkeypatch):
    given, message = BAD_EVALUATE[case]
    if given.get('benchmark') == 'flat': given = dict(benchmark=folder(tmp_path, 'flat'))
    def no_work(*args): raise AssertionError('an image was enlarged')
    monkeypatch.setattr('lsfd.evaluate.enlarge', no_work)
    with pytest.raises(ValueError) as e: notebook('evaluate.ipynb', **dict(checkpoint=TEACHER) | given)
    assert message in str(e.value)

def test_evaluate_names_a_damaged_image(tmp_path):
    with pytest.raises(ValueError, match='bad.png'): notebook('evaluate.ipynb', checkpoint=TEACHER, benchmark=folder(tmp_path, 'corrupt'))

@pytest.mark.parametrize('inference, label', [('auto', 'whole'), ('tiles', r'tiles 256\+32 \(approximate\)')])
def test_evaluate_says_how_it_was_done(inference, label, tmp_path):
    photo(tmp_path/'set'/'a.png')
    space = notebook('evaluate.ipynb', checkpoint=TEACHER, benchmark=str(tmp_path/'set'), inference=inference, out=str(tmp_path/'out'))
    assert re.search(label, space['scores'][0].protocol.label()) and re.search(label, (tmp_path/'out'/'scores.csv').read_text())

@pytest.mark.parametrize('given', [dict(model='edsr'), dict(model='san'), dict(method='Student', seed=1), dict(role='teacher', scale=3), dict(method='FAKD+FFT'), dict(method='DUKD'), dict(method='ECO'), dict(method='Logits+SFD'), dict(method='Student', init='teacher')], ids=str)
def test_other_runs_end_well(given, tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path); given = dict(profile='smoke', steps=2, benchmark=small, out='a run', ledger=str(tmp_path/'l.jsonl')) | given
    space = notebook('train.ipynb', **given)
    assert space['file'].is_file() and len((tmp_path/'l.jsonl').read_text().splitlines()) == 1
    before = (Path('a run')/'log.jsonl').read_text()
    notebook('train.ipynb', **given)      # a finished run: nothing to do
    assert (Path('a run')/'log.jsonl').read_text() == before and len((tmp_path/'l.jsonl').read_text().splitlines()) == 1

def own_files(tmp):
    (tmp/'my_net.py').write_text('from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self, scale=2): super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3*scale**2, 3, padding=1), nn.PixelShuffle(scale))')
    (tmp/'my_loss.py').write_text('def near(o): return sum((t - r).abs().mean() for t, r in zip(o.f_t, o.f_r))')

def test_own_network_own_loss_own_photos_another_teacher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); own_files(tmp_path)
    for i in range(3): photo(tmp_path/f'mine/{i}.png', 128, 128, seed=i)
    space = notebook('train.ipynb', profile='smoke', steps=2, student='my_net.py:Net', method='my_loss.py:near', data='mine', taps='0', teacher_taps='body.4',
                     model='edsr', teacher=TEACHER, out='a run')
    assert [t.name for t in space['tests']] == ['held out'] and space['name'] == '2' and len(space['pairs'].names) == 2
    row, = [json.loads(line) for line in (tmp_path/'a run/ledger.jsonl').read_text().splitlines()]
    assert (row['model'], row['method'], row['benchmark'], row['steps']) == ('Net', 'near', 'held out', 2)

@pytest.mark.parametrize('name', ['lam', 'explore', 'evaluate'])
def test_a_checkpoint_of_an_own_network(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); own_files(tmp_path); torch.manual_seed(0)
    torch.save(own_network('my_net.py:Net', 2).state_dict(), 'mine.pt')
    given = dict(checkpoint='mine.pt') if name == 'evaluate' else dict(checkpoints=f'mine=mine.pt,teacher={TEACHER}', profile='smoke')
    space = notebook(f'{name}.ipynb', network='my_net.py:Net', out='out', **given)
    assert name == 'evaluate' and space['net'].scale == 2 or {k: n.scale for k, n in space['networks'].items()} == dict(mine=2, teacher=2)
    with pytest.raises(ModelError, match='mine.pt neither EDSR'): notebook(f'{name}.ipynb', out='out', **given)

def test_a_run_leaves_the_committed_ledger_alone(tmp_path, small):
    before = (ROOT/'data/ledger.jsonl').read_bytes()
    notebook('train.ipynb', profile='smoke', steps=2, benchmark=small, out=str(tmp_path/'run'))
    assert (ROOT/'data/ledger.jsonl').read_bytes() == before and (tmp_path/'run/ledger.jsonl').exists()

def test_papermill_reports_the_error(tmp_path):
    r = subprocess.run([sys.executable, '-m', 'papermill', 'nbs/train.ipynb', tmp_path/'out.ipynb', '-k', 'python3', '-p', 'modle', 'rcan'], cwd=ROOT,
        stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert r.returncode and 'modle is not a parameter' in r.stderr

@pytest.mark.faults
def test_a_fresh_run_in_two_processes_is_scored(tmp_path, small):
    given = dict(profile='smoke', benchmark=small, precision='fp32', device='cpu', processes=2, resume=False, out=str(tmp_path/'run'), ledger=str(tmp_path/'l.jsonl'))
    assert notebook('train.ipynb', **given)['file'].is_file()
    assert count('two processes, resume=False: scored', len((tmp_path/'l.jsonl').read_text().splitlines()) == 1)
    with pytest.raises(RuntimeError, match='already holds a run'): notebook('train.ipynb', **given)

def of(mark):
    "Processes that were started with MARK=mark in their environment."
    def has(p):
        try: return f'MARK={mark}'.encode() in (p/'environ').read_bytes()
        except OSError: return False
    return [int(p.name) for p in Path('/proc').iterdir() if p.name.isdigit() and has(p)]

@pytest.mark.faults
@pytest.mark.skipif(not Path('/proc/self/environ').exists(), reason='needs /proc to find the kernel')
@pytest.mark.parametrize('sent', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT][:1 if TIMES == 1 else 3])
def test_papermill_is_killed_and_run_again(sent, tmp_path, small):
    given = dict(profile='smoke', benchmark=small, precision='fp32', device='cpu', steps=24, method='Student')
    cut, whole = (given | dict(out=str(tmp_path/name)) for name in ('cut', 'whole'))
    words = [w for k, v in cut.items() for w in ('-p', k, str(v))]
    with subprocess.Popen([sys.executable, '-m', 'papermill', 'nbs/train.ipynb', tmp_path/'out.ipynb', '-k', 'python3', *words], cwd=ROOT, env=os.environ | dict(MARK=str(tmp_path), OMP_NUM_THREADS='1'),
                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        start = time.time()
        while not (tmp_path/'cut/run.pt').exists(): time.sleep(.01); assert job.poll() is None and time.time() - start < 200
        job.send_signal(sent); job.wait(60)
    while (left := of(tmp_path)) and time.time() - start < 260: time.sleep(.1)
    at = torch.load(tmp_path/'cut/run.pt')['at']['step']
    notebook('train.ipynb', **cut); list(fit(*build(Train(**whole)), tmp_path/'whole'))
    a, b = (torch.load(tmp_path/name/'run.pt') for name in ('cut', 'whole'))
    equal = all(torch.equal(v, b['student'][k]) for k, v in a['student'].items()) and rows(tmp_path/'cut') == rows(tmp_path/'whole')
    one = len((tmp_path/'cut/ledger.jsonl').read_text().splitlines()) == 1
    assert count('papermill killed, notebook run again', 0 < at < 24 and equal and one and not left), (at, equal, one, left)
