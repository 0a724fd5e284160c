"Data as users give them: every kind, size and mistake, in all functions that take data."
import csv
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.testing import assert_close
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from sparse_ae import (Callback, FeatureExplorer, SparseAutoencoder, evaluate_sparse_autoencoder,
                       feature_contributions, local_dictionary, plot_reconstructions, sweep,
                       train_sparse_autoencoder_with_early_stopping, train_val_split)
from sparse_ae.cli import load_matrix
from sparse_ae.data import Batches, Rows, first_rows, open_rows, sample_rows, whiten_image
from sparse_ae.lab.latents import LatentStatistics, latent_statistics
from sparse_ae.losses import METRICS, Measurements
from sparse_ae.models import count_active, geometric_median
from sparse_ae.engines.sparse_codes import SparseCode, SparsePattern
from sparse_ae.options import fitted_scaling
from sparse_ae.sparsity_control import choose_inputs
from sparse_ae.validation import as_tensor_rows

pd = pytest.importorskip('pandas')
X = torch.rand(101, 16, generator=torch.Generator().manual_seed(0))
X[X < 0.3] = 0
Y = torch.arange(101.)


def make_model(**options):
    torch.manual_seed(0)
    return SparseAutoencoder(16, 32, **dict(hidden_dims=()) | options)


def fit(data, val=X, model=None, epochs=2, **options):
    "Train; return the history without times, and the final parameters."
    model = model or make_model()
    history = train_sparse_autoencoder_with_early_stopping(
        model, data, val, epochs, 1e-3, 9, **dict(seed=0, verbose=0, sparsity_type='l1',
                                                  batch_size=20) | options)
    return {k: v for k, v in history.items() if k != 'seconds'}, list(model.parameters())


def scale_of(rows):
    "Factor by which training with `normalize=True` multiplies the rows."
    model = SparseAutoencoder(rows.shape[1], 2, dtype=torch.float64)
    return 1 / fitted_scaling(True, model, rows).scale.item()


class OnDisk:
    "Array as in h5py and zarr: it gives NumPy arrays, for slices and strictly ascending indices."
    def __init__(self, x): self.x, self.shape, self.dtype = x.numpy(), tuple(x.shape), np.float32
    def __len__(self): return len(self.x)
    def __getitem__(self, selection):
        if isinstance(selection, slice): assert selection.step in (1, None)
        else: assert isinstance(selection, np.ndarray) and (np.diff(selection) > 0).all()
        return self.x[selection]


class Fetching(Dataset):
    "Dataset that reads several samples at once, each with a label."
    def __len__(self): return len(X)
    def __getitems__(self, numbers): return [(X[number], number) for number in numbers]


class Stream(IterableDataset):
    def __init__(self, x=X): self.x = x
    def __iter__(self): return iter(self.x)


class Once:
    "Iterable, not an iterator, whose batches can be read once."
    def __init__(self): self.batches = iter(X.split(20))
    def __iter__(self): return self.batches


def maps(folder, *parts):
    for number, part in enumerate(parts): np.save(folder/f'{number}.npy', part.numpy())
    return [np.load(folder/f'{number}.npy', mmap_mode='r') for number in range(len(parts))]


def nullable_frame():
    return pd.DataFrame(X.numpy()).astype(dict.fromkeys(range(0, 16, 2), 'Float32'))


class Stored(Rows):
    "User-defined rows that are in memory."
    in_memory = True
    def __init__(self, x): self.x, self.shape = x, tuple(x.shape)
    def __getitem__(self, indices): return self.x[indices]


