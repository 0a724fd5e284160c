"Checkpoints and state files: when they are written, what they hold, and what is refused."
import contextlib
import json
import shutil
import signal
from functools import partial

import numpy as np
import pytest
import torch

from sparse_ae import Callback, SparseAutoencoder, TopK, Trainer
from sparse_ae.callbacks import StatefulCallback
from sparse_ae.data import digits
from sparse_ae.files import read_safetensors, write_safetensors
from sparse_ae.io import (CHECKPOINT, CONFIG, STATE_FORMAT, WEIGHTS, Checkpoint, _checkpoint_size,
                          read_state, restore_training_state, run_identity, training_state,
                          write_state)
from sparse_ae.losses import HoyerTarget, kl_divergence_sparsity_loss, l1_sparsity_loss
from sparse_ae.models import BaseSparseAutoencoder, TiedWeightSparseAutoencoder

X = digits()[:128]
pytestmark = [pytest.mark.filterwarnings('ignore:the model explains less'),
              pytest.mark.filterwarnings('ignore:target_l0=4 is not reached')]


def make(folder=None, epochs=3, model=None, patience=9, callbacks=(), **options):
    "Return a trainer of three steps an epoch."
    torch.manual_seed(0)
    if folder is not None: options['checkpoint_dir'] = folder
    return Trainer(model or SparseAutoencoder(64, 12), X[:96], X[96:], epochs, 3e-3, patience, **{
        **dict(seed=0, verbose=0, batch_size=32, callbacks=callbacks), **options})


class Watch(Callback):
    "Records the step of the checkpoint after each step and each epoch."
    def __init__(self, folder): self.path, self.steps, self.epochs = folder/CHECKPOINT, [], []
    def step(self): return read_state(self.path)['step'] if self.path.exists() else None
    def after_step(self, trainer): self.steps.append(self.step())
    def after_epoch(self, trainer): self.epochs.append(self.step())


class StopAt(Callback):
    "Ends training after a step."
    def __init__(self, step): self.at = step
    def after_step(self, trainer):
        if trainer.step == self.at: raise KeyboardInterrupt


def same(one, two):
    return all(map(torch.equal, one.model.parameters(), two.model.parameters())) and all(
        one.history[k] == two.history[k] for k in one.history if k != 'seconds')


# --- When

@pytest.mark.parametrize('options,steps,epochs', [
    (dict(checkpoint_epochs=2), [None]*6 + [6]*6 + [12]*3, [None, 6, 6, 12, 15]),
    (dict(checkpoint_epochs=1), [None]*3 + [3]*3 + [6]*3 + [9]*3 + [12]*3, [3, 6, 9, 12, 15]),
    (dict(), [None]*15, [None]*4 + [15]),                  # 10 seconds have not passed
    (dict(checkpoint_minutes=100), [None]*15, [None]*4 + [15])])
def test_epochs_between_checkpoints(tmp_path, options, steps, epochs):
    watch = Watch(tmp_path/'run')
    # the checkpoint is the last of the callbacks
    make(tmp_path/'run', 5, callbacks=[watch], **options).fit()
    assert watch.steps == steps and watch.step() == 15
    assert watch.epochs == [None, *epochs[:-1]] or watch.epochs == epochs


@pytest.mark.parametrize('minutes,seconds,expected', [   # time of the last checkpoint, after each step
    (0.99, 30, [0, 60, 60, 120, 120, 180, 180, 240, 240, 300, 300, 360]),
    (1., 29.875, [0, 0] + [89.625]*3 + [179.25]*3 + [268.875]*3 + [358.5])])
def test_minutes_between_checkpoints(tmp_path, monkeypatch, minutes, seconds, expected):
    "The clock is set: some seconds pass with every step."
    clock = [0.]
    trainer = make(tmp_path, 4, checkpoint_minutes=minutes)
    checkpoint = next(c for c in trainer.callbacks if isinstance(c, Checkpoint))
    written = []
    monkeypatch.setattr('sparse_ae.io.time.monotonic', lambda: clock[0])
    class Tick(Callback):
        is_last = True      # notified after the checkpoint, to which it is added
        def before_step(self, trainer): clock[0] += seconds
        def after_step(self, trainer): written.append(checkpoint.last_written)
    trainer.add(Tick())
    trainer.fit()
    assert written == expected


