"Data frames of pandas and polars: of results, and as data."
import sys

import numpy as np
import pytest
import torch

from sparse_ae import (Callback, HoyerTarget, SoftThreshold, SparseAutoencoder, StopTraining, TopK,
                       evaluate_sparse_autoencoder, measures, sweep,
                       train_sparse_autoencoder_with_early_stopping as fit)
from sparse_ae.data import open_rows
from sparse_ae.eval_viz import DictionaryMatch, code_results
from sparse_ae.frames import FRAMES, FrameKind, frame_columns, to_frame
from sparse_ae.lab.latents import LatentStatistics

LIBRARIES = 'pandas', 'polars'


def frame_of(x, rows=None, library='pandas'):
    "Columns of a frame as lists, by name."
    pytest.importorskip(library)
    frame = to_frame(x, rows, library)
    assert type(frame).__module__.startswith(library)
    return {name: frame[name].to_list() for name in frame.columns}


def same(a, b):
    "Whether nested lists are equal, with NaN equal to NaN."
    np.testing.assert_equal(a, b)
    return True


HISTORY = dict(train_loss=[3., 2.], val_loss=[3.5, float('nan')], epochs_trained=2, best_epoch=0,
               stopped_by='num_epochs', note=[1])
CODES = np.float32([[0, 2, 0], [1, 4, 0]])


@pytest.mark.parametrize('library', LIBRARIES)
def test_hand_set_results(library):
    assert same(frame_of(HISTORY, None, library),
                dict(epoch=[0, 1], train_loss=[3, 2], val_loss=[3.5, np.nan]))
    results = code_results(CODES)
    assert frame_of(results, None, library) == dict(sample=[0, 1], active_latents=[1, 2])
    assert frame_of(results, 'latents', library) == dict(
        latent=[0, 1, 2], density=[0.5, 1, 0], mean_activation_per_neuron=[0.5, 3, 0])
    summary = frame_of(results, 'summary', library)
    assert summary['l0'] == [1.5] and summary['dead_fraction'] == [1/3]
    stats = LatentStatistics(3)
    stats.add(torch.from_numpy(CODES), torch.arange(2))
    assert frame_of(stats, None, library) == dict(
        latent=[0, 1, 2], density=[0.5, 1, 0], count=[1, 2, 0], mean=[1, 3, 0], maximum=[1, 4, 0])


@pytest.mark.parametrize('library', LIBRARIES)
def test_measures(library):
    array = np.array
    nan = float('nan')
    cases = [
        (measures.BestMatches(array([0.5, nan]), array([1, 0])),
         dict(latent=[0, 1], cosine=[0.5, nan], match=[1, 0])),
        (measures.Stability(array([1., 0.]), array([[0.9, 0.1], [0.8, 0.2]]), 0.5, 0.1,
                            array([0, 1]), 0.7),
         dict(latent=[0, 1], stability=[1, 0], cosine_0=[0.9, 0.1], cosine_1=[0.8, 0.2])),
        (measures.SpanFraction(array([0.5, 1.]), 0.75, 0.1),
         dict(latent=[0, 1], fraction=[0.5, 1])),
        (measures.SubspaceAgreement(0.5, 0.1, array([0., 90.]), 2),
         dict(dimension=[0, 1], angle=[0, 90])),
        (measures.SparseProbing(['a', 'b'], (1, None), array([[0.5, 0.6], [0.7, 0.8]]),
                                array([[0], [1]])),
         {'class': ['a', 'b'], 'accuracy_1': [0.5, 0.7], 'accuracy_all': [0.6, 0.8]}),
        (measures.MainLatents(array([3, -1]), array([0.9, 0.])),
         dict(feature=[0, 1], latent=[3, -1], f1=[0.9, 0])),
        (measures.Absorption(array([4]), array([7]), array([0.25]), array([nan]), array([0.5])),
         dict(feature=[4], latent=[7], absorbed=[0.25], silent_with_child=[nan],
              silent_alone=[0.5])),
        (DictionaryMatch(0.5, array([2, 0]), array([0, 1]), array([0.4, 0.6])),
         dict(feature=[0, 1], latent=[2, 0], cosine=[0.4, 0.6])),
        (DictionaryMatch(0.5, array([2]), array([0]), array([0.4]), array([1.]), array([0.5]),
                         array([0.1])),
         dict(feature=[0], latent=[2], cosine=[0.4], precision=[1], recall=[0.5],
              shrinkage=[0.1])),
        ([measures.ManifoldCluster(array([1, 5]), 100, 0.5, 0.25, 0.1, 0.9, 0, np.zeros((4, 2)))],
         dict(cluster=[0], latents=[[1, 5]], samples=[100], score=[0.5], separability=[0.25],
              mixture=[0.1], entropy=[0.9], component=[0])),
        ([dict(columns='latents', all=0.5), dict(columns='inputs')],
         dict(columns=['latents', 'inputs'], all=[0.5, None if library == 'polars' else nan])),
        (dict(loss_original=1., samples=3), dict(loss_original=[1], samples=[3]))]
    for x, expected in cases: assert same(frame_of(x, None, library), expected)
    covered = {name for name, kind in FRAMES.items() if any(kind.matches(x) for x, _ in cases)}
    assert set(FRAMES) - covered == {'a history', 'results of an evaluation', 'a sweep',
                                     'statistics of latents'}


