"""Any combination of the independent choices, any numbers, any layout of the data.

    python tests/faults/test_numbers.py --all     # the full product of the choices"""
import itertools
import math
import random
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sparse_ae import (AnnealedPNorm, HoyerTarget, SparseAutoencoder, TiedWeightSparseAutoencoder,
                       TrainingDiverged, evaluate_sparse_autoencoder, match_dictionaries)
from sparse_ae.activations import CODE_ACTIVATIONS, ENCODERS
from sparse_ae.losses import PENALTIES
from sparse_ae.measures import best_matches
from sparse_ae.models import DECODER_NORMS
from sparse_ae.scaling import SCALINGS
from sparse_ae.training import Trainer

CHOICES = dict(
    hidden_dims=[(), None, (7, 5)],
    activation=[dict(name=name, **(dict(k=2) if 'top' in name or 'max' in name else {}))
                for name in CODE_ACTIVATIONS],
    sparsity_type=[*PENALTIES, HoyerTarget(0.5), AnnealedPNorm()],
    decoder_norm=[*DECODER_NORMS],
    cls=[SparseAutoencoder, TiedWeightSparseAutoencoder],
    encoder=[dict(name=name, **(dict(k=2) if name.startswith(('matching', 'backward')) else {}))
             for name in ENCODERS],
    scaling=[None, 'global', 'columns', 'layer_norm', 'constant_norm'])
COMBINATIONS = list(itertools.product(*CHOICES.values()))


def refused(choice):
    "Argument that the error names for a combination that cannot be; `None`: it can."
    if choice['encoder']['name'] != 'linear' and choice['hidden_dims'] != (): return 'encoder'
    if choice['sparsity_type'] == 'l0' and choice['activation']['name'] != 'jumprelu':
        return 'sparsity_type'
    return None


def train_save_and_load(choice, folder):
    "Train three steps, save, load, and compare; return why the combination fails, or `None`."
    torch.manual_seed(0)
    x, options = 3*torch.randn(32, 9) + 1, dict(choice)
    penalty, cls = options.pop('sparsity_type'), options.pop('cls')
    try:
        model = cls(9, 6, **options)
        trainer = Trainer(model, x[:24], x[24:], 1, 1e-2, 1, 0.1, sparsity_type=penalty, seed=0,
                          batch_size=8, verbose=0)
    except ValueError as error:
        expected = refused(choice)
        return None if expected and str(error).startswith(expected) else f'refused: {error}'
    if refused(choice): return 'not refused'
    start = {name: p.clone() for name, p in model.named_parameters()}
    trainer.fit()
    if trainer.step != 3: return f'{trainer.step} steps'
    if all(torch.equal(p, start[name]) for name, p in model.named_parameters()): return 'no change'
    model.save_pretrained(folder)
    loaded = cls.from_pretrained(folder)
    with torch.no_grad():
        code, output = model.encode(x), model(x)
        if not output.isfinite().all(): return 'not finite'
        if not torch.equal(loaded.encode(x), code): return 'another code after loading'
        if not torch.equal(loaded(x), output): return 'another output after loading'
        if not torch.equal(loaded.decode(code), model.decode(code)): return 'another decoder'
    return None


def failures(combinations, folder):
    "Combinations that fail, with the reason; any other exception is a reason as well."
    found = {}
    for number, values in enumerate(combinations):
        choice = dict(zip(CHOICES, values))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: reason = train_save_and_load(choice, folder)
            except Exception as error: reason = f'{type(error).__name__}: {error}'
        if reason: found[str(choice)] = reason
        if number % 1000 == 999: print(number + 1, len(found), file=sys.stderr, flush=True)
    return found


def test_combinations_of_the_choices(tmp_path):
    "A sample in which every value of every choice occurs; the full product is run by hand."
    sample = random.Random(0).sample(COMBINATIONS, 150)
    for k, values in enumerate(CHOICES.values()):
        assert {str(choice[k]) for choice in sample} == {str(value) for value in values}
    assert failures(sample, tmp_path) == {}


LAYOUTS = {   # of the same values
    'contiguous': lambda x: x,
    'transposed': lambda x: x.T.contiguous().T,
    'sliced': lambda x: torch.stack([x, 7 + 0*x], -1).flatten(-2)[..., ::2],
    'offset': lambda x: torch.cat([x[:1], x, x[:1]])[1:-1],
}
EDGES = {     # of the values of some columns or rows
    'none': lambda x: x,
    'constant column': lambda x: torch.cat([x[:1, :1].expand(len(x), 1), x[:, 1:]], 1),
    'constant': lambda x: x[:1, :1].expand(x.shape),
    'duplicates': lambda x: x[:1].expand(x.shape),
    'zeros': lambda x: 0*x,
    'a column of zeros': lambda x: torch.cat([0*x[:, :1], x[:, 1:]], 1),
    'one denormal': lambda x: torch.where(x == x.max(), x.new_tensor(1e-40), 0*x),
}


