"On a GPU: what a CPU gives, wherever the data are. Without one all of this is skipped."
import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from sparse_ae import (BatchTopK, SparseAutoencoder, TiedWeightSparseAutoencoder, TopK, digits,
                       evaluate_sparse_autoencoder, sweep,
                       train_sparse_autoencoder_with_early_stopping)
from sparse_ae.callbacks import Callback, TrainingDiverged
from sparse_ae.engines import cuda_graphs, sparse_codes
from sparse_ae.engines.cuda_graphs import RowwiseAdamEngine, StepGraph
from sparse_ae.engines.dense import hold_unit_norm, normalize_decoder
from sparse_ae.engines.sparse_codes import decode_sparse, encode_sparse, top_k, top_k_flat
from sparse_ae.engines.triton_kernels import COPIES, mean_squared_error
from sparse_ae.models import count_active
from sparse_ae.sparsity_control import Resample
from sparse_ae.training import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
X = digits()
TRAIN, VAL = X[:1500], X[1500:]


def train(model, device='cuda', train_data=TRAIN, **options):
    options = dict(sparsity_type='none', seed=0, verbose=0, batch_size=250) | options
    return train_sparse_autoencoder_with_early_stopping(model, train_data, VAL, 5, 1e-3, 5, 0.01,
                                                        device=device, **options)


def single(cls=SparseAutoencoder, activation=TopK, **options):
    torch.manual_seed(0)
    return cls(64, 300, hidden_dims=(), activation=activation(8), **dict(decoder_norm='atom') | options)


@pytest.mark.parametrize('shape, k', [((50, 1003), 7), ((50, 1003), 1), ((20, 64), 60), ((9, 9), 9),
                                      ((4, 70_000), 64), ((3, 5, 2048), 300)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_top_k_of_rows(shape, k, dtype):
    torch.manual_seed(0)
    u = torch.randn(shape, dtype=dtype, device='cuda')
    first = u
    for u in (first, first.round(), first - 2, torch.ones_like(first),
              first.where(first < 2.9, torch.nan)):
        values, indices = top_k(u, k)
        selected = values.nan_to_num(torch.inf).relu().sort(descending=True).values
        assert torch.equal(selected, u.nan_to_num(torch.inf).relu().topk(k).values)
        assert_close(u.gather(-1, indices), values, rtol=0, atol=0, equal_nan=True)
        assert all(len(set(row)) == k for row in indices.flatten(0, -2).tolist())


@pytest.mark.parametrize('n, k', [(500_000, 25_000), (500_000, 400_000), (50, 3), (50, 50)])
def test_top_k_flat(n, k):
    u = torch.randn(n, generator=torch.Generator().manual_seed(1))
    bad = u.where(u < 2.9, torch.nan).cuda()
    indices = top_k_flat(bad, k)
    assert len(indices) == k and bad[indices].isnan().sum() == min(k, bad.isnan().sum())
    for values in (u, u.round(), torch.zeros(n)):
        by_sorting = values.sort(descending=True, stable=True).indices[:k].sort().values
        assert torch.equal(top_k_flat(values.cuda(), k).cpu(), by_sorting)


@pytest.mark.parametrize('cls', [SparseAutoencoder, TiedWeightSparseAutoencoder])
@pytest.mark.parametrize('activation', [TopK, BatchTopK])
@pytest.mark.parametrize('norm', ['atom', 'row', None])
@pytest.mark.parametrize('assumed', [False, True])
def test_code_and_gradients_of_dense_products(cls, activation, norm, assumed):
    model = single(cls, activation, decoder_norm=norm)
    x = torch.randn(700, 64, requires_grad=True)
    model.normalize_decoder_weights()
    z = model.encode(x)
    reconstruction = model.decode(z)
    expected = torch.autograd.grad(reconstruction.pow(3).sum(), [x, *model.parameters()])
    model = model.cuda()
    x = x.detach().cuda().requires_grad_()
    with hold_unit_norm(model) if assumed else nullcontext():
        code = encode_sparse(model, x)
        assert_close(code.dense().cpu(), z)
        ours = decode_sparse(model, code)
        assert_close(ours.cpu(), reconstruction)
        grads = torch.autograd.grad(ours.pow(3).sum(), [x, *model.parameters()])
        for a, b in zip(grads, expected):
            assert_close(a.cpu(), b, rtol=1e-4, atol=1e-5*float(b.abs().max()))
        with torch.no_grad(): assert_close(model(x.detach()).cpu(), reconstruction.detach())
    plain = model.decode(model.encode(x))    # the core, without engines
    assert_close(plain.cpu(), reconstruction)


@pytest.mark.parametrize('dim', [0, 1])
@pytest.mark.parametrize('scale', [1., 1e-30, 1e30])
@pytest.mark.parametrize('normalize', [normalize_decoder, SparseAutoencoder.normalize_decoder_weights])
def test_normalisation_at_any_scale(dim, scale, normalize):
    model = SparseAutoencoder(64, 300, 'cuda', hidden_dims=(), decoder_norm=('atom', 'row')[dim])
    with torch.no_grad():
        model.decoder_mat_1.mul_(scale)
        model.decoder_mat_1[:, 3] = 0
        model.decoder_mat_1[7] = 0
    normalize(model)
    norms = model.decoder_mat_1.norm(dim=dim)
    zero = torch.arange(len(norms), device='cuda') == (3, 7)[dim]
    assert_close(norms, torch.where(zero, 0., 1.))


@pytest.mark.parametrize('options', [
    dict(), dict(batch_size=1500, autocast=None), dict(sparsity_type='l1'), dict(accumulate=2),
    dict(clip_grad_norm=0.1), dict(revive='auxiliary'), dict(optimizer=torch.optim.SGD)])
def test_training_is_that_of_a_cpu(options):
    histories = [train(single(), device, **options) for device in ('cpu', 'cuda')]
    assert_close(histories[0]['train_loss'], histories[1]['train_loss'], rtol=2e-3, atol=0)
    assert_close(histories[0]['val_loss'], histories[1]['val_loss'], rtol=2e-3, atol=0)


@pytest.mark.parametrize('activation', [TopK, BatchTopK])
def test_fast_and_plain_path_end_alike(activation, monkeypatch):
    fast = train(single(activation=activation))
    monkeypatch.setattr(sparse_codes, 'encode_sparse', lambda model, x: None)
    plain = train(single(activation=activation))
    assert fast['train_loss'] != plain['train_loss']
    assert_close(fast['train_loss'], plain['train_loss'], rtol=1e-4, atol=0)


def test_products_in_bfloat16():
    fast, precise = train(single(), autocast='bfloat16'), train(single())
    assert fast['val_loss'] != precise['val_loss']
    assert_close(fast['val_loss'], precise['val_loss'], rtol=0.05, atol=0)


@pytest.mark.parametrize('kind', ['l1', 'kl', 'hoyer'])
def test_classical_models(kind):
    histories = []
    for device in ('cpu', 'cuda'):
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 20)
        histories.append(train(model, device, sparsity_type=kind))
        assert model.device.type == device
    assert_close(histories[0]['val_loss'], histories[1]['val_loss'], rtol=5e-3, atol=0)


def test_data_that_do_not_fit_travel_batch_by_batch(monkeypatch):
    near = Trainer(single().cuda(), TRAIN, VAL, 1, 1e-3, 1, device='cuda', seed=0)
    assert near.train.rows.tensor.is_cuda
    together = train(single())
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (TRAIN.nbytes, 2**40))
    far = Trainer(single().cuda(), TRAIN, VAL, 1, 1e-3, 1, device='cuda', seed=0)
    assert not far.train.rows.tensor.is_cuda
    assert next(iter(far.train)).is_cuda
    assert train(single())['train_loss'] == together['train_loss']


