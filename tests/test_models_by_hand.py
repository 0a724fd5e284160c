"Models with weights that are set by hand, whose outputs can be worked out without a computer."
import copy
import threading
import warnings

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.testing import assert_close

from sparse_ae import models
from sparse_ae.activations import BackwardElimination, MatchingPursuit, TopK
from sparse_ae.data import open_rows, sample_rows
from sparse_ae.losses import hoyer_sparsity_loss, kl_divergence_sparsity_loss, l1_sparsity_loss
from sparse_ae.models import (AdaptedAutoencoder, Encoded, Layer,
                              SparseAutoencoder, TiedWeightSparseAutoencoder, TrainingLock, affine,
                              as_autoencoder, between_steps, block_norms, check_autoencoder,
                              check_forward, check_hidden_dims, count_active, counting_dtype,
                              decode_batch, encode_batch, geometric_median, has_encode_layers,
                              hold_steps, in_training, is_native, linear_stack, master_precision,
                              output_shape, principal_directions, project_to_tangent, reconstruct,
                              step_lock, trainable_parameters, unit_block_norm, unit_norm,
                              why_not_native)
from sparse_ae.scaling import ColumnScaling, GlobalScaling

CLASSES = [SparseAutoencoder, TiedWeightSparseAutoencoder]
T = torch.tensor


def small(decoder_norm=None, cls=SparseAutoencoder, **options):
    "Two inputs, three latents, one layer: z = relu(A x + a), y = B z + b."
    model = cls(2, 3, hidden_dims=(), decoder_norm=decoder_norm, **options)
    with torch.no_grad():
        model.encoder_mat_1.copy_(T([[1., 0.], [0., 2.], [-1., 1.]]))
        model.encoder_bias_1.copy_(T([0., -1., 0.5]))
        if not model.tied: model.decoder_mat_1.copy_(T([[1., 0., 3.], [2., 1., 0.]]))
        model.decoder_bias_1.copy_(T([0.25, -0.5]))
    return model


X = T([[1., 2.], [3., 0.]])
Z = T([[1., 3., 1.5], [3., 0., 0.]])            # relu of (1, 3, 1.5) and (3, -1, -2.5)
Y = T([[5.75, 4.5], [3.25, 5.5]])


# --- Layers

def test_one_layer():
    model = small()
    assert_close(model.encode(X), Z)
    assert_close(model.decode(Z), Y)
    assert_close(model(X), Y)
    encoded = model.encode_layers(X)
    assert_close(encoded.pre, T([[1., 3., 1.5], [3., -1., -2.5]]))
    assert encoded.hidden == () and encoded.target_of(X) is X
    assert encoded._replace(target=Y).target_of(X) is Y


def test_an_encoder_that_reads_residuals():
    "It stops when what is left of the inputs minus the decoder's bias is shorter than a threshold."
    model = small('atom', encoder=MatchingPursuit(2, residual_threshold=1.))
    with torch.no_grad():
        model.encoder_mat_1.copy_(model.decoder_weights()[0].T)
        model.encoder_bias_1.copy_(-model.encoder_mat_1 @ model.decoder_bias_1)
    z = model.encode(model.decoder_bias_1 + T([[0.9, 9.], [1.1, 9.]]))
    assert_close(z, T([[0., 9., 0.], [0., 9., 1.1]]))


@pytest.mark.parametrize('encoder', [MatchingPursuit(2), BackwardElimination(2)], ids=str)
def test_an_encoder_that_reads_residuals_in_a_stack_of_models(encoder):
    "Each model subtracts its own bias, also where there are as many samples as models."
    one, two = small('atom', encoder=encoder), small('atom', encoder=encoder)
    two.decoder_bias_1.data.copy_(T([5., -3.]))
    stack, x = copy.deepcopy(one), torch.stack([X, X + 1])
    for name, value in one.named_parameters():
        setattr(stack, name, nn.Parameter(torch.stack([value.detach(), two.get_parameter(name).detach()])))
    assert_close(stack.encode(x), torch.stack([one.encode(x[0]), two.encode(x[1])]))


def test_widths_above_256():
    assert SparseAutoencoder(300, 400)(torch.zeros(2, 300)).shape == (2, 300)


def test_tied_layers_are_transposes():
    model = small(cls=TiedWeightSparseAutoencoder)
    # transposed matrix times (1, 3, 1.5), plus the bias of the decoder
    assert_close(model(X[:1]), T([[1 - 1.5 + 0.25, 6 + 1.5 - 0.5]]))
    assert_close(model._output_weight(), model.encoder_mat_1.mT)
    deep = TiedWeightSparseAutoencoder(4, 2, hidden_dims=(3,))
    assert [tuple(W.shape) for W in deep.decoder_weights()] == [(3, 2), (4, 3)]
    assert all(torch.equal(a, b.mT) for a, b in zip(deep.decoder_weights(),
                                                     reversed(deep.encoder_weights())))


def test_an_affine_map_and_a_stack_of_them():
    W, b = T([[1., 2.], [0., -1.], [3., 0.]]), T([0., 10., 100.])
    assert_close(affine(T([[1., 1.]]), W, b), T([[3., 9., 103.]]))
    stack = affine(T([[[1., 1.]], [[2., 0.]]]), torch.stack([W, 2*W]), torch.stack([b, -b]))
    assert_close(stack, T([[[3., 9., 103.]], [[4., -10., -88.]]]))