ROWS = dict(   # data with rows, all equal to `X`
    tensors=lambda folder: [X[:40], X[40:60], X[60:]],
    arrays=lambda folder: [X[:1].numpy(), X[1:].numpy()],
    mixed=lambda folder: [X[:40].numpy().astype(np.float64), X[40:]],
    one=lambda folder: [X],
    memory_maps=lambda folder: maps(folder, X[:40], X[40:41], X[41:]),
    map_and_tensor=lambda folder: [*maps(folder, X[:40]), X[40:]],
    pairs=lambda folder: [(X[:40], Y[:40]), (X[40:], Y[40:])],
    loaded=lambda folder: list(DataLoader(TensorDataset(X, Y), 30)),
    user_defined=lambda folder: [Stored(X[:40]), X[40:]],
    dataset=lambda folder: TensorDataset(X, Y),
    subset=lambda folder: Subset(TensorDataset(X), range(len(X))),
    concatenated=lambda folder: ConcatDataset([TensorDataset(X[:40]), TensorDataset(X[40:])]),
    fetching=lambda folder: Fetching(),
    csr=lambda folder: scipy.sparse.csr_array(X.numpy()),
    csc=lambda folder: scipy.sparse.csc_matrix(X.numpy()),
    coo=lambda folder: scipy.sparse.coo_matrix(X.numpy()),
    sparse_shards=lambda folder: [scipy.sparse.csr_array(part.numpy()) for part in X.split(30)],
    on_disk=lambda folder: OnDisk(X),
    disk_shards=lambda folder: [OnDisk(X[:40]), OnDisk(X[40:])],
    frame=lambda folder: pd.DataFrame(X.numpy(), columns=[f'f{k}' for k in range(16)]),
    nullable=lambda folder: nullable_frame())
LOADERS = dict(   # data with batches only
    loader=lambda folder: DataLoader(TensorDataset(X, Y), 30), stream=lambda folder: Stream(),
    iterator=lambda folder: iter(X.split(30)), generator=lambda folder: ((x, 0) for x in X.split(7)))


@pytest.mark.parametrize('kind', ROWS)
def test_each_kind_of_rows_is_read_as_a_tensor(kind, tmp_path):
    data, order = ROWS[kind](tmp_path), torch.tensor([100, 3, 40, 3, 0, 39])
    rows, expected = open_rows('data', data), open_rows('data', X)
    assert (len(rows), rows.shape, rows.fingerprint()) == (101, (101, 16), expected.fingerprint())
    assert_close(rows[order].float(), X[order], rtol=0, atol=0)
    for part in (slice(0, 1), slice(38, 62), slice(90, None)):
        assert_close(rows[part].float(), X[part], rtol=0, atol=0)
    assert sample_rows(rows, 9).double().equal(sample_rows(X, 9).double())
    assert all(map(torch.equal, (p.float() for p in train_val_split(data)), train_val_split(X)))


@pytest.mark.parametrize('kind', ROWS)
@pytest.mark.parametrize('options', [dict(), dict(normalize=True, initialize=True, accumulate=2)])
def test_each_kind_of_rows_trains_as_a_tensor(kind, options, tmp_path):
    history, parameters = fit(ROWS[kind](tmp_path), ROWS[kind](tmp_path), **options)
    expected, expected_parameters = fit(X, X, **options)
    assert history == expected and all(map(torch.equal, parameters, expected_parameters))


