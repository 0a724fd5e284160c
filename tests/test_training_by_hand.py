"The parts of the training loop, with losses that can be worked out without a computer."
import inspect
import math
import time
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sparse_ae import (Callback, SparseAutoencoder, StopTraining, Trainer, TrainingDiverged,
                       train_sparse_autoencoder_with_early_stopping)
from sparse_ae.callbacks import EVENTS
from sparse_ae.data import digits
from sparse_ae.losses import METRICS, get_penalty
from sparse_ae.options import TrainingOptions
from sparse_ae.training import (ENGINES, Losses, Meter, StepEngine, batch_losses, fit_step,
                                make_engine)

X, T = digits()[:128], torch.tensor
pytestmark = pytest.mark.filterwarnings('ignore:the model explains less')


class Doubling(nn.Module):
    "z = 2 x, y = w z; with w = 1 each entry has the error x**2."
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(T(1.))
    def encode(self, x): return 2*x
    def decode(self, z): return self.w*z


class Term:
    "Regulariser that records its arguments."
    def __init__(self, name, value, weight, **attributes):
        self.name, self.value, self.weight = name, value, weight
        vars(self).update(attributes)
    def __call__(self, *args):
        self.args = args
        return T(self.value)


def make(epochs=3, model=None, patience=9, callbacks=(), **options):
    "Return a trainer of three steps an epoch and one batch of validation data."
    torch.manual_seed(0)
    return Trainer(model or SparseAutoencoder(64, 12), X[:96], X[96:], epochs, 3e-3, patience, **{
        **dict(seed=0, verbose=0, batch_size=32, callbacks=callbacks), **options})


# --- Losses

ROWS = T([[1., 0.], [0., -2.]])      # errors 1, 0, 0, 4; code 2, 0, 0, -4


def test_losses_of_a_batch():
    losses = batch_losses(Doubling(), ROWS, get_penalty('l1'), 0.5)
    assert (losses.recon, losses.sparsity) == (1.25, 1.5)
    assert losses.total == 2 and losses.objective is losses.total and losses.terms == {}
    assert losses.active.tolist() == [1, 1]
    assert_close(losses.z, 2*ROWS)
    assert losses.total.requires_grad and not losses.active.requires_grad


def test_targets_regularisers_and_the_scale_of_the_penalty():
    model, generator = Doubling(), torch.Generator()
    reported, hidden = Term('a', 3., 2.), Term('b', 10., 0.1, reported=False)
    losses = batch_losses(model, ROWS, get_penalty('l1'), 0.5, 0.25, [reported, hidden], generator,
                          target=torch.zeros(2, 2), error=lambda y, t: (y - t).abs().sum())
    assert losses.recon == 6       # 2 + 4
    assert losses.total == 6 + 0.5*1.5 + 2*3
    assert losses.objective == 6 + 0.25*0.5*1.5 + 2*3 + 0.1*10
    assert losses.terms == {'a': 3, 'b': 10}
    module, x, encoded, given = reported.args
    assert module is model and x is ROWS and given is generator
    assert_close(encoded.reconstruction, 2*ROWS)
    assert_close(encoded.target_of(x), torch.zeros(2, 2))


@pytest.mark.parametrize('scale,terms,objective', [
    (1., [], 2.), (0., [], 1.25), (T(1.), [], 2.), (1., [Term('b', 1., 3., reported=False)], 5.)])
def test_objective(scale, terms, objective):
    losses = batch_losses(Doubling(), ROWS, get_penalty('l1'), 0.5, scale, terms)
    assert losses.total == 2 and losses.objective == objective


def test_detached_losses_and_sparse_codes():
    losses = batch_losses(Doubling(), ROWS, get_penalty('l1'), 0.5,
                          regularizers=[Term('a', 1., 1.)])
    detached = losses.detach()
    assert detached._fields == Losses._fields and not any(t.requires_grad for t in detached[:6])
    for one, two in zip(detached, losses): assert_close(one, two)
    class Sparse:
        def dense(self): return ROWS
    assert losses._replace(code=Sparse()).z is ROWS


def losses_of(n, loss, recon=1., sparsity=2., active=(1, 0), **terms):
    return Losses(T(loss), T(recon), T(sparsity), torch.zeros(n, 2), T(active), T(loss),
                  {name: T(value) for name, value in terms.items()})


