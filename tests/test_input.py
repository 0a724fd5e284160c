"Unusual input: an error names an argument that cannot be used; everything else is used unchanged."
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from sparse_ae import (BatchTopK, Callback, Contractive, FeatureExplorer, HoyerTarget,
                       SparseAutoencoder, digits, evaluate_sparse_autoencoder,
                       feature_contributions, lifetime_sparseness, match_dictionaries,
                       plot_dictionary, sparse_dictionary, sweep,
                       train_sparse_autoencoder_with_early_stopping as train, train_val_split)
from sparse_ae.cli import load_matrix
from sparse_ae.data import open_rows
from sparse_ae.eval_viz import dictionary
from sparse_ae.models import geometric_median
from sparse_ae.regularizers import contractive_penalty, isometry_penalty
from sparse_ae.lab.latents import latent_statistics

X = digits()[:200]


def fit(model=None, data=X, epochs=2, **options):
    return train(model or SparseAutoencoder(64, 8), data, data if isinstance(data, torch.Tensor) else X,
                 epochs, 1e-3, 9, **dict(verbose=0, sparsity_type='l1') | options)


class Convolutional(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.out = (torch.nn.Conv2d(*sides, 3, padding=1) for sides in ((1, 4), (4, 1)))
    def encode(self, x): return self.into(x).relu()
    def decode(self, z): return self.out(z)


class ChangedCodes(torch.nn.Module):
    "A model that applies `change` to its codes."
    def __init__(self, change):
        super().__init__()
        self.inside, self.change = SparseAutoencoder(64, 8), change
    def encode(self, x): return self.change(self.inside.encode(x))
    def decode(self, z): return self.inside.decode(z)


@pytest.mark.parametrize('options', [
    dict(sparsity_weight=np.float64(0.1)), dict(learning_rate=np.float64(1e-3)),
    dict(sparsity_type=np.str_('l1')), dict(clip_grad_norm=np.float64(1)),
    dict(betas=np.array([0.9, 0.99])), dict(target_l0=np.float64(4)),
    dict(sparsity_weight=torch.tensor(0.1))])
@pytest.mark.filterwarnings('ignore:target_l0')
def test_checkpoints_accept_numpy_numbers(options, tmp_path):
    learning_rate = options.pop('learning_rate', 1e-3)
    options = dict(sparsity_type='l1', verbose=0, checkpoint_dir=tmp_path, resume=True) | options
    for epochs in (1, 2):
        history = train(SparseAutoencoder(64, 8), X, X, epochs, learning_rate, 9, **options)
        assert history['epochs_trained'] == epochs


def test_without_a_seed_training_uses_the_global_generator():
    def once():
        torch.manual_seed(0)
        return fit(batch_size=20)['train_loss'], torch.rand(1).item()
    assert once() == once()
    assert fit(batch_size=20)['train_loss'] != fit(batch_size=20)['train_loss']


def test_no_warning_if_the_returned_model_is_on_target():
    class Densify(Callback):
        "After the first epoch, which is on target, the code becomes dense."
        def before_step(self, trainer):
            if trainer.epoch > 0:
                with torch.no_grad(): trainer.model.encoder_bias_2.add_(1)
    x = torch.rand(400, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = SparseAutoencoder(16, 8)
    target = evaluate_sparse_autoencoder(model, x)['l0']
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'target_l0')
        history = train(model, x, x, 3, 1e-9, 9, target_l0=target, sparsity_type='l1', verbose=0,
                        revive=None, callbacks=[Densify()])
    assert history['best_epoch'] == 0 and history['val_l0'][-1] > 1.1*target


def test_a_csv_without_names_keeps_its_first_line(tmp_path):
    path = tmp_path/'x.csv'
    for first in ('1,,3', '1,2,3x'):
        path.write_text(f'{first}\n4,5,6\n')
        with pytest.raises(ValueError, match='line 1, column'): load_matrix(path)
    path.write_text('a,b,c\n1,2,3\n')
    assert load_matrix(path).tolist() == [[1, 2, 3]]
    path.write_text('a,b\n1,2\n3\n')
    with pytest.raises(ValueError, match='line 3 must have 2 numbers'): load_matrix(path)


def test_unusual_data():
    masked = np.ma.masked_greater(X.numpy(), 0.9)
    with pytest.raises(ValueError, match='must have no masked entries'): fit(data=masked)
    with pytest.raises(TypeError, match='must be dense'): fit(data=X.to_sparse())
    assert torch.equal(open_rows('x', X.to_sparse_csr())[:], X)
    with pytest.raises(TypeError, match='or Dataset, got DataLoader; give its .dataset'):
        train_val_split(DataLoader(TensorDataset(X)))
    with torch.inference_mode(): captured = X * 1
    with torch.no_grad(): history = fit(data=captured)
    assert history['train_loss'][1] < history['train_loss'][0]
    large = evaluate_sparse_autoencoder(SparseAutoencoder(64, 8), X*1e25)
    assert np.isfinite(large['errors']).all() and np.isfinite(large['explained_variance'])


def test_a_loader_with_a_generator_resumes_in_its_order(tmp_path):
    class Stop(Exception): pass
    class Break(Callback):
        def after_step(self, trainer):
            if trainer.step == 17: raise Stop
    def run(**options):
        torch.manual_seed(0)
        loader = DataLoader(TensorDataset(X), 32, shuffle=True,
                            generator=torch.Generator().manual_seed(3))
        return fit(data=loader, epochs=5, seed=0, **options)['train_loss']
    expected = run()
    with pytest.raises(Stop): run(checkpoint_dir=tmp_path, checkpoint_minutes=1e-9, callbacks=[Break()])
    assert run(checkpoint_dir=tmp_path, resume=True) == expected


@pytest.mark.parametrize('penalty', [contractive_penalty, isometry_penalty])
@pytest.mark.parametrize('probes', [None, 2])
def test_geometric_penalties_need_a_differentiable_function(penalty, probes):
    with pytest.raises(ValueError, match='must be differentiable'):
        penalty(lambda x: (2*x).detach(), X[:5], probes)


@pytest.mark.parametrize('model, wrong', [
    (ChangedCodes(lambda z: (z, 1)), 'model.encode must return a tensor, got tuple'),
    (ChangedCodes(torch.Tensor.long),
     'model.encode must return floating-point numbers, got torch.int64')])
@pytest.mark.parametrize('kind', ['kl', 'l1', 'hoyer'])
def test_models_whose_codes_cannot_be_used(model, wrong, kind):
    with pytest.raises(TypeError, match=wrong): fit(model, sparsity_type=kind)
    with pytest.raises(TypeError, match=wrong): latent_statistics(model, X)
    with pytest.raises(TypeError, match=wrong): evaluate_sparse_autoencoder(model, X)


def test_codes_that_are_not_vectors():
    model, images = Convolutional(), X.reshape(-1, 1, 8, 8)
    fit(model, images)
    codes = evaluate_sparse_autoencoder(model, images)['latent_codes']
    with pytest.raises(ValueError, match='model must decode codes of shape'):
        plot_dictionary(model, codes=codes)
    for function in (latent_statistics, FeatureExplorer, feature_contributions):
        with pytest.raises(ValueError, match='codes'): function(model, images)


@pytest.mark.parametrize('options, error, wrong', [
    (dict(sparsity_warmup=50), ValueError, 'sparsity_warmup must be less than num_epochs'),
    (dict(sparsity_type=HoyerTarget), TypeError, 'got the class HoyerTarget'),
    (dict(optimizer=lambda p, lr: None), TypeError, 'optimizer must make a torch.optim.Optimizer'),
    (dict(optimizer=torch.optim.LBFGS), TypeError, 'without a closure, got LBFGS')])
def test_unusual_options(options, error, wrong):
    with pytest.raises(error, match=wrong): fit(**options)


def test_unusual_arguments_of_small_functions():
    deep, single = SparseAutoencoder(64, 8), SparseAutoencoder(64, 8, hidden_dims=())
    for z in (np.ones((3, 4)), torch.ones(3, 4).long()):
        with pytest.raises(TypeError, match='z must be a tensor of floating-point'):
            lifetime_sparseness(z)
    for model in (deep, single):
        for latents in ([99], [-1], [], [0.5]):
            with pytest.raises(ValueError, match='latents must be numbers from 0 to 7'):
                dictionary(model, None, latents)
        assert dictionary(model, None, 3).shape == (1, 64)
    with pytest.raises(ValueError, match='codes must have shape'): plot_dictionary(deep, codes=X[0, :8])
    with pytest.raises(ValueError, match=r'codes must have shape \(n, 8\)'):
        match_dictionaries(X[:8], X[:8], X[:5, :2], X[:5, :8])
    with pytest.raises(ValueError, match='data must have shape'): FeatureExplorer(deep, X[:, :3])
    with pytest.raises(ValueError, match='tokens must be given'): FeatureExplorer(deep, X).context(0, 0)
    with pytest.raises(ValueError, match=r'x must have shape \(n, 64\)'): single.initialize(X[:, :3])
    with pytest.raises(ValueError, match='x has 200 of 200 rows'): single.initialize(X*torch.nan)
    assert geometric_median((9*X).long().numpy()).dtype == torch.float32
    with pytest.raises(TypeError, match='grid must be'):
        sweep(lambda: deep, X, X, 3, num_epochs=1, learning_rate=1e-3, patience=1)
    batch = SparseAutoencoder(64, 8, hidden_dims=(), activation=BatchTopK(2))
    assert batch(X[:0]).shape == (0, 64)
    with pytest.raises(ValueError, match='keeps no gradient'):
        fit(ChangedCodes(torch.Tensor.detach), regularizers=[Contractive(0.1, probes=None)])


def test_data_do_not_depend_on_the_default_dtype():
    expected = sparse_dictionary(16, 32, l0=2., correlation=0.3, noise=0.1).sample(10).x
    torch.set_default_dtype(torch.float64)
    try: samples = sparse_dictionary(16, 32, l0=2., correlation=0.3, noise=0.1).sample(10).x
    finally: torch.set_default_dtype(torch.float32)
    assert samples.dtype == torch.float32 and torch.allclose(samples, expected, atol=0.5)


@pytest.mark.parametrize('value', ['random', 1])
def test_starts_that_do_not_exist(value):
    with pytest.raises((TypeError, ValueError), match='initialize must be True'): fit(initialize=value)


def test_numbers_that_torch_does_not_have():
    with pytest.raises(TypeError, match='train_data must hold numbers of a dtype that torch has, got'):
        fit(data=X.numpy().astype(np.longdouble))


def test_arguments_of_another_kind(tmp_path):
    model = SparseAutoencoder(64, 8)
    with pytest.raises(ValueError, match="return_codes must be True, False or 'sparse', got 'csr'"):
        evaluate_sparse_autoencoder(model, X, return_codes='csr')
    for shape in ('8x8', 64):
        with pytest.raises(TypeError, match=r'image_shape must be \(height, width\) or'):
            plot_dictionary(model, shape)
    (tmp_path/'x.csv').write_text('1,2\n3,4\n')
    with pytest.raises(ValueError, match="key must be empty for a .csv file, got 'x'"):
        load_matrix(tmp_path/'x.csv', 'x')
