"Sparse codes: the same codes, reconstructions and gradients as with dense tensors."
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sparse_ae import (BatchTopK, SparseAutoencoder, TiedWeightSparseAutoencoder, TopK, Trainer,
                       Unrolled, digits)
from sparse_ae.engines.sparse_codes import (SELECT, SparseCode, decode_sparse, encode_sparse,
                                            has_sparse_path, top_k, top_k_flat)
from sparse_ae.losses import l1_sparsity_loss
from sparse_ae.models import FAST_FORWARD
from sparse_ae.training import batch_losses

models = st.fixed_dictionaries(dict(
    cls=st.sampled_from([SparseAutoencoder, TiedWeightSparseAutoencoder]),
    activation=st.sampled_from([TopK, BatchTopK]),
    decoder_norm=st.sampled_from(['row', 'atom', None]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    latent_dim=st.integers(2, 300), input_dim=st.integers(1, 20), part=st.floats(0, 1), seed=st.integers(0, 9),
    equal=st.booleans(), few=st.booleans(), training=st.booleans()))


def make(cls, activation, decoder_norm, dtype, latent_dim, input_dim, part, seed, equal, few,
         training):
    "A model; many of its pre-activations are `equal`, or `few` of them positive."
    torch.manual_seed(seed)
    k = 1 + round(part*(latent_dim - 1))
    model = cls(input_dim, latent_dim, dtype=dtype, hidden_dims=(), activation=activation(k),
                decoder_norm=decoder_norm)
    with torch.no_grad():
        for p in (model.encoder_bias_1, model.decoder_bias_1): p += 0.3*torch.randn_like(p)
        if equal: model.encoder_mat_1.mul_(4*input_dim**0.5).round_()
        if equal: model.encoder_bias_1.zero_()
        if few: model.encoder_bias_1.sub_(3.)
    return model.train(training)


def gradients(model, x, reconstruct, weights):
    "Gradients of a function of the reconstruction with respect to all parameters and the inputs."
    x = x.clone().requires_grad_()
    reconstruction = reconstruct(x)
    loss = (reconstruction * (weights + reconstruction)).mean()
    return torch.autograd.grad(loss, [*model.parameters(), x], allow_unused=True)


@settings(max_examples=150, deadline=None)
@given(models, st.integers(1, 40))
def test_sparse_and_dense_codes_agree(options, n):
    model = make(**options)
    x = torch.randn(n, model.input_dim, dtype=model.dtype)
    if options['equal']: x = x.round()
    z = model.encode(x)
    code = encode_sparse(model, x)
    if options['training']: assert (z != 0).sum() <= model.activation.k*n
    check_selection(model, code.dense(), z)
    assert torch.equal(code.active(), (code.dense() != 0).float().sum(0))
    def close(ours, plain):
        error = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 4e-2}[model.dtype]
        scale = max(1., float(plain.detach().abs().max())) if plain.numel() else 1.
        assert_close(ours, plain, rtol=error, atol=error*scale)
    close(decode_sparse(model, code), model.decode(code.dense()))
    close(model.decode(code), model.decode(code.dense()))
    weights = torch.randn(n, model.input_dim, dtype=model.dtype)
    kept = code.dense().detach() != 0
    def encode(x):  # the plain code; among equal entries with the choice of the sparse one
        if torch.equal(code.dense(), z): return model.encode(x)
        return F.relu(model.encode_layers(x).pre) * kept
    ways = (lambda x: decode_sparse(model, encode_sparse(model, x)), lambda x: model.decode(encode(x)))
    for ours, plain in zip(*(gradients(model, x, way, weights) for way in ways)):
        assert (ours is None) == (plain is None)
        if ours is not None: close(ours, plain)