def test_meter_weights_batches_by_their_rows():
    meter = Meter()
    assert meter.read() and meter.n == 0
    assert meter.add(losses_of(3, 1., 4., 6., (3, 0), extra=1.)) is True
    assert meter.add(losses_of(1, 5., 0., 2., (1, 0), extra=9.)) is True
    result = meter.result()
    assert (result['loss'], result['recon_loss'], result['sparsity_loss'], result['extra']) == (2, 3, 5, 3)
    assert result['l0'] == 1 and result['dead_fraction'] == 0.5 and meter.n == 4
    assert result.keys() == {'loss', 'recon_loss', 'sparsity_loss', 'extra', *(
        name for name, m in METRICS.items() if m.in_history)}
    other = Meter()
    other.load_state_dict(meter.state_dict())
    assert other.result() == result and other.n == 4 and other.active.dtype == torch.int64
    other.add(losses_of(4, 4.))
    assert other.result()['loss'] == 3


def test_meter_notices_losses_that_are_not_finite():
    for bad in (math.nan, math.inf):
        meter = Meter()
        assert meter.add(losses_of(2, 1.)) and not meter.add(losses_of(2, bad))
        assert not meter.add(losses_of(2, 1.)) and not meter.read()
    meter = Meter()
    assert meter.add(losses_of(2, 1., extra=math.nan))     # the total decides


def test_counts_beyond_single_precision():
    meter, many = Meter(), 2**24
    for _ in range(2): meter.add(losses_of(1, 1., active=(float(many), 1.)))
    meter.add(losses_of(1, 1., active=(1., 1.)))
    assert meter.active.tolist() == [2*many + 1, 3]


# --- The loop

class Record(Callback):
    "Records events, with step and epoch."
    def __init__(self): self.seen = []

for event in EVENTS:
    setattr(Record, event, lambda self, trainer, event=event: self.seen.append(
        (event, trainer.epoch, trainer.step)))


def test_order_of_events():
    record = Record()
    trainer = make(2, callbacks=[record])
    history = trainer.fit()
    step = lambda epoch, n: [('before_step', epoch, n), ('after_loss', epoch, n),
                             ('after_backward', epoch, n), ('after_step', epoch, n + 1)]
    expected = [('before_fit', 0, 0)]
    for epoch in (0, 1):
        first = 3*epoch
        expected += [('before_epoch', epoch, first), *step(epoch, first), *step(epoch, first + 1),
                     *step(epoch, first + 2), ('after_train', epoch, first + 3),
                     ('after_loss', epoch, first + 3), ('after_epoch', epoch + 1, first + 3)]
    assert record.seen == [*expected, ('after_fit', 2, 6)]
    assert history['stopped_by'] == trainer.stopped_by == 'num_epochs' and not trainer.model.training
    assert history['epochs_trained'] == 2
    with pytest.raises(RuntimeError, match='the run has ended: make a new Trainer'): trainer.fit()


def test_state_within_the_loop():
    model, modes = SparseAutoencoder(64, 12, decoder_norm='atom'), []
    class Look(Callback):
        def after_loss(self, trainer):
            modes.append((model.training, torch.is_grad_enabled(), trainer.losses.total.requires_grad))
            assert trainer.within_epoch
        def after_backward(self, trainer):
            assert all(p.grad is not None for p in trainer.parameters)
        def after_step(self, trainer):
            assert all(p.grad is None for p in trainer.parameters)
            W = model.decoder_mat_2
            assert_close(W.norm(dim=0), torch.ones(W.shape[1]))
        def before_epoch(self, trainer): assert not trainer.within_epoch
        def after_epoch(self, trainer): assert not trainer.within_epoch
    trainer = make(1, model, callbacks=[Look()])
    model(X).sum().backward()      # gradients of a time before training
    model.decoder_mat_2.data.mul_(3)
    trainer.fit()
    assert modes == [(True, True, True)]*3 + [(False, False, False)]
    assert all(p.grad is None for p in model.parameters()) and not trainer.losses.total.requires_grad
    assert_close(model.decoder_mat_2.norm(dim=0), torch.ones(model.decoder_mat_2.shape[1]))


