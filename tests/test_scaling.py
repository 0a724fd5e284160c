"Scalings by the statistics of each sample: models, training, evaluation, files."
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from sparse_ae import (SparseAutoencoder, TiedWeightSparseAutoencoder, evaluate_sparse_autoencoder,
                       splice, train_sparse_autoencoder_with_early_stopping)
from sparse_ae.activations import BackwardElimination, MatchingPursuit, TopK, Unrolled
from sparse_ae.networks.splice import set_latents
from sparse_ae.scaling import SCALINGS
from sparse_ae.sparsity_control import AuxiliaryLoss, Resample, resample
from sparse_ae.training import Trainer

PER_SAMPLE = sorted(name for name, cls in SCALINGS.items() if cls.per_sample)
OPTIONS = dict(num_epochs=3, learning_rate=3e-3, patience=3, batch_size=32, seed=0, verbose=0,
               sparsity_type='none')
KINDS = {
    'topk': dict(activation=TopK(3), hidden_dims=(), decoder_norm='atom'),
    'jumprelu': dict(activation='jumprelu', hidden_dims=(), decoder_norm='atom'),
    'gated': dict(activation='gated', hidden_dims=()),
    'unrolled': dict(activation=TopK(3), hidden_dims=(), decoder_norm='atom', encoder=Unrolled(2)),
    'pursuit': dict(hidden_dims=(), decoder_norm='atom', encoder=MatchingPursuit(3)),
    'elimination': dict(activation=TopK(3), hidden_dims=(), decoder_norm='atom',
                        encoder=BackwardElimination(3)),
    'deep': dict(hidden_dims=(9, 7)),
    'batch_norm': dict(hidden_dims=(9,), batch_norm=True)}


