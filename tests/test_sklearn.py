"The transformer for scikit-learn: checks, parameters, state, randomness, pickles, partial fits."
import copy
import inspect
import os
import pickle
import random
import runpy
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sklearn.utils.validation
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from sparse_ae import (AnnealedPNorm, Callback, EarlyStopping, NestedReconstruction, Resample,
                       TrainingOptions, Trainer, Unrolled, TopK)
from sparse_ae.models import BaseSparseAutoencoder
from sparse_ae.presets import PRESETS
from sparse_ae.sklearn import SparseAutoencoderTransformer, _SelectedRows
from sparse_ae.validation import check_device

# trainings of a few steps reach no target and explain little
pytestmark = pytest.mark.filterwarnings('ignore:target_', 'ignore:the model explains less',
                                        'ignore:.*latents are dead')
X = load_digits().data
QUICK = dict(max_iter=1, steps_per_epoch=2)
SETTINGS = [dict(preset=name) for name in PRESETS] + [
    dict(max_iter=2, steps_per_epoch=10), dict(tied=True, scaling=None),
    dict(hidden_dims=(4,), scaling='global', validation_fraction=0, dtype=torch.float64),
    dict(sparsity_weight=0.1), dict(batch_norm=True, hidden_dims=None, batch_size=7)]


def make(n_components=24, **parameters):
    return SparseAutoencoderTransformer(n_components, **{**QUICK, 'random_state': 0, **parameters})


def state(estimator): return estimator.model_.state_dict()


def assert_equal(a, b):
    for name, value in state(a).items():
        torch.testing.assert_close(state(b)[name], value, rtol=0, atol=0)


@pytest.mark.filterwarnings('ignore')   # of scikit-learn about its own tiny tables
@parametrize_with_checks([SparseAutoencoderTransformer(**{**QUICK, **s}) for s in SETTINGS])
def test_estimator_checks(estimator, check): check(estimator)


# a value other than the default for each parameter that the constructor does not name
OTHERS = dict(
    dtype=torch.float64, decoder_norm='row', encoder=Unrolled(2, 0.1), blocks=(60, 4),
    batch_norm=True, gradient_checkpointing=True, patience=1, target_sparsity=0.1,
    corrupt='gaussian', accumulate=2, steps_per_epoch=3, initialize=True, normalize=True,
    optimizer='adamw', betas=(0.8, 0.9), lr_schedule='cosine', lr_warmup=0.5, clip_grad_norm=1.,
    autocast='bfloat16', compile=False, engine='plain', sparsity_warmup=0.5,
    target_sparsity_level=0.8, revive=None, regularizers=[NestedReconstruction()],
    monitor='recon_loss', min_delta=0.1, checkpoint_dir=None, checkpoint_epochs=None,
    checkpoint_minutes=None, resume=False, callbacks=[EarlyStopping(3)])


def test_all_arguments_of_models_and_training_are_parameters():
    code = SparseAutoencoderTransformer.__init__.__code__
    named = {*code.co_varnames[1:code.co_argcount + code.co_kwonlyargcount]}
    assert {*SparseAutoencoderTransformer().get_params()} == named | {*OTHERS}
    arguments = {*inspect.signature(BaseSparseAutoencoder).parameters,
                 *inspect.signature(TrainingOptions).parameters}
    assert arguments - named - {*OTHERS} == {
        'input_dim', 'latent_dim', 'num_epochs', 'seed', 'output_dim', 'skip', 'train_targets',
        'val_targets'}


@pytest.mark.parametrize('name', OTHERS)
def test_options_reach_model_and_training(name):
    value = OTHERS[name]
    options = {name: value} | (dict(hidden_dims=(9,)) if name == 'batch_norm' else {})
    if name in ('lr_warmup', 'sparsity_warmup'): options['max_iter'] = 2
    estimator = make(**options).fit(X[:64])
    found = estimator.get_params()[name]
    assert found is value
    model, training = estimator._make(64, 0)
    made = training[name] if name in training else getattr(model, name)
    if isinstance(value, (list, Unrolled)): made, value = repr(type(made)), repr(type(value))
    if name not in ('regularizers', 'callbacks', 'encoder'): assert made == value


class Interrupts(Callback):
    def after_epoch(self, trainer):
        if trainer.epoch == 2: raise KeyboardInterrupt


def test_interrupts_reach_the_caller():
    estimator = make(max_iter=9, callbacks=[Interrupts()])
    with pytest.raises(KeyboardInterrupt): estimator.fit(X)
    assert estimator.transform(X).shape == (len(X), 24) and estimator.n_iter_ == 2
    with pytest.raises(KeyboardInterrupt):
        GridSearchCV(estimator, dict(target_l0=[1, 2]), cv=2).fit(X)


