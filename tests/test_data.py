"Sources of rows: a user-defined one gives what a tensor with the same rows gives."
import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from sparse_ae import (Callback, FeatureExplorer, SparseAutoencoder, TopK,
                       evaluate_sparse_autoencoder, plot_reconstructions, sweep,
                       train_sparse_autoencoder_with_early_stopping)
from sparse_ae.data import Batches, Rows, open_rows, sample_rows
from sparse_ae.lab.latents import latent_statistics
from sparse_ae.options import fitted_scaling


class Files:
    "Rows of several .npy files: the four members of the protocol, and nothing of the library."
    def __init__(self, paths):
        self.files = [np.load(path, mmap_mode='r') for path in paths]
        self.ends = np.cumsum([len(file) for file in self.files])
        self.shape = (int(self.ends[-1]), *self.files[0].shape[1:])

    def __len__(self): return self.shape[0]

    def __getitem__(self, indices):
        rows = np.arange(len(self))[indices if isinstance(indices, slice) else indices.numpy()]
        result = torch.empty(len(rows), *self.shape[1:])
        for file, end in zip(self.files, self.ends):
            inside = (rows >= end - len(file)) & (rows < end)
            result[inside] = torch.from_numpy(file[rows[inside] - (end - len(file))])
        return result

    def fingerprint(self): return f'files {self.shape} {float(self.files[0].sum()):.6g}'


@pytest.fixture
def files(split, tmp_path):
    "Training rows in files of 500, and validation rows in one file."
    for side, x in zip(('train', 'val'), split):
        for number, part in enumerate(x.split(500)): np.save(tmp_path/f'{side}{number}.npy', part)
    return tuple(Files(sorted(tmp_path.glob(f'{side}*.npy'))) for side in ('train', 'val'))


def fit(data, epochs=3, **options):
    torch.manual_seed(0)
    model = SparseAutoencoder(64, 20, hidden_dims=(), activation=TopK(4), decoder_norm='atom')
    history = train_sparse_autoencoder_with_early_stopping(
        model, *data, epochs, 1e-3, 9, **dict(seed=0, verbose=0, sparsity_type='none') | options)
    history['seconds'] = None
    return model, history


@pytest.mark.parametrize('options', [
    dict(), dict(sparsity_type='kl'), dict(accumulate=2, steps_per_epoch=2),
    dict(normalize=True, initialize=True, revive='resample')])
def test_training_and_evaluation(files, split, options):
    (model, history), (expected, expected_history) = fit(files, **options), fit(split, **options)
    assert history == expected_history
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    results, wanted = (evaluate_sparse_autoencoder(model, data) for data in (files[1], split[1]))
    assert results.keys() == wanted.keys()
    for name, value in wanted.items(): assert np.array_equal(results[name], value), name


def test_a_run_resumes_with_the_same_rows_only(files, split, tmp_path):
    class Kill(Callback):
        def before_step(self, trainer):
            if trainer.step == 8: raise KeyboardInterrupt
    options = dict(checkpoint_dir=tmp_path/'run', checkpoint_minutes=1e-9)
    fit(files, callbacks=[Kill()], **options)
    with pytest.raises(ValueError, match='train_data must be as in the checkpoint'):
        fit((files[1], files[1]), resume=True, **options)
    model, history = fit(files, resume=True, **options)
    expected, expected_history = fit(split)
    assert history == expected_history
    assert all(map(torch.equal, model.parameters(), expected.parameters()))


def test_blocks_of_a_source_that_is_larger_than_the_buffer(files, split):
    model = SparseAutoencoder(64, 20)
    batches = Batches('train_data', files[0], model, 100, shuffle=True, seed=0, buffer_rows=320)
    first, second = (torch.cat(list(batches)) for _ in range(2))
    assert len(batches) == len(list(batches.epoch()))
    for rows in (first, second): assert_close(rows.sum(0), split[0].sum(0))
    assert not torch.equal(first, second) and len(first) == len(split[0])


def test_functions_that_take_some_rows(files, split):
    for n in (1, 64, 10**6):
        assert torch.equal(sample_rows(files[0], n), sample_rows(split[0], n))
    model = SparseAutoencoder(64, 5)
    scales = [fitted_scaling(True, model, rows).scale for rows in (files[0], split[0])]
    assert torch.equal(*scales)
    assert open_rows('data', files[0]) is files[0] and isinstance(files[0], Rows)
    plot_reconstructions(SparseAutoencoder(64, 5), files[1], (8, 8))
    grid = dict(sparsity_weight=[0.1, 0.2])
    make_model = lambda: SparseAutoencoder(64, 8)
    common = dict(num_epochs=2, learning_rate=1e-3, patience=9, verbose=0, sparsity_type='l1')
    tables = [sweep(make_model, *data, grid, **common).table for data in (files, split)]
    assert tables[0] == tables[1]


