"""Quality of the dictionaries, compared with a textbook implementation, scikit-learn and other
libraries on the same data and budget; writes quality.md.

    python benchmarks/quality.py                  # about fifteen minutes on 2 cores
    python benchmarks/quality.py dictionary       # one part only; quality.md is not changed

Other libraries are measured if they can be imported: dictionary_learning and overcomplete. Only
their sparse autoencoders are imported; dependencies for language or vision models may be missing.
"""
import importlib.util
import sys
import time
import types
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning
from tables import run

from sparse_ae import (SparseAutoencoder, TopK, dictionary, image_patches, match_dictionaries,
                       sparse_dictionary, train_sparse_autoencoder_with_early_stopping)

BATCH = 512
SECONDS = 60   # budget of scikit-learn, which would take hours for as many samples


def batches(x, steps, seed):
    "Shuffled batches of normalised rows."
    generator, done = torch.Generator().manual_seed(seed), 0
    while done < steps:
        for part in torch.randperm(len(x), generator=generator).split(BATCH)[:steps - done]:
            yield x[part]
            done += 1


def ours(preset, **overrides):
    "Function that trains a preset of this library."
    def train(x, new, latents, k, steps, seed):
        model, training = SparseAutoencoder.from_preset(
            preset, x.shape[1], latents, l0=k, num_epochs=24, **overrides)
        training['steps_per_epoch'] = round(steps*BATCH / (24*training['batch_size']))
        train_sparse_autoencoder_with_early_stopping(model, x, new, **training, seed=seed,
                                                     verbose=0)
        return lambda some: model.encode(some), model.decode, dictionary(model)
    return train


def textbook(x, new, latents, k, steps, seed):
    "Train the top-k autoencoder of common tutorials: Adam at 1e-3, no other measures."
    model = SparseAutoencoder(x.shape[1], latents, hidden_dims=(), decoder_norm=None)
    We, be, Wd, bd = (model.encoder_mat_1, model.encoder_bias_1, model.decoder_mat_1,
                      model.decoder_bias_1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def encode(some):
        values, places = F.relu((some - bd) @ We.T + be).topk(k)
        return torch.zeros(len(some), latents).scatter(1, places, values)
    for batch in batches(x, steps, seed):
        loss = F.mse_loss(encode(batch) @ Wd.T + bd, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad(): Wd.copy_(F.normalize(Wd, dim=0))
    return encode, lambda z: z @ Wd.T + bd, Wd.detach().T


def scikit_learn(x, new, latents, k, steps, seed):
    "Run MiniBatchDictionaryLearning for a given time; codes by orthogonal matching pursuit."
    warnings.simplefilter('ignore', ConvergenceWarning)   # of single batches
    mean, start = x.mean(0), time.perf_counter()
    model = MiniBatchDictionaryLearning(latents, alpha=0.5, batch_size=BATCH, random_state=seed,
                                        fit_algorithm='cd', transform_algorithm='omp',
                                        transform_n_nonzero_coefs=k)
    for batch in batches(x - mean, steps, seed):
        model.partial_fit(batch.numpy())
        if time.perf_counter() - start > SECONDS: break
    # its codes are signed: orient each atom so that its code is positive on average
    signs = np.sign(model.transform((x[:2000] - mean).numpy()).sum(0))
    model.components_ *= np.where(signs == 0, 1, signs)[:, None]
    atoms = torch.as_tensor(model.components_, dtype=torch.float32)
    encode = lambda some: torch.as_tensor(model.transform((some - mean).numpy())).float()
    return encode, lambda z: z @ atoms + mean, atoms


def bare(name):
    "Make a package importable without running its `__init__`; return whether it is installed."
    if name in sys.modules: return True
    spec = importlib.util.find_spec(name)
    if spec is None: return False
    sys.modules[name] = package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    return True


def dictionary_learning(kind):
    "Function that trains with the library dictionary_learning and its defaults."
    def train(x, new, latents, k, steps, seed):
        from dictionary_learning.trainers import batch_top_k, top_k
        trainer = {'top-k': top_k.TopKTrainer, 'batch-top-k': batch_top_k.BatchTopKTrainer}[kind](
            steps=steps, activation_dim=x.shape[1], dict_size=latents, k=k, layer=0, lm_name='',
            seed=seed, device='cpu')
        for step, batch in enumerate(batches(x, steps, seed)): trainer.update(step, batch)
        ae = trainer.ae
        return ae.encode, ae.decode, ae.decoder.weight.detach().T
    return train


def overcomplete(x, new, latents, k, steps, seed):
    "Train TopKSAE of the library overcomplete with its loop, Adam at 1e-3."
    from overcomplete.sae import TopKSAE, train_sae
    model = TopKSAE(x.shape[1], nb_concepts=latents, top_k=k)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), BATCH, shuffle=True)
    train_sae(model, loader, lambda a, b, *_: F.mse_loss(b, a),
              torch.optim.Adam(model.parameters(), 1e-3), nb_epochs=round(steps / len(loader)),
              monitoring=0)
    return lambda some: model.encode(some)[1], model.decode, model.get_dictionary().detach()


