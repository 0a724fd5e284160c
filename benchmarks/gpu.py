"""Cost of a top-k step on a GPU, relative to the dense floor and to the floor of its memory
traffic, also for other installed libraries; writes gpu.md. Needs a GPU. All products are in
bfloat16 (autocast), all weights in single precision.

    python benchmarks/gpu.py
"""
import statistics
import sys
from functools import partial

import torch
import torch.nn.functional as F
from speed import HERE, Size, TextbookClassical, peers, step, whole_step
from torch import nn
from training import classical, data

from sparse_ae import BatchTopK, TopK
from sparse_ae.training import Trainer

SIZES = ((768, 24_576, 32), (4_096, 65_536, 64))
BATCH, ROUNDS, STEPS, DEVICE = 8192, 5, 10, 'cuda'


def floor(input_dim, latent_dim):
    "Function that computes the five products of a dense step in bfloat16, preallocated."
    new = lambda *shape: torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
    x, z, g = new(BATCH, input_dim), new(BATCH, latent_dim), new(BATCH, input_dim)
    W, D = new(latent_dim, input_dim), new(input_dim, latent_dim)
    code, out, of_W, of_D = map(torch.empty_like, (z, x, W, D))

    def multiply():
        torch.mm(x, W.T, out=code)
        torch.mm(z, D.T, out=out)
        torch.mm(g, D, out=code)
        torch.mm(z.T, x, out=of_W)
        torch.mm(g.T, z, out=of_D)
    return multiply


class Textbook(nn.Module):
    "Linear layers, `topk` and `scatter`."
    def __init__(self, input_dim, latent_dim, k):
        super().__init__()
        self.encoder, self.k = nn.Linear(input_dim, latent_dim), k
        self.decoder = nn.Linear(latent_dim, input_dim)

    def forward(self, x):
        values, latents = self.encoder(x).topk(self.k)
        z = torch.zeros(len(x), self.decoder.in_features, device=x.device, dtype=values.dtype)
        return self.decoder(z.scatter(1, latents, F.relu(values)))


def textbook(input_dim, latent_dim, k):
    "Function that computes a step of the textbook model in the same dtypes, with fused Adam."
    model, x = Textbook(input_dim, latent_dim, k).to(DEVICE), torch.randn(BATCH, input_dim,
                                                                          device=DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def one():
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16): loss = F.mse_loss(model(x).float(), x)
        loss.backward()
        optimizer.step()
        with torch.no_grad(): model.decoder.weight /= model.decoder.weight.norm(dim=0)
    return one


def autocast(make):
    "Function that computes a step of another library under bfloat16 autocast."
    one = make()
    def in_bfloat16():
        with torch.autocast(DEVICE, torch.bfloat16): one()
    return in_bfloat16


def classical_step(compile=False):
    "A step of 200 -> 125 -> 50, L1, all 3,200 rows at once."
    x = data().to(DEVICE)
    t = Trainer(classical(), x, x[:2], 1, 1e-3, 1, sparsity_type='l1', revive=None, batch_size=3200,
                verbose=0, seed=0, device=DEVICE, compile=compile)
    return whole_step(t, x)


def textbook_classical():
    "Function that computes the same step with torch layers and a second encoder pass."
    model, x = TextbookClassical().to(DEVICE), data().to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def one():
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), x) + 0.1*model.encode(x).abs().mean()
        loss.backward()
        optimizer.step()
        model.normalize_decoder_weights()
        loss.item()
    return one


def milliseconds(functions):
    "Median time of each function, in alternating series of consecutive calls."
    times = {name: [] for name in functions}
    for number in range(ROUNDS + 1):
        for name, function in functions.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(STEPS): function()
            end.record()
            torch.cuda.synchronize()
            if number: times[name].append(begin.elapsed_time(end) / STEPS)
    return {name: statistics.median(some) for name, some in times.items()}


def bandwidth():
    "Bytes moved by a copy in a millisecond."
    a = torch.empty(2**28, device=DEVICE)
    b = torch.empty_like(a)
    return 8*len(a) / milliseconds(dict(copy=lambda: b.copy_(a)))['copy']


def traffic(input_dim, latent_dim, k):
    """Bytes moved by a step if each part reads and writes its operands once: matrices in bfloat16
    for the product, rows of the active entries (four times: decoding, their products, and the sums
    of two gradients), weights, gradients and Adam's state in single precision. The pre-activation
    and savings by caches are not counted."""
    rows = 2*BATCH*k*input_dim
    return 2*(BATCH + latent_dim)*input_dim + 4*rows + 2*latent_dim*input_dim*4*8


def table(lines, header):
    lines += ['', f"| {' | '.join(header)} |", '|' + '---|'*len(header)]
    def row(*cells):
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return row


def single_layers(row, sizes, speed):
    "Measure steps of single-layer models of one size."
    size, least = Size(*sizes[:2], BATCH, sizes[2], DEVICE), traffic(*sizes) / speed
    here = lambda kind, **options: step(kind(size.k), size.input_dim, size.latent_dim, BATCH,
                                        DEVICE, autocast='bfloat16', **options)
    own = {'top-k': partial(here, TopK), 'top-k, compile=True': partial(here, TopK, compile=True),
           'batch-top-k': partial(here, BatchTopK), 'textbook, top-k': partial(textbook, *sizes)}
    others = {name: partial(autocast, make) for name, make in peers(size).items()}
    for name, make in {**own, **others}.items():  # one at a time, to fit the memory
        title = f'{name}, {size.input_dim:,} -> {size.latent_dim:,}, k = {size.k}'
        try: ms = milliseconds({'floor': floor(*sizes[:2]), 'step': make()})
        except Exception as error:
            if name in own: raise
            row(title, f'{type(error).__name__}: {str(error).partition(chr(10))[0]}', '', '')
        else: row(title, f'{ms["step"]:.2f}', f'{ms["step"]/ms["floor"]:.3f}',
                  f'{ms["step"]/least:.2f}')
        torch.cuda.empty_cache()


def main():
    if not torch.cuda.is_available(): sys.exit("benchmarks/gpu.py needs a GPU, found none")
    lines = ['## Speed on a GPU', '',
             f'Medians of {ROUNDS} rounds of {STEPS} steps, batch {BATCH:,} '
             f'({torch.cuda.get_device_name()}, torch {torch.__version__}). '
             'Written by `python benchmarks/gpu.py`.']
    row = table(lines, ('step', 'ms', '/ dense floor (target: 0.45)', '/ traffic floor'))
    speed = bandwidth()
    for sizes in SIZES: single_layers(row, sizes, speed)
    row = table(lines, ('step, 200 -> 125 -> 50, 3,200 rows', 'ms', '/ textbook, encoding twice'))
    ms = milliseconds({'textbook': textbook_classical(), 'sparse_ae': classical_step(),
                       'sparse_ae, compile=True': classical_step(compile=True)})
    for name, value in ms.items(): row(name, f'{value:.2f}', f'{value/ms["textbook"]:.2f}')
    (HERE/'gpu.md').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__': main()
