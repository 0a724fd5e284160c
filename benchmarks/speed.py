"""Cost of a step relative to the matrix products of a dense step; writes RESULTS.md.

    python benchmarks/speed.py            # about seven minutes on 2 cores
    python benchmarks/speed.py steps      # one part only; RESULTS.md is not changed
"""
import os
import statistics
import subprocess
import sys
import types
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from quality import bare
from tables import run
from torch import nn
from training import classical, data, interleaved, ratio, trainer

from sparse_ae import (BackwardElimination, BatchTopK, SparseAutoencoder, TopK, Unrolled,
                       evaluate_sparse_autoencoder, image_patches)
from sparse_ae.training import Trainer, fit_step
from sparse_ae.engines.sparse_codes import (SparseCode, SparseEncode, SparsePattern, sparse_decode,
                                            sparse_encode)

HERE = Path(__file__).resolve().parent
INPUT, LATENT, BATCH, K = 384, 3072, 2048, 32


def rows(n, features, seed=0):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed))


def floor(input_dim=INPUT, latent_dim=LATENT, batch=BATCH):
    "Function that computes the dense floor: the five products of a dense step, preallocated."
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


def step(activation, input_dim=INPUT, latent_dim=LATENT, batch=BATCH, device='cpu',
         encoder='linear', **options):
    "A step of `Trainer`, with optimiser, decoder normalisation and counting, as a function."
    torch.manual_seed(0)
    x = rows(batch, input_dim).to(device)
    model = SparseAutoencoder(input_dim, latent_dim, device, hidden_dims=(), activation=activation,
                              decoder_norm='atom', encoder=encoder)
    options = dict(sparsity_type='none', revive=None, verbose=0, seed=0, device=device) | options
    return whole_step(Trainer(model, x, x[:2], 1, 1e-4, 1, batch_size=batch, **options), x)


def whole_step(t, x):
    "A step of this trainer, with all that belongs to one, as a function."
    t.start()
    t.model.train()
    def one(x=x):
        t.batches = [x]
        fit_step(t, [(x, 1.)])
    return one


class Textbook(nn.Module):
    "Typical code of papers: linear layers, `topk` and `scatter` for a code of k active latents."
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


def textbook(activation=None):
    "Function that computes a step of the textbook autoencoder, with its normalisation."
    torch.manual_seed(0)
    k = activation and activation.k
    model, x = Textbook(k), rows(BATCH, INPUT)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def one(x=x):
        optimizer.zero_grad()
        z, x_reconstructed = model(x)
        loss = F.mse_loss(x_reconstructed, x)
        if not k: loss = loss + 0.01*z.abs().mean()
        loss.backward()
        optimizer.step()
        with torch.no_grad(): model.decoder.weight /= model.decoder.weight.norm(dim=0)
    return one


class Size(NamedTuple):
    "Shapes, number of active latents and device of a step."
    input_dim:int = INPUT
    latent_dim:int = LATENT
    batch:int = BATCH
    k:int = K
    device:str = 'cpu'

    def rows(self): return rows(self.batch, self.input_dim).to(self.device)


def dictionary_learning(kind, size):
    "Function that computes a step of the library dictionary_learning."
    from dictionary_learning.trainers import batch_top_k, top_k
    cls = {'top-k': top_k.TopKTrainer, 'batch-top-k': batch_top_k.BatchTopKTrainer}[kind]
    made, x = cls(steps=10**6, activation_dim=size.input_dim, dict_size=size.latent_dim, k=size.k,
                  layer=0, lm_name='', device=size.device), size.rows()
    return lambda: made.update(1, x)


def overcomplete(size):
    "Function that computes a step of the library overcomplete, with Adam."
    from overcomplete.sae import TopKSAE
    model = TopKSAE(size.input_dim, nb_concepts=size.latent_dim, top_k=size.k, device=size.device)
    optimizer, x = torch.optim.Adam(model.parameters(), 1e-4), size.rows()

    def one():
        optimizer.zero_grad()
        F.mse_loss(model(x)[2], x).backward()
        optimizer.step()
    return one


def sparsify(size):
    "Function that computes a step of the library sparsify (eai-sparsify), with Adam."
    if size.device == 'cpu': os.environ['SPARSIFY_DISABLE_TRITON'] = '1'
    needs = {'transformers': 'PreTrainedModel', 'accelerate.utils': 'send_to_device'}
    for name, need in needs.items():
        package = name.partition('.')[0]
        if find_spec(package) is None:  # only its functions for language models need it
            for part in (package, name):
                sys.modules[part] = types.ModuleType(part)
                setattr(sys.modules[part], need, object)
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder
    config = SparseCoderConfig(num_latents=size.latent_dim, k=size.k)
    model = SparseCoder(size.input_dim, config, device=size.device, dtype=torch.float32)
    optimizer, x = torch.optim.Adam(model.parameters(), 1e-4), size.rows()

    def one():
        optimizer.zero_grad()
        model(x).fvu.backward()
        model.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        model.set_decoder_norm_to_unit_norm()
    return one