def contenders(k):
    "Methods that can be run, by name, for a code of `k` active latents."
    found = {'sparse_ae, topk': ours('topk'), 'sparse_ae, batch_topk': ours('batch_topk'),
             'sparse_ae, lista': ours('lista'),
             'sparse_ae, lista with top-k': ours('lista', activation=TopK(k)),
             'textbook top-k': textbook,
             'scikit-learn, MiniBatchDictionaryLearning': scikit_learn}
    if bare('dictionary_learning'):
        for kind in ('top-k', 'batch-top-k'):
            found[f'dictionary_learning, {kind}'] = dictionary_learning(kind)
    if bare('overcomplete'): found['overcomplete, top-k'] = overcomplete
    return found


def measure(problem, x, new, latents, k, samples, rounds, true=None):
    "Rows of means over the seeds, one per method."
    deviation = (x - x.mean(0)).square().mean().sqrt()
    x, new, rows, steps = x / deviation, new / deviation, [], samples // BATCH
    for name, train in contenders(k).items():
        figures = []
        for seed in range(1 if 'scikit' in name else rounds):
            torch.manual_seed(seed)
            encode, decode, atoms = train(x, new, latents, k, steps, seed)
            with torch.no_grad():
                z = torch.cat([encode(part) for part in new.split(2000)])
                left = (decode(z) - new).square().sum() / (new - new.mean(0)).square().sum()
            on = z != 0
            mcc = match_dictionaries(atoms, true).mcc if true is not None else float('nan')
            figures.append((mcc, 1 - left.item(), on.float().sum(1).mean().item(),
                            100*(~on.any(0)).float().mean().item()))
        rows.append((problem, name, *np.mean(figures, 0)))
        print(*rows[-1], flush=True)
    return rows


def known_dictionary(rounds):
    "64 dimensions, 256 features, Zipf rates, 8 at a time; 3 million samples seen."
    source = sparse_dictionary()
    return measure('known dictionary', source.sample(300_000).x, source.sample(20_000, seed=1).x,
                   256, 8, 3_000_000, rounds, source.atoms)


def patches(rounds):
    "Whitened patches of 16 x 16, 1,024 latents, 16 active; 0.8 million samples seen."
    return measure('photographs', image_patches(200_000, 16), image_patches(20_000, 16, 'val'),
                   1024, 16, 800_000, rounds)


PARTS = dict(dictionary=known_dictionary, patches=patches)

if __name__ == '__main__':
    run(__doc__, PARTS, 'Quality of the dictionaries',
        'Held-out data, one seed in each round; scikit-learn with one seed and '
        f'{SECONDS} seconds', Path(__file__).with_suffix('.md'), rounds=1,
        header=('data', 'method', 'MCC', 'explained variance', 'L0', 'dead latents (%)'))