def test_pause_between_checkpoints(tmp_path, monkeypatch):
    "At least 10 s, and 400 times the time that the last checkpoint took."
    for seconds, took, due in ((9.99, 0., False), (10., 0., True), (39.95, 0.1, False), (40.1, 0.1, True),
                               (1000., 0.1, True)):
        trainer = make(tmp_path/f'{seconds}')
        checkpoint = next(c for c in trainer.callbacks if isinstance(c, Checkpoint))
        checkpoint.before_fit(trainer)
        assert checkpoint.write_seconds == 0
        monkeypatch.setattr(checkpoint, '_seconds_since', lambda: seconds, raising=False)
        checkpoint.write_seconds = took
        checkpoint.after_epoch(trainer)
        assert checkpoint.path.exists() == due
        checkpoint.after_fit(trainer)


def test_seconds_that_a_checkpoint_took(tmp_path, monkeypatch):
    clock = iter([5., 100., 103., 110.])
    trainer = make(tmp_path)
    checkpoint = next(c for c in trainer.callbacks if isinstance(c, Checkpoint))
    monkeypatch.setattr('sparse_ae.io.time.monotonic', lambda: next(clock))
    checkpoint.before_fit(trainer)
    checkpoint._write(trainer)
    assert (checkpoint.last_written, checkpoint.write_seconds) == (103, 3)
    assert checkpoint._seconds_since() == 7
    checkpoint.after_fit(trainer)


@pytest.mark.parametrize('optimizer', ['adam', 'adamw', torch.optim.SGD])
def test_room_for_a_checkpoint_is_a_lower_limit_of_its_length(tmp_path, optimizer):
    model = SparseAutoencoder(64, 900, hidden_dims=(), decoder_norm='atom')
    trainer = make(tmp_path, 1, model, optimizer=optimizer, sparsity_type='l1')
    size = _checkpoint_size(trainer)
    trainer.fit()
    assert 0.9 * (tmp_path/CHECKPOINT).stat().st_size < size <= (tmp_path/CHECKPOINT).stat().st_size


def test_arguments_of_a_checkpoint_that_are_refused(tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(ValueError, match='checkpoint_dir must be a folder'): Checkpoint(tmp_path/'file')
    for options, message in ((dict(epochs=0), 'checkpoint_epochs must be at least 1'),
                             (dict(minutes=0), 'checkpoint_minutes must be above 0')):
        with pytest.raises(ValueError, match=message): Checkpoint(tmp_path, **options)
    with pytest.raises(TypeError, match='resume must be'): Checkpoint(tmp_path, resume='yes')
    new = Checkpoint(tmp_path/'new'/'deep')
    assert (new.epochs, new.minutes, new.resume) == (None, None, False)
    assert not (tmp_path/'new').exists()        # created when training starts
    trainer = make(tmp_path/'new'/'deep')
    trainer.fit()
    assert (tmp_path/'new'/'deep'/CHECKPOINT).exists()
    with pytest.raises(ValueError, match='must not hold a checkpoint of another run'):
        Checkpoint(tmp_path/'new'/'deep')
    assert Checkpoint(tmp_path/'new'/'deep', resume=True).resume


# --- Resuming

@pytest.mark.parametrize('step', [1, 3, 5, 6])
@pytest.mark.parametrize('activation,options', [
    ('relu', dict(sparsity_type='hoyer', sparsity_weight=1., lr_schedule='cosine', revive='auxiliary')),
    ('jumprelu', dict(sparsity_type='l0', target_l0=4.))], ids=['hoyer', 'target_l0'])
def test_a_run_that_was_ended_resumes_bit_for_bit(tmp_path, activation, options, step):
    start = lambda *args, **more: make(*args, model=SparseAutoencoder(64, 12, activation=activation),
                                       **options, **more)
    torch.manual_seed(0)
    whole = start(tmp_path/'whole', 4)
    whole.fit()
    torch.manual_seed(0)
    part = start(tmp_path/'part', 4, callbacks=[StopAt(step)], checkpoint_minutes=1e-9)
    part.fit()
    assert part.stopped_by == 'interrupt'
    resumed = start(tmp_path/'part', 4, resume=True)
    resumed.fit()
    assert same(resumed, whole) and resumed.stopped_by == 'num_epochs' and resumed.step == 12


@pytest.mark.parametrize('options', [dict(normalize=True), dict(scaling='columns')])
def test_scaled_runs_resume_bit_for_bit(tmp_path, options):
    def run(folder, epochs):
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 12, scaling=options.get('scaling'))
        trainer = make(folder, epochs, model, resume=True, normalize=options.get('normalize', False))
        trainer.fit()
        return trainer
    whole = run(tmp_path/'whole', 4)
    run(tmp_path/'parts', 2)
    resumed = run(tmp_path/'parts', 4)
    assert same(resumed, whole) and torch.equal(resumed.model(X), whole.model(X))