@pytest.mark.parametrize('kind', [*ROWS, *LOADERS])
def test_each_kind_of_data_is_evaluated_as_a_tensor(kind, tmp_path):
    make, model = (ROWS | LOADERS)[kind], make_model()
    results, expected = (evaluate_sparse_autoencoder(model, d) for d in (make(tmp_path), X))
    for name in expected: assert_close(results[name], expected[name], rtol=1e-5, atol=1e-6)
    assert torch.equal(first_rows('x', make(tmp_path), model, 12), X[:12])
    plot_reconstructions(model, make(tmp_path), (4, 4))
    assert_close(local_dictionary(model, make(tmp_path)), local_dictionary(model, X))
    for part, wanted in zip(feature_contributions(model, make(tmp_path)),
                            feature_contributions(model, X)):
        assert_close(part, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('kind', ['tensors', 'memory_maps', 'dataset', 'csr', 'on_disk', 'frame'])
def test_each_kind_of_rows_in_sweeps_and_explorer(kind, tmp_path):
    def table(data):
        options = dict(num_epochs=1, learning_rate=1e-3, patience=9, verbose=0, sparsity_type='l1')
        return sweep(make_model, data, data, dict(sparsity_weight=[0.1, 0.2]), **options).table
    data, model = ROWS[kind](tmp_path), make_model()
    for row, expected in zip(table(data), table(X), strict=True): assert row == pytest.approx(expected)
    assert torch.equal(latent_statistics(model, data).top_samples,
                       latent_statistics(model, X).top_samples)
    assert FeatureExplorer(model, data).wait().describe(3).top == (
        FeatureExplorer(model, X).wait().describe(3).top)


def test_a_loader_that_shuffles_is_read_once():
    model = make_model(hidden_dims=(12,))
    parts, expected = (feature_contributions(model, data) for data in (DataLoader(X, 30, shuffle=True), X))
    orders = [(part.contributions.sum(1) + part.offset).sum(1).argsort() for part in (parts, expected)]
    for part, wanted in zip(parts, expected): assert_close(part[orders[0]], wanted[orders[1]])


def test_memory_maps_in_a_list_stay_on_disk(tmp_path):
    batches = Batches('train_data', ROWS['memory_maps'](tmp_path), make_model(), 10, shuffle=True,
                      seed=0, buffer_rows=32)
    passes = [torch.cat(list(batches)) for _ in range(2)]
    assert not hasattr(batches.rows, 'tensor') and not passes[0].equal(passes[1])
    for rows in passes: assert rows.sort(0).values.equal(X.sort(0).values)


MISTAKES = {   # data: the error, and what its message says
    'pair': (lambda: (X, Y), TypeError, 'got tuple; give the inputs alone, or several arrays'),
    'twice': (lambda: (X, X), TypeError, 'got tuple; give the inputs alone, or several arrays'),
    'numbers': (lambda: X.tolist(), TypeError, 'got list; use np.array'),
    'empty': (list, ValueError, 'must not be empty, got an empty list'),
    'samples': (lambda: list(X), ValueError, r'got one of shape \(16,\); use torch.stack'),
    'labels': (lambda: [X, Y], ValueError, r'got one of shape \(101,\)'),
    'widths': (lambda: [X, X[:, :3]], ValueError, r'one shape, got rows of shapes \(16,\), \(3,\)'),
    'row': (lambda: X[0], ValueError, r'shape \(n, features\), got \(16,\); use \[None\]'),
    'row_array': (lambda: X[0].numpy(), ValueError, r'shape \(n, features\), got \(16,\); use \[None\]'),
    'series': (lambda: pd.Series([1., 2]), ValueError, r'shape \(n, features\), got \(2,\); use \[None\]'),
    'column': (lambda: OnDisk(X[0]), ValueError, r'shape \(n, features\), got \(16,\); use \[:\]\[None\]'),
    'nothing': (lambda: OnDisk(X[:0]), ValueError, 'must not be empty'),
    'dict': (lambda: dict(pixels=X), TypeError, r"got dict; give one of its arrays, such as \['pixels'\]"),
    'path': (lambda: 'data.npy', TypeError, 'got str; read the file first, as with cli.load_matrix'),
    'text': (lambda: np.array([['1.5', '2']]), TypeError, 'use .astype.float. if these are numbers'),
    'objects': (lambda: np.array([[1.5, None]]), TypeError, 'use .astype.float. if these are numbers'),
    'text_on_disk': (lambda: OnDiskText(), TypeError, 'use .astype.float. if these are numbers'),
    'words': (lambda: pd.DataFrame(dict(a=[1., 2], b=['u', 'v'])), TypeError,
              r"columns of real numbers, got 'b' \((str|object)\); leave them out with .drop"),
    'mixed_column': (lambda: pd.DataFrame(dict(a=[1., 2], b=np.array([1, None], object))), TypeError,
                     r"columns of real numbers, got 'b' \(object\).*astype\(float\)"),
    'dates': (lambda: pd.DataFrame(dict(b=pd.to_datetime(['2020-01-01']))), TypeError, "got 'b' .datetime"),
    'no_length': (lambda: Dataset(), TypeError, 'must have a length')}


class OnDiskText:
    shape, dtype = (2, 16), np.dtype('<U1')
    def __getitem__(self, selection): return np.full((2, 16), 'a')[selection]


@pytest.mark.parametrize('mistake', MISTAKES)
@pytest.mark.parametrize('use', [
    lambda data: fit(data), lambda data: fit(X, data),
    lambda data: evaluate_sparse_autoencoder(make_model(), data),
    lambda data: latent_statistics(make_model(), data), train_val_split,
    lambda data: plot_reconstructions(make_model(), data),
    lambda data: sweep(make_model, data, data, [{}], num_epochs=1, learning_rate=1e-3, patience=1)])
def test_a_mistake_is_named_with_its_remedy(mistake, use):
    make, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message): use(make())