def test_relu_stands_between_layers_only():
    layers = [Layer(T([[1.], [-1.]]), T([0., 0.])), Layer(T([[2., 0.], [0., 3.]]), T([0., -1.])),
              Layer(T([[-1., -1.]]), T([0.]))]
    hidden = T([[2., 0.]]), T([[4., 0.]])     # relu of (2, -2), and of (4, -1)
    for every in (None, 1, 2, 3, 9):
        y, kept = linear_stack(T([[2.]]), layers, True, every)
        assert_close(y, T([[-4.]]))           # negative: no ReLU after the last layer
        assert_close(kept, hidden)
        assert linear_stack(T([[2.]]), layers, False, every)[1] == ()
    assert linear_stack(T([[2.]]), layers)[1] == ()


def test_number_of_stored_segments(monkeypatch):
    "Activations are stored at every third of nine layers, in training with gradients only."
    seen = []
    monkeypatch.setattr(models, 'linear_stack', lambda x, layers, keep, every: (
        seen.append(every), linear_stack(x, layers, keep, every))[1])
    model = SparseAutoencoder(4, 3, hidden_dims=(4,)*8, gradient_checkpointing=True)
    x = torch.rand(2, 4)
    model(x)
    with torch.no_grad(): model(x)
    model.eval()(x)
    SparseAutoencoder(4, 3, hidden_dims=(4,)*8)(x)
    assert seen == [3, 3] + [None]*6


def test_batch_normalisation_stands_before_relu_and_not_at_the_output():
    model = SparseAutoencoder(2, 3, hidden_dims=(4,), batch_norm=True)
    assert [norm is not None for norm in model.stored('encoder_norm')] == [True, True]
    assert [norm is not None for norm in model.stored('decoder_norm')] == [True, False]
    x = torch.rand(5, 7, 2)
    with torch.no_grad():
        a = torch.nn.functional.linear(x, model.encoder_mat_1, model.encoder_bias_1).flatten(0, 1)
        a = ((a - a.mean(0)) / (a.var(0, correction=0) + 1e-5).sqrt()).relu().reshape(5, 7, 4)
        assert_close(model.encode_layers(x).hidden[0], a)


# --- Construction

def test_hidden_dims():
    assert check_hidden_dims(None, 10, 5) == (7,) and check_hidden_dims(iter([3, 2]), 1, 1) == (3, 2)
    for bad in ('34', b'34', {3, 4}, {3: 4}, 5):
        with pytest.raises(TypeError, match='hidden_dims must be None or a tuple'):
            check_hidden_dims(bad, 10, 5)
    with pytest.raises(ValueError, match=r'hidden_dims\[1\] must be at least 1'):
        check_hidden_dims((3, 0), 10, 5)


def test_arguments_that_are_refused():
    refused = {'output_dim must be None for tied': dict(cls=TiedWeightSparseAutoencoder, output_dim=3),
               "encoder must be 'linear' for a model with output_dim": dict(output_dim=3, encoder='unrolled', hidden_dims=()),
               'skip must be False': dict(skip=True),
               "blocks must be given for decoder_norm='block'": dict(decoder_norm='block'),
               "blocks must be given for scaling='blocks'": dict(scaling='blocks'),
               'blocks must be widths that sum to 4': dict(blocks=(2, 1)),
               "encoder must be 'linear' unless": dict(encoder='unrolled', hidden_dims=(3,)),
               'encoder must be .* batch_norm=False': dict(encoder='unrolled', hidden_dims=(),
                                                           batch_norm=True),
               'decoder_norm must be': dict(decoder_norm='rows'), 'scaling must be': dict(scaling='x')}
    for message, options in refused.items():
        with pytest.raises(ValueError, match=message):
            options.pop('cls', SparseAutoencoder)(4, 3, **options)
    for dtype in (torch.int64, torch.complex64):
        with pytest.raises(TypeError, match='dtype must be one of'): SparseAutoencoder(4, 3, dtype=dtype)


def test_default_model():
    model = SparseAutoencoder(6, 3)
    assert (model.hidden_dims, model.depth, model.decoder_norm, model.output_dim) == ((4,), 2, 'row', 6)
    assert not (model.tied or model.skip or model.batch_norm or model.is_transcoder
                or model.gradient_checkpointing or model.assumes_unit_norm or model.assumes_scaled)
    assert model.scaling is None and model.blocks is None and not model.fixes_l0
    assert set(model.config()) == {'input_dim', 'latent_dim', 'dtype', 'hidden_dims', 'activation',
                                   'encoder', 'decoder_norm', 'batch_norm'}
    assert SparseAutoencoder(6, 3, activation=TopK(2)).fixes_l0


def test_initial_weights_lie_within_their_limits():
    torch.manual_seed(0)
    model = SparseAutoencoder(100, 400, hidden_dims=(25,))
    for name, fan_in in (('encoder_mat_1', 100), ('encoder_mat_2', 25), ('decoder_mat_1', 400)):
        W, limit = model.get_parameter(name), fan_in**-0.5
        assert 0.98*limit < W.max() <= limit and -limit <= W.min() < -0.98*limit
    assert all(not p.any() for name, p in model.named_parameters() if 'bias' in name)


def test_config_of_a_transcoder_with_blocks_and_scaling():
    model = SparseAutoencoder(4, 3, output_dim=5, skip=True, blocks=iter((2, 3)), scaling='blocks',
                              decoder_norm='block')
    config = model.config()
    assert (config['output_dim'], config['skip'], config['blocks'], config['scaling']) == (
        5, True, (2, 3), 'blocks')
    assert SparseAutoencoder(**config).config() == config
    assert 'output_dim=5' in repr(model) and model.skip_mat.shape == (5, 4)
    assert model.scaling.groups == (4, 2, 3)     # inputs, then the blocks of the targets
    assert SparseAutoencoder(4, 3, blocks=(1, 3), scaling='blocks').scaling.groups == (1, 3)
    assert SparseAutoencoder(4, 3, scaling='global').scaling.groups == (4,)
    assert SparseAutoencoder(4, 3, output_dim=5, scaling='global').scaling.groups == (4, 5)