def test_best_weights_of_version_0_1_get_a_scaling(tmp_path):
    "Checkpoints of that version have no scaling: data were divided by one number and not shifted."
    make(tmp_path, 2, normalize=True).fit()
    state = read_state(tmp_path/CHECKPOINT)
    removed = 0
    for weights in (state['model'], *(v['best'] for _, v in state['callbacks'] if 'best' in v)):
        for name in [name for name in weights if name.startswith('scaling.')]:
            del weights[name]
            removed += 1
    assert removed == 6
    write_state(tmp_path/CHECKPOINT, state)
    again = make(tmp_path, 2, normalize=True, resume=True)     # nothing is left but the best weights
    again.fit()
    assert again.stopped_by == 'num_epochs' and again.step == 6


def test_a_signal_writes_a_checkpoint(tmp_path):
    class Press(Callback):
        def after_loss(self, trainer):
            if trainer.step == 4: signal.raise_signal(signal.SIGINT)
    trainer = make(tmp_path, checkpoint_minutes=100, callbacks=[Press()])
    trainer.fit()
    assert trainer.stopped_by == 'interrupt' and read_state(tmp_path/CHECKPOINT)['step'] == 5


def test_ctrl_c_while_the_folder_is_unlocked(tmp_path, monkeypatch):
    trainer = make(tmp_path, 1)
    lock = next(c for c in trainer.callbacks if isinstance(c, Checkpoint)).lock
    release, pressed = lock.release, []
    def press_and_release():
        pressed.append(True)
        for _ in range(2): signal.raise_signal(signal.SIGINT)
        release()
    monkeypatch.setattr(lock, 'release', press_and_release)
    with contextlib.suppress(KeyboardInterrupt): trainer.fit()
    assert pressed and make(tmp_path, 2, resume=True).fit()['epochs_trained'] == 2


def test_a_checkpoint_that_cannot_be_written_gives_the_history(tmp_path):
    class Remove(Callback):
        def after_train(self, trainer):
            if trainer.epoch == 1: shutil.rmtree(tmp_path/'run')
    with pytest.raises(OSError) as caught:
        make(tmp_path/'run', checkpoint_epochs=1, callbacks=[Remove()]).fit()
    assert caught.value.history['epochs_trained'] == 2


def test_a_run_resumes_with_more_epochs_or_patience(tmp_path):
    whole = make(epochs=5)
    whole.fit()
    make(tmp_path/'a', 2).fit()
    more = make(tmp_path/'a', 5, resume=True)
    more.fit()
    assert same(more, whole)
    again = make(tmp_path/'a', 5, resume=True)
    again.fit()      # nothing is left to do
    assert again.stopped_by == 'num_epochs' and again.step == 15 and same(again, whole)
    fewer = make(tmp_path/'a', 3, resume=True)
    fewer.fit()
    assert fewer.stopped_by == 'num_epochs' and fewer.epoch == 5


def test_patience_counts_again_when_a_run_resumes(tmp_path):
    worse = dict(model=None, monitor=lambda trainer: trainer.epoch)      # no epoch improves
    stopped = make(tmp_path, 20, patience=2, **worse)
    stopped.fit()
    assert (stopped.stopped_by, stopped.epoch) == ('patience', 3)
    less = make(tmp_path, 20, patience=1, resume=True, **worse)
    less.fit()
    assert (less.stopped_by, less.epoch) == ('patience', 3)
    more = make(tmp_path, 20, patience=4, resume=True, **worse)
    more.fit()
    assert (more.stopped_by, more.epoch) == ('patience', 5)


@pytest.mark.parametrize('change,name', [
    (dict(sparsity_weight=0.2), 'sparsity_weight'), (dict(batch_size=16), 'batch_size'),
    (dict(sparsity_type='l1'), 'sparsity_type'), (dict(target_sparsity=0.1), 'target_sparsity'),
    (dict(sparsity_weight=0.01), 'sparsity_weight'), (dict(optimizer='adamw'), 'optimizer')])
