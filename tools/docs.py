"""Build the site into _docs: with Quarto if it is installed, with smalldocs if not."""
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import is_dataclass
from itertools import groupby
from pathlib import Path

import yaml
from check_site import HOME
from nbdev.config import get_config
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs
from pybtex.database import parse_file
from pybtex.plugin import find_plugin


def bibliography(path:Path) -> str:
    "The entries of a BibTeX file as a list with an anchor each, which Quarto would make."
    style = find_plugin('pybtex.style.formatting', 'plain')()
    backend = find_plugin('pybtex.backends', 'html')()
    entries = style.format_entries(parse_file(path).entries.values())
    texts = sorted((entry.key, entry.text.render(backend)) for entry in entries)
    return '\n\n'.join(f'::: {{#ref-{key} .csl-entry}}\n{text}\n:::' for key, text in texts)


def show_fields(path:Path) -> None:
    "In the entries of classes with fields show these with their comments, which nbdev leaves out."
    nb = json.loads(path.read_text(encoding='utf-8'))
    for cell in nb['cells']:
        for out in cell.get('outputs', []):
            text = ''.join(out.get('data', {}).get('text/markdown', ''))
            entry = re.search(r'blob/\w+/sparse_ae/([\w/]+)\.py.*?^### (\w+)\n', text, re.M | re.S)
            if not entry: continue
            cls = getattr(importlib.import_module('sparse_ae.' + entry[1].replace('/', '.')), entry[2], None)
            if not (is_dataclass(cls) or hasattr(cls, '_fields')): continue
            sources = [inspect.getsource(c) for c in reversed(cls.__mro__) if is_dataclass(c) or c is cls]
            fields = re.findall(r'^    \w+:.*  # .*(?:\n +# .*)*', '\n'.join(sources), re.M)
            shown = '\n'.join([f'class {entry[2]}:', *fields])
            out['data']['text/markdown'] = re.sub(
                r'```python\n.*?```', lambda _: f'```python\n{shown}\n```', text, count=1, flags=re.S)
    path.write_text(json.dumps(nb), encoding='utf-8')


def tidy_entries(path:Path) -> None:
    """What nbdev does to entries and should not: links inside code, where they stay text; those of
    one cell in reverse; half a sentence in italics; names such as `__iter__` read as bold."""
    nb = json.loads(path.read_text(encoding='utf-8'))
    for cell in nb['cells']:
        for out in cell.get('outputs', []) if cell.get('has_sd') else ():
            text = ''.join(out.get('data', {}).get('text/markdown', ''))
            head, fence, rest = text.partition('```python\n')
            code, end, words = rest.partition('\n```')
            head = re.sub('^#.*__.*', lambda name: name[0].replace('__', r'\_\_'), head, flags=re.M)
            code = re.sub(r'\[(`[^`]+`)\]\(http\S+?\)', r'\1', code)
            entry = re.search(r'sparse_ae/([\w/]+)\.py#.*^#+ (\w+)\.(\w+)$', head, re.M | re.S)
            if entry:
                cls = getattr(importlib.import_module('sparse_ae.' + entry[1].replace('/', '.')), entry[2])
                property_ = isinstance(inspect.getattr_static(cls, entry[3]), property)
                if property_: code = '@property\n' + code
            words = re.sub(r'^\n\n\*(.+)\*\n(\S.*(?:\n\S.*)*)', r'\n\n*\1\n\2*', words)
            out['data']['text/markdown'] = head + fence + code + end + words
            line = re.search(r'\.py#L(\d+)', head)
            if line: cell['has_sd'] = int(line[1])  # True is 1: before all that have a line
    runs = groupby(nb['cells'], lambda cell: bool(cell.get('has_sd')))
    nb['cells'] = [cell for entries, run in runs for cell in (
        sorted(run, key=lambda cell: cell['has_sd']) if entries else run)]
    path.write_text(json.dumps(nb), encoding='utf-8')


def relink(pages:Path, names:dict[str, str]) -> None:
    """Links to entries of this site, which nbdev makes for the names that Quarto gives to pages,
    become relative ones to the pages that are there."""
    for page in pages.rglob('*.html'):
        up = '../'*(len(page.relative_to(pages).parts) - 1)
        text = page.read_text(encoding='utf-8')
        new = re.sub(f'href="{re.escape(HOME)}([^"#]+)', lambda match: (
            f'href="{up}{names[match[1]]}' if match[1] in names else match[0]), text)
        if new != text: page.write_text(new, encoding='utf-8')


def for_smalldocs(source:Path) -> None:
    "What Quarto does and smalldocs does not: the bibliography, and the rules of the theme as CSS."
    config = yaml.safe_load((source/'_quarto.yml').read_text(encoding='utf-8'))
    page = source/'reference'/'bibliography.qmd'
    text = re.sub(r'^nocite:.*\n', '', page.read_text(encoding='utf-8'), flags=re.M)
    listed = bibliography(source/config.pop('bibliography'))
    page.write_text(text.replace('::: {#refs}\n:::', listed), encoding='utf-8')
    html = config['format']['html']
    html['theme'], html['css'] = {mode: names[0] for mode, names in html['theme'].items()}, 'theme.css'
    rules = (source/'theme.scss').read_text(encoding='utf-8').partition('/*-- scss:rules --*/')[2]
    (source/'theme.css').write_text(rules, encoding='utf-8')
    (source/'theme.scss').unlink()
    (source/'_quarto.yml').unlink()  # where it is a link, what it leads to stays
    (source/'_quarto.yml').write_text(yaml.safe_dump(config, sort_keys=False), encoding='utf-8')
    for path in source.rglob('*.ipynb'):  # a line of nbdev for Quarto
        nb = json.loads(path.read_text(encoding='utf-8'))
        for cell in nb['cells']:
            if cell['cell_type'] == 'code':
                cell['source'] = re.sub('^output-file: .*\n', '', ''.join(cell['source']), flags=re.M)
        path.write_text(json.dumps(nb), encoding='utf-8')


if __name__ == '__main__':
    # As `nbdev_docs`, but README.md stays as `make readme` wrote it, and Quarto may be missing
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__()
    source, target = proc_nbs(force=True), get_config().doc_path
    for path in source.rglob('*.ipynb'):
        tidy_entries(path)
        show_fields(path)
    named = {}  # as Quarto calls a page: as smalldocs calls it
    if shutil.which('quarto'): render = ['quarto', 'render', '--no-cache']
    else:
        for path in source.rglob('*.ipynb'):
            found = re.search(r'output-file: ([\w.-]+)', path.read_text(encoding='utf-8'))
            if found: named[found[1]] = path.relative_to(source).with_suffix('.html').as_posix()
        for_smalldocs(source)
        render = [Path(sys.executable).parent/'smalldocs', 'render', '.']
    done = subprocess.run(render, cwd=source, stderr=subprocess.PIPE, text=True)
    print(done.stderr, file=sys.stderr)
    warnings = [line for line in done.stderr.splitlines() if re.search(r'warn', line, re.I)]
    if done.returncode or warnings: sys.exit(f'not built without warnings: {warnings}')
    for path in (source/target.name/'site_libs').rglob('*.css'):  # as `$web-font-path` in the theme
        css = path.read_text(encoding='utf-8')
        path.write_text(re.sub(r'@import\s*url\([^)]*\);', '', css), encoding='utf-8')
    if named: relink(source/target.name, named)
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(source/target.name, target)
    print(f'Look at {target.relative_to(Path.cwd())/"index.html"}')
