"""Write data/checkpoints/README.md, the model cards, from what the checkpoints say of themselves. With --check: only compare."""
import json, sys
from sync_settings import ROOT, publish
sys.path.insert(0, str(ROOT))
from lsfd.models import load_model

def card(path):
    net = load_model(path)
    facts = {'network': json.dumps(net.spec), 'parameters': f'{sum(p.numel() for p in net.parameters()):,}', 'file': f'{path.stat().st_size/1e6:.2f} MB, fp16'} | net.about
    line = lambda k, v: f'| {k} | ' + ('<br>'.join(f'{a}: {b}' for a, b in v.items()) if isinstance(v, dict) else str(v)) + ' |'
    return f'## {path.name}\n\n| | |\n|---|---|\n' + '\n'.join(line(k, v) for k, v in facts.items()) + '\n'

HEAD = '''<!-- Written by tools/cards.py from the files beside it -->
# Model cards

Small networks for the demonstration run, trained by this project. They teach and illustrate; they are no substitute for the paper's networks.
Scores are PSNR in dB; each card names the protocol and the budget.
'''

if __name__ == '__main__':
    cards = [card(p) for p in sorted((ROOT/'data/checkpoints').glob('*.safetensors'))]
    publish({'data/checkpoints/README.md': '\n'.join([HEAD, *cards])}, 'python tools/cards.py')
