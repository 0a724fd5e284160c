"Files of other libraries: formulas by hand, round trips, damage, refusals. The libraries: tests/interop."
import itertools
import json
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sparse_ae import SparseAutoencoder, TiedWeightSparseAutoencoder
from sparse_ae.activations import MatchingPursuit
from sparse_ae.networks.conversions import fold_scaling, from_model
from sparse_ae.networks.formats import FORMATS, find_format, find_repo_files, load, read_weights, save

D, N = 6, 12
DTYPES = torch.float64, torch.float32, torch.bfloat16, torch.float16
VERSION = {'metadata': {'sae_lens_version': '6.40.1'}}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


X = draw(100, D, seed=99)


def matrices(dtype=torch.float64):
    "Weights in the orientation of SAELens; the decoder has a row of zeros."
    W_dec = draw(N, D, seed=3, dtype=dtype)
    W_dec[4] = 0
    return dict(W_enc=draw(D, N, seed=1, dtype=dtype), b_enc=draw(N, seed=2, dtype=dtype), W_dec=W_dec,
                b_dec=draw(D, seed=4, dtype=dtype))


def write_saelens(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder/'sae_weights.safetensors')
    (folder/'cfg.json').write_text(json.dumps(dict(d_in=D, d_sae=N, dtype='float64') | config))


def top_k(u, k, magnitude=lambda u: u):
    chosen = np.argsort(-magnitude(u), axis=1)[:, :k]
    z = np.zeros_like(u)
    np.put_along_axis(z, chosen, np.take_along_axis(u, chosen, 1), 1)
    return z


def relu(u): return np.maximum(u, 0)


def saelens_by_hand(architecture, w, x, subtracts, rescales):
    "Code and reconstruction, in NumPy."
    w, x = {name: t.numpy() for name, t in w.items()}, x.numpy()
    product = (x - subtracts*w['b_dec']) @ w['W_enc']
    norms = np.linalg.norm(w['W_dec'], axis=1) if rescales else np.ones(N)
    if architecture == 'gated':
        z = (product + w['b_gate'] > 0) * relu(np.exp(w['r_mag'])*product + w['b_mag'])
        return z, z @ w['W_dec'] + w['b_dec']
    u = (product + w['b_enc']) * norms
    z = {'standard': relu, 'topk': lambda u: relu(top_k(u, 3)), 'abstopk': lambda u: top_k(u, 3, np.abs),
         'jumprelu': lambda u: relu(u) * (u > w.get('threshold', 0)),
         'batchtopk': lambda u: relu(u) * (u > w.get('topk_threshold', 0))}[architecture](u)
    alive = norms > 0
    return z, (z / np.where(alive, norms, 1)) @ w['W_dec'] + w['b_dec']


@pytest.mark.parametrize('architecture,subtracts,rescales', [
    (name, *flags) for name, flags in itertools.product(
        ('standard', 'topk', 'abstopk', 'jumprelu', 'gated', 'batchtopk'),
        itertools.product((True, False), (True, False)))
    if not flags[1] or name.endswith('topk')])
def test_saelens_against_numpy(architecture, subtracts, rescales, tmp_path):
    w, config = matrices(), dict(architecture=architecture, apply_b_dec_to_input=subtracts, **VERSION)
    if architecture == 'gated':
        del w['b_enc']
        w |= dict(b_gate=draw(N, seed=5), b_mag=draw(N, seed=6), r_mag=draw(N, seed=7))
    if architecture == 'jumprelu':
        w['threshold'] = torch.linspace(-1, 1, N).double()
    if architecture == 'batchtopk': w['topk_threshold'] = torch.tensor(0.3).double()
    if architecture.endswith('topk'): config |= dict(k=3, rescale_acts_by_decoder_norm=rescales)
    write_saelens(tmp_path, config, w)
    z, y = saelens_by_hand(architecture, w, X, subtracts, rescales)
    model = load(tmp_path)
    assert not model.training and model.dtype == torch.float64
    assert_close(model.encode(X).detach().numpy(), z, atol=1e-12, rtol=1e-12)
    assert_close(model(X).detach().numpy(), y, atol=1e-12, rtol=1e-12)
    assert (z[:, 4] != 0).any() or rescales     # the latent whose atom is zero
    single = load(tmp_path, dtype=torch.float32)
    assert_close(single(X.float()).double().detach().numpy(), y, atol=1e-5, rtol=1e-5)


def test_a_row_with_fewer_than_k_positive(tmp_path):
    w = matrices() | dict(b_enc=torch.full((N,), -9.).double())
    w['b_enc'][0] = 9
    write_saelens(tmp_path, dict(architecture='topk', k=3, apply_b_dec_to_input=False, **VERSION), w)
    assert ((load(tmp_path).encode(0*X) != 0).sum(1) == 1).all()


@pytest.mark.parametrize('dtype', DTYPES)
def test_thresholds_are_strict_and_exact(dtype, tmp_path):
    w = {name: 0*t for name, t in matrices(dtype).items()}
    threshold = (0.1 + torch.rand(N, generator=torch.Generator().manual_seed(0))).to(dtype)
    threshold[:2] = torch.tensor([0., -1.])
    above = threshold.nextafter(torch.full_like(threshold, 9))
    above[0] = torch.finfo(dtype).tiny   # some matrix products flush subnormal numbers to zero
    name = str(dtype).removeprefix('torch.')
    for pre, active in ((threshold, 0), (above, N - 1)):   # nextafter(-1) is below 0
        write_saelens(tmp_path, dict(architecture='jumprelu', dtype=name, **VERSION),
                      w | dict(b_enc=pre.clone(), threshold=threshold))
        model = load(tmp_path)
        assert model.dtype == dtype
        assert (model.encode(X[:1].to(dtype)) != 0).sum() == active
    np.savez(tmp_path/'p.npz', **{k: v.float().numpy() for k, v in w.items()} |
             dict(b_enc=threshold.float().numpy(), threshold=threshold.float().numpy()))
    assert (load(tmp_path/'p.npz').encode(X[:1].float()) != 0).sum() == 0


@pytest.mark.parametrize('old', [
    dict(architecture='standard'), dict(activation_fn_str='relu', hook_point='blocks.1.hook_resid_pre'),
    dict(activation_fn='relu', normalize_activations=False, dtype='torch.float64'),
    dict(normalize_activations=None, sae_lens_version='5.11.0')])
def test_saelens_before_version_6(old, tmp_path):
    w = matrices()
    write_saelens(tmp_path, old, w)
    assert_close(load(tmp_path).encode(X).detach().numpy(), saelens_by_hand('standard', w, X, True, False)[0])
    write_saelens(tmp_path, old | VERSION, w)     # the version decides
    if 'activation_fn' not in old: assert load(tmp_path).config()['activation'] == 'relu'