@pytest.mark.parametrize('cls, norm', [(SparseAutoencoder, 'atom'), (SparseAutoencoder, 'row'),
                                       (SparseAutoencoder, None), (TiedWeightSparseAutoencoder, 'atom')])
@pytest.mark.parametrize('options', [
    dict(), dict(optimizer='adamw'), dict(betas=(0.8, 0.9)), dict(clip_grad_norm=0.1),
    dict(accumulate=2, compile=True),
    dict(compile=True), dict(autocast='bfloat16'), dict(autocast='bfloat16', compile=True),
    dict(autocast='bfloat16', compile=True, revive=Resample, batch_size=100)])
def test_steps_of_rows_are_those_of_torch(cls, norm, options, monkeypatch):
    made, make = [], cuda_graphs.RowwiseAdam
    monkeypatch.setattr(cuda_graphs, 'RowwiseAdam',
                        lambda *args: made.append(make(*args)) or made[-1])
    def run():
        revive = dict(revive=Resample(window=1000)) if 'revive' in options else {}
        return train(single(cls, decoder_norm=norm), **options | revive)
    found = run()
    monkeypatch.setattr(RowwiseAdamEngine, 'why_not', classmethod(lambda cls, t: ['not now']))
    wanted = run()
    assert len(made[0].steps) == 2 - (cls is TiedWeightSparseAutoencoder)
    assert min(n for _, n in made[0].steps.values()) >= 15
    rounding = 1e-2 if 'autocast' in options else 1e-4
    for name in ('train_loss', 'val_loss'): assert_close(found[name], wanted[name], rtol=rounding, atol=0)


