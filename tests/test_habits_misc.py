"Habits of users: each works, or is an error that names the argument."
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from torch import nn

from sparse_ae import (AuxiliaryLoss, Contractive, FeatureExplorer, Isometry, LayerSparsity,
                       LogFile, LossPlayground, NestedReconstruction, SparseAutoencoder,
                       TensorBoardLog, Trainer, compare_runs, dictionary,
                       evaluate_sparse_autoencoder, feature_contributions, image_patches,
                       local_dictionary, match_dictionaries, plot_dictionary, plot_reconstructions,
                       plot_sparse_autoencoder_analysis, plot_sparse_training_history, plot_sweep,
                       sparse_dictionary, sweep)
from sparse_ae import train_sparse_autoencoder_with_early_stopping as train
from sparse_ae import train_val_split
from sparse_ae.cli import load_matrix, parse_activation, sparse_ae_demo, sparse_ae_train, write_run
from sparse_ae.data import Batches
from sparse_ae.io import atomic_write, read_state, write_state
from sparse_ae.lab.latents import LatentStatistics, latent_statistics, unit_atoms
from sparse_ae.lab.widgets import _comparison_figure
from sparse_ae.regularizers import contractive_penalty, isometry_penalty, jacobians

X = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
MODEL = SparseAutoencoder(6, 4)
SHARED = dict(learning_rate=1e-3, patience=9, verbose=0)
HISTORY = train(MODEL, X, X, 1, **SHARED)
RESULTS = evaluate_sparse_autoencoder(MODEL, X)


def fit(model=None, data=X, **options):
    options = dict(num_epochs=1) | SHARED | options
    return train(model or SparseAutoencoder(6, 4), data, data, **options)


def swept(make_model=lambda: SparseAutoencoder(6, 4), grid=(dict(), dict(sparsity_weight=0.3)),
          **options):
    return sweep(make_model, X, X, grid, **dict(num_epochs=1) | SHARED | options)


RUNS = swept()


# paths: each function writes to a path or reads from it
def command(path, **options):
    np.save('x.npy', X.numpy())
    return sparse_ae_train('x.npy', path, num_epochs=1, verbose=0, **options)


def written(path):
    with atomic_write(path) as temporary: temporary.write_text('x')


def tensorboard(path):
    pytest.importorskip('tensorboard')
    fit(callbacks=[TensorBoardLog(path)])


WRITERS = {
    'save_pretrained': MODEL.save_pretrained, 'atomic_write': written,
    'checkpoint_dir': lambda p: fit(checkpoint_dir=p),
    'sweep': lambda p: swept(checkpoint_dir=p), 'write_state': lambda p: write_state(p, {}),
    'LogFile': lambda p: fit(callbacks=[LogFile(p)]),
    'TensorBoardLog': tensorboard,
    'plot_dictionary': lambda p: plot_dictionary(MODEL, save_path=p),
    'plot_reconstructions': lambda p: plot_reconstructions(MODEL, X[:2], save_path=p),
    'plot_history': lambda p: plot_sparse_training_history(HISTORY, p),
    'plot_analysis': lambda p: plot_sparse_autoencoder_analysis(RESULTS, save_path=p),
    'plot_sweep': lambda p: plot_sweep(RUNS, save_path=p),
    'export_html': lambda p: FeatureExplorer(MODEL, X).export_html(p),
    'write_run': lambda p: write_run(p, MODEL, HISTORY, RESULTS, X, 'x'),
    'sparse_ae_train': command, 'sparse_ae_demo': partial(
        sparse_ae_demo, patches=50, size=4, latent_dim=4, num_epochs=1, verbose=0)}
READERS = {'from_pretrained': SparseAutoencoder.from_pretrained, 'read_state': read_state,
           'load_matrix': load_matrix, 'sparse_ae_train': sparse_ae_train}
SUFFIX = {'LogFile': '.csv', 'export_html': '.html', **dict.fromkeys(
    ('plot_dictionary', 'plot_reconstructions', 'plot_history', 'plot_analysis', 'plot_sweep'),
    '.png')}


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A home directory, and a current folder elsewhere."
    for name in ('home', 'current'): (tmp_path/name).mkdir()
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path/'current')
    return tmp_path/'home'