def test_saelens_topk_before_version_6(tmp_path):
    w, kwargs = matrices(), dict(activation_fn_kwargs={'k': 3})
    for config in (dict(activation_fn_str='topk'), dict(activation_fn='topk', architecture='topk')):
        write_saelens(tmp_path, config | kwargs, w)
        assert_close(load(tmp_path).encode(X).detach().numpy(), saelens_by_hand('topk', w, X, True, False)[0])
    write_saelens(tmp_path, dict(activation_fn_str='topk'), w)
    with pytest.raises(ValueError, match='saelens: k in cfg.json is None'): load(tmp_path)


@pytest.mark.parametrize('name', ['scaling_factor', 'finetuning_scaling_factor'])
def test_saelens_factors_of_the_atoms(name, tmp_path):
    w, factors = matrices(), draw(N, seed=8)
    write_saelens(tmp_path, {}, w | {name: torch.ones(N)})
    z, y = saelens_by_hand('standard', w, X, True, False)
    assert_close(load(tmp_path)(X).detach().numpy(), y)
    write_saelens(tmp_path, dict(finetuning_scaling_factor=True), w | {name: factors})
    assert_close(load(tmp_path)(X).detach().numpy(), (z*factors.numpy()) @ w['W_dec'].numpy() + w['b_dec'].numpy())
    write_saelens(tmp_path, {}, w | {name: factors})
    with pytest.raises(ValueError, match=f'saelens: {name} in sae_weights.safetensors is a tensor'):
        load(tmp_path)


def test_saelens_log_thresholds_and_batch_topk_metadata(tmp_path):
    w, log_threshold = matrices(), draw(N, seed=9)
    config = dict(architecture='jumprelu', **VERSION)
    write_saelens(tmp_path, config, w | dict(log_threshold=log_threshold))
    assert_close(load(tmp_path).activation.theta, log_threshold.exp())
    trained = dict(architecture='jumprelu', metadata=dict(
        VERSION['metadata'], training_architecture='batchtopk', training_architecture_details={'k': 3.}))
    for threshold, k, kind in ((torch.full((N,), 0.5), 3, 'batch_topk'), (torch.full((N,), 0.), 3, 'jumprelu'),
                               (torch.full((N,), 0.5), 2.5, 'jumprelu'), (torch.linspace(0, 1, N), 3, 'jumprelu'),
                               (torch.full((N,), 0.5), np.inf, 'jumprelu'), (torch.full((N,), 0.5), np.nan, 'jumprelu')):
        trained['metadata']['training_architecture_details']['k'] = k
        write_saelens(tmp_path, trained, w | dict(threshold=threshold.double()))
        model = load(tmp_path)
        assert model.activation.name == kind
        z = saelens_by_hand('jumprelu', w | dict(threshold=threshold), X, True, False)[0]
        assert_close(model.encode(X).detach().numpy(), z)


def test_saelens_scaled_inputs(tmp_path):
    w, s = matrices(), 0.25
    write_saelens(tmp_path, dict(normalize_activations='expected_average_only_in', **VERSION), w)
    z, y = saelens_by_hand('standard', w, s*X, True, False)
    with pytest.warns(UserWarning, match='does not hold the factor'): model = load(tmp_path)
    assert_close(model(s*X).detach().numpy(), y)       # as SAELens loads a folder
    model = load(tmp_path, input_scale=s)
    assert_close(model.encode(X).detach().numpy(), z)
    assert_close(model(X).detach().numpy(), y/s)
    (tmp_path/'activation_scaler.json').write_text(json.dumps({'scaling_factor': s, 'has_whitening': False}))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert_close(load(tmp_path)(X).detach().numpy(), y/s)
    (tmp_path/'activation_scaler.json').write_text(json.dumps({'scaling_factor': 'x'}))
    with pytest.raises(ValueError, match='scaling_factor in activation_scaler.json'): load(tmp_path)


def norms(x, kind):
    "Mean and deviation, or norm, of each input, by NumPy."
    if kind == 'layer_norm': return x.mean(-1, keepdims=True), x.std(-1, ddof=1, keepdims=True)
    return 0., np.sqrt((x**2).mean(-1, keepdims=True))


@pytest.mark.parametrize('kind', ['layer_norm', 'constant_norm_rescale'])
@pytest.mark.parametrize('subtracts', [True, False])
def test_saelens_norms_of_each_input(tmp_path, kind, subtracts):
    w = matrices()
    write_saelens(tmp_path/'a', dict(normalize_activations=kind, apply_b_dec_to_input=subtracts, **VERSION), w)
    shift, scale = norms(X.numpy(), kind)
    x = torch.from_numpy((X.numpy() - shift) / (scale + 1e-5*(kind == 'layer_norm')))
    z, y = saelens_by_hand('standard', w, x, subtracts, False)
    for model in (load(tmp_path/'a'), save(load(tmp_path/'a'), tmp_path/'b') or load(tmp_path/'b')):
        assert_close(model.encode(X).detach().numpy(), z)
        assert_close(model(X).detach().numpy(), y*scale + shift)
        assert_close(model.decode(model.encode(X)).detach().numpy(), y)
    assert json.loads((tmp_path/'b'/'cfg.json').read_text())['normalize_activations'] == kind
    assert_close(load(tmp_path/'a', normalized_inputs=True)(x).detach().numpy(), y)
    for format in ('dictionary_learning', 'gemma_scope'):
        with pytest.raises(ValueError, match=f'^{format}: scaling must not be'): save(model, tmp_path/'c', format)


REFUSED = {   # changes of cfg.json -> part of the error
    'transcoder': (dict(architecture='transcoder', d_out=D), 'apply_b_dec_to_input in cfg.json is missing; must be False for a transcoder'),
    'transcoder with a bias': (dict(architecture='transcoder', apply_b_dec_to_input=True), 'apply_b_dec_to_input in cfg.json is True, but'),
    'output width': (dict(architecture='transcoder', d_out=7), 'd_out in cfg.json is 7, but the weights have 6'),
    'no skip': (dict(architecture='skip_transcoder'), 'W_skip in sae_weights.safetensors is missing'),
    'no threshold': (dict(architecture='jumprelu_transcoder'), 'threshold in sae_weights.safetensors is missing'),
    'factor of targets': (dict(architecture='transcoder', apply_b_dec_to_input=False,
                               normalize_activations='expected_average_only_in'), 'targets of a transcoder have a factor of their'),
    'temporal': (dict(architecture='temporal'), 'without attention to others'),
    'unknown': (dict(architecture='new'), "architecture in cfg.json is 'new', but must be one of 'standard', 'topk'"),
    'whitening': (dict(normalize_activations='covariance_whitening'), 'normalize_activations in cfg.json'),
    'layer norm': (dict(architecture='transcoder', apply_b_dec_to_input=False, normalize_activations='layer_norm'),
                   'the targets of a transcoder have another unit'),
    'pursuit': (dict(architecture='matching_pursuit', residual_threshold='small'),
                "residual_threshold in cfg.json is 'small', but must be a number"),
    'support': (dict(architecture='matching_pursuit', stop_on_duplicate_support=1),
                'stop_on_duplicate_support in cfg.json is 1, but must be one of True, False'),
    'width': (dict(d_in=7), 'd_in in cfg.json is 7, but the weights have 6'),
    'latents': (dict(d_sae=7), 'd_sae in cfg.json is 7, but the weights have 12'),
    'k': (dict(architecture='topk', k=13), 'k in cfg.json is 13, but must be a whole number from 1 to 12'),
    'no k': (dict(architecture='topk', k=0), 'k in cfg.json is 0'),
    'gate': (dict(architecture='gated'), 'b_gate in sae_weights.safetensors is missing'),
    'threshold': (dict(architecture='jumprelu'), 'threshold in sae_weights.safetensors is missing'),
    'dtype': (dict(dtype='int8'), "dtype in cfg.json is 'int8'"),
    'flag': (dict(apply_b_dec_to_input='yes'), "apply_b_dec_to_input in cfg.json is 'yes'"),
    'tanh': (dict(metadata={}, activation_fn_str='tanh-relu'), "activation_fn in cfg.json is 'tanh-relu'")}


