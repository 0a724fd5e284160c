"Every preset: gradients, state, dtypes; and further cases of penalties, data and regularisers."
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sparse_ae import (NestedReconstruction, SparseAutoencoder, TiedWeightSparseAutoencoder, TopK,
                       digits, evaluate_sparse_autoencoder, feature_contributions, hoyer_projection,
                       match_dictionaries, sparse_dictionary,
                       train_sparse_autoencoder_with_early_stopping as fit)
from sparse_ae.losses import get_penalty
from sparse_ae.presets import PRESETS
from sparse_ae.training import Trainer, batch_losses

SHORT = dict(num_epochs=2, steps_per_epoch=20, batch_size=64)


def preset(name, input_dim=64, latent_dim=48, **overrides):
    torch.manual_seed(0)
    return SparseAutoencoder.from_preset(
        name, input_dim, latent_dim, **{**({} if name == 'ng' else dict(l0=4)), **overrides})


@pytest.mark.parametrize('name', PRESETS)
def test_gradients_are_those_of_the_loss(name):
    "Central differences, for every entry of every parameter without a pseudo-gradient."
    model, training = preset(name, 5, 8, dtype=torch.float64, l0=None, hidden_dims=(6,)
                             if name == 'classic' else ())
    x = torch.randn(12, 5, dtype=torch.float64)
    if model.depth == 1: model.initialize(x, 3)
    model.train()
    for _ in range(3): model(x)  # initialises a running threshold
    model.eval()
    if 'threshold' in dict(model.activation.named_buffers()):
        model.activation.threshold *= 0.97  # not equal to an entry of the code
    penalty = get_penalty(training['sparsity_type'])
    # differences do not treat the decoder as constant, as the loss of the gate does
    regularizers = [r for r in training.get('regularizers', ()) if r.name != 'gate']

    def loss(): return batch_losses(model, x, penalty, 0.1, regularizers=regularizers).objective
    gradients = torch.autograd.grad(loss(), list(model.parameters()), allow_unused=True)
    for (key, p), gradient in zip(model.named_parameters(), gradients):
        if key == 'activation.log_threshold': continue
        gradient = torch.zeros_like(p) if gradient is None else gradient
        for index in range(p.numel()):
            with torch.no_grad():
                entry, values = p.view(-1)[index].item(), []
                for moved in (entry + 1e-6, entry - 1e-6):
                    p.view(-1)[index] = moved
                    values.append(loss().item())
                p.view(-1)[index] = entry
            slope = (values[0] - values[1]) / 2e-6
            assert abs(slope - gradient.reshape(-1)[index].item()) < 1e-5 + 1e-4*abs(slope), key


@pytest.mark.parametrize('name', PRESETS)
def test_preset_is_saved_and_loaded(name, tmp_path):
    model, training = preset(name, **SHORT)
    x = digits()
    fit(model, x[:1500], x[1500:], **training, verbose=0, seed=0)
    model.save_pretrained(tmp_path)
    again = SparseAutoencoder.from_pretrained(tmp_path)
    assert torch.equal(again(x), model(x)) and again.config() == model.config()
    other = SparseAutoencoder(**model.config()).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.encode(x), model.encode(x))


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
@pytest.mark.parametrize('name', PRESETS)
def test_preset_in_other_dtypes(name, dtype):
    model, training = preset(name, dtype=dtype, **SHORT)
    x = digits()
    history = fit(model, x[:1500], x[1500:], **training, verbose=0, seed=0)
    assert np.isfinite(history['train_loss']).all() and model.dtype == dtype
    assert history['val_recon_loss'][-1] < history['val_recon_loss'][0]
    assert model(x.to(dtype)).isfinite().all()


