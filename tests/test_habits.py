"What users do to models and to training: their own methods, hooks, optimisers, copies, threads."
import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from sparse_ae import (BatchTopK, Callback, FeatureExplorer, SparseAutoencoder,
                       TiedWeightSparseAutoencoder, TopK, Trainer, TrainingDashboard, dictionary,
                       digits, evaluate_sparse_autoencoder, kl_divergence_sparsity_loss,
                       local_dictionary, plot_reconstructions, sweep,
                       train_val_split,
                       train_sparse_autoencoder_with_early_stopping as train)
from sparse_ae.models import why_not_native

torch.manual_seed(0)
X = torch.rand(400, 16)


def fit(model, epochs=2, data=X, **options):
    options = dict(learning_rate=1e-3, patience=99, seed=0, verbose=0) | options
    return train(model, data, X[:100], epochs, **options)


# methods, hooks and parametrisations of users

class OtherEncode(SparseAutoencoder):
    def encode(self, x): return super().encode(x - 5)


class OtherLayers(SparseAutoencoder):
    def encode_layers(self, x, keep_hidden=True):
        encoded = super().encode_layers(x, keep_hidden)
        return encoded._replace(z=encoded.z - 0.1)   # signed, whatever the activation says


class OtherDecode(SparseAutoencoder):
    def decode(self, z): return super().decode(z) + 1


class OtherWeights(SparseAutoencoder):
    def decoder_weights(self): return [W.abs() for W in super().decoder_weights()]


class OtherForward(SparseAutoencoder):
    def forward(self, x): return self.decode(self.encode(x)) * 2


class Fixed(nn.Module):
    def forward(self, W): return W / W.abs().max()


def attribute(**kwargs):
    model = SparseAutoencoder(16, 32, **kwargs)
    model.encode = lambda x: SparseAutoencoder.encode(model, x) / 2
    return model


def hook(**kwargs):
    model = SparseAutoencoder(16, 32, **kwargs)
    model.activation.register_forward_hook(lambda module, args, z: -z)
    return model


def pre_hook(**kwargs):
    model = SparseAutoencoder(16, 32, **kwargs)
    model.activation.register_forward_pre_hook(lambda module, args: (args[0] / 2,))
    return model


def weight_norm(**kwargs):
    return parametrizations.weight_norm(SparseAutoencoder(16, 32, **kwargs), 'encoder_mat_1')


def parametrized_decoder(**kwargs):
    model = SparseAutoencoder(16, 32, **kwargs)
    nn.utils.parametrize.register_parametrization(model, f'decoder_mat_{model.depth}', Fixed())
    return model


def made(cls): return lambda **kwargs: cls(16, 32, **kwargs)


CHANGED = {cls.__name__: made(cls) for cls in (OtherEncode, OtherLayers, OtherDecode, OtherWeights)}
CHANGED |= {f.__name__: f for f in (attribute, hook, pre_hook, weight_norm, parametrized_decoder)}
ACTIVATIONS = {'relu': 'relu', 'topk': TopK(4), 'batch_topk': BatchTopK(4)}


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('hidden_dims', [(), None])
@pytest.mark.parametrize('name', CHANGED)
def test_what_a_user_changes_is_what_is_trained_and_measured(name, hidden_dims, activation):
    options = dict(hidden_dims=hidden_dims, activation=ACTIVATIONS[activation], decoder_norm='atom')

    def make():
        torch.manual_seed(0)
        return CHANGED[name](**options).eval()

    model = make()
    assert why_not_native(model)
    with torch.no_grad(): x_reconstructed = model.decode(model.encode(X))
    results = evaluate_sparse_autoencoder(model, X)
    assert_close(results['mean'], (x_reconstructed - X).square().mean().item(), check_dtype=False)
    assert_close(torch.from_numpy(results['latent_codes']), model.encode(X).detach())
    with torch.no_grad(): assert_close(model(X), x_reconstructed)
    losses = []
    for engine in ('auto', 'plain'):
        history = fit(model := make(), engine=engine, sparsity_type='l1')
        losses.append(history['train_loss'] + history['val_loss'])
    assert losses[0] == losses[1]
    results = evaluate_sparse_autoencoder(model, X[:100])
    assert_close(results['mean'], history['val_recon_loss'][history['best_epoch']], rtol=1e-4,
                 atol=0)
    l1 = abs(results['latent_codes']).mean()    # not the cheaper form for codes without a sign
    assert_close(float(l1), history['val_sparsity_loss'][history['best_epoch']], rtol=1e-4, atol=0)
    explorer = FeatureExplorer(model, X[:50])
    assert_close(torch.as_tensor(explorer.model.encode(X[:5])), model.encode(X[:5]))


