"""tools/gpu_check.py, which is run by hand where there is a GPU: here at smoke size on the processor, so that it runs when it is needed."""
import importlib.util, json, os, subprocess, sys
from pathlib import Path

import pandas as pd, pytest

TOOL = Path(__file__).parents[1]/'tools'/'gpu_check.py'

@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('gpu_check', TOOL); module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module); return module

def test_every_job_runs(tool, tmp_path):
    file = tmp_path/'rows.jsonl'
    r = subprocess.run([sys.executable, TOOL, '--smoke', '--out', file], env=os.environ | dict(CUDA_VISIBLE_DEVICES=''), capture_output=True, text=True, timeout=600)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert r.returncode == 0 and {row['case'] for row in rows if row['what'] == 'engine'} == {*tool.GOALS}, r.stdout[-3000:] + r.stderr[-3000:]
    compared = sum(row['what'] == 'equality' for row in rows)
    assert all(row['ok'] for row in rows) and f'{compared} of {compared} comparisons agree' in r.stdout

def test_a_failure_costs_its_own_row(tool, capsys):
    rows = []
    def keep(**row): rows.append(row)
    def fails(): raise RuntimeError('out of memory')
    for engine, f in (('compiled', fails), ('graph', lambda: dict(ran='graph', seconds=.02, ok=True))):
        tool.attempt(keep, f, what='engine', case='edsr paper LSFD', engine=engine)
    assert [row['ok'] for row in rows] == [False, True] and rows[0]['why'] == 'RuntimeError: out of memory'
    tool.table(pd.DataFrame(rows))
    said = capsys.readouterr().out
    assert 'WRONG' in said and 'out of memory' in said and '20.0' in said
