"""The command `sparse_ae_train` with its defaults on tables of any unit; writes tables.md.

    python benchmarks/any_table.py            # about three minutes on 2 cores
"""
import contextlib
import csv
import io
import tempfile
import time
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import sklearn.datasets as datasets
import torch
from sklearn.decomposition import PCA
from tables import run

from sparse_ae import SparseAutoencoder, train_val_split
from sparse_ae.cli import sparse_ae_train

HERE = Path(__file__).resolve().parent
SAMPLES = Path(matplotlib.get_data_path())/'sample_data'


def standardized(x): return (x - x.mean(0)) / x.std(0)


def linnerud():
    both = datasets.load_linnerud()
    return np.hstack([both.data, both.target])


def pixels():
    image = datasets.load_sample_images().images[0].reshape(-1, 3)
    return image[np.random.default_rng(0).choice(len(image), 5000, replace=False)].astype(float)


def stocks():
    with open(SAMPLES/'Stocks.csv') as file:
        rows = list(csv.reader(line for line in file if not line.startswith('#')))[1:]
    return np.array([[float(cell) for cell in row[1:]] for row in rows if all(row[1:])])


def elevation():
    "Patches of 5 x 5 heights in metres."
    heights = np.load(SAMPLES/'jacksboro_fault_dem.npz')['elevation'].astype(float)
    return np.lib.stride_tricks.sliding_window_view(heights, (5, 5))[::5, ::5].reshape(-1, 25)


TABLES = {
    'digits, 0 to 16': lambda: datasets.load_digits().data,
    'digits, 0 to 255': lambda: datasets.load_digits().data * 255/16,
    'breast cancer': lambda: datasets.load_breast_cancer().data,
    'breast cancer, standardised': lambda: standardized(datasets.load_breast_cancer().data),
    'wine': lambda: datasets.load_wine().data,
    'wine, standardised': lambda: standardized(datasets.load_wine().data),
    'diabetes': lambda: datasets.load_diabetes().data, 'iris': lambda: datasets.load_iris().data,
    'linnerud': linnerud, 'pixels of a photograph': pixels, 'prices of stocks': stocks,
    'elevation, 5 x 5': elevation}


def explained(new, reconstruction, train):
    "Explained variance on new rows, with columns standardised by the training rows."
    deviation = np.where(train.std(0) > 0, train.std(0), 1)
    error = ((new - reconstruction) / deviation)**2
    return 1 - error.sum() / (((new - train.mean(0)) / deviation)**2).sum()


def run_command(x, seed, folder):
    "Train on four fifths of the rows; return figures on the others."
    train, new = (part.numpy() for part in train_val_split(x, 0.2, seed))
    np.save(folder/'data.npy', train)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        sparse_ae_train(folder/'data.npy', folder/'run', verbose=0, seed=seed)
    seconds = time.perf_counter() - start
    model = SparseAutoencoder.from_pretrained(folder/'run')
    with torch.no_grad():
        z = model.encode(torch.from_numpy(new).float())
        reconstruction = model.decode(z).double().numpy()
    l0 = (z != 0).sum(1).double().mean().item()
    deviation = np.where(train.std(0) > 0, train.std(0), 1)
    pca = PCA(max(1, round(l0))).fit(train / deviation)
    by_pca = pca.inverse_transform(pca.transform(new / deviation)) * deviation
    return [l0, explained(new, reconstruction, train), explained(new, by_pca, train), seconds]


def figures(rounds):
    "Rows of the page: means over the splits of `rounds` seeds."
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, make in TABLES.items():
            x = make()
            runs = np.array([run_command(x, seed, Path(folder)) for seed in range(rounds)])
            l0, ours, pca, seconds = map(float, runs.mean(0))
            ratios = runs[:, 1] / runs[:, 2]
            rows.append((name, f'{len(x):,}', str(x.shape[1]), l0, ours, pca, float(ratios.mean()),
                         float(ratios.min()), seconds))
    return rows


if __name__ == '__main__':
    run(__doc__, dict(tables=figures), 'Tables of any unit',
        '`sparse_ae_train TABLE.npy` with its defaults, on four fifths of the rows: explained '
        'variance of the other fifth, with columns standardised by the training rows, beside that '
        'of a principal component analysis with as many components as latents are active. Means '
        'over the splits of some seeds, and the lowest ratio, whose target is 0.85',
        HERE/'tables.md', 3, ('table', 'rows', 'columns', 'L0', 'explained variance', 'of PCA',
                              'ratio', 'lowest ratio', 'seconds'))
