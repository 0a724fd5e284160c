"""What the widgets cost and how large a model they take; writes laboratory.md.

    python benchmarks/laboratory.py               # about twelve minutes on 2 cores
    python benchmarks/laboratory.py dashboard     # one part only; laboratory.md stays as it is
"""
import resource
import os
import statistics
import tempfile
import time
from pathlib import Path

import nbformat
import numpy as np
import torch
from nbclient import NotebookClient
from tables import run

from sparse_ae import FeatureExplorer, SparseAutoencoder

IN_A_KERNEL = '''
import time, torch
from sparse_ae import SparseAutoencoder, Trainer, TrainingDashboard
x, val = torch.rand(3200, FEATURES), torch.rand(256, FEATURES)

def seconds(watched):
    torch.manual_seed(0)
    dashboard = TrainingDashboard(IMAGE_SHAPE)
    model = SparseAutoencoder(FEATURES, LATENTS, hidden_dims=HIDDEN, decoder_norm='atom')
    trainer = Trainer(model, x, val, EPOCHS, 1e-3, EPOCHS, sparsity_type='l1', seed=0, verbose=0,
                      callbacks=[dashboard] if watched else [])
    start = time.perf_counter()
    trainer.fit()
    return time.perf_counter() - start, dashboard.looks

seconds(True)
for k in range(ROUNDS):
    found = {watched: seconds(watched) for watched in ((False, True) if k % 2 else (True, False))}
    print(found[True][0] / found[False][0], found[True][1] / found[True][0])
'''


def dashboard(rounds):
    """A training of about ten seconds, with a dashboard over without, in a kernel whose messages
    are received."""
    rows = []
    for name, values in {
            '200 -> 125 -> 50, batch 256': dict(FEATURES=200, LATENTS=50, HIDDEN=None, EPOCHS=300,
                                                IMAGE_SHAPE=None),
            '256 -> 1024, batch 256': dict(FEATURES=256, LATENTS=1024, HIDDEN=(), EPOCHS=90,
                                           IMAGE_SHAPE=(16, 16))}.items():
        source = '\n'.join(f'{k} = {v!r}' for k, v in {**values, 'ROUNDS': rounds}.items())
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source + IN_A_KERNEL)])
        NotebookClient(nb, timeout=1200, kernel_name='python3').execute()
        text = ''.join(o.text for o in nb.cells[0].outputs if o.output_type == 'stream')
        found = np.array([line.split() for line in text.splitlines()], float)
        rows += [(f'training with a dashboard / without, {name}', np.median(found[:, 0]), 'under 1.05'),
                 ('- pictures a second', np.median(found[:, 1]), 'a few')]
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


os.environ['TQDM_DISABLE'] = '1'  # a bar would be most of what is printed

PARTS = dict(dashboard=dashboard, explorer=explorer)


if __name__ == '__main__':
    run(__doc__, PARTS, 'What the widgets cost', 'Ratios are medians of ratios within a round',
        Path(__file__).with_suffix('.md'), rounds=5)
