"Files saved by version 0.1.0 load as before: models, and a checkpoint within an epoch."
import json
import shutil

import pytest
import torch
from torch.testing import assert_close

from conftest import ROOT
from sparse_ae import (SparseAutoencoder, TiedWeightSparseAutoencoder,
                       train_sparse_autoencoder_with_early_stopping)
from sparse_ae.data import digits

SAVED = ROOT/'tests'/'data'/'saved_by_0.1.0'


@pytest.mark.parametrize('name, cls', [('topk', SparseAutoencoder),
                                       ('tied', TiedWeightSparseAutoencoder)])
def test_models(name, cls):
    model = cls.from_pretrained(SAVED/name)
    expected = json.loads((SAVED/'reconstructions.json').read_text())[name]
    # Other processors round differently
    assert_close(model(digits()[300:303]), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_a_checkpoint_within_an_epoch(tmp_path):
    shutil.copytree(SAVED/'run', tmp_path/'run')
    torch.manual_seed(0)
    x = digits()
    history = train_sparse_autoencoder_with_early_stopping(
        SparseAutoencoder(64, 10), x[:300], x[300:360], 6, 3e-3, 9, seed=0, verbose=0,
        batch_size=100, sparsity_type='hoyer', sparsity_weight=1., target_sparsity=0.05,
        sparsity_warmup=2.5, lr_schedule='cosine', lr_warmup=1, normalize=True,
        checkpoint_dir=tmp_path/'run', resume=True)
    expected = json.loads((SAVED/'history.json').read_text())
    assert history.keys() >= expected.keys() and history['epochs_trained'] == 6
    for name, value in expected.items():
        if name == 'seconds': continue
        if not isinstance(value, list): assert history[name] == value, name
        else:
            assert history[name][0] == value[0], name  # the first epoch is in the checkpoint
            # Other processors round differently; a part of the state that is lost changes percents
            assert_close(history[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_the_checkpoint_is_what_the_run_resumes_from(tmp_path):
    "Other data are refused, so the run above did not start from the beginning."
    shutil.copytree(SAVED/'run', tmp_path/'run')
    x = digits()
    with pytest.raises(ValueError, match='train_data must be as in the checkpoint'):
        train_sparse_autoencoder_with_early_stopping(
            SparseAutoencoder(64, 10), x[:200], x[300:360], 6, 3e-3, 9, seed=0, verbose=0,
            batch_size=100, sparsity_type='hoyer', sparsity_weight=1., sparsity_warmup=2.5,
            lr_schedule='cosine', lr_warmup=1, normalize=True, checkpoint_dir=tmp_path/'run',
            resume=True)
