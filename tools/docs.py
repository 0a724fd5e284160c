"""Build the site into _docs: with Quarto if it is installed, with smalldocs if not.

Its pages load nothing from other servers; KaTeX, which renders the formulas, is a part of it."""
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import is_dataclass
from importlib.metadata import PackageNotFoundError, distribution
from itertools import groupby
from pathlib import Path
from types import ModuleType

import yaml
from check_site import HOME, REDIRECT, css_addresses, foreign_loads
from nbdev.config import get_config
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs
from pybtex.database import parse_file
from pybtex.plugin import find_plugin


# pages that became a section of another page: the anchor of that section
SECTIONS = {
    'batches': 'batches', 'checkpoints': 'checkpoints', 'encoders': 'unrolled-encoders',
    'initialisation': 'starting-from-data',
    'reading': 'reading-a-deep-model', 'sparseness': 'sparseness'}


def bibliography(path:Path) -> str:
    "Return the entries of a BibTeX file as a list with anchors, as Quarto renders them."
    style = find_plugin('pybtex.style.formatting', 'plain')()
    backend = find_plugin('pybtex.backends', 'html')()
    entries = style.format_entries(parse_file(path).entries.values())
    texts = sorted((entry.key, entry.text.render(backend)) for entry in entries)
    return '\n\n'.join(f'::: {{#ref-{key} .csl-entry}}\n{text}\n:::' for key, text in texts)


SOURCE = r'/blob/\w+/sparse_ae/([\w/]+)\.py'   # link of an entry to its module


def module(path:str) -> ModuleType:
    "Import a module of the library by its path without suffix."
    return importlib.import_module('sparse_ae.' + path.replace('/', '.'))


def show_fields(path:Path) -> None:
    "Show the fields and their comments in the entries of dataclasses and named tuples."
    nb = json.loads(path.read_text(encoding='utf-8'))
    for cell in nb['cells']:
        for out in cell.get('outputs', []):
            text = ''.join(out.get('data', {}).get('text/markdown', ''))
            entry = re.search(rf'{SOURCE}.*?^### (\w+)\n', text, re.M | re.S)
            cls = entry and getattr(module(entry[1]), entry[2], None)
            if not (is_dataclass(cls) or hasattr(cls, '_fields')): continue
            sources = [inspect.getsource(c) for c in reversed(cls.__mro__)
                       if is_dataclass(c) or c is cls]
            fields = re.findall(r'^    \w+:.*  # .*(?:\n +# .*)*', '\n'.join(sources), re.M)
            shown = '\n'.join([f'class {entry[2]}:', *fields])
            code = f'```python\n{shown}\n```'
            out['data']['text/markdown'] = re.sub(r'```python\n.*?```', lambda _: code, text,
                                                  count=1, flags=re.S)
    path.write_text(json.dumps(nb), encoding='utf-8')


def tidy_entries(path:Path) -> None:
    """Correct the entries that nbdev writes: no links inside code, where they are not rendered;
    the entries of one cell in order; whole sentences in italics; underscores of names escaped."""
    nb = json.loads(path.read_text(encoding='utf-8'))
    for cell in nb['cells']:
        for out in cell.get('outputs', []) if cell.get('has_sd') else ():
            text = ''.join(out.get('data', {}).get('text/markdown', ''))
            head, fence, rest = text.partition('```python\n')
            code, end, words = rest.partition('\n```')
            head = re.sub('^#.*__.*', lambda name: name[0].replace('__', r'\_\_'), head, flags=re.M)
            code = re.sub(r'\[(`[^`]+`)\]\(http\S+?\)', r'\1', code)
            entry = re.search(rf'{SOURCE}#.*^#+ (\w+)\.(\w+)$', head, re.M | re.S)
            if entry:
                cls = getattr(module(entry[1]), entry[2])
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
    """Make the links between entries relative. nbdev writes them with the page names of Quarto,
    which differ from those of smalldocs."""
    for page in pages.rglob('*.html'):
        up = '../'*(len(page.relative_to(pages).parts) - 1)
        text = page.read_text(encoding='utf-8')
        new = re.sub(f'href="{re.escape(HOME)}([^"#]+)', lambda match: (
            f'href="{up}{names[match[1]]}' if match[1] in names else match[0]), text)
        if new != text: page.write_text(new, encoding='utf-8')


def for_smalldocs(source:Path) -> None:
    "Prepare the sources for smalldocs: insert the bibliography, write the theme's rules as CSS."
    config = yaml.safe_load((source/'_quarto.yml').read_text(encoding='utf-8'))
    page = source/'reference'/'bibliography.qmd'
    text = re.sub(r'^nocite:.*\n', '', page.read_text(encoding='utf-8'), flags=re.M)
    listed = bibliography(source/config.pop('bibliography'))
    page.write_text(text.replace('::: {#refs}\n:::', listed), encoding='utf-8')
    html = config['format']['html']
    html['css'] = 'theme.css'
    html.pop('html-math-method')   # smalldocs renders formulas by KaTeX only
    html['theme'] = {mode: names[0] for mode, names in html['theme'].items()}
    rules = (source/'theme.scss').read_text(encoding='utf-8').partition('/*-- scss:rules --*/')[2]
    (source/'theme.css').write_text(rules, encoding='utf-8')
    (source/'theme.scss').unlink()
    (source/'_quarto.yml').unlink()  # a link is removed, not its target
    (source/'_quarto.yml').write_text(yaml.safe_dump(config, sort_keys=False), encoding='utf-8')
    for path in source.rglob('*.ipynb'):  # smalldocs warns of keys that only Quarto reads
        nb = json.loads(path.read_text(encoding='utf-8'))
        matter = front_matter(path)
        for key in ('aliases', 'output-file'): matter.pop(key, None)
        if nb['cells'][0]['cell_type'] == 'raw':
            nb['cells'][0]['source'] = f'---\n{yaml.safe_dump(matter)}---\n'
        path.write_text(json.dumps(nb), encoding='utf-8')