def test_history_is_measured_with_the_model_of_its_epoch():
    class Keep(Callback):
        def after_epoch(self, trainer):
            self.expected = batch_losses(trainer.model, X[96:], trainer.penalty, 0.1)
    keep = Keep()
    start = time.perf_counter()
    history = make(1, callbacks=[keep]).fit()
    assert 0 < history['seconds'][0] < time.perf_counter() - start
    assert history['val_loss'][0] == pytest.approx(keep.expected.total.item(), rel=1e-5)
    assert history['val_recon_loss'][0] == pytest.approx(keep.expected.recon.item(), rel=1e-5)
    assert history['val_l0'][0] == pytest.approx(keep.expected.active.sum().item() / 32)
    for side in ('train', 'val'):
        assert history[f'{side}_loss'][0] == pytest.approx(
            history[f'{side}_recon_loss'][0] + 0.1*history[f'{side}_sparsity_loss'][0])
    assert history['target_sparsity'] == [0.05]
    assert history['learning_rate'] == [3e-3] and history['sparsity_weight'] == [0.1]
    assert history['l0'][0] != history['val_l0'][0] and len(history['dead_fraction']) == 1


def test_validation_penalty_is_that_of_all_rows():
    history = make(1, batch_size=10).fit()       # batches of 10, 10, 10 and 2 rows
    model = SparseAutoencoder(64, 12)
    class Keep(Callback):
        def after_epoch(self, trainer):
            with torch.no_grad(): self.value = trainer.penalty(model.encode(X[96:])).item()
    keep = Keep()
    torch.manual_seed(0)
    model.__init__(64, 12)
    history = Trainer(model, X[:96], X[96:], 1, 3e-3, 9, seed=0, verbose=0, batch_size=10,
                      callbacks=[keep]).fit()
    assert history['val_sparsity_loss'][0] == pytest.approx(keep.value, rel=1e-5)


def test_weight_in_effect_and_rate_in_effect_are_in_the_history():
    class Change(Callback):
        def before_epoch(self, trainer):
            trainer.penalty_scale, trainer.learning_rate = 0.5, 1e-3
            trainer.target_sparsity = 0.2
    trainer = make(1, callbacks=[Change()])
    history = trainer.fit()
    assert history['sparsity_weight'] == [0.05] and history['target_sparsity'] == [0.2]
    assert history['learning_rate'] == [pytest.approx(1e-3)]
    assert trainer.penalty.target_sparsity == 0.2


def test_progress_in_epochs():
    seen = []
    class Look(Callback):
        def before_step(self, trainer): seen.append(trainer.progress)
    trainer = make(2, callbacks=[Look()])
    trainer.fit()
    assert_close(seen, [0., 1/3, 2/3, 1., 4/3, 5/3])
    assert trainer.step_fraction == pytest.approx(1/3)


def test_accumulated_gradients_are_those_of_one_batch():
    "Batches of 32, 32 and 31 rows count by their rows."
    gradients, shares = [], []
    class Look(Callback):
        def after_backward(self, trainer):
            gradients.append([p.grad.clone() for p in trainer.parameters])

    def make_accumulating(**options):
        torch.manual_seed(0)
        return Trainer(SparseAutoencoder(64, 12), X[:95], X[96:], 1, 3e-3, 9, verbose=0, seed=0,
                       callbacks=[Look()], sparsity_type='l1', engine='plain', **options)

    for options in (dict(batch_size=95), dict(batch_size=32, accumulate=3)):
        make_accumulating(**options).fit()
    assert len(gradients) == 2
    for one, two in zip(*gradients): assert_close(one, two)

    trainer = make_accumulating(batch_size=32, accumulate=3)
    with trainer.running():
        for batches in trainer.train_steps():
            assert [len(x)/95 for x, _ in batches] == [share for _, share in batches]
            shares.append(len(batches))
            for x, _ in batches: trainer.losses_of(x)
    assert shares == [3]


def test_shares_of_a_step():
    "`fit_step` calls for each batch: losses, event, backward; then once: event, step, event."
    calls = []
    run = SimpleNamespace(event=calls.append, losses_of=lambda x: calls.append(x) or f'loss {x}',
                          boundary=lambda: calls.append('boundary'),
                          engine=SimpleNamespace(backward=lambda *args: calls.append(args),
                                                 step=lambda: calls.append('step')))
    fit_step(run, [('a', 0.75), ('b', 0.25)])
    assert calls == ['before_step', 'a', 'after_loss', ('loss a', 0.75), 'b', 'after_loss',
                     ('loss b', 0.25), 'after_backward', 'step', 'after_step', 'boundary']


def test_backward_adds_a_share_of_the_objective():
    trainer = make()
    engine, w = StepEngine(trainer), T(3., requires_grad=True)
    for share in (1, 0.25): engine.backward(SimpleNamespace(objective=w.square()), share)
    assert w.grad == 6 + 1.5