@pytest.mark.parametrize('data, remedy', [
    (DataLoader(X), 'got DataLoader; give its .dataset'), (Stream(), 'got Stream'),
    (iter([X]), 'got list_iterator')])
@pytest.mark.parametrize('use', [train_val_split, lambda x: latent_statistics(make_model(), x),
                                 lambda x: FeatureExplorer(make_model(), x)])
def test_rows_by_index_are_needed(data, remedy, use):
    with pytest.raises(TypeError, match=f'memory map or Dataset, {remedy}'): use(data)


@pytest.mark.parametrize('data, remedy', [
    (scipy.sparse.csr_array(X.numpy()), '.toarray'), (OnDisk(X), r'use \[:\]'), ((X, Y), 'got tuple')])
def test_a_sample_in_memory_is_needed(data, remedy):
    for use in (geometric_median, make_model().initialize, lambda x: as_tensor_rows('x', x)):
        with pytest.raises(TypeError, match=remedy): use(data)


@pytest.mark.parametrize('make', [Once, lambda: Stream(iter(X))])
def test_data_that_can_be_read_once(make):
    message = 'must not be empty at the start of an epoch, got .* again each time it is read'
    fit(make(), epochs=1)
    with pytest.raises(ValueError, match='train_data ' + message): fit(make())
    with pytest.raises(ValueError, match='val_data ' + message): fit(X, make())
    with pytest.raises(ValueError, match='val_data must be there anew'): fit(X, iter(X.split(20)))


NUMBERS = [[1., 2], [3, 0]]
FRAMES = dict(   # frames whose numbers are `NUMBERS`, with NaN for a missing one
    integers=pd.DataFrame(NUMBERS).astype('int64'), nullable=pd.DataFrame(NUMBERS).astype('Int64'),
    kinds=pd.DataFrame(NUMBERS).astype({0: 'Int64', 1: 'float32'}),
    floats=pd.DataFrame(NUMBERS).astype('Float64'),
    booleans=pd.DataFrame(dict(a=[1., 3], b=[2, 0])).astype({'a': 'Int8'}),
    sparse=pd.DataFrame(NUMBERS).astype(pd.SparseDtype(float, 0)))


@pytest.mark.parametrize('kind', FRAMES)
def test_the_numbers_of_a_frame(kind):
    assert as_tensor_rows('data', FRAMES[kind]).double().tolist() == NUMBERS


@pytest.mark.parametrize('dtype', ['Int64', 'Float64', 'boolean', 'float64', 'UInt8'])
def test_missing_numbers_of_a_frame(dtype):
    frame = pd.DataFrame(dict(a=[0.5, 1, 0, 1], b=[1, 0, 1, 1])).astype({'b': dtype})
    model = SparseAutoencoder(2, 3)
    evaluate_sparse_autoencoder(model, frame)
    frame.loc[1, 'b'] = pd.NA if dtype != 'float64' else np.nan
    with pytest.raises(ValueError, match='test_data has 1 of 4 rows with NaN'):
        evaluate_sparse_autoencoder(model, frame)