def front_matter(path:Path) -> dict:
    "Return the front matter that nbdev wrote into the first cell of a processed notebook."
    first = json.loads(path.read_text(encoding='utf-8'))['cells'][0]
    text = re.match(r'---\n(.*?)\n---', ''.join(first['source']), re.S)
    return yaml.safe_load(text[1]) if text else {}


def moved_pages(pages:dict[str, dict]) -> dict[str, str]:
    """Return the old address of each moved page, with and without its number, and the new address.
    `pages` maps an address to the front matter of the page."""
    moved = {}
    for address, matter in pages.items():
        for alias in matter.get('aliases', []):
            name = re.sub(r'^(\d+_)?(.*)\.html$', r'\2', alias.lstrip('/'))
            section = f'#{SECTIONS[name]}' if name in SECTIONS else ''
            for old in (alias.lstrip('/'), f'{name}.html'):
                if old not in pages: moved.setdefault(old, address + section)
    return moved


def write_redirects(site:Path, moved:dict[str, str]) -> None:
    "Write a page at each old address that leads to the new one; the anchor of a link is kept."
    for old, new in moved.items():
        path, (page, _, section) = site/old, new.partition('#')
        path.parent.mkdir(parents=True, exist_ok=True)
        section = f'#{section}' if section else ''
        path.write_text(REDIRECT.format(new=new, page=page, section=section), encoding='utf-8')


KATEX = 'djangocms-katex'   # contains the files of the npm package katex, 0.16.40, unchanged
KATEX_ADDRESS = r'https://[^"\s]+/katex@[^"/]+/dist/'   # from which Quarto and smalldocs load it
# of Quarto, on pages of notebooks with HTML as output: libraries that no output here uses
UNUSED = (r'<script\b[^>]*\bsrc="https?://[^"]*/(?:require|jquery)(?:\.min)?\.js"[^>]*></script>\n?'
          r"|<script\b[^>]*>define\('jquery'[^<]*</script>\n?")


def copy_katex(folder:Path) -> None:
    "Copy the files of KaTeX that a page loads, and its licence."
    try: files = distribution(KATEX).files
    except PackageNotFoundError: sys.exit(f'no package {KATEX}: make setup')
    source = next(f for f in files if f.name == 'katex.min.js').locate().parent
    for name in ('katex.min.js', 'contrib/auto-render.min.js', 'LICENSE'):
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source/name, folder/name)
    # older formats of the fonts are left out: every browser that runs this KaTeX reads woff2
    css = (source/'katex.min.css').read_text(encoding='utf-8')
    css = re.sub(r',url\(fonts/[^)]+\.(?:woff|ttf)\) format\("\w+"\)', '', css)
    (folder/'katex.min.css').write_text(css, encoding='utf-8')
    (folder/'fonts').mkdir(exist_ok=True)
    for name in css_addresses(css): shutil.copyfile(source/name, folder/name)


def make_local(pages:Path) -> None:
    "Make the pages load KaTeX from the site, and nothing from other servers."
    copy_katex(pages/'site_libs'/'katex')
    for page in pages.rglob('*.html'):
        up = '../'*(len(page.relative_to(pages).parts) - 1)
        text = page.read_text(encoding='utf-8')
        new = re.sub(KATEX_ADDRESS, f'{up}site_libs/katex/', re.sub(UNUSED, '', text))
        if new != text: page.write_text(new, encoding='utf-8')
    if found := foreign_loads(pages): sys.exit('not without network: ' + '\n'.join(found))


if __name__ == '__main__':
    # like `nbdev_docs`, but README.md stays as `make readme` wrote it, and Quarto is optional
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__()
    source, target = proc_nbs(force=True), get_config().doc_path
    for path in source.rglob('*.ipynb'):
        tidy_entries(path)
        show_fields(path)
    quarto = shutil.which('quarto')
    named, pages = {}, {}   # page name of Quarto -> of smalldocs; address -> front matter
    for path in source.rglob('*.ipynb'):
        matter, address = front_matter(path), path.relative_to(source).with_suffix('.html')
        by_quarto = address.with_name(matter.get('output-file', address.name)).as_posix()
        named[by_quarto] = address.as_posix()
        pages[by_quarto if quarto else address.as_posix()] = matter
    if quarto: render = ['quarto', 'render', '--no-cache']
    else:
        for_smalldocs(source)
        render = [Path(sys.executable).parent/'smalldocs', 'render', '.']
    done = subprocess.run(render, cwd=source, stderr=subprocess.PIPE, text=True)
    print(done.stderr, file=sys.stderr)
    warnings = [line for line in done.stderr.splitlines() if re.search(r'warn', line, re.I)]
    if done.returncode or warnings: sys.exit(f'not built without warnings: {warnings}')
    for path in (source/target.name/'site_libs').rglob('*.css'):  # as `$web-font-path` in the theme
        css = path.read_text(encoding='utf-8')
        path.write_text(re.sub(r'@import\s*url\([^)]*\);', '', css), encoding='utf-8')
    if not quarto: relink(source/target.name, named)
    make_local(source/target.name)
    write_redirects(source/target.name, moved_pages(pages))
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(source/target.name, target)
    print(f'The site is in {target.relative_to(Path.cwd())/"index.html"}')
