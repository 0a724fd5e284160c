"The page *From one GPU to a cluster*: its Python and its shell run, and its outputs are those shown."
import io
import re
import subprocess
import sys
from contextlib import redirect_stdout

import pytest

from conftest import ROOT
from sparse_ae import SparseAutoencoder

PAGE = ROOT/'nbs'/'tutorials'/'clusters.qmd'
BLOCK = re.compile(r'^```(\{\.python filename="(?P<name>\w+\.py)"\}|python|bash|text)\n(?P<code>.*?)^```',
                   re.S | re.M)


def outputs(text, folder):
    "Run the blocks of a page in a folder; yield the output shown and that of the code before it."
    names, printed = {'__name__': 'page'}, ''
    for block in BLOCK.finditer(text):
        kind, code = block[1], block['code']
        if block['name']: (folder/block['name']).write_text(code, encoding='utf-8')
        elif kind == 'bash':
            code = code.replace(' python ', f' {sys.executable} ')
            subprocess.run(['bash', '-e', '-c', code], cwd=folder, check=True, timeout=120)
        elif kind == 'python':
            with redirect_stdout(io.StringIO()) as stream: exec(code, names)
            printed = stream.getvalue()
        else: yield block, printed


def test_page_runs_and_shows_its_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = [(block['code'], printed) for block, printed in
             outputs(PAGE.read_text(encoding='utf-8'), tmp_path)]
    assert len(shown) >= 7
    for expected, printed in shown: assert printed == expected


def test_another_output_is_noticed(tmp_path):
    (block, printed), = outputs('```python\nprint(1)\n```\n\n```text\n2\n```\n', tmp_path)
    assert (block['code'], printed) == ('2\n', '1\n')


@pytest.mark.parametrize('width, latents', [(7, 20)])
def test_memory_counts_the_parameters_of_a_dictionary(width, latents):
    names = {}
    code = re.search(r'^def training_gigabytes.*?\n\n', PAGE.read_text(encoding='utf-8'), re.S | re.M)
    exec(code[0], names)
    sae = SparseAutoencoder(width, latents, hidden_dims=())
    parameters = sum(p.numel() for p in sae.parameters())
    assert names['training_gigabytes'](width, latents) == pytest.approx(16 * parameters / 1e9)