def saelens(kind, size):
    "Function that computes a step of the library SAELens (sae-lens)."
    import sae_lens as lens
    made = {'top-k': (lens.TopKTrainingSAE, lens.TopKTrainingSAEConfig),
            'batch-top-k': (lens.BatchTopKTrainingSAE, lens.BatchTopKTrainingSAEConfig)}
    model, config = made[kind]
    model = model(config(d_in=size.input_dim, d_sae=size.latent_dim, k=size.k, device=size.device))
    options = lens.config.SAETrainerConfig(total_training_samples=10**9, lr=1e-4, lr_end=1e-5,
                                           train_batch_size_samples=size.batch, device=size.device)
    made, x = lens.SAETrainer(options, model, iter(())), size.rows()
    return lambda: made._train_step(model, x)


def peers(size=Size(), kinds=('top-k', 'batch-top-k')):
    "Constructors of steps, by name, for the libraries that can be imported."
    found = {}
    if bare('dictionary_learning'):
        for kind in kinds:
            found[f'dictionary_learning, {kind}'] = partial(dictionary_learning, kind, size)
    if find_spec('sae_lens') and find_spec('transformer_lens'):
        for kind in kinds: found[f'SAELens, {kind}'] = partial(saelens, kind, size)
    if bare('overcomplete'): found['overcomplete, top-k'] = partial(overcomplete, size)
    if bare('sparsify'): found['sparsify, top-k'] = partial(sparsify, size)
    return found


def steps(rounds):
    "Training steps relative to the dense floor."
    here = {'dense, ReLU + L1': step('relu', sparsity_type='l1', sparsity_weight=0.01),
            f'top-k, k = {K}': step(TopK(K)), f'batch-top-k, k = {K}': step(BatchTopK(K))}
    reach = dict(zip(here, ('at most 1.12', 'at most 0.45', 'at most 0.45')))
    books = {'textbook, dense, ReLU + L1': textbook(), 'textbook, top-k, k = 32': textbook(TopK(K))}
    others = {**books, **{name: make() for name, make in peers().items()}}
    times = interleaved({'dense floor': floor(), **here, **others}, rounds)
    return [(f'step, {name} / dense floor', ratio(times, name, 'dense floor'), reach.get(name, ''))
            for name in (*here, *others)]


MEMORY = r'''
import ctypes, gc, re, sys
sys.path.insert(0, sys.argv[1])
from torch.profiler import profile
from speed import step, textbook, rows, TopK, INPUT, K, BATCH, LATENT
one, x = dict(here=step, textbook=textbook)[sys.argv[2]](TopK(K)), rows(BATCH, INPUT)
def kilobytes(name): return int(re.search(name + r':\s*(\d+)', open('/proc/self/status').read())[1])
one(x[:2]), one(x[:2])   # creates the state of the optimiser
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
before = kilobytes('VmRSS')
for _ in range(3): one(x)
process = 1024*(kilobytes('VmHWM') - before)
with profile(profile_memory=True) as seen: one(x)
changes = sorted((e.start_ns(), e.nbytes()) for e in seen.profiler.kineto_results.events()
                 if e.name() == '[memory]')
alive = highest = 0
for _, change in changes:
    alive += change
    highest = max(highest, alive)
print(process / (4*BATCH*LATENT), highest / (4*BATCH*LATENT))
'''


def memory(rounds):
    "Peak memory of a top-k step above parameters and optimiser, in code-sized dense tensors."
    def peaks(which, **env):
        found = [subprocess.run([sys.executable, '-c', MEMORY, str(HERE), which], check=True,
                                capture_output=True, text=True, env={**os.environ, **env})
                 .stdout.split() for _ in range(5)]
        return [statistics.median(map(float, some)) for some in zip(*found)]
    found = []
    for which, reach in (('here', 'at most 1.5'), ('textbook', '')):
        kept, tensors = peaks(which)
        given_back, _ = peaks(which, MALLOC_MMAP_THRESHOLD_='262144')
        name = dict(here='sparse_ae').get(which, which)
        found += [(f'peak memory of a top-k step, {name}: tensors, in units of a dense code',
                   tensors, reach),
                  ('- whole process, with freed memory returned by malloc', given_back, reach),
                  ('- whole process, with the default malloc', kept, '')]
    return found