def test_the_unchanged_model_is_native_and_subclasses_that_add_are():
    class Named(SparseAutoencoder):
        def title(self): return 'mine'
    for cls in (SparseAutoencoder, TiedWeightSparseAutoencoder, Named):
        assert why_not_native(cls(16, 32)) is None


def test_an_attribute_of_a_user_named_scaling_is_not_the_librarys():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scaling, self.layer = 0.5, nn.Linear(16, 8)
        def encode(self, x): return self.layer(x * self.scaling).relu()
        def decode(self, z): return z @ self.layer.weight
    model = Own()
    assert fit(model, 1)['epochs_trained'] == 1
    assert dictionary(model, codes=torch.rand(4, 8)).shape == (8, 16)
    with pytest.raises(ValueError, match="normalize must be False"): fit(model, 1, normalize=True)


def test_a_compiled_model_is_trained_as_the_model_is():
    histories = []
    for wrap in (lambda m: m, torch.compile):
        torch.manual_seed(0)
        histories.append(fit(wrap(SparseAutoencoder(16, 32)), 2, engine='plain', revive=None))
    assert_close(histories[1]['val_loss'], histories[0]['val_loss'])


def test_stacked_sweeps_leave_changed_models_out():
    runs = sweep(lambda: hook(hidden_dims=()), X, X[:100], dict(sparsity_weight=[0.1, 0.2]),
                 num_epochs=1, learning_rate=1e-3, patience=9, verbose=0)
    history = fit(hook_after_seed(), 1, sparsity_weight=0.1)
    assert runs[0].history['train_loss'] == history['train_loss']


def hook_after_seed():
    torch.manual_seed(0)
    return hook(hidden_dims=())


@pytest.mark.parametrize('make', [lambda: OtherForward(16, 32), lambda: top_hook('pre'),
                                  lambda: top_hook('post')])
@pytest.mark.parametrize('use', [lambda m: fit(m, 1), lambda m: evaluate_sparse_autoencoder(m, X)])
def test_a_forward_that_is_something_else_is_reported(make, use):
    with pytest.warns(UserWarning, match=r"model\(x\) is not model.decode\(model.encode\(x\)\)"):
        use(make())


def top_hook(kind):
    model = SparseAutoencoder(16, 32)
    if kind == 'pre': model.register_forward_pre_hook(lambda module, args: (args[0] - 5,))
    else: model.register_forward_hook(lambda module, args, out: out * 2)
    return model


@pytest.mark.parametrize('change', [
    lambda m: m.rescale(2.), lambda m: m.initialize(X), lambda m: fit(m, 1, normalize=True),
    lambda m: fit(m, 1, initialize=True), lambda m: fit(m, 1, revive='resample'),
    lambda m: m.normalize_decoder_weights_row_wise()])
def test_computed_weights_are_not_set_in_vain(change):
    model = SparseAutoencoder(16, 32, hidden_dims=())
    parametrizations.weight_norm(model, 'encoder_mat_1')
    with pytest.raises(ValueError, match='encoder_mat_1, which is computed|must be (None|False) for a model'):
        change(model)


def test_pruned_weights_are_refused():
    model = SparseAutoencoder(16, 32, hidden_dims=())
    prune.l1_unstructured(model, 'encoder_mat_1', 0.5)
    with pytest.raises(ValueError, match='encoder_mat_1 must be a parameter .*prune.remove'):
        fit(model)
    prune.remove(model, 'encoder_mat_1')
    fit(model, 1)


# learning rates

class Record(Callback):
    "Learning rate of each parameter group at each step."
    def __init__(self): self.rates = []
    def after_step(self, trainer):
        self.rates.append([group['lr'] for group in trainer.optimizer.param_groups])


def groups(parameters, lr):
    return torch.optim.SGD([{'params': parameters[:1], 'lr': 0.}, {'params': parameters[1:]}], lr=lr)


