"""Exceptions and signals at every line of a training, and the state in which they leave it.

    python tests/faults/injections.py [--every N] [--configurations NAME ...]

A trace function raises an exception, or sends SIGINT to its own process, when the n-th line of the
library is about to be executed within `fit`; `n` runs over all lines of a short training.
"""
import argparse
import collections
import linecache
import random
import re
import signal
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import torch

import sparse_ae
from sparse_ae import (AveragedWeights, Callback, LogFile, Resample, SparseAutoencoder,
                       StopTraining, TopK, Trainer)
from sparse_ae import models
from sparse_ae.data import digits
from sparse_ae.interrupts import _HELD
from sparse_ae.models import step_lock

PACKAGE = str(Path(sparse_ae.__file__).parent)
EPOCHS = 3
CONFIGURATIONS = {   # arguments of the model, options of training
    'plain': (dict(decoder_norm=None), dict(engine='plain', revive=None)),
    'unit norm': (dict(hidden_dims=(), decoder_norm='atom'), dict(engine='plain')),
    'engines': (dict(hidden_dims=(), decoder_norm='atom', activation=TopK(5)),
                dict(sparsity_type='none', revive='auxiliary')),
    'scaling': (dict(hidden_dims=(), decoder_norm='atom'), dict(normalize=True, accumulate=2)),
    'half precision': (dict(dtype=torch.bfloat16), dict()),
    'early stopping': (dict(), dict(patience=1, learning_rate=0.3)),
    'resampling': (dict(hidden_dims=()), dict(revive=Resample(40), sparsity_type='l1')),
    'target': (dict(batch_norm=True), dict(target_l0=5, sparsity_type='l1')),
    'averaging': (dict(), dict(callbacks=[AveragedWeights])),
    'checkpoints': (dict(), dict(checkpoint_minutes=1e-9, sparsity_type='hoyer', sparsity_weight=1.,
                                 lr_schedule='cosine', callbacks=[LogFile])),
}


class Calls(Callback):
    "Counts calls of `before_fit` and `after_fit`."
    def __init__(self): self.counts = collections.Counter()
    def before_fit(self, trainer): self.counts['before'] += 1
    def after_fit(self, trainer): self.counts['after'] += 1


class StopAfter(Callback):
    def __init__(self, epochs): self.epochs = epochs
    def after_epoch(self, trainer):
        if trainer.epoch == self.epochs: raise StopTraining('reference')


def make_trainer(name, folder, *callbacks, **more):
    "Return a trainer of a configuration, always with the same result."
    model_options, options = CONFIGURATIONS[name]
    options = {'learning_rate': 3e-3, 'patience': 9, **options, **more}
    made = [cls(*([folder/'log.csv'] if cls is LogFile else []))
            for cls in options.pop('callbacks', ())]
    if 'checkpoint_minutes' in options: options['checkpoint_dir'] = folder/'run'
    torch.manual_seed(0)
    model, x = SparseAutoencoder(64, 12, **model_options), digits()
    return Trainer(model, x[:96], x[96:128], EPOCHS, seed=0, verbose=0, batch_size=32,
                   callbacks=[*made, *callbacks], **options)


class Injection:
    "Calls `action` before line `n` of the library within a block; counts the lines."
    def __init__(self, n=None, action=None): self.n, self.action, self.count = n, action, 0

    def __enter__(self):
        self.before = sys.gettrace()   # such as that of coverage.py
        sys.settrace(self.trace)
        return self

    def __exit__(self, *error): sys.settrace(self.before)

    def trace(self, frame, event, argument):
        return self.lines if frame.f_code.co_filename.startswith(PACKAGE) else None

    def lines(self, frame, event, argument):
        if event == 'line':
            self.count += 1
            if self.count == self.n:
                self.text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
                self.where, parts = '', []
                while frame and len(parts) < 40:
                    if frame.f_code.co_filename.startswith(PACKAGE):
                        parts.append(f'{Path(frame.f_code.co_filename).stem}.'
                                     f'{frame.f_code.co_name}:{frame.f_lineno}')
                    frame = frame.f_back
                self.where = ' < '.join(parts)
                self.in_loop = 'notify_callbacks' in self.where or 'fit_epoch' in self.where
                self.action()
        return self.lines


