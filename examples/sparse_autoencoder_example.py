"""Sparse autoencoders on handwritten digits, in five parts, each of them a function.

    python examples/sparse_autoencoder_example.py        (writes figures to runs/example)
"""
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from sparse_ae import (SparseAutoencoder, TiedWeightSparseAutoencoder, digits,
                       evaluate_sparse_autoencoder, plot_sparse_autoencoder_analysis,
                       plot_sparse_training_history, sweep,
                       train_sparse_autoencoder_with_early_stopping, train_val_split)

LATENTS = 50
COLUMNS = {'explained_variance': 'explained variance', 'l0': 'L0',
           'sparsity_level': 'sparsity level', 'dead_fraction': 'dead'}


def fit(cls: type = SparseAutoencoder, num_epochs: int = 100, verbose: int = 0,
        **kwargs) -> tuple[torch.nn.Module, dict, dict]:
    "Train a model on the digits; return it, its history and its results on held-out digits."
    train_data, val_data = train_val_split(digits())
    torch.manual_seed(0)
    model = cls(train_data.shape[1], LATENTS)
    history = train_sparse_autoencoder_with_early_stopping(
        model, train_data, val_data, num_epochs=num_epochs, learning_rate=3e-3, patience=20, seed=0,
        verbose=verbose, **kwargs)
    return model, history, evaluate_sparse_autoencoder(model, val_data)


def print_table(rows: dict[str, dict]) -> None:
    "Print one line of metrics per named result."
    print(f'{"":24}' + ''.join(f'{title:>20}' for title in COLUMNS.values()))
    for name, results in rows.items():
        print(f'{name:24}' + ''.join(f'{results[key]:20.3f}' for key in COLUMNS))


def basic_training(folder: Path, num_epochs: int = 100) -> dict:
    "Train with the default penalty; plot the history and the analysis."
    _, history, results = fit(num_epochs=num_epochs, verbose=1, sparsity_type='kl',
                              sparsity_weight=0.1, target_sparsity=0.05)
    plot_sparse_training_history(history, folder/'training_history.png')
    plot_sparse_autoencoder_analysis(results, 'KL, weight 0.1', folder/'analysis.png')
    print_table({'kl, weight 0.1': results})
    return results


def compare_penalties(num_epochs: int = 100) -> dict[str, dict]:
    "Compare L1, KL and Hoyer, each at a typical first weight."
    weights = {'l1': 0.01, 'kl': 0.1, 'hoyer': 1.0}
    rows = {}
    for name, weight in tqdm(weights.items(), desc='penalties', unit='model'):
        rows[f'{name}, weight {weight}'] = fit(num_epochs=num_epochs, sparsity_type=name,
                                               sparsity_weight=weight)[2]
    print_table(rows)
    return rows


def compare_tied(num_epochs: int = 100) -> dict[str, dict]:
    "Compare untied and tied weights; a tied model has half the weights."
    rows = {}
    for name, cls in tqdm({'untied': SparseAutoencoder,
                           'tied': TiedWeightSparseAutoencoder}.items(),
                          desc='models', unit='model'):
        model, _, results = fit(cls, num_epochs)
        rows[f'{name}, {sum(p.numel() for p in model.parameters())} parameters'] = results
    print_table(rows)
    return rows


def effect_of_sparsity_weight(folder: Path, weights: Sequence[float] = (0, 0.05, 0.1, 0.5, 1.0),
                              num_epochs: int = 100) -> dict[float, dict]:
    "Train five sparsity weights in one sweep; print a table and plot error and activation."
    train_data, val_data = train_val_split(digits())
    runs = sweep(lambda: SparseAutoencoder(64, LATENTS), train_data, val_data,
                 dict(sparsity_weight=weights), num_epochs=num_epochs, learning_rate=3e-3,
                 patience=20)
    rows = {run.settings['sparsity_weight']: evaluate_sparse_autoencoder(run.model, val_data)
            for run in runs}
    print_table({f'weight {weight}': results for weight, results in rows.items()})
    fig = Figure(figsize=(8, 3), layout='constrained')
    left, right = fig.subplots(1, 2)
    left.plot(weights, [r['mean'] for r in rows.values()], 'ko-')
    right.plot(weights, [r['mean_activation_per_neuron'].mean() for r in rows.values()], 'ko-')
    right.axhline(0.05, color='C1', ls=':', label='target')
    left.set(xlabel='sparsity weight (KL)', ylabel='error (MSE)')
    right.set(xlabel='sparsity weight (KL)', ylabel='mean activation', ylim=(0, None))
    right.legend()
    folder.mkdir(parents=True, exist_ok=True)
    fig.savefig(folder/'sparsity_weight.png', dpi=150)
    return rows


def effect_of_target_l0(targets: Sequence[float] = (4, 8, 16),
                        num_epochs: int = 100) -> dict[float, dict]:
    "Train with target numbers of active latents; training adjusts the weight."
    rows = {l0: fit(num_epochs=num_epochs, sparsity_type='l1', target_l0=l0)[2]
            for l0 in tqdm(targets, desc='targets', unit='model')}
    print_table({f'l1, target_l0={l0}': results for l0, results in rows.items()})
    return rows


def main(folder: Path = Path('runs/example')) -> None:
    "Run all five parts in order."
    print('1. Basic training')
    basic_training(folder)
    print('\n2. Three penalties')
    compare_penalties()
    print('\n3. Tied weights')
    compare_tied()
    print('\n4. The effect of the sparsity weight')
    effect_of_sparsity_weight(folder)
    print('\n5. A target L0')
    effect_of_target_l0()
    print(f'\nFigures: {folder}')


if __name__ == '__main__': main()