def test_an_index_in_a_frame_causes_a_warning():
    frame = pd.DataFrame({'Unnamed: 0': [0, 1], 'a': [0.5, 1]})
    with pytest.warns(UserWarning, match="column 'Unnamed: 0'.*index_col=0"): as_tensor_rows('x', frame)


TABLE = np.random.default_rng(0).random((12, 5)).astype(np.float32)
NAMED, NUMBERED = pd.DataFrame(TABLE, columns=list('abcde')), pd.DataFrame(TABLE)
INDEX, COLUMNS = 'column 1, an index without a name', 'line 1, the numbers of the columns'
CSV = {   # text of a file with the numbers `TABLE`: what is dropped with a warning
    'pandas': (NAMED.to_csv(), INDEX), 'no index': (NAMED.to_csv(index=False), None),
    'named index': (NAMED.to_csv(index_label='Unnamed: 0'), INDEX),
    'two indices': (NAMED.set_index([NAMED.index + 7, NAMED.index]).to_csv(),
                    'columns 1 to 2, an index without a name'),
    'words as index': (NAMED.set_index(pd.Index([f'row "{k}", x' for k in range(12)])).to_csv(), INDEX),
    'numbered': (NUMBERED.to_csv(), f'{COLUMNS} and {INDEX}'),
    'numbers': (NUMBERED.to_csv(index=False), COLUMNS),
    'years': (NUMBERED.rename(columns=lambda k: 2000 + k).to_csv(), f'{COLUMNS} and {INDEX}'),
    'no names': (NUMBERED.to_csv(header=False), INDEX),
    'neither': (NUMBERED.to_csv(header=False, index=False), None),
    'quoted': (NAMED.set_index(NAMED.index + 1).to_csv(quoting=csv.QUOTE_NONNUMERIC), INDEX)}


