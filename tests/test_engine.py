"The training engine: logs of other tools, compiled code, memory maps, streams."
import time
import warnings

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from sparse_ae import (AnnealedPNorm, AuxiliaryLoss, BackwardElimination, BatchTopK, Callback, Contractive,
                       EarlyStopping, Isometry, LayerSparsity, LogFile, MatchingPursuit, Resample,
                       SparseAutoencoder, TensorBoardLog, TiedWeightSparseAutoencoder, TopK,
                       Trainer, TrainingDiverged, WandbLog, evaluate_sparse_autoencoder, sweep,
                       train_sparse_autoencoder_with_early_stopping as fit)
from sparse_ae.data import Batches
from sparse_ae.io import CHECKPOINT, read_state
from sparse_ae.sparsity_control import resample
from sparse_ae.engines import cuda_graphs
from sparse_ae.engines.cuda_graphs import _alias_parameters
from sparse_ae.training import batch_losses


def test_a_longer_run_goes_on_from_a_finished_one(split, tmp_path):
    def go(folder, num_epochs, **kwargs):
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 20)
        return model, fit(model, *split, num_epochs, 1e-3, 99, seed=0, verbose=0,
                          regularizers=[Contractive(0.01)],  # draws at each step
                          checkpoint_dir=tmp_path/folder, **kwargs)
    whole, expected = go('whole', 6)
    go('parts', 3)
    longer, history = go('parts', 6, resume=True)
    assert history['val_loss'] == expected['val_loss']
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), longer.parameters()))
    _, unchanged = go('parts', 6, resume=True)  # nothing left to do
    assert unchanged == history
    with pytest.raises(ValueError, match="learning_rate must be as in the checkpoint, 0.001, got"):
        fit(SparseAutoencoder(64, 20), *split, 6, 1e-2, 99, seed=0, verbose=0, resume=True,
            checkpoint_dir=tmp_path/'parts')
    with pytest.raises(ValueError, match='train_data must be as in the checkpoint'):
        fit(SparseAutoencoder(64, 20), split[0][:99], split[1], 6, 1e-3, 99, seed=0, verbose=0,
            resume=True, checkpoint_dir=tmp_path/'parts')
    (tmp_path/'parts'/CHECKPOINT).write_bytes(b'\x80\x04K\x01.')  # a pickle is not read
    with pytest.raises(ValueError, match='is not a checkpoint of this library'):
        go('parts', 6, resume=True)


def test_tensorboard_reads_what_was_logged(split, tmp_path):
    reader = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    history = fit(SparseAutoencoder(64, 20), *split, 3, 1e-3, 3, verbose=0,
                  callbacks=[TensorBoardLog(tmp_path)])
    events = reader.EventAccumulator(str(tmp_path))
    events.Reload()
    for tag, name in (('loss/val', 'val_loss'), ('loss/train', 'train_loss'), ('l0/train', 'l0')):
        assert [e.step for e in events.Scalars(tag)] == [1, 2, 3]
        assert_close([e.value for e in events.Scalars(tag)], history[name], rtol=1e-6, atol=0)