SLOW = 'write_run', 'sparse_ae_train', 'sparse_ae_demo'


@pytest.mark.parametrize('name, kind', [(name, kind) for name in WRITERS for kind in (str, Path)
                                        if name not in SLOW or kind is str])
def test_paths_may_begin_with_the_home_directory(name, kind, home):
    WRITERS[name](kind('~/new' + SUFFIX.get(name, '')))
    assert [path.name for path in home.iterdir()], name
    assert [path.name for path in Path().iterdir()] in ([], ['x.npy'])


def test_files_are_read_from_the_home_directory(home):
    MODEL.save_pretrained(home/'m')
    write_state(home/'s', dict(a=1))
    np.save(home/'x.npy', X.numpy())
    SparseAutoencoder.from_pretrained('~/m')
    assert read_state('~/s') == dict(a=1) and load_matrix('~/x.npy').shape == (60, 6)
    sparse_ae_train('~/x.npy', Path('~/run'), num_epochs=1, verbose=0)
    assert (home/'run'/'report.html').exists()


@pytest.mark.parametrize('bad, error', [('', ValueError), (3, TypeError),
                                        ('~no_such_user/x', ValueError)])
@pytest.mark.parametrize('name, function', [*WRITERS.items(), *READERS.items()])
def test_values_that_are_no_paths(name, function, bad, error, home):
    with pytest.raises(error, match=r'must be a path|must begin with a home directory'):
        function(bad)
    assert [path.name for path in Path().iterdir()] in ([], ['x.npy'])


@pytest.mark.parametrize('name', ['save_pretrained', 'checkpoint_dir', 'sparse_ae_train'])
def test_a_folder_that_is_a_file(name, home):
    (home/'f').touch()
    with pytest.raises(ValueError, match='must be a folder, got the file'): WRITERS[name](home/'f')


@pytest.mark.parametrize('name', SUFFIX)
def test_a_file_that_is_a_folder(name, home):
    if name == 'LogFile': return   # a folder has no suffix
    with pytest.raises(ValueError, match='got the folder'): WRITERS[name](home)
    assert [*home.parent.glob('home*')] == [home]


def test_progress_displays_respect_the_environment():
    program = """
import torch, tqdm.auto
import sparse_ae as s
made = []
class Bar(tqdm.auto.tqdm):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        made.append(self.disable)
tqdm.auto.tqdm = Bar
x, new = torch.rand(20, 6), lambda: s.SparseAutoencoder(6, 4)
options = dict(num_epochs=1, learning_rate=1e-3, patience=1, verbose=1)
s.train_sparse_autoencoder_with_early_stopping(new(), x, x, **options)
s.sweep(new, x, x, [{}], **options)
s.FeatureExplorer(new(), x).wait()
print(made)
"""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', program],
                          env=os.environ | dict(TQDM_DISABLE='1'), capture_output=True,
                          text=True, check=True)
    assert (done.stdout.splitlines()[-1], done.stderr) == ('[True, True, True]', '')


def preset(seed):
    model, training = SparseAutoencoder.from_preset('topk', 6, 4, seed=seed)
    train(model, X, X, **training)


SOURCE = sparse_dictionary(6, 8, l0=2.)
SEEDS = {
    'training': lambda s: fit(seed=s),
    'Trainer': lambda s: Trainer(MODEL, X, X, 1, 1e-3, 1, seed=s),
    'sweep': lambda s: swept(seed=s), 'sweep, grid': lambda s: swept(grid=dict(seed=[0, s])),
    'sparse_dictionary': lambda s: sparse_dictionary(6, 8, l0=2., seed=s),
    'sample': lambda s: SOURCE.sample(3, s), 'batches': lambda s: next(SOURCE.batches(3, s)),
    'image_patches': lambda s: image_patches(3, 4, seed=s),
    'train_val_split': lambda s: train_val_split(X, seed=s),
    'Batches': lambda s: Batches('x', X, MODEL, seed=s),
    'LatentStatistics': lambda s: LatentStatistics(4, seed=s),
    'from_preset': preset,
    'sparse_ae_demo': lambda s: sparse_ae_demo(seed=s), 'sparse_ae_train': lambda s: command(
        'run', seed=s)}


