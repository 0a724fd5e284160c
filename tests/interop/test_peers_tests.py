"""Tests of other libraries, from their checkouts, on thin adapters of the models of this library.

The packages of SAELens, dictionary_learning, SAEBench and SAEDashboard have no tests, and those of
sparsify need a GPU, so a checkout is needed: its folder is in CHECKOUT_DICTIONARY_LEARNING."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TESTS = {'dictionary_learning': 'tests/unit/test_dictionary.py'}


@pytest.mark.parametrize('peer', TESTS)
def test_tests_of_a_library(peer):
    checkout = os.environ.get(f'CHECKOUT_{peer.upper()}')
    if not checkout: pytest.skip(f'CHECKOUT_{peer.upper()} is not set')
    path = Path(checkout).resolve()/TESTS[peer]
    done = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', path],
                          cwd=HERE/'adapters', text=True, capture_output=True, timeout=600,
                          env=os.environ | {'PYTHONPATH': f'{HERE/"adapters"}:{HERE.parents[1]}'})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    print(done.stdout.splitlines()[-1])
