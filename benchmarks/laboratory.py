"""What the widgets cost and how large a model they take; writes laboratory.md.

    python benchmarks/laboratory.py               # about twelve minutes on 2 cores
    python benchmarks/laboratory.py dashboard     # one part only; laboratory.md stays as it is
"""
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'  # read at import; a bar would be most of what is printed

import nbformat
import numpy as np
import torch
from nbclient import NotebookClient
from tables import run

from sparse_ae import FeatureExplorer, SparseAutoencoder

IN_A_KERNEL = '''
import math, statistics, time, torch
from sparse_ae import Callback, SparseAutoencoder, Trainer, TrainingDashboard

class Turns(Callback):
    "Lets the dashboard paint for three seconds, forbids it for three, and so on."
    def __init__(self, dashboard):
        self.dashboard, self.started, self.on, self.found = dashboard, None, True, {True: [], False: []}

    def before_epoch(self, trainer):
        now, d = time.perf_counter(), self.dashboard
        if self.started is not None:
            if now - self.started < 3: return
            self.found[self.on].append((now - self.started) / (trainer.step - self.step))
            self.on = not self.on
            if self.on: d.training_start += now - self.started   # its budget counts the time in which it paints
            d.next_paint_time = now if self.on else math.inf
            if len(self.found[False]) == ROUNDS: trainer.stopped_by = 'benchmark'
        self.started, self.step = time.perf_counter(), trainer.step

x, val = torch.rand(3200, FEATURES), torch.rand(256, FEATURES)
torch.manual_seed(0)
model = SparseAutoencoder(FEATURES, LATENTS, hidden_dims=HIDDEN, decoder_norm='atom')
dashboard = TrainingDashboard(IMAGE_SHAPE)
turns = Turns(dashboard)
trainer = Trainer(model, x, val, 10**6, 1e-3, 10**6, sparsity_type='l1', seed=0, verbose=0,
                  callbacks=[dashboard, turns])
trainer.fit()
on, off = turns.found[True], turns.found[False]
print(statistics.median(a / b for a, b in zip(on, off)), dashboard.frames_painted / (3*len(on)))
'''


def dashboard(rounds):
    '''One training, in a kernel whose messages are received: three seconds in which the dashboard
    paints, three in which it does not, in turn.'''
    rows = []
    for name, values in {
            '200 -> 125 -> 50, batch 256': dict(FEATURES=200, LATENTS=50, HIDDEN=None,
                                                IMAGE_SHAPE=None),
            '256 -> 1024, batch 256': dict(FEATURES=256, LATENTS=1024, HIDDEN=(),
                                           IMAGE_SHAPE=(16, 16))}.items():
        source = '\n'.join(f'{k} = {v!r}' for k, v in {**values, 'ROUNDS': rounds}.items())
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source + IN_A_KERNEL)])
        NotebookClient(nb, timeout=1200, kernel_name='python3').execute()
        text = ''.join(o.text for o in nb.cells[0].outputs if o.output_type == 'stream')
        ratio, pictures = map(float, text.split())
        rows += [(f'time of a step with a dashboard / without, {name}', ratio, 'under 1.05'),
                 ('- pictures a second', pictures, 'a few')]
    return rows


def explorer(rounds, samples=1_000_000, latents=32_768):
    "A million samples on the disk, 32,768 latents: what a click costs meanwhile, and the memory."
    with tempfile.TemporaryDirectory() as folder:
        x = np.lib.format.open_memmap(f'{folder}/x.npy', 'w+', np.float32, (samples, 64))
        rng = np.random.default_rng(0)
        for k in range(0, samples, 50_000):
            x[k:k + 50_000] = rng.standard_normal((min(50_000, samples - k), 64))
        torch.manual_seed(0)
        model = SparseAutoencoder(64, latents, hidden_dims=(), decoder_norm='atom')
        with torch.no_grad(): model.encoder_bias_1.fill_(-1.55)  # 0.4 % are active
        data, clicks = np.load(f'{folder}/x.npy', mmap_mode='r'), []
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        explore = FeatureExplorer(model, data, image_shape=(8, 8))
        def timed(function, *args):
            begun = time.perf_counter()
            function(*args)
            return time.perf_counter() - begun
        opened = timed(lambda: explore.widget)
        while not explore.ended.is_set():
            clicks.append(timed(explore.choose, len(clicks) % latents))
            time.sleep(2)
        taken = time.perf_counter() - start
        explore.wait()
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
        page = explore.export_html(f'{folder}/page.html').stat().st_size / 1e6
    return [(f'explorer, {latents:,} latents, {samples:,} samples: seconds until it can be used',
             opened, ''),
            ('- seconds a click takes while the statistics are made, median', statistics.median(clicks), ''),
            ('- the same, longest', max(clicks), ''),
            ('- seconds until all samples are looked at', taken, ''),
            ('- memory for all of it, GB (codes alone would take 131)', memory, ''),
            ('- page of 1,024 latents, MB', page, 'under 10')]


PARTS = dict(dashboard=dashboard, explorer=explorer)


if __name__ == '__main__':
    run(__doc__, PARTS, 'What the widgets cost', 'Ratios are medians of ratios within a round',
        Path(__file__).with_suffix('.md'), rounds=15)