@pytest.mark.parametrize('seed, error, wrong', [
    (2**70, ValueError, r'seed must be from 0 to 2\*\*\d\d - 1, got 1180591620717411303424'),
    (-1, ValueError, r'seed must be from 0 to 2\*\*\d\d - 1, got -1'),
    (0.5, TypeError, 'seed must be a whole number, got 0.5'),
    (True, TypeError, 'seed must be a whole number, got True')])
@pytest.mark.parametrize('name', SEEDS)
def test_seeds_out_of_range(name, seed, error, wrong, home):
    with pytest.raises(error, match=wrong): SEEDS[name](seed)


class Changed(nn.Module):
    "A model that changes what `encode` and `decode` return."
    latent_dim = 4
    def __init__(self, encode=lambda z: z, decode=lambda y: y):
        super().__init__()
        self.inside, self.changes = SparseAutoencoder(6, 4), (encode, decode)
    def encode(self, x): return self.changes[0](self.inside.encode(x))
    def decode(self, z): return self.changes[1](self.inside.decode(z))


class NativeLayers(SparseAutoencoder):
    def encode_layers(self, x, keep_hidden=True): return tuple(super().encode_layers(x))


class AdaptedLayers(Changed):
    def encode_layers(self, x, keep_hidden=True): return self.encode(x), None, ()


ENCODING = {
    'training': fit, 'evaluation': lambda m: evaluate_sparse_autoencoder(m, X),
    'plot_reconstructions': lambda m: plot_reconstructions(m, X[:2]),
    'local_dictionary': lambda m: local_dictionary(m, X[:2]),
    'feature_contributions': lambda m: feature_contributions(m, X[:2]),
    'latent_statistics': lambda m: latent_statistics(m, X),
    'FeatureExplorer': lambda m: FeatureExplorer(m, X), 'sweep': lambda m: swept(lambda: m, [{}])}
DECODING = {name: ENCODING[name] for name in list(ENCODING)[:5]} | {
    'dictionary': dictionary, 'plot_dictionary': plot_dictionary,
    'steer': lambda m: FeatureExplorer(m, X).steer(0, 1),
    'export_html': lambda m: FeatureExplorer(m, X).export_html('page.html'),
    'isometry_penalty': lambda m: isometry_penalty(m.decode, RESULT_CODES, 1),
    'exact isometry_penalty': lambda m: isometry_penalty(m.decode, RESULT_CODES),
    'Isometry': lambda m: fit(m, regularizers=[Isometry(0.1)]),
    'NestedReconstruction': lambda m: fit(m, regularizers=[NestedReconstruction((1, 2))])}
ENCODING_ALONE = {
    'contractive_penalty': lambda m: contractive_penalty(m.encode, X, 1),
    'exact contractive_penalty': lambda m: contractive_penalty(m.encode, X),
    'Contractive': lambda m: fit(m, regularizers=[Contractive(0.1)])}
RESULT_CODES = torch.from_numpy(RESULTS['latent_codes'].copy())
RESULTS_OF_USERS = {'tuple': lambda y: (y, y), 'dict': lambda y: dict(y=y), 'list': lambda y: [y],
                    'NoneType': lambda y: None, 'ndarray': lambda y: y.detach().numpy()}


@pytest.mark.parametrize('kind', ['tuple', 'dict', 'NoneType'])
@pytest.mark.parametrize('name', ENCODING | ENCODING_ALONE)
def test_encode_must_return_a_tensor(name, kind):
    with pytest.raises(TypeError, match=f'encode must return a tensor, got {kind}'):
        (ENCODING | ENCODING_ALONE)[name](Changed(encode=RESULTS_OF_USERS[kind]))


@pytest.mark.parametrize('kind', ['tuple', 'dict', 'NoneType'])
@pytest.mark.parametrize('name', DECODING)
def test_decode_must_return_a_tensor(name, kind, home):
    with pytest.raises(TypeError, match=f'decode must return a tensor, got {kind}'):
        DECODING[name](Changed(decode=RESULTS_OF_USERS[kind]))


@pytest.mark.parametrize('model', [NativeLayers(6, 4), AdaptedLayers()])
@pytest.mark.parametrize('name', ['training', 'evaluation', 'plot_reconstructions'])
def test_encode_layers_must_return_its_type(name, model):
    with pytest.raises(TypeError, match='model.encode_layers must return Encoded, got tuple'):
        ENCODING[name](model)


