"Texts and files of strangers: pages, servers, unpickling."
import ast
import json
import re
from html.parser import HTMLParser

import hostile
import numpy as np
import pytest
import torch
from torch import nn

from conftest import ROOT
from sparse_ae import FeatureExplorer
from sparse_ae.cli import _REPORT_FIGURES, report_html


class Identity(nn.Linear):
    "A code that equals its input."

    def __init__(self, width): super().__init__(width, width)
    def encode(self, x): return x + 0*self.bias
    def decode(self, z): return z + 0*self.bias


def hostile_explorer(texts):
    "Explorer whose tokens, output names, titles and names of scores are `texts`."
    n = len(texts)
    tokens = [texts*3]
    return FeatureExplorer(
        Identity(n), torch.eye(n).repeat(3, 1), tokens=tokens, output_weights=torch.eye(n),
        output_names=texts, scores=dict.fromkeys(texts[:20], texts) | {'score': np.arange(n)},
        coordinates=np.random.default_rng(0).random((n, 2))).wait()


class Structure(HTMLParser):
    "Elements of a page with the names of their attributes, and the text of its title."

    def __init__(self, text):
        super().__init__()
        self.elements, self.title, self.inside = [], '', ''   # points of a map have titles as well
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, [name for name, _ in attrs]))
        self.inside = tag if tag != 'title' or len(self.elements) < 9 else ''

    def handle_endtag(self, tag): self.inside = ''

    def handle_data(self, data):
        if self.inside == 'title': self.title += data


def as_read(text):
    "Return a text as a browser reads it from a page."
    return text.encode('utf-8', 'replace').decode()


@pytest.fixture(scope='module')
def small_explorer(): return hostile_explorer(['a', 'b'])


def test_there_are_many_hostile_texts():
    assert len(set(hostile.TEXTS)) == len(hostile.TEXTS) >= 180


@pytest.fixture(scope='module')
def plain(small_explorer, tmp_path_factory):
    "Elements of a page with a harmless title."
    path = small_explorer.export_html(tmp_path_factory.mktemp('page')/'page.html', 'a', k=1)
    return Structure(path.read_text(encoding='utf-8')).elements


@pytest.mark.parametrize('text', hostile.TEXTS, ids=ascii)
def test_a_hostile_title_stays_text(text, small_explorer, plain, tmp_path):
    path = small_explorer.export_html(tmp_path/'page.html', text, k=1)
    page = Structure(path.read_bytes().decode())
    assert page.elements == plain and page.title == as_read(text)


@pytest.mark.parametrize('text', hostile.TEXTS, ids=ascii)
def test_a_hostile_file_name_stays_text_in_the_report(text, tmp_path):
    for name in _REPORT_FIGURES: (tmp_path/name).write_bytes(b'image')
    write = lambda text: Structure(report_html(tmp_path, text, {'L0': text}, {text: text}))
    page = write(text)
    assert page.elements == write('a').elements and page.title == text


def test_hostile_tokens_and_names_stay_text(tmp_path):
    explorer = hostile_explorer(hostile.TEXTS)
    text = explorer.export_html(tmp_path/'page.html', 'a', latents=10**4).read_text()
    page = Structure(text)
    assert {tag for tag, _ in page.elements} == {
        'html', 'head', 'meta', 'title', 'style', 'body', 'h1', 'div', 'label', 'input', 'select',
        'option', 'span', 'details', 'summary', 'svg', 'circle', 'script'}
    assert not [a for _, names in page.elements for a in names if a.startswith('on')]
    records = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])['latents']
    assert len(records) == len(hostile.TEXTS)
    for record in records:
        shown = hostile.TEXTS[record['id']]
        assert record['tables'][0][1][0][0].replace('⏎', '\n') == shown
        assert all(value == shown for title, value in record['scores'] if title != 'score')


# a module that begins to use one of these needs a reason, and a place in SECURITY.md
SERVERS = {'socket', 'socketserver', 'http', 'xmlrpc', 'tornado', 'flask', 'aiohttp'}
UNPICKLERS = {'pickle', 'dill', 'joblib', 'cloudpickle', 'marshal', 'shelve'}


def untrusted(source):
    "Return what could open a server, unpickle or run text in a module."
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom): names = [] if node.level else [node.module]
            found += [name for name in names if name.split('.')[0] in SERVERS | UNPICKLERS]
        if isinstance(node, ast.Call):
            call, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value)
                                                     for k in node.keywords}
            if call in ('eval', 'exec') or call.endswith('start_server'): found.append(call)
            if call == 'torch.load' and options.get('weights_only') != 'True': found.append(call)
            if options.get('allow_pickle', 'False') != 'False': found.append(call)
    return found


def test_no_module_opens_a_server_or_unpickles():
    paths = [p for p in (ROOT/'sparse_ae').rglob('*.py') if p.name != '_modidx.py']
    assert len(paths) > 30
    for path in paths: assert untrusted(path.read_text(encoding='utf-8')) == [], path.name


@pytest.mark.parametrize('source', [
    'import http.server', 'from socketserver import TCPServer', 'import pickle as p',
    'def f(): import joblib', 'torch.load(path)', 'torch.load(path, weights_only=False)',
    'np.load(path, allow_pickle=True)', 'np.load(path, allow_pickle=x)', 'eval(text)'])
def test_a_server_or_unpickler_is_found(source): assert untrusted(source)


def test_what_is_safe_is_not_found():
    assert untrusted('from .pickle import x\ntorch.load(p, weights_only=True)\nmodel.eval()\n'
                     'np.load(p, allow_pickle=False)\nimport json, html') == []