class Injected(Exception):
    "Error of no other kind."


def fail(): raise Injected('here')
def interrupt(): raise KeyboardInterrupt
def press(): signal.raise_signal(signal.SIGINT)
def press_twice():
    press()
    press()

ACTIONS = {'error': fail, 'interrupt': interrupt, 'press': press, 'press twice': press_twice}


def snapshot(model): return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def close(one, two):
    "Whether weights are equal to rounding: those of an epoch that did not count yet are kept."
    half = any(value.dtype == torch.bfloat16 for value in one.values())
    return all(torch.allclose(one[name].float(), two[name].float(), rtol=1e-2 if half else 1e-5,
                              atol=1e-2 if half else 1e-6) for name in one)


def references(name):
    "Return the final weights by best epoch, and the number of lines of an uninterrupted run."
    weights = {}
    with tempfile.TemporaryDirectory() as folder:
        for epochs in range(1, EPOCHS + 1):
            trainer = make_trainer(name, Path(folder)/str(epochs), StopAfter(epochs))
            history = trainer.fit()
            weights.setdefault(history['best_epoch'], snapshot(trainer.model))
        trainer = make_trainer(name, Path(folder)/'whole', Calls())
        with Injection() as lines: history = trainer.fit()
    return weights, lines.count, history, snapshot(trainer.model)


def problems(trainer, calls, before, weights):
    "Return what is wrong with the state after `fit`."
    model, history, wrong = trainer.model, trainer.history, []
    def check(good, text): good or wrong.append(text)
    began = calls.counts['before'] > 0   # otherwise the model is as it was
    lengths = {key: len(v) for key, v in history.items() if isinstance(v, list)}
    check(set(lengths.values()) == {history['epochs_trained']}, f'lengths of lists {lengths}')
    check(trainer.epoch == history['epochs_trained'], 'epoch')
    check(all(p.grad is None for p in model.parameters()), 'gradients')
    check(not began or not any(m.training for m in model.modules()), 'training mode')
    check(model.scaling is None and not model.assumes_scaled, 'scaling')
    check(not model.assumes_unit_norm, 'assumes unit norm')
    check(not any(p._backward_hooks for p in model.parameters()), 'hooks')
    check({p.dtype for p in model.parameters()} == {before}, 'dtype')
    check(step_lock(model) is None, 'lock')
    check(torch.is_grad_enabled(), 'gradient mode')
    check(signal.getsignal(signal.SIGINT) is signal.default_int_handler, 'handler of SIGINT')
    check(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, 'handler of SIGTERM')
    check((_HELD.depth, _HELD.breakable) == (0, False), 'held signals')
    check(not models._REGISTRY.locked(), 'registry of runs')
    check(calls.counts['after'] == calls.counts['before'], f'calls {dict(calls.counts)}')
    name, dim = model.normalized_parameter()
    if dim is not None and began:
        norm = model.get_parameter(name).detach().float().norm(dim=dim)
        tolerance = 1e-5 if before == torch.float32 else 1e-2
        check(torch.allclose(norm, torch.ones_like(norm), rtol=0, atol=tolerance), 'unit norm')
    best = history['best_epoch']
    check(best is None or best in weights and close(snapshot(model), weights[best]),
          f'weights of epoch {best}')
    return wrong


