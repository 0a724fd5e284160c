"""Ctrl-C, SIGTERM, SIGKILL and exceptions at any moment of a training, and callbacks that fail.

The long versions are scripts: `injections.py`, `kills.py` and `resumes.py`."""
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

from injections import ACTIONS, Injection, check_injection, references
from kills import Configuration
from resumes import resume_from_each
from sparse_ae import Callback, EarlyStopping, LogFile, SparseAutoencoder, Trainer, sweep
from sparse_ae.data import digits
from sparse_ae.files import own_file
from sparse_ae.interrupts import hold_signals
from sparse_ae.io import CHECKPOINT, read_state

HERE = Path(__file__).parent
X = digits()[:128]


def make(folder=None, *callbacks, model=None, **options):
    "Return a trainer of three epochs with three steps each."
    torch.manual_seed(0)
    if folder is not None: options['checkpoint_dir'] = folder
    return Trainer(model or SparseAutoencoder(64, 12), X[:96], X[96:], 3, 3e-3, 9, seed=0,
                   verbose=0, batch_size=32, callbacks=callbacks, **options)


class At(Callback):
    "Calls a function at an event of a step."
    def __init__(self, event, step, action):
        self.event, self.step, self.action = event, step, action

    def before_step(self, trainer): self.at('before_step', trainer)
    def after_loss(self, trainer): self.at('after_loss', trainer)
    def after_backward(self, trainer): self.at('after_backward', trainer)
    def after_step(self, trainer): self.at('after_step', trainer)
    def after_fit(self, trainer): self.at('after_fit', trainer)
    def at(self, event, trainer):
        if event == self.event and trainer.step == self.step: self.action()


def same(one, two, history=True):
    "Whether two trainers have ended with equal weights and histories."
    return all(map(torch.equal, one.model.parameters(), two.model.parameters())) and (
        not history or all(one.history[k] == two.history[k] for k in one.history if k != 'seconds'))


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the campaign forks its processes')
def test_processes_killed_at_random_and_resumed_are_the_same_bit_for_bit():
    "SIGKILL, SIGTERM, SIGINT and a double SIGINT to real processes."
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, HERE/'kills.py', '--kills', '8'], text=True,
                          capture_output=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    kills, equal = re.search(r'^all +\d+ +(\d+) +(\d+)$', done.stdout, re.M).groups()
    assert int(kills) >= 8 and equal == kills


@pytest.mark.filterwarnings('ignore')
def test_runs_resumed_in_the_middle_of_an_epoch_are_the_same_bit_for_bit(tmp_path):
    "Latents are revived at the first step after the third checkpoint, by the rounding of the engine."
    c = Configuration('lista', 'memory map', 'auto', 'inputs', 1)
    assert resume_from_each(c, tmp_path, every=16) == (6, [])


@pytest.mark.parametrize('name', ['scaling', 'resampling', 'checkpoints'])
def test_exceptions_and_signals_at_random_lines(name):
    "A sample of the lines, with each kind of exception."
    reference, chance = references(name), random.Random(name)
    for action in ACTIONS:
        for _ in range(4):
            where, promised, wrong = check_injection(name, chance.randint(1, reference[1]), action,
                                                     reference)
            assert not (promised and wrong), (where, action, wrong)


@pytest.mark.parametrize('name,action,first,last,reached', [
    ('early stopping', 'interrupt', 150, 200, 'callbacks._begin'),
    ('engines', 'interrupt', 660, 760, 'dense.hold_unit_norm'),
    ('resampling', 'error', 3370, 3450, 'models.assume_scaled'),
    ('checkpoints', 'error', 190, 240, 'callbacks.before_fit'),           # the log is prepared
    ('early stopping', 'press twice', -230, 0, 'callbacks.after_fit'),    # best weights are loaded
    ('checkpoints', 'press twice', -160, -20, 'files.release')])          # the folder is unlocked