def test_functions_whose_jacobian_is_taken_return_tensors():
    with pytest.raises(TypeError, match='the function must return a tensor, got tuple'):
        jacobians(lambda x: (x, x), X[:2])


# functions that make models for a sweep, and whether the width of the code reaches them
MAKERS = {
    'any names': lambda **k: SparseAutoencoder(6, **k), 'a class': partial(SparseAutoencoder, 6),
    'named and any': lambda latent_dim, **k: SparseAutoencoder(6, latent_dim, **k),
    'keyword only': lambda *, latent_dim: SparseAutoencoder(6, latent_dim),
    'keyword of partial': partial(SparseAutoencoder, input_dim=6)}
NO_MAKERS = {
    'positional only': (lambda latent_dim, /: None, ValueError, 'grid must name arguments'),
    'any positions': (lambda *latent_dim: None, ValueError, 'grid must name arguments'),
    'a further one': (lambda latent_dim, width: None, TypeError, "argument: 'width'"),
    'a further position': (lambda width, /, latent_dim: None, TypeError, 'make_model must be call')}


@pytest.mark.parametrize('name', MAKERS)
def test_makers_of_models_take_their_settings(name):
    runs = swept(MAKERS[name], dict(latent_dim=[3, np.int64(5)], sparsity_weight=[0.1]))
    assert [run.model.latent_dim for run in runs] == [3, 5]


@pytest.mark.parametrize('name', NO_MAKERS)
def test_makers_of_models_that_cannot_take_them(name):
    make_model, error, wrong = NO_MAKERS[name]
    with pytest.raises(error, match=wrong): swept(make_model, dict(latent_dim=[3]))


def spoilt(values, entry=(1, 2), value=torch.nan):
    changed = torch.as_tensor(values).clone()
    changed[entry] = value
    return changed


class NotFinite(SparseAutoencoder):
    "A model whose decoder alone is not finite."
    def __init__(self, value=torch.nan):
        super().__init__(6, 4, hidden_dims=())
        with torch.no_grad(): self.decoder_mat_1[2, 1] = value


ATOMS, CODES = dictionary(MODEL), RESULT_CODES
NOT_FINITE = {
    'atoms': (lambda v: match_dictionaries(spoilt(ATOMS, value=v), ATOMS), 'atoms has 1 of 4 rows'),
    'true_atoms': (lambda v: match_dictionaries(ATOMS, spoilt(ATOMS, value=v)),
                   'true_atoms has 1 of 4 rows'),
    'codes': (lambda v: match_dictionaries(ATOMS, ATOMS, spoilt(CODES, value=v), CODES),
              'codes has 1 of 60 rows'),
    'true_codes': (lambda v: match_dictionaries(ATOMS, ATOMS, CODES, spoilt(CODES, value=v)),
                   'true_codes has 1 of 60 rows'),
    'dictionary': (lambda v: dictionary(MODEL, spoilt(CODES, value=v)), 'codes has 1 of 60 rows'),
    'plot_dictionary': (lambda v: plot_dictionary(NotFinite(v)), 'a finite dictionary'),
    'images': (lambda v: plot_dictionary(NotFinite(v), (2, 3)), 'a finite dictionary'),
    'unit_atoms': (lambda v: unit_atoms(NotFinite(v)), 'model must have a finite dictionary'),
    'export_html': (lambda v: FeatureExplorer(NotFinite(v), X).export_html('page.html'),
                    'model must have a finite dictionary'),
    'latent_figure': (lambda v: FeatureExplorer(NotFinite(v), X).latent_figure(0),
                      'model must have a finite dictionary'),
    'compare_runs': (lambda v: compare_runs(dict(a=dict(
        history=HISTORY, results=RESULTS, model=NotFinite(v)))), 'a finite dictionary'),
    'analysis': (lambda v: plot_sparse_autoencoder_analysis(
        RESULTS | dict(errors=spoilt(RESULTS['errors'], 3, v).numpy())), 'results must be finite')}


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
@pytest.mark.parametrize('name', NOT_FINITE)
def test_numbers_that_are_not_finite(name, value, home):
    function, wrong = NOT_FINITE[name]
    with pytest.raises(ValueError, match=wrong): function(value)
    assert [*Path().iterdir()] == []


