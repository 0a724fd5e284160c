"Penalties: properties for any code that hypothesis can think of."
import itertools
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch.testing import assert_close

from sparse_ae.losses import (METRICS, PENALTIES, HoyerTarget, Measurements, Metric, Penalty,
                              check_code, check_gradient, get_penalty, hoyer_projection,
                              hoyer_sparseness, hoyer_sparsity_loss, kl_divergence_sparsity_loss,
                              l1_for_sparseness, l1_sparsity_loss, lifetime_sparseness,
                              mean_activation, mean_squared_error, p_norm_sparsity_loss,
                              population_sparseness, total_loss)

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


def test_epsilon_is_below_the_target_and_its_complement():
    for rho, limit in ((0.9, 0.1), (0.2, 0.2)):
        with pytest.raises(ValueError, match=f'epsilon must be above 0 and below {limit}'):
            kl_divergence_sparsity_loss(torch.rand(3, 2), rho, limit + 0.01)
        assert kl_divergence_sparsity_loss(torch.rand(3, 2), rho, limit - 0.01).isfinite()


def test_default_values_of_the_penalties():
    on_target = torch.full((4, 3), 0.05, dtype=torch.float64)
    assert_close(kl_divergence_sparsity_loss(on_target).item(), 0.)
    assert get_penalty('kl').target_sparsity == get_penalty().target_sparsity == 0.05
    below = torch.full((1, 1), 1e-11, dtype=torch.float64)   # on the tangent at 1e-10
    assert_close(kl_divergence_sparsity_loss(below), kl_divergence_sparsity_loss(below, 0.05, 1e-10))
    assert kl_divergence_sparsity_loss(below) != kl_divergence_sparsity_loss(below, 0.05, 1e-9)
    # sqrt(0.249 + 0.001) - sqrt(0.001)
    assert_close(p_norm_sparsity_loss(torch.tensor([-0.249])), torch.tensor(0.5 - 0.0316227766))


def test_p_norm_at_the_ends_of_its_range():
    z = torch.tensor([[3., -5.]])
    assert_close(p_norm_sparsity_loss(z, 1), torch.tensor(4.))
    for p in (0, -0.5, 1.5, 2):
        with pytest.raises(ValueError, match='p must be above 0 and at most 1'):
            p_norm_sparsity_loss(z, p)


def test_codes_that_are_refused():
    for bad, error, message in (([1.], TypeError, 'z must be a tensor .* got list'),
                                (torch.ones(3, dtype=torch.int64), TypeError, 'got torch.int64'),
                                (torch.tensor(1.), ValueError, 'z must have shape'),
                                (torch.ones(3, 0), ValueError, 'z must not be empty')):
        with pytest.raises(error, match=message): check_code(bad)
    one = torch.ones(1)
    assert check_code(one) is one


def test_hoyer_of_hand_set_codes():
    z = torch.tensor([[3., 4.], [-1., 1.], [0., 9.], [0., 0.]])
    expected = torch.tensor([(2**.5 - 1.4) / (2**.5 - 1), 0., 1., 1.])
    assert_close(hoyer_sparseness(z), expected)
    assert_close(hoyer_sparseness(z.reshape(2, 2, 2)), expected.reshape(2, 2))
    assert_close(hoyer_sparsity_loss(z), 1 - expected.mean())
    assert_close(HoyerTarget(0.5)(z), (expected - 0.5).square().mean())
    for function in (hoyer_sparseness, population_sparseness):
        with pytest.raises(ValueError, match='latent_dim must be at least 2 .* got 1'):
            function(torch.ones(4, 1))


def test_hoyer_has_a_gradient_unless_the_code_is_subnormal():
    tiny = torch.finfo(torch.float32).tiny
    for scale, flat in ((tiny, False), (tiny/4, True)):
        z = (scale * torch.tensor([[1., 0.5, 0.]])).requires_grad_()
        sparseness = hoyer_sparseness(z)
        assert sparseness.requires_grad
        grad, = torch.autograd.grad(sparseness.sum(), z)
        assert grad.isfinite().all() and (grad == 0).all() == flat


def test_penalty_objects_are_values():
    "Equal, hashable and not changed in place, as keys of caches have to be."
    for make in (lambda: HoyerTarget(0.8), lambda: Penalty(l1_sparsity_loss)):
        value = make()
        assert value == make() and hash(value) == hash(make())
        with pytest.raises(AttributeError): value.warmup = value.sparseness = 0.5


