"""The pages that are made from recorded results: nothing recorded, half of a study, two budgets, seeds that disagree."""
import json
from pathlib import Path

import pandas as pd, pytest
from fastcore.nbio import read_nb
from nbdev.config import get_config

from lsfd.ablations import STUDIES
from lsfd.ledger import append
from lsfd.metrics import Protocol

ROOT = get_config(Path(__file__).parent).config_path
ROW = dict(model='rcan', role='student', scale=2, method='LSFD', teacher='abcdef012345', profile='demo', steps=200, batch=16, rate=2e-3, precision='bf16',
           seed=0, data='photos', data_fingerprint='d', benchmark='Set5', benchmark_fingerprint='b', psnr=33., ssim=.9, protocol=Protocol(scale=2).label(),
           hardware='none', wall_s=1., version='0', time='now')

def page(name, tmp, rows, **given):
    "What a notebook under paper/ makes of these rows: its text, its table, its variables."
    for row in rows: append(ROW | row, tmp/'ledger.jsonl')
    space = {'__name__': '__main__', 'display': lambda *a: None}
    for cell in read_nb(ROOT/f'nbs/paper/{name}.ipynb').cells:
        if cell.cell_type != 'code': continue
        exec(compile(cell.source, name, 'exec'), space)
        if 'parameters' in cell.metadata.get('tags', []): space.update(ledger=str(tmp/'ledger.jsonl'), out=str(tmp/'out'), **given)
    assert (tmp/'out'/f'{name}.png').stat().st_size > 1000
    return (tmp/'out'/f'{name}.md').read_text(), pd.read_csv(tmp/'out'/f'{name}.csv'), space

def study(name, gains, **more): return [dict(method=f'{name}: {v}', psnr=33 + g) | more for v, g in gains.items()]

def test_nothing_recorded(tmp_path):
    text, table, _ = page('ablations', tmp_path, [])
    assert text.count('not measured: `papermill nbs/compare.ipynb') == len(STUDIES) and table.empty
    text, table, _ = page('tables', tmp_path, [])
    assert len(table) == 240 and '23.547 (← 33.547?)' in text and '33.276 (← 32.276?)' in text

def test_one_seed_claims_nothing(tmp_path):
    text, table, _ = page('ablations', tmp_path, study('map', {'literal': 0, 'detached': .02, 'no map (LFD)': -.01}))
    assert 'detached +0.020 dB' in text and 'one seed: luck is not excluded); that is no reason to change it' in text
    assert '200 steps, 16 patches a step, rate 0.002, bf16, trained on photos, teacher abcdef012345, seed 0, tested on Set5' in text
    assert table.set_index('variant').gain.round(3).to_dict() == {'no map (LFD)': -.01, 'literal': 0, 'detached': .02}

def test_seeds_agree_or_do_not(tmp_path):
    rows = [r for s, (a, b) in enumerate([(.02, .01), (.03, -.01)]) for r in study('map', {'literal': 0, 'detached': a, 'no map (LFD)': b}, seed=s)]
    rows += study('map', {'literal': 5.}, seed=2)                                     # nothing to compare with at this seed
    text, *_ = page('ablations', tmp_path, rows)
    assert 'detached +0.025 dB (+0.020 to +0.030, in all seeds)' in text and 'no map (LFD) +0.000 dB (-0.010 to +0.010, the seeds disagree)' in text
    assert 'detached is 0.025 dB ahead of the default (2 seeds), in every seed.' in text

@pytest.mark.parametrize('other', [dict(steps=400), dict(batch=8), dict(precision='fp32'), dict(data_fingerprint='other'), dict(teacher='other'), dict(benchmark='Set14', benchmark_fingerprint='c')])
def test_budgets_are_not_mixed(other, tmp_path):
    rows = study('taps', {'tap 1': .01, 'tap 2': .02, 'all three': 0}) + study('taps', {'tap 3': 9.}, **other)
    text, table, _ = page('ablations', tmp_path, rows)
    assert sorted(table.variant) == ['all three', 'tap 1', 'tap 2'] and 'Not measured: tap 3 (`papermill' in text