def check_selection(model, ours, plain):
    "Both codes keep the same values; they differ at most in which of equal smallest entries they keep."
    if isinstance(model.activation, BatchTopK) and model.training:  # one selection for all samples
        ours, plain = ours.reshape(1, -1), plain.reshape(1, -1)
    assert torch.equal(ours.sort(-1).values, plain.sort(-1).values)
    smallest = plain.where(plain > 0, torch.inf).amin(-1, keepdim=True)
    differ = ours != plain
    assert torch.equal((ours + plain)[differ], smallest.expand_as(plain)[differ])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from(['any', 'equal', 'one']),
       st.integers(0, 99))
def test_top_k_selects_the_largest(n, part, kind, seed):
    torch.manual_seed(seed)
    u = dict(any=torch.randn(3, n), equal=torch.randn(3, n).round(), one=torch.ones(3, n))[kind]
    k = 1 + round(part*(n - 1))
    values, indices = top_k(u, k)
    expected, selected = F.relu(u).sort(descending=True).values[:, :k], F.relu(values)
    assert torch.equal(selected.sort(descending=True).values, expected)
    assert torch.equal(u.gather(1, indices), values)
    assert all(len(row.unique()) == k for row in indices)
    flat = u.flatten()
    by_sorting = flat.sort(descending=True, stable=True).indices[:3*k].sort().values
    assert torch.equal(top_k_flat(flat, 3*k), by_sorting)


@pytest.mark.parametrize('activation', [TopK, BatchTopK])
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
@pytest.mark.parametrize('latent_dim', [200, 3001])
def test_nan_and_infinity_are_kept(activation, training, bad, latent_dim):
    torch.manual_seed(0)
    model = SparseAutoencoder(20, latent_dim, hidden_dims=(), activation=activation(4)).train(training)
    with torch.no_grad(): model.encoder_mat_1[-1] = bad  # one latent; infinities cancel to NaN
    x = torch.randn(50, 20)
    assert not model.encode(x).isfinite().all()
    assert not decode_sparse(model, encode_sparse(model, x)).isfinite().all()


@pytest.mark.parametrize('n, k', [(500, 20), (500_000, 25_000)])
@pytest.mark.parametrize('bad', [1, 30_000])
def test_nan_is_among_the_largest(n, k, bad):
    torch.manual_seed(0)
    u = torch.randn(n)
    u[:bad] = torch.nan
    indices = top_k_flat(u, k)
    assert len(indices) == k and (indices.diff() > 0).all()
    assert u[indices].isnan().sum() == min(bad, n, k)


def test_k_above_the_width():
    with pytest.raises(ValueError, match='k must be at most 5, got 6'): top_k(torch.ones(2, 5), 6)


def test_top_k_flat_with_a_biased_sample():
    "Every 17th entry is small, so that there are too many candidates; or large: too few."
    u = torch.arange(200_000.)
    u[::17] = -1
    assert torch.equal(top_k_flat(u, 9000), u.topk(9000).indices.sort().values)
    u = torch.rand(200_000)
    u[::17] += 1
    assert torch.equal(top_k_flat(u, 20_000), u.topk(20_000).indices.sort().values)


@pytest.mark.parametrize('cls', [SparseAutoencoder, TiedWeightSparseAutoencoder])
def test_gradcheck(cls):
    torch.manual_seed(0)
    model = cls(4, 30, dtype=torch.float64, hidden_dims=(), activation=TopK(3))
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    names, values = zip(*model.named_parameters())

    def run(x, *values):
        restored = dict(zip(names, values))
        model._parameters.update(restored)   # as torch.func.functional_call does
        code = encode_sparse(model, x)
        return decode_sparse(model, code), code.values
    values = [v.detach().clone().requires_grad_() for v in values]
    assert torch.autograd.gradcheck(run, (x, *values))