def test_static_penalties_of_a_model():
    z = torch.rand(4, 3)
    for cls in CLASSES:
        assert cls(3, 3).l1_sparsity_loss(z) == l1_sparsity_loss(z)
        assert cls.hoyer_sparsity_loss(z) == hoyer_sparsity_loss(z)
        assert cls.kl_divergence_sparsity_loss(z, 0.2) == kl_divergence_sparsity_loss(z, 0.2)


def test_a_copy_within_a_block_assumes_nothing():
    model = small('row', scaling='global')
    with model.assume_unit_norm(), model.assume_scaled(): copied = copy.deepcopy(model)
    assert not copied.assumes_unit_norm and not copied.assumes_scaled


# --- Inputs

def test_inputs_that_are_refused():
    model = small()
    for call, name, width in ((model.encode, 'x', 2), (model.decode, 'z', 3)):
        with pytest.raises(TypeError, match=f'{name} must be a tensor, got list'): call([1., 2.])
        for bad in (T(1.), torch.ones(4, width + 1), torch.ones(4, 0)):
            with pytest.raises(ValueError, match=rf'{name} must have shape \(..., {width}\)'): call(bad)
        with pytest.raises(TypeError, match=f"{name} must have the model's dtype torch.float32"):
            call(torch.ones(4, width).double())


def test_a_code_with_dense_is_decoded():
    class Sparse:
        def dense(self): return Z
    assert_close(small().decode(Sparse()), Y)
    adapted = AdaptedAutoencoder(small())
    assert_close(adapted.decode(Sparse()), Y)


def test_fast_functions_are_used_without_gradients_only(monkeypatch):
    model, calls = small(), []
    monkeypatch.setattr(models, 'FAST_FORWARD', [lambda m, x: None, lambda m, x: calls.append(m) or x])
    assert_close(model(X), Y)
    assert calls == []
    with torch.no_grad(): assert model(X) is X
    assert calls == [model]
    monkeypatch.setattr(models, 'FAST_FORWARD', [lambda m, x: None])
    with torch.no_grad(): assert_close(model(X), Y)


# --- Decoder geometry

W = T([[3., 0., 0.], [4., 0., -2.]])


def test_unit_norms():
    assert_close(unit_norm(W, 0), T([[0.6, 0., 0.], [0.8, 0., -1.]]))
    assert_close(unit_norm(W, 1), T([[1., 0., 0.], [4/20**.5, 0., -2/20**.5]]))
    for scale in (1e-38, 1e38):
        assert_close(unit_norm(scale * T([[0.3, 0.4], [0.6, 0.8]]), -1), T([[0.6, 0.8], [0.6, 0.8]]))
    assert_close(unit_norm(W.expand(2, 2, 3), -2), unit_norm(W, 0).expand(2, 2, 3))


def test_block_norms():
    V = T([[3., 1.], [4., 0.], [5., 0.]])
    assert_close(block_norms(V, (2, 1)), T([[5., 1.], [5., 0.]]))
    assert_close(unit_block_norm(V, (2, 1)), T([[0.3, 1.], [0.4, 0.], [0.5, 0.]]))
    assert not unit_block_norm(torch.zeros(3, 2), (2, 1)).any()
    assert_close(unit_block_norm(2e37*V, (2, 1)), unit_block_norm(V, (2, 1)))
    for norm, expected in ((None, Y), ('atom', small('atom')(X))):    # blocks change no other norm
        assert_close(small(norm, blocks=(1, 1))(X), expected)


@pytest.mark.parametrize('norm,tied,expected', [
    ('row', False, ('decoder_mat_2', -1)), ('atom', False, ('decoder_mat_2', -2)),
    ('row', True, ('encoder_mat_1', -2)), ('atom', True, ('encoder_mat_1', -1)),
    (None, False, ('decoder_mat_2', None)), (None, True, ('encoder_mat_1', None)),
    ('block', False, ('decoder_mat_2', None))])
def test_which_parameter_has_unit_norms(norm, tied, expected):
    model = CLASSES[tied](4, 3, decoder_norm=norm, blocks=(2, 2) if norm == 'block' else None)
    assert model.normalized_parameter() == expected
    with torch.no_grad():
        for p in model.parameters(): p.copy_(torch.randn_like(p))
    x, before = torch.rand(3, 4), copy.deepcopy(model)
    model.normalize_decoder_weights()
    assert_close(model(x), before(x))
    V = model._output_weight()
    if norm == 'row': assert_close(V.norm(dim=1), torch.ones(4))
    elif norm == 'atom': assert_close(V.norm(dim=0), torch.ones(V.shape[1]))
    elif norm == 'block': assert_close(block_norms(V, (2, 2)).sum(0), torch.ones(V.shape[1]))
    else: assert torch.equal(V, before._output_weight())


