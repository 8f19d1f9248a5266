"""Write data/checkpoints/README.md, the model cards, from what the checkpoints say of themselves. With --check: only compare."""
import sys
from sync_settings import ROOT, publish
sys.path.insert(0, str(ROOT))
from lsfd.export import facts
from lsfd.models import load_model
from lsfd.runs import Train

STEPS = dict(edsr=6400, rcan=5400, san=2300)   # of the teachers, which were trained before `Recipe` knew a warm-up

def command(model):
    "What trains a teacher like it: the same recipe, up to the rate of the first hundred steps."
    run = Train(model=model, role='teacher', data='train/BSD400,train/CID22', steps=STEPS[model], rate=6e-4, warmup=100, precision='bf16')
    return f'`papermill nbs/train.ipynb runs/{model}_teacher.ipynb {" ".join(run.words())}`'

HOME = ROOT/'data/checkpoints'

def card(path):
    net = load_model(path)
    made = dict(command=command(net.spec['arch'])) if 'teacher' in path.name and 'command' not in net.about else {}
    return f'## {path.relative_to(HOME)}\n\n{facts(net, **made, file=f"{path.stat().st_size/1e6:.2f} MB, fp16")}\n'

HEAD = '''<!-- Written by tools/cards.py from the files beside it -->
# Model cards

Small networks for the demonstration run, trained by this project. They teach and illustrate; they are no substitute for the paper's networks.
Scores are PSNR in dB; each card names the protocol and the budget.
'''

if __name__ == '__main__':
    cards = [card(p) for p in sorted(HOME.rglob('*.safetensors'))]
    publish({'data/checkpoints/README.md': '\n'.join([HEAD, *cards])}, 'python tools/cards.py')