@st.composite
def arrays(draw, dtypes=(torch.float32, torch.float64), exponents=(-20, 20), rows=(1, 9),
           columns=(1, 7)):
    "Rows of any shape, dtype, layout and scale, and one of `EDGES`."
    n, d = draw(st.integers(*rows)), draw(st.integers(*columns))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(n, d, dtype=torch.float64, generator=generator)
    if draw(st.booleans()): x += 3
    x = x * 10.**draw(st.sampled_from(exponents) | st.integers(*exponents))
    x = EDGES[draw(st.sampled_from([*EDGES]))](x.to(draw(st.sampled_from(dtypes))))
    return LAYOUTS[draw(st.sampled_from([*LAYOUTS]))](x)


def close(actual, expected, dtype, size=None):
    "Compare with double precision, relative to the largest value."
    actual, expected = (torch.as_tensor(t, dtype=torch.float64).detach()
                        for t in (actual, expected))
    size = expected.abs().max().item() if size is None else size
    eps = torch.finfo(dtype).eps
    assert_close(actual, expected, rtol=100*eps, atol=100*eps*size + torch.finfo(dtype).tiny)


def hoyer(z):
    n = z.shape[-1]
    norm, total = np.sqrt((z**2).sum(-1)), abs(z).sum(-1)
    return np.where(norm > 0, (math.sqrt(n) - total / np.where(norm > 0, norm, 1))
                    / (math.sqrt(n) - 1), 1)


def kl(z, rho=0.05, epsilon=1e-10, eps=2.**-23):
    "Divergence of the rates, and beyond `epsilon` its tangent."
    rates = np.maximum(z, 0).mean(0)
    inside = np.clip(rates, epsilon, 1 - max(epsilon, eps))
    divergence = rho*np.log(rho / inside) + (1-rho)*(math.log1p(-rho) - np.log1p(-inside))
    return (divergence + (inside-rho) / (inside*(1-inside)) * (rates-inside)).mean()


ORACLES = dict(   # in double precision, by NumPy
    l1=lambda z: abs(z).mean(), log=lambda z: 2*np.log(np.hypot(1, z)).mean(), kl=kl,
    l0=lambda z: (z != 0).mean(), none=lambda z: 0., hoyer=lambda z: 1 - hoyer(z).mean())


@pytest.mark.parametrize('name', PENALTIES)
@given(z=arrays(dtypes=(torch.float32, torch.float64, torch.bfloat16), columns=(2, 7)))
def test_penalties_are_finite_and_agree_with_double_precision(name, z):
    z = z.requires_grad_() if z.is_leaf else z.detach().requires_grad_()
    loss = PENALTIES[name](z)
    assert loss.isfinite() and loss.ndim == 0
    if loss.requires_grad:
        gradient, = torch.autograd.grad(loss, z)
        assert gradient.isfinite().all() and gradient.shape == z.shape
    values = z.detach().double().numpy()
    if name == 'hoyer' and 0 < abs(values).max() < 1e-37: return   # rounding of denormals
    eps = 2.**-52 if z.dtype == torch.float64 else 2.**-23
    expected = kl(values, eps=eps) if name == 'kl' else ORACLES[name](values)
    close(loss, expected, z.dtype, size=abs(expected) + (name != 'l1'))


MODELS = dict(hidden_dims=[(), None], tied=[False, True], decoder_norm=[*DECODER_NORMS],
              scaling=[None, *('global', 'columns')])
models = st.fixed_dictionaries({k: st.sampled_from(v) for k, v in MODELS.items()})


def new_model(features, dtype, tied, latent_dim=5, **options):
    torch.manual_seed(0)
    cls = TiedWeightSparseAutoencoder if tied else SparseAutoencoder
    return cls(features, latent_dim, dtype=dtype, **options)


@given(x=arrays(dtypes=(torch.float32, torch.float64, torch.bfloat16)), choice=models)
def test_models_agree_with_double_precision_in_any_layout(x, choice):
    model = new_model(x.shape[1], x.dtype, **choice)
    exact = new_model(x.shape[1], torch.float64, **choice)
    exact.load_state_dict(model.state_dict())
    if model.scaling is not None:
        model.scaling.fit(x)
        exact.scaling.load_state_dict(model.scaling.state_dict())
    with torch.no_grad():
        code, output = model.encode(x), model(x)
        assert code.isfinite().all() and output.isfinite().all() and output.dtype == x.dtype
        assert_close(model.encode(x.contiguous()), code)
        assert_close(model(x.contiguous()), output)
        assert torch.equal(model.decode(code), output)
        size = max(exact.encode(x.double()).abs().max().item(), 1e-30)
        if x.dtype != torch.bfloat16:
            close(code, exact.encode(x.double()), x.dtype, size if model.scaling is None else 1e2)
            close(output, exact(x.double()), x.dtype,
                  None if model.scaling is None else 1e2*x.double().abs().max().item())