# arguments of the command
MISTAKES = {
    'topk without k': (dict(activation='topk'), 'activation must be such as topk:8, with a number'),
    'batch_topk': (dict(activation='batch_topk:'), 'must be such as batch_topk:8, with a number'),
    'topk fraction': (dict(activation='topk:2.5'), "with a number of latents, got 'topk:2.5'"),
    'relu with k': (dict(activation='relu:8'), 'activation must be relu, without a number'),
    'unknown': (dict(activation='tanh'), "activation must be 'relu', 'sigmoid',"),
    'topk 0': (dict(activation='topk:0'), 'k must be at least 1, got 0'),
    'topk many': (dict(activation='topk:99'), 'k must be at most latent_dim=6, got 99'),
    'hidden': (dict(hidden_dims='wide'), "hidden_dims must be 'half', 'none' or widths such as 64,32"),
    'hidden 0': (dict(hidden_dims='4,0'), r'hidden_dims\[1\] must be at least 1, got 0'),
    'norm': (dict(decoder_norm='column'), "decoder_norm must be 'row', 'atom' or 'none', got"),
    'revive': (dict(revive='always'), "revive must be 'auto', 'resample', 'auxiliary' or 'none'"),
    'image': (dict(image_shape='8'), r'image_shape must be \(height, width\)'),
    'image x': (dict(image_shape='8x'), 'image_shape must be such as 8x8 or 32x32x3'),
    'l0': (dict(sparsity_type='l0'), "sparsity_type 'l0' has a gradient only with"),
    'fraction': (dict(val_fraction=2), 'val_fraction must be strictly between 0 and 1'),
    'out': (dict(out=''), 'out must be a path, got an empty string'),
    'target': (dict(target_l0=-2), 'target_l0 must be above 0, got -2'),
    'epochs': (dict(num_epochs=-1), 'num_epochs must be at least 1'),
    'preset': (dict(preset='best'), "preset must be 'classic', 'ng', 'l1',"),
    'scaling': (dict(scaling='rows'), "scaling must be 'auto', 'none', 'global', 'columns', "
                                      "'layer_norm' or 'constant_norm'"),
    'l0 many': (dict(l0=99), 'l0 must be at most latent_dim=12, got 99'),
    'key': (dict(key='y'), 'key must be empty for a .npy file'),
    'folder': (dict(data='.'), 'data must be a folder with store.json')}


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_in_options_of_the_command(name, home):
    options, wrong = MISTAKES[name]
    np.save('x.npy', X.numpy())
    with pytest.raises((ValueError, TypeError), match=wrong):
        sparse_ae_train(**dict(data='x.npy', out='run', verbose=0, num_epochs=1) | options)


def test_activations_of_the_command():
    assert parse_activation('relu') == 'relu'
    assert parse_activation('batch_topk:3') == {'name': 'batch_topk', 'k': 3}


# figures with text from a user
def tokens_figure(text):
    explorer = FeatureExplorer(MODEL, X, feature_names=[text + str(i) for i in range(6)])
    return explorer.wait().latent_figure(0)


def sweep_figure(text):
    runs = swept(lambda activation: SparseAutoencoder(6, 4), dict(activation=[text, 'b']))
    return plot_sweep(runs, 'activation')


def comparison_figure(text):
    return _comparison_figure({text: dict(history=HISTORY, results=RESULTS, model=MODEL)})


FIGURES = {
    'analysis': lambda text: plot_sparse_autoencoder_analysis(RESULTS, text),
    'explorer': tokens_figure, 'sweep': sweep_figure, 'comparison': comparison_figure}


@pytest.mark.parametrize('text', ['$a', 'US$ 5, $7', r'$\frac{', r'\$x$', 'a_b^c', '_x', '$x$'])
@pytest.mark.parametrize('name', FIGURES)
def test_text_of_users_is_no_formula(name, text):
    figure = FIGURES[name](text)
    figure.canvas.draw()
    shown = [t._preprocess_math(t.get_text()) for t in figure.findobj(Text)]
    assert any(text in drawn and not is_math for drawn, is_math in shown)