def test_the_optimisers_own_groups_keep_their_rates():
    model = SparseAutoencoder(16, 32, hidden_dims=())
    before, record = model.encoder_mat_1.clone(), Record()
    history = fit(model, 4, optimizer=groups, learning_rate=0.1, lr_schedule='linear', batch_size=400,
                  callbacks=[record], sparsity_type='none', revive=None)
    assert torch.equal(model.encoder_mat_1, before)
    assert_close(torch.tensor(record.rates),
                 torch.tensor([[0., 0.1], [0., 0.075], [0., 0.05], [0., 0.025]]))
    assert_close(history['learning_rate'], [0.1, 0.075, 0.05, 0.025])


def test_the_optimisers_own_groups_keep_their_rates_in_a_sweep():
    runs = sweep(lambda: SparseAutoencoder(16, 32, hidden_dims=()), X, X[:100],
                 dict(sparsity_weight=[0.1, 0.2]), num_epochs=2, learning_rate=0.1, patience=9,
                 verbose=0, optimizer=groups, lr_schedule='linear', revive=None)
    torch.manual_seed(0)
    before = SparseAutoencoder(16, 32, hidden_dims=()).encoder_mat_1
    for run in runs: assert torch.equal(run.model.encoder_mat_1, before)


@pytest.mark.parametrize('schedule', ['constant', 'linear'])
def test_a_scheduler_of_torch_and_a_schedule_multiply(schedule):
    class Halve(Callback):
        def before_fit(self, trainer):
            self.scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 1, gamma=0.5)
        def after_epoch(self, trainer): self.scheduler.step()

    record, own = Record(), {'constant': [1, 1, 1, 1], 'linear': [1, 0.75, 0.5, 0.25]}[schedule]
    history = fit(SparseAutoencoder(16, 32), 4, learning_rate=0.1, lr_schedule=schedule,
                  batch_size=400, callbacks=[Halve(), record])
    expected = [0.1 * factor * 0.5**epoch for epoch, factor in enumerate(own)]
    assert_close([rates[0] for rates in record.rates], expected)
    assert_close(history['learning_rate'], expected)


def test_a_rate_set_by_a_callback_is_kept_also_after_a_resume(tmp_path):
    class Set(Callback):
        def after_epoch(self, trainer):
            if trainer.epoch == 2: trainer.optimizer.param_groups[0]['lr'] = 0.02

    def run(epochs, folder, resume=False):
        torch.manual_seed(0)
        record = Record()
        history = fit(SparseAutoencoder(16, 32), epochs, learning_rate=0.1, batch_size=400,
                      callbacks=[Set(), record], checkpoint_dir=tmp_path/folder, resume=resume,
                      checkpoint_epochs=1)
        return [rates[0] for rates in record.rates], history['train_loss']
    rates, losses = run(5, 'whole')
    assert_close(rates, [0.1, 0.1, 0.02, 0.02, 0.02])
    run(3, 'parts')
    again, resumed = run(5, 'parts', resume=True)
    assert_close(again, [0.02, 0.02])
    assert resumed == losses


def test_a_run_that_has_ended_says_so():
    trainer = Trainer(SparseAutoencoder(16, 32), X, X, 1, 1e-3, 9, verbose=0)
    trainer.fit()
    with pytest.raises(RuntimeError, match='the run has ended: make a new Trainer'): trainer.fit()


@pytest.mark.parametrize('penalty', ['kl', kl_divergence_sparsity_loss])
@pytest.mark.parametrize('runs', ['alone', 'stacked'])
def test_the_validation_loss_does_not_depend_on_the_batch_size(penalty, runs):
    losses = []
    for batch_size in (1, 7, 100):
        torch.manual_seed(0)
        options = dict(sparsity_type=penalty, num_epochs=1, learning_rate=1e-3, patience=9,
                       verbose=0, batch_size=batch_size, steps_per_epoch=1, revive=None,
                       optimizer=lambda p, lr: torch.optim.SGD(p, lr=0.))
        if runs == 'stacked':
            run = sweep(lambda: zeroed(), X, X[:100], dict(sparsity_weight=[1., 2.]), **options)[0]
            history = run.history
        else: history = train(zeroed(), X, X[:100], **options, sparsity_weight=1., seed=0)
        losses.append([history['val_sparsity_loss'][0], history['val_loss'][0]])
    for other in losses[1:]: assert_close(other, losses[0], rtol=1e-5, atol=0)


