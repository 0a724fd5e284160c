"Targets other than the inputs: denoising, transcoders, crosscoders."
import copy

import pytest
import torch
from torch.testing import assert_close

from sparse_ae import (FeatureExplorer, SparseAutoencoder, TiedWeightSparseAutoencoder,
                       evaluate_sparse_autoencoder, plot_reconstructions,
                       train_sparse_autoencoder_with_early_stopping as fit)
from sparse_ae.activations import BatchTopK, TopK
from sparse_ae.data import Batches, side_by_side, train_val_split
from sparse_ae.measures import explained_variance_with
from sparse_ae.presets import PRESETS
from sparse_ae.scaling import SCALINGS
from sparse_ae.sparsity_control import AuxiliaryLoss, Resample
from sparse_ae.sweeps import sweep
from sparse_ae.targets import AdditiveNoise, Masking
from sparse_ae.training import Trainer

pytestmark = pytest.mark.filterwarnings('ignore:the model explains less', 'ignore:target_l0',
                                        'ignore:before training', 'ignore:train_data have a root')
OPTIONS = dict(num_epochs=2, learning_rate=1e-2, patience=2, seed=0, verbose=0, batch_size=32)


@pytest.fixture(scope='module')
def pairs():
    "Inputs near 5 and targets near 7, whose unit is a tenth: a layer of 20 neurons."
    generator = torch.Generator().manual_seed(0)
    W, V = torch.randn(20, 6, generator=generator), torch.randn(4, 20, generator=generator)
    x = 3*torch.randn(300, 6, generator=generator) + 5
    return x, torch.relu(x @ W.T) @ V.T / 100 + 7


def models(**options):
    "Models with a code activation each, before training."
    for activation in ('relu', TopK(3), BatchTopK(3), 'jumprelu', 'gated', 'soft_threshold'):
        torch.manual_seed(0)
        yield SparseAutoencoder(6, 16, **{'hidden_dims': (), 'activation': activation,
                                          'decoder_norm': 'atom', **options})


@pytest.mark.parametrize('skip', [False, True])
@pytest.mark.parametrize('hidden_dims', [(), (5,)])
def test_scaling_of_a_transcoder_is_folded_exactly(pairs, skip, hidden_dims):
    x, y = (t.double() for t in pairs)
    for model in models(output_dim=4, skip=skip, hidden_dims=hidden_dims, dtype=torch.float64):
        scaling = model.new_scaling('global').fit(torch.cat([x, y], 1))
        assert_close(scaling.scale.unique().sort().values,
                     torch.stack([t.var(0, correction=0).mean().sqrt() for t in (x, y)]).sort().values)
        scaled_x, scaled_y = scaling(x, slice(6)), scaling(y, slice(-4, None))
        with model.in_scaled_unit(scaling):
            for p in model.parameters():
                with torch.no_grad(): p.add_(0.1*torch.randn_like(p))
            expected = model(scaled_x)
            own = copy.deepcopy(model)     # with the scaling as its own
        assert model.scaling is None
        assert_close(model(x), scaling.inverse(expected, slice(-4, None)))
        assert_close(own(x), scaling.inverse(expected, slice(-4, None)))
        with model.in_scaled_unit(scaling): assert_close(model(scaled_x), expected)
        assert expected.shape == scaled_y.shape


@pytest.mark.parametrize('skip', [False, True])
@pytest.mark.parametrize('name', [name for name in PRESETS if name not in
                                  ('ng', 'lista', 'matching_pursuit')])
def test_presets_as_transcoders(pairs, name, skip):
    "All engines compute what the plain one does, in two units; the result beats the mean."
    x, y = (t.double() for t in pairs)
    results = []
    for engine in ('auto', 'plain'):
        torch.manual_seed(0)
        model, training = SparseAutoencoder.from_preset(
            name, 6, 32, l0=4, output_dim=4, skip=skip, dtype=torch.float64, num_epochs=3,
            steps_per_epoch=30, batch_size=64)
        fit(model, x, x, **training, engine=engine, train_targets=y, val_targets=y, seed=0, verbose=0)
        results.append(evaluate_sparse_autoencoder(model, x, targets=y))
    assert_close(results[0]['explained_variance'], results[1]['explained_variance'], rtol=1e-6, atol=1e-6)
    assert_close(model(x), model.decode(model.encode(x)) + (x @ model.skip_mat.T if skip else 0))
    assert results[0]['explained_variance'] > 0.1