def test_computed_weights_are_normalised_as_they_are_used():
    class Double(nn.Module):
        def forward(self, W): return 2*W
    for norm, name in (('row', 'decoder_mat_1'), ('block', 'decoder_mat_1')):
        model = small(norm, blocks=(1, 1))
        expected = model(X)
        nn.utils.parametrize.register_parametrization(model, name, Double())
        assert model.normalized_parameter() == (name, None) and model.computed_parameters() == [name]
        model.normalize_decoder_weights()
        with model.assume_unit_norm():
            assert not model.assumes_unit_norm
            assert_close(model(X), expected)
        with pytest.raises(ValueError, match=f'model must have plain parameters .* {name}'):
            model.check_parameters()
        assert why_not_native(model) == f'{name} is computed'
    model = small('block', blocks=(1, 1))
    nn.utils.parametrize.register_parametrization(model, 'decoder_mat_1', nn.Identity())
    before = model.parametrizations.decoder_mat_1.original.clone()
    model.normalize_decoder_weights()      # what the weights are computed from stays
    assert torch.equal(model.parametrizations.decoder_mat_1.original, before)
    skip = SparseAutoencoder(2, 3, output_dim=2, skip=True)
    nn.utils.parametrize.register_parametrization(skip, 'skip_mat', Double())
    assert skip.computed_parameters() == ['skip_mat']
    deep = SparseAutoencoder(2, 3)
    for name in ('encoder_mat_2', 'decoder_bias_2'):
        nn.utils.parametrize.register_parametrization(deep, name, Double())
    assert deep.computed_parameters() == ['encoder_mat_2', 'decoder_bias_2']
    with pytest.raises(ValueError, match='got encoder_mat_2, which is computed'): deep.check_parameters()
    tied = small(cls=TiedWeightSparseAutoencoder)
    assert tied.computed_parameters() == [] and small().computed_parameters() == []


def test_row_wise_normalisation_is_refused_for_columns():
    for norm in ('atom', 'block'):
        model = SparseAutoencoder(4, 3, decoder_norm=norm, blocks=(2, 2))
        with pytest.raises(ValueError, match=f"decoder_norm must be 'row' or None .* '{norm}'"):
            model.normalize_decoder_weights_row_wise()


def test_projection_to_the_tangent_of_the_norm():
    V, g = unit_norm(torch.randn(4, 3), 1), torch.randn(4, 3)
    projected = project_to_tangent(g, V, 1)
    assert_close((projected * V).sum(1), torch.zeros(4), atol=1e-6, rtol=0)
    assert_close(project_to_tangent(projected, V, 1), projected)
    assert_close(project_to_tangent(T([[1., 2.]]), T([[0., 1.]]), 1), T([[1., 0.]]))


@pytest.mark.parametrize('cls', CLASSES)
@pytest.mark.parametrize('norm', ['row', 'atom', None])
def test_gradient_with_assumed_unit_norm_is_that_with_normalisation(cls, norm):
    "At unit norm the gradient through the normalisation is the projected one."
    model = small(norm, cls)
    model.normalize_decoder_weights()
    loss = lambda: model(X).square().sum()
    expected = torch.autograd.grad(loss(), list(model.parameters()))
    with model.assume_unit_norm(): found = torch.autograd.grad(loss(), list(model.parameters()))
    assert_close(found, expected)
    loss().backward()    # `grad` of a leaf calls its hooks as well
    with model.assume_unit_norm():
        for p in model.parameters(): p.grad = None
        loss().backward()
    assert_close([p.grad for p in model.parameters()], list(expected))
    with model.assume_unit_norm(project_gradient=False):
        assert not model._output_weight().grad_fn and not any(
            p._backward_hooks for p in model.parameters()) or model.tied
    model.requires_grad_(False)
    with model.assume_unit_norm(): assert_close(model(X), model(X))


# --- Scaling and skip

def scaled(cls=GlobalScaling, **options):
    model = small(scaling=cls.name, **options)
    model.scaling.shift.copy_(T([1., -1.]))
    model.scaling.scale.copy_(T([2.]) if cls is GlobalScaling else T([2., 4.]))
    return model


@pytest.mark.parametrize('cls', [GlobalScaling, ColumnScaling])
def test_scaling_stands_around_the_model(cls):
    model, plain = scaled(cls), small()
    shift, scale = model.scaling.shift, model.scaling.scale
    assert_close(model.to_scaled(X), (X - shift) / scale)
    assert_close(model.targets_to_scaled(X, 7*X), (X - shift) / scale)
    assert_close(model.from_scaled(X), X*scale + shift)
    assert_close(model.encode(X), plain.encode((X - shift) / scale))
    assert_close(model(X), plain((X - shift) / scale)*scale + shift)
    with model.assume_scaled():
        assert_close(model(X), Y)
        assert_close(model.targets_to_scaled(X, 7*X), X)
        with model.assume_scaled(): pass
        assert model.assumes_scaled
    assert not model.assumes_scaled


def transcoder(**options):
    "Two inputs, two targets of another unit, and a skip."
    model = SparseAutoencoder(2, 3, hidden_dims=(), decoder_norm=None, output_dim=2, skip=True, **options)
    model.load_state_dict(small().state_dict(), strict=False)
    with torch.no_grad(): model.skip_mat.copy_(T([[1., 2.], [0., -1.]]))
    return model


def test_skip_adds_a_linear_map_of_the_inputs():
    model = transcoder()
    skip = T([[5., -2.], [3., 0.]])
    assert_close(model(X), Y + skip)
    assert_close(model.to_output(Y, X), Y + skip)
    assert_close(reconstruct(model, X)[1], Y + skip)
    assert small().to_output(Y, X) is Y
    assert output_shape(model, X) == (2, 2) and output_shape(small(), torch.ones(5, 2)) == (5, 2)
    wide = SparseAutoencoder(2, 3, output_dim=7)
    assert output_shape(wide, torch.ones(4, 5, 2)) == (4, 5, 7)


def narrow(input_dim=1):
    "Transcoder of one target and two layers."
    torch.manual_seed(0)
    model = SparseAutoencoder(input_dim, 3, hidden_dims=(4,), decoder_norm=None, output_dim=1, skip=True)
    for p in model.parameters(): p.data.normal_()
    return model