def test_weights_and_biases_offline(split, tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    log = WandbLog(mode='offline', dir=str(tmp_path), project='test')
    history = fit(SparseAutoencoder(64, 20), *split, 2, 1e-3, 3, verbose=0, callbacks=[log])
    assert log.run.config['learning_rate'] == 1e-3 and wandb.run is None
    file, end = next(tmp_path.rglob('offline-run-*/*.wandb')), time.monotonic() + 60
    # another process writes the file, and may not have done so when `finish` returns
    while b'stopped_by' not in file.read_bytes() and time.monotonic() < end: time.sleep(0.1)
    written = file.read_bytes()
    assert repr(history['val_loss'][-1]).encode() in written and b'stopped_by' in written


def test_compiled_training_is_the_same_to_rounding(split):
    histories = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 20)
        histories.append(fit(model, *split, 3, 1e-3, 3, sparsity_type='hoyer', seed=0, verbose=0,
                             compile=compiled))
    assert_close(histories[0]['val_loss'], histories[1]['val_loss'], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('cls', [SparseAutoencoder, TiedWeightSparseAutoencoder])
@pytest.mark.parametrize('norm', ['atom', 'row', None])
def test_aliases_of_the_parameters_get_their_gradients(split, cls, norm):
    model = cls(64, 20, hidden_dims=(), activation=TopK(3), decoder_norm=norm)
    trainer = Trainer(model, *split, 1, 1e-3, 1, verbose=0, sparsity_type='none')
    trainer.start()
    engine, own = trainer.engine, list(model.parameters())
    def step(): batch_losses(model, split[0], trainer.penalty, 0.).objective.backward()
    with _alias_parameters(trainer) as aliases: step()
    assert all(p is q for p, q in zip(model.parameters(), own, strict=True))
    assert model.assumes_unit_norm and all(p.grad is None for p in own)
    step()
    for alias, p in zip(aliases, own, strict=True):
        assert torch.equal(alias.grad, p.grad) and alias.data_ptr() == p.data_ptr()
    engine.close()
    assert not model.assumes_unit_norm and not any(p._backward_hooks for p in own)


def test_aliases_of_parameters_that_were_frozen_meanwhile(split):
    model = SparseAutoencoder(64, 20, hidden_dims=(), activation=TopK(3))
    trainer = Trainer(model, *split, 1, 1e-3, 1, verbose=0, sparsity_type='none')
    trainer.start()
    engine, own = trainer.engine, list(model.parameters())
    model.decoder_mat_1.requires_grad_(False)
    with _alias_parameters(trainer) as aliases:
        assert ([alias.requires_grad for alias in aliases] ==
                [p.requires_grad for p in trainer.parameters])
        assert not model.decoder_mat_1.requires_grad
    assert all(p is q for p, q in zip(model.parameters(), own, strict=True))
    engine.close()


def test_an_optimiser_that_a_callback_puts_in_place(split):
    class Slow(Callback):
        def before_fit(self, trainer): trainer.optimizer = torch.optim.SGD(trainer.parameters, lr=0.)
        def before_step(self, trainer): trainer.learning_rate = 0.
    model = SparseAutoencoder(64, 20, hidden_dims=(), activation=TopK(3))
    model.normalize_decoder_weights()
    before = model.encoder_mat_1.detach().clone()
    fit(model, *split, 1, 1e-3, 1, sparsity_type='none', revive=None, verbose=0, callbacks=[Slow()])
    assert torch.equal(model.encoder_mat_1, before)


def test_holding_the_norm_while_it_is_held(split):
    model = SparseAutoencoder(64, 20, hidden_dims=(), activation=TopK(3))
    model.normalize_decoder_weights()
    with model.assume_unit_norm():
        fit(model, *split, 1, 1e-3, 1, sparsity_type='none', verbose=0)
        assert model.assumes_unit_norm
    assert not model.assumes_unit_norm


def test_what_stops_a_training_before_its_first_step_leaves_the_model_as_it_was(split, monkeypatch):
    model = SparseAutoencoder(64, 20, hidden_dims=(), activation=TopK(3))
    def none_left(*args): raise MemoryError
    monkeypatch.setattr(cuda_graphs, 'RowwiseAdam', none_left)
    monkeypatch.setattr(cuda_graphs, 'kernels_for_rows', lambda W: True)  # so that it is used
    with pytest.raises(MemoryError): fit(model, *split, 1, 1e-3, 1, sparsity_type='none', verbose=0)
    assert all(p.is_contiguous() for p in model.parameters()) and not model.assumes_unit_norm


def test_each_kind_of_model_is_compiled_however_many(split, monkeypatch):
    "By default torch compiles one function eight times, and does not compile it from then on."
    real, counters = torch.compile, torch._dynamo.utils.counters['stats']
    monkeypatch.setattr(torch, 'compile', lambda f: real(f, backend='eager'))  # quicker
    torch._dynamo.reset()
    found = []
    for width in (*range(10, 17), 10):
        before = counters['unique_graphs']
        fit(SparseAutoencoder(64, width), *split, 1, 1e-3, 1, verbose=0, compile=True)
        found.append(counters['unique_graphs'] - before)
    assert min(found[:-1]) > 0 and found[-1] == 0  # the last is like the first


def test_a_model_of_ones_own_may_have_any_attribute(split):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config, self.inside = dict(width=20), SparseAutoencoder(64, 20)
        def encode(self, x): return self.inside.encode(x)
        def decode(self, z): return self.inside.decode(z)
    assert fit(Own(), *split, 1, 1e-3, 1, verbose=0)['epochs_trained'] == 1


def test_nothing_holds_the_way_back_to_the_weights_after_training(split):
    class Stop(Callback):
        def after_loss(self, trainer):
            if trainer.step == 3: raise KeyboardInterrupt
    trainer = Trainer(SparseAutoencoder(64, 20, hidden_dims=(), activation=TopK(3)), *split, 1,
                      1e-3, 1, verbose=0, batch_size=100, sparsity_type='none', callbacks=[Stop()])
    trainer.fit()
    assert trainer.stopped_by == 'interrupt' and trainer.losses.z.shape[1] == 20
    assert not any(t.requires_grad for t in (*trainer.losses[:3], trainer.losses.z))


def test_training_from_a_memory_map_in_blocks(split, tmp_path):
    np.save(tmp_path/'rows.npy', split[0].numpy())
    rows = np.load(tmp_path/'rows.npy', mmap_mode='r')
    model = SparseAutoencoder(64, 20)
    trainer = Trainer(model, rows, split[1], 5, 3e-3, 5, seed=0, verbose=0)
    trainer.train = Batches('train_data', rows, model, shuffle=True, seed=0, buffer_rows=320)
    assert len(trainer.train) == len(list(trainer.train.epoch()))
    history = trainer.fit()
    assert history['val_loss'][-1] < history['val_loss'][0] and history['epochs_trained'] == 5


def test_gradient_checkpointing_and_batch_norm_in_training(split):
    states = []
    for saving in (False, True):
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 20, hidden_dims=(50, 40, 30), batch_norm=True,
                                  gradient_checkpointing=saving)
        fit(model, *split, 2, 1e-3, 3, seed=0, verbose=0,
            regularizers=[LayerSparsity(2, 'l1', 0.1)])
        states.append(model.state_dict())
    for name in states[0]: assert torch.equal(states[0][name], states[1][name]), name


