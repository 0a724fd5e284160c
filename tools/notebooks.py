"""Run and clean the notebooks, and write README.md from the index.

    python tools/notebooks.py run [NOTEBOOK ...]   execute in fresh kernels, in place, then clean
                                                   (default: all)
    python tools/notebooks.py clean [NOTEBOOK ...] clean without executing
    python tools/notebooks.py readme               write README.md and README_files/
                                                   from nbs/index.ipynb
"""
import base64
import copy
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbdev.clean import clean_nb
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parent.parent
WIDGET = 'application/vnd.jupyter.widget-view+json'


def notebooks() -> list[Path]:
    "Return all notebooks of the project, sorted by path."
    return sorted(p for p in (ROOT/'nbs').rglob('*.ipynb')
                  if not any(part.startswith(('.', '_')) for part in p.relative_to(ROOT).parts))


def installs(nb) -> str:
    "Return the cell that installs the library on Colab, with the extras that the pages name."
    named = re.findall(r'sparse_ae\[([a-z,]+)\]', ' '.join(
        cell['source'] for cell in nb['cells'] if cell['cell_type'] == 'markdown'))
    extras = ','.join(sorted({'sklearn', *','.join(named).split(',')} - {''}))
    return f"""\
#| hide
#| eval: false
if 'google.colab' in str(get_ipython()):
    %pip install -q "sparse_ae[{extras}] @ git+{get_config(path=ROOT).git_url}\""""


def clean(nb) -> None:
    """Remove what `nbdev_clean` removes, outputs that pages hide (`output: false`), and outputs
    that need a kernel: widget views and progress bars. Write the repository's address of
    `settings.ini` into the cell that installs the library on Colab."""
    clean_nb(nb)
    nb['metadata'].pop('widgets', None)
    for cell in nb['cells']:
        if "if 'google.colab' in" in cell['source']: cell['source'] = installs(nb)
        kept = []
        for out in cell.get('outputs', []):
            widget = out.get('data', {}).pop(WIDGET, None)
            progress = (out.get('name') == 'stderr'
                        and re.search(r'\d+%\|', ''.join(out.get('text', ''))))
            if not progress and (widget is None or 'image/png' in out['data']): kept.append(out)
        if '#| output: false' in cell['source'].splitlines(): kept = []
        if 'outputs' in cell: cell['outputs'] = kept


def faults(nb) -> list[str]:
    "Return the reasons why `nb` cannot be published as a page."
    found, cleaned = [], copy.deepcopy(nb)
    clean(cleaned)
    if cleaned != nb: found.append('not clean: make notebooks')
    private = [str(ROOT.parent) + '/', str(Path.home()) + '/', tempfile.gettempdir() + '/']
    for number, cell in enumerate(c for c in nb['cells'] if c['cell_type'] == 'code'):
        text = str(cell['outputs'])
        if any(o['output_type'] == 'error' for o in cell['outputs']):
            found.append(f'code cell {number} shows a traceback')
        if any(p in text for p in private):
            found.append(f'code cell {number} shows a path of the machine')
        if 'interactive(children=' in text:
            found.append(f'code cell {number} shows a widget as text')
        if any(len(line) > 100 and not line.startswith('#|')
               for line in cell.source.splitlines()):
            found.append(f'code cell {number} has a line of more than 100 columns')
    if not any(cell.source == installs(nb) for cell in nb['cells']):
        found.append(f'no cell installs the library on Colab: {installs(nb)}')
    if len(str(nb)) > 2**20: found.append('larger than a megabyte')
    return found


def run(path: Path) -> None:
    "Execute one notebook in a fresh kernel, in place, and clean it."
    nb = nbformat.read(path, as_version=4)
    NotebookClient(nb, timeout=900, kernel_name='python3', store_widget_state=False,
                   coalesce_streams=True,
                   extra_arguments=['--log-level=40'],
                   resources={'metadata': {'path': str(path.parent)}}).execute()
    clean(nb)
    nbformat.write(nb, path)


def readme() -> tuple[str, dict[str, bytes]]:
    "Return the text of README.md and its pictures by file name, made from `nbs/index.ipynb`."
    parts, pictures = [], {}
    for cell in nbformat.read(ROOT/'nbs/index.ipynb', as_version=4).cells:
        lines = cell.source.splitlines()
        directives = {line[2:].strip() for line in lines if line.startswith('#|')}
        source = '\n'.join(line for line in lines if not line.startswith('#|')).strip()
        if 'hide' in directives or not source: continue
        if cell.cell_type == 'markdown':
            parts.append(source)
            continue
        if 'echo: false' not in directives: parts.append(f'```python\n{source}\n```')
        for out in cell.outputs:
            data = out.get('data', {})
            if 'image/png' in data:
                name = f'README_files/{len(pictures) + 1}.png'
                pictures[name] = base64.b64decode(data['image/png'])
                alt = next((d.partition(':')[2].strip(' "') for d in directives
                            if d.startswith('fig-alt:')), '')
                parts.append(f'![{alt}]({name})')
            elif text := (out.get('text') or data.get('text/plain')):
                parts.append(f'```\n{text.rstrip()}\n```')
    text = '\n\n'.join(parts) + '\n'
    note = '<!-- Made from nbs/index.ipynb by `make readme`: edit that. -->\n\n'
    page = r'\(((?:\w+/)?\w+\.(?:ipynb|qmd)(?:#[\w-]+)?)\)'
    return note + re.sub(page, r'(nbs/\1)', text), pictures


def write_readme() -> None:
    "Write README.md and its pictures; remove the pictures of an earlier version."
    text, pictures = readme()
    (ROOT/'README.md').write_text(text, encoding='utf-8')
    folder = ROOT/'README_files'
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if f'README_files/{old.name}' not in pictures: old.unlink()
    for name, picture in pictures.items(): (ROOT/name).write_bytes(picture)


if __name__ == '__main__':
    match sys.argv[1:]:
        case ['run', *names]:
            for path in map(Path, names) if names else notebooks():
                print(f'running {path.name}', flush=True)
                run(path)
        case ['clean', *names]:
            for path in map(Path, names) if names else notebooks():
                nb = nbformat.read(path, as_version=4)
                clean(nb)
                nbformat.write(nb, path)
        case ['readme']: write_readme()
        case _: sys.exit(__doc__)