def test_exceptions_and_signals_at_each_line(name, action, first, last, reached):
    "Lines from `first` to `last`, counted from the end if negative; `reached` is among them."
    reference, places = references(name), []
    shift = reference[1] if first < 0 else 0
    for n in range(shift + first, shift + last + 1):
        where, promised, wrong = check_injection(name, n, action, reference)
        assert not (promised and wrong), (where, wrong)
        places.append(where)
    assert any(where.startswith(reached) for where in places)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('event', ['before_step', 'after_loss', 'after_step'])
def test_a_signal_ends_training_at_the_next_boundary(tmp_path, number, event):
    stopped = make(tmp_path, At(event, 4, lambda: signal.raise_signal(number)))
    if number == signal.SIGINT: assert stopped.fit()['stopped_by'] == 'interrupt'
    else:
        with pytest.raises(SystemExit) as end: stopped.fit()
        assert end.value.code == 143 and stopped.history['stopped_by'] == 'interrupt'
    assert stopped.history['epochs_trained'] == 1
    assert read_state(tmp_path/CHECKPOINT)['step'] == (4 if event == 'after_step' else 5)
    whole, resumed = make(), make(tmp_path, resume=True)
    for trainer in (whole, resumed): trainer.fit()
    assert same(whole, resumed)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class PressingAdam(torch.optim.Adam):
    "Receives two signals after its second step has changed the weights."
    def step(self):
        super().step()
        self.calls = getattr(self, 'calls', 0) + 1
        if self.calls == 2: ACTIONS['press twice']()


@pytest.mark.parametrize('event', ['after_loss', 'after_backward', 'optimizer'])
def test_a_second_ctrl_c_ends_at_once(tmp_path, event):
    "No checkpoint is written within a step; the state is complete nevertheless."
    steps, pressing = [], event == 'optimizer'
    stopped = make(tmp_path, At(event, 1, ACTIONS['press twice']),
                   At('after_step', 2, lambda: steps.append(2)), engine='plain',
                   optimizer=PressingAdam if pressing else 'adam')
    assert stopped.fit()['stopped_by'] == 'interrupt' and not steps
    assert not (tmp_path/CHECKPOINT).exists()
    assert all(p.grad is None for p in stopped.model.parameters()) and not stopped.model.training
    torch.testing.assert_close(stopped.model.decoder_mat_2.norm(dim=1), torch.ones(64))


@pytest.mark.parametrize('presses', [1, 2])
def test_ctrl_c_when_training_is_over_is_not_lost(presses):
    "It interrupts the program after the clean-up, of which nothing is left out."
    ends = []
    class Last(Callback):
        def after_fit(self, trainer): ends.append(trainer.stopped_by)
    whole = make()
    whole.fit()
    late = make(None, At('after_fit', 9, lambda: [ACTIONS['press']() for _ in range(presses)]),
                Last())
    with pytest.raises(KeyboardInterrupt): late.fit()
    assert ends == ['num_epochs'] and same(whole, late)


def test_the_best_weights_are_loaded_whole_whatever_is_pressed():
    class Pressed(SparseAutoencoder):
        def load_state_dict(self, state):
            ACTIONS['press twice']()
            super().load_state_dict(state)
    late = make(model=Pressed(64, 12), monitor=lambda trainer: trainer.epoch)   # the first is best
    with pytest.raises(KeyboardInterrupt): late.fit()
    assert late.history['best_epoch'] == 0 and late.history['stopped_by'] == 'num_epochs'
    best = next(c for c in late.callbacks if isinstance(c, EarlyStopping)).best_weights
    for name, value in late.model.state_dict().items(): assert torch.equal(value, best[name])


def test_training_in_a_thread_leaves_the_signals_alone():
    handlers = []
    look = At('before_step', 3, lambda: handlers.append(signal.getsignal(signal.SIGINT)))
    trainer = make(None, look)
    thread = threading.Thread(target=trainer.fit)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler] and trainer.stopped_by == 'num_epochs'