def test_second_passes_do_not_count_in_running_statistics(split):
    seen = []
    for regularizers in ([], [Contractive(0.), Isometry(0.)]):
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 20, batch_norm=True)
        fit(model, *split, 2, 1e-3, 3, seed=0, verbose=0, regularizers=regularizers)
        seen.append(model.state_dict())
    for name in seen[0]: assert torch.equal(seen[0][name], seen[1][name]), name


def test_batch_norm_survives_saving(split, tmp_path):
    for cls in (SparseAutoencoder, TiedWeightSparseAutoencoder):
        model = cls(64, 20, batch_norm=True)
        fit(model, *split, 2, 1e-3, 3, verbose=0)
        model.save_pretrained(tmp_path)
        again = cls.from_pretrained(tmp_path)
        assert again.batch_norm and torch.equal(again(split[1]), model(split[1]))


def test_a_callback_of_ones_own_can_stop_training_and_must_be_one(split):
    class Enough(Callback):
        def after_epoch(self, trainer):
            if trainer.epoch == 2: trainer.stopped_by = 'enough'
    history = fit(SparseAutoencoder(64, 20), *split, 9, 1e-3, 9, verbose=0, callbacks=[Enough()])
    assert (history['epochs_trained'], history['stopped_by']) == (2, 'enough')
    with pytest.raises(TypeError, match='callbacks must be Callback objects'):
        fit(SparseAutoencoder(64, 20), *split, 9, 1e-3, 9, verbose=0, callbacks=[print])


