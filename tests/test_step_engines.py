"Step engines: with all of them a training gives the losses of the plain engine."
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from sparse_ae import (BatchTopK, Callback, CodeActivation, Penalty, SparseAutoencoder, StopTraining,
                       TiedWeightSparseAutoencoder, TopK, Trainer, kl_divergence_sparsity_loss,
                       sweep, train_sparse_autoencoder_with_early_stopping as fit)
from sparse_ae.engines.stacked import StackedEngine
from sparse_ae.presets import PRESETS
from sparse_ae.regularizers import LayerSparsity
from sparse_ae.training import ENGINES, StepEngine


def losses(split, make, engine, **options):
    "Losses of a short training; the model is made after seeding."
    torch.manual_seed(0)
    model = make()
    options = dict(num_epochs=2, learning_rate=1e-3, patience=9, seed=0, verbose=0) | options
    trainer = Trainer(model, *(x.to(model.dtype) for x in split), engine=engine, **options)
    history = trainer.fit()
    return history['train_loss'] + history['val_loss']


@pytest.mark.parametrize('name', PRESETS)
def test_every_preset_gives_the_losses_of_the_plain_engine(split, name):
    def make(): return SparseAutoencoder.from_preset(name, 64, 128, dtype=torch.float64).model
    options = SparseAutoencoder.from_preset(name, 64, 128).training
    options |= dict(num_epochs=2, steps_per_epoch=8, batch_size=100, patience=9, learning_rate=1e-3)
    fast, plain = (losses(split, make, engine, **options) for engine in ('auto', 'plain'))
    assert_close(fast, plain, rtol=1e-7, atol=0)


@pytest.mark.parametrize('cls', [SparseAutoencoder, TiedWeightSparseAutoencoder])
@pytest.mark.parametrize('options', [
    dict(sparsity_type='l1'), dict(sparsity_type='hoyer'), dict(accumulate=3, batch_size=40),
    dict(clip_grad_norm=0.1), dict(optimizer=torch.optim.SGD), dict(autocast='bfloat16'),
    dict(betas=(0.8, 0.9))])
@pytest.mark.parametrize('model', [
    {}, dict(hidden_dims=(), decoder_norm='atom'), dict(batch_norm=True),
    dict(hidden_dims=(), activation=TopK(8)), dict(hidden_dims=(), activation=BatchTopK(8))])
def test_models_and_options_give_the_losses_of_the_plain_engine(split, cls, options, model):
    half = 'autocast' in options   # in double precision other differences than rounding show
    def make(): return cls(64, 40, dtype=torch.float32 if half else torch.float64, **model)
    fast, plain = (losses(split, make, engine, **options) for engine in ('auto', 'plain'))
    assert_close(fast, plain, rtol=2e-2 if half else 1e-7, atol=0)


def test_engines_are_used_and_say_why_not(split):
    def trainer(**options):
        model = SparseAutoencoder(64, 40, hidden_dims=(), activation=TopK(8))
        return Trainer(model, *split, 1, 1e-3, 1, verbose=0, **options)
    top = trainer()
    assert type(top.engine).__name__ == 'Dense + SparseCode'
    assert not top.why_not()['SparseCodeEngine']
    assert 'the model is not on a GPU' in top.why_not()['CudaGraphEngine']
    top.close()
    plain = trainer(engine='plain')
    assert type(plain.engine) is StepEngine
    assert plain.why_not()['DenseEngine'] == ["engine='plain' is set"]
    with pytest.raises(ValueError, match="engine must be 'auto' or 'plain', got 'fast'"):
        trainer(engine='fast')


def test_verbose_2_prints_the_engines(split, capsys):
    for engine, used in ('auto', 'DenseEngine, SparseCodeEngine'), ('plain', 'StepEngine'):
        fit(SparseAutoencoder(64, 40, hidden_dims=(), activation=TopK(8)), *split, 1, 1e-3, 1,
            verbose=2, engine=engine)
        assert f'step engines: {used}; not used: ' in capsys.readouterr().out


def test_the_plain_engine_is_not_the_fast_one(split):
    "The comparisons above are of two computations: an engine that is wrong is noticed."
    class Wrong(StepEngine):
        def backward(self, losses, share): super().backward(losses, 0.5*share)
    ENGINES['wrong'] = Wrong
    try:
        make = lambda: SparseAutoencoder(64, 40)
        fast, plain = (losses(split, make, engine, optimizer=torch.optim.SGD, learning_rate=0.1)
                       for engine in ('auto', 'plain'))
    finally: del ENGINES['wrong']
    assert abs(fast[-1]/plain[-1] - 1) > 1e-3


@pytest.mark.parametrize('event, epochs', [
    ('before_fit', 0), ('before_epoch', 1), ('before_step', 1), ('after_loss', 1),
    ('after_backward', 1), ('after_step', 1), ('after_train', 1), ('after_epoch', 2)])