def test_another_run_is_refused_and_named(tmp_path, change, name):
    make(tmp_path, 1).fit()
    other = make(tmp_path, 1, resume=True, **change)
    before = [p.clone() for p in other.model.parameters()]
    with pytest.raises(ValueError, match=f'{CHECKPOINT}: {name} must be as in the checkpoint'): other.fit()
    assert all(map(torch.equal, before, other.model.parameters()))
    make(tmp_path, 1, resume=True).fit()      # the folder is free, and the checkpoint as it was


def test_another_model_is_refused(tmp_path):
    make(tmp_path, 1).fit()
    for model in (SparseAutoencoder(64, 11), TiedWeightSparseAutoencoder(64, 12)):
        with pytest.raises(ValueError, match='model must be as in the checkpoint'):
            make(tmp_path, 1, model, resume=True).fit()


class Counter(Callback):
    "Counts epochs; has a state."
    count = 0
    def after_epoch(self, trainer): self.count += 1
    def state_dict(self): return dict(count=self.count)
    def load_state_dict(self, state): self.count = state['count']


def test_callbacks_with_a_state_resume(tmp_path):
    counter = Counter()
    make(tmp_path, 2, callbacks=[counter]).fit()
    again = Counter()
    make(tmp_path, 3, callbacks=[again], resume=True).fit()
    assert (counter.count, again.count) == (2, 3)
    with pytest.raises(ValueError, match='callbacks that have a state must be as in the checkpoint'):
        make(tmp_path, 3, resume=True).fit()


@pytest.mark.parametrize('key,value', [('epoch', 1.5), ('history', [1]), ('stopped_by', 3),
                                       ('sparsity_weight', 'high'), ('step', None)])
def test_states_with_another_type_are_refused(key, value):
    trainer = make()
    trainer.fit()
    state, other = training_state(trainer), make()
    before, history = [p.clone() for p in other.model.parameters()], other.history
    with pytest.raises(ValueError, match=f'parts of the state are missing or damaged: .*{key} is'):
        restore_training_state(other, {**state, key: value})
    del state['optimizer']
    with pytest.raises(ValueError, match='parts of the state are missing'):
        restore_training_state(other, state)
    assert all(map(torch.equal, before, other.model.parameters())) and not other.started
    assert other.history is history and (other.epoch, other.step) == (0, 0)


def test_what_a_restored_trainer_continues_with():
    trainer = make(epochs=2)
    trainer.fit()
    state, other = training_state(trainer), make(epochs=4)
    for reason, expected in (('num_epochs', None), ('interrupt', None), ('data', 'data'),
                             ('diverged', 'diverged')):
        other.stopped_by = None
        restore_training_state(other, {**state, 'stopped_by': reason})
        assert other.stopped_by == expected and other.started and other.epoch == 2
    for group in state['optimizer']['param_groups']:      # as in files of version 0.1
        del group['base_lr'], group['lr_factor']
    restore_training_state(other, {**state, 'learning_rate': 1.5e-3})
    assert {(g['base_lr'], g['lr_factor']) for g in other.optimizer.param_groups} == {(3e-3, 0.5)}


def test_identity_of_a_run():
    identity = lambda **options: run_identity(make(**options))
    plain = identity()
    assert plain['sparsity_type'] == 'kl' and plain['target_sparsity'] == 0.05
    assert not {'num_epochs', 'patience', 'verbose', 'callbacks', 'engine', 'resume'} & set(plain)
    assert identity(sparsity_type=kl_divergence_sparsity_loss) == plain
    assert identity(epochs=7, patience=3, engine='plain') == plain
    bound = identity(sparsity_type=partial(kl_divergence_sparsity_loss, target_sparsity=0.2))
    assert bound['target_sparsity'] == 0.2 and bound['sparsity_type'] == 'kl'
    assert identity(sparsity_type=l1_sparsity_loss)['sparsity_type'] == 'l1'
    assert identity(sparsity_type=HoyerTarget(0.5))['sparsity_type'] == 'HoyerTarget(sparseness=0.5)'
    assert identity(optimizer=torch.optim.SGD)['optimizer'] == 'SGD'
    weight = identity(sparsity_weight=np.float32(0.5))['sparsity_weight']
    assert weight == 0.5 and type(weight) is float
    json.dumps(plain)


# --- Files

@pytest.mark.parametrize('value', [
    1, 0.1, True, None, 'text', [], {}, [1, [2.5, 'a']], {'a': {1: None, 2: 'b'}}, float('inf'),
    torch.arange(6).reshape(2, 3).T, torch.tensor(2., dtype=torch.bfloat16), [torch.ones(2), 3]])