def inference(rounds):
    "Encoding and decoding without gradients, k = 32, relative to two dense products."
    torch.manual_seed(0)
    models = {norm: SparseAutoencoder(INPUT, LATENT, hidden_dims=(), activation=TopK(K),
                                      decoder_norm=norm).eval() for norm in ('atom', None)}
    x, z = rows(BATCH, INPUT), rows(BATCH, LATENT, 1)
    W, D = rows(LATENT, INPUT, 3), rows(INPUT, LATENT, 4)
    code, out = torch.empty_like(z), torch.empty_like(x)
    book = Textbook(K)

    def products():
        torch.mm(x, W.T, out=code)
        torch.mm(z, D.T, out=out)
    here = {'decoder normalised': lambda: models['atom'](x),
            'decoder not normalised': lambda: models[None](x)}
    reach, found = {'decoder normalised': 'at most 0.80'}, []
    with torch.no_grad():
        # separately, since the memory of the textbook is returned to the system
        for functions in (here, {'textbook': lambda: book(x)}):
            times = interleaved({'products': products, **functions}, 20*rounds)
            found += [(f'encode + decode, k = 32, {name} / two dense products',
                       ratio(times, name, 'products'), reach.get(name, '')) for name in functions]
    return found


def bfloat16(rounds):
    "Steps in bfloat16 relative to the float32 floor, and the quality of a training in each."
    steps = {'dense, ReLU + L1': step('relu', sparsity_type='l1', sparsity_weight=0.01,
                                      autocast='bfloat16'),
             f'top-k, k = {K}': step(TopK(K), autocast='bfloat16')}
    times = interleaved({'dense floor': floor(), **steps}, rounds)
    found = [(f'step in bfloat16, {name} / dense floor in single precision',
              ratio(times, name, 'dense floor'), '') for name in steps]
    x, val = image_patches(18_000), image_patches(2_000, split='val')
    for precision in (None, 'bfloat16'):
        torch.manual_seed(0)
        model = SparseAutoencoder(x.shape[1], 512, hidden_dims=(), activation=TopK(8),
                                  decoder_norm='atom')
        Trainer(model, x, val, 10, 1e-3, 10, sparsity_type='none', batch_size=512, seed=0,
                verbose=0, autocast=precision).fit()
        name = f'explained variance, photographs, 8 of 512, {precision or "single precision"}'
        found.append((name, evaluate_sparse_autoencoder(model, val)['explained_variance'], ''))
    return found


class TextbookClassical(nn.Module):
    "Autoencoder 200 -> 125 -> 50 from torch layers."
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(200, 125), nn.ReLU(), nn.Linear(125, 50), nn.ReLU())
        self.decoder = nn.Sequential(nn.Linear(50, 125), nn.ReLU(), nn.Linear(125, 200))

    def encode(self, x): return self.encoder(x)

    def forward(self, x): return self.decoder(self.encoder(x))

    def normalize_decoder_weights(self):
        weight = self.decoder[-1].weight
        with torch.no_grad(): weight /= weight.norm(dim=1)[:, None]


