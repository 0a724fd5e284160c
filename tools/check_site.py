"""List the faults of the built site.

    python tools/check_site.py [_docs]

Links and anchors inside the site, files loaded from other servers, alternative texts,
tracebacks, directives, widgets and formulas shown as text, paths of the machine, and public names
without an entry, a comment on a parameter or an example.
"""
import inspect
import re
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from bs4 import BeautifulSoup
from nbdev.config import get_config
from notebooks import ROOT, notebooks

import sparse_ae

HOME = f'{get_config().doc_host}{get_config().doc_baseurl}'.rstrip('/') + '/'  # once it is out
# page at an old address; `tools/docs.py` writes it
REDIRECT = '''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>This page has moved</title>
<script>location.replace('{page}' + (location.hash || '{section}'))</script>
<meta http-equiv="refresh" content="0; url={new}">
<link rel="canonical" href="{new}">
</head>
<body><main><p>This page has moved to <a href="{new}">{new}</a>.</p></main></body>
</html>
'''
# faults in the text of a page: outside code, and everywhere
TEXT = {'a formula': r'\$\$|\\(?:frac|mathbb|mathrm|lVert|tfrac|sum)\b', 'a div': r'^:::',
        'a formula in a line': r'(?<!\$)\$[^$\n]+\$(?!\$)', 'a link': r'\]\((?:\w|\.|#)',
        'a citation': r'\[-?@\w+', 'a shortcode': r'\{\{<'}
ALL = {'a traceback': r'Traceback \(most', 'a directive': r'^\s*#\|',
       'a link of the site': r'\]\(https?:',
       'a widget': r'\w+\(children=', 'a figure as text': r'<Figure size',
       'a path of the machine': '|'.join(re.escape(f'{p}/') for p in (
           ROOT.parent, Path.home(), tempfile.gettempdir()) if p != Path('/'))}

# attributes whose address a page loads by itself; a link is followed only when it is clicked
LOADED = {'link': 'href', 'use': 'href', 'image': 'href', 'object': 'data', **dict.fromkeys(
    'script img iframe embed source video audio track input'.split(), 'src')}
NOT_LOADED = {'canonical', 'alternate', 'next', 'prev', 'license', 'author', 'help'}   # of links


def css_addresses(css:str) -> list[str]:
    "Return the addresses that style rules load, data URLs excluded."
    found = re.findall(r"""(?:url\(|@import)\s*(?:"([^"]*)"|'([^']*)'|([^\s"')(;]+)\))""", css)
    addresses = (next(filter(None, groups), '') for groups in found)
    return [address for address in addresses if not address.startswith('data:')]


class Loads(HTMLParser):
    "Addresses that a page loads: scripts, styles, fonts, pictures, frames."

    def __init__(self, text:str):
        super().__init__()
        self.found, self.inside = [], ''
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs, self.inside = {name: value or '' for name, value in attrs}, tag
        if tag in LOADED and not set(attrs.get('rel', '').split()) & NOT_LOADED:
            self.found += filter(None, [attrs.get(LOADED[tag])])
        self.found += [
            word for part in attrs.get('srcset', '').split(',') for word in part.split()[:1]]
        self.found += css_addresses(attrs.get('style', ''))

    def handle_data(self, data):
        if self.inside == 'style': self.found += css_addresses(data)
        if self.inside == 'script':
            self.found += re.findall(r"""\b(?:import|from)\s*\(?\s*['"]([^'"]+)""", data)


def is_foreign(address:str) -> bool:
    "Return whether an address is that of another server."
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ('', 'data')


def foreign_loads(site:Path) -> list[str]:
    "Return what pages and style sheets load from other servers."
    loads = {path: Loads(path.read_text(encoding='utf-8')).found
             for path in sorted(site.rglob('*.html'))}
    loads |= {path: css_addresses(path.read_text(encoding='utf-8'))
              for path in sorted(site.rglob('*.css'))}
    return [f'{path.relative_to(site)}: loads {address} from another server'
            for path, addresses in loads.items() for address in addresses if is_foreign(address)]