@pytest.mark.parametrize('encoder', ['linear', Unrolled(2, step_size=0.3)], ids=str)
@pytest.mark.parametrize('activation', [TopK, BatchTopK])
@pytest.mark.parametrize('penalty', ['none', 'l1'])
def test_training_is_the_same(activation, penalty, encoder):
    "In double precision: in single precision a rounding error may change which latents are revived."
    x, histories, codes = digits().double(), [], []
    for engine in ('auto', 'plain'):
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 256, dtype=x.dtype, hidden_dims=(), activation=activation(8),
                                  decoder_norm='atom', encoder=encoder)
        trainer = Trainer(model, x[:1500], x[1500:], 30, 1e-3, 30, 0.01, sparsity_type=penalty,
                          seed=0, verbose=0, engine=engine)
        histories.append(trainer.fit())
        codes.append(type(trainer.losses.code))
    assert codes == [SparseCode, torch.Tensor]   # they are two computations
    for name in ('train_loss', 'val_loss'):
        assert_close(*(history[name] for history in histories), rtol=1e-9, atol=0)


def test_multiple_chunks_are_one_code():
    torch.manual_seed(0)
    model = SparseAutoencoder(10, 5000, hidden_dims=(), activation=TopK(4))
    with torch.no_grad():
        model.encoder_mat_1.mul_(30).round_()  # sums of whole numbers are exact in any order
        model.encoder_bias_1.zero_()
    x = torch.randn(1000, 10).mul(4).round()
    code = encode_sparse(model, x)
    assert torch.equal(code.values, torch.cat([encode_sparse(model, part).values
                                               for part in x.split(100)]))
    assert len(code) == 1000 and code.pattern.offsets[-1] == 4000
    assert_close(decode_sparse(model, code), model.decode(code.dense()))


@pytest.mark.parametrize('cls', [SparseAutoencoder, TiedWeightSparseAutoencoder])
@pytest.mark.parametrize('norm', ['row', 'atom', None])
def test_evaluation_changes_no_weight(cls, norm):
    model = cls(10, 50, hidden_dims=(), activation=TopK(4), decoder_norm=norm)
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad(): model(torch.randn(20, 10))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))


def test_the_model_without_gradients_uses_the_sparse_path(monkeypatch):
    model, seen = SparseAutoencoder(10, 50, hidden_dims=(), activation=TopK(4)), []
    def watch(model, x): seen.append(encode_sparse(model, x))
    monkeypatch.setattr('sparse_ae.models.FAST_FORWARD', [watch, *FAST_FORWARD])
    monkeypatch.setattr(model, 'encode', None)   # not called
    with torch.no_grad(): model(torch.randn(20, 10))
    assert len(seen[0]) == 20
    monkeypatch.undo()
    model(torch.randn(20, 10))                   # with gradients: the plain path
    assert len(seen) == 1


def test_activations_with_and_without_a_sparse_path(monkeypatch):
    class Same(TopK): pass
    class Squared(TopK):
        def forward(self, pre): return super().forward(pre).square()
    def make(activation): return SparseAutoencoder(10, 50, hidden_dims=(), activation=activation)
    assert has_sparse_path(make(Same(4))) and has_sparse_path(make(BatchTopK(4)))
    model, x = make(Squared(4)), torch.randn(20, 10)
    assert not has_sparse_path(model) and encode_sparse(model, x) is None
    with torch.no_grad(): assert torch.equal(model(x), model.decode(model.encode(x)))
    def select(activation, u):                   # registered: the same code, sparsely
        code = SELECT[TopK](activation, u)
        code.values = F.relu(code.values).square()
        return code
    monkeypatch.setitem(SELECT, Squared, select)
    assert has_sparse_path(model)
    assert_close(encode_sparse(model, x).dense(), model.encode(x))


def test_an_empty_batch():
    model = SparseAutoencoder(4, 9, hidden_dims=(), activation=TopK(2))
    with torch.no_grad(): assert model(torch.zeros(0, 4)).shape == (0, 4)


def test_l1_without_absolute_values():
    "Loss and gradient of the formula, for a code without negative entries."
    x = torch.randn(50, 8)
    model = SparseAutoencoder(8, 20, hidden_dims=())
    losses = batch_losses(model, x, l1_sparsity_loss, 0.3)
    grads = torch.autograd.grad(losses.objective, list(model.parameters()))
    z = F.relu(model.encode_layers(x).pre)
    loss = F.mse_loss(model.decode(z), x) + 0.3*z.abs().mean()
    assert_close(losses.total, loss)
    for ours, plain in zip(grads, torch.autograd.grad(loss, list(model.parameters()))):
        assert_close(ours, plain)