def test_states_come_back(tmp_path, value):
    write_state(tmp_path/'state', {'value': value})
    back = read_state(tmp_path/'state')['value']
    assert type(back) is type(value)
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        assert torch.equal(back[0], value[0]) and back[1] == 3
    elif isinstance(value, torch.Tensor): assert torch.equal(back, value) and back.dtype == value.dtype
    else: assert back == value


def test_a_state_is_a_copy_and_tuples_become_lists(tmp_path):
    shared = torch.ones(3)
    write_state(tmp_path/'state', {'a': shared, 'b': [shared[:2], (1, 2)], 'c': ((shared,),)})
    state = read_state(tmp_path/'state')
    assert torch.equal(state['a'], torch.ones(3)) and torch.equal(state['b'][0], torch.ones(2))
    assert state['b'][1] == [1, 2] and torch.equal(state['c'][0][0], shared)
    for bad in (object(), {1, 2}, np.float32(1), [lambda: 0]):
        with pytest.raises(TypeError, match='a state must hold numbers, names, tensors'):
            write_state(tmp_path/'bad', {'bad': bad})
    assert not (tmp_path/'bad').exists()


def test_state_files_that_are_refused(tmp_path):
    path = tmp_path/'state'
    write_state(path, {'a': 1})
    file = read_safetensors(path, 'a file')
    about = json.loads(file.metadata['checkpoint'])
    assert about['format'] == STATE_FORMAT == 2
    for metadata, message in (
            ({'checkpoint': json.dumps({**about, 'format': 3}), 'contents': '{}'}, 'reads up to 2'),
            ({'checkpoint': json.dumps(about), 'contents': '[1]'}, 'it holds a list'),
            ({'checkpoint': json.dumps(about)}, 'is not a checkpoint of this library'),
            ({'other': '1'}, 'is not a checkpoint of this library')):
        write_safetensors(path, {}, metadata)
        with pytest.raises(ValueError, match=message) as caught: read_state(path)
        assert str(path) in str(caught.value)
    write_safetensors(path, {}, {'state': '{"dict": [["a", 1]]}'})       # format 1
    assert read_state(path) == {'a': 1}
    write_safetensors(path, {}, {'checkpoint': json.dumps({**about, 'format': 1}),
                                 'contents': '{"dict": [["a", 1]]}'})
    assert read_state(path) == {'a': 1}


def test_a_model_that_another_class_must_load(tmp_path):
    SparseAutoencoder(6, 4).save_pretrained(tmp_path)
    assert type(BaseSparseAutoencoder.from_pretrained(tmp_path)) is SparseAutoencoder
    with pytest.raises(ValueError, match='folder must hold a TiedWeightSparseAutoencoder'):
        TiedWeightSparseAutoencoder.from_pretrained(tmp_path)
    for missing in (tmp_path/'none', tmp_path/CONFIG):
        with pytest.raises(FileNotFoundError, match=f'no {WEIGHTS} in'):
            SparseAutoencoder.from_pretrained(missing)


def test_configurations_that_differ_are_reported_once_it_is_certain(tmp_path, recwarn, monkeypatch):
    slept = []
    monkeypatch.setattr('sparse_ae.io.time.sleep', slept.append)
    SparseAutoencoder(6, 4, activation=TopK(2), hidden_dims=()).save_pretrained(tmp_path)
    good = (tmp_path/CONFIG).read_text()
    assert good.endswith('\n') and json.loads(good)['dtype'] == 'float32'
    SparseAutoencoder.from_pretrained(tmp_path)
    assert len(recwarn) == 0 and slept == []
    (tmp_path/CONFIG).write_text(good.replace('"row"', '"atom"'))
    loaded = SparseAutoencoder.from_pretrained(tmp_path)
    assert loaded.decoder_norm == 'row' and not loaded.training and slept == [0.01]*5
    assert len(recwarn) == 1 and 'config.json differs' in str(recwarn[0].message)
    (tmp_path/CONFIG).unlink()
    SparseAutoencoder.from_pretrained(tmp_path)
    assert len(recwarn) == 1