@pytest.mark.parametrize('options', [
    dict(corrupt='gaussian'), dict(corrupt=Masking(0.5)),
    dict(model=dict(output_dim=4, skip=True)), dict(model=dict(output_dim=4), normalize=True),
    dict(model=dict(output_dim=4, scaling='columns')),
    dict(model=dict(blocks=(4, 2), decoder_norm='block', scaling='blocks')),
    dict(revive=Resample(32), model=dict(output_dim=4, activation=TopK(2))),
    dict(revive=AuxiliaryLoss(window=32), model=dict(output_dim=4, skip=True))])
def test_resumed_bit_for_bit(pairs, tmp_path, options):
    x, y = pairs
    def make(**more):
        torch.manual_seed(0)
        model = SparseAutoencoder(6, 16, **dict(dict(hidden_dims=(), decoder_norm='atom'),
                                                **options.get('model', {})))
        targets = dict(train_targets=y, val_targets=y) if model.is_transcoder else {}
        chosen = {k: v for k, v in options.items() if k != 'model'}
        history = fit(model, x, x, **OPTIONS | dict(num_epochs=4) | targets | chosen | more)
        return model, history
    whole, history = make()
    make(num_epochs=2, checkpoint_dir=tmp_path)
    parts, resumed = make(checkpoint_dir=tmp_path, resume=True)
    assert history['val_loss'] == resumed['val_loss']
    for name, value in whole.state_dict().items(): assert torch.equal(value, parts.state_dict()[name])
    with pytest.raises(ValueError, match='must be as in the checkpoint'):
        other = dict(corrupt=None) if 'corrupt' in options else dict(corrupt='masking')
        make(checkpoint_dir=tmp_path, resume=True, **other)
    whole.save_pretrained(tmp_path/'model')
    loaded = SparseAutoencoder.from_pretrained(tmp_path/'model')
    assert torch.equal(loaded(x), whole(x)) and loaded.config() == whole.config()


def test_equal_targets_change_nothing(pairs):
    "Targets that are the inputs give the run without targets, bit for bit."
    x, _ = pairs
    for normalize in (False, True):
        for options in (dict(), dict(initialize=True, revive=Resample(32), sparsity_type='l1')):
            histories = []
            for targets in ({}, dict(train_targets=x.clone(), val_targets=x.clone())):
                torch.manual_seed(0)
                model = SparseAutoencoder(6, 16, hidden_dims=(), activation=TopK(2))
                histories.append(fit(model, x, x, **OPTIONS, normalize=normalize, **options, **targets))
            assert histories[0]['val_loss'] == histories[1]['val_loss']
            assert histories[0]['l0'] == histories[1]['l0']


def test_denoising_pairs_of_the_user(pairs):
    "Noisy inputs with clean targets have one unit, one scaling and one width."
    x, _ = pairs
    noisy = AdditiveNoise(1.)(x, torch.Generator().manual_seed(0))
    model = SparseAutoencoder(6, 16, hidden_dims=(), decoder_norm='atom')
    trainer = Trainer(model, noisy, noisy, train_targets=x, val_targets=x, normalize=True, **OPTIONS)
    assert len(trainer.scaling.shift) == 6
    assert_close(trainer.scaling.shift, noisy.mean(0))
    trainer.fit()
    assert evaluate_sparse_autoencoder(model, noisy, targets=x)['mean'] < (x - x.mean(0)).var()