@pytest.mark.parametrize('make', [lambda: small(), lambda: transcoder(), narrow, lambda: narrow(2)])
def test_folding_a_scaling_changes_no_output(make):
    model = make().double()
    scaling = model.new_scaling('global')
    count = len(scaling.scale)
    scaling.shift.copy_(torch.arange(1., len(scaling.shift) + 1))
    scaling.scale.copy_(T({1: [2.], 2: [2., 5.], 3: [2., 2., 5.], 4: [2., 2., 5., 5.]}[count]))
    x = X.double()[:, :model.input_dim]
    before = model(x)
    model.set_scaling(scaling)
    assert model.scaling is scaling
    assert_close(model(x), before)
    assert model.fold_scaling() is model and model.scaling is None
    assert_close(model(x), before)
    with model.in_scaled_unit(scaling):
        assert model.assumes_scaled and model.scaling is scaling
    assert model.scaling is None and not model.assumes_scaled
    assert_close(model(x), before)
    assert model.fold_scaling() is model     # nothing to fold


def test_half_precision_keeps_a_scaling_that_single_precision_folds():
    for dtype, kept in ((torch.float32, False), (torch.bfloat16, True)):
        model = SparseAutoencoder(2, 3, hidden_dims=(), dtype=dtype)
        with model.in_scaled_unit(model.new_scaling('global')): pass
        assert (model.scaling is not None) == kept


def test_a_scaling_that_is_the_models_own_stays():
    model = scaled()
    expected, own = model(X), model.scaling
    with model.in_scaled_unit(own): pass
    assert model.scaling is own
    assert_close(model(X), expected)


def test_a_scaling_of_a_new_model_is_set_without_a_change_of_weights():
    model = SparseAutoencoder(2, 3, hidden_dims=())
    before = model.encoder_mat_1.clone()
    scaling = model.new_scaling('columns')
    scaling.shift.fill_(3.)
    model.set_scaling(scaling)     # all biases are 0
    assert torch.equal(model.encoder_mat_1, before) and not model.encoder_bias_1.any()
    with pytest.raises(ValueError, match="scaling must be 'global' to be folded, got 'columns'"):
        model.fold_scaling()
    with pytest.raises(ValueError, match="scaling must be 'global' to be folded"):
        small().set_scaling(scaling)


def test_rescaling_multiplies_codes_and_outputs():
    for factor in (0.5, 4.):
        model = small()
        assert model.rescale(factor) is model
        assert_close(model.encode(factor*X), factor*Z)
        assert_close(model(factor*X), factor*Y)
        own = scaled()
        expected, z = own(X), own.encode(X)
        own.rescale(factor)
        assert_close(own(factor*X), factor*expected)
        assert_close(own.encode(factor*X), z)     # codes have no unit
    for model in (small(activation='sigmoid'), SparseAutoencoder(2, 3, batch_norm=True)):
        with pytest.raises(ValueError, match='normalize must be False for a model with'): model.rescale(2.)
    with pytest.raises(ValueError, match='factor must be above 0'): small().rescale(0)


# --- Start from data

def test_start_from_data():
    torch.manual_seed(0)
    x = torch.randn(50, 2) + T([5., 1.])
    model = small('atom')
    assert model.initialize(x) is model
    center = geometric_median(x)
    assert_close(model.decoder_bias_1.detach(), center)
    assert_close(model.encoder_mat_1, model.decoder_mat_1.T)
    assert_close(model.decoder_mat_1.norm(dim=0), torch.ones(3))
    assert_close(model.encode_layers(center[None]).pre, torch.zeros(1, 3), atol=1e-5, rtol=0)
    tied = small('atom', TiedWeightSparseAutoencoder).initialize(x)
    assert_close(tied.encode_layers(center[None]).pre, torch.zeros(1, 3), atol=1e-5, rtol=0)


def test_start_from_principal_directions():
    torch.manual_seed(0)
    x = torch.randn(200, 2) * T([3., 0.1]) + T([5., 1.])
    model = small('atom').initialize(x, directions='principal')
    assert_close(model.decoder_bias_1.detach(), x.mean(0))
    atoms = model.decoder_mat_1.detach()
    assert_close(atoms[0, 0].abs(), T(1.), atol=1e-2, rtol=0)
    with pytest.raises(ValueError, match='directions must be'): model.initialize(x, directions='pca')


def test_start_of_a_transcoder_from_data():
    torch.manual_seed(0)
    x, y = torch.randn(50, 2) + 5, torch.randn(50, 2) - 3
    model = transcoder().initialize(x, target=y)
    assert_close(model.decoder_bias_1.detach(), geometric_median(y))
    assert_close(model.encoder_mat_1.norm(dim=1), torch.ones(3))
    assert_close(model.encode_layers(geometric_median(x)[None]).pre, torch.zeros(1, 3), atol=1e-5,
                 rtol=0)
    with_unit = transcoder(scaling='global')
    with_unit.scaling.shift.fill_(1.)
    with_unit.scaling.scale.fill_(2.)
    with_unit.initialize(x, target=y)
    assert_close(with_unit.decoder_bias_1.detach(), geometric_median((y - 1) / 2))
    wide = SparseAutoencoder(2, 3, output_dim=3, scaling='global')
    wide.scaling.shift.copy_(torch.arange(5.))
    z = torch.rand(6, 3)
    assert_close(wide.targets_to_scaled(z, torch.rand(6, 2)), z - T([2., 3., 4.]))


def test_start_from_data_is_refused():
    x = torch.rand(9, 2)
    for model in (SparseAutoencoder(2, 3), SparseAutoencoder(2, 3, hidden_dims=(), batch_norm=True)):
        with pytest.raises(ValueError, match=r'hidden_dims must be \(\) and batch_norm False'):
            model.initialize(x)
    for bad in (torch.rand(9, 3), torch.rand(9, 1, 2)):
        with pytest.raises(ValueError, match=r'x must have shape \(n, 2\)'): small().initialize(bad)
    with pytest.raises(ValueError, match='l0 must be above 0'):
        small(activation='jumprelu').initialize(x, l0=0)


