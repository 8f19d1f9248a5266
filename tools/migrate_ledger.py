"""Once: older rows of the ledger in the present schema. What a note, or the checkpoint that a row names, says becomes a field; no figure changes.
LSFD_DATA=... python tools/migrate_ledger.py [FILE with more rows ...]"""
import json, re, sys
from pathlib import Path
from lsfd.data import Benchmark, find_pairs
from lsfd.ledger import check_row

ROOT = Path(__file__).resolve().parents[1]
LEDGER, KNOWN = ROOT/'data/ledger.jsonl', {}

def lr(row):
    "Whether the row's LR images were given or made, if the very images are here."
    key = name, scale, mark = row['benchmark'], row['scale'], row['benchmark_fingerprint']
    if key not in KNOWN:
        here = Benchmark(name, scale=scale)
        assert here.fingerprint == mark, f'{name} is another set of images here'
        KNOWN[key] = 'made' if name == 'photos' or find_pairs(name, scale)[0][2] is None else 'given'
    return KNOWN[key]

TEACHER = dict(rate=6e-4, batch=16, precision='bf16', recipe='100 steps of linear warm-up, rate halved after .5, .7, .8, .9 and .95')   # the cards of data/checkpoints

def migrated(row):
    row, note = dict(row), row.get('note', '')
    for pattern, key, kind in ((r'in a group of (\d+)', 'group', int), (r'rate ([\d.]+)', 'rate', float), (r'(bf16|fp32)', 'precision', str)):
        if found := re.search(rf'(^|, ){pattern}', note): row[key] = kind(found[2]); note = note.replace(found[0], '')
    if row['role'] == 'teacher': row |= TEACHER
    if row['checkpoint'] == 'student.safetensors' and row['wall_s'] == 442.62: row |= dict(rate=2e-3, precision='bf16')   # rcan_student_demo_x2
    return check_row(row | dict(note=note.strip(', '), lr=lr(row)))

files = [LEDGER, *map(Path, sys.argv[1:])]
rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
new = [migrated(row) for row in rows]
assert all(old[k] == row[k] for old, row in zip(rows, new) for k in ('psnr', 'ssim', 'time', 'wall_s', 'method', 'benchmark_fingerprint'))
LEDGER.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in new))
print(len(new), 'rows')
