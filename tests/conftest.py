"What several test files use."
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from hypothesis import settings

from sparse_ae.data import digits, train_val_split

matplotlib.use('agg')
# no time limits, the same cases every time
settings.register_profile('project', deadline=None, derandomize=True, max_examples=60)
settings.load_profile('project')

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))


@pytest.fixture(scope='session')
def split():
    "Digits: training and validation rows."
    return train_val_split(digits())


@pytest.fixture
def script():
    "Path of a console script of this environment."
    return lambda name: str(Path(sys.executable).parent/name)


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The site, built in a copy of the project, so that nothing of it stays."
    if sys.version_info < (3, 11) and not shutil.which('quarto'):
        pytest.skip('smalldocs needs Python 3.11, and Quarto is not installed')
    copy = tmp_path_factory.mktemp('project')/'copy'
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(
        '.venv', '.interop', '.matrix', '.git', 'runs', '_docs', '_proc', '.hypothesis'))
    done = subprocess.run([sys.executable, 'tools/docs.py'], cwd=copy, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return copy/'_docs'