def test_a_new_penalty_has_no_special_properties():
    penalty = Penalty(l1_sparsity_loss)
    assert (penalty.acts_on, penalty.warmup, penalty.target_sparsity) == ('code', 0, None)
    assert not (penalty.has_target or penalty.of_rates or penalty.vmappable)
    assert penalty.pooled(1.) is None and penalty.with_target(0.3) is penalty
    with pytest.raises(ValueError, match='nonnegative_form must be None with has_target=True'):
        Penalty(kl_divergence_sparsity_loss, has_target=True, nonnegative_form=l1_sparsity_loss)
    with pytest.raises(ValueError, match='acts_on must be'): Penalty(l1_sparsity_loss, 'codes')


def test_properties_of_the_named_penalties():
    table = {name: (p.acts_on, p.warmup, p.has_target, p.of_rates) for name, p in PENALTIES.items()}
    assert table == {'kl': ('code', 0, True, True), 'l1': ('code', 0, False, False),
                     'hoyer': ('code', 0.7, False, False), 'log': ('code', 0, False, False),
                     'l0': ('step', 0, False, False), 'none': ('nothing', 0, False, False)}
    assert all(p.vmappable for p in PENALTIES.values())
    z = torch.tensor([[0., 2.], [4., 0.]])
    assert PENALTIES['l1'].nonnegative_form(z) == l1_sparsity_loss(z) == 1.5


def test_target_of_a_penalty():
    z = torch.rand(5, 3, dtype=torch.float64)
    expected = {rho: kl_divergence_sparsity_loss(z, rho) for rho in (0.05, 0.2, 0.3)}
    bound = partial(kl_divergence_sparsity_loss, target_sparsity=0.3)
    for penalty, rho in ((get_penalty('kl', 0.2), 0.2), (get_penalty(bound, 0.2), 0.3),
                         (get_penalty(kl_divergence_sparsity_loss, 0.2), 0.2),
                         (get_penalty(get_penalty(bound), 0.2), 0.3), (PENALTIES['kl'], 0.05),
                         (get_penalty('kl', 0.3).with_target(0.2), 0.2)):
        assert_close(penalty(z), expected[rho])
    with_epsilon = get_penalty(partial(bound, epsilon=0.1), 0.2)
    zero = torch.zeros(2, 2, dtype=torch.float64)
    assert with_epsilon.target_sparsity == 0.3 and with_epsilon.of_rates
    assert_close(with_epsilon(zero), kl_divergence_sparsity_loss(zero, 0.3, 0.1))
    with pytest.raises(ValueError, match='target_sparsity must be'):
        get_penalty(partial(kl_divergence_sparsity_loss, target_sparsity=1.5))
    for name in ('kl', 'l1'):
        with pytest.raises(ValueError, match='target_sparsity must be'): get_penalty(name, 0)


def test_penalty_of_a_function():
    "A registered function has its entry, also with arguments bound; another one a new object."
    own = lambda z, power=1: z.abs().pow(power).mean()
    assert get_penalty(l1_sparsity_loss) is PENALTIES['l1'] is get_penalty(partial(l1_sparsity_loss))
    assert get_penalty(HoyerTarget(0.4)) == Penalty(HoyerTarget(0.4))
    z = torch.tensor([[-1., 3.]])
    squared = get_penalty(partial(own, power=2))
    assert squared(z) == 5 and get_penalty(own)(z) == 2 and not get_penalty(own).vmappable
    bound = get_penalty(partial(l1_sparsity_loss, target_sparsity=0.2))
    assert bound.nonnegative_form is None and bound.vmappable and bound(z) == 2
    assert get_penalty(partial(p_norm_sparsity_loss, p=1.))(z) == 2
    with pytest.raises(TypeError, match='sparsity_type must be .* the class HoyerTarget'):
        get_penalty(HoyerTarget)
    with pytest.raises(ValueError, match="sparsity_type must be .* got 'L1'"): get_penalty('L1')
    positional = get_penalty(partial(lambda a, z: a*z.abs().mean(), 3.))
    assert positional(z) == 6 and positional.nonnegative_form is None


def encoded(z, pre=None): return SimpleNamespace(z=z, pre=z if pre is None else pre)


class Flags:
    "Code activation whose methods return a value that shows which one was called."
    def __init__(self, nonnegative): self.nonnegative = nonnegative
    def step(self, pre): return (pre > 1).to(pre)
    def penalty_input(self, pre, z): return 10*z