@pytest.mark.parametrize('compile', [False, True])
def test_cached_copies_of_the_weights_are_fresh(compile):
    class Look(Callback):
        def after_step(self, trainer): looks.append([(COPIES[W].copy.clone(), W.bfloat16()) for W in matrices])
    looks, model = [], single().cuda()
    matrices = model.encoder_mat_1, model.decoder_mat_1
    Look.__module__ = 'sparse_ae.tests'  # with user-defined callbacks there are no copies
    train(model, autocast='bfloat16', compile=compile, callbacks=[Look()])
    assert len(looks) == 30
    for pairs in looks:
        for cached, fresh in pairs: assert torch.equal(cached, fresh)
    assert len(COPIES) == 0


def test_the_decoder_is_left_as_it_was():
    model = single()
    train(model)
    assert all(p.is_contiguous() for p in model.parameters())


def test_going_on_within_an_epoch_and_a_window(tmp_path):
    class Stop(Exception): pass
    class Break(Callback):
        def after_step(self, trainer):
            if trainer.step == 9: raise Stop
    options = dict(checkpoint_minutes=1e-9, revive=Resample(window=2000))
    wanted = train(single(), **options, checkpoint_dir=tmp_path/'whole')['train_loss']
    options['revive'] = Resample(window=2000)
    with pytest.raises(Stop): train(single(), **options, checkpoint_dir=tmp_path/'parts', callbacks=[Break()])
    options['revive'] = Resample(window=2000)
    went_on = train(single(), **options, checkpoint_dir=tmp_path/'parts', resume=True)['train_loss']
    assert_close(went_on, wanted, rtol=1e-5, atol=0)


def test_going_on_from_a_checkpoint(tmp_path):
    whole, parts = single(), single()
    wanted = train(whole, checkpoint_dir=tmp_path/'whole')['train_loss']
    half = Trainer(parts, TRAIN, VAL, 2, 1e-3, 5, 0.01, sparsity_type='none', seed=0, verbose=0,
                   batch_size=250, device='cuda', checkpoint_dir=tmp_path/'parts')
    half.fit()
    went_on = train(single(), checkpoint_dir=tmp_path/'parts', resume=True)['train_loss']
    assert_close(went_on, wanted, rtol=1e-5, atol=0)


@pytest.fixture
def runs(monkeypatch):
    "The graphs that were run, in order."
    seen, replay = [], StepGraph.replay
    monkeypatch.setattr(StepGraph, 'replay',
                        lambda self, x: seen.append(self) or replay(self, x))
    return seen


@pytest.mark.parametrize('options, graphs', [
    (dict(), 1), (dict(batch_size=400), 2), (dict(accumulate=2), 1), (dict(clip_grad_norm=0.1), 1),
    (dict(batch_size=400, accumulate=3), 2), (dict(autocast='bfloat16'), 1),
    (dict(sparsity_type='hoyer'), 1), (dict(target_l0=6), 1),
    (dict(sparsity_type='kl', target_l0=6), 1)])
@pytest.mark.parametrize('make', [
    single, partial(single, TiedWeightSparseAutoencoder), partial(SparseAutoencoder, 64, 20),
    partial(SparseAutoencoder, 64, 20, batch_norm=True)])
@pytest.mark.filterwarnings('ignore:target_l0')
def test_graphs(make, options, graphs, runs):
    histories, data = [], TRAIN[:1499] if 'batch_size' in options else TRAIN
    for compile in (False, True):
        torch.manual_seed(0)
        model = make()
        if model.fixes_l0: options = {k: v for k, v in options.items() if k != 'target_l0'}
        assert not runs
        histories.append(train(model, 'cuda', data, compile=compile,
                               **dict(sparsity_type='l1') | options))
    assert len(set(runs)) == graphs and len(runs) >= 15
    for name in ('train_loss', 'val_loss', 'l0', 'sparsity_weight'):
        rounding = 1e-2 if 'autocast' in options else 1e-4
        assert_close(histories[1][name], histories[0][name], rtol=rounding, atol=0)


def test_a_graph_is_recorded_anew_where_weights_moved(runs):
    class Move(Callback):
        def before_epoch(self, trainer):
            if trainer.epoch == 2: p.data = p.data.clone()
    model, other = single(), single()
    p = model.encoder_mat_1
    moved, plain = train(model, compile=True, callbacks=[Move()]), train(other)
    assert len(set(runs)) == 2
    assert_close(moved['train_loss'], plain['train_loss'], rtol=1e-4, atol=0)


def test_recording_where_something_else_holds_the_parameters(runs):
    model, plain = single().cuda(), train(single())
    z = model.encode(TRAIN[:9].cuda())  # as in a notebook, with gradients
    assert_close(train(model, compile=True)['train_loss'], plain['train_loss'], rtol=1e-4, atol=0)
    assert runs and z.requires_grad


