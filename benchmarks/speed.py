"""What a step costs against the matrix products that a dense one cannot avoid; writes RESULTS.md.

    python benchmarks/speed.py            # about six minutes on 2 cores
    python benchmarks/speed.py steps      # one part only; RESULTS.md stays as it is
"""
import statistics
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from tables import run
from training import data, interleaved

from sparse_ae import BatchTopK, SparseAutoencoder, TopK
from sparse_ae.training import Alone, Trainer, _step

INPUT, LATENT, BATCH, K = 384, 3072, 2048, 32


def rows(n, features, seed=0):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed))


def floor(input_dim=INPUT, latent_dim=LATENT, batch=BATCH):
    "The five products of a dense step, into memory that is there: the dense floor, as a function."
    x, z, g = rows(batch, input_dim), rows(batch, latent_dim, 1), rows(batch, input_dim, 2)
    W, D = rows(latent_dim, input_dim, 3), rows(input_dim, latent_dim, 4)
    code, reconstruction, of_W, of_D = (torch.empty_like(t) for t in (z, x, W, D))

    def multiply():
        torch.mm(x, W.T, out=code)
        torch.mm(z, D.T, out=reconstruction)
        torch.mm(g, D, out=code)
        torch.mm(z.T, x, out=of_W)
        torch.mm(g.T, z, out=of_D)
    return multiply


def step(activation, input_dim=INPUT, latent_dim=LATENT, batch=BATCH, **options):
    "A step of `Trainer`, with optimiser, decoder normalisation and counting, as a function."
    torch.manual_seed(0)
    x = rows(batch, input_dim)
    model = SparseAutoencoder(input_dim, latent_dim, hidden_dims=(), activation=activation,
                              decoder_norm='atom')
    options = dict(sparsity_type='none', revive=None, verbose=0, seed=0) | options
    t = Trainer(model, x, x[:2], 1, 1e-4, 1, batch_size=batch, **options)
    t.begin()
    model.train()
    compute = Alone([t])
    def one():
        _step([t], [[x]], compute, lambda event, some: [s.event(event) for s in some])
    return one


class Textbook(nn.Module):
    "What papers' code does: linear layers, `topk` and `scatter` for a code of k latents."
    def __init__(self, k):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(INPUT, LATENT), nn.Linear(LATENT, INPUT)
        self.k = k

    def forward(self, x):
        z = F.relu(self.encoder(x))
        if self.k:
            values, latents = z.topk(self.k)
            z = torch.zeros_like(z).scatter(1, latents, values)
        return z, self.decoder(z)


def textbook(k):
    "A step of the textbook's autoencoder, normalised by the textbook, as a function."
    torch.manual_seed(0)
    model, x = Textbook(k), rows(BATCH, INPUT)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def one():
        optimizer.zero_grad()
        z, x_reconstructed = model(x)
        loss = F.mse_loss(x_reconstructed, x)
        if not k: loss = loss + 0.01*z.abs().mean()
        loss.backward()
        optimizer.step()
        with torch.no_grad(): model.decoder.weight /= model.decoder.weight.norm(dim=0)
    return one


def over(times, one, other='dense floor'):
    "Median over the rounds of the time of `one` to that of `other` in the same round."
    return statistics.median(a / b for a, b in zip(times[one], times[other]))


def steps(rounds):
    "Steps of training over the dense floor."
    here = {'dense, ReLU + L1': step('relu', sparsity_type='l1', sparsity_weight=0.01),
            f'top-k, k = {K}': step(TopK(K)), f'batch-top-k, k = {K}': step(BatchTopK(K))}
    reach = dict(zip(here, ('at most 1.12', 'at most 0.55', 'at most 0.55')))
    books = {'textbook, dense, ReLU + L1': textbook(None), 'textbook, top-k, k = 32': textbook(K)}
    times = interleaved({'dense floor': floor(), **here, **books}, rounds)
    return [(f'step, {name} / dense floor', over(times, name), reach.get(name, ''))
            for name in (*here, *books)]


PARTS = dict(steps=steps)

if __name__ == '__main__':
    run(__doc__, PARTS, 'How fast', 'Medians of ratios within a round',
        Path(__file__).resolve().parent/'RESULTS.md', rounds=11)