def test_revival_is_for_our_models_and_says_so(split):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = torch.nn.Linear(64, 5), torch.nn.Linear(5, 64)
    assert 'revived' not in fit(Own(), *split, 1, 1e-3, 1, verbose=0)
    with pytest.raises(ValueError, match='revive must be None for a model that is not'):
        fit(Own(), *split, 1, 1e-3, 1, verbose=0, revive='resample')
    frozen = SparseAutoencoder(64, 5)
    frozen.decoder_mat_1.requires_grad_(False)
    assert 'revived' not in fit(frozen, *split, 1, 1e-3, 1, verbose=0)
    with pytest.raises(ValueError, match='revive must be None for a model with frozen parameters'):
        fit(frozen, *split, 1, 1e-3, 1, verbose=0, revive='resample')
    with pytest.raises(ValueError, match="revive must be 'auto', 'resample', 'auxiliary' or None"):
        fit(SparseAutoencoder(64, 5), *split, 1, 1e-3, 1, verbose=0, revive='prayer')
    history = fit(SparseAutoencoder(64, 50), *split, 20, 3e-3, 20, 0.05, sparsity_type='l1',
                  verbose=0, seed=0, revive=Resample(window=300))
    assert sum(history['revived']) > 0


def test_loaders_in_steps_and_streams_checked(split):
    x, val = split
    history = fit(SparseAutoencoder(64, 5), DataLoader(TensorDataset(x), 100), val, 3, 1e-3, 3,
                  steps_per_epoch=4, verbose=0)
    assert history['epochs_trained'] == 3
    bad = iter([x[:50], x[:50] * float('nan')])
    with pytest.raises(ValueError, match='train_data, batch 1, has 50 of 50 rows with NaN'):
        fit(SparseAutoencoder(64, 5), bad, val, 3, 1e-3, 3, steps_per_epoch=4, verbose=0)


def test_nothing_warns_in_a_default_run(split):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fit(SparseAutoencoder(64, 20), *split, 30, 3e-3, 30, verbose=0, seed=0)
        sweep(lambda: SparseAutoencoder(64, 20), *split, dict(sparsity_weight=[0.1, 0.2]),
              num_epochs=30, learning_rate=3e-3, patience=30, verbose=0)


def test_first_weights_give_live_codes_for_several_starts(split):
    "What the notebook shows for one start, for others and another learning rate."
    everything = torch.cat(split)
    for sparsity_type, weight, least in (('l1', 0.01, 0.7), ('kl', 0.1, 0.7), ('hoyer', 1.0, 0.5)):
        for learning_rate in (1e-3, 3e-3):
            runs = sweep(lambda: SparseAutoencoder(64, 50), *split, dict(seed=[1, 2, 3]),
                         num_epochs=100, learning_rate=learning_rate, patience=20, verbose=0,
                         sparsity_type=sparsity_type, sparsity_weight=weight)
            for run in runs:
                results = evaluate_sparse_autoencoder(run.model, everything)
                assert results['dead_fraction'] < 0.2, (sparsity_type, learning_rate)
                assert results['explained_variance'] >= least, (sparsity_type, learning_rate)


def test_checkpoints_by_default_are_rare_where_they_are_dear(split, tmp_path):
    epochs = []

    class Dear(Callback):
        def after_epoch(self, trainer):
            checkpoint = trainer.callbacks[-1]
            if checkpoint.path.exists(): epochs.append(read_state(checkpoint.path)['epoch'])
            if trainer.epoch > 1: checkpoint.last_written -= 11  # as if 11 seconds had passed
            if trainer.epoch == 4: checkpoint.write_seconds = 1e6  # seconds
    fit(SparseAutoencoder(64, 20), *split, 6, 1e-3, 9, verbose=0, checkpoint_dir=tmp_path,
        callbacks=[Dear()])
    assert epochs == [2, 3, 3, 3]  # none before ten seconds, and none once they are dear
    assert read_state(tmp_path/CHECKPOINT)['epoch'] == 6  # the last state in any case