def test_corruption_leaves_validation_alone(pairs):
    x, _ = pairs
    seen = {True: [], False: []}
    model = SparseAutoencoder(6, 4)
    def corrupt(rows, generator):
        seen[model.training].append(len(rows))
        return rows + 100
    history = fit(model, x, x, **OPTIONS | dict(learning_rate=1e-12), corrupt=corrupt)
    assert sum(seen[True]) == 2*len(x) and not seen[False]
    for key, inputs in (('val', x), ('train', x + 100)):      # the model does not change
        error = (model(inputs) - x).square().mean().item()
        assert history[f'{key}_recon_loss'][-1] == pytest.approx(error, rel=1e-4)
    with pytest.raises(ValueError, match='corrupt must return shape'):
        fit(model, x, x, **OPTIONS, corrupt=lambda rows, generator: rows[0])
    with pytest.raises(ValueError, match="corrupt must be 'gaussian' or 'masking'"):
        fit(model, x, x, **OPTIONS, corrupt='salt')


@pytest.mark.parametrize('kind', ['corrupted', 'other targets'])
def test_compiled_losses_are_those_of_the_same_targets(pairs, kind, monkeypatch):
    "With `compile=True` inputs are corrupted, and targets are used, as without."
    compile = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f: compile(f, backend='eager'))   # quicker
    (x, y), losses = pairs, []
    options = (dict(corrupt=AdditiveNoise(3.)) if kind == 'corrupted' else
               dict(train_targets=y, val_targets=y))
    for compiled in (False, True):
        torch.manual_seed(0)
        model = SparseAutoencoder(6, 16, hidden_dims=(),
                                  output_dim=None if kind == 'corrupted' else 4)
        history = fit(model, x, x, **OPTIONS, **options, compile=compiled)
        losses.append(history['train_loss'] + history['val_loss'])
    assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]))


@pytest.mark.parametrize('kind', ['tensor', 'numpy', 'memmap', 'dataset', 'half'])
def test_kinds_of_rows(pairs, tmp_path, kind):
    "Inputs and targets of any kind of rows give the run of the tensors."
    import numpy as np
    x, y = pairs
    def convert(t, name):
        if kind == 'memmap':
            np.save(tmp_path/f'{name}.npy', t.numpy())
            return np.load(tmp_path/f'{name}.npy', mmap_mode='r')
        return {'tensor': t, 'numpy': t.numpy(), 'half': t.double(),
                'dataset': torch.utils.data.TensorDataset(t)}[kind]
    histories = []
    for inputs, targets in ((x, y), (convert(x, 'x'), convert(y, 'y'))):
        torch.manual_seed(0)
        model = SparseAutoencoder(6, 16, output_dim=4, hidden_dims=())
        histories.append(fit(model, inputs, x, **OPTIONS, train_targets=targets, val_targets=y))
    assert_close(histories[0]['val_loss'], histories[1]['val_loss'])


def test_images_as_inputs_and_targets():
    "A module of a user gets inputs and targets in their own shapes."
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = torch.nn.Linear(8, 3), torch.nn.Linear(3, 6)
        def encode(self, x):
            assert x.shape[1:] == (2, 4)
            return self.down(x.flatten(1))
        def decode(self, z): return self.up(z).unflatten(1, (3, 2))
    x, y = torch.randn(50, 2, 4), torch.randn(50, 3, 2)
    history = fit(Module(), x, x, **OPTIONS, sparsity_type='none', train_targets=y, val_targets=y)
    assert history['epochs_trained'] == 2
    with pytest.raises(ValueError, match=r'model.decode must return shape \(\d+, 4\), as its target'):
        fit(Module(), x, x, **OPTIONS, train_targets=y[:, 0, :].repeat(1, 2),
            val_targets=y[:, 0, :].repeat(1, 2))


def test_sweeps_evaluate_on_targets(pairs):
    x, y = pairs
    runs = sweep(lambda skip: SparseAutoencoder(6, 16, output_dim=4, skip=skip, hidden_dims=()), x, x,
                 dict(skip=[False, True]), train_targets=y, val_targets=y, **OPTIONS)
    for run, row in zip(runs, runs.table):
        results = evaluate_sparse_autoencoder(run.model, x, targets=y)
        assert row['explained_variance'] == results['explained_variance']