# other habits: arguments that work
def arguments_of_numpy_and_paths(home):
    np.save('x.npy', X.numpy())
    sparse_ae_train(Path('x.npy'), Path('run'), latent_dim=np.int64(5), num_epochs=np.int64(1),
                    sparsity_weight=np.float32(0.5), verbose=0)
    arguments = json.loads(Path('run/history.json').read_text())['arguments']
    assert arguments['data'] == 'x.npy' and arguments['latent_dim'] == 5


def histories_with_nan(home):
    history = {**HISTORY, 'val_own': [float('nan')], 'own': np.float32('inf')}
    write_run('run', MODEL, history, RESULTS, X, 'x', dict(a=(Path('x'), torch.float32)))
    assert json.loads(Path('run/history.json').read_text())['val_own'] == [None]


def indices_of_any_type(home):
    for model in (MODEL, SparseAutoencoder(6, 4, hidden_dims=())):
        expected = dictionary(model)[[3, 1]]
        for latents in ([3, 1], (3, 1), torch.tensor([3, 1], dtype=torch.int32),
                        np.array([3, 1], np.uint8), torch.tensor([3, 1], dtype=torch.uint8)):
            torch.testing.assert_close(dictionary(model, latents=latents), expected)


def lists_as_codes(home):
    plot_dictionary(MODEL, codes=RESULTS['latent_codes'].tolist())
    plot_dictionary(MODEL, codes=CODES.clone().requires_grad_())
    match_dictionaries(ATOMS, ATOMS, CODES.tolist(), CODES.tolist())


def image_shapes_of_any_type(home):
    for shape in ([2, 3], np.array([2, 3]), torch.Size([2, 3]), (np.int64(2), np.int64(3))):
        plot_dictionary(MODEL, shape)
        FeatureExplorer(MODEL, X, image_shape=shape).wait()


def devices_of_any_type(home):
    MODEL.save_pretrained('m')
    for device in ('cpu', torch.device('cpu'), torch.device('cpu', 0), 'cpu:0'):
        SparseAutoencoder.from_pretrained('m', device)
        fit(device=device)
        evaluate_sparse_autoencoder(MODEL, X, device)


def titles_of_any_type(home):
    plot_sparse_autoencoder_analysis(RESULTS, Path('x.npy'))
    plot_sparse_autoencoder_analysis(RESULTS, None)
    FeatureExplorer(MODEL, X).export_html('page.html', Path('x.npy'))


def rows_of_any_type(home):
    pairs = torch.utils.data.TensorDataset(X)
    np.save('x.npy', X.numpy())
    for rows in (X, X.numpy(), pairs, np.load('x.npy', mmap_mode='r')):
        plot_reconstructions(MODEL, rows, max_samples=2)


def sizes_of_any_type(home):
    for size in (np.int8(4), np.uint64(4), torch.tensor(4)):
        model = SparseAutoencoder(6, size, hidden_dims=np.array([5, 4]))
        model.save_pretrained('m')
        assert SparseAutoencoder.from_pretrained('m').config() == model.config()


def switches_of_numpy(home):
    fit(verbose=np.bool_(False), normalize=np.bool_(False), resume=np.bool_(False))
    assert FeatureExplorer(MODEL, X, feature_names=range(10, 16)).order(search=9).tolist() == []


WORK = [arguments_of_numpy_and_paths, histories_with_nan, indices_of_any_type, lists_as_codes,
        image_shapes_of_any_type, devices_of_any_type, titles_of_any_type, rows_of_any_type,
        sizes_of_any_type, switches_of_numpy]


@pytest.mark.parametrize('habit', WORK)
def test_habits_that_work(habit, home):
    habit(home)


