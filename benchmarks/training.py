"""Cost of training, as ratios of times measured alternately in one run; writes training.md.

    python benchmarks/training.py            # about six minutes on 2 cores
    python benchmarks/training.py sweep      # one part only; training.md is not changed
"""
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from tables import run

from sparse_ae import SparseAutoencoder, sweep, training
from sparse_ae.callbacks import EVENTS, LogFile, ProgressBar
from sparse_ae.engines.dense import encode_in_place, hold_unit_norm, normalize_decoder
from sparse_ae.io import Checkpoint
from sparse_ae.models import Encoded
from sparse_ae.training import Meter, Trainer

HERE = Path(__file__).resolve().parent


def interleaved(functions, rounds):
    "Seconds of each function in each round, called alternately, odd rounds in reverse order."
    times = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in list(functions.items())[::-1 if number % 2 else 1]:
            start = time.perf_counter()
            function()
            if number: times[name].append(time.perf_counter() - start)  # round 0 warms up
    return times


def ratio(times, one, other):
    "Median over the rounds of the time of `one` to that of `other` in the same round."
    return statistics.median(a / b for a, b in zip(times[one], times[other]))


def data(n=3200, features=200, seed=0):
    return torch.rand(n, features, generator=torch.Generator().manual_seed(seed))


def classical(features=200):
    torch.manual_seed(0)
    return SparseAutoencoder(features, 50)


def trainer(epochs, x=None, val=None, **options):
    "Function that trains the classical model for the given number of epochs."
    x, val = data() if x is None else x, data(256, seed=1) if val is None else val
    options = dict(verbose=0, seed=0, sparsity_type='l1', revive=None) | options
    return lambda: Trainer(classical(), x, val, epochs, 1e-3, epochs, **options).fit()


def penalties(rounds):
    "Each penalty relative to no penalty, 200 -> 125 -> 50, steps on all 3,200 rows."
    fits = {name: trainer(10, batch_size=3200, sparsity_type=name, sparsity_warmup=0)
            for name in ('none', 'l1', 'kl', 'hoyer')}
    twice = classical()

    def encode_twice():
        "Train with a second encoder pass for the penalty."
        optimizer, x = torch.optim.Adam(twice.parameters(), lr=1e-3, fused=True), data()
        for _ in range(10):
            loss = F.mse_loss(twice(x), x) + 0.1*twice.encode(x).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            twice.normalize_decoder_weights()

    seconds = interleaved({**fits, 'encoding twice': encode_twice}, rounds)
    reach = {'l1': '1.10', 'kl': '1.10', 'hoyer': '1.15', 'encoding twice': ''}
    return [(f'{name} / none, full batch of 3,200', ratio(seconds, name, 'none'), reach[name])
            for name in reach]