def test_training_starts_from_a_decoder_of_its_norm(split):
    "How long the stored rows are does not matter to the function, so it must not to training."
    train, val = (x.double() for x in split)
    weights = []
    for factor in (1., 3.):
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 20, dtype=torch.float64)
        model.normalize_decoder_weights()
        with torch.no_grad(): model.decoder_mat_2 *= factor
        fit(model, train, val, 2, 1e-3, 3, seed=0, verbose=0)
        weights.append(model.decoder_mat_2.detach())
    assert_close(*weights)


@pytest.mark.parametrize('sparsity_type', ['l1', 'kl'])
def test_a_target_holds_on_the_validation_data(split, sparsity_type):
    "Also where these are of another kind: half as bright, they switch other latents on."
    train, val = split
    torch.manual_seed(0)
    history = fit(SparseAutoencoder(64, 50), train, 0.5*val, 60, 3e-3, 60, seed=0, verbose=0,
                  sparsity_type=sparsity_type, target_l0=8)
    assert abs(history['val_l0'][-1]/8 - 1) < 0.1, history['val_l0'][-1]


@pytest.mark.parametrize('make', [
    lambda folder: dict(callbacks=[EarlyStopping(5)]),
    lambda folder: dict(callbacks=[LogFile(folder/'log.csv')])])
def test_what_remembers_a_run_belongs_to_it_alone(split, tmp_path, make):
    options = make(tmp_path)
    common = dict(num_epochs=1, learning_rate=1e-3, patience=1, verbose=0)
    fit(SparseAutoencoder(64, 5), *split, **common, **options)
    with pytest.raises(ValueError, match='callbacks must be made anew for each run, got a'):
        fit(SparseAutoencoder(64, 5), *split, **common, **options)
    with pytest.raises(ValueError, match='callbacks must be made anew for each run, got a'):
        sweep(lambda: SparseAutoencoder(64, 5), *split, dict(seed=[0, 1]), **common,
              **make(tmp_path))


@pytest.mark.parametrize('make', [
    lambda: dict(revive=AuxiliaryLoss()), lambda: dict(revive=Resample(window=300)),
    lambda: dict(sparsity_type=AnnealedPNorm(0.5))])
def test_arguments_serve_many_runs(split, make):
    options, common = make(), dict(num_epochs=4, learning_rate=3e-3, patience=4, verbose=0, seed=0)

    def losses(options):
        torch.manual_seed(0)
        return fit(SparseAutoencoder(64, 50), *split, **common, **options)['val_loss']
    assert losses(options) == losses(options) == losses(make())
    torch.manual_seed(0)
    runs = sweep(lambda: SparseAutoencoder(64, 50), *split, dict(seed=[0, 1]), **{
        k: v for k, v in common.items() if k != 'seed'}, **options)
    assert runs[0].history['val_loss'] == pytest.approx(losses(options), rel=1e-4)  # to rounding


def test_a_stream_may_end_where_an_epoch_does(split):
    x, val = split
    for batches, epochs in ((10, 2), (11, 3)):
        history = fit(SparseAutoencoder(64, 5), iter(x[:440].split(40)[:batches]), val, 9, 1e-3, 9,
                      steps_per_epoch=5, verbose=0)
        assert (history['stopped_by'], history['epochs_trained']) == ('data', epochs)
        assert len(history['val_loss']) == epochs


def test_batches_of_unequal_size_count_by_their_rows(split):
    x, val = split
    losses = []
    for batches in ([x[:120]], [x[:100], x[100:120]]):
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 5)
        fit(model, batches, val, 1, 0.1, 1, 0.1, sparsity_type='l1', optimizer=torch.optim.SGD,
            accumulate=len(batches), verbose=0, revive=None)
        losses.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert_close(*losses, atol=1e-7, rtol=0)