def inject(name, n, action, weights, folder):
    "Train with `action` at line `n`; return the trainer, the place, the exception, the problems."
    calls = Calls()
    trainer, error = make_trainer(name, folder, calls), None
    dtype = trainer.model.dtype
    try:
        with Injection(n, ACTIONS[action]) as lines: trainer.fit()
    except BaseException as raised: error = raised
    if error is not None: error = error.with_traceback(None)
    wrong = problems(trainer, calls, dtype, weights)
    signal.signal(signal.SIGINT, signal.default_int_handler)   # for the next injection
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _HELD.depth, _HELD.breakable, models._REGISTRY = 0, False, threading.Lock()
    return trainer, lines, error, wrong


def check_injection(name, n, action, reference):
    """Return the place of an injection, whether the state is promised there, and the problems.

    An error of the code that prepares and restores a model is none that the library promises to
    survive, and an assignment in `finally` has none; a signal at that time is held. A second Ctrl-C
    ends the `after_fit` that is called, also before its first line."""
    weights, _, expected, final = reference
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        _, lines, error, wrong = inject(name, n, action, weights, folder)
        if not hasattr(lines, 'where'): return 'not reached', True, ['not reached']
        expected_error = Injected if action == 'error' else Exception
        if isinstance(error, expected_error) != (action == 'error'): wrong.append(f'{error!r}')
        wrong += [f'note: {note}' for note in getattr(error, '__notes__', ())]
        if 'checkpoint_minutes' in CONFIGURATIONS[name][1] and not wrong:
            try:
                resumed = make_trainer(name, folder, resume=True)
                history = resumed.fit()
                if not same(snapshot(resumed.model), final): wrong.append('weights of a resumed run')
                if any(history[key] != expected[key] for key in history if key != 'seconds'):
                    wrong.append('history of a resumed run')
            except (OSError, ValueError) as refused: wrong.append(f'not resumed: {refused!r}')
    ends_after_fit = (action == 'press twice'
                      and lines.where.startswith('interrupts.breakable')
                      and 'callbacks.call:' in lines.where)
    cannot_fail = (not action.startswith('press')
                   and re.fullmatch(r'\s*finally: [\w.]+ = \w+\n', lines.text))
    promised = (lines.in_loop or action.startswith('press')) and not cannot_fail and not (
        ends_after_fit and wrong == ["calls {'before': 1}"])
    return lines.where, promised, wrong


def campaign(names, every, actions=tuple(ACTIONS), seed=0):
    "Yield configuration, action, number of lines, and place and problems of each injection."
    warnings.simplefilter('ignore')
    for name in names:
        reference = references(name)
        for action in actions:
            step = every * len(actions)
            first = 1 + random.Random(f'{name} {action} {seed}').randrange(step)
            yield name, action, reference[1], [
                (n, *check_injection(name, n, action, reference))
                for n in range(first, reference[1] + 1, step)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--every', type=int, default=1, help='inject at every N-th line only')
    parser.add_argument('--configurations', nargs='*', default=list(CONFIGURATIONS))
    parser.add_argument('--actions', nargs='*', default=list(ACTIONS))
    options = parser.parse_args()
    start, totals = time.monotonic(), collections.Counter()
    heads = 'lines', 'injected', 'problems', 'elsewhere'
    print(f'{"configuration":16}{"action":14}' + ''.join(f'{head:>10}' for head in heads))
    for name, action, lines, results in campaign(options.configurations, options.every,
                                                 options.actions):
        counts = dict(injected=len(results), problems=sum(p and bool(w) for *_, p, w in results),
                      elsewhere=sum(not p and bool(w) for *_, p, w in results))
        totals.update(counts)
        print(f'{name:16}{action:14}{lines:10}' + ''.join(f'{v:10}' for v in counts.values()),
              flush=True)
        for n, where, promised, wrong in results:
            if wrong: print(f'    {"" if promised else "not promised: "}line {n}: {where[:300]}: '
                            f'{"; ".join(wrong)}')
    print(dict(totals), f'{time.monotonic() - start:.0f} s')
    return totals['problems'] > 0


if __name__ == '__main__': sys.exit(main())