def test_rows_that_a_start_from_data_reads(monkeypatch):
    read, passed = [], []
    monkeypatch.setattr(models, 'sample_rows', lambda rows, n: read.append(n) or sample_rows(rows, n))
    model = small(activation='jumprelu')
    model.activation.set_initial_threshold = lambda pre, l0: passed.append((len(pre), l0))
    model.initialize(open_rows('x', torch.randn(5000, 2)), l0=1.5)
    assert read == [16384] and passed == [(4096, 3.)]


def test_a_start_from_data_does_not_depend_on_autocast():
    torch.manual_seed(0)
    x = torch.randn(50, 2) + T([5., 1.])
    expected, median = small('atom').initialize(x), geometric_median(x)
    with torch.autocast('cpu', torch.bfloat16):
        found = small('atom').initialize(x)
        assert torch.equal(geometric_median(x), median)
    for name, value in expected.state_dict().items(): assert torch.equal(found.state_dict()[name], value)


def test_geometric_median():
    line = T([[0.], [1.], [10.]])                       # in one dimension: the median
    assert_close(geometric_median(line, max_steps=1000), T([1.]), atol=1e-3, rtol=0)
    corners = T([[0., 0.], [2., 0.], [0., 2.], [2., 2.], [1., 1.]])
    for scale, shift in ((1., 0.), (1e-30, 0.), (1e30, 0.), (1., 1e4)):
        assert_close(geometric_median(corners*scale + shift), T([1., 1.])*scale + shift)
    assert torch.equal(geometric_median(T([[7., 3.]]*4)), T([7., 3.]))
    assert geometric_median(corners.to(torch.int64)).dtype == torch.float32
    for dtype in (torch.float64, torch.bfloat16):
        assert_close(geometric_median(corners.to(dtype)), T([1., 1.], dtype=dtype))
    torch.manual_seed(0)
    x = torch.randn(40, 3, dtype=torch.float64).exp()
    median = geometric_median(x, 1e-12, 5000)
    unit = torch.nn.functional.normalize(x - median)
    assert_close(unit.sum(0), torch.zeros(3, dtype=torch.float64), atol=1e-4, rtol=0)  # no pull
    one_step = geometric_median(x, max_steps=1)
    weight = 1 / (x - x.mean(0)).norm(dim=1)
    assert_close(one_step, (weight[:, None]*x).sum(0) / weight.sum())
    assert_close(geometric_median(x, tolerance=1e9), one_step)    # ends after the first step
    # Steps from 0.25 to 0.1 and to 1/28; the mean distance from 0.25 is 0.375, and 0.15/0.375 = 0.4
    line = T([[0.], [0.], [0.], [1.]])
    for tolerance, expected in ((0.35, 1/28), (0.41, 0.1)):
        assert_close(geometric_median(line, tolerance), T([expected]))


def test_principal_directions():
    x = T([[3., 0., 0.], [-3., 0., 0.], [0., 1., 0.], [0., -1., 0.]])
    for count, signs in ((1, [0]), (2, [0, 0]), (4, [0, 1, 0, 1]), (6, [0, 1, 2, 0, 1, 2]),
                         (9, [0, 1, 2, 0, 1, 2])):
        directions = principal_directions(x, count)
        assert_close(directions.abs(), torch.eye(3)[signs])
        half = len(directions) // 2
        assert_close(directions[half + len(directions) % 2:], -directions[:half])
    seven = principal_directions(torch.diag(T([4., 3., 2., 1.])), 7)    # three, and their negatives
    assert_close(seven.abs(), torch.eye(4)[[0, 1, 2, 0, 1, 2]])
    assert principal_directions(x.bfloat16(), 2).dtype == torch.float32
    assert principal_directions(x.double(), 2).dtype == torch.float64


# --- Models of users

class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(T(2.))
    def encode(self, x): return self.scale*x
    def decode(self, z): return z / self.scale


def test_a_module_without_the_methods_is_refused():
    with pytest.raises(TypeError, match='model must be a torch.nn.Module .* got list'): check_autoencoder([])
    with pytest.raises(TypeError, match='Linear has no encode and no decode'):
        check_autoencoder(nn.Linear(2, 2))
    model = Foreign()
    assert check_autoencoder(model) is model
    model.decode = None
    with pytest.raises(TypeError, match='Foreign has no decode$'): check_autoencoder(model)


def test_the_more_derived_of_encode_and_encode_layers_counts():
    class Layers(Foreign):
        def encode_layers(self, x): return Encoded(self.scale*x)
    class Later(Layers):
        def encode(self, x): return 3*x
    class Both(Later):
        def encode(self, x): return 3*x
        def encode_layers(self, x): return Encoded(5*x)
    assert [has_encode_layers(cls()) for cls in (Foreign, Layers, Later, Both)] == [
        False, True, False, True]
    x = torch.ones(1, 2)
    assert [encode_batch(cls(), x).z[0, 0].item() for cls in (Foreign, Layers, Later, Both)] == [2, 2, 3, 5]
    model = Both()
    model.encode = lambda x: 7*x       # set on the object: more derived than any class
    assert not has_encode_layers(model)
    model.encode_layers = lambda x: Encoded(9*x)
    assert has_encode_layers(model)


