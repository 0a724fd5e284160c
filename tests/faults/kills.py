"""Kill training processes at random moments, resume them, and compare with runs left alone.

    python tests/faults/kills.py [--kills N] [--seed N]

Configurations combine presets, kinds of data, engines and targets. Each run is a process, forked
from one that has imported the library. It is ended by SIGKILL, SIGTERM, Ctrl-C (SIGINT) or two
presses of Ctrl-C, and started again with `resume=True` until it comes through. Then its model, its
history and its log must equal those of the uninterrupted run, bit for bit.
"""
import argparse
import collections
import itertools
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from sparse_ae import AveragedWeights, Callback, LogFile, SparseAutoencoder, Trainer
from sparse_ae.data import digits
from sparse_ae.io import CHECKPOINT, read_state
from sparse_ae.presets import PRESETS

KINDS = {'SIGKILL': [signal.SIGKILL], 'SIGTERM': [signal.SIGTERM], 'SIGINT': [signal.SIGINT],
         'SIGINT twice': [signal.SIGINT, signal.SIGINT]}
DATA = 'tensor', 'memory map', 'loader', 'stream'
TARGETS = 'inputs', 'masked inputs', 'other targets'
OPTIONS = ({}, dict(accumulate=2), dict(lr_schedule='cosine', callbacks=[AveragedWeights]),
           dict(patience=4), dict(checkpoint_minutes=None, checkpoint_epochs=1))
INTERRUPTED, REFUSED = 3, 4   # exit status: ended by Ctrl-C; a combination that is not possible

Configuration = collections.namedtuple('Configuration', 'preset data engine target options')


def configurations(seed):
    "Return all combinations in random order, the first ones with every value of each choice."
    every = [Configuration(*values) for values in itertools.product(
        PRESETS, DATA, ('auto', 'plain'), TARGETS, range(len(OPTIONS)))]
    chance = random.Random(seed)
    chance.shuffle(every)
    seen, first = set(), []
    for configuration in every:
        new = set(enumerate(configuration)) - seen
        if new:
            first.append(configuration)
            seen |= new
    return first + [c for c in every if c not in first]


class Begun(Callback):
    "Writes a byte into a pipe when training has begun."
    def __init__(self, pipe): self.pipe = pipe
    def before_fit(self, trainer): os.write(self.pipe, b'.')


def make_run(c, folder, pipe, *callbacks):
    "Return a model, and the arguments of its training."
    x = digits()[:480]
    rows, val = x[:400], x[400:]
    torch.manual_seed(0)
    model, options = SparseAutoencoder.from_preset(c.preset, 64, 24, num_epochs=8)
    options |= dict(batch_size=40, steps_per_epoch=12, revive='auto', checkpoint_minutes=5e-4,
                    verbose=0, seed=0, engine=c.engine, checkpoint_dir=folder, resume=True)
    options |= OPTIONS[c.options]
    made = [make() for make in options.pop('callbacks', ())]
    if c.data in ('loader', 'stream'): options |= dict(normalize=False, initialize=False)
    if c.target == 'masked inputs': options['corrupt'] = 'masking'
    if c.target == 'other targets': options |= dict(train_targets=rows.flip(1),
                                                    val_targets=val.flip(1))
    if c.data == 'memory map':
        np.save(folder/'rows.npy', rows.numpy())
        rows = np.load(folder/'rows.npy', mmap_mode='r')
    elif c.data == 'loader':
        rows = DataLoader(rows, 40, shuffle=True)
    elif c.data == 'stream':
        rows = (x[torch.arange(n*40, n*40 + 40) % 400] for n in range(200))
    return model, (rows, val), dict(options, callbacks=[*made, LogFile(folder/'log.csv'),
                                                        Begun(pipe), *callbacks])


def run(c, folder, pipe, *callbacks):
    "Train in this process, and save the results; return the exit status."
    folder.mkdir(exist_ok=True)
    model, data, options = make_run(c, folder, pipe, *callbacks)
    try: trainer = Trainer(model, *data, **options)
    except (TypeError, ValueError): return REFUSED
    history = trainer.fit()
    if history['stopped_by'] == 'interrupt': return INTERRUPTED
    model.save_pretrained(folder/'model')
    (folder/'history.json').write_text(json.dumps({**history, 'seconds': None}))
    return 0


def start(c, folder):
    "Fork a process that trains; return its number and the pipe that tells when it begins."
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return process, reader
    status = 1
    try: status = run(c, folder, writer)
    except SystemExit as end: status = end.code
    except KeyboardInterrupt: status = INTERRUPTED   # after training, in the code that saves
    except BaseException: (folder/'error.txt').write_text(traceback.format_exc())
    finally: os._exit(status)