def test_gradients_get_the_strides_of_their_parameters():
    trainer = make(optimizer=torch.optim.SGD)
    p = trainer.parameters[0]
    expected = p.detach() - 3e-3
    for other in trainer.parameters[1:]: other.grad = None
    p.grad = torch.ones(p.shape[::-1]).T
    assert p.grad.stride() != p.stride()
    StepEngine(trainer).update()
    assert p.grad.stride() == p.stride()
    assert_close(p.detach(), expected)


def test_learning_rate_of_a_step():
    trainer = make(optimizer=torch.optim.SGD)
    before = [p.clone() for p in trainer.parameters]
    for p in trainer.parameters: p.grad = torch.ones_like(p)
    trainer.learning_rate = 1.5e-3
    engine = StepEngine(trainer)
    engine.normalize = lambda: None
    engine.step()
    for p, old in zip(trainer.parameters, before): assert_close(p.detach(), old - 1.5e-3)
    assert trainer.step == 1 and all(p.grad is None for p in trainer.parameters)


def test_the_options_are_in_the_signature():
    parameters = inspect.signature(train_sparse_autoencoder_with_early_stopping).parameters
    assert {f.name for f in fields(TrainingOptions)} <= set(parameters) and 'kwargs' not in parameters


# --- Ends

def test_the_first_reason_counts():
    trainer = make()
    diverged = TrainingDiverged(trainer)
    trainer.stop(StopTraining('patience'))
    trainer.stop(diverged)
    assert trainer.stopped_by == 'patience' and trainer.error is None
    other = make()
    other.stop(TrainingDiverged(other))
    assert other.stopped_by == 'diverged' and isinstance(other.error, TrainingDiverged)
    third = make()
    third.stop(KeyboardInterrupt())
    assert third.stopped_by == 'interrupt' and third.error is None


@pytest.mark.parametrize('when', ['after_loss', 'validation'])
def test_divergence_in_training_and_in_validation(when):
    class Spoil(Callback):
        def before_step(self, trainer):
            if trainer.step == 4 and when == 'after_loss': trainer.sparsity_weight = math.nan
        def after_train(self, trainer):
            if trainer.epoch == 1: trainer.sparsity_weight = math.nan
    with pytest.raises(TrainingDiverged) as caught: make(callbacks=[Spoil()]).fit()
    history = caught.value.history
    assert history['epochs_trained'] == 1 and history['stopped_by'] == 'diverged'
    assert len(history['val_loss']) == len(history['train_loss']) == 1


def test_an_error_of_a_callback_leaves_whole_epochs():
    class Fail(Callback):
        def after_train(self, trainer):
            if trainer.epoch == 2: raise OSError('disk')
    trainer = make(callbacks=[Fail()])
    trainer.model.decoder_mat_2.data.mul_(2)
    with pytest.raises(OSError, match='disk'): trainer.fit()
    history = trainer.history
    assert history['epochs_trained'] == 2 and history['stopped_by'] is None
    assert {len(v) for k, v in history.items() if isinstance(v, list)} <= {0, 2}
    assert not trainer.model.training and all(p.grad is None for p in trainer.model.parameters())
    assert_close(trainer.model.decoder_mat_2.norm(dim=1), torch.ones(64))


def test_a_step_that_is_broken_off_leaves_no_gradients():
    class Fail(Callback):
        def after_backward(self, trainer): raise OSError('disk')
    trainer = make(callbacks=[Fail()])
    with pytest.raises(OSError, match='disk'): trainer.fit()
    assert all(p.grad is None for p in trainer.model.parameters())


def test_errors_of_the_clean_up_are_notes_of_the_first_one():
    class Fail(Callback):
        def after_train(self, trainer): raise OSError('disk')
        def after_fit(self, trainer): raise ValueError('late')
    with pytest.raises(OSError, match='disk') as caught: make(callbacks=[Fail()]).fit()
    assert caught.value.__notes__ == ['Afterwards ValueError was raised: late']


def test_an_epoch_that_is_entered_in_part_does_not_count():
    class FailingList(list):
        "Fails in the third epoch."
        def append(self, value):
            if len(self) == 2: raise OSError('history')
            super().append(value)
    class Fail(Callback):
        def before_fit(self, trainer): trainer.history['val_loss'] = FailingList()
    trainer = make(callbacks=[Fail()])
    with pytest.raises(OSError, match='history'): trainer.fit()
    assert trainer.history['epochs_trained'] == 2
    assert {len(trainer.history[name]) for name in trainer.options.new_history()
            if isinstance(trainer.history[name], list)} == {2}