def test_results_of_a_module_that_are_refused():
    class Bad(Foreign):
        def __init__(self, z):
            super().__init__()
            self.z = z
        def encode(self, x): return self.z
    x = torch.ones(3, 2)
    with pytest.raises(TypeError, match='model.encode must return floating-point .* torch.int64'):
        encode_batch(Bad(torch.ones(3, 2, dtype=torch.int64)), x)
    with pytest.raises(TypeError, match='model.encode must return'): encode_batch(Bad([1.]), x)
    class BadLayers(Foreign):
        def encode_layers(self, x): return x
    with pytest.raises(TypeError, match='model.encode_layers must return Encoded, got Tensor'):
        encode_batch(BadLayers(), x)
    for target, word in ((None, 'input'), (torch.ones(3, 2), 'target')):
        with pytest.raises(ValueError, match=rf'must return shape \(3, 2\), as its {word} has; got \(3, 1\)'):
            decode_batch(Foreign(), torch.ones(3, 1), x, target)
    assert_close(decode_batch(Foreign(), 2*x, torch.ones(9, 9), x), x)


def test_what_is_known_of_adapted_models():
    adapted = as_autoencoder(Foreign())
    flags = adapted.activation
    assert not (flags.homogeneous or flags.independent_samples or flags.vmappable or adapted.fixes_l0
                or adapted.gradient_checkpointing) and adapted.latent_dim is None
    assert as_autoencoder(adapted) is adapted and adapted.config() == {'scale': []}
    adapted.normalize_decoder_weights()      # it has none
    with adapted.assume_unit_norm(): pass

    class Changed(SparseAutoencoder):
        def encode(self, x): return super().encode(x) - 1
    class Layers(SparseAutoencoder):
        def encode_layers(self, x, keep_hidden=True): return super().encode_layers(x)
    changed, layers = as_autoencoder(Changed(4, 3)), as_autoencoder(Layers(4, 3))
    assert isinstance(changed.activation, models._UnknownActivation)
    assert type(layers.activation) is type(SparseAutoencoder(4, 3).activation)
    assert not layers.activation.nonnegative and not layers.activation.vmappable
    assert layers.module.activation.nonnegative      # a copy has been changed
    assert changed.config() == changed.module.config() and layers.latent_dim == 3
    for adapted in (changed, layers):
        adapted.module.decoder_mat_2.data.mul_(3)
        adapted.normalize_decoder_weights()
        assert_close(adapted.module.decoder_mat_2.norm(dim=1), torch.ones(4))


def test_reasons_why_a_model_is_not_native():
    class Overrides(SparseAutoencoder):
        def decode(self, z): return super().decode(z)
    class Plain(SparseAutoencoder):
        "Adds a method only."
        def more(self): return 1
    assert why_not_native(Foreign()) == 'the model is not of this library'
    assert why_not_native(Overrides(4, 3)) == 'Overrides overrides decode'
    for native in (SparseAutoencoder(4, 3), TiedWeightSparseAutoencoder(4, 3), Plain(4, 3)):
        assert why_not_native(native) is None and is_native(native) and as_autoencoder(native) is native
    model = SparseAutoencoder(4, 3)
    model.note, model.note_of = 'text', len
    with model.assume_unit_norm(): assert is_native(model)
    model.encode = model.encode
    assert why_not_native(model) == 'the model has encode set'
    for register in ('register_forward_hook', 'register_forward_pre_hook'):
        model = SparseAutoencoder(4, 3)
        handle = getattr(model.activation, register)(lambda *a: None)
        assert 'has forward hooks' in why_not_native(model)
        handle.remove()
        own = getattr(model, register)(lambda *a: None)     # encode and decode do not call it
        assert is_native(model)
        own.remove()
        register = getattr(nn.modules.module, register.replace('forward', 'module_forward'))
        handle = register(lambda *a: None)
        assert why_not_native(model) == 'there are forward hooks for all modules'
        handle.remove()
        assert is_native(model)


def test_counts_of_active_latents():
    code = T([[1., 0., -2.], [0., 0., -1.]])
    assert count_active(code).tolist() == [1, 0, 2]
    assert count_active(code.abs(), nonnegative=True).tolist() == [1, 0, 2]
    assert count_active(torch.ones(5, 2, 3)).tolist() == [5]*6
    assert count_active(code.requires_grad_()).dtype == torch.float32
    assert counting_dtype(2**24) == torch.float32 and counting_dtype(2**24 + 1) == torch.float64
    class Sparse:
        def active(self): return 'counts'
    assert count_active(Sparse()) == 'counts'


def test_parameters_that_can_be_trained():
    model = SparseAutoencoder(4, 3)
    model.encoder_bias_1.requires_grad_(False)
    assert [id(p) for p in trainable_parameters(model)] == [
        id(p) for p in model.parameters() if p is not model.encoder_bias_1]
    with pytest.raises(ValueError, match='SparseAutoencoder has none'):
        trainable_parameters(SparseAutoencoder(4, 3).requires_grad_(False))
    with pytest.raises(ValueError, match='model must not be float16 in training'):
        trainable_parameters(SparseAutoencoder(4, 3, dtype=torch.float16))
    with torch.inference_mode(): made_within = SparseAutoencoder(4, 3)
    with pytest.raises(ValueError, match='must not be made within torch.inference_mode'):
        trainable_parameters(made_within)
    with torch.inference_mode(), pytest.raises(RuntimeError): trainable_parameters(model)
    pruned = nn.utils.prune.l1_unstructured(SparseAutoencoder(4, 3), 'encoder_mat_1', 2)
    with pytest.raises(ValueError, match='model.encoder_mat_1 must be a parameter in training'):
        trainable_parameters(pruned)