@pytest.mark.parametrize('kind', CSV)
@pytest.mark.parametrize('suffix', ['csv', 'CSV'])
def test_indices_and_numbers_of_columns_in_csv_files(kind, suffix, tmp_path):
    (path := tmp_path/f'x.{suffix}').write_text(CSV[kind][0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        assert_close(load_matrix(path), TABLE)
    dropped = [] if CSV[kind][1] is None else [f'x.{suffix}: dropped {CSV[kind][1]}']
    assert [str(w.message) for w in caught] == dropped


@pytest.mark.parametrize('text, expected', [
    ('0,1\n0,1\n1,0\n', [[0, 1], [0, 1], [1, 0]]), ('0,5\n1,7\n', [[0, 5], [1, 7]]),
    ('0\n0.5\n', [[0], [0.5]]), ('0,1,1\n0,1,2\n', [[0, 1, 1], [0, 1, 2]]), ('x\n1\n', [[1]])])
@pytest.mark.filterwarnings('error')
def test_numbers_in_csv_files_that_could_be_data_are_kept(text, expected, tmp_path):
    (tmp_path/'x.csv').write_text(text)
    assert load_matrix(tmp_path/'x.csv').tolist() == expected


@pytest.mark.parametrize('text, message', [
    (',2,3\n4,5,6\n', 'line 1, column 1 must be a number'),
    (',a,b\n0,1,2\n1,3,x\n', "line 3, column 3 must be a number .*got 'x'"),
    (',a,b\n0,1,2\n1,3\n', 'line 3 must have 3 numbers'), (',a\n', 'no numbers')])
def test_errors_in_csv_files_with_an_index(text, message, tmp_path):
    (tmp_path/'x.csv').write_text(text)
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter('ignore')
        load_matrix(tmp_path/'x.csv')


@pytest.mark.parametrize('suffix, save', [('NPY', np.save), ('Npz', np.savez)])
def test_suffixes_in_capitals(suffix, save, tmp_path):
    with open(tmp_path/f'x.{suffix}', 'wb') as file: save(file, TABLE)
    assert np.array_equal(load_matrix(tmp_path/f'x.{suffix}'), TABLE)
    if suffix == 'Npz': assert np.array_equal(load_matrix(tmp_path/f'x.{suffix}', 'arr_0'), TABLE)


@pytest.mark.parametrize('value', [0., 0.3, -7.1, 1e-20, 1e6, 3e38])
@pytest.mark.parametrize('n', [1, 3, 4097])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_repeated_rows(value, n, dtype):
    rows = (value * torch.linspace(0.1, 1, 16, dtype=torch.float64)).to(dtype).repeat(n, 1)
    assert scale_of(rows) == 1
    assert torch.equal(geometric_median(rows), rows[0])
    model = make_model(dtype=dtype).initialize(rows)
    assert torch.equal(model.decoder_bias_1, rows[0])
    assert np.isnan(evaluate_sparse_autoencoder(model, rows)['explained_variance'])


@pytest.mark.parametrize('x', [X, 1000 + X, X[:3], torch.cat([X, X])])
@pytest.mark.parametrize('unit', [2.**-80, 1, 2.**80])
def test_rows_that_vary_have_a_scale_and_a_median_in_each_unit(x, unit):
    expected = 1 / (x.double() - x.double().mean(0)).square().mean().sqrt().item()
    assert_close(scale_of(unit*x) * unit, expected)
    assert_close(geometric_median(unit*x) / unit, geometric_median(x.double()).float())


@pytest.mark.parametrize('activation', ['relu', 'jumprelu', dict(name='topk', k=3), 'gated'])
def test_training_on_repeated_rows(activation):
    rows = torch.full((40, 16), 0.3)
    history, parameters = fit(rows, rows, make_model(activation=activation), normalize=True,
                              initialize=True, sparsity_type='none')
    assert np.isfinite(history['train_loss']).all() and all(p.isfinite().all() for p in parameters)


@pytest.mark.parametrize('image', [np.zeros((9, 9)), np.full((9, 9), 0.3), np.full((9, 9), 1e9, np.float32)])
def test_a_constant_image_has_no_spectrum(image):
    with pytest.raises(ValueError, match='image must vary, got brightness'): whiten_image(image)


class Claimed(Rows):
    "Rows whose number is only claimed; each holds its index in two parts of 24 bits, and zeros."
    in_memory = False
    def __init__(self, n): self.shape = (n, 16)
    def __getitem__(self, indices):
        if isinstance(indices, slice): indices = torch.arange(*indices.indices(len(self)))
        assert len(indices) <= 2**16 and 0 <= indices.min() and indices.max() < len(self)
        rows = torch.zeros(len(indices), 16, dtype=torch.float64)
        rows[:, 0], rows[:, 1] = indices // 2**24, indices % 2**24
        return rows

    @staticmethod
    def indices(rows): return rows[:, 0].long()*2**24 + rows[:, 1].long()


class ClaimedDataset(Dataset):
    def __init__(self, n): self.rows = Claimed(n)
    def __len__(self): return len(self.rows)
    def __getitem__(self, number): return self.rows[torch.tensor([number])][0]


class ClaimedArray:
    dtype = np.dtype(float)
    def __init__(self, n): self.rows, self.shape = Claimed(n), (n, 16)
    def __getitem__(self, selection):
        return self.rows[selection if isinstance(selection, slice) else torch.from_numpy(selection)].numpy()


SIZES = [2**24 - 1, 2**24, 2**24 + 1, 2**24 + 4, 2**25 + 8, 2**31 - 1, 2**31 + 4, 2**32 + 12,
         2**40 + 1, 2**53 - 4, 2**53 + 4, 2**60 + 1]
CLAIMS = dict(rows=Claimed, dataset=ClaimedDataset, array=ClaimedArray,
              list=lambda n: [ClaimedArray(n//4*3), ClaimedArray(n - n//4*3)])
CASES = [('rows', n) for n in SIZES] + [(kind, n) for kind in ('dataset', 'array', 'list')
                                        for n in (2**24 + 4, 2**31 + 4)]


@pytest.mark.parametrize('kind, n', [case for case in CASES if case[0] != 'list'])
def test_rows_are_sampled_evenly_from_any_number(kind, n):
    rows = open_rows('data', CLAIMS[kind](n))
    for count in (1, 2, 5, 64, 1000):
        indices = Claimed.indices(sample_rows(rows, count))
        assert indices[0] == 0 and len(indices) == count
        if count > 1:
            assert abs(indices[-1].item() - (n - 1)) <= n // 2**53
            steps = indices.diff().double()
            assert (steps - (n - 1)/(count - 1)).abs().max() <= 2 + n/2**51
    assert rows.fingerprint().startswith(f'({n}, 16)')
    assert scale_of(rows) > 0


@pytest.mark.parametrize('kind, n', CASES)
def test_batches_of_any_number_of_rows(kind, n):
    model, data = make_model(dtype=torch.float64), CLAIMS[kind](n)
    for options in (dict(), dict(shuffle=True, seed=0, buffer_rows=n // 1000)):
        batches = Batches('train_data', data, model, 300, accumulate=2, **options)
        assert len(batches) >= n // 600 and 0 < batches.step_fraction < 1e-3
        if options: assert sum(batches._buffer_lengths()) == n
        else: assert len(next(batches.epoch())[0]) in (299, 300)
    seen = []
    latent_statistics(model, data, on_block=lambda done: seen.append(done) or False)
    assert seen == [8192]


@pytest.mark.parametrize('n', [2**24 + 4, 2**31 + 4])
def test_shuffled_batches_of_many_rows(n):
    batches = Batches('train_data', Claimed(n), make_model(dtype=torch.float64), 300, shuffle=True,
                      seed=0, buffer_rows=2**16)
    assert 2 <= len(next(iter(batches))) <= 300 and len(batches) > n // 300


@pytest.mark.parametrize('rows', [321, 1001, 1024])
@pytest.mark.parametrize('buffer_rows', [16, 33, 320])
@pytest.mark.parametrize('batch_size', [3, 25, 96])
def test_batches_from_blocks_are_even(rows, buffer_rows, batch_size):
    x = torch.arange(16.*rows).reshape(rows, 16)
    sizes = []
    for seed in (0, 1):
        batches = Batches('train_data', [Stored(x)], make_model(), batch_size, shuffle=True, seed=seed,
                          buffer_rows=buffer_rows)
        parts = list(batches)
        assert len(parts) == len(batches) and torch.equal(torch.cat(parts).sort(0).values, x)
        sizes.append([len(part) for part in parts])
    assert sizes[0] == sizes[1] and 2 <= min(sizes[0]) and max(sizes[0]) <= batch_size


def test_counts_beyond_single_precision():
    n = 2**24 + 3
    assert count_active(torch.ones(1, 1).expand(n, 1)).item() == n
    pattern = SparsePattern(torch.zeros(n, dtype=torch.int32), torch.arange(n + 1), 1)
    assert SparseCode(torch.ones(1).expand(n), pattern).active().item() == n
    counts = torch.tensor([2.**24, 1, 1, 1])
    assert METRICS['l0'].value(Measurements(1, counts)) == 2**24 + 3
    statistics = LatentStatistics(1)
    statistics.histogram[0, :3] = torch.tensor([2**24 + 1, 1, 2**24])
    statistics.count[0] = statistics.histogram[0].sum()
    statistics.edges = torch.arange(1., 50)
    assert statistics.quantiles(0, [0.5])[0][0] == statistics.edges[:2].prod().sqrt().item()


def test_inputs_are_chosen_from_more_than_2_to_the_24():
    error = torch.zeros(2**24 + 8)
    error[[3, -2]] = 1.
    assert sorted(choose_inputs(error, 5).tolist()) == [3, len(error) - 2]
    few = torch.rand(50, generator=torch.Generator().manual_seed(1))
    chosen, wanted = (choose(torch.Generator().manual_seed(0)) for choose in (
        lambda g: choose_inputs(few, 9, g),
        lambda g: torch.multinomial(few.double().square(), 9, generator=g)))
    assert chosen.tolist() == wanted.tolist()   # the random numbers of earlier versions


class Normalized(torch.nn.Module):
    "User-defined autoencoder with batch normalisation."
    def __init__(self):
        super().__init__()
        self.encode = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.BatchNorm1d(8))
        self.decode = torch.nn.Linear(8, 16)


MODELS = [lambda: make_model(batch_norm=True), lambda: make_model(hidden_dims=(12,), batch_norm=True),
          Normalized]
ONE_LEFT = dict(   # 101 rows, where batches of 20 or 25 leave one row
    tensor=lambda folder: X, dataset=lambda folder: TensorDataset(X, Y),
    subset=lambda folder: Subset(TensorDataset(torch.cat([X, X])), range(101)),
    memory_maps=ROWS['memory_maps'], csr=ROWS['csr'], on_disk=ROWS['on_disk'])


@pytest.mark.parametrize('make', MODELS)
@pytest.mark.parametrize('kind', ONE_LEFT)
@pytest.mark.parametrize('options', [dict(batch_size=20), dict(batch_size=25, accumulate=4),
                                     dict(batch_size=3, accumulate=5), dict(batch_size=100)])
def test_batch_normalisation_gets_even_batches(make, kind, options, tmp_path):
    history, _ = fit(ONE_LEFT[kind](tmp_path), model=make(), epochs=1, **options)
    assert np.isfinite(history['train_loss']).all()


@pytest.mark.parametrize('make', MODELS)
@pytest.mark.parametrize('data, options', [
    (lambda: DataLoader(X, 20), dict()), (lambda: DataLoader(X, 25), dict(accumulate=4)),
    (Stream, dict()), (lambda: TensorDataset(X[:2]), dict(batch_size=1)), (lambda: X[:1], dict()),
    (lambda: X, dict(batch_size=2)), (lambda: iter([X[:9], X[:1]]), dict(steps_per_epoch=2))])
def test_a_batch_of_one_row_is_named(make, data, options):
    with pytest.raises(ValueError, match='train_data must give at least 2 rows .*another batch_size, '
                                         'or drop_last=True'):
        fit(data(), model=make(), **options)


def test_one_row_where_it_can_be_used():
    fit(DataLoader(X, 20, drop_last=True), DataLoader(X, 20), make_model(batch_norm=True))
    fit(DataLoader(X, 20), X)
    evaluate_sparse_autoencoder(make_model(batch_norm=True), DataLoader(X, 20))


@pytest.mark.parametrize('kind', ['dataset', 'subset', 'memory_maps', 'on_disk', 'tensors'])
def test_training_resumes_with_the_same_batches(kind, tmp_path):
    class Break(Callback):
        def before_step(self, trainer):
            if trainer.step == 8: raise KeyboardInterrupt
    make = lambda: make_model(batch_norm=True)
    options = dict(epochs=3, accumulate=2, batch_size=10)
    expected, _ = fit((ROWS | ONE_LEFT)[kind](tmp_path), model=make(), **options)
    options |= dict(checkpoint_dir=tmp_path/'run', checkpoint_minutes=1e-9)
    fit((ROWS | ONE_LEFT)[kind](tmp_path), model=make(), callbacks=[Break()], **options)
    history, _ = fit((ROWS | ONE_LEFT)[kind](tmp_path), model=make(), resume=True, **options)
    assert history == expected


def test_a_random_dataset_resumes(tmp_path):
    class Noisy(Dataset):
        def __len__(self): return len(X)
        def __getitem__(self, number): return X[number] + 0.1*torch.rand(16)
    for epochs in (1, 2):
        history, _ = fit(Noisy(), epochs=epochs, checkpoint_dir=tmp_path, resume=True)
        assert history['epochs_trained'] == epochs