def wait(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def has_begun(pipe):
    "Wait until training begins; return whether it did before the process ended."
    select.select([pipe], [], [])
    begun = os.read(pipe, 1) == b'.'
    os.close(pipe)
    return begun


def columns(path):
    "Return the rows of a log without the measured seconds."
    header, *rows = [line.split(',') for line in path.read_text().splitlines()]
    keep = [k for k, name in enumerate(header) if name != 'seconds']
    return [[row[k] for k in keep] for row in (header, *rows)]


def results(folder):
    return ((folder/'model'/'model.safetensors').read_bytes(),
            (folder/'history.json').read_text(), columns(folder/'log.csv'))


def check_killed(kind, status, folder, before, whole):
    "Return what is wrong after a kill: with the status, the checkpoint, the log."
    path, wrong, state = folder/CHECKPOINT, [], dict(step=0, epoch=0, stopped_by=None)
    if path.exists(): state = read_state(path)
    elif kind in ('SIGTERM', 'SIGINT'): wrong.append(f'{kind}: no checkpoint')
    ended = state['stopped_by'] is not None   # while the model was saved, signals are not held
    expected = {'SIGKILL': [-signal.SIGKILL],
                'SIGTERM': [128 + signal.SIGTERM, *[-signal.SIGTERM]*ended]}.get(kind, [INTERRUPTED])
    if status not in expected: return before, [f'{kind}: exit status {status}, not in {expected}']
    reached = state['step'], state['epoch']   # an epoch that has had its steps is then validated
    if kind in ('SIGTERM', 'SIGINT') and reached <= before and not ended:
        wrong.append(f'{kind}: checkpoint of step and epoch {reached}, as before')
    log = columns(folder/'log.csv')   # the last line may be in writing
    if len(log) <= state['epoch'] and kind != 'SIGKILL': wrong.append(f'{kind}: log of {len(log)}')
    complete = log[:state['epoch'] + 1]
    if complete != whole[:len(complete)]: wrong.append(f'{kind}: other lines in the log')
    return reached, wrong


def kill_and_resume(c, kinds, chance, folder):
    "Return how often each signal ended a run, and the problems; `None` for a refused combination."
    process, pipe = start(c, folder/'whole')
    has_begun(pipe)
    begin = time.monotonic()
    status = wait(process)
    if status == REFUSED: return None
    if status: return [], [f'whole run: {(folder/"whole"/"error.txt").read_text()[-800:]}']
    duration, expected = time.monotonic() - begin, results(folder/'whole')
    killed, wrong, attempt, reached, resumed = [], [], 0, (0, 0), folder/'run'
    while not wrong:
        process, pipe = start(c, resumed)
        if has_begun(pipe) and len(killed) < len(kinds):
            kind = kinds[len(killed)]
            time.sleep(chance.uniform(0, 0.4*duration))
            for number in KINDS[kind]:
                os.kill(process, number)   # without effect on one that has ended
                if len(KINDS[kind]) > 1: time.sleep(chance.uniform(0, 0.004))
        status = wait(process)
        if status == 0 or status == 128 + signal.SIGTERM and (resumed/'history.json').exists():
            if results(resumed) != expected: wrong.append(f'differs after {killed}')
            if len(killed) >= len(kinds) or attempt >= len(kinds): break
            attempt, reached, resumed = attempt + 1, (0, 0), folder/f'run{attempt}'
        elif status == 1: wrong.append((resumed/'error.txt').read_text()[-800:])
        else:
            reached, found = check_killed(kind, status, resumed, reached, expected[2])
            killed.append(kind)
            wrong += found
    return killed, wrong


def campaign(kills, seed=0):
    "Yield configurations with their kills and problems, until there were enough kills."
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)   # a process that has used a pool of threads must not fork
    with tempfile.TemporaryDirectory() as folder:   # imports at first use, once for all processes
        for c in configurations(seed)[:2]:
            run(c, Path(folder)/c.preset, os.open(os.devnull, os.O_RDWR))
    chance, kinds = random.Random(seed), itertools.cycle(KINDS)
    for c in configurations(seed):
        if kills <= 0: return
        with tempfile.TemporaryDirectory() as folder:
            planned = list(itertools.islice(kinds, 4))
            outcome = kill_and_resume(c, planned, chance, Path(folder))
        if outcome is None: continue
        kills -= len(outcome[0])
        yield c, *outcome


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    begin, runs, ends = time.monotonic(), [], collections.defaultdict(list)
    for c, killed, wrong in campaign(options.kills, options.seed):
        runs.append((killed, wrong))
        print(f'{", ".join(map(str, c)):60}{len(killed):3} kills', '; '.join(wrong) or 'equal',
              flush=True)
        for kind in set(killed): ends[kind].append((killed.count(kind), not wrong))
    print(f'\n{"killed by":14}{"configurations":>16}{"kills":>8}{"equal":>8}')
    for kind in KINDS:
        print(f'{kind:14}{len(ends[kind]):16}{sum(n for n, _ in ends[kind]):8}'
              f'{sum(n for n, equal in ends[kind] if equal):8}')
    print(f'{"all":14}{len(runs):16}{sum(len(killed) for killed, _ in runs):8}'
          f'{sum(len(killed) for killed, wrong in runs if not wrong):8}')
    print(f'{time.monotonic() - begin:.0f} s')
    return any(wrong for _, wrong in runs)


if __name__ == '__main__': sys.exit(main())