def encoding_twice(model, epochs):
    "Function that trains with a second encoder pass for the penalty, also in validation."
    x, val = data(), data(256, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    def loss(x): return F.mse_loss(model(x), x) + 0.1*model.encode(x).abs().mean()
    def one():
        for _ in range(epochs):
            optimizer.zero_grad()
            loss(x).backward()
            optimizer.step()
            model.normalize_decoder_weights()
            with torch.no_grad(): loss(val).item()
    return one


def classical_epoch(rounds):
    "An epoch of 200 -> 125 -> 50 on all 3,200 rows, including validation."
    torch.manual_seed(0)
    times = interleaved({'here': trainer(100, batch_size=3200),
                         'textbook': encoding_twice(TextbookClassical(), 100),
                         'same model': encoding_twice(classical(), 100)}, rounds)
    name = 'epoch, 200 -> 125 -> 50, full batch / encoding twice'
    return [(f'{name}, textbook layers', ratio(times, 'here', 'textbook'), 'at most 0.80'),
            (f'{name}, same model', ratio(times, 'here', 'same model'), 'at most 0.80')]


def after_encoding(latent_dim, batch, k):
    "Decoding and all gradients, given the entries: what is left when the first product is done."
    x, W, b = rows(batch, INPUT), rows(latent_dim, INPUT, 3), torch.zeros(latent_dim)
    D, offset = rows(latent_dim, INPUT, 4).mT, torch.zeros(INPUT)  # as it lies in training
    with torch.no_grad(): chosen = sparse_encode(x, W, b, TopK(k))
    leaves = [t.requires_grad_() for t in (W, b, D, offset)]

    def one():
        e = chosen.pattern
        # a new pattern has no cached transpose
        e = SparsePattern(e.col_indices, e.offsets, latent_dim)
        code = SparseCode(SparseEncode.apply(x, W, b, chosen.values, e), e)
        torch.autograd.grad(F.mse_loss(sparse_decode(code, D, offset), x), leaves)
    return one


KEPT = r'''
import statistics, sys
sys.path.insert(0, sys.argv[1])
from speed import BATCH, K, after_encoding
from training import interleaved
times = interleaved({n: after_encoding(n, BATCH, K) for n in (1024, 65536)}, int(sys.argv[2]))
print(statistics.median(b / a for a, b in zip(*times.values())))
'''


def growth(rounds):
    "Growth of a top-k step with the number of latents, k and the batch size."
    found, first = [], None
    for latent_dim, k, batch in ((1024, 32, 2048), (3072, 32, 2048), (8192, 32, 2048),
                                 (16384, 32, 2048), (65536, 32, 2048), (3072, 8, 2048),
                                 (3072, 128, 2048), (3072, 32, 512), (3072, 32, 8192)):
        functions = dict(floor=floor(latent_dim=latent_dim, batch=batch),
                         step=step(TopK(k), latent_dim=latent_dim, batch=batch),
                         rest=after_encoding(latent_dim, batch, k))
        times = interleaved(functions, max(2, rounds // 3))
        rest = statistics.median(times['rest'])
        first = first or rest
        name = f'latent_dim {latent_dim:,}, k {k}, batch {batch:,}'
        found += [(f'step / dense floor, {name}', ratio(times, 'step', 'floor'), ''),
                  ('- decoding and gradients, relative to those at 1,024, 32, 2,048', rest / first,
                   '')]
        if latent_dim == 65536:
            env = dict(MALLOC_MMAP_MAX_='0', MALLOC_TRIM_THRESHOLD_='4000000000')
            kept = subprocess.run([sys.executable, '-c', KEPT, str(HERE), str(rounds)], check=True,
                                  capture_output=True, text=True, env={**os.environ, **env}).stdout
            found.append(('- the same, with freed memory kept by malloc', float(kept), ''))
    return found


def unrolled(rounds):
    "Steps with unrolled encoders relative to a top-k step."
    methods = {'one unrolled step, top-k': (TopK, Unrolled(1, step_size=0.5), {}),
               'lista: three steps, batch-top-k, clipped gradients': (
                   BatchTopK, Unrolled(3, step_size=0.5), dict(clip_grad_norm=0.05))}
    found = []
    for batch in (512, BATCH):
        here = {name: step(activation(K), batch=batch, encoder=encoder, **options)
                for name, (activation, encoder, options) in methods.items()}
        plain = {f'plain engine, {name}': step(activation(K), batch=batch, encoder=encoder,
                                               engine='plain', **options)
                 for name, (activation, encoder, options) in methods.items()}
        times = interleaved({'top-k': step(TopK(K), batch=batch), **here, **plain}, rounds)
        reach = dict(zip(here, ('at most 1.6', 'at most 3')))
        found += [(f'{name} / linear encoder, batch {batch:,}', ratio(times, name, 'top-k'),
                   reach.get(name, '')) for name in (*here, *plain)]
    return found


def elimination(rounds):
    "Reconstruction by backward elimination relative to the linear encoder."
    def encode(encoder, sparse=True):
        torch.manual_seed(0)
        model = SparseAutoencoder(INPUT, LATENT, hidden_dims=(), activation=TopK(K),
                                  decoder_norm='atom', encoder=encoder).eval()
        x = rows(BATCH, INPUT)
        function = model if sparse else lambda x: model.decode(model.encode(x))
        def one():
            with torch.no_grad(): function(x)
        return one
    found, encoder = [], BackwardElimination(K)
    times = interleaved({'linear': encode('linear'), 'elimination': encode(encoder),
                         'plain': encode(encoder, False)}, max(2, rounds // 3))
    for name, label in (('elimination', 'sparse codes'), ('plain', 'plain encoder')):
        found.append((f'reconstruction, backward elimination, {label} / linear encoder',
                      ratio(times, name, 'linear'), ''))
    return found


PARTS = dict(steps=steps, bfloat16=bfloat16, memory=memory, inference=inference,
             classical=classical_epoch, growth=growth, unrolled=unrolled,
             elimination=elimination)

if __name__ == '__main__':
    run(__doc__, PARTS, 'Speed', 'Medians of ratios within a round',
        HERE/'RESULTS.md', rounds=11)