def test_what_a_penalty_acts_on():
    pre = torch.tensor([[0.5, 2.], [3., -4.]])
    z = pre.relu()
    loss = lambda penalty, nonnegative=True: penalty.loss(encoded(z, pre), Flags(nonnegative))
    assert loss(PENALTIES['none']) == 0 and loss(Penalty(own_sum, 'nothing')) == 0
    assert loss(Penalty(own_sum)) == 55 and loss(PENALTIES['l0']) == 0.5
    cheaper = Penalty(own_sum, nonnegative_form=lambda z: 2*z.sum())
    assert loss(cheaper) == 110 and loss(cheaper, nonnegative=False) == 55


def own_sum(z): return z.sum()


def test_penalty_of_a_sparse_code():
    class Sparse:
        values = torch.tensor([1., 2.])
        def dense(self): return torch.tensor([[1., 0.], [0., 2.]])
    flags = Flags(True)
    assert Penalty(own_sum).loss(encoded(Sparse(), 0), flags) == 30
    zero = PENALTIES['none'].loss(encoded(Sparse(), 0), flags)
    assert zero == 0 and zero.ndim == 0 and zero.dtype == torch.float32


def test_results_of_a_penalty_that_are_refused():
    z = torch.ones(2, 3, requires_grad=True)
    for function, message in ((lambda z: 1., 'sparsity_type must return a scalar .* got float'),
                              (lambda z: z.sum(1), r'got shape \(2,\)'),
                              (lambda z: z.sum().detach(), 'is detached from it')):
        with pytest.raises(TypeError, match=message):
            Penalty(function).loss(encoded(z), Flags(True))
    for code in (z, z.detach()):    # of a code without gradient, none is wanted
        loss = code.sum()
        assert check_gradient(code, loss) is loss
    constant = torch.tensor(3.)
    assert check_gradient(z.detach(), constant) is constant


@pytest.mark.parametrize('shape', [(7, 3), (7, 2, 3)])
def test_pooled_penalty_is_that_of_all_rows(shape):
    torch.manual_seed(0)
    z, penalty = torch.rand(shape, dtype=torch.float64), get_penalty('kl', 0.2)
    pooled = penalty.pooled(0.5)
    for part in z.split([4, 1, 2]): pooled.add(SimpleNamespace(z=part.requires_grad_()))
    means = pooled.correct(dict(loss=3., sparsity_loss=2., recon_loss=2.))
    assert means['sparsity_loss'] == pytest.approx(penalty(z).item())
    assert means['loss'] == pytest.approx(2 + 0.5*penalty(z).item()) and means['recon_loss'] == 2


def test_total_loss_is_a_sum():
    recon, sparsity = torch.tensor(2.), torch.tensor(3.)
    assert total_loss(recon, sparsity, 0.5) == 3.5
    assert total_loss(recon, sparsity, 0.5, [torch.tensor(1.), torch.tensor(4.)]) == 8.5
    weight = torch.tensor(0.1)     # a tensor, as in a sweep: the product is rounded once
    half = total_loss(recon.bfloat16(), sparsity.bfloat16(), weight, [torch.tensor(1.).bfloat16()])
    assert half.dtype == torch.bfloat16
    assert half == torch.tensor(3.).bfloat16() + torch.tensor(0.3).bfloat16()
    assert total_loss(recon, sparsity, weight).item() == pytest.approx(2.3)


def test_mean_squared_error_in_the_more_precise_dtype():
    a, b = torch.tensor([1., 3.]), torch.tensor([1., 1.], dtype=torch.float64)
    for pair in ((a, b), (b, a)):
        error = mean_squared_error(*pair)
        assert error == 2 and error.dtype == torch.float64


def test_lifetime_and_population_sparseness():
    z = torch.tensor([[1., 1., 0.], [1., 0., 0.], [1., 0., 0.], [1., 0., 0.]])
    assert_close(lifetime_sparseness(z), torch.tensor([0., 1., 1.]))
    assert_close(lifetime_sparseness(z.reshape(2, 2, 3)), torch.tensor([0., 1., 1.]))
    assert_close(population_sparseness(z)[1:], torch.ones(3))
    assert lifetime_sparseness(z[:2]).shape == (3,)
    with pytest.raises(ValueError, match='z must have at least 2 samples'):
        lifetime_sparseness(z[:1])


def test_l1_norm_for_a_sparseness():
    assert l1_for_sparseness(1, 9) == 1 and l1_for_sparseness(0, 9) == 3
    assert l1_for_sparseness(0.5, 9, 2.) == 4
    z = torch.tensor([0.2, -1.3, 0.4, 0.1], dtype=torch.float64)
    assert l1_for_sparseness(hoyer_sparseness(z).item(), 4, z.norm().item()) == pytest.approx(
        z.abs().sum().item())