def textbook(epochs):
    "Train by the loop of common tutorials: DataLoader, TensorDataset, Adam, item()."
    model, x, val = classical(), data(), data(256, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train_loader = DataLoader(TensorDataset(x), batch_size=256, shuffle=True)
    val_loader = DataLoader(TensorDataset(val), batch_size=256)
    for _ in range(epochs):
        model.train()
        sums = np.zeros(3)
        for x, in train_loader:
            optimizer.zero_grad()
            z = model.encode(x)
            recon, sparsity = F.mse_loss(model.decode(z), x), z.abs().mean()
            loss = recon + 0.1*sparsity
            loss.backward()
            optimizer.step()
            model.normalize_decoder_weights()
            sums += [loss.item(), recon.item(), sparsity.item()]
        model.eval()
        with torch.no_grad():
            for x, in val_loader:
                z = model.encode(x)
                sums += [F.mse_loss(model.decode(z), x).item(), z.abs().mean().item(), 0]


def loops(rounds):
    "An epoch at batch 256 against the textbook loop on the same model."
    seconds = interleaved({'textbook': lambda: textbook(10), 'here': trainer(10)}, rounds)
    return [('textbook DataLoader loop / Trainer, an epoch at batch 256',
             ratio(seconds, 'textbook', 'here'), 'at least 1.4')]


def bare(epochs, batch_size):
    "The steps of training and nothing else: no counting, no callbacks, no log, no checkpoint."
    t = Trainer(classical(), data(), data(256, seed=1), epochs, 1e-3, epochs, sparsity_type='l1',
                batch_size=batch_size, seed=0, verbose=0, revive=None)
    t.start()
    penalty = t.penalty

    def loss(x):
        z = encode_in_place(t.model, x)
        sparsity = penalty.loss(Encoded(z), t.model.activation)
        return 0.1*sparsity + F.mse_loss(t.model.decode(z), x)
    with hold_unit_norm(t.model):
        for _ in range(epochs):
            for step in t.train.epoch():
                for p in t.parameters: p.grad = None
                loss(step[0]).backward()
                t.optimizer.step()
                normalize_decoder(t.model)
            with torch.no_grad():
                for step in t.val.epoch(): loss(step[0])


def bookkeeping(rounds):
    """Checkpoints, log, progress bar, losses and L0 of the history: their time in a run relative to
    the rest of it, and whole runs relative to bare steps (which varies more)."""
    rows, sizes = [], {'batch 256': (256, 100), 'full batch of 3,200': (3200, 200)}
    events = [(kind, name) for kind in (Checkpoint, LogFile, ProgressBar)
              for name in EVENTS if name in vars(kind)]
    parts = (*events, (Trainer, 'finish_epoch'), (Meter, 'add'), (training, 'count_active'))
    spent = 0.

    def timed(function):
        def around(*args):
            nonlocal spent
            start = time.perf_counter()
            try: return function(*args)
            finally: spent += time.perf_counter() - start
        return around

    with tempfile.TemporaryDirectory() as folder:
        def everything(size, epochs):
            stderr, sys.stderr = sys.stderr, io.StringIO()
            try: trainer(epochs, batch_size=size, verbose=1, checkpoint_dir=folder,
                         callbacks=[LogFile(f'{folder}/log.csv')])()
            finally: sys.stderr = stderr
            (Path(folder)/'checkpoint.safetensors').unlink()
        for name, (size, epochs) in sizes.items():
            within, name = [], f'{name}, {epochs} epochs'
            with ExitStack() as patches:
                for owner, part in parts:
                    patches.enter_context(patch.object(owner, part, timed(getattr(owner, part))))
                for _ in range(rounds):
                    spent, start = 0., time.perf_counter()
                    everything(size, epochs)
                    within.append(spent / (time.perf_counter() - start - spent))
            rows.append((f'time of bookkeeping / everything else, {name}',
                         statistics.median(within), 'under 0.03'))
            seconds = interleaved({'bare': lambda: bare(epochs, size),
                                   'all': lambda: everything(size, epochs)}, rounds)
            rows.append((f'all bookkeeping / bare steps, {name}',
                         ratio(seconds, 'all', 'bare'), 'under 1.03'))
    return rows


def products(features, size, members):
    "Function that computes the matrix products of a step of stacked models."
    widths = [(features, (features + 50) // 2), ((features + 50) // 2, 50)]
    shapes = [*widths, *((out, fan_in) for fan_in, out in reversed(widths))]
    layers = [[torch.rand(members, *shape) for shape in
               ((size, fan_in), (fan_in, out), (size, out))] for fan_in, out in shapes]

    def multiply():
        for number, (x, W, grad) in enumerate(layers):
            x @ W, x.mT @ grad             # the layer, the gradient of its weights
            if number: grad @ W.mT         # the gradient of its input
    return multiply


def sweeps(rounds):
    "Ten members trained together relative to one, and their unavoidable matrix products."
    rows = []
    for features, size, epochs in ((64, 256, 30), (200, 64, 10), (200, 256, 10), (200, 3200, 10)):
        name = f'{features} -> {(features + 50) // 2} -> 50, batch {size:,}'
        common = dict(num_epochs=epochs, learning_rate=1e-3, patience=epochs, sparsity_type='l1',
                      batch_size=size, verbose=0, revive=None)
        x, val = data(features=features), data(256, features=features, seed=1)
        weights = [0.01*(k + 1) for k in range(10)]
        functions = {name: lambda some=some: sweep(lambda: classical(features), x, val,
                                                   dict(sparsity_weight=some), **common)
                     for name, some in (('ten', weights), ('one', [0.1]))}
        step, steps = products(features, size, 10), epochs * -(-3200 // size)
        functions['products'] = lambda: [step() for _ in range(steps)]
        seconds = interleaved(functions, rounds)
        rows += [(f'sweep of ten / one, {name}', ratio(seconds, 'ten', 'one'), 'at most 4'),
                 ('- matrix products of ten / one', ratio(seconds, 'products', 'one'), '')]
    return rows


MEMORY = r'''
import re, sys, torch
from sparse_ae import SparseAutoencoder
model = SparseAutoencoder(512, 512, hidden_dims=(512,)*23)
model.gradient_checkpointing = sys.argv[1] == 'True'
x = torch.rand(8192, 512)
def peak(): return int(re.search(r'VmHWM:\s*(\d+)', open('/proc/self/status').read())[1])
(model(x[:64]) - x[:64]).square().mean().backward()
start = peak()
(model(x) - x).square().mean().backward()
print(peak() - start)
'''


def memory(rounds):
    "Additional peak memory of a step, 24 layers each way, with and without checkpointing."
    def peak(on, **env):
        out = subprocess.run([sys.executable, '-c', MEMORY, str(on)], capture_output=True,
                             text=True, check=True, env={**os.environ, **env})
        return int(out.stdout)
    given_back = dict(MALLOC_MMAP_THRESHOLD_='262144')  # by default glibc keeps freed memory
    torch.manual_seed(0)
    models = {on: SparseAutoencoder(512, 512, hidden_dims=(512,)*23, gradient_checkpointing=on)
              for on in (False, True)}
    x = torch.rand(1024, 512)
    seconds = interleaved({on: lambda on=on: (models[on](x) - x).square().mean().backward()
                           for on in models}, rounds)
    return [('gradient checkpointing: peak memory of a step, with / without, 24 + 24 layers',
             peak(True, **given_back) / peak(False, **given_back), ''),
            ('- the same, with the default malloc', peak(True) / peak(False), ''),
            ('gradient checkpointing: time of a step, with / without', ratio(seconds, True, False),
             '')]


def memory_map(rounds):
    "An epoch from a memory map that is not cached, relative to one from memory."
    with tempfile.TemporaryDirectory() as folder:
        path, n = f'{folder}/rows.npy', 600_000  # 480 MB: two buffers
        rows = np.lib.format.open_memmap(path, 'w+', np.float32, (n, 200))
        for start in range(0, n, 50_000): rows[start:start + 50_000] = data(50_000, seed=start)
        rows.flush()
        x = torch.from_numpy(np.array(rows))
        del rows

        def cold():
            "Train from the file after dropping it from the page cache."
            with open(path, 'rb') as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            trainer(1, np.load(path, mmap_mode='r'), batch_size=1024)()

        seconds = interleaved({'memory': trainer(1, x, batch_size=1024), 'file': cold},
                              max(1, rounds // 3))
    return [('epoch from a memory map of 480 MB, not in the page cache / from memory',
             ratio(seconds, 'file', 'memory'), '')]


PARTS = dict(penalties=penalties, loops=loops, bookkeeping=bookkeeping, sweep=sweeps, memory=memory,
             memory_map=memory_map)


if __name__ == '__main__':
    run(__doc__, PARTS, 'Cost of training', 'Medians of ratios within a round',
        HERE/'training.md', rounds=9)
