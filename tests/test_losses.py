"Penalties: properties for any code that hypothesis can think of."
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch.testing import assert_close

from sparse_ae.losses import (PENALTIES, get_penalty, hoyer_sparseness, hoyer_sparsity_loss,
                              kl_divergence_sparsity_loss, l1_sparsity_loss, mean_activation)

finite = st.floats(-2.0**127, 2.0**127, width=32)
codes = arrays('float32', array_shapes(min_dims=2, max_dims=4, min_side=2, max_side=8),
               elements=finite).map(torch.from_numpy)
moderate = arrays('float64', array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=8),
                  elements=st.floats(-5, 5)).map(torch.from_numpy)
rates = st.floats(0, 3)
targets = st.floats(0.001, 0.999)


@given(codes)
def test_hoyer_lies_between_0_and_1(z):
    value = hoyer_sparseness(z)
    assert value.shape == z.shape[:-1] and ((value >= 0) & (value <= 1)).all()
    assert 0 <= hoyer_sparsity_loss(z) <= 1


@given(moderate, st.floats(1e-6, 1e6))
def test_hoyer_does_not_see_the_scale(z, scale):
    z = z * (z.abs() > 1e-3)
    assert_close(hoyer_sparseness(z * scale), hoyer_sparseness(z), atol=1e-9, rtol=0)


@given(moderate)
def test_hoyer_gradient_is_finite_and_orthogonal(z):
    z = (z * (z.abs() > 1e-3)).requires_grad_()
    grad, = torch.autograd.grad(hoyer_sparsity_loss(z), z)
    assert grad.isfinite().all() and ((grad*z).sum(-1).abs() < 1e-9).all()


@given(rates, targets)
def test_kl_points_back_to_the_target(rate, target):
    z = torch.full((3, 2), rate, dtype=torch.float64, requires_grad=True)
    value = kl_divergence_sparsity_loss(z, target, epsilon=1e-4)
    grad, = torch.autograd.grad(value, z)
    assert value >= -1e-12 and value.isfinite()
    if rate > target + 1e-6: assert (grad > 0).all()
    if 0 < rate < target - 1e-6: assert (grad < 0).all()


@given(rates, rates, st.floats(0, 1), targets)
def test_kl_is_convex_in_the_rate(a, b, t, target):
    value = lambda rate: kl_divergence_sparsity_loss(
        torch.full((1, 1), rate, dtype=torch.float64), target, 1e-4).item()
    assert (value(t*a + (1-t)*b)
            <= t*value(a) + (1-t)*value(b) + 1e-6 * (1 + abs(value(a)) + abs(value(b))))


@pytest.mark.parametrize('rate', [1e-10, 1 - 1e-10])
def test_kl_has_no_step_at_the_cut(rate):
    "Value and slope on both sides of epsilon and 1 - epsilon agree."
    def both(r):
        z = torch.tensor([[r]], dtype=torch.float64, requires_grad=True)
        value = kl_divergence_sparsity_loss(z, 0.05)
        return value.item(), torch.autograd.grad(value, z)[0].item()
    inner, outer = (both(rate + 1e-13 * (1 if rate < 0.5 else -1)),
                    both(rate - 1e-13 * (1 if rate < 0.5 else -1)))
    assert inner == pytest.approx(outer, rel=5e-3)


@given(codes)
def test_penalties_take_any_leading_shape(z):
    z = z.clamp(-2, 2)
    flat = z.reshape(-1, z.shape[-1])
    for name in PENALTIES: assert_close(get_penalty(name)(z), get_penalty(name)(flat))
    assert_close(mean_activation(z), flat.relu().mean(0))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', PENALTIES)
def test_penalties_in_every_format(name, dtype):
    torch.manual_seed(0)
    z = torch.rand(50, 8).to(dtype).requires_grad_()
    value = get_penalty(name)(z)
    oracle = get_penalty(name)(z.detach().double())
    assert value.ndim == 0 and (abs(value.item() - oracle.item())
                                < {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-6))
    if name != 'none': assert torch.autograd.grad(value, z)[0].isfinite().all()


def test_l1_of_a_hand_set_code():
    assert l1_sparsity_loss(torch.tensor([[1., -2.], [0., 5.]])) == 2


@pytest.mark.parametrize('bad', [0, 1, -0.1, 1.5, math.nan, '0.1', None])
def test_targets_outside_the_range(bad):
    with pytest.raises((ValueError, TypeError), match='target_sparsity must be'):
        kl_divergence_sparsity_loss(torch.rand(3, 2), bad)


@pytest.mark.parametrize('bad', [0, -1, 0.05, 0.5])
def test_epsilon_that_hides_the_target(bad):
    with pytest.raises(ValueError, match='epsilon must be above 0 and below 0.05'):
        kl_divergence_sparsity_loss(torch.rand(3, 2), 0.05, bad)
