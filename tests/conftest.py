"What several test files use."
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