@pytest.mark.parametrize('name', REFUSED)
def test_saelens_refusals(name, tmp_path):
    changes, message = REFUSED[name]
    write_saelens(tmp_path, VERSION | changes, matrices())
    with pytest.raises(ValueError, match='^saelens: .*' + re.escape(message).replace('\\ ', ' ')): load(tmp_path)


def pursuit(x, W_dec, b_dec, threshold, most, by_support):
    "Matching pursuit of SAELens, one sample after another, in the notation of its files."
    codes = []
    for row in x - b_dec:
        z, support = torch.zeros(len(W_dec)).to(x), set()
        for _ in range(most):
            i = (W_dec @ row).relu().argmax()
            v = (row @ W_dec[i]).relu()
            z[i] += v
            row = row - v*W_dec[i]
            before, support = support, set(z.nonzero().flatten().tolist())
            if (by_support and support == before) or (threshold > 0 and row.norm() < threshold): break
        codes.append(z)
    return torch.stack(codes)


@pytest.mark.parametrize('rules', [dict(), dict(residual_threshold=0.9), dict(stop_on_duplicate_support=False, max_iterations=4),
                                   dict(residual_threshold=-1, stop_on_duplicate_support=False),
                                   dict(residual_threshold=1.5, stop_on_duplicate_support=False)])
def test_saelens_matching_pursuit(rules, tmp_path):
    torch.manual_seed(0)
    w = {'W_dec': 0.4*torch.randn(N, D).double(), 'b_dec': torch.randn(D).double()}
    threshold, most, by_support = (rules.get('residual_threshold', 0.01), rules.get('max_iterations', D),
                                   rules.get('stop_on_duplicate_support', True))
    for subtracts in (True, False):
        config = VERSION | rules | dict(architecture='matching_pursuit', dtype='float64', apply_b_dec_to_input=subtracts)
        write_saelens(tmp_path, config, w)
        wanted = pursuit(X, w['W_dec'], subtracts*w['b_dec'], threshold, most, by_support)
        model = load(tmp_path)
        assert_close(model.encode(X), wanted, atol=1e-10, rtol=1e-10)
        assert_close(model(X), wanted @ w['W_dec'] + subtracts*w['b_dec'], atol=1e-10, rtol=1e-10)
        save(model, tmp_path/'again')
        assert torch.equal(load(tmp_path/'again').encode(X), model.encode(X))
        config = json.loads((tmp_path/'again/cfg.json').read_text())
        assert [config[k] for k in ('residual_threshold', 'max_iterations', 'stop_on_duplicate_support')] == [
            max(0, threshold), most, by_support]
    config |= {'normalize_activations': 'expected_average_only_in', 'apply_b_dec_to_input': True}
    write_saelens(tmp_path, config, w)
    z = pursuit(0.25*X, w['W_dec'], w['b_dec'], threshold, most, by_support)     # trained on scaled inputs
    model = load(tmp_path, input_scale=0.25)
    assert_close(model(X), 4*(z @ w['W_dec'] + w['b_dec']), atol=1e-10, rtol=1e-10)
    assert_close(model.encode(X), 4*z, atol=1e-10, rtol=1e-10)


def test_matching_pursuit_of_scaled_data_is_written_in_the_unit_of_the_data(tmp_path):
    x = 3*X + 1
    for scaling in ('global', 'columns'):
        torch.manual_seed(0)
        model = TiedWeightSparseAutoencoder(D, N, dtype=torch.float64, hidden_dims=(), scaling=scaling,
                                            encoder=MatchingPursuit(5, 0.7, True), decoder_norm='atom')
        with torch.no_grad():
            model.decoder_bias_1.normal_()
            model.encoder_bias_1.copy_(-model.encoder_weights()[0] @ model.decoder_bias_1)
        model.set_scaling(model.scaling.fit(x))
        if scaling == 'columns':
            with pytest.raises(ValueError, match='scale must be one number for matching pursuit'): save(model, tmp_path/'no')
            assert not (tmp_path/'no').exists()
            continue
        save(model, tmp_path)
        again = load(tmp_path)
        assert_close(again(x), model(x))
        assert_close(again.encode(x), model.encode(x)*model.scaling.scale)


def random_model(kind, dtype=torch.float64, norm=None, scaling=None):
    activation = {'name': kind, 'k': 3} if 'topk' in kind or kind == 'group_max' else kind
    torch.manual_seed(0)
    options = dict(dtype=dtype, hidden_dims=(), decoder_norm=norm)
    if kind == 'pursuit': model = TiedWeightSparseAutoencoder(D, N, encoder=MatchingPursuit(5, 0.5, True), **options)
    else: model = SparseAutoencoder(D, N, activation=activation, scaling=scaling, **options)
    with torch.no_grad():
        for p in model.parameters(): p.copy_(0.4*torch.randn_like(p))
        if kind == 'pursuit': model.encoder_bias_1.copy_(-model.encoder_weights()[0] @ model.decoder_bias_1)
        if scaling: model.set_scaling(model.scaling.fit(3*X + 1))
        if kind == 'batch_topk': model(X.to(dtype))
    return model.eval()


HELD = {'saelens': ('relu', 'topk', 'abs_topk', 'batch_topk', 'jumprelu', 'gated', 'pursuit'),
        'dictionary_learning': ('relu', 'topk', 'batch_topk', 'jumprelu', 'gated'),
        'sparsify': ('topk', 'group_max'), 'gemma_scope': ('relu', 'batch_topk', 'jumprelu')}