def test_a_baseline_without_teacher_belongs_to_its_study(tmp_path):
    _, table, _ = page('ablations', tmp_path, study('sr', {'HR alone': -.1}, teacher='') + study('sr', {'HR and T, LSFD': 0}))
    assert sorted(table.variant) == ['HR alone', 'HR and T, LSFD']

def test_what_was_not_noted_is_said_and_a_special_recipe_too(tmp_path):
    text, *_ = page('ablations', tmp_path, study('map', {'literal': 0, 'detached': .02}, rate=None, batch=None, recipe='100 steps of warm-up'))
    assert 'batch not noted, rate not noted, bf16, 100 steps of warm-up, trained on' in text

def test_without_the_default_nothing_is_compared(tmp_path):
    text, table, _ = page('ablations', tmp_path, study('alpha2', {'α2 = 1': .1, 'α2 = 100': .2}))
    assert table.empty and '-p study alpha2' in text

def test_tables_keep_budgets_apart(tmp_path):
    rows = [dict(method=m, benchmark=b, benchmark_fingerprint=b, psnr=x, steps=2400, teacher='' if m == 'Student' else ROW['teacher'])
            for b in ('Set5', 'Urban100') for m, x in dict(Student=33., LSFD=33.1, FAKD=32.9, Logits=33.).items()]
    rows += [dict(steps=9999, psnr=39.), dict(steps=2400, benchmark='photos'), dict(steps=2400, protocol='RGB'), dict(steps=400, psnr=40.)]
    text, table, space = page('tables', tmp_path, rows)
    assert 'over Student on Set5, Urban100, dB: FAKD -0.100, LSFD +0.100, Logits +0.000; one seed, so luck is not excluded' in text
    assert len(space['groups']) == 2 and '| LSFD | **33.100** | **38.189** | not measured |' in text and '40.000' not in text
    assert r'\textbf{33.100}' in (tmp_path/'out'/'tables.tex').read_text()
    ours = table[table.ours.notna()]
    assert set(ours.steps) == {2400, 9999} and set(ours.benchmark) == {'Set5', 'Urban100', 'photos'}
    assert len(table[table.ours.isna()]) == 240 - 8                                     # FAKD counts twice: with and without the star

def test_other_scales_networks_and_unequal_seeds(tmp_path):
    "Rows at ×3 and ×4, of EDSR, of teachers and of one's own network; a method with one seed beside others with three; two budgets."
    def rows(scale, seeds, **more):
        return [dict(scale=scale, protocol=Protocol(scale=scale).label(), method=m, seed=s, psnr=33 + s/10 + g, teacher='' if m == 'Student' else ROW['teacher'], benchmark_fingerprint=b, benchmark=b) | more
                for b in ('Set5', 'B100') for m, g in {'Student': 0, 'LSFD': .1, 'FAKD': .3, 'AT': .2}.items() for s in (seeds if m != 'FAKD' else [0])]
    made = rows(3, (0, 1, 2), steps=2400) + rows(3, (0,), steps=3000) + rows(4, (0,), steps=2400, model='edsr') + rows(2, (0,), steps=1600)
    made += [dict(scale=4, protocol=Protocol(scale=4).label(), role='teacher', method='Teacher', teacher='', steps=6000, model='edsr', psnr=30.)]
    made += [dict(steps=9000, model='Net', psnr=50.)]
    text, table, space = page('tables', tmp_path, made)
    assert len(space['groups']) == 4 and '13 of the 228 cells have a figure of ours, 215 have none.' in text
    assert '8 rows of fewer than 2,000 steps (1,600) are in the ledger and not shown' in text and '50.000' not in text
    by_steps = [g for g in space['groups'] if g.scale.iloc[0] == 3]
    assert sorted(g.steps.iloc[0] for g in by_steps) == [2400, 3000]
    three = space['beside'](next(g for g in by_steps if g.steps.iloc[0] == 2400))['Set5']['ours']
    assert three['LSFD'] == '<u>33.200 ± 0.100</u>' and three['AT'] == '**33.300 ± 0.100**' and three['FAKD'] == '33.300 (1 seed)' and three['LFD'] == 'not measured'
    ours = table[table.ours.notna()]
    assert ours.groupby(['scale', 'steps']).ours.count().to_dict() == {(3, 2400): 10, (3, 3000): 10, (4, 2400): 8, (4, 6000): 1}     # FAKD has two lines in Table 2
    assert 'AT +0.200 (all seeds), FAKD +0.300 (one seed), LSFD +0.100 (all seeds); 3 seeds' in text
    assert '| Student | none | 2 of 4 | none | none | none | 2 of 4 | none | none | none |' in text
    assert {'RCAN ×3', 'EDSR ×4'} == {g.model.iloc[0].upper() + f' ×{g.scale.iloc[0]}' for g in space['groups']}
    space = {'__name__': '__main__', 'display': lambda *a: None}
    for cell in read_nb(ROOT/'nbs/paper/claims.ipynb').cells:
        if cell.cell_type != 'code': continue
        exec(compile(cell.source, 'claims', 'exec'), space)
        if 'parameters' in cell.metadata.get('tags', []): space.update(ledger=str(tmp_path/'ledger.jsonl'), out=str(tmp_path/'out'))
    claims = pd.DataFrame(space['CLAIMS']).set_index('claim')
    assert claims.verdict['LSFD is ahead of FAKD (RCAN, ×2).'] == 'cannot be said (no seeds)' and claims.verdict['LSFD helps SAN (×2).'] == 'cannot be said (no seeds)'