def test_validation_is_in_eval_mode(split):
    model = SparseAutoencoder(64, 20, batch_norm=True)
    history = fit(model, *split, 3, 1e-3, 3, sparsity_type='none', batch_size=64, verbose=0)
    error = torch.nn.functional.mse_loss(model(split[1]), split[1]).item()
    assert abs(error - history['val_loss'][history['best_epoch']]) < 1e-6


def test_revived_latents_start_with_the_memory_of_the_living(split):
    torch.manual_seed(0)
    trainer = Trainer(SparseAutoencoder(64, 20), *split, 2, 1e-3, 2, verbose=0, seed=0, revive=None)
    trainer.fit()
    dead = torch.zeros(20, dtype=torch.bool)
    dead[:3] = True
    W = trainer.model.encoder_mat_2
    first, second = (trainer.optimizer.state[W][name] for name in ('exp_avg', 'exp_avg_sq'))
    assert first[dead].abs().sum() > 0
    living = second[~dead].mean(0)
    assert resample(trainer.model, dead, split[0], optimizer=trainer.optimizer) == 3
    assert first[dead].abs().sum() == 0 and first[~dead].abs().sum() > 0
    assert_close(second[dead], living.expand(3, -1))


def test_no_checkpoint_of_a_step_that_diverged(split, tmp_path):
    with pytest.raises(TrainingDiverged):
        fit(SparseAutoencoder(64, 20), *split, 5, 1e30, 5, verbose=0, checkpoint_dir=tmp_path,
            checkpoint_minutes=1e-9)
    state = read_state(tmp_path/CHECKPOINT)
    losses = [value for name, value in state['meter'].items() if name == 'sums']
    assert all(np.isfinite(losses).flatten())


BASE = dict(sparsity_type='l1', regularizers=[Contractive(0.01)], verbose=0, seed=0)


@pytest.mark.parametrize('name, model_args, dtype, options', [
    ('model', dict(activation='sigmoid'), torch.float32, {}),
    ('model', dict(decoder_norm='atom'), torch.float32, {}), ('model', {}, torch.float64, {}),
    ('regularizers', {}, torch.float32, dict(regularizers=[Contractive(10.)])),
    ('optimizer', {}, torch.float32, dict(optimizer=torch.optim.NAdam)),
    ('sparsity_type', {}, torch.float32, dict(sparsity_type=lambda z: z.mean())),
    ('learning_rate', {}, torch.float32, dict(learning_rate=np.float32(1e-2))),
    ('train_data', {}, torch.float32, dict(brighter=True))])
def test_another_run_is_not_gone_on_with(split, tmp_path, name, model_args, dtype, options):
    def go(model, learning_rate=np.float32(1e-3), brighter=False, **options):
        x, val = (rows.to(model.dtype) for rows in split)
        return fit(model, 1.5*x if brighter else x, val, 4, learning_rate, 9,
                   checkpoint_dir=tmp_path, resume=True, **{**BASE, **options})
    fit(SparseAutoencoder(64, 8), *split, 2, np.float32(1e-3), 9, checkpoint_dir=tmp_path, **BASE)
    with pytest.raises(ValueError, match=f'{name} must be as in the checkpoint'):
        go(SparseAutoencoder(64, 8, dtype=dtype, **model_args), **options)
    assert go(SparseAutoencoder(64, 8))['epochs_trained'] == 4


def test_patience_and_epochs_may_change_when_a_run_goes_on(split, tmp_path):
    def go(num_epochs, patience):
        torch.manual_seed(0)
        return fit(SparseAutoencoder(64, 8), *split, num_epochs, 3e-3, patience, verbose=0, seed=0,
                   min_delta=0.5, checkpoint_dir=tmp_path, resume=True)
    assert (go(50, 3)['stopped_by'], go(50, 3)['epochs_trained']) == ('patience', 4)
    assert (go(50, 6)['stopped_by'], go(50, 6)['epochs_trained']) == ('patience', 7)
    shorter = go(5, 9)
    assert (shorter['stopped_by'], shorter['epochs_trained']) == ('num_epochs', 7)


