"""Throughput of capture, and of training from a store; writes networks.md.

    python benchmarks/networks.py            # about 40 minutes on 2 cores
    python benchmarks/networks.py capture    # one part only; networks.md is not changed
"""
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from tables import run
from training import interleaved, ratio

from sparse_ae.networks.capture import Activations, capture
from sparse_ae.networks.store import ActivationStore, StoreWriter

HERE = Path(__file__).resolve().parent
WIDTH, HEADS, LENGTH = 384, 12, 128


class Layer(nn.Module):
    "Transformer layer with normalisation before its two parts."
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3*WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4*WIDTH), nn.Linear(4*WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    "Encoder of six layers with random weights; `depth` layers are computed."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(30_000, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(6))
        self.depth = len(self.layers)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        for layer in self.layers[:self.depth]: x = layer(x)
        return x


def batches(size, padded=False):
    "384 samples of token ids in batches; half of the tokens are padding, if wanted."
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 30_000, (384, LENGTH), generator=generator)
    lengths = torch.randint(1, LENGTH + 1, (384, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    return [dict(input_ids=i, attention_mask=m) if padded else dict(input_ids=i)
            for i, m in zip(ids.split(size), mask.split(size))]


class Alternating:
    """Batches for one call, in blocks; after each block, the forward pass alone on as many others.

    So both see the same machine, whose speed changes within seconds; those of the block would be in
    the cache. `times` are the seconds and processor seconds of the two. The first batch of a block
    is not timed, and neither is what is still being written at its end: so each timed batch has the
    writing of the batch before it."""
    def __init__(self, batches, forward, block):
        self.batches, self.forward, self.block = batches, forward, block
        self.times = {'call': [0, 0], 'forward': [0, 0]}

    def __iter__(self):
        blocks = [self.batches[start:start + self.block]
                  for start in range(0, len(self.batches), self.block)]
        for number, (first, *others) in enumerate(blocks):
            yield first
            with self.timed('call'): yield from others
            first, *others = blocks[number - len(blocks) // 2]
            self.forward(first)
            with self.timed('forward'):
                for batch in others: self.forward(batch)

    @contextmanager
    def timed(self, name):
        "Add the time of the block to that of `name`."
        start = time.perf_counter(), time.process_time()
        yield
        end = time.perf_counter(), time.process_time()
        self.times[name] = [t + b - a for t, a, b in zip(self.times[name], start, end)]


def keep_freed_memory():
    """Set glibc's allocator not to return freed memory to the system.

    Otherwise a forward pass has 2,000 page faults or none, which depends on what else the process
    has in memory, and may be slower alone than within a capture; so may a training from memory."""
    glibc = ctypes.CDLL(None)
    glibc.mallopt(-1, 2**31 - 1)    # M_TRIM_THRESHOLD
    glibc.mallopt(-3, 2**25)        # M_MMAP_THRESHOLD


def captures(rounds):
    """Forward passes to the third layer alone, relative to capture and to live activations.

    A call writes into an empty folder, which is removed after it: the page cache is then made of
    memory that was used before, as on a machine that has run for a while."""
    keep_freed_memory()
    model, rows = Encoder().eval(), []

    @torch.no_grad()
    def forward(batch):
        model.depth = 3
        model(**batch)
        model.depth = 6

    def store(inputs, folder, dtype=torch.float32):
        capture(model, 'layers.2', inputs, folder, dtype=dtype, verbose=0, shard_bytes=2**23)

    def live(inputs, folder):
        for _ in Activations(model, 'layers.2', inputs, batch_size=1024, buffer_rows=2**13): pass

    functions = {'capture in float32': store,
                 'capture in bfloat16': partial(store, dtype=torch.bfloat16),
                 'live activations': live}
    for size, padded in ((32, False), (4, False), (32, True), (4, True)):
        ratios = {name: [] for name in functions}
        for number in range(3 * rounds + 1):
            for name, function in list(functions.items())[::-1 if number % 2 else 1]:
                inputs = Alternating(batches(size, padded), forward, block=3 if size == 32 else 6)
                with tempfile.TemporaryDirectory() as folder: function(inputs, folder)
                alone, within = inputs.times['forward'], inputs.times['call']
                if number: ratios[name].append([a / b for a, b in zip(alone, within)])
        for index, unit in enumerate(('', ', processor time')):   # round 0 warmed up
            rows += [(f"forward pass alone / {name}, batches of {size}"
                      f"{', padding left out' if padded else ''}{unit}",
                      statistics.median(both[index] for both in values), 'at least 0.95')
                     for name, values in ratios.items()]
    return rows


def write_rows(folder, n):
    "Write a store of `n` rows of sparse combinations of random directions."
    generator = torch.Generator().manual_seed(0)
    atoms = F.normalize(torch.randn(2048, WIDTH, generator=generator), dim=1)
    writer = StoreWriter(folder, shard_bytes=2**24)
    for _ in range(n // 2**13):
        index = torch.randint(2048, (2**13, 16), generator=generator)
        weights = torch.rand(2**13, 16, generator=generator)
        writer.append(F.embedding_bag(index, atoms, per_sample_weights=weights, mode='sum'))
    writer.close()


CHILD = r'''
import json, re, resource, sys, time, torch
folder, kind, here, buffer_bytes, allowed = *sys.argv[1:4], *map(int, sys.argv[4:])
sys.path.insert(0, here)
from networks import keep_freed_memory
from sparse_ae import data
from sparse_ae.networks.store import ActivationStore
from sparse_ae.models import SparseAutoencoder
from sparse_ae.activations import TopK
from sparse_ae.training import Trainer
def used(key): return 1024 * int(re.search(key + r':\s*(\d+)', open('/proc/self/status').read())[1])
def trainer(rows):
    torch.manual_seed(0)
    model = SparseAutoencoder(384, 3072, hidden_dims=(), activation=TopK(32), decoder_norm='atom')
    return Trainer(model, rows, val, 1, 1e-3, 1, batch_size=1024, seed=0, verbose=0,
                   sparsity_type='none', revive=None)
keep_freed_memory()
store = ActivationStore(folder)
val = store[:1024]
trainer(store[:4096]).fit()                       # warm up: threads, engines
data._BUFFER_BYTES = buffer_bytes
rows = store if kind == 'store' else store[:]
before = used('VmData')
if allowed: resource.setrlimit(resource.RLIMIT_DATA, (before + allowed,) * 2)
run = trainer(rows)
start = time.perf_counter(), time.process_time()
run.fit()
print(json.dumps([time.perf_counter() - start[0], time.process_time() - start[1]]))
'''


def trainings(rounds):
    "An epoch of 384 -> 3,072 from a store of twice the memory that is allowed, and from memory."
    n = 2**18
    size, rows = n * WIDTH * 4, []
    with tempfile.TemporaryDirectory() as folder:
        write_rows(folder, n)

        def epoch(kind, allowed=0):
            "Train for one epoch in another process."
            if kind == 'store':
                for path in Path(folder).glob('*.safetensors'):      # out of the page cache
                    with open(path, 'rb') as file:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            out = subprocess.run([sys.executable, '-c', CHILD, folder, kind, str(HERE),
                                  str(size // 8), str(allowed)], capture_output=True, text=True)
            if out.returncode: raise RuntimeError(out.stderr[-2000:])
            return json.loads(out.stdout)
        seconds = {'memory': ([], []), 'store': ([], [])}
        for number in range(3 * rounds):
            for kind in list(seconds)[::-1 if number % 2 else 1]:
                both = epoch(kind, size // 2 if kind == 'store' else 0)
                for values, value in zip(seconds[kind], both): values.append(value)
    for number, unit in enumerate(('', ', processor time')):
        times = {kind: both[number] for kind, both in seconds.items()}
        rows.append((f'training from memory / from a store of {size / 2**20:.0f} MB with '
                     f'{size / 2**21:.0f} MB allowed, 384 -> 3,072{unit}',
                     ratio(times, 'memory', 'store'), 'at least 0.9'))
    return rows


def reading(rounds):
    "Rates at which rows are read and written, with the checksums."
    n, times = 2**17, {}
    size = n * WIDTH * 4 / 2**20
    with tempfile.TemporaryDirectory() as folder:
        x, count = torch.randn(n, WIDTH), iter(range(10**6))

        def write():
            writer = StoreWriter(f'{folder}/{next(count)}')
            for part in x.split(4096): writer.append(part)
            writer.close()
        write()
        store = ActivationStore(f'{folder}/0')
        index = torch.randperm(n)[:4096]
        times = interleaved({'write': write, 'read': lambda: store[:], 'check': store.verify,
                             'random': lambda: store[index]}, rounds)
    rate = lambda name, size: f'{size / statistics.median(times[name]):,.0f} MB a second'
    return [('rows written, with checksums and fsync', rate('write', size), ''),
            ('rows read in order, from the page cache', rate('read', size), ''),
            ('checksums verified', rate('check', size), ''),
            ('rows read in random order, from the page cache', rate('random', size * 4096 / n), '')]


PARTS = dict(capture=captures, training=trainings, reading=reading)


if __name__ == '__main__':
    run(__doc__, PARTS, 'Activations of networks', 'Medians over rounds of ratios within a round; '
        'three times as many for captures and trainings', HERE/'networks.md', rounds=5)