def test_toy_rows_are_shown_as_what_they_are(tmp_path):
    toy = dict(profile='smoke', steps=6, benchmark='photos')
    rows = [toy | dict(method='Student', teacher='', psnr=25.), toy | dict(psnr=25.5), toy | dict(method='Teacher', role='teacher', teacher='', psnr=26., model='edsr')]
    images = [dict(image=i, method=m, psnr=p + i, **{k: ROW[k] for k in 'model role scale batch rate precision teacher data data_fingerprint protocol seed'.split()}, **toy)
              for m, p in dict(Student=25, LSFD=25.5).items() for i in range(3)]
    images.append(images[0] | dict(method='FAKD'))                                      # of one image only: cannot be compared
    (tmp_path/'rcan_x2_seed0').mkdir()
    pd.DataFrame(images).assign(recipe='').to_csv(tmp_path/'rcan_x2_seed0/scores.csv', index=False)
    text, table, _ = page('tables', tmp_path, rows, least_steps=0)
    assert 'RCAN student ×2, smoke size' in text and ': 6 steps, ' in text and 'over Student on photos, dB: LSFD +0.500; one seed' in text
    assert '| LSFD | photos | +0.5000 | +0.5000 | +0.5000 | 3 | 1 |' in text and 'photos ours' in text and 'photos paper' not in text
    assert set(table[table.ours.notna()].benchmark) == {'photos'} and len(table[table.ours.isna()]) == 240
    text, table, _ = page('tables', tmp_path, [])
    assert len(table) == 240 and 'photos' not in text                                   # not as results

def test_what_is_recorded_here_can_be_shown(tmp_path):
    rows = [json.loads(line) for line in (ROOT/'data/ledger.jsonl').read_text().splitlines()]
    for name in ('ablations', 'tables'): page(name, tmp_path, rows)

def test_the_front_page_has_the_recorded_step_of_a_gpu():
    rows = pd.read_json(ROOT/'data'/'benchmarks.jsonl', lines=True)
    last = rows[(rows.what == 'engine') & (rows.device != 'CPU') & (rows.engine == 'compiled')].groupby('case').seconds.last()
    text = (ROOT/'README.md').read_text(encoding='utf-8').split('**What a step costs**')[1].split('\n')[0]
    group = 'rcan paper Student+FAKD+FitNet+LFD+LSFD'
    for case in ('rcan paper LSFD', 'rcan paper Teacher', group): assert f'{1e3*last[case]:.1f} ms' in text
    for case in ('rcan paper Teacher', group): assert f'{300_000*last[case]/3600:.1f}' in text
