"""Agreement of the dictionaries of two seeds, for the presets and a textbook implementation; writes
stability.md.

    python benchmarks/stability.py                  # about ten minutes on 2 cores
    python benchmarks/stability.py patches          # one part only; stability.md is not changed

The seeds change the initial weights and the order of the data. Dead latents are left out.
"""
from pathlib import Path

import numpy as np
import torch
from quality import textbook
from tables import run

from sparse_ae import (SparseAutoencoder, evaluate_sparse_autoencoder, image_patches,
                       sparse_dictionary, sweep)
from sparse_ae.measures import dictionary_stability, stability
from sparse_ae.presets import PRESETS

EPOCHS, BATCH = 12, 512


def presets(x, new, latents, k, steps, rounds):
    "Yield name, stability, explained variance and share of dead latents of each preset."
    for name in PRESETS:
        make = lambda: SparseAutoencoder.from_preset(
            name, x.shape[1], latents, l0=None if name == 'ng' else k, num_epochs=EPOCHS)
        training = make().training
        training['steps_per_epoch'] = steps*BATCH // (EPOCHS*training['batch_size'])
        runs = sweep(lambda: make().model, x, new, {'seed': range(rounds + 1)}, **training,
                     verbose=0)
        results = evaluate_sparse_autoencoder(runs[0].model, new, return_codes=False)
        yield (name, stability(runs, data=new), results['explained_variance'],
               (results['density'] == 0).mean())


def textbook_row(x, new, latents, k, steps, rounds):
    "Return the same for the top-k autoencoder of common tutorials."
    atoms = []
    for seed in range(rounds + 1):
        torch.manual_seed(seed)
        encode, decode, learned = textbook(x, new, latents, k, steps, seed)
        with torch.no_grad(): z = encode(new)
        alive = (z != 0).any(0)
        atoms.append(learned * alive[:, None])
        if seed == 0:
            left = (decode(z) - new).square().sum() / (new - new.mean(0)).square().sum()
            measured = 1 - left.item(), 1 - alive.float().mean().item()
    return 'textbook top-k', dictionary_stability(atoms[0], atoms[1:]), *measured


def measure(problem, x, new, latents, k, samples, rounds):
    "Return rows of figures, one per method."
    deviation = (x - x.mean(0)).square().mean().sqrt()
    settings = x / deviation, new / deviation, latents, k, samples // BATCH, rounds
    rows = []
    for name, found, explained, dead in [*presets(*settings), textbook_row(*settings)]:
        rows.append((problem, name, found.mean_cosine, found.chance,
                     100*float(np.nanmean(found.stability)), explained, 100*float(dead)))
        print(*rows[-1], flush=True)
    return rows


def known_dictionary(rounds):
    "64 dimensions, 256 features, Zipf rates, 8 at a time; 0.77 million samples seen."
    source = sparse_dictionary()
    return measure('known dictionary', source.sample(100_000).x, source.sample(10_000, seed=1).x,
                   256, 8, 770_000, rounds)


def patches(rounds):
    "Whitened patches of 12 x 12, 512 latents, 12 active; 0.4 million samples seen."
    return measure('photographs', image_patches(100_000, 12), image_patches(10_000, 12, 'val'),
                   512, 12, 400_000, rounds)


PARTS = dict(dictionary=known_dictionary, patches=patches)

if __name__ == '__main__':
    run(__doc__, PARTS, 'Stability of the dictionaries',
        'Agreement with an independently started run: mean best cosine of the latents that are '
        'active on held-out data, that of random directions, and the share of latents with a '
        'cosine of 0.7 or more', Path(__file__).with_suffix('.md'), rounds=1,
        header=('data', 'method', 'mean best cosine', 'chance', 'reappear (%)',
                'explained variance', 'dead latents (%)'))