def test_stop_training_ends_a_run_at_any_event(split, event, epochs):
    "All callbacks receive the event; the history is consistent, the model in eval mode."
    calls = []

    class Stop(Callback): pass
    class Watch(Callback): pass

    def stop(self, trainer):
        if event == 'before_fit' or trainer.epoch == (2 if event == 'after_epoch' else 1):
            raise StopTraining('enough')
    setattr(Stop, event, stop)
    setattr(Watch, event, lambda self, trainer: calls.append(trainer.epoch))
    model = SparseAutoencoder(64, 10)
    trainer = Trainer(model, *split, 5, 1e-3, 9, verbose=0, callbacks=[Stop(), Watch()])
    history = trainer.fit()
    assert (history['stopped_by'], history['epochs_trained']) == ('enough', epochs)
    assert {len(history[k]) for k in ('train_loss', 'val_loss', 'l0')} == {epochs}
    assert calls and not model.training and not model.assumes_unit_norm


def test_what_is_stacked_must_be_vmappable(split):
    "User-defined parts are computed one model at a time, unless they say that vmap may be used."
    class Centred(CodeActivation):
        name, nonnegative, independent_samples = 'centred', True, False
        def forward(self, pre): return (pre - pre.mean(0)).relu()

    class Doubled(SparseAutoencoder):
        def encode_layers(self, x, keep_hidden=True):
            return super().encode_layers(2*x, keep_hidden)

    def branches(z): return z.abs().mean() if float(z.detach().max()) > 0 else z.sum()

    def reasons(cls=SparseAutoencoder, activation='relu', sparsity_type='l1'):
        return StackedEngine.why_not(Trainer(cls(64, 10, activation=activation), *split, 1, 1e-3, 1,
                                             sparsity_type=sparsity_type, verbose=0))
    assert reasons() == []
    assert reasons(activation=Centred()) == ["its code activation is not vmappable"]
    assert reasons(Doubled) == ["Doubled overrides encode_layers"]
    assert reasons(sparsity_type=branches) == [
        "the penalty is user-defined and not declared vmappable"]
    assert reasons(sparsity_type=Penalty(branches, vmappable=True)) == []
    runs = sweep(lambda: SparseAutoencoder(64, 10), *split, dict(sparsity_weight=[0.1, 0.2]),
                 sparsity_type=branches, num_epochs=1, learning_rate=1e-3, patience=1, verbose=0)
    assert all(len(run.history['val_loss']) == 1 for run in runs)


def test_an_engine_that_is_registered_again_replaces_the_first(split, monkeypatch):
    "As when a cell of a notebook is run twice."
    def register():
        class Halved(StepEngine):
            def backward(self, losses, share): super().backward(losses, 0.5*share)
        monkeypatch.setitem(ENGINES, 'halved', Halved)
        return losses(split, lambda: SparseAutoencoder(64, 40), 'auto', optimizer=torch.optim.SGD)
    assert register() == register()


def test_an_error_before_the_first_epoch_still_ends_the_run(split):
    calls = []

    class Opened(Callback):
        def before_fit(self, trainer): calls.append('opened')
        def after_fit(self, trainer): calls.append('closed')

    class Fails(Callback):
        def before_fit(self, trainer): raise OSError('no space')
    trainer = Trainer(SparseAutoencoder(64, 10), *split, 1, 1e-3, 1, verbose=0,
                      callbacks=[Opened(), Fails()])
    with pytest.raises(OSError, match='no space'): trainer.fit()
    assert calls == ['opened', 'closed'] and not trainer.model.assumes_unit_norm


def test_a_callback_that_sets_eval_mode_changes_no_meter(split):
    class Evaluates(Callback):
        def before_step(self, trainer): trainer.model.eval()
    history = Trainer(SparseAutoencoder(64, 10), *split, 2, 1e-3, 2, verbose=0, seed=0,
                      callbacks=[Evaluates()]).fit()
    assert history['epochs_trained'] == 2 and history['stopped_by'] == 'num_epochs'


def test_a_penalty_with_a_function_has_the_same_name_in_another_process(split):
    "The identity of a run contains no address, and the target that a partial binds."
    def mine(z): return z.abs().mean()
    trainers = [Trainer(SparseAutoencoder(64, 10), *split, 1, 1e-3, 1, verbose=0,
                        sparsity_type=kind, regularizers=[LayerSparsity(1, mine, 0.1)])
                for kind in (Penalty(mine), 'kl', partial(kl_divergence_sparsity_loss,
                                                          target_sparsity=0.3))]
    assert ' at 0x' not in str([t.identity for t in trainers])
    assert trainers[1].identity != trainers[2].identity