@pytest.mark.parametrize('name', ['lista', 'jumprelu', 'p_norm', 'gated'])
def test_preset_resumes_from_a_checkpoint(name, tmp_path):
    x = digits()

    class Stop(Exception): pass

    def run(folder, stop_at=None, resume=False):
        model, training = preset(name, num_epochs=4, steps_per_epoch=10, batch_size=64)
        t = Trainer(model, x[:1500], x[1500:], **training, verbose=0, seed=0, checkpoint_dir=folder,
                    checkpoint_epochs=1, resume=resume)
        if stop_at is not None:
            listeners = t.listeners['before_step']
            def stop(trainer):
                if trainer.step == stop_at: raise Stop
            listeners.append(stop)
        torch.manual_seed(1)
        return t.fit(), model
    whole, model = run(tmp_path/'whole')
    with pytest.raises(Stop): run(tmp_path/'parts', stop_at=25)
    parts, resumed = run(tmp_path/'parts', resume=True)
    assert parts['val_loss'] == whole['val_loss']
    for p, q in zip(model.state_dict().values(), resumed.state_dict().values()):
        assert torch.equal(p, q)


def test_normalised_training_restores_the_unit_of_the_data_after_an_error():
    x = 100*digits()
    model = SparseAutoencoder(64, 20, hidden_dims=(), activation=TopK(3))
    torch.nn.init.uniform_(model.decoder_bias_1)   # all biases 0: it would start in the scaled unit
    before = model(x)

    def broken(z): raise ArithmeticError
    with pytest.raises(ArithmeticError):
        fit(model, x, x, 1, 1e-3, 1, sparsity_type=broken, normalize=True, verbose=0)
    assert_close(model(x), before, rtol=1e-4, atol=1e-4)
    assert model.scaling is None


def test_a_tied_model_has_every_preset():
    x = digits()
    for name in PRESETS:
        model, training = TiedWeightSparseAutoencoder.from_preset(name, 64, 48, **SHORT)
        history = fit(model, x[:1500], x[1500:], **training, verbose=0, seed=0)
        assert np.isfinite(history['val_loss']).all(), name


def test_streams_can_be_normalised_with_a_number():
    source = sparse_dictionary(8, 16, 2)
    val = source.sample(500, seed=5).x
    model, training = preset('topk', 8, 16, **{**SHORT, 'normalize': 0.4})
    history = fit(model, source.batches(64), val, **training, verbose=0)
    assert history['val_loss'][-1] < history['val_loss'][0]
    with pytest.raises(ValueError, match='normalize must be False, or the standard deviation'):
        model, training = preset('topk', 8, 16, **SHORT)
        fit(model, source.batches(64), val, **training, verbose=0)


def test_a_known_dictionary_is_found():
    source = sparse_dictionary(20, 32, 3, rates='flat')
    (x, _), (new, true) = source.sample(20_000), source.sample(3000, seed=1)
    torch.manual_seed(0)
    model, training = SparseAutoencoder.from_preset('lista', 20, 32, l0=3, num_epochs=6)
    fit(model, x, new, **training, seed=0, verbose=0)
    results = evaluate_sparse_autoencoder(model, new)
    match = match_dictionaries(model.decoder_weights()[0].T, source.atoms, results['latent_codes'],
                               true)
    assert match.mcc > 0.95 and results['explained_variance'] > 0.9
    assert np.nanmean(match.precision) > 0.8 and np.nanmean(match.recall) > 0.8


def test_contributions_add_up_in_single_precision():
    torch.manual_seed(0)
    x = digits()[:50]
    for activation in ('relu', TopK(5)):
        model = SparseAutoencoder(64, 40, hidden_dims=(80, 60), activation=activation)
        parts = feature_contributions(model, x)
        assert_close(parts.contributions.sum(1) + parts.offset, model(x))


def test_projection_keeps_dtypes_and_shapes():
    for dtype in (torch.float32, torch.float64):
        s = hoyer_projection(torch.randn(2, 3, 9, dtype=dtype), 2.)
        assert s.shape == (2, 3, 9) and s.dtype == dtype
        assert_close(s.sum(-1), torch.full((2, 3), 2., dtype=dtype))


def test_prefixes_must_fit_the_model():
    x = digits()
    with pytest.raises(ValueError, match='prefixes must be below latent_dim=10, got 20'):
        fit(SparseAutoencoder(64, 10), x, x, 1, 1e-3, 1, verbose=0,
            regularizers=[NestedReconstruction((5, 20))])