KINDS = (*HELD['saelens'], 'group_max', 'sigmoid', 'identity', 'soft_threshold', 'hard_threshold')
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.mark.parametrize('format,kind,dtype', [
    (format, kind, dtype) for format in HELD for kind in KINDS for dtype in DTYPES])
def test_round_trip_or_refusal(format, kind, dtype, tmp_path):
    if kind not in HELD[format]:
        with pytest.raises(ValueError, match=f'^{format}: activation must be .*, got '):
            save(random_model(kind, dtype), tmp_path/'new', format)
        return None if (tmp_path/'new').exists() is False else pytest.fail('a folder was made')
    for norm, scaling in ((None, None), ('atom', None), ('row', 'columns'), (None, 'global')):
        if kind == 'pursuit' and scaling: continue    # another unit of the code, see above
        model = random_model(kind, dtype, norm, scaling)
        save(model, tmp_path, format)
        again, x = load(tmp_path), (3*X + 1 if scaling else X).to(dtype)
        assert again.dtype == (torch.float32 if format == 'gemma_scope' and dtype.itemsize < 4 else dtype)
        if dtype.itemsize >= 4:
            assert_close(again.encode(x), model.encode(x), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        wanted, y = model(x), again(x.to(again.dtype)).to(dtype)
        assert_close(y, wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]) if dtype.itemsize > 2 else (
            assert_close(again.decoder_weights()[0].to(dtype), from_model(model).decoder_mat.to(dtype)))
        assert find_format(tmp_path)[0] == format


@pytest.mark.parametrize('format', ['saelens', 'dictionary_learning'])
@pytest.mark.parametrize('kind', ['jumprelu', 'batch_topk'])
def test_thresholds_of_a_half_precision_model_are_written_exactly(format, kind, tmp_path):
    model = random_model(kind, torch.bfloat16)
    save(model, tmp_path, format)
    again, name = load(tmp_path).activation, 'theta' if kind == 'jumprelu' else 'threshold'
    assert torch.equal(getattr(again, name), getattr(model.activation, name))
    assert again.num_batches_tracked > 0 if kind == 'batch_topk' else not again.log


def check_surrounding_devices_and_modes(model, format, tmp_path):
    wanted = model(X).detach()
    with torch.device('meta'), torch.inference_mode():
        save(model, tmp_path, format)
        again = load(tmp_path)
    with torch.no_grad(): assert_close(again(X), wanted)


@pytest.mark.parametrize('format,kind', [(f, kind) for f in HELD for kind in HELD[f]])
def test_surrounding_devices_and_modes_change_nothing(format, kind, tmp_path):
    check_surrounding_devices_and_modes(random_model(kind), format, tmp_path)