def test_a_forward_that_differs_is_reported():
    class Other(SparseAutoencoder):
        factor = 1.
        def forward(self, x): return self.factor * self.decode(self.encode(x))

    def reported(model):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            check_forward(model, x)
        return ['model(x) is not model.decode' in str(w.message) for w in caught]

    torch.manual_seed(0)
    x, model = torch.rand(5, 4) + 1, Other(4, 3)
    model.decoder_bias_2.data.fill_(1.)
    for factor, expected in ((1., []), (1.0005, []), (1.1, [True]), (0.9, [True])):
        model.factor = factor
        assert reported(model) == expected
    for forward in (lambda x: None, lambda x: x[:, :1], lambda x: torch.cat([x, x]), lambda x: 1 / 0):
        model.forward = forward
        assert reported(model) == []      # nothing that could be compared
    large = Other(4, 3)
    large.decoder_bias_2.data.fill_(1e4)
    large.factor = 1.0005                 # by 5, which is less than a thousandth
    assert reported(large) == []
    native = SparseAutoencoder(4, 3)
    assert reported(native) == []
    native.decoder_bias_2.data.fill_(1.)
    state = torch.get_rng_state()
    native.register_forward_hook(lambda module, args, out: 2*out)
    assert reported(native) == [True]
    assert native.training and torch.equal(torch.get_rng_state(), state)


# --- Threads

def in_thread(function):
    "Return the result of a function in another thread, `None` if it takes over 5 seconds."
    result = []
    thread = threading.Thread(target=lambda: result.append(function()), daemon=True)
    thread.start()
    return thread, result


def test_lock_is_handed_over_between_steps():
    lock, order = TrainingLock(), []
    with lock.held():
        with lock.held(): order.append('nested')      # the same thread holds it already
        assert lock._lock.locked()
        thread, _ = in_thread(lambda: [lock.acquire(), order.append('other'), lock.release()])
        for _ in range(500):
            if lock._turn.locked(): break
            threading.Event().wait(0.01)
        order.append('before')
        lock.hand_over()
        order.append('after')
        thread.join(5)
        lock.hand_over()      # no other thread waits: it stays with this one
        assert lock._lock.locked() and lock._owner == threading.get_ident()
    assert order == ['nested', 'before', 'other', 'after'] and not lock._lock.locked()
    assert lock._owner is None
    with lock.held(), lock.released(): assert not lock._lock.locked()
    assert not lock._lock.locked()


def test_one_run_trains_a_model_at_a_time():
    model, other = SparseAutoencoder(4, 3), SparseAutoencoder(4, 3)
    assert step_lock(model) is None and between_steps(model) is model
    with hold_steps(model): pass
    with pytest.raises(ZeroDivisionError), in_training(model) as lock:
        assert step_lock(model) is lock and step_lock(other) is None and lock._lock.locked()
        assert isinstance(lock, TrainingLock) and hold_steps(model) is not None
        shared = SparseAutoencoder(4, 3)
        shared.encoder_bias_1 = model.encoder_bias_1
        for busy in (model, shared):
            with pytest.raises(ValueError, match='model must not be in training'), in_training(busy): pass
        with in_training(other): pass
        copied = between_steps(model)
        assert copied is not model
        assert_close(copied.state_dict(), model.state_dict())
        thread, result = in_thread(lambda: between_steps(model))
        thread.join(0.2)
        assert thread.is_alive() and not result      # it waits for the end of the step
        for _ in range(100):
            lock.hand_over()
            thread.join(0.05)
            if result: break
        assert result[0] is not model
        1 / 0
    assert step_lock(model) is None and not lock._lock.locked()
    with in_training(model): pass


def test_master_precision():
    model = SparseAutoencoder(4, 3, dtype=torch.bfloat16)
    model.register_buffer('mean', torch.ones(2, dtype=torch.float16))
    model.register_buffer('scale', torch.ones(2, dtype=torch.float64))
    with pytest.raises(ZeroDivisionError), master_precision(model):
        assert {p.dtype for p in model.parameters()} == {torch.float32} == {model.mean.dtype}
        assert model.scale.dtype == torch.float64
        model(torch.rand(2, 4)).sum().backward()
        1 / 0
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and model.mean.dtype == torch.float16
    assert model.scale.dtype == torch.float64 and all(p.grad is None for p in model.parameters())
    single = SparseAutoencoder(4, 3)
    single(torch.rand(2, 4)).sum().backward()
    with master_precision(single): pass
    assert single.encoder_mat_1.grad is not None


def test_a_start_from_rows_that_are_read_by_index_is_that_from_the_tensor():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + 5
    started = []
    for data in (x, open_rows('x', x)):
        torch.manual_seed(0)
        started.append(SparseAutoencoder(3, 6, hidden_dims=()).initialize(data))
    for name, value in started[0].state_dict().items():
        assert_close(started[1].state_dict()[name], value)


def test_set_encoder():
    model = small('atom')
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(20, model.input_dim, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    linear = model.encode(x)
    assert model.set_encoder(BackwardElimination(1)) is model
    assert ((model.encode(x) != 0).sum(1) <= 1).all() and model.fixes_l0
    assert model.config()['encoder'] == dict(name='backward_elimination', k=1, candidates=None, steps=10)
    assert model.set_encoder({'name': 'unrolled', 'steps': 2}).encoder.steps == 2
    assert_close(model.set_encoder('linear').encode(x), linear, rtol=0, atol=0)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('options, error', [
    (dict(hidden_dims=(5,)), 'hidden_dims'), (dict(hidden_dims=(), batch_norm=True), 'batch_norm'),
    (dict(hidden_dims=(), output_dim=6), 'output_dim')])
def test_set_encoder_refuses_models_whose_decoder_does_not_fit(options, error):
    model = SparseAutoencoder(6, 9, **options)
    with pytest.raises(ValueError, match=f"encoder must be 'linear'.*{error}"):
        model.set_encoder(BackwardElimination(2))
    assert model.encoder.name == 'linear'
    with pytest.raises(ValueError, match="encoder must be 'linear', 'unrolled'"): model.set_encoder('lstm')