def test_weights_of_another_shape_are_refused(tmp_path):
    SparseAutoencoder(6, 4, hidden_dims=()).save_pretrained(tmp_path)
    file = read_safetensors(tmp_path/WEIGHTS)
    tensors = dict(file.tensors)
    for change, message in ((dict(decoder_bias_1=torch.zeros(5)), r'must have shape \(6,\), got \(5,\)'),
                            (dict(more=torch.zeros(2)), r'more must have shape None, got \(2,\)')):
        write_safetensors(tmp_path/WEIGHTS, {**tensors, **change}, {'config': file.metadata['config']})
        with pytest.raises(ValueError, match=message): SparseAutoencoder.from_pretrained(tmp_path)
    del tensors['decoder_bias_1']
    write_safetensors(tmp_path/WEIGHTS, tensors, {'config': file.metadata['config']})
    with pytest.raises(ValueError, match=WEIGHTS + r'.*: decoder_bias_1 must have shape \(6,\), got None'):
        SparseAutoencoder.from_pretrained(tmp_path)
    write_safetensors(tmp_path/WEIGHTS, {}, {'config': '[1]'})
    with pytest.raises(ValueError, match='must hold a JSON object, got list'):
        SparseAutoencoder.from_pretrained(tmp_path)


@pytest.mark.parametrize('options', [{}, dict(engine='plain'), dict(target_l0=3)], ids=str)
def test_a_run_that_had_ended_resumes_to_its_model(tmp_path, options):
    "Also where the last weights are returned, since no epoch counts before a target is reached."
    def run():
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 24, hidden_dims=(), decoder_norm='atom')
        trainer = Trainer(model, digits()[:400], digits()[400:480], 2, 3e-3, 9, 0.1, sparsity_type='l1',
                          batch_size=40, seed=0, verbose=0, checkpoint_dir=tmp_path,
                          checkpoint_epochs=1, resume=True, **options)
        return trainer, trainer.fit()
    (ended, history), (resumed, again) = run(), run()
    assert again['epochs_trained'] == 2 and again['best_epoch'] == history['best_epoch']
    for name, value in ended.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


class Outputs(Callback):
    "Records what the model computes at each moment, and sends SIGINT at one of them."
    def __init__(self, at=None): self.at, self.outputs = at, {}
    def record(self, name, trainer):
        with torch.no_grad(): self.outputs[name, trainer.step] = trainer.model(X[:32])
        if (name, trainer.step) == self.at: signal.raise_signal(signal.SIGINT)
    def before_epoch(self, trainer): self.record('before_epoch', trainer)
    def before_step(self, trainer): self.record('before_step', trainer)
    def after_step(self, trainer): self.record('after_step', trainer)
    def after_train(self, trainer): self.record('after_train', trainer)
    def after_epoch(self, trainer): self.record('after_epoch', trainer)


@pytest.mark.parametrize('at,first', [(('after_step', 4), ('before_step', 4)),
                                      (('after_step', 6), ('after_train', 6)),
                                      (('after_epoch', 6), ('before_epoch', 6))])
def test_callbacks_compute_the_same_after_a_resume(tmp_path, at, first):
    "As `Resample` does: the engine is made before the first of them, as in the whole run."
    def run(outputs, **options):
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 12, hidden_dims=(), decoder_norm='atom')
        make(model=model, callbacks=[outputs], **options).fit()
        return outputs.outputs
    whole = run(Outputs())
    stopped = run(Outputs(at), folder=tmp_path)
    resumed = run(Outputs(), folder=tmp_path, resume=True)
    assert list(resumed)[0] == first and list(stopped | resumed) == list(whole)
    for moment, output in (stopped | resumed).items(): assert torch.equal(output, whole[moment]), moment


@pytest.mark.parametrize('added', [False, True])
def test_a_checkpoint_holds_what_callbacks_did_in_the_step(tmp_path, added):
    "Also a callback that was added to the trainer, after the checkpoint."
    class Drift(StatefulCallback):
        saved_attributes, count = dict(n='count'), 0
        def after_step(self, trainer):
            self.count += 1
            trainer.model.encoder_mat_1.data.add_(1e-3 * self.count)

    class Fail(Callback):
        def before_step(self, trainer):
            if trainer.step == 4: raise RuntimeError('fails')

    def run(*others, **options):
        drift = Drift()
        trainer = make(callbacks=[*others, *([] if added else [drift])], **options)
        if added: trainer.add(drift)
        with contextlib.suppress(RuntimeError): trainer.fit()
        return trainer, drift.count

    options = dict(folder=tmp_path, checkpoint_minutes=1e-9)
    (whole, expected), _ = run(), run(Fail(), **options)
    resumed, count = run(resume=True, **options)
    assert count == expected and same(whole, resumed)