def test_objects_are_not_used_up():
    norm, extra = AnnealedPNorm(), EarlyStopping(3)
    estimator = make(preset='p_norm', sparsity_type=norm, callbacks=[extra], max_iter=2,
                     revive=Resample(64))
    for _ in range(2): estimator.fit(X[:64])
    assert norm.current_p == 1 and extra.best_weights is None and not extra.attached
    assert estimator.callbacks[0] is extra


@pytest.mark.parametrize('name', PRESETS)
def test_global_random_state_is_not_changed(name):
    estimator = make(preset=name, corrupt='masking')
    states = lambda: (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(),
                      np.random.get_state()[2], random.getstate())
    before = states()
    estimator.fit(X[:64]).transform(X[:64])
    estimator.set_params(random_state=None).fit(X[:64])
    for _ in range(2): estimator.partial_fit(X[:64])
    assert states() == before


def test_random_states():
    fit = lambda seed: make(preset='classic', random_state=seed).fit(X)   # from random weights
    fits = {seed: fit(seed) for seed in (0, 1)}
    torch.manual_seed(5)
    np.random.seed(5)
    assert_equal(fit(0), fits[0])
    assert_equal(fit(np.random.RandomState(0)), fits[0])
    different = [fits[1], fit(None), fit(None)]
    rows = [e.transform(X[:50]).tobytes() for e in (fits[0], *different)]
    assert len({*rows}) == 4


def test_threads_do_not_disturb_each_other():
    def fit(seed):
        return make(1000, preset='classic', random_state=seed, steps_per_epoch=1).fit(X[:20])
    expected = [fit(seed) for seed in range(10)]
    with ThreadPoolExecutor(4) as pool: found = [*pool.map(fit, range(10))]
    for a, b in zip(expected, found): assert_equal(a, b)


def test_transform_changes_nothing():
    for dtype in (np.float32, np.float64):
        estimator = make(preset='batch_topk').fit(X)
        before, attributes = copy.deepcopy(state(estimator)), dict(vars(estimator))
        estimator.transform(X.astype(dtype))
        estimator.inverse_transform(estimator.transform(X.astype(dtype)))
        estimator.score(X.astype(dtype))
        assert vars(estimator) == attributes and not estimator.model_.training
        for name, value in before.items():   # in the same precision
            torch.testing.assert_close(state(estimator)[name], value, rtol=0, atol=0)


def test_blocks_of_rows_do_not_matter():
    estimator, large = make(200).fit(X), np.tile(X, (16, 1))
    assert large.shape[0] * 200 > 2**22
    np.testing.assert_allclose(estimator.transform(large)[-len(X):], estimator.transform(X),
                               rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('name', [name for name in PRESETS if name != 'classic'])
def test_reconstructions_are_linear_in_the_codes(name):
    scaled = X[:, X.std(0) > 0] / 16 + 3
    estimator = make(preset=name, n_components=16).fit(scaled)
    z = estimator.transform(scaled)
    assert estimator.components_.shape == (16, scaled.shape[1]) and z.dtype == np.float64
    found = z @ estimator.components_ + estimator.intercept_
    np.testing.assert_allclose(found, estimator.inverse_transform(z), rtol=1e-5, atol=1e-5)
    assert estimator.score(scaled) == pytest.approx(
        r2_score(scaled, found, multioutput='variance_weighted'), abs=1e-5)


def test_precisions():
    estimator = make().fit(np.float32(X))
    single, double = (estimator.transform(X.astype(t)) for t in (np.float32, np.float64))
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-4)
    exact = copy.deepcopy(estimator.model_).double().encode(torch.from_numpy(X)).detach()
    np.testing.assert_allclose(double, exact, rtol=1e-12, atol=1e-12)
    half = make(dtype=torch.bfloat16).fit(X)
    assert half.transform(np.float32(X)).dtype == np.float32


def test_memory_maps(tmp_path):
    np.save(tmp_path/'x.npy', X)
    mapped = np.load(tmp_path/'x.npy', mmap_mode='r')
    expected, found = make().fit(X), make().fit(mapped)
    assert_equal(expected, found)
    np.testing.assert_array_equal(found.transform(mapped), expected.transform(X))
    rows = sys.modules['sparse_ae.sklearn'].TensorRows(torch.from_numpy(X), False)
    train, val = make()._train_and_val(rows, 3)
    assert isinstance(train, _SelectedRows) and (len(train), len(val)) == (1617, 180)
    together = torch.cat([train[:], val[:]]).numpy()
    np.testing.assert_array_equal(np.unique(together, axis=0), np.unique(X, axis=0))


def test_few_rows():
    for n in (2, 3, 9, 10, 11): assert make().fit(X[:n]).transform(X).shape == (1797, 24)
    with pytest.raises(ValueError, match='minimum of 2'): make().fit(X[:1])
    with pytest.raises(ValueError, match='minimum of 2'): make().partial_fit(X[:1])
    assert np.isnan(make().fit(X).score(X[:1]))
    assert np.isfinite(make().fit(X[[3, 3, 3]]).transform(X)).all()