def test_l1_of_codes_with_negative_entries():
    x = torch.randn(50, 8)
    model = SparseAutoencoder(8, 20, hidden_dims=(), activation='soft_threshold')
    z = model.encode(x)
    assert z.min() < 0
    assert_close(batch_losses(model, x, l1_sparsity_loss, 1.).sparsity, z.abs().mean())


INTERPRETED = '''
import torch
from torch.testing import assert_close
from sparse_ae import BatchTopK, SparseAutoencoder, TopK
from sparse_ae.engines.triton_kernels import triton_kernels
for activation in (TopK(3), BatchTopK(3)):
    for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        torch.manual_seed(0)
        model = SparseAutoencoder(37, 90, hidden_dims=(), activation=activation, decoder_norm='atom')
        x = torch.randn(12, 37)
        assert triton_kernels(x) is not None
        outs = []
        for sparsely in (True, False):
            with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
                if sparsely:
                    weights = [x, *model.encoder_weights(), model.encoder_bias_1]
                    from sparse_ae.engines.sparse_codes import sparse_decode, sparse_encode
                    code = sparse_encode(*weights, model.activation, dtype)
                    out = sparse_decode(code, model.decoder_weights()[0], model.decoder_bias_1)
                    z = code.dense().detach()
                else:  # the plain products, with the same selection
                    u = x @ model.encoder_mat_1.T + model.encoder_bias_1
                    out = ((u*(z != 0)) @ model.decoder_weights()[0].T) + model.decoder_bias_1
                outs.append((out.float(), torch.autograd.grad(out.float().square().sum(),
                                                              list(model.parameters()))))
        (a, of_a), (b, of_b) = outs
        assert_close(a, b, rtol=error, atol=error)
        for p, q in zip(of_a, of_b): assert_close(p, q, rtol=error, atol=error*float(q.abs().max()))
print('the same')
'''


