"""Write data/checkpoints/README.md, the model cards, from what the checkpoints say of themselves. With --check: only compare."""
import sys
from sync_settings import ROOT, publish
sys.path.insert(0, str(ROOT))
from lsfd.export import facts
from lsfd.models import load_model

def card(path):
    net = load_model(path)
    return f'## {path.name}\n\n{facts(net, file=f"{path.stat().st_size/1e6:.2f} MB, fp16")}\n'

HEAD = '''<!-- Written by tools/cards.py from the files beside it -->
# Model cards

Small networks for the demonstration run, trained by this project. They teach and illustrate; they are no substitute for the paper's networks.
Scores are PSNR in dB; each card names the protocol and the budget.
'''

if __name__ == '__main__':
    cards = [card(p) for p in sorted((ROOT/'data/checkpoints').glob('*.safetensors'))]
    publish({'data/checkpoints/README.md': '\n'.join([HEAD, *cards])}, 'python tools/cards.py')