def test_trained_further_and_saved_as_a_model_of_this_library(tmp_path):
    model = random_model('batch_topk', torch.float32)
    save(model, tmp_path/'theirs', metadata={'hook_name': 'blocks.3'})
    assert read_weights(tmp_path/'theirs').metadata['hook_name'] == 'blocks.3'
    again = load(tmp_path/'theirs')
    assert again.config()['activation'] == model.config()['activation']
    save(again, tmp_path/'own', 'sparse_ae')
    own = load(tmp_path/'own')
    assert torch.equal(own(X.float()), again(X.float()))
    assert load(tmp_path/'own', dtype=torch.float64).dtype == torch.float64
    save(own, tmp_path/'theirs', 'sparsify' if own.activation.name == 'topk' else 'dictionary_learning')
    optimizer = torch.optim.Adam(again.train().parameters(), 1e-2)
    losses = []
    for _ in range(50):
        losses.append((again(X.float()) - X.float()).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_deep_models_are_refused_and_own_ones_load(tmp_path):
    deep = SparseAutoencoder(D, N)
    with pytest.raises(ValueError, match='it has the hidden layers'): save(deep, tmp_path/'deep')
    assert not (tmp_path/'deep').exists()
    save(deep, tmp_path/'deep', 'sparse_ae')
    assert torch.equal(load(tmp_path/'deep')(X.float()), deep(X.float()))
    with pytest.raises(ValueError, match="format must be 'sparse_ae', 'saelens'"): save(deep, tmp_path, 'openai')
    with pytest.raises(TypeError, match='metadata must be a dictionary'): save(deep, tmp_path, metadata=3)
    model = random_model('pursuit')
    with torch.no_grad(): model.encoder_bias_1 += 1
    with pytest.raises(ValueError, match='must have the encoder bias'): save(model, tmp_path/'deep')


def write_llama_scope(folder, linear, **keys):
    (folder/'checkpoints').mkdir(exist_ok=True)
    save_file(linear, folder/'checkpoints'/'final.safetensors')
    (folder/'hyperparams.json').write_text(json.dumps({
        'd_model': D, 'd_sae': N, 'jump_relu_threshold': 0.5, 'act_fn': 'jumprelu', 'norm_activation': 'dataset-wise',
        'dataset_average_activation_norm': {'in': 8.}, 'hook_point_in': 'a', 'hook_point_out': 'a'} | keys))


def published(name, folder):
    "A file of random weights in a format that is read only; its path, and code and reconstruction by hand."
    w, x = matrices(torch.float32), X.float()
    rows = lambda names: dict(zip(names, (w['W_enc'].T.contiguous(), w['b_enc'], w['W_dec'].T.contiguous(), w['b_dec'])))
    linear = rows(('encoder.weight', 'encoder.bias', 'decoder.weight', 'decoder.bias'))
    u, threshold, scale, path = x @ w['W_enc'] + w['b_enc'], torch.linspace(0.1, 1, N), 1., folder
    if name == 'gemma_scope_2':
        save_file({k.lower(): v for k, v in w.items()} | {'threshold': threshold}, folder/'params.safetensors')
        (folder/'config.json').write_text(json.dumps({'architecture': 'jump_relu', 'hf_hook_point_in': 'a'}))
        z = u * (u > threshold)
    elif name == 'llama_scope':
        write_llama_scope(folder, linear)
        scale = D**0.5 / 8
        u = scale*x @ w['W_enc'] + w['b_enc']
        z = u * (u * w['W_dec'].norm(dim=1) > 0.5*scale)
    elif name == 'llama_scope_r1':
        save_file(linear | {'log_jumprelu_threshold': threshold.log()}, folder/'sae_weights.safetensors')
        (folder/'config.json').write_text(json.dumps({'d_model': D, 'expansion_factor': 2}))
        scale = 0.5
        u = scale*x @ w['W_enc'] + w['b_enc']
        z = u * (u > threshold)
    elif name == 'qwen_scope':
        path = folder/'SAE-W1K-L0_3'/'layer7.sae.pt'
        path.parent.mkdir()
        torch.save(rows(('W_enc', 'b_enc', 'W_dec', 'b_dec')), path)
        z = torch.from_numpy(relu(top_k(u.numpy(), 3)))
    elif name == 'goodfire':
        path = folder/'layer50.pth'
        torch.save({k.replace('.', '_linear.'): v for k, v in linear.items()}, path)
        z = u.relu()
    else:
        path = folder/'6.pt'
        torch.save(rows(('encoder.weight', 'latent_bias', 'decoder.weight', 'pre_bias')) | {
            'stats_last_nonzero': torch.zeros(N, dtype=torch.long), 'activation': 'ReLU', 'activation_state_dict': {}}, path)
        z = ((x - w['b_dec']) @ w['W_enc'] + w['b_enc']).relu()
    return path, z, (z @ w['W_dec'] + w['b_dec'])/scale


@pytest.mark.parametrize('name', ['gemma_scope_2', 'llama_scope', 'llama_scope_r1', 'qwen_scope', 'goodfire', 'openai'])
def test_published_formats(name, tmp_path):
    path, z, y = published(name, tmp_path)
    assert find_format(path)[0] == name and FORMATS[name].write is None
    model = load(path, input_scale=0.5 if name == 'llama_scope_r1' else None)
    assert_close(model.encode(X.float()).detach(), z, atol=1e-5, rtol=1e-5)
    assert_close(model(X.float()).detach(), y, atol=1e-5, rtol=1e-5)


def test_llama_scope_with_a_bias_before_the_encoder(tmp_path):
    "The decoder bias, in the unit of the scaled inputs, is subtracted from these."
    w, scale = matrices(), D**0.5 / 8
    write_llama_scope(tmp_path, {
        'encoder.weight': w['W_enc'].T.contiguous(), 'encoder.bias': w['b_enc'],
        'decoder.weight': w['W_dec'].T.contiguous(), 'decoder.bias': w['b_dec']},
        apply_decoder_bias_to_pre_encoder=True)
    u = (scale*X - w['b_dec']) @ w['W_enc'] + w['b_enc']
    z = u * (u * w['W_dec'].norm(dim=1) > 0.5*scale)
    model = load(tmp_path)
    assert_close(model.encode(X).detach(), z)
    assert_close(model(X).detach(), (z @ w['W_dec'] + w['b_dec'])/scale)


OUT = 4


def transcoder_tensors(width=OUT, dtype=torch.float64):
    "Weights in the orientation of SAELens, with thresholds and a skip; one atom is zero."
    W_dec = draw(N, width, seed=13, dtype=dtype)
    W_dec[4] = 0
    return matrices(dtype) | dict(W_dec=W_dec, b_dec=draw(width, seed=14, dtype=dtype), W_skip=draw(width, D, seed=15, dtype=dtype),
                                  threshold=torch.linspace(-0.5, 1, N).to(dtype))


def transcoder_by_hand(w, activation, skip, x=X):
    "Code and outputs, in NumPy; no bias is subtracted."
    w, x = {name: t.double().numpy() for name, t in w.items()}, x.numpy()
    z = activation(x @ w['W_enc'] + w['b_enc'])
    return z, z @ w['W_dec'] + w['b_dec'] + (x @ w['W_skip'].T if skip else 0)


def jump(w): return lambda u: relu(u) * (u > w['threshold'].numpy())


def check_transcoder(path, z, y, skip, **options):
    model = load(path, **options)
    assert (model.is_transcoder, model.output_dim, model.skip) == (True, y.shape[1], skip)
    assert_close(model.encode(X).detach().numpy(), z, atol=1e-12, rtol=1e-12)
    assert_close(model(X).detach().numpy(), y, atol=1e-12, rtol=1e-12)
    return model


def kept(w, *left_out): return {name: t for name, t in w.items() if name not in left_out}


@pytest.mark.parametrize('width', [OUT, D])
@pytest.mark.parametrize('architecture', ['transcoder', 'skip_transcoder', 'jumprelu_transcoder', 'jumprelu_skip_transcoder'])
def test_transcoders_of_saelens(architecture, width, tmp_path):
    w, skip, jumps = transcoder_tensors(width), 'skip' in architecture, 'jumprelu' in architecture
    tensors = kept(w, *([] if skip else ['W_skip']), *([] if jumps else ['threshold']))
    write_saelens(tmp_path, dict(architecture=architecture, d_out=width, apply_b_dec_to_input=False, **VERSION), tensors)
    z, y = transcoder_by_hand(w, jump(w) if jumps else relu, skip)
    check_transcoder(tmp_path, z, y, skip)
    single = load(tmp_path, dtype=torch.float32)
    assert_close(single(X.float()).double().detach().numpy(), y, atol=1e-5, rtol=1e-5)
    again = tmp_path/'again'
    save(load(tmp_path), again, metadata={'hook_name_out': 'blocks.0.hook_mlp_out'})
    check_transcoder(again, z, y, skip)
    config, written = json.loads((again/'cfg.json').read_text()), load_file(again/'sae_weights.safetensors')
    assert (config['architecture'], config['d_out'], config['apply_b_dec_to_input']) == (architecture, width, False)
    assert config['metadata']['hook_name_out'] == 'blocks.0.hook_mlp_out' and written.keys() == tensors.keys()
    for name in tensors: assert torch.equal(written[name], tensors[name].clamp(min=0) if name == 'threshold' else tensors[name])


def test_normalisation_of_inputs_of_a_transcoder(tmp_path):
    w = kept(transcoder_tensors(), 'threshold')
    config = dict(apply_b_dec_to_input=False, normalize_activations='constant_norm_rescale', d_out=OUT, **VERSION)
    write_saelens(tmp_path, dict(architecture='transcoder', **config), kept(w, 'W_skip'))
    x = X / torch.from_numpy(norms(X.numpy(), 'constant')[1])
    y = transcoder_by_hand(w, relu, False, x)[1]     # outputs are in their own unit
    assert_close(load(tmp_path, normalized_inputs=True)(x).detach().numpy(), y, atol=1e-12, rtol=1e-12)
    with pytest.raises(ValueError, match='targets of a transcoder have another unit'): load(tmp_path)
    write_saelens(tmp_path, dict(architecture='skip_transcoder', **config), w)
    with pytest.raises(ValueError, match='takes inputs before normalisation'): load(tmp_path, normalized_inputs=True)


@pytest.mark.parametrize('transcodes,skips', [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize('activation', ['topk', 'groupmax', 'signed'])
def test_transcoders_of_sparsify(activation, transcodes, skips, tmp_path):
    w = transcoder_tensors(D)
    tensors = {'encoder.weight': w['W_enc'].T.contiguous(), 'encoder.bias': w['b_enc'], 'W_dec': w['W_dec'], 'b_dec': w['b_dec']}
    if skips: tensors['W_skip'] = w['W_skip']
    save_file(tensors, tmp_path/'sae.safetensors')
    config = dict(d_in=D, num_latents=N, k=3, transcode=transcodes, skip_connection=skips)
    config |= dict(signed=True) if activation == 'signed' else dict(activation=activation)
    (tmp_path/'cfg.json').write_text(json.dumps(config))
    def group_max(u):
        groups = relu(u).reshape(-1, 3, N//3)
        return (groups * (groups == groups.max(2, keepdims=True))).reshape(u.shape)
    chosen = {'topk': lambda u: relu(top_k(u, 3)), 'groupmax': group_max, 'signed': lambda u: top_k(u, 3, np.abs)}[activation]
    centred = w if transcodes else w | dict(b_enc=w['b_enc'] - w['b_dec'] @ w['W_enc'])    # of the encoder, not of the skip
    z, y = transcoder_by_hand(centred, chosen, skips)
    check_transcoder(tmp_path, z, y, skips)
    if activation == 'signed': return
    save(load(tmp_path), tmp_path/'again', 'sparsify')
    check_transcoder(tmp_path/'again', z, y, skips)
    again = json.loads((tmp_path/'again'/'cfg.json').read_text())
    assert (again['transcode'], again['skip_connection']) == (True, skips)
    for key, value in (('transcode', 'yes'), ('skip_connection', 1)):
        (tmp_path/'cfg.json').write_text(json.dumps(config | {key: value}))
        with pytest.raises(ValueError, match=f'sparsify: {key} in cfg.json is'): load(tmp_path)
    (tmp_path/'cfg.json').write_text(json.dumps(config | dict(skip_connection=not skips)))
    with pytest.raises(ValueError, match='sparsify: W_skip in sae.safetensors is'): load(tmp_path)


@pytest.mark.parametrize('width', [OUT, D])
@pytest.mark.parametrize('skip', [True, False])
def test_transcoders_of_gemma_scope_2(skip, width, tmp_path):
    w = transcoder_tensors(width)
    tensors = {name.lower(): t for name, t in kept(w, 'W_skip').items()}
    if skip: tensors['affine_skip_connection'] = w['W_skip'].T.contiguous()     # the input is in the rows
    save_file(tensors, tmp_path/'params.safetensors')
    z, y = transcoder_by_hand(w, jump(w), skip)
    config = {'architecture': 'jump_relu', 'hf_hook_point_in': 'a', 'hf_hook_point_out': 'b', 'affine_connection': skip}
    (tmp_path/'config.json').write_text(json.dumps(config))
    check_transcoder(tmp_path, z, y, skip)
    with pytest.raises(ValueError, match='gemma_scope_2: input_scale must be None for a transcoder'): load(tmp_path, input_scale=2.)
    (tmp_path/'config.json').unlink()
    check_transcoder(tmp_path, z, y, skip, transcoder=True)
    assert load(tmp_path).is_transcoder == (skip or width != D)
    save_file(tensors | {'w_dec': tensors['w_dec'][:, None]}, tmp_path/'params.safetensors')
    with pytest.raises(ValueError, match='w_dec in params.safetensors is .* one target'): load(tmp_path)
    save_file(tensors | {'affine_skip_connection': w['W_skip'][None]}, tmp_path/'params.safetensors')
    with pytest.raises(ValueError, match='affine_skip_connection in params.safetensors is'): load(tmp_path)


def test_transcoders_of_gemma_scope(tmp_path):
    for width in (OUT, D):
        w = kept(transcoder_tensors(width), 'W_skip')
        np.savez(tmp_path/'params.npz', **{name: t.numpy() for name, t in w.items()})
        check_transcoder(tmp_path, *transcoder_by_hand(w, jump(w), False), False, transcoder=True)
        assert load(tmp_path).is_transcoder == (width != D)


@pytest.mark.parametrize('unit', [True, False])
def test_transcoders_of_llama_scope(unit, tmp_path):
    "As the programs of its authors: fold both factors, normalise the decoder, compare with the threshold."
    w = transcoder_tensors(D)
    linear = {'encoder.weight': w['W_enc'].T.contiguous(), 'encoder.bias': w['b_enc'],
              'decoder.weight': w['W_dec'].T.contiguous(), 'decoder.bias': w['b_dec']}
    keys = dict(hook_point_out='b', dataset_average_activation_norm={'in': 8., 'out': 3.}, sparsity_include_decoder_norm=unit)
    write_llama_scope(tmp_path, linear, **keys)
    s_in, s_out = D**0.5/8, D**0.5/3
    decoder, bias = w['W_dec'].numpy()*s_in/s_out, w['b_enc'].numpy()/s_in
    norms = np.linalg.norm(decoder, axis=1) if unit else np.ones(N)
    u = (X.numpy() @ w['W_enc'].numpy() + bias) * norms
    z = u * (u > 0.5) / np.where(norms > 0, norms, 1)
    check_transcoder(tmp_path, s_in*z, z @ decoder + w['b_dec'].numpy()/s_out, False)
    for change, message in ((dict(dataset_average_activation_norm={'in': 8.}), 'out in hyperparams.json is missing'),
                            (dict(apply_decoder_bias_to_pre_encoder=True), 'must be False for a transcoder'),
                            (dict(norm_activation='token-wise'), "norm_activation in hyperparams.json is 'token-wise'"),
                            (dict(sparsity_include_decoder_norm=2), 'sparsity_include_decoder_norm in')):
        write_llama_scope(tmp_path, linear, **(keys | change))
        with pytest.raises(ValueError, match=message): load(tmp_path)


def test_a_transcoder_without_factors_is_refused(tmp_path):
    published('llama_scope_r1', tmp_path)
    (tmp_path/'config.json').write_text(json.dumps({'d_model': D, 'hook_point_in': 'a', 'hook_point_out': 'b'}))
    with pytest.raises(ValueError, match="llama_scope_r1: hook_point_out in config.json is 'b', but"): load(tmp_path, input_scale=2.)


def random_transcoder(kind, width=OUT, skip=True, dtype=torch.float64, norm=None, scaling=None):
    torch.manual_seed(0)
    model = SparseAutoencoder(D, N, activation={'name': kind, 'k': 3} if 'topk' in kind or kind == 'group_max' else kind, skip=skip,
                              dtype=dtype, hidden_dims=(), decoder_norm=norm, output_dim=width, scaling=scaling)
    with torch.no_grad():
        for p in model.parameters(): p.copy_(0.4*torch.randn_like(p))
        if scaling: model.set_scaling(model.scaling.fit(torch.cat([3*X + 1, 9*X[:, :width] - 4], 1)))
        if kind == 'batch_topk': model(X.to(dtype))
    return model.eval()


TRANSCODERS = {'saelens': ('relu', 'batch_topk', 'jumprelu'), 'sparsify': ('topk', 'group_max'), 'dictionary_learning': (),
               'gemma_scope': ()}


@pytest.mark.parametrize('format,kind,skip,dtype', [
    (format, kind, skip, dtype) for format in TRANSCODERS for kind in KINDS if kind != 'pursuit'
    for skip in (True, False) for dtype in DTYPES[:3]])
def test_round_trip_or_refusal_of_transcoders(format, kind, skip, dtype, tmp_path):
    width = D if format == 'sparsify' else OUT
    if kind not in TRANSCODERS[format]:
        with pytest.raises(ValueError, match=f'^{format}: (activation|output_dim) must be .*, got '):
            save(random_transcoder(kind, width, skip, dtype), tmp_path/'new', format)
        return None if (tmp_path/'new').exists() is False else pytest.fail('a folder was made')
    for norm, scaling in ((None, None), ('atom', None), ('row', 'columns'), (None, 'global')):
        model = random_transcoder(kind, width, skip, dtype, norm, scaling)
        save(model, tmp_path, format)
        again, x = load(tmp_path), (3*X + 1 if scaling else X).to(dtype)
        assert (again.dtype, again.output_dim, again.skip) == (dtype, width, skip)
        if dtype.itemsize >= 4:
            assert_close(again.encode(x), model.encode(x), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
            assert_close(again(x), model(x), atol=10*TOLERANCE[dtype], rtol=10*TOLERANCE[dtype])
        elif skip: assert_close(again.skip_mat, from_model(model).skip_mat.to(dtype))
        assert find_format(tmp_path)[0] == format


@pytest.mark.parametrize('format,kind,width', [('saelens', 'jumprelu', OUT), ('sparsify', 'topk', D)])
def test_surrounding_devices_change_no_transcoder(format, kind, width, tmp_path):
    model = random_transcoder(kind, width, scaling='columns')
    check_surrounding_devices_and_modes(model, format, tmp_path)


def test_a_scaling_of_a_transcoder_needs_that_of_its_targets():
    layer = from_model(SparseAutoencoder(D, N, hidden_dims=(), output_dim=3, dtype=torch.float64))
    with pytest.raises(ValueError, match='target_shift and target_scale must be given for a transcoder'):
        fold_scaling(layer, 0., 2.)
    scaled = fold_scaling(layer, 0., 2., 0., 5.)
    assert_close(scaled.encoder_mat, layer.encoder_mat/2)
    assert_close(scaled.decoder_mat, 5*layer.decoder_mat)


def test_widths_that_sparsify_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match='sparsify: output_dim must be input_dim=6, .*, got 4'):
        save(random_transcoder('topk'), tmp_path/'new', 'sparsify')
    assert not (tmp_path/'new').exists()


def test_damaged_and_changed_transcoders(tmp_path):
    for format, kind, width in (('saelens', 'jumprelu', OUT), ('sparsify', 'topk', D)):
        folder = tmp_path/format
        save(random_transcoder(kind, width), folder, format)
        config, weights = (folder/name for name in FORMATS[format].files)
        whole, tensors = json.loads(config.read_text()), load_file(weights)
        for key, value in itertools.product(whole, (
                None, -1, 0, 2.5, 1e300, np.inf, np.nan, 'x', [], {}, True)):
            config.write_text(json.dumps(whole | {key: value}))
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                loads_or_names_the_error(folder, format)
        config.write_text(json.dumps(whole))
        for name, tensor in tensors.items():
            for changed in (None, tensor[None], tensor.to(torch.int64), tensor*torch.nan, tensor[1:], torch.zeros(0).double()):
                save_file({k: v for k, v in (tensors | {name: changed}).items() if v is not None}, weights)
                with pytest.raises(ValueError, match=f'{format}: .* in {weights.name}'): load(folder)


def test_files_of_a_folder_and_checkpoints(tmp_path):
    save(random_model('relu'), tmp_path, 'dictionary_learning')
    (tmp_path/'checkpoints').mkdir()
    (tmp_path/'ae.pt').rename(tmp_path/'checkpoints'/'ae_100.pt')
    wanted = random_model('relu')(X)
    assert_close(load(tmp_path/'checkpoints'/'ae_100.pt')(X), wanted)
    backup = {'step': 3, 'ae': torch.load(tmp_path/'checkpoints'/'ae_100.pt'), 'norm_factor': None}
    torch.save(backup, tmp_path/'ae.pt')
    assert_close(load(tmp_path)(X), wanted)
    torch.save(backup | {'norm_factor': 2.}, tmp_path/'ae.pt')
    with pytest.raises(ValueError, match='norm_factor in ae.pt is 2.0'): load(tmp_path)
    save(random_model('relu'), tmp_path/'s')
    for name in ('cfg.json', 'sae_weights.safetensors'): assert_close(load(tmp_path/'s'/name)(X), wanted)
    save(random_model('jumprelu'), tmp_path/'g', 'gemma_scope')
    (tmp_path/'g'/'params.npz').rename(tmp_path/'g'/'other.npz')
    assert load(tmp_path/'g'/'other.npz').activation.name == 'jumprelu'


def test_paths_that_hold_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match='must be a file or a folder'): load(tmp_path/'none')
    with pytest.raises(FileNotFoundError, match='must be a file or a folder'): load(tmp_path/'none', 'saelens')
    with pytest.raises(ValueError, match='holds a model of no known format, but nothing'): load(tmp_path)
    (tmp_path/'cfg.json').write_text('{}')
    with pytest.raises(FileNotFoundError, match='saelens: a model needs the file sae_weights.safetensors'):
        load(tmp_path, 'saelens')
    for bad in (tmp_path/'a.txt', tmp_path/'b.pt'):
        torch.save({'w': torch.ones(2)}, bad)
        with pytest.raises(ValueError, match='of no known format, but [ab]'): load(bad)
    with pytest.raises(ValueError, match='openai: path must end with .json, .safetensors'): load(tmp_path/'a.txt', 'openai')
    with pytest.raises(ValueError, match='openai: path must be a file, got the folder'): load(tmp_path, 'openai')
    with pytest.raises(ValueError, match="format must be 'auto', 'sparse_ae'"): load(tmp_path, 'onnx')
    with pytest.raises(TypeError, match='path must be a path, got 3'): load(3)
    with pytest.raises(TypeError, match='k must be a whole number'): load(tmp_path, 'saelens', k='3')
    with pytest.raises(ValueError, match='input_scale must be above 0'): load(tmp_path, 'saelens', input_scale=0)
    for format in ('openai', 'gemma_scope', 'dictionary_learning'):
        (tmp_path/'config.json').write_text('{}')
        with pytest.raises(ValueError, match=f'{format}: path must end with .json.*a.txt'):
            load(tmp_path/'a.txt', format)


def test_a_fact_that_the_files_do_not_lack(tmp_path):
    "It would have no effect: a file with k=4 is not read as one with k=2."
    for format in ('saelens', 'sparse_ae'):
        save(random_model('topk'), tmp_path/format, format)
        for fact, value in (('k', 2), ('transcoder', True)):
            with pytest.raises(ValueError, match=f'{fact} must be .* for the format {format}, whose files do not lack it'):
                load(tmp_path/format, **{fact: value})
        with pytest.raises(TypeError, match='transcoder must be True or False'): load(tmp_path/format, transcoder=1)
        with pytest.raises(ValueError, match='input_scale must be above 0, got 0'): load(tmp_path/format, input_scale=0)
    with pytest.raises(ValueError, match='it is for qwen_scope'): load(tmp_path/'saelens', k=2)


def test_a_folder_with_models_of_two_formats(tmp_path):
    "The later one of two models that were saved into one folder is not passed over."
    first, second = random_model('topk'), random_model('topk')
    save(first, tmp_path, 'saelens')
    save(second, tmp_path, 'dictionary_learning')
    with pytest.raises(ValueError, match='which holds a model of each of saelens, dictionary_learning'):
        load(tmp_path)
    assert_close(load(tmp_path, 'saelens')(X), first(X))
    for path, format in ((tmp_path, 'dictionary_learning'), (tmp_path/'ae.pt', 'auto')):
        assert_close(load(path, format)(X), second(X))


@pytest.mark.parametrize('value, error', [(object(), TypeError), (float('nan'), ValueError)])
def test_metadata_that_json_does_not_have(tmp_path, value, error):
    with pytest.raises(error, match='metadata must have entries of JSON: '):
        save(random_model('topk'), tmp_path/'new', metadata=dict(layer=value))
    assert not (tmp_path/'new').exists()


class Evil:
    def __reduce__(self): return print, ('code was run',)


@pytest.mark.parametrize('format', ['dictionary_learning', 'gemma_scope', 'openai'])
def test_no_code_in_a_file_is_run(format, tmp_path, capsys):
    path = tmp_path/{'dictionary_learning': 'ae.pt', 'gemma_scope': 'params.npz', 'openai': '3.pt'}[format]
    if format == 'gemma_scope': np.savez(path, W_enc=np.array([Evil()], dtype=object))
    else: torch.save({'pre_bias': Evil()}, path)
    (tmp_path/'config.json').write_text(json.dumps({'trainer': {'dict_class': 'AutoEncoder'}}))
    with pytest.raises(ValueError, match=f'{path.name} is not '): load(path)
    path.write_bytes(pickle.dumps({'pre_bias': Evil()}))
    with pytest.raises(ValueError, match=f'{path.name} is not '): load(path)
    assert 'code was run' not in capsys.readouterr().out


FILES = [(format, kinds[-1]) for format, kinds in HELD.items() if format != 'saelens'] + [
    ('saelens', 'jumprelu'), ('saelens', 'gated'), ('saelens', 'batch_topk')]


def loads_or_names_the_error(folder, format):
    "A changed file is either a model or a `ValueError`."
    try: model = load(folder, format)
    except ValueError as error: assert str(error)
    else: model(X.to(model.dtype))


@pytest.mark.parametrize('format,kind', FILES)
@given(seed=st.integers(0, 2**16))
def test_damaged_files(format, kind, tmp_path_factory, seed):
    folder, random = tmp_path_factory.mktemp('damaged'), np.random.default_rng(seed)
    save(random_model(kind), folder, format)
    for name in FORMATS[format].files:
        path, whole = folder/name, (folder/name).read_bytes()
        data = bytearray(whole[:random.integers(len(whole))] if seed % 2 else whole)
        for place in random.integers(0, max(1, len(data)), 3): data[place:place+1] = random.bytes(1)
        path.write_bytes(data)
        loads_or_names_the_error(folder, format)
        path.write_bytes(whole)


@pytest.mark.parametrize('format,kind', FILES[:2] + FILES[3:])
def test_other_values_in_a_configuration(format, kind, tmp_path):
    save(random_model(kind), tmp_path, format)
    path = tmp_path/FORMATS[format].files[0]
    whole = json.loads(path.read_text())
    owners = [lambda c: c] + [lambda c, key=key: c[key] for key in whole if isinstance(whole[key], dict)]
    for owner in owners:
        for key, value in itertools.product(owner(whole), (
                None, -1, 0, 2.5, 1e300, np.inf, np.nan, 'x', [], {}, True)):
            changed = json.loads(json.dumps(whole))
            owner(changed)[key] = value
            path.write_text(json.dumps(changed))
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                loads_or_names_the_error(tmp_path, format)
    for text in ('', '[]', '3', '{"a": '):
        path.write_text(text)
        with pytest.raises(ValueError, match=path.name): load(tmp_path, format)


@pytest.mark.parametrize('format,kind', FILES)
def test_other_tensors(format, kind, tmp_path):
    save(random_model(kind), tmp_path, format)
    path = tmp_path/FORMATS[format].files[-1]
    read = {'.safetensors': load_file, '.pt': torch.load, '.npz': lambda p: {
        k: torch.from_numpy(v) for k, v in np.load(p).items()}}[path.suffix]
    write = {'.safetensors': save_file, '.pt': torch.save, '.npz': lambda t, p: np.savez(p, **t)}[path.suffix]
    whole = read(path)
    for name, tensor in whole.items():
        if not tensor.is_floating_point(): continue
        for changed in (None, tensor[None], tensor.to(torch.int64), tensor*torch.nan, torch.zeros(0).double()):
            write({k: v for k, v in (whole | {name: changed}).items() if v is not None}, path)
            if changed is None and name == 'threshold' and format == 'dictionary_learning': continue
            with pytest.raises(ValueError, match=f'{format}: {re.escape(name)} in {path.name}'): load(tmp_path)
    write(whole | {'surplus': torch.ones(2)}, path)
    with pytest.raises(ValueError, match=f'{format}: surplus in {path.name} is a tensor'): load(tmp_path)


def test_a_repository_folder_with_two_models_needs_the_format():
    both = ['a/cfg.json', 'a/sae_weights.safetensors', 'a/sae.safetensors']
    for place in ('a', 'a/cfg.json'):
        with pytest.raises(ValueError, match='^format must be given for a, which holds a model of each of saelens, sparsify'):
            find_repo_files(both, place)
        assert find_repo_files(both, place, 'sparsify').files == ('cfg.json', 'sae.safetensors')
    assert find_repo_files(both, 'a/sae.safetensors').files == ('cfg.json', 'sae.safetensors')


@pytest.mark.parametrize('format', ['sparse_ae', 'gemma_scope'])
def test_metadata_that_no_file_holds(tmp_path, format):
    model = SparseAutoencoder(4, 8, hidden_dims=())
    with pytest.raises(ValueError, match='^metadata must be None for the format'):
        save(model, tmp_path/'a', format, metadata={'hook_name': 'x'})
    assert not (tmp_path/'a').exists()