def check_styles(site:Path) -> list[str]:
    "Return the files that style sheets load and that do not exist."
    return [f'{path.relative_to(site)}: {address} leads nowhere'
            for path in sorted(site.rglob('*.css'))
            for address in css_addresses(path.read_text(encoding='utf-8'))
            if not is_foreign(address) and not (path.parent/urlsplit(address).path).exists()]


def check_pages(site:Path) -> list[str]:
    "Return the faults of the pages."
    pages = {path: BeautifulSoup(path.read_text(encoding='utf-8'), 'html.parser')
             for path in sorted(site.rglob('*.html'))}
    ids = {path: {e['id'] for e in page.select('[id]')} for path, page in pages.items()}
    found = []
    for path, page in pages.items():
        say = lambda what: found.append(f'{path.relative_to(site)}: {what}')
        for element in page.select('[href], [src]'):
            target = element.get('href') or element.get('src') or ''
            parts = urlsplit(target.removeprefix(HOME))
            if parts.scheme or parts.netloc: continue
            folder = site if target.startswith(HOME) else path.parent
            there = path if not parts.path else (folder/unquote(parts.path)).resolve()
            if there.is_dir(): there /= 'index.html'
            if not there.exists(): say(f'{target} leads nowhere')
            elif parts.fragment and there in ids and unquote(parts.fragment) not in ids[there]:
                say(f'{target}: no such place on that page')
        main = page.find('main')
        for image in main.find_all('img'):
            if not image.get('alt', '').strip(): say(f'{image.get("src", "")[:60]} has no alt text')
        text = main.get_text()
        found_in = lambda text, patterns: [
            say(f'shows {what}: {match[0]!r}') for what, pattern in patterns.items()
            if (match := re.search(pattern, text, re.M))]
        found_in(text, ALL)
        for element in main.select('pre, code, .math, script, style'): element.decompose()
        found_in(main.get_text(), TEXT)
        for id, count in count_ids(page).items():
            if count > 1: say(f'{count} elements have the id {id}')
    return found + foreign_loads(site) + check_styles(site)


def redirects(site:Path) -> dict[str, str]:
    "Return the old address of each page that has moved, and the new one."
    targets = {path: re.search(r'http-equiv="refresh" content="0; url=([^"]+)"',
                               path.read_text(encoding='utf-8')) for path in site.rglob('*.html')}
    return {path.relative_to(site).as_posix(): target[1]
            for path, target in targets.items() if target}


def count_ids(page) -> dict[str, int]:
    "Return how often each id is used in the main part of a page."
    seen = [e['id'] for e in page.select('main [id]')]
    return {id: seen.count(id) for id in seen}


def public_names() -> dict[str, object]:
    "Return the public names of the package and their objects."
    return {name: getattr(sparse_ae, name) for name in sparse_ae.__all__}


def documented(thing) -> list[str]:
    "Return the parameters that an entry explains: all but `*args` and `**kwargs`."
    if not callable(thing): return []
    return [name for name, p in inspect.signature(thing).parameters.items()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def check_names(site:Path) -> list[str]:
    "Return the public names without an entry on a page, a comment on a parameter or an example."
    entries = {}
    for path in site.rglob('*.html'):
        page = BeautifulSoup(path.read_text(encoding='utf-8'), 'html.parser')
        for heading in page.select('main h3, main h4'):
            code = heading.find_next('pre')
            if code: entries.setdefault(heading.get_text().strip(), code.get_text())
    examples = '\n'.join(
        cell.source for path in notebooks() for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == 'code' and not re.search(r'^#\| *(export|hide)', cell.source, re.M))
    found = []
    for name, thing in public_names().items():
        if callable(thing) and name not in entries:
            found.append(f'{name}: no entry')
            continue
        if not re.search(rf'\b{name}\b', examples): found.append(f'{name}: no example')
        entry = entries.get(name, '')   # constants have none
        for parameter in documented(thing):
            if not re.search(rf'\b{parameter}\b[^#\n]*# *\S', entry):
                found.append(f'{name}: {parameter} is not explained')
    return found


if __name__ == '__main__':
    site = Path(sys.argv[1] if len(sys.argv) > 1 else '_docs').resolve()
    found = check_pages(site) + check_names(site)
    print('\n'.join(found) or 'nothing is wrong')
    sys.exit(bool(found))
