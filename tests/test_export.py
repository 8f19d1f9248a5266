"""Exported files on sizes and batches they were not traced with, and a round trip through a hub that is a server of this test's own."""
import base64, json, os, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest, torch

from lsfd.export import difference, export, exported
from lsfd.models import create_model, load_demo, load_model

pytest.importorskip('onnxruntime', reason='the extra `export` is not installed')
ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)
TINY = dict(edsr=dict(n_blocks=1, n_feats=8), rcan=dict(n_groups=1, n_blocks=1, n_feats=8, reduction=2), san=dict(n_groups=1, n_blocks=1, n_feats=8, reduction=2))

@pytest.mark.parametrize('arch, scale', [('edsr', 3), ('rcan', 4), ('san', 2)])
def test_onnx_takes_any_batch_height_and_width(arch, scale, tmp_path):
    torch.manual_seed(0)
    net = create_model(f'{arch}_student', scale, **TINY[arch]).eval()
    export(net, tmp_path/'net.onnx')
    run = exported(tmp_path/'net.onnx')
    for shape in (1, 3, 21, 34), (3, 3, 16, 16), (4, 3, 37, 20):
        lr = torch.rand(shape)*255
        assert run(lr).shape == (shape[0], 3, scale*shape[2], scale*shape[3])
        assert difference(net, run, lr)['max_difference'] < .01

def test_half_precision_is_half_the_size_and_close(tmp_path):
    net = load_demo('rcan_student').float()
    for p in net.parameters(): p.data *= 1 + 1e-3*torch.rand_like(p)                # off the fp16 grid
    found = export(net, tmp_path/'half.safetensors', 'fp16')
    assert 0 < found['max_difference'] < .5 and found['psnr'] > 60
    half = sum(2*v.numel() for v in net.state_dict().values())
    assert half <= (tmp_path/'half.safetensors').stat().st_size < 1.2*half

def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    net, other = (create_model('edsr_student', **TINY['edsr']).eval() for _ in range(2))
    import lsfd.export
    monkeypatch.setitem(lsfd.export.FORMATS, 'torch', ('.pt2', lambda model, path: lsfd.export.write_torch(other, path)))
    with pytest.raises(ValueError, match='would differ'): export(net, tmp_path/'net.pt2', 'torch')
    assert not list(tmp_path.iterdir())

class Hub(BaseHTTPRequestHandler):
    "As much of the hub's interface as one commit and one download need."
    files, protocol_version = {}, 'HTTP/1.1'
    def log_message(self, *a): pass
    def answer(self, body, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(200)
        for k, v in dict(headers, Content_Length=len(body)).items(): self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)
    def do_POST(self):
        sent = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        if 'preupload' in self.path:
            return self.answer(dict(files=[dict(path=f['path'], uploadMode='regular', shouldIgnore=False) for f in json.loads(sent)['files']]))
        if '/commit/' in self.path:
            lines = [json.loads(line) for line in sent.splitlines()]
            self.files.update({l['value']['path']: base64.b64decode(l['value']['content']) for l in lines if l['key'] == 'file'})
            return self.answer(dict(success=True, commitOid='1'*40, commitUrl=f'http://{self.headers["Host"]}/you/net/commit/' + '1'*40))
        self.answer(dict(url=f'http://{self.headers["Host"]}/you/net', warnings=[], errors=[]))
    def do_GET(self):
        name = self.path.split('?')[0].rsplit('/', 1)[-1]
        if '/resolve/' in self.path: return self.answer(self.files[name], ETag='"a"', X_Repo_Commit='1'*40)
        self.answer(dict(id='you/net', modelId='you/net', sha='1'*40, siblings=[], tags=[]))
    do_HEAD = do_GET

JOURNEY = '''
import sys
from lsfd.export import pull, push
from lsfd.models import save_model
print(push(sys.argv[1], 'you/net', token='hf_none'))
save_model(sys.argv[2], pull('you/net', token='hf_none'))
'''

def test_to_the_hub_and_back(tmp_path):
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = os.environ | dict(HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', HF_HOME=str(tmp_path/'hf'), HF_HUB_DISABLE_XET='1', PYTHONPATH=str(ROOT))
    sent, back = ROOT/'data/checkpoints/rcan_student_demo_x2.safetensors', tmp_path/'back.safetensors'
    r = subprocess.run([sys.executable, '-c', JOURNEY, sent, back], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    server.shutdown()
    assert r.returncode == 0, r.stderr[-3000:]
    assert r.stdout.strip().endswith('1'*40)
    a, b = load_model(sent), load_model(back)
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    card = Hub.files['README.md'].decode()
    assert card.startswith('---\nlicense: apache-2.0') and 'Enlarges photographs by 2.' in card and "pull('you/net')" in card
    assert 'https://github.com/' in card and '| parameters |' in card
