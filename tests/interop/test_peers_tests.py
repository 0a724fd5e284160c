"""Tests of other libraries, unmodified, on thin adapters of the models of this library.

Of the packages, that of sparsify has tests; `make test-interop` downloads it. Of its five files,
two need no model of its own: `test_decode.py`, and `test_micro_acc_steps.py` but for the argument of
its losses of language models. `test_encode.py` needs 20 GB, so it runs on a GPU. `test_auxk_loss.py`
tests the formula of its auxiliary loss, and `test_multiple_saes.py` the names of models in its
trainer. Those of dictionary_learning need a checkout, whose folder is in
CHECKOUT_DICTIONARY_LEARNING; SAELens, SAEBench and SAEDashboard publish none."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_interop import python_of

HERE = Path(__file__).resolve().parent
ADAPTERS, SPARSIFY = HERE/'adapters', HERE.parents[1]/'.interop'/'sdists'/'eai_sparsify-1.3.3'


def run(python, *arguments):
    "Number of tests that passed; the others fail this test."
    done = subprocess.run(
        [python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-p', 'on_cpu', *arguments],
        cwd=ADAPTERS, text=True, capture_output=True, timeout=600, env=os.environ | {
            'PYTHONPATH': f'{ADAPTERS}:{HERE.parents[1]}:{os.environ.get("PYTHONPATH", "")}',
            'PYTHONDONTWRITEBYTECODE': '1'})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    print(done.stdout.splitlines()[-1])
    return int(re.search(r'(\d+) passed', done.stdout)[1])


def test_tests_of_dictionary_learning():
    checkout = os.environ.get('CHECKOUT_DICTIONARY_LEARNING')
    if not checkout: pytest.skip('CHECKOUT_DICTIONARY_LEARNING is not set')
    path = Path(checkout).resolve()/'tests'/'unit'/'test_dictionary.py'
    assert run(sys.executable, path) >= 6


def test_tests_of_sparsify():
    folder = Path(os.environ.get('CHECKOUT_SPARSIFY', SPARSIFY)).resolve()/'tests'
    if not folder.exists(): pytest.skip('no tests of sparsify: make test-interop')
    files = {'test_decode.py': 2}
    if not os.environ.get('INTEROP_SMALL'): files['test_micro_acc_steps.py'] = 2   # needs datasets
    if torch.cuda.is_available(): files['test_encode.py'] = 1
    found = run(python_of('sparsify'), *(folder/name for name in files), '-k', 'not rejects')
    assert found == sum(files.values())