def test_sweep_has_a_checkpoint_for_each_run(split, tmp_path):
    def go(num_epochs):
        return sweep(lambda: SparseAutoencoder(64, 8), *split, dict(sparsity_weight=[0.1, 0.2]),
                     num_epochs=num_epochs, learning_rate=1e-3, patience=9, verbose=0,
                     checkpoint_dir=tmp_path, resume=True)
    assert [run.history['epochs_trained'] for run in go(2)] == [2, 2]
    assert [run.history['epochs_trained'] for run in go(3)] == [3, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['0', '1']


def test_an_interrupt_ends_the_whole_sweep(split):
    class Stop(Callback):
        def after_epoch(self, trainer): raise KeyboardInterrupt
    runs = sweep(lambda latent_dim: SparseAutoencoder(64, latent_dim), *split,
                 dict(latent_dim=[5, 6]), num_epochs=3, learning_rate=1e-3, patience=9, verbose=0,
                 callbacks=[Stop()])
    assert [row['epochs_trained'] for row in runs.table] == [1, 0]


@pytest.mark.parametrize('activation', ['identity', 'sigmoid'])
def test_a_target_that_is_not_reached_is_said(split, activation):
    with pytest.warns(UserWarning, match='target_l0=5 is not reached after 3 epochs: the valid') as caught:
        fit(SparseAutoencoder(64, 20, activation=activation), *split, 3, 1e-3, 3, verbose=0,
            sparsity_type='l1', target_l0=5)
    assert caught[0].filename == __file__  # not a line of the library


@pytest.mark.parametrize('term', [Contractive(1e-3), Isometry(1e-3), Contractive(1e-3, None)])
def test_geometry_goes_with_everything(split, term):
    "One cannot differentiate twice through gradient checkpointing, nor mix number formats."
    weights = []
    for saving in (False, True):
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 8, gradient_checkpointing=saving)
        fit(model, *split, 1, 1e-3, 1, verbose=0, seed=0, regularizers=[term])
        weights.append(model.encoder_mat_1.detach())
    assert torch.equal(*weights)
    if term.probes is not None:
        history = fit(SparseAutoencoder(64, 8, batch_norm=True), *split, 1, 1e-3, 1, verbose=0,
                      autocast='bfloat16', regularizers=[term])
        assert np.isfinite(history['val_loss']).all()


class Term:
    name, weight = 'loss', 1.
    def __call__(self, model, x, encoded, generator): return x.new_zeros(())


class Misnamed(Callback):
    def on_epoch_end(self, trainer): pass


class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 5)

    def encode(self, x): return self.layer(x), None
    def decode(self, z): return z


@pytest.mark.parametrize('error, message, options', [
    (ValueError, "regularizers must have names of their own, got 'layer_1_sparsity', which is",
     dict(regularizers=[LayerSparsity(1, 'l1'), LayerSparsity(1, 'hoyer')])),
    (ValueError, "regularizers must have names of their own, got 'loss', which is taken",
     dict(regularizers=[Term()])),
    (TypeError, 'regularizers must be a list, got LayerSparsity',
     dict(regularizers=LayerSparsity(1))),
    (TypeError, 'callbacks must be a list, got Misnamed', dict(callbacks=Misnamed())),
    (TypeError, 'callbacks must be Callback objects, got <class', dict(callbacks=[Callback])),
    (ValueError, 'Misnamed has on_epoch_end, which would never be called',
     dict(callbacks=[Misnamed()])),
    (ValueError, 'checkpoint_dir must be given with resume=True', dict(resume=True)),
    (ValueError, 'checkpoint_dir must be given with checkpoint_epochs=2',
     dict(checkpoint_epochs=2)),
    (ValueError, "monitor must be 'loss', .*, got 'accuracy'", dict(monitor='accuracy')),
    (ValueError, 'monitor must give a number in every epoch', dict(monitor=lambda t: np.nan)),
    (ValueError, 'sparsity_weight must be 0 or more and finite, got inf',
     dict(sparsity_weight=np.inf)),
    (ValueError, 'lr_warmup must be less than num_epochs', dict(lr_warmup=3)),
    (TypeError, 'optimizer must be a name or make one, .* got an SGD that is made already',
     dict(optimizer=torch.optim.SGD(SparseAutoencoder(2, 2).parameters()))),
    (TypeError, 'model.encode must return a tensor, got tuple', dict(model=Pair(), revive=None))])