def test_second_derivatives_raise():
    model = SparseAutoencoder(9, 12, hidden_dims=(), activation=TopK(3))
    x = torch.randn(20, 9, generator=torch.Generator().manual_seed(0))
    error = (decode_sparse(model, encode_sparse(model, x)) - x).square().mean()
    slope, = torch.autograd.grad(error, model.encoder_mat_1, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'): slope.square().sum().backward()


STEPPED = r'''
import os, tempfile, torch
from torch.testing import assert_close
from sparse_ae import SparseAutoencoder, TiedWeightSparseAutoencoder, TopK, digits
from sparse_ae.callbacks import Callback
from sparse_ae.engines.triton_kernels import COPIES
from sparse_ae.training import Trainer
X = digits()

def trainer(cls=SparseAutoencoder, norm='atom', epochs=2, **options):
    torch.manual_seed(0)
    model = cls(64, 10, hidden_dims=(), activation=TopK(3), decoder_norm=norm)
    return Trainer(model, X[:24], X[24:30], epochs, 1e-2, 5, **dict(
        sparsity_type='none', seed=0, verbose=0, batch_size=8, revive=None) | options)

def trained(interpreted, *args, **options):
    os.environ['TRITON_INTERPRET'] = str(interpreted)
    t = trainer(*args, **options)
    t.fit()
    assert len(COPIES) == 0
    moments = [m for p in t.parameters for m in t.optimizer.state.get(p, {}).values()
               if m.shape == p.shape]
    return t.history['val_loss'], list(t.model.parameters()), moments

class Watch(Callback):  # gradients are projected
    def after_backward(self, t):
        W = t.model.decoder_mat_1
        assert_close((W*W.grad).sum(0), torch.zeros(10), atol=1e-8, rtol=0)

for args, options in (((), {}), ((), dict(optimizer='adamw')), ((), dict(clip_grad_norm=0.01)),
                      ((TiedWeightSparseAutoencoder,), {}), ((SparseAutoencoder, 'row'), {}),
                      ((SparseAutoencoder, None), {}), ((), dict(accumulate=2))):
    watch = dict(callbacks=[Watch()]) if options else {}
    found, wanted = trained(1, *args, **options, **watch), trained(0, *args, **options)
    for a, b in zip(found, wanted): assert_close(a, b, rtol=1e-4, atol=1e-5)

found, wanted = trained(1, autocast='bfloat16'), trained(0, autocast='bfloat16')
assert_close(found[0], wanted[0], rtol=1e-2, atol=0)
found = trained(1)
with tempfile.TemporaryDirectory() as place:  # bit for bit, also after a checkpoint
    trained(1, epochs=1, checkpoint_dir=place)
    parts = trained(1, epochs=2, checkpoint_dir=place, resume=True)
assert torch.equal(torch.tensor(parts[0]), torch.tensor(found[0]))
assert all(map(torch.equal, parts[1], found[1]))

os.environ['TRITON_INTERPRET'] = '1'
t = trainer(autocast='bfloat16')
t.start()
engine, x = t.engine, X[:8]
for W in (t.model.encoder_mat_1, t.model.decoder_mat_1):
    copy = COPIES[W].copy
    t.batches = [x]
    losses = engine.losses(x)
    engine.backward(losses, 1.)
    engine.step()                        # the kernel writes both; interpreted, it truncates
    assert_close(copy.float(), W.detach(), rtol=2**-7, atol=0)
    assert COPIES[W].version == W._version
    with torch.no_grad(): W *= 1.5       # other code changes the weights
    losses = engine.losses(x)
    assert torch.equal(copy, W.bfloat16())
engine.close()
t = trainer()
t.model.decoder_mat_1.requires_grad_(False)  # frozen after the trainer was made
t.start()
engine, t.batches = t.engine, [X[:8]]
with torch.no_grad(): t.model.decoder_mat_1 *= 2
engine.backward(engine.losses(X[:8]), 1.)
engine.step()                            # normalises, as after any step
assert_close(t.model.decoder_mat_1.norm(dim=0), torch.ones(10))
engine.close()

class Positive(SparseAutoencoder):       # a user-defined geometry
    def normalize_decoder_weights(self):
        with torch.no_grad(): self.decoder_mat_1.clamp_(min=0)
        super().normalize_decoder_weights()
assert trained(1, Positive)[1][2].min() == 0
def run(callback, interpreted):
    return trained(interpreted, callbacks=[callback()])
class Contiguous(Callback):
    def after_backward(self, t):
        for p in t.parameters: p.grad = p.grad.contiguous()
class Forget(Callback):
    def before_epoch(self, t): t.optimizer.state.clear()
class Other(Callback):
    def before_epoch(self, t): t.optimizer = torch.optim.SGD(t.parameters, lr=0.01)
class Late(Callback):
    def before_epoch(self, t):
        if t.epoch == 1: t.add(Watch())
for callback in (Contiguous, Forget, Other, Late):
    for a, b in zip(run(callback, 1), run(callback, 0)): assert_close(a, b, rtol=1e-4, atol=1e-5)
assert_close(run(Contiguous, 0)[0], trained(0)[0], rtol=1e-6, atol=0)

os.environ['TRITON_INTERPRET'] = '1'
class Own(Callback): pass                # may write to .data, which is not counted
t = trainer(autocast='bfloat16', callbacks=[Own()])
t.start()
assert t.engine.rows and t.model.encoder_mat_1 not in COPIES
t = trainer(optimizer=torch.optim.Adam)
t.start()
assert not hasattr(t.engine, 'rows')
print('the same')
'''


@pytest.mark.parametrize('script', [INTERPRETED, STEPPED], ids=['kernels', 'steps'])
def test_in_tritons_interpreter(script):
    pytest.importorskip('triton')
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True,
                          env={**os.environ, 'TRITON_INTERPRET': '1'})
    assert done.stdout == 'the same\n', done.stderr