# other habits: arguments that cannot be used
WRONG = {
    'a history as results': (lambda: plot_sparse_autoencoder_analysis(HISTORY), ValueError,
                             "results must be the dict that evaluate_sparse_autoencoder returns, "
                             "got one without 'errors'"),
    'results as history': (lambda: plot_sparse_training_history(RESULTS), ValueError,
                           "history must be the dict that training returns, got one without"),
    'a trainer as history': (lambda: plot_sparse_training_history(MODEL), TypeError,
                             'history must be the dict that training returns, got SparseAuto'),
    'a mask as latents': (lambda: dictionary(MODEL, latents=torch.ones(4, dtype=torch.bool)),
                          ValueError, 'latents must be numbers from 0 to 3'),
    'text as feature_names': (lambda: FeatureExplorer(MODEL, X, feature_names='abcdef'), TypeError,
                              "feature_names must be a list, got 'abcdef'"),
    'flat tokens': (lambda: FeatureExplorer(MODEL, X, tokens=['a']*60), TypeError,
                    "tokens must be lists of strings, one list for each sequence, got the string"),
    'a list of runs': (lambda: plot_sweep(RUNS[:1]), TypeError, 'runs must come from sweep, got'),
    'a set': (lambda: SparseAutoencoder(6, 4, hidden_dims={5, 3}), TypeError,
              'hidden_dims must be None or a tuple'),
    'a bool': (lambda: SparseAutoencoder(6, True), TypeError, 'latent_dim must be a whole number'),
    'dtype by name': (lambda: SparseAutoencoder(6, 4, dtype='float32'), TypeError, 'dtype must be'),
    'a class': (lambda: fit(SparseAutoencoder), TypeError, 'model must be a torch.nn.Module'),
    'a typo': (lambda: fit(sparsity_wieght=1.), TypeError, 'sparsity_wieght'),
    'a typo in the model': (lambda: SparseAutoencoder(6, 4, activations='relu'), TypeError,
                            'activations'),
    'a typo in a grid': (lambda: swept(grid=dict(sparsity_wieght=[1.])), ValueError,
                         "got 'sparsity_wieght'"),
    'a module as activation': (lambda: SparseAutoencoder(6, 4, activation=nn.ReLU()), ValueError,
                               "activation must be 'relu'"),
    'an empty device': (lambda: fit(device=''), ValueError, 'device must be a name'),
    'a device of numpy': (lambda: fit(device=np.int64(0)), ValueError, 'device'),
    'a dict as hidden_dims': (lambda: SparseAutoencoder(6, 4, hidden_dims={5: 3}), TypeError,
                              'hidden_dims must be None or a tuple'),
    'text as latents': (lambda: dictionary(MODEL, latents='all'), TypeError,
                        "latents must be numbers, got str 'all'"),
    'results as codes': (lambda: plot_dictionary(MODEL, codes=RESULTS), TypeError,
                         'codes must be numbers, got dict'),
    'a list of names as grid': (lambda: swept(grid=['activation']), TypeError,
                                "grid must have a dict for each point, got 'activation'"),
    'an unknown by': (lambda: plot_sweep(RUNS, 'sparsity_weight'), ValueError,
                      "by must be None, got 'sparsity_weight'"),
    'no history': (lambda: compare_runs(dict(a=dict(history=None, results=RESULTS, model=MODEL))),
                   TypeError, "history of runs must be a dict, that of 'a' is a NoneType"),
    'text as scale': (lambda: FeatureExplorer(MODEL, X).steer(0, 0, '2'), TypeError,
                      "scale must be a number of any size, got '2'"),
    'a latent to show': (lambda: FeatureExplorer(MODEL, X).show_latent(99), ValueError,
                         'latent must be below 4, got 99'),
    'a number as code': (lambda: LossPlayground(code=0.5), ValueError, 'at least 2 latents'),
    'a code that is too large': (lambda: LossPlayground(code=(0.5, 2)), ValueError,
                                 'code must be from -1 to 1, got 2'),
    'a target that is too large': (lambda: LossPlayground(target=2), ValueError,
                                   'target must be from 0.01 to 0.9, got 2'),
    'no dead latents': (lambda: AuxiliaryLoss(k=0), ValueError, 'k must be at least 1, got 0'),
    'a number as prefixes': (lambda: NestedReconstruction(3), TypeError,
                             'prefixes must be a tuple of whole numbers, got 3'),
    'a bool as layer': (lambda: LayerSparsity(True), TypeError, 'layer must be a whole number')}


@pytest.mark.parametrize('name', WRONG)
def test_habits_that_cannot_work(name):
    function, error, wrong = WRONG[name]
    with pytest.raises(error, match=wrong): function()