def test_ctrl_c_within_a_training_that_a_callback_runs_ends_both():
    inner = make(None, At('before_step', 3, ACTIONS['press']))
    outer = make(None, At('after_step', 5, inner.fit))
    assert outer.fit()['stopped_by'] == inner.history['stopped_by'] == 'interrupt'
    assert (inner.step, outer.step) == (4, 5)


@pytest.mark.parametrize('action', ['press', 'press twice'])
def test_ctrl_c_in_runs_that_are_trained_together(action):
    models = []
    def make_model(sparsity_weight=None):
        models.append(SparseAutoencoder(64, 12))
        return models[-1]
    with Injection(9000, ACTIONS[action]) as lines:
        runs = sweep(make_model, X[:96], X[96:], dict(sparsity_weight=[0.1, 0.2]), num_epochs=9,
                     learning_rate=1e-3, patience=9, verbose=0, batch_size=32)
    assert 'fit_epoch' in lines.where
    assert [row['stopped_by'] for row in runs.table] == ['interrupt']*2
    for model in models:
        assert not model.training and not model.assumes_unit_norm and model.scaling is None
        assert all(p.grad is None and p._base is None for p in model.parameters())


def test_ctrl_c_between_two_runs_of_a_sweep_gives_the_results_so_far():
    class Last(Callback):
        def after_fit(self, trainer): ACTIONS['press']()
    runs = sweep(lambda seed: SparseAutoencoder(64, 12), X[:96], X[96:], dict(seed=[0, 1]),
                 num_epochs=2, learning_rate=1e-3, patience=9, verbose=0, callbacks=[Last()])
    assert [row['epochs_trained'] for row in runs.table] == [2, 0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='nothing is forked here')
def test_a_forked_child_is_ended_by_sigterm():
    "Workers of a loader inherit the handlers of the process that trains."
    with hold_signals():
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_ctrl_c_in_a_terminal_reaches_the_workers_of_a_loader_too(tmp_path):
    code = textwrap.dedent('''
        import os, signal, sys, torch
        from sparse_ae import *
        x = digits()[:256]
        class Press(Callback):
            def after_loss(self, trainer):   # all processes of the group, as a terminal does
                if trainer.step == 5: os.killpg(0, signal.SIGINT)
        loader = torch.utils.data.DataLoader(x, 32, shuffle=True, num_workers=2)
        history = train_sparse_autoencoder_with_early_stopping(
            SparseAutoencoder(64, 12), loader, x, 3, 1e-3, 9, verbose=0, callbacks=[Press()],
            checkpoint_dir=sys.argv[1])
        print(history['stopped_by'], len(history['val_loss']))
    ''')
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], text=True,
                          capture_output=True, timeout=300, start_new_session=True)
    assert done.stdout == 'interrupt 0\n', done.stderr[-2000:]
    assert read_state(tmp_path/CHECKPOINT)['step'] == 6


def test_two_runs_do_not_write_one_log(tmp_path):
    path = tmp_path/'log.csv'
    make(None, LogFile(path)).fit()
    before = path.read_text()
    with own_file('path', open(path, 'a')):
        with pytest.raises(ValueError, match='path must not be a file that another run writes'):
            make(None, LogFile(path)).fit()
    assert path.read_text() == before
    with pytest.raises(ValueError, match='that another run writes'):   # twice in one run
        make(None, LogFile(path), LogFile(path)).fit()
    make(None, LogFile(path)).fit()
    assert len(path.read_text().splitlines()) == 4


def test_a_log_contains_each_epoch_as_soon_as_it_is_measured(tmp_path):
    lines = []
    class Look(Callback):
        def after_epoch(self, trainer):
            trainer.history.setdefault('mine', []).append(trainer.epoch)
            lines.append(len((tmp_path/'log.jsonl').read_text().splitlines()))
        def before_fit(self, trainer): trainer.history.setdefault('mine', [])
    make(None, Look(), LogFile(tmp_path/'log.jsonl'), Look()).fit()
    assert lines == [0, 1, 1, 2, 2, 3]