def test_default_settings_give_good_codes():
    "An eighth of the latents explains most of new rows, also of tables with few rows."
    for table, least in ((load_breast_cancer().data, 0.9), (X[::6], 0.65)):
        table = StandardScaler().fit_transform(table[:, table.std(0) > 0])
        order = np.random.default_rng(0).permutation(len(table))
        train, new = table[order[len(table)//4:]], table[order[:len(table)//4]]
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            estimator = SparseAutoencoderTransformer(random_state=0).fit(train)
        assert estimator.score(new) > least
        assert (estimator.transform(new) != 0).mean() < 0.14


def test_partial_fits_are_one_training():
    "As many epochs of a trainer that keeps its last weights."
    for preset in ('topk', 'l1', 'p_norm', 'jumprelu'):
        parts = make(preset=preset, max_iter=3, steps_per_epoch='auto', batch_size=100)
        for _ in range(3): parts.partial_fit(X)
        other = make(preset=preset, max_iter=3, batch_size=100)
        other._check_rows(X, reset=True)
        model, training = other._make(len(X), other._new_seed())
        whole = Trainer(model, X, X, **training | dict(
            steps_per_epoch=None, lr_schedule='constant', monitor=lambda trainer: -trainer.epoch))
        whole.fit()
        assert (parts.n_iter_, parts.n_steps_) == (3, 54) == (whole.epoch, whole.step)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(state(parts)[name], value, msg=lambda m: f'{preset} {m}')


def test_partial_fit_resumes_after_fit_and_in_another_process():
    estimator = make(max_iter=4, steps_per_epoch=25).fit(X)
    before = estimator.score(X)
    estimator.set_params(learning_rate=1e-3).partial_fit(X[:500])
    assert estimator.score(X) > before - 0.03 and estimator.n_iter_ == 5
    again = pickle.loads(pickle.dumps(estimator))
    for e in (estimator, again): e.partial_fit(X[500:])
    assert_equal(estimator, again)
    assert estimator.n_iter_ == 6
    with pytest.raises(ValueError, match='64 features'): estimator.partial_fit(X[:, 1:])


def test_partial_fit_learns_from_rows_with_a_larger_error():
    estimator = make().partial_fit(X[:200])
    before = estimator.transform(X)
    estimator.partial_fit(3 * X[200:])
    assert abs(estimator.transform(X) - before).max() > 1e-3


@pytest.mark.parametrize('name', PRESETS)
def test_partial_fits_of_every_preset(name):
    estimator = make(preset=name, max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')   # of a training that is not finished
        for part in np.array_split(X[:200], 4): estimator.partial_fit(part)
    assert estimator.n_iter_ == 4 and np.isfinite(estimator.transform(X)).all()


def test_pickles_open_in_another_process(tmp_path):
    pytest.importorskip('pandas')
    estimator = make_pipeline(StandardScaler(), make().set_output(transform='pandas')).fit(X)
    (tmp_path/'estimator.pkl').write_bytes(pickle.dumps(estimator))
    np.save(tmp_path/'x.npy', X)
    code = ("import pickle, sys, numpy as np; f = sys.argv[1]\n"
            "e = pickle.load(open(f + '/estimator.pkl', 'rb'))\n"
            "np.save(f + '/z.npy', e.transform(np.load(f + '/x.npy')).to_numpy())")
    environment = os.environ | dict(CUDA_VISIBLE_DEVICES='')
    subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=True, env=environment)
    np.testing.assert_allclose(np.load(tmp_path/'z.npy'), estimator.transform(X), rtol=1e-9)


def test_estimators_of_another_machine_stay_on_the_cpu():
    estimator = make(preset='l1').fit(X)
    content = estimator.__getstate__() | dict(device='cuda:77')
    with pytest.raises(ValueError, match='device'): check_device('cuda:77')
    other = make()
    other.__setstate__(content)
    np.testing.assert_array_equal(other.transform(X), estimator.transform(X))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_devices():
    estimator = make(device='cuda', max_iter=2).fit(X)
    on_cpu = make(max_iter=2).fit(X)
    assert estimator.model_.device.type == 'cuda'
    torch.testing.assert_close(on_cpu.transform(X), estimator.transform(X), rtol=1e-2, atol=1e-2)
    before = torch.cuda.get_rng_state()
    for _ in range(2): estimator.partial_fit(X)
    assert torch.equal(before, torch.cuda.get_rng_state())
    content = estimator.__getstate__()
    assert content['model_'].device.type == 'cpu' and estimator.model_.device.type == 'cuda'
    other = make()
    other.__setstate__(content | dict(device='cpu'))
    np.testing.assert_allclose(other.transform(X), estimator.transform(X), rtol=1e-9)
    for e in (estimator, other): e.partial_fit(X)
    again = pickle.loads(pickle.dumps(estimator))
    assert again.model_.device.type == 'cuda'


def test_data_frames():
    pd = pytest.importorskip('pandas')
    frame = pd.DataFrame(X[:99], columns=[f'pixel {k}' for k in range(64)], index=range(1, 100))
    estimator = make(12).set_output(transform='pandas')
    codes = estimator.fit_transform(frame)
    assert codes.shape == (99, 12)
    assert list(codes.columns) == list(estimator.get_feature_names_out())
    assert list(codes.index) == list(frame.index)
    assert estimator.inverse_transform(codes).shape == (99, 64)
    with pytest.raises(ValueError, match='feature names'): estimator.transform(frame.iloc[:, ::-1])
    whole = make(12).fit(frame.astype(int).astype('Int64'))
    np.testing.assert_array_equal(whole.transform(frame), make(12).fit(frame).transform(frame))


def test_polars_frames():
    polars = pytest.importorskip('polars')
    codes = make(12).set_output(transform='polars').fit(polars.DataFrame(X)).transform(X[:9])
    assert isinstance(codes, polars.DataFrame) and codes.shape == (9, 12)


@pytest.mark.parametrize('grid', [
    dict(sparsity_weight=[1e-3, 0.3]), dict(target_l0=[1, 8]),
    dict(preset=['topk', 'lista', 'matching_pursuit'], target_l0=[2, 4]),
    dict(activation=['relu', TopK(3)])])
def test_grids(grid):
    search = GridSearchCV(make(max_iter=3, steps_per_epoch=10), grid, cv=2, error_score='raise')
    search.fit(X[:300])
    scores = search.cv_results_['mean_test_score']
    assert len({*scores}) == len(scores)      # each parameter has an effect
    if 'target_l0' in grid and len(grid) == 1: assert search.best_params_ == dict(target_l0=8)
    if 'sparsity_weight' in grid: assert search.best_params_ == dict(sparsity_weight=1e-3)


def test_cross_validation_in_threads():
    from joblib import parallel_backend
    expected = cross_val_score(make(), X, cv=3)
    with parallel_backend('threading', n_jobs=3):
        np.testing.assert_array_equal(cross_val_score(make(), X, cv=3), expected)


def test_a_fixed_weight_is_not_adjusted():
    fixed = make(preset='l1', sparsity_weight=0.2, max_iter=3).fit(X).history_
    assert fixed['sparsity_weight'][-1] == pytest.approx(0.2)
    adjusted = make(preset='l1', sparsity_weight=0.2, target_l0=3, max_iter=3).fit(X).history_
    assert adjusted['sparsity_weight'][-1] != pytest.approx(0.2)


ERRORS = {
    'n_components must be at least 1, got 0': dict(n_components=0),
    'n_components must be a whole number': dict(n_components='many'),
    'max_iter must be at least 1': dict(max_iter=0),
    'preset must be': dict(preset='vae'),
    'target_l0 must be at most n_components=24, got 25': dict(target_l0=25),
    'target_l0 must be above 0': dict(target_l0=0),
    'validation_fraction must be 0 or more and below 1': dict(validation_fraction=1),
    'learning_rate must be above 0': dict(learning_rate=-1),
    'cannot be used to seed': dict(random_state='x'),
    'device must be': dict(device='abacus'),
    'scaling must be': dict(scaling='rows'),
    'tied must be True or False': dict(tied='yes')}


@pytest.mark.parametrize('message', ERRORS)
def test_errors_name_the_parameter(message):
    estimator = make(**ERRORS[message])       # no error before fit
    with pytest.raises((ValueError, TypeError), match=message): estimator.fit(X)
    assert not hasattr(estimator, 'model_')


def test_an_option_without_effect_warns():
    with pytest.warns(UserWarning, match='sparsity_weight has no effect'):
        make(preset='topk', sparsity_weight=0.1).fit(X)
    with pytest.raises(TypeError, match='sample_weight'): make().fit(X, sample_weight=np.ones(1797))


@pytest.mark.filterwarnings('ignore:.*found in sys.modules')
def test_older_versions_of_scikit_learn_are_refused(monkeypatch):
    monkeypatch.delattr(sklearn.utils.validation, 'validate_data')
    with pytest.raises(ImportError, match=r"1\.6 or later.*sparse_ae\[sklearn\]"):
        runpy.run_module('sparse_ae.sklearn')


def test_values_beyond_single_precision_are_those_of_X():
    X = np.random.default_rng(0).normal(size=(20, 4))
    X[3, 2] = 1e300
    with pytest.raises(ValueError, match=r'X has 1 of 20 rows with NaN or infinity \(as'):
        SparseAutoencoderTransformer(3).fit(X)