def test_what_a_callback_changes_is_recorded_anew(runs):
    class Change(Callback):
        def before_epoch(self, trainer):
            if trainer.epoch == 2: trainer.model.activation.k = 5
            if trainer.epoch == 3: trainer.model.encoder_bias_1.requires_grad_(False)
    histories = [train(single(), compile=compile, callbacks=[Change()]) for compile in (False, True)]
    assert len(set(runs)) == 3
    for name in ('train_loss', 'l0'):
        assert_close(histories[1][name], histories[0][name], rtol=1e-4, atol=0)


def test_the_code_of_each_batch_of_a_graph(runs):
    codes = {False: [], True: []}
    for compile, seen in codes.items():
        class Look(Callback):
            def after_loss(self, trainer): seen.append(trainer.losses.z.clone())
        train(single(), compile=compile, callbacks=[Look()])
    assert runs and len(codes[True]) == len(codes[False])
    for ours, plain in zip(codes[True][:6], codes[False]): assert_close(ours, plain, rtol=1e-3, atol=1e-4)


class Foreign(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = SparseAutoencoder(64, 20)
    def encode(self, x): return self.inside.encode(x)
    def decode(self, z): return self.inside.decode(z)


@pytest.mark.parametrize('make, options', [
    (partial(SparseAutoencoder, 64, 20), dict(sparsity_type=lambda z: z.abs().mean())),
    (partial(SparseAutoencoder, 64, 20), dict(revive='auxiliary')), (Foreign, dict()),
    (partial(single, activation=BatchTopK), dict())])
def test_what_a_graph_would_freeze_is_compiled(make, options, runs):
    histories, counters = [], torch._dynamo.utils.counters['stats']
    for compile in (False, True):
        torch.manual_seed(0)
        before = counters['unique_graphs']
        histories.append(train(make().eval(), compile=compile, **options))
    assert not runs and counters['unique_graphs'] > before
    assert_close(histories[1]['val_loss'], histories[0]['val_loss'], rtol=1e-2, atol=0)


@pytest.mark.parametrize('activation', [TopK, BatchTopK])
def test_the_same_bit_for_bit(activation):
    assert train(single(activation=activation))['train_loss'] == train(single(activation=activation))['train_loss']


@pytest.mark.parametrize('compile', [False, True])
@pytest.mark.parametrize('when', [0, 3])
def test_divergence(compile, when):
    "Its loss becomes known a batch later; the weights are the last good ones."
    model = SparseAutoencoder(64, 20)
    model.normalize_decoder_weights()
    before = copy.deepcopy(model.state_dict())
    class Break(Callback):
        def before_step(self, trainer):
            if trainer.epoch == when: trainer.model.encoder_bias_1.data.fill_(torch.nan)
    with pytest.raises(TrainingDiverged, match=f'epoch {when} ') as raised:
        train(model, sparsity_type='l1', callbacks=[Break()], compile=compile)
    assert raised.value.history['epochs_trained'] == when
    assert all(p.isfinite().all() for p in model.parameters())
    model.cpu()
    same = [torch.allclose(p, before[name]) for name, p in model.state_dict().items()]
    assert all(same) if when == 0 else not all(same)


def test_a_sweep_and_evaluation():
    def make(): return SparseAutoencoder(64, 20)
    result = sweep(make, TRAIN, VAL, dict(sparsity_weight=[0.001, 0.01], seed=[0, 1]), num_epochs=3,
                   learning_rate=1e-3, patience=3, sparsity_type='l1', device='cuda', verbose=0)
    assert len(result) == 4
    model = result[0].model
    there = evaluate_sparse_autoencoder(model, VAL, 'cuda')
    here = evaluate_sparse_autoencoder(model, VAL, 'cpu')
    assert_close(there['mean'], here['mean'], rtol=1e-4, atol=0)
    assert_close(there['latent_codes'], here['latent_codes'], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('shape', [(1100, 1001), (3, 7)])
def test_mean_squared_error(dtype, shape):
    torch.manual_seed(0)
    a = torch.randn(shape, dtype=dtype, device='cuda', requires_grad=True)
    b = torch.randn(shape, device='cuda')
    losses = [mean_squared_error(a, b), F.mse_loss(a.float(), b)]
    assert_close(*losses)
    ours, theirs = (torch.autograd.grad(3*loss, a)[0] for loss in losses)
    assert ours.dtype == dtype
    assert_close(ours, theirs, rtol=1e-6 if dtype == torch.float32 else 2**-8, atol=1e-7)


@pytest.mark.parametrize('shape', [(70, 50), (3000, 1000), (40, 3, 20)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_count_active(shape, dtype):
    z = torch.randn(shape, device='cuda', dtype=dtype).round()
    assert torch.equal(count_active(z), (z != 0).flatten(1).sum(0).float())