@pytest.mark.parametrize('change, error, message', [
    (lambda rows: rows[:-1], ValueError, 'train_data must give one row for each of 240 indices, got'),
    (lambda rows: rows.numpy().tolist(), TypeError, 'train_data must be a tensor'),
    (lambda rows: rows.log(), ValueError, 'train_data has 240 of 240 rows with NaN or infinity'),
    (lambda rows: rows[:, :3], ValueError, r'train_data must have shape \(n, 64\)')])
def test_rows_are_checked_as_they_are_read(files, split, change, error, message):
    class Wrong(Files):
        def __getitem__(self, indices): return change(super().__getitem__(indices))
    wrong = object.__new__(Wrong)
    vars(wrong).update(vars(files[0]))
    with pytest.raises(error, match=message):
        for _ in Batches('train_data', wrong, SparseAutoencoder(64, 5), 240, shuffle=True, seed=0,
                         buffer_rows=10**6): pass


def test_sources_without_rows(files):
    for shape, message in (((0, 64), 'must not be empty'), ((5,), r'must have shape \(n, features\)')):
        empty = object.__new__(Files)
        vars(empty).update(vars(files[0]), shape=shape)
        with pytest.raises(ValueError, match=message): open_rows('data', empty)


def test_a_dataset_that_is_read_by_index(split):
    rows = open_rows('data', TensorDataset(split[1], torch.zeros(len(split[1]))))
    assert rows.shape == tuple(split[1].shape)
    assert torch.equal(sample_rows(rows, 9), sample_rows(split[1], 9))
    assert rows.fingerprint() == open_rows('data', split[1].numpy()).fingerprint()


def test_explorer_and_statistics(files, split):
    torch.manual_seed(0)
    model = SparseAutoencoder(64, 12)
    expected = latent_statistics(model, split[1])
    for data in (files[1], TensorDataset(split[1])):
        statistics = latent_statistics(model, data)
        for name in ('density', 'mean', 'top_values', 'top_samples'):
            assert torch.equal(getattr(statistics, name), getattr(expected, name)), name
        views = [FeatureExplorer(model, x).wait().describe(3) for x in (data, split[1])]
        assert views[0][:4] == views[1][:4]


def test_slices_of_joined_rows(tmp_path):
    "A list of memory maps is read as one array would be, with any slice."
    x = torch.randn(21, 3)
    for number, part in enumerate(x.split(8)): np.save(tmp_path/f'{number}.npy', part.numpy())
    rows = open_rows('x', [np.load(tmp_path/f'{k}.npy', mmap_mode='r') for k in range(3)])
    for part in (slice(None), slice(7, 9), slice(None, None, 3), slice(15, 3, -4), slice(5, 5),
                 slice(9, 2), slice(-4, None)):
        assert_close(rows[part], torch.from_numpy(x.numpy()[part].copy()), rtol=0, atol=0)
    assert rows[torch.tensor([], dtype=torch.long)].shape == (0, 3)


class Unsized(torch.utils.data.Dataset):
    def __getitem__(self, number): return torch.ones(3)


class Vector:
    "Array of another library with one dimension."
    shape, dtype = (5,), np.dtype('float32')
    def __getitem__(self, indices): return np.ones(5, self.dtype)[indices]


@pytest.mark.parametrize('data, error, message', [
    (Unsized(), TypeError, 'a Dataset without __len__'),
    (TensorDataset(torch.ones(0, 3)), ValueError, 'a Dataset without samples'),
    ([], ValueError, 'an empty list'), (Vector(), ValueError, r'got \(5,\); use \[:\]\[None\]'),
    ([torch.ones(3)]*2, ValueError, r'one of shape \(3,\); use torch.stack or np.stack'),
    ([torch.ones(2, 3), torch.ones(2, 4)], ValueError, r'rows of shapes \(3,\), \(4,\)')])
def test_data_that_are_no_rows(data, error, message):
    with pytest.raises(error, match=f'^train_data must .*{message}'): open_rows('train_data', data)