def test_the_clean_up_is_completed_if_it_is_broken_off():
    trainer, calls = make(1), []
    def finish(error=None):
        calls.append(error)
        if len(calls) == 1: raise KeyboardInterrupt
        Trainer.finish(trainer, error)
    trainer.finish = finish
    with pytest.raises(KeyboardInterrupt): trainer.fit()
    assert len(calls) == 2 and trainer.begun == [] and trainer._engine is None
    assert not trainer.model.training and all(p.grad is None for p in trainer.model.parameters())


def test_a_stream_that_ends():
    def stream():
        for _ in range(7): yield X[:32]
    for epochs, expected in ((9, 'data'), (2, 'num_epochs')):
        torch.manual_seed(0)
        trainer = Trainer(SparseAutoencoder(64, 12), stream(), X[96:], epochs, 1e-3, 9, verbose=0,
                          steps_per_epoch=3)
        history = trainer.fit()
        assert trainer.stopped_by == expected
        assert history['epochs_trained'] == len(history['val_loss']) == min(epochs, 3)
    def even():
        for _ in range(6): yield X[:32]
    history = Trainer(SparseAutoencoder(64, 12), even(), X[96:], 9, 1e-3, 9, verbose=0,
                      steps_per_epoch=3).fit()
    assert history['epochs_trained'] == len(history['val_loss']) == 2 and history['stopped_by'] == 'data'


def test_a_failed_resume_leaves_the_weights(tmp_path):
    make(1, checkpoint_dir=tmp_path).fit()
    trainer = make(1, checkpoint_dir=tmp_path, resume=True, sparsity_weight=0.7)
    trainer.model.decoder_mat_2.data.mul_(2)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match='sparsity_weight must be as in the checkpoint'): trainer.fit()
    assert_close(trainer.model.state_dict(), before, rtol=0, atol=0)
    assert not trainer.started and not trainer.model.training


def test_the_decoder_is_normalised_before_the_first_step():
    model = SparseAutoencoder(64, 12)
    class Look(Callback):
        def before_fit(self, trainer): self.norms = model.decoder_mat_2.detach().norm(dim=1)
    look = Look()
    trainer = make(1, model, callbacks=[look])
    trainer.fit()
    assert_close(look.norms, torch.ones(64))
    assert trainer.started
    again = make(1)
    again.started = True
    before = again.model.decoder_mat_2.clone()
    again.start()
    assert torch.equal(before, again.model.decoder_mat_2)


# --- Engines

def engine_class(name, usable=True, log=None):
    class Engine(StepEngine):
        @classmethod
        def why_not(cls, trainer): return [] if usable else ['of a test']
        def close(self):
            if log is not None: log.append(name)
            super().close()
    Engine.__name__ = f'{name}Engine'
    return Engine


def test_engines_are_combined_and_the_later_one_overrides(monkeypatch):
    first, second, third = (engine_class(n, u) for n, u in (('A', True), ('B', False), ('C', True)))
    monkeypatch.setattr('sparse_ae.training.ENGINES', {'a': first, 'b': second, 'c': third})
    trainer = make()
    engine = make_engine(trainer)
    assert type(engine).__name__ == 'A + C' and type(engine).__mro__[1:3] == (third, first)
    assert trainer.why_not() == {'a': [], 'b': ['of a test'], 'c': []}
    plain = make(engine='plain')
    assert type(make_engine(plain)) is StepEngine
    assert plain.why_not() == {'a': ["engine='plain' is set"],
                               'b': ["engine='plain' is set", 'of a test'],
                               'c': ["engine='plain' is set"]}
    monkeypatch.setattr('sparse_ae.training.ENGINES', {'b': second})
    assert type(make_engine(trainer)) is StepEngine and StepEngine.why_not(trainer) == []


def test_the_engine_is_chosen_again_when_something_changes(monkeypatch):
    log = []
    monkeypatch.setattr('sparse_ae.training.ENGINES', {'a': engine_class('A', log=log)})
    trainer = make()
    engine = trainer.engine
    assert trainer.engine is engine and log == []
    for change in (lambda: trainer.callbacks.append(Callback()), lambda: trainer.terms.append(None),
                   lambda: setattr(trainer, 'optimizer', torch.optim.SGD(trainer.parameters, 1.))):
        before = trainer.engine
        change()
        assert trainer.engine is not before
    assert log == ['A']*3
    trainer.close()
    assert log == ['A']*4 and trainer._engine is None
    trainer.close()
    assert log == ['A']*4      # nothing is left to be closed
    assert all(issubclass(cls, StepEngine) for cls in ENGINES.values())
