"""Write README.md, and its pictures in figures/readme/, from nbs/index.ipynb as it is stored: nothing runs. With --check: only compare."""
import base64, json, posixpath, re
from sync_settings import ROOT, publish

HEAD = '<!-- Written by tools/readme.py from nbs/index.ipynb: edit the notebook -->'
FENCED = re.compile(r'(```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$)', re.S)        # code and formulas
LINK = re.compile(r'(\]\(|\b(?:src|href)=")(?![a-z]+:|[#/])([^)"\s]+)')

def relink(text):
    "The links of a markdown cell of nbs/ as seen from the root; code and formulas keep their brackets."
    parts = FENCED.split(text)
    parts[::2] = [LINK.sub(lambda m: m[1] + posixpath.normpath(f'nbs/{m[2]}'), part) for part in parts[::2]]
    return ''.join(parts)

def render(cells):
    "The page's text, and its pictures as {path: bytes}."
    page, pictures = [HEAD], {}
    def fence(text, language=''): page.append(f'```{language}\n{text.strip(chr(10)).rstrip()}\n```')
    for cell in cells:
        source = ''.join(cell['source']).strip()
        if cell['cell_type'] == 'markdown': page.append(relink(source))
        if cell['cell_type'] != 'code' or re.search(r'^#\| *(hide|default_exp)\b', source, re.M): continue
        if not re.search(r'^#\| *echo: false', source, re.M): fence(re.sub(r'^#\|.*\n?', '', source, flags=re.M), 'python')
        for output in cell['outputs']:
            shown = {kind: ''.join(text) for kind, text in output.get('data', {}).items()}
            if output.get('name') == 'stdout': fence(''.join(output['text']))
            elif 'image/png' in shown:
                path = f'figures/readme/{len(pictures) + 1}.png'
                pictures[path] = base64.b64decode(shown['image/png'])
                alt = re.search(r'^#\| *fig-alt: *(.*)', source, re.M)
                page.append(f'![{alt[1] if alt else ""}]({path})')
            elif 'text/markdown' in shown: page.append(relink(shown['text/markdown'].strip()))
            elif 'text/plain' in shown: fence(shown['text/plain'])
    return '\n\n'.join(page) + '\n', pictures

if __name__ == '__main__':
    text, pictures = render(json.loads((ROOT/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells'])
    stale = {str(path.relative_to(ROOT)): None for path in ROOT.glob('figures/readme/*')}
    publish({**stale, **pictures, 'README.md': text}, 'python tools/readme.py')
