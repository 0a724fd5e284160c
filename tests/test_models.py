"Models: state, dtypes, shapes."
import copy
import itertools
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from sparse_ae.activations import CODE_ACTIVATIONS, ENCODERS, HardThreshold, SoftThreshold
from sparse_ae import activations, models
from sparse_ae.models import (DECODER_NORMS, BaseSparseAutoencoder, SparseAutoencoder,
                              TiedWeightSparseAutoencoder, as_autoencoder, linear_stack)

CLASSES = [SparseAutoencoder, TiedWeightSparseAutoencoder]
ACTIVATIONS = [{'name': name, 'k': 3} if name in ('topk', 'abs_topk', 'group_max', 'batch_topk')
               else name for name in CODE_ACTIVATIONS]
ACTIVATIONS += [SoftThreshold(learned=True), HardThreshold(learned=True)]
ENCODER_CONFIGS = [{'name': name, 'k': 2} if name.startswith(('matching', 'backward')) else name for name in ENCODERS]
ENCODER_CONFIGS.append({'name': 'matching_pursuit', 'k': 3, 'residual_threshold': 0.5,
                        'stop_on_duplicate_support': True})


@pytest.mark.parametrize('cls,activation,norm,dtype', list(itertools.product(
    CLASSES, ACTIVATIONS, DECODER_NORMS, [torch.float32, torch.float64, torch.bfloat16])))
def test_state_round_trip(cls, activation, norm, dtype):
    kwargs = dict(dtype=dtype, hidden_dims=(5,), activation=activation, decoder_norm=norm)
    model, other = cls(6, 3, **kwargs), cls(6, 3, **kwargs)
    x = torch.rand(4, 6).to(dtype)
    with torch.no_grad():
        for p in model.parameters(): p += torch.rand_like(p) - 0.5
    for mode in (True, False):
        model.train(mode), other.train(mode)
        model(x).sum().backward()  # a running threshold moves in train mode
        other.load_state_dict(model.state_dict())
        assert torch.equal(model(x), other(x)) and model(x).dtype == dtype
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert torch.equal(model(x), other(x)) and torch.equal(model(x), copy.deepcopy(model)(x))
    assert torch.equal(model(x), pickle.loads(pickle.dumps(model))(x))
    assert cls(**model.config()).config() == model.config()


@pytest.mark.parametrize('cls,encoder,activation,dtype', list(itertools.product(
    CLASSES, ENCODER_CONFIGS, ACTIVATIONS, [torch.float64, torch.bfloat16])))
def test_every_encoder_takes_every_activation(cls, encoder, activation, dtype):
    model = cls(6, 9, dtype=dtype, hidden_dims=(), activation=activation, encoder=encoder)
    for p in model.parameters(): p.data += 0.3*torch.randn_like(p)  # biases start at zero
    x = torch.rand(2, 4, 6).to(dtype)
    z = model.encode(x)
    assert z.shape == (2, 4, 9) and z.dtype == dtype and z.isfinite().all()
    model.decode(z).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    again = cls(**model.config())
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), model.eval()(x))


@given(st.integers(1, 9), st.integers(1, 9), st.none() | st.lists(st.integers(1, 6), max_size=3),
       st.booleans(), st.sampled_from(list(DECODER_NORMS)))
def test_any_shape(input_dim, latent_dim, hidden_dims, tied, norm):
    model = CLASSES[tied](input_dim, latent_dim, hidden_dims=hidden_dims, decoder_norm=norm)
    for lead in ((), (1,), (2, 3), (0,)):
        x = torch.rand(*lead, input_dim)
        assert model.encode(x).shape == (*lead, latent_dim) and model(x).shape == x.shape
    widths = (input_dim, *model.hidden_dims, latent_dim)
    weights = sum(a*b for a, b in zip(widths, widths[1:]))
    assert (sum(p.numel() for p in model.parameters())
            == (1 if tied else 2) * weights + sum(widths[1:]) + sum(widths[:-1]))