@pytest.fixture(scope='module')
def runs():
    x = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
    points = [dict(activation=TopK(2), sparsity_type='none'),
              dict(activation=SoftThreshold(0.01), sparsity_type=HoyerTarget(0.5)),
              dict(activation='relu', sparsity_type='l1', learning_rate=1e-3)]
    return sweep(lambda activation: SparseAutoencoder(6, 8, hidden_dims=(), activation=activation),
                 x[:40], x[40:], points, num_epochs=2, learning_rate=1e-2, patience=2, verbose=0)


@pytest.mark.filterwarnings('ignore:the model explains less')
@pytest.mark.parametrize('library', LIBRARIES)
def test_sweeps_with_objects_among_their_settings(runs, library):
    frame = frame_of(runs, None, library)
    assert frame['activation'] == ['TopK(k=2)', 'SoftThreshold(threshold=0.01, learned=False)',
                                   'relu']
    assert frame['sparsity_type'][::2] == ['none', 'l1']
    assert 'HoyerTarget' in frame['sparsity_type'][1]
    assert frame['learning_rate'][2] == 1e-3
    assert frame['explained_variance'] == [row['explained_variance'] for row in runs.table]
    epochs = frame_of(runs, 'epochs', library)
    assert epochs['run'] == [0, 0, 1, 1, 2, 2] and epochs['epoch'] == [0, 1]*3
    assert epochs['val_loss'] == [loss for run in runs for loss in run.history['val_loss']]
    assert epochs['activation'][2:4] == frame['activation'][1:2]*2


def test_results_of_an_evaluation(runs):
    x = torch.rand(30, 6)
    whole, sparse, without = (evaluate_sparse_autoencoder(runs[0].model, x, return_codes=codes)
                              for codes in (True, 'sparse', False))
    assert same(frame_of(whole), frame_of(sparse))
    assert frame_of(whole)['error'] == whole['errors'].tolist()
    assert frame_of(whole)['active_latents'] == (whole['latent_codes'] != 0).sum(1).tolist()
    assert set(frame_of(without)) == {'sample', 'error'}
    assert frame_of(without, 'latents') == frame_of(whole, 'latents')
    assert frame_of(whole, 'summary')['mean'] == [whole['mean']]
    columns = frame_columns(whole, 'summary')
    assert {name for name, value in whole.items() if isinstance(value, float)} <= set(columns)


@pytest.mark.filterwarnings('ignore:the model explains less')
def test_history_of_a_run_that_was_stopped_within_an_epoch():
    class Stop(Callback):
        def after_step(self, trainer):
            if trainer.step == 5: raise StopTraining('enough')
    x = torch.rand(60, 6)
    history = fit(SparseAutoencoder(6, 8), x, x, 9, 1e-3, 9, batch_size=20, verbose=0,
                  callbacks=[Stop()])
    assert history['epochs_trained'] == 1
    frame = frame_of(history)
    assert frame['epoch'] == [0] and frame['train_loss'] == history['train_loss']
    assert {'revived', 'l0', 'val_l0', 'learning_rate', 'seconds'} <= set(frame)


def test_a_new_kind_is_an_entry(monkeypatch):
    monkeypatch.setitem(FRAMES, 'a range', FrameKind(lambda x: isinstance(x, range),
                                                     dict(numbers=lambda x: dict(n=list(x)))))
    assert frame_of(range(3)) == dict(n=[0, 1, 2])


def test_what_is_no_result():
    for x in (3, 'loss', [], {}, [1, 2], dict(a=np.zeros(3)), torch.zeros(2, 2)):
        with pytest.raises(TypeError, match='x must be a history, results of .* or a dict of'):
            to_frame(x)
    with pytest.raises(ValueError, match="rows must be 'epochs', got 'samples'"):
        to_frame(HISTORY, 'samples')
    with pytest.raises(ValueError, match="library must be 'pandas' or 'polars', got 'numpy'"):
        to_frame(HISTORY, library='numpy')


@pytest.mark.parametrize('library', LIBRARIES)
def test_a_missing_library_is_named(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"pip install 'sparse_ae\[{library}\]'"):
        to_frame(HISTORY, library=library)


@pytest.mark.filterwarnings('ignore:the model explains less')
def test_polars_frames_are_data():
    polars = pytest.importorskip('polars')
    x = np.random.default_rng(0).random((60, 6), dtype=np.float32)
    frame = polars.DataFrame(x, schema=[f'column {i}' for i in range(6)])
    histories = []
    for data in (x, frame):
        torch.manual_seed(0)
        model = SparseAutoencoder(6, 8)
        histories.append(fit(model, data, data, 2, 1e-3, 2, verbose=0, seed=0))
    np.testing.assert_allclose(*(history['val_loss'] for history in histories), rtol=1e-6)
    np.testing.assert_allclose(evaluate_sparse_autoencoder(model, frame)['errors'],
                               evaluate_sparse_autoencoder(model, x)['errors'], rtol=1e-5)
    whole = polars.DataFrame(dict(a=[1, 2], b=[0.5, 1.5], c=[True, False]))
    assert open_rows('data', whole)[[0, 1]].tolist() == [[1, 0.5, 1], [2, 1.5, 0]]
    with pytest.raises(ValueError, match='train_data .*NaN'):
        fit(model, frame.with_columns(polars.lit(None).cast(polars.Float32).alias('column 0')),
            frame, 1, 1e-3, 1, verbose=0)
    with pytest.raises(TypeError, match='train_data must .*real numbers'):
        fit(model, frame.with_columns(polars.lit('a').alias('column 0')), frame, 1, 1e-3, 1,
            verbose=0)