def test_what_cannot_be_is_said(split, error, message, options):
    model = options.get('model', SparseAutoencoder(64, 8))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(error, match=message):
        fit(model, *split, 2, 1e-3, 3, verbose=0, **{'sparsity_type': 'l1', **{
            k: v for k, v in options.items() if k != 'model'}})
    if not callable(options.get('monitor')):  # before the first step
        assert all(map(torch.equal, before, (p.detach() for p in model.parameters())))


def test_a_shorter_stream_is_refused(split, tmp_path):
    x, val = split
    def go(batches, **options):
        fit(SparseAutoencoder(64, 5), iter(x.split(40)[:batches]), val, 3, 1e-3, 3, verbose=0,
            steps_per_epoch=5, seed=0, checkpoint_dir=tmp_path, **options)
    class Killed(Callback):
        def after_epoch(self, trainer): raise KeyboardInterrupt
    go(20, checkpoint_minutes=1e-9, callbacks=[Killed()])
    with pytest.raises(ValueError, match='train_data must give again the 5 steps .* got 2'):
        go(2, resume=True, callbacks=[Killed()])


def test_counts_are_exact_beyond_what_single_precision_holds():
    from sparse_ae.training import Losses, Meter
    meter, zero = Meter(), torch.zeros(())
    for n in (2**24, 2**24, 1):  # all samples active
        z = torch.zeros(1, 1).expand(n, 1)
        meter.add(Losses(zero, zero, zero, z, torch.tensor([float(n)]), zero, {}))
    assert meter.result()['l0'] == 1


@pytest.mark.parametrize('model_args, options', [
    (dict(batch_norm=True, gradient_checkpointing=True, hidden_dims=(40, 30, 20)), {}),
    (dict(batch_norm=True), dict(autocast='bfloat16')), (dict(hidden_dims=()), dict(patience=1)),
    (dict(hidden_dims=(), encoder=MatchingPursuit(6, 1.5, True), decoder_norm='atom'),
     dict(normalize=True)),
    (dict(hidden_dims=(), encoder=BackwardElimination(3), decoder_norm='atom'), {})])
def test_stacked_runs_are_those_alone(split, model_args, options):
    half = 'autocast' in options
    dtype, tolerance = (torch.float32, 1e-2) if half else (torch.float64, 1e-8)
    make_model = lambda: SparseAutoencoder(64, 8, dtype=dtype, **model_args)
    data = [x.to(dtype) for x in split]
    common = {**dict(num_epochs=2, learning_rate=1e-3, patience=9, verbose=0, sparsity_type='l1',
                     seed=0), **options}
    for run in sweep(make_model, *data, dict(sparsity_weight=[0.1, 0.2]), **common):
        torch.manual_seed(0)
        model = make_model()
        history = fit(model, *data, sparsity_weight=run.settings['sparsity_weight'], **common)
        assert_close(run.history['val_loss'], history['val_loss'], rtol=tolerance, atol=0)
        for name, value in model.state_dict().items():
            assert_close(run.model.state_dict()[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('activation, loss', [(TopK(8), 0.03), (BatchTopK(8), 0.1)])
def test_revival_where_latents_compete_from_a_random_start(activation, loss, split):
    "All that are revived at once must not write over one another (without revival: 80 % dead)."
    torch.manual_seed(0)
    model = SparseAutoencoder(64, 256, hidden_dims=(), activation=activation, decoder_norm='atom')
    history = fit(model, *split, 100, 1e-3, 100, sparsity_type='none', seed=0, verbose=0)
    assert history['val_loss'][-1] < loss and history['dead_fraction'][-1] < 0.05