@pytest.mark.parametrize('cls', CLASSES)
def test_dead_units_and_features_give_zeros_not_nan(cls):
    for norm in ('row', 'atom'):
        model = cls(4, 3, hidden_dims=(), decoder_norm=norm)
        with torch.no_grad():
            model._output_weight()[1] = 0
            model._output_weight()[:, 2] = 0
        out = model(torch.rand(5, 4))
        out.sum().backward()
        assert out.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters())
        model.normalize_decoder_weights()
        W = model._output_weight()
        assert (W[1] == 0).all() and (W[:, 2] == 0).all()


@pytest.mark.parametrize('cls', CLASSES)
def test_row_wise_normalisation_is_in_place_and_without_gradient(cls):
    model = cls(6, 4, decoder_norm=None)
    names = ['normalize_decoder_weights_row_wise'] + ['normalize_weights_row_wise'] * model.tied
    for name in names:
        with torch.no_grad(): model._output_weight().mul_(3)
        before = model._output_weight().data_ptr()
        getattr(model, name)()
        assert model._output_weight().data_ptr() == before
        assert_close(model._output_weight().norm(dim=1).detach(), torch.ones(6))


def test_autocast():
    model, x = SparseAutoencoder(8, 4), torch.rand(5, 8)
    for p in model.parameters(): p.data += 0.3*torch.randn_like(p)  # biases start at zero
    with torch.autocast('cpu', torch.bfloat16): out = model(x)
    assert out.dtype == torch.bfloat16
    assert_close(out.float(), model(x), atol=0.05, rtol=0.05)


def test_conversion_to_another_dtype():
    model = SparseAutoencoder(8, 4).double()
    assert model.dtype == torch.float64 and model.config()['dtype'] == torch.float64
    assert model(torch.rand(2, 8, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(TypeError,
                       match="x must have the model's dtype torch.float64, got torch.float32"):
        model(torch.rand(2, 8))


def test_base_class_is_shared():
    assert (SparseAutoencoder.encode is TiedWeightSparseAutoencoder.encode
            is BaseSparseAutoencoder.encode)


def test_the_core_imports_no_engine():
    "Modules of the core contain the mathematics only: no engine, no kernels, no choice by device."
    for module in (models, activations):
        source = Path(module.__file__).read_text()
        imports = [line for line in source.splitlines() if line.startswith(('from', 'import'))]
        assert not any('engine' in line or 'triton' in line for line in imports)
        # `is_compiling` tells a program that is exported for any batch size from a single call
        allowed = 'is_compiling' if module is activations else ' '
        assert not re.search(r"device\.type\s*[!=]=|is_cuda|triton|is_compiling",
                             source.replace(allowed, ''))


@pytest.mark.parametrize('cls', CLASSES)
@pytest.mark.parametrize('hidden_dims', [(), (7, 5)])
def test_layers_are_the_model(cls, hidden_dims):
    model, x = cls(6, 4, hidden_dims=hidden_dims, decoder_norm='atom'), torch.rand(3, 6)
    z = linear_stack(x, model.layers('encoder'))[0].relu()
    assert_close(z, model.encode(x))
    assert_close(linear_stack(z, model.layers('decoder'))[0], model.decode(z))
    for name in ('encoder_mat', 'encoder_bias', 'decoder_bias'):
        assert [p is q for p, q in zip(model.stored(name), (
            model.get_parameter(f'{name}_{i}') for i in range(1, model.depth + 1)))] == [True]*model.depth


def test_unit_norm_is_assumed_within_a_block_only():
    model = SparseAutoencoder(6, 4, decoder_norm='atom')
    with pytest.raises(ZeroDivisionError), model.assume_unit_norm():
        assert model.assumes_unit_norm
        with model.assume_unit_norm(): pass
        assert model.assumes_unit_norm
        1 / 0
    assert not model.assumes_unit_norm and not any(p._backward_hooks for p in model.parameters())
    with model.assume_unit_norm(project_gradient=False):
        assert not any(p._backward_hooks for p in model.parameters())


def test_adapted_models_survive_copies():
    class Foreign(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)
        def encode(self, x): return self.layer(x)
        def decode(self, z): return z @ self.layer.weight
    adapted, x = as_autoencoder(Foreign()), torch.rand(3, 4)
    copied = copy.deepcopy(adapted)
    assert copied.module is not adapted.module
    assert_close(copied.encode_layers(x).z, adapted.encode_layers(x).z)
    with pytest.raises(AttributeError): adapted.rescale