def nearest(x, l1, l2):
    "Nearest non-negative point with these norms, by comparison of all supports."
    best = None
    for size in range(1, len(x) + 1):
        for support in map(list, itertools.combinations(range(len(x)), size)):
            centre, part = l1 / size, x[support]
            radius = l2**2 - size*centre**2
            away = part - part.mean()
            if radius < -1e-12 or away.norm() < 1e-9: continue
            y = torch.zeros_like(x)
            y[support] = centre + away * max(radius, 0)**0.5 / away.norm()
            if (y >= -1e-12).all() and (best is None or (y - x).norm() < (best - x).norm()): best = y
    return best


@pytest.mark.parametrize('l1,l2', [(1.2, 1.), (1.5, 1.), (3., 2.), (1.01, 1.)])
def test_hoyer_projection_is_the_nearest_point(l1, l2):
    torch.manual_seed(0)
    x = torch.rand(20, 4, dtype=torch.float64)
    y = hoyer_projection(x, l1, l2)
    assert_close(y.sum(1), torch.full((20,), l1, dtype=torch.float64))
    assert_close(y.norm(dim=1), torch.full((20,), l2, dtype=torch.float64))
    assert (y >= 0).all()
    distances = (y - x).norm(dim=1)
    best = torch.stack([(nearest(row, l1, l2) - row).norm() for row in x])
    assert_close(distances, best)
    assert_close(hoyer_projection(x.reshape(4, 5, 4), l1, l2), y.reshape(4, 5, 4))
    signs = torch.tensor([1., -1., -1., 1.], dtype=torch.float64)
    assert_close(hoyer_projection(signs*x, l1, l2, signed=True), signs*y)


def test_hoyer_projection_at_the_ends():
    flat, one_hot = torch.full((4,), 0.5), torch.tensor([0., 1., 0., 0.])
    x = torch.tensor([0.1, 0.9, 0.2, 0.3])
    assert_close(hoyer_projection(x, 2.), flat, atol=1e-3, rtol=0)
    assert_close(hoyer_projection(x, 1.), one_hot, atol=1e-3, rtol=0)
    equal = hoyer_projection(torch.ones(4), 1.5)     # all directions are equally near
    assert_close(torch.stack([equal.sum(), equal.norm()]), torch.tensor([1.5, 1.]))
    assert (equal.diff() < 0).all()
    for tied in ([0.1, 0.1, 0.1], [0.7, 0.7, 0.7, -3.], [1e6]*3, [1., 1., 0.]):    # sums are rounded
        y = hoyer_projection(torch.tensor(tied), 1.2)
        assert_close(torch.stack([y.sum(), y.norm()]), torch.tensor([1.2, 1.]))
        assert (y[:3].diff() <= 0).all() and (y >= 0).all()
    small = torch.tensor([1., 0.5, 0.3, -3.])      # the last entry becomes 0
    assert_close(hoyer_projection(1e-9*small, 1.6e-9, 1e-9), 1e-9*hoyer_projection(small, 1.6),
                 atol=0, rtol=1e-5)
    rows = torch.stack([torch.ones(4), x, torch.zeros(4)])     # each row by itself
    assert_close(hoyer_projection(rows, 1.5), torch.stack([hoyer_projection(row, 1.5) for row in rows]))
    assert (hoyer_projection(-x, 1.5) >= 0).all() and (hoyer_projection(-x, 1.5, signed=True) <= 0).all()
    for scale in (1e-25, 1e-20, 1e20):       # only directions count
        assert_close(hoyer_projection(scale*small, 1.6), hoyer_projection(small, 1.6))
    with pytest.raises(ValueError, match=r'between l2=2 and sqrt\(n\)\*l2=4, got 5'): hoyer_projection(x, 5, 2)
    for l1, l2 in ((0.99, 1.), (2.01, 1.), (1., 2.)):
        with pytest.raises(ValueError, match='l1 must be between l2='): hoyer_projection(x, l1, l2)
    for l1, l2 in ((0, 1.), (1., -1.)):
        with pytest.raises(ValueError, match='l[12] must be above 0'): hoyer_projection(x, l1, l2)


def test_metrics_of_hand_set_counts():
    measured = Measurements(n=4, active=torch.tensor([4, 0, 1, 1]))
    assert METRICS['l0'].value(measured) == 1.5 and METRICS['dead_fraction'].value(measured) == 0.25
    assert METRICS['l0'].in_history and METRICS['dead_fraction'].in_history
    many = Measurements(n=1, active=torch.full((3,), 2**24 + 1))    # beyond single precision
    assert METRICS['l0'].value(many) == 3*(2**24 + 1)
    plain = Metric('name', 'unit', METRICS['l0'].value)
    assert not plain.in_history and not plain.from_codes
