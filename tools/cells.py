"""Write the parameters cell of each run notebook from its declaration; order and empty lines stay. With --check: only compare."""
import json, sys
from sync_settings import ROOT, publish
sys.path.insert(0, str(ROOT))
from lsfd.runs import NOTEBOOKS

def cell(old, declared):
    "The declared lines, in the order of the old ones, those that are new last."
    lines = {line.split(':')[0]: line for line in declared.cell().splitlines()}
    names = [line.split(':')[0] for line in old.splitlines()]
    return '\n'.join([lines.pop(name, '') for name in names if name in lines or not name] + list(lines.values()))

def notebook(path, declared):
    nb = json.loads(path.read_text(encoding='utf-8'))
    found = next(c for c in nb['cells'] if 'parameters' in c['metadata'].get('tags', []))
    found['source'] = cell(''.join(found['source']), declared).splitlines(keepends=True)
    return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n'

if __name__ == '__main__':
    publish({f'nbs/{name}.ipynb': notebook(ROOT/f'nbs/{name}.ipynb', d) for name, d in NOTEBOOKS.items()}, 'python tools/cells.py')