def test_crosscoders_have_norms_that_sum_to_one(pairs):
    x, _ = pairs
    for scaling in (None, 'blocks'):
        for activation in ('relu', TopK(3)):
            model = SparseAutoencoder(6, 16, hidden_dims=(), activation=activation, blocks=(4, 2),
                                      decoder_norm='block', scaling=scaling)
            fit(model, side_by_side(x[:, :4], x[:, 4:]), x, **OPTIONS, sparsity_type='l1')
            W = model.decoder_mat_1
            assert_close(W[:4].norm(dim=0) + W[4:].norm(dim=0), torch.ones(16))
    assert SCALINGS['blocks'].name == 'blocks' and model.scaling.scale.unique().numel() == 2
    tied = TiedWeightSparseAutoencoder(6, 5, hidden_dims=(), blocks=(4, 2), decoder_norm='block')
    tied.normalize_decoder_weights()
    assert_close(tied.encoder_mat_1[:, :4].norm(dim=1) + tied.encoder_mat_1[:, 4:].norm(dim=1),
                 torch.ones(5))


def test_rows_side_by_side_stay_aligned(pairs):
    x, y = pairs
    rows = side_by_side(x, y.numpy())
    model = SparseAutoencoder(10, 4)
    for batch in Batches('train_data', rows, model, 32, shuffle=True, seed=0, buffer_rows=100):
        inputs, targets = rows.separate(batch)
        index = (inputs[:, None] == x).all(-1).int().argmax(1)
        assert torch.equal(targets, y[index])
    train, val = train_val_split(rows, 0.25, seed=1)
    plain_train, plain_val = train_val_split(torch.cat([x, y], 1), 0.25, seed=1)
    assert torch.equal(train[:], plain_train) and torch.equal(val[:], plain_val)


@pytest.mark.parametrize('arguments, message', [
    (dict(train_targets=None, val_targets=None), 'train_targets and val_targets must be given for'),
    (dict(val_targets=None), 'train_targets and val_targets must be given together'),
    (dict(train_targets=torch.zeros(299, 4)), 'train_data must have as many rows as its targets, 299'),
    (dict(train_targets=torch.zeros(300, 5)), r'targets of train_data must have shape \(n, 4\)'),
    (dict(val_targets=torch.full((300, 4), torch.nan)), 'val_data')])
def test_bad_targets(pairs, arguments, message):
    x, y = pairs
    model = SparseAutoencoder(6, 16, output_dim=4)
    with pytest.raises(ValueError, match=message):
        fit(model, x, x, **OPTIONS | dict(train_targets=y, val_targets=y) | arguments)


def test_bad_arguments(pairs):
    x, y = pairs
    model = SparseAutoencoder(6, 16, output_dim=4)
    with pytest.raises(TypeError, match='train_data must be rows that are read by index'):
        fit(model, iter([x]), x, **OPTIONS, train_targets=y, val_targets=y, steps_per_epoch=1)
    with pytest.raises(ValueError, match='targets must be given for a model with output_dim=4'):
        evaluate_sparse_autoencoder(model, x)
    with pytest.raises(ValueError, match='output_dim must be None for tied weights'):
        TiedWeightSparseAutoencoder(6, 16, output_dim=4)
    with pytest.raises(ValueError, match='output_dim must be at least 1'):
        SparseAutoencoder(6, 16, output_dim=0)
    with pytest.raises(ValueError, match="blocks must be given for scaling='blocks'"):
        SparseAutoencoder(6, 16, scaling='blocks')


@pytest.mark.parametrize('skip', [False, True])
def test_views_that_compare_with_inputs_refuse_transcoders(pairs, skip):
    x, _ = pairs
    model = SparseAutoencoder(6, 16, output_dim=6, skip=skip, hidden_dims=())
    explorer = FeatureExplorer(model, x).wait()
    for view in (lambda: plot_reconstructions(model, x), lambda: explorer.steer(0, 0, 2.),
                 lambda: explorer.steering_figure(0, 0),
                 lambda: explained_variance_with(model, x, [True]*16)):
        with pytest.raises(ValueError, match='model must reconstruct its inputs to be compared'):
            view()
