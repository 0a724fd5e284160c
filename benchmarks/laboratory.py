"""Cost of the widgets, and the size of model that they support; writes laboratory.md.

    python benchmarks/laboratory.py               # about twelve minutes on 2 cores
    python benchmarks/laboratory.py dashboard     # one part only; laboratory.md is not written
"""
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

os.environ['TQDM_DISABLE'] = '1'  # read at import; progress bars would dominate the output

import nbformat
import numpy as np
import torch
from nbclient import NotebookClient
from tables import run

from sparse_ae import FeatureExplorer, SparseAutoencoder

IN_A_KERNEL = '''
import math, statistics, time, torch
from sparse_ae import Callback, SparseAutoencoder, Trainer, TrainingDashboard

class Alternate(Callback):
    "Lets the dashboard paint for three seconds, prevents it for three, and so on."
    def __init__(self, dashboard):
        self.dashboard, self.started, self.painting = dashboard, None, True
        self.step_seconds = {True: [], False: []}   # by whether the dashboard painted

    def before_epoch(self, trainer):
        now, d = time.perf_counter(), self.dashboard
        if self.started is not None:
            if now - self.started < 3: return
            self.step_seconds[self.painting].append(
                (now - self.started) / (trainer.step - self.step))
            self.painting = not self.painting
            # the time budget of the dashboard excludes the periods without painting
            if self.painting: d.training_start += now - self.started
            d.next_paint_time = now if self.painting else math.inf
            if len(self.step_seconds[False]) == ROUNDS: trainer.stopped_by = 'benchmark'
        self.started, self.step = time.perf_counter(), trainer.step

x, val = torch.rand(3200, FEATURES), torch.rand(256, FEATURES)
torch.manual_seed(0)
model = SparseAutoencoder(FEATURES, LATENTS, hidden_dims=HIDDEN, decoder_norm='atom')
dashboard = TrainingDashboard(IMAGE_SHAPE)
alternate = Alternate(dashboard)
trainer = Trainer(model, x, val, 10**6, 1e-3, 10**6, sparsity_type='l1', seed=0, verbose=0,
                  callbacks=[dashboard, alternate])
trainer.fit()
with_frames, without = alternate.step_seconds[True], alternate.step_seconds[False]
print(statistics.median(a / b for a, b in zip(with_frames, without)),
      dashboard.frames_painted / (3*len(with_frames)))
'''


def dashboard(rounds):
    '''One run in a kernel whose messages are received: periods of three seconds in which the
    dashboard paints alternate with periods in which it does not.'''
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
    "A million samples on disk, 32,768 latents: time of a click during the pass, and memory."
    with tempfile.TemporaryDirectory() as folder:
        x = np.lib.format.open_memmap(f'{folder}/x.npy', 'w+', np.float32, (samples, 64))
        rng = np.random.default_rng(0)
        for k in range(0, samples, 50_000):
            x[k:k + 50_000] = rng.standard_normal((min(50_000, samples - k), 64))
        torch.manual_seed(0)
        model = SparseAutoencoder(64, latents, hidden_dims=(), decoder_norm='atom')
        with torch.no_grad(): model.encoder_bias_1.fill_(-1.55)  # 0.4 % are active
        data, clicks = np.load(f'{folder}/x.npy', mmap_mode='r'), []
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20   # in GB
        memory_before, pass_start = peak(), time.perf_counter()
        explorer = FeatureExplorer(model, data, image_shape=(8, 8))
        def timed(function, *args):
            start = time.perf_counter()
            function(*args)
            return time.perf_counter() - start
        opened = timed(lambda: explorer.widget)
        while not explorer.ended.is_set():
            clicks.append(timed(explorer.show_latent, len(clicks) % latents))
            time.sleep(2)
        pass_seconds = time.perf_counter() - pass_start
        explorer.wait()
        memory = peak() - memory_before
        page = explorer.export_html(f'{folder}/page.html').stat().st_size / 1e6
    return [(f'explorer, {latents:,} latents, {samples:,} samples: seconds until usable',
             opened, ''),
            ('- seconds for a click during the pass, median', statistics.median(clicks), ''),
            ('- the same, longest', max(clicks), ''),
            ('- seconds until the pass is complete', pass_seconds, ''),
            ('- memory in total, GB (codes alone would take 131)', memory, ''),
            ('- page of 1,024 latents, MB', page, 'under 10')]


PARTS = dict(dashboard=dashboard, explorer=explorer)


if __name__ == '__main__':
    run(__doc__, PARTS, 'What the widgets cost', 'Ratios are medians of ratios within a round',
        Path(__file__).with_suffix('.md'), rounds=15)