def rows(n=160, seed=0):
    "Rows whose sizes and means differ by orders of magnitude."
    generator = torch.Generator().manual_seed(seed)
    sizes = 10**(2*torch.rand(n, 1, generator=generator))
    return sizes*(torch.randn(n, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
                  + torch.randn(n, 1, generator=generator))


def new_model(kind, scaling=None, cls=SparseAutoencoder):
    torch.manual_seed(0)
    return cls(8, 16, scaling=scaling, **KINDS[kind])


def train(model, x, val, **options):
    return train_sparse_autoencoder_with_early_stopping(model, x, val, **OPTIONS | options)


@given(scale=st.floats(-30, 30), mean=st.floats(-100, 100), width=st.integers(2, 9),
       dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
       name=st.sampled_from(PER_SAMPLE))
def test_any_size_is_finite_and_restored(scale, mean, width, dtype, name):
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = ((x + mean)*10.**scale).to(dtype)
    scaling = SCALINGS[name]().build(width, dtype=dtype)
    y = scaling(x)
    assert y.isfinite().all() and y.dtype == dtype and y.double().abs().max() < 1.1*width**0.5
    wide = x.double()
    error = (scaling.restore(y, x).double() - wide).abs()
    bound = 8*torch.finfo(dtype).eps*wide.abs().amax(1, keepdim=True)
    if name == 'layer_norm':     # epsilon stands in one direction alone
        deviation, centred = wide.std(1, keepdim=True), wide - wide.mean(1, keepdim=True)
        bound = bound + 1.01*centred.abs()*1e-5/(deviation + 1e-5)
    assert (error <= bound).all()


@pytest.mark.parametrize('name', PER_SAMPLE)
@pytest.mark.parametrize('kind', KINDS)
def test_training_is_that_of_scaled_rows(kind, name):
    x, val, unit = rows(), rows(40, 1), SCALINGS[name]().build(8)
    cls = TiedWeightSparseAutoencoder if kind == 'pursuit' else SparseAutoencoder
    scaled, plain = new_model(kind, name, cls), new_model(kind, cls=cls)
    history = train(scaled, x, val, initialize=kind not in ('deep', 'batch_norm'))
    by_hand = train(plain, unit(x), unit(val), initialize=kind not in ('deep', 'batch_norm'))
    assert history['val_loss'] == by_hand['val_loss'] and history['train_loss'] == by_hand['train_loss']
    for key, value in plain.state_dict().items(): assert torch.equal(scaled.state_dict()[key], value)
    with torch.no_grad():
        z = scaled.encode(val)
        assert torch.equal(z, plain.encode(unit(val)))
        assert torch.equal(scaled.decode(z), plain.decode(z))
        assert_close(scaled(val), unit.restore(plain(unit(val)), val))
    results = evaluate_sparse_autoencoder(scaled, val)
    expected = (unit.restore(plain(unit(val)), val) - val).double().square().mean(1).detach().numpy()
    assert_close(results['errors'], expected, rtol=1e-4, atol=0.)


@pytest.mark.parametrize('name', PER_SAMPLE)
@pytest.mark.parametrize('revive', [Resample(32), AuxiliaryLoss(window=32)], ids=['resample', 'auxiliary'])
def test_dead_latents_are_revived_in_the_scaled_unit(name, revive):
    x, val, unit = rows(), rows(40, 1), SCALINGS[name]().build(8)
    scaled, plain = new_model('topk', name), new_model('topk')
    for model in (scaled, plain):
        with torch.no_grad(): model.encoder_bias_1[:8] = -100
    train(scaled, x, val, revive=revive)
    train(plain, unit(x), unit(val), revive=revive)
    assert torch.equal(scaled.encoder_mat_1, plain.encoder_mat_1)
    with torch.no_grad():
        for model, batch in ((scaled, x), (plain, unit(x))):
            resample(model, torch.arange(16) < 4, batch, torch.Generator().manual_seed(1))
            model.initialize(batch)
    for key, value in plain.state_dict().items(): assert torch.equal(scaled.state_dict()[key], value)


@pytest.mark.parametrize('name', PER_SAMPLE)
def test_targets_have_the_unit_of_their_inputs(name):
    x, val, unit = rows(), rows(40, 1), SCALINGS[name]().build(8)
    noisy = [t + t.std(1, keepdim=True)*torch.randn(t.shape, generator=torch.Generator().manual_seed(2))
             for t in (x, val)]
    scaled, plain = new_model('topk', name), new_model('topk')
    history = train(scaled, *noisy, train_targets=x, val_targets=val, initialize=True)
    pairs = [unit.side_by_side(torch.cat([a, b], 1)).split(8, 1) for a, b in zip(noisy, (x, val))]
    by_hand = train(plain, pairs[0][0], pairs[1][0], train_targets=pairs[0][1], val_targets=pairs[1][1],
                    initialize=True)
    assert history['val_loss'] == by_hand['val_loss']
    shift, scale = unit.statistics(noisy[1])
    with torch.no_grad(): expected = plain(pairs[1][0])*scale + shift
    results = evaluate_sparse_autoencoder(scaled, noisy[1], targets=val)
    assert_close(results['errors'], (expected - val).double().square().mean(1).numpy(), rtol=1e-4, atol=0.)


@pytest.mark.parametrize('name', [*PER_SAMPLE, 'columns'])
def test_start_and_revival_with_targets(name):
    x, unit = rows(), SCALINGS[name]().build(8).fit(rows())
    noisy = x + 0.5*torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    scaled, plain = new_model('topk', name), new_model('topk')
    if name == 'columns': scaled.scaling.fit(rows())
    pairs = unit.side_by_side(torch.cat([noisy, x], 1)).split(8, 1)
    with torch.no_grad():
        for model, inputs, targets in ((scaled, noisy, x), (plain, *pairs)):
            model.initialize(inputs, target=targets)
            resample(model, torch.arange(16) < 4, inputs, torch.Generator().manual_seed(1), target=targets)
    for key, value in plain.state_dict().items(): assert_close(scaled.state_dict()[key], value)


@pytest.mark.parametrize('name', PER_SAMPLE)
def test_saved_resumed_and_converted(name, tmp_path):
    x, val = rows(), rows(40, 1)
    whole, part, resumed = (new_model('topk', name) for _ in range(3))
    train(whole, x, val, num_epochs=4)
    train(part, x, val, num_epochs=2, checkpoint_dir=tmp_path/'run')
    train(resumed, x, val, num_epochs=4, checkpoint_dir=tmp_path/'run', resume=True)
    for key, value in whole.state_dict().items(): assert torch.equal(resumed.state_dict()[key], value)
    whole.save_pretrained(tmp_path/'model')
    again = SparseAutoencoder.from_pretrained(tmp_path/'model')
    assert again.config() == whole.config() and torch.equal(again(val), whole(val))
    low = SparseAutoencoder.from_pretrained(tmp_path/'model').to(torch.bfloat16)
    assert low(val.bfloat16()).dtype == torch.bfloat16
    assert_close(low(val.bfloat16()).float(), whole(val), rtol=0.2, atol=3.)


@pytest.mark.parametrize('name', PER_SAMPLE)
def test_spliced_with_and_without_the_error(name):
    network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 3))
    sae, x = new_model('topk', name).eval(), rows(20)
    h = network[0](x)
    with splice(network, '0', sae): assert_close(network(x), network[1](sae(h)))
    with splice(network, '0', sae, error_term=True): assert_close(network(x), network[1](h))
    latent = int(sae.encode(h).count_nonzero(0).argmax())
    z = sae.encode(h)
    z[:, latent] = 0
    shift, scale = sae.scaling.statistics(h)
    with splice(network, '0', sae, edit=set_latents(latent, 0.)):
        assert_close(network(x), network[1](sae.decode(z)*scale + shift))


@pytest.mark.parametrize('name', PER_SAMPLE)
def test_what_cannot_be(name):
    for call, message in (
            (lambda: SparseAutoencoder(8, 16, scaling=name, output_dim=4), f"output_dim must be None for scaling='{name}'"),
            (lambda: SparseAutoencoder(1, 16, scaling=name), 'input_dim must be at least 2'),
            (lambda: new_model('topk', name).fold_scaling(), "scaling must be 'global' to be folded")):
        with pytest.raises(ValueError, match=message): call()


@pytest.mark.parametrize('name', PER_SAMPLE)
def test_a_change_of_unit_does_not_change_the_code(name):
    model, x = new_model('topk', name), rows(20)
    z, y = model.encode(x), model(x)
    assert_close(model.encode(4*x), z, rtol=1e-3, atol=1e-4)
    assert_close(model(4*x), 4*y, rtol=1e-3, atol=1e-3)
    assert model.rescale(4.) is model and torch.equal(model(x), y)
    columns = new_model('topk', 'columns')
    columns.scaling.fit(x)
    y = columns(x)
    assert_close(columns.rescale(4.)(4*x), 4*y, rtol=1e-4, atol=1e-4)


def test_trainer_reports_the_scaling():
    trainer = Trainer(new_model('topk', 'layer_norm'), rows(), rows(40, 1), **OPTIONS)
    assert trainer.scaling.name == 'layer_norm'