@given(x=arrays(), name=st.sampled_from(['global', 'columns']))
def test_scalings_invert_and_centre_any_data(x, name):
    scaling = SCALINGS[name]().build(x.shape[1], dtype=x.dtype).fit(x)
    y, largest = scaling(x), x.abs().max().item()
    assert y.isfinite().all() and scaling.scale.isfinite().all() and (scaling.scale > 0).all()
    close(scaling.inverse(y), x, x.dtype, largest)
    constant = (x == x[:1]).all(0)
    if name == 'columns' or constant.all(): assert (y[:, constant] == 0).all()
    exact = x.double().numpy()
    if (exact.std(0) > 1e-3*abs(exact).max(0)).all():
        close(y.double().mean(0), torch.zeros(x.shape[1]), x.dtype, 1e2)
        variance = y.double().var(0, correction=0)
        close(variance if name == 'columns' else variance.mean(), 1 + 0*variance.sum()
              if name == 'global' else torch.ones_like(variance), x.dtype, 1e2)


@settings(max_examples=40)
@given(x=arrays(rows=(1, 12)), choice=models, penalty=st.sampled_from(['kl', 'l1', 'hoyer', 'log']),
       normalize=st.booleans())
def test_training_is_finite_or_says_why(x, choice, penalty, normalize):
    model = new_model(x.shape[1], x.dtype, **choice)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            history = Trainer(model, x, x, 2, 1e-3, 2, sparsity_type=penalty, batch_size=5, seed=0,
                              normalize=normalize and choice['scaling'] is None, verbose=0).fit()
        except TrainingDiverged as error:
            assert 'the loss became NaN or infinite' in str(error)
            assert x.abs().max() > 1e15 and not normalize and choice['scaling'] is None
            history = {}
        except ValueError as error:
            assert str(error).startswith(('train_data', 'val_data', 'normalize', 'sparsity_type'))
            history = {}
    assert all(math.isfinite(v) for values in history.values() if isinstance(values, list)
               for v in values)
    assert all(p.isfinite().all() for p in model.parameters())
    with torch.no_grad(): assert model(x).isfinite().all()


@settings(max_examples=40)
@given(x=arrays(rows=(2, 12)), choice=models, seed=st.integers(0, 99))
def test_evaluation_does_not_depend_on_batches_order_and_threads(x, choice, seed):
    model = new_model(x.shape[1], x.dtype, **choice)
    if model.scaling is not None: model.scaling.fit(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        whole = evaluate_sparse_autoencoder(model, x)
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        try: others = [evaluate_sparse_autoencoder(model, x, batch_size=1),
                       evaluate_sparse_autoencoder(model, x[order], batch_size=3)]
        finally: torch.set_num_threads(threads)
    others[1] = others[1] | {name: others[1][name][order.argsort().numpy()]
                             for name in ('errors', 'latent_codes')}
    exact, decoded = x.double().numpy(), model(x).detach().double().numpy()
    errors, size = ((decoded - exact)**2).mean(1), (exact**2).max() + (decoded**2).max()
    for results in (whole, *others):
        close(results['errors'], errors, x.dtype, size)
        close(results['mean'], errors.mean(), x.dtype, size)
        for name in whole:
            got, expected = np.asarray(results[name], float), np.asarray(whole[name], float)
            scale = {'errors': size, 'mean': size, 'std': size}.get(name)
            if name.startswith('explained'):   # a small variance magnifies rounding
                scale = 1 + abs(expected)
                deviation = exact.std(0)
                if (deviation < 1e-4*abs(exact).max()).any(): continue
            assert (np.isnan(got) == np.isnan(expected)).all()
            close(np.nan_to_num(got), np.nan_to_num(expected), torch.float32,
                  None if scale is None else np.nan_to_num(scale).max())


@given(a=arrays(rows=(2, 6), columns=(2, 2)), b=arrays(rows=(2, 6), columns=(2, 2)))
def test_measures_of_dictionaries_have_no_scale(a, b):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        best, matched = best_matches(a, b).cosines, match_dictionaries(a, b)
    exact = [t.float().double().numpy() for t in (a, b)]
    unit = [np.where(m > 0, t / np.where(m > 0, m, 1), 0) for t in exact
            for m in [abs(t).max(1, keepdims=True)]]
    unit = [t / np.where((t**2).sum(1) > 0, np.sqrt((t**2).sum(1)), 1)[:, None] for t in unit]
    cosines = unit[0] @ unit[1].T
    expected = np.where(unit[0].any(1), cosines.max(1), np.nan)
    assert_close(torch.tensor(best).double(), torch.tensor(expected), rtol=0, atol=1e-5,
                 equal_nan=True)
    pairs = cosines[matched.latents, matched.features]
    assert_close(torch.tensor(matched.cosines).double(), torch.tensor(pairs), rtol=0, atol=1e-5)


if __name__ == '__main__':
    import collections
    import tempfile
    chosen = COMBINATIONS if '--all' in sys.argv else random.Random(1).sample(COMBINATIONS, 500)
    with tempfile.TemporaryDirectory() as folder: found = failures(chosen, folder)
    print(f'{len(found)} of {len(chosen)} combinations fail')
    for reason, n in collections.Counter(found.values()).most_common(): print(n, reason)
    for choice, reason in list(found.items())[:50]: print(reason, choice)