def zeroed():
    "A model that a first step of SGD with rate 0 does not change, with rare activations."
    model = SparseAutoencoder(16, 32, hidden_dims=())
    with torch.no_grad(): model.encoder_bias_1.fill_(-0.6)
    return model


# copies made in training

COPIES = {'deepcopy': copy.deepcopy, 'copy': copy.copy,
          'pickle': lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize('event', ['after_loss', 'after_step', 'after_epoch', 'after_fit'])
@pytest.mark.parametrize('way', COPIES)
@pytest.mark.parametrize('activation', ['relu', 'topk'])
def test_copies_made_in_training_are_models_of_their_own(way, event, activation):
    copies = []

    class Copy(Callback): pass
    setattr(Copy, event, lambda self, trainer: copies.append(COPIES[way](trainer.model)))
    model = SparseAutoencoder(16, 32, hidden_dims=(), activation=ACTIVATIONS[activation],
                              decoder_norm='atom')
    fit(model, 2, callbacks=[Copy()])
    copied = copies[-1]
    assert not copied.assumes_unit_norm
    with torch.no_grad(): copied.decoder_mat_1.mul_(2)   # which normalisation takes back
    norms = dictionary(copied).norm(dim=1)
    assert_close(norms, torch.ones(32))
    history = fit(copied, 1)
    assert history['epochs_trained'] == 1


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('options', [dict(scaling='columns'), dict(scaling='global'), {}])
@pytest.mark.parametrize('cls', [SparseAutoencoder, TiedWeightSparseAutoencoder])
def test_copies_of_a_scaled_run_take_the_data_of_the_user(cls, options, activation):
    x = 300 + 40*X
    metric = {'columns': 'explained_variance_standardized'}.get(options.get('scaling'),
                                                                'explained_variance')

    class Measure(Callback):
        def after_epoch(self, trainer):
            copied = copy.deepcopy(trainer.model)
            for model in (trainer.model, copied):     # the data have variance 1 in the scaled unit
                assert_close(evaluate_sparse_autoencoder(model, x)[metric],
                             1 - trainer.history['val_recon_loss'][-1], rtol=0, atol=1e-4)
            assert trainer.model.assumes_scaled and not copied.assumes_scaled
            again = cls(16, 32, hidden_dims=(), activation=ACTIVATIONS[activation],
                        scaling=options.get('scaling', 'global'))
            again.load_state_dict(trainer.model.state_dict())
            assert_close(again.eval()(x), copied.eval()(x))

    model = cls(16, 32, hidden_dims=(), activation=ACTIVATIONS[activation], **options)
    history = train(model, x, x, 3, 1e-2, 9, sparsity_type='none', normalize=not options, seed=0,
                    verbose=0, callbacks=[Measure()])
    assert (model.scaling is None) == (not options)
    assert_close(evaluate_sparse_autoencoder(model, x)[metric],
                 1 - history['val_recon_loss'][history['best_epoch']], rtol=0, atol=1e-4)


@pytest.mark.parametrize('scaling', ['global', 'columns'])
@pytest.mark.parametrize('hidden_dims', [(), None])
def test_atoms_of_a_scaled_model_have_the_unit_of_its_layers(scaling, hidden_dims):
    x = 300 + X * torch.logspace(0, 3, 16)
    torch.manual_seed(0)
    model = SparseAutoencoder(16, 32, hidden_dims=hidden_dims, scaling=scaling, decoder_norm='atom')
    train(model, x, x, 1, 1e-3, 9, sparsity_type='l1', verbose=0)
    codes = model.encode(x[:1]).detach()
    atoms = dictionary(model, codes.repeat(2, 1))
    active = codes[0] > 0
    assert_close((atoms * model.scaling.scale)[active], local_dictionary(model, x[:1])[0][active],
                 rtol=1e-3, atol=1e-3)
    if hidden_dims == (): assert_close(atoms.norm(dim=1), torch.ones(32))
    assert not model.assumes_scaled


# a model that another thread trains

USES = {
    'evaluate': lambda m, folder: evaluate_sparse_autoencoder(m, X, 'cpu'),
    'save': lambda m, folder: m.save_pretrained(folder),
    'explore': lambda m, folder: FeatureExplorer(m, X[:50]),
    'dictionary': lambda m, folder: dictionary(m, codes=torch.rand(9, 32)),
    'plot': lambda m, folder: plot_reconstructions(m, X[:8])}


@pytest.mark.parametrize('use', USES)
@pytest.mark.parametrize('options', [dict(), dict(normalize=True), dict(batch_norm=True)])
def test_what_looks_at_a_model_in_training_does_not_change_the_run(use, options, tmp_path):
    batch_norm = options.get('batch_norm', False)
    training = {k: v for k, v in options.items() if k != 'batch_norm'}

    def run(look):
        torch.manual_seed(0)
        model, modes, uses = SparseAutoencoder(16, 32, batch_norm=batch_norm), set(), 0

        class Mode(Callback):
            def after_step(self, trainer): modes.add(trainer.model.training)
        trainer = Trainer(model, X, X[:100], 20, 1e-3, 99, seed=0, verbose=0, callbacks=[Mode()],
                          batch_size=20, sparsity_type='l1', **training)
        thread = threading.Thread(target=trainer.fit)
        thread.start()
        while thread.is_alive() and look and uses < 10:
            USES[use](model, tmp_path)
            uses += 1
        thread.join()
        assert modes == {True} and (uses > 0 or not look)
        return trainer.history['train_loss'], trainer.history['val_loss'], model.state_dict()
    plain, watched = run(False), run(True)
    assert plain[:2] == watched[:2]
    for name, value in plain[2].items(): assert torch.equal(value, watched[2][name]), name


def test_a_second_training_of_a_model_is_refused():
    model = SparseAutoencoder(16, 32)

    class Again(Callback):
        def after_step(self, trainer):
            with pytest.raises(ValueError, match='model must not be in training, got a Sparse'):
                fit(model, 1)
    fit(model, 1, callbacks=[Again()])
    fit(model, 1)


def test_a_paused_run_can_be_looked_at():
    model, dashboard = SparseAutoencoder(16, 32), TrainingDashboard()
    dashboard.pause()
    dashboard.fit(model, X, X[:100], 3, 1e-3, 9, verbose=0)
    dashboard.paused_event.wait(60)
    assert evaluate_sparse_autoencoder(model, X)['mean'] > 0
    dashboard.resume()
    assert dashboard.wait()['epochs_trained'] == 3


# half precision

@pytest.mark.parametrize('name', ['topk', 'batch_topk', 'jumprelu', 'gated', 'classic'])
def test_bfloat16_trains_as_well_as_single_precision(name):
    x, val = train_val_split(digits())
    def explained(dtype, seed):
        torch.manual_seed(seed)
        model, training = SparseAutoencoder.from_preset(name, 64, 128, dtype=dtype, num_epochs=4,
                                                        steps_per_epoch=100, verbose=0, seed=seed)
        train(model, x, val, **training)
        assert model.dtype == dtype
        return evaluate_sparse_autoencoder(model, val)['explained_variance']
    # the mean of four seeds, since two seeds of one dtype differ by 0.01 as well
    single, half = (np.mean([explained(dtype, seed) for seed in range(4)])
                    for dtype in (torch.float32, torch.bfloat16))
    assert abs(half - single) < 0.01 and single > 0.5


@pytest.mark.parametrize('weight', [0.01, 1., 100.])
def test_thresholds_of_half_precision_models_learn(weight):
    moved = []
    new = lambda dtype: SparseAutoencoder(16, 32, dtype=dtype, hidden_dims=(),
                                          activation='jumprelu')
    torch.manual_seed(0)
    start = new(torch.float32).state_dict()   # some versions draw other numbers in half precision
    for dtype in (torch.float32, torch.bfloat16):
        model = new(dtype)
        model.load_state_dict(start)
        before = model.activation.log_threshold.detach().clone()
        train(model, X, X, 3, 1e-3, 9, sparsity_type='l0', sparsity_weight=weight, seed=0,
              verbose=0, batch_size=50)
        assert model.activation.log_threshold.dtype == torch.float32
        moved.append((model.activation.log_threshold.detach() - before).abs().mean())
    assert_close(moved[1], moved[0], rtol=0.1, atol=0)
    assert moved[0] > 1e-3


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('options', [
    dict(activation='jumprelu'), dict(activation='gated'), dict(activation=BatchTopK(4)),
    dict(batch_norm=True, hidden_dims=(8,)), dict(scaling='columns')])
def test_what_decides_stays_in_single_precision(options, dtype):
    options = dict(hidden_dims=()) | options
    for model in (SparseAutoencoder(16, 32, dtype=dtype, **options),
                  SparseAutoencoder(16, 32, **options).to(dtype)):
        small = [*model.activation.state_dict().values()]
        small += [t for name, t in model.state_dict().items() if 'norm' in name or 'scaling' in name]
        assert small and all(t.dtype == torch.float32 for t in small if t.is_floating_point())
        assert model.eval().encode(X.to(dtype)).dtype == model(X.to(dtype)).dtype == dtype


# data far from zero

@pytest.mark.parametrize('name', ['topk', 'batch_topk', 'l1', 'jumprelu', 'gated', 'matryoshka'])
def test_presets_do_not_depend_on_the_mean_of_the_data(name):
    x, val = train_val_split(digits())
    losses = []
    for mean in (0, 30, 1e4):
        torch.manual_seed(0)
        model, training = SparseAutoencoder.from_preset(name, 64, 128, l0=8, num_epochs=2,
                                                        steps_per_epoch=50, verbose=0, seed=0)
        shift = mean * x.std()
        history = train(model, x + shift, val + shift, **training)
        losses.append(history['val_recon_loss'][-1])     # the variance is 1
        results = evaluate_sparse_autoencoder(model, val + shift)
        assert abs(1 - results['explained_variance']
                   - history['val_recon_loss'][history['best_epoch']]) < 0.02
    assert max(losses) - min(losses) < 0.01


def test_a_poor_result_is_reported():
    options = dict(sparsity_type='l1', batch_size=20, revive=None)    # 20 steps an epoch
    with pytest.warns(UserWarning, match='explains less .* than their mean'):
        fit(SparseAutoencoder(16, 32, hidden_dims=()), 5, X + 100, learning_rate=1e-6, **options)
    with pytest.warns(UserWarning, match='explains less .* than their mean'):   # of one step as well
        fit(SparseAutoencoder(16, 32, hidden_dims=()), 1, steps_per_epoch=1, **options)
    with pytest.warns(UserWarning, match='of the latents are dead'):
        model = SparseAutoencoder(16, 32, hidden_dims=())
        with torch.no_grad(): model.encoder_bias_1.fill_(-9)
        fit(model, 5, **options)
    with pytest.warns(UserWarning, match='root mean square of 300, .* use normalize=True'):
        fit(SparseAutoencoder(16, 32, hidden_dims=()), 1, X + 300, **options)


# results of an evaluation

@pytest.mark.parametrize('activation', ['relu', 'topk'])
def test_codes_of_an_evaluation_are_kept_as_asked(activation):
    model = SparseAutoencoder(16, 32, hidden_dims=(), activation=ACTIVATIONS[activation])
    whole = evaluate_sparse_autoencoder(model, X, batch_size=77)
    for kept in (False, 'sparse'):
        results = evaluate_sparse_autoencoder(model, X, batch_size=50, return_codes=kept)
        codes = results.pop('latent_codes', None)
        for name, value in results.items():
            np.testing.assert_allclose(value, whole[name], rtol=1e-6, err_msg=name)
        assert results.keys() == whole.keys() - {'latent_codes'}
        if kept is False: assert codes is None
        else:
            assert codes.layout == torch.sparse_csr and codes.shape == (400, 32)
            assert_close(codes.to_dense(), torch.from_numpy(whole['latent_codes'].copy()))
            assert codes.values().count_nonzero() == len(codes.values())


@pytest.mark.parametrize('wrong', ['dense', None, 1])
def test_other_ways_to_keep_codes_are_refused(wrong):
    with pytest.raises(ValueError, match="return_codes must be True, False or 'sparse', got"):
        evaluate_sparse_autoencoder(SparseAutoencoder(16, 32), X, return_codes=wrong)


def test_an_evaluation_leaves_the_model_where_it_is():
    model = SparseAutoencoder(16, 32, device='meta')
    with pytest.raises((NotImplementedError, RuntimeError, ValueError)):
        evaluate_sparse_autoencoder(model, X)
    with pytest.raises((NotImplementedError, RuntimeError, ValueError)): fit(model, 1)
    assert model.device.type == 'meta'
