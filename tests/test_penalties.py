"A name, its function and a `functools.partial` of it are the same penalty, wherever one is given."
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from sparse_ae import (LayerSparsity, Penalty, SparseAutoencoder, TrainingDashboard, get_penalty,
                       sweep, train_sparse_autoencoder_with_early_stopping as train)
from sparse_ae.losses import PENALTIES, hoyer_sparsity_loss, kl_divergence_sparsity_loss

OPTIONS = dict(num_epochs=4, learning_rate=3e-3, patience=9)


def make(name):
    "The L0 penalty needs a threshold that learns."
    torch.manual_seed(0)
    return SparseAutoencoder(64, 20, activation='jumprelu' if name == 'l0' else 'relu')


def run(split, name, kind, **options):
    model = make(name)
    history = train(model, *split, sparsity_type=kind, seed=0, verbose=0, **OPTIONS, **options)
    history.pop('seconds')
    return history, [p.detach().clone() for p in model.parameters()]


def same(one, other):
    return one[0] == other[0] and all(map(torch.equal, one[1], other[1]))


@pytest.mark.parametrize('name', PENALTIES)
@pytest.mark.parametrize('options', [{}, dict(target_sparsity=0.2), dict(sparsity_weight=1.)])
def test_name_and_function_give_the_same_run_bit_for_bit(split, name, options):
    by_name = run(split, name, name, **options)
    function = PENALTIES[name].function
    for kind in (function, partial(function), PENALTIES[name]):
        assert same(run(split, name, kind, **options), by_name), kind


@pytest.mark.parametrize('name', ['kl', 'l1', 'hoyer', 'log'])
def test_a_target_l0_as_well(split, name):
    with pytest.warns(UserWarning, match='target_l0=8 is not reached'):
        runs = [run(split, name, kind, target_l0=8) for kind in (name, PENALTIES[name].function)]
    assert same(*runs)
    assert (runs[0][0]['target_sparsity'][-1] != 0.05) == (name == 'kl')


@pytest.mark.parametrize('name', sorted(set(PENALTIES) - {'l0'}))
def test_in_a_sweep(split, name, capsys):
    "Stacked runs, also of the two kinds in one stack."
    def go(*kinds):
        runs = sweep(lambda: SparseAutoencoder(64, 20), *split,
                     dict(sparsity_type=kinds, seed=[0, 1]), **OPTIONS)
        assert 'one after the other' not in capsys.readouterr().out
        return [(run.history['val_loss'], list(run.model.parameters())) for run in runs]
    function = PENALTIES[name].function
    for one, other in zip(go(name), go(function)): assert same(one, other)
    for one, other in zip(go(name, function), go(function, name)): assert same(one, other)


@pytest.mark.parametrize('name', ['kl', 'hoyer', 'none'])
def test_in_a_dashboard(split, name):
    "With the same sliders and the same run."
    sliders, losses = [], []
    for kind in (name, PENALTIES[name].function):
        dashboard, model = TrainingDashboard(), make(name)
        dashboard.widget
        dashboard.fit(model, *split, sparsity_type=kind, seed=0, verbose=0, **OPTIONS)
        losses.append(dashboard.wait()['val_loss'])
        sliders.append(list(dashboard.panel.sliders))
    assert losses[0] == losses[1] and sliders[0] == sliders[1]
    assert ('target' in sliders[0]) == (name == 'kl')


def test_the_public_function_of_hoyer_trains_a_live_model(split):
    "Without the warm-up of its name it gave a model with 90 % dead latents."
    torch.manual_seed(0)
    history = train(SparseAutoencoder(64, 50), *split, 40, 3e-3, 40, 1.,
                    sparsity_type=hoyer_sparsity_loss, seed=0, verbose=0)
    assert history['dead_fraction'][-1] < 0.3


def test_a_bound_target_takes_precedence(split):
    bound = partial(kl_divergence_sparsity_loss, target_sparsity=0.2)
    assert same(run(split, 'kl', bound), run(split, 'kl', 'kl', target_sparsity=0.2))
    assert not same(run(split, 'kl', bound), run(split, 'kl', 'kl'))


@pytest.mark.parametrize('detached', [
    lambda z: z.detach().abs().mean(), lambda z: (z != 0).float().mean(), lambda z: torch.ones(())])
@pytest.mark.parametrize('weight', [0., 10.])
def test_a_penalty_without_a_gradient_is_refused_at_the_first_step(split, detached, weight):
    model = make('l1')
    before = model(split[1]).detach()
    with pytest.raises(TypeError, match='a gradient with respect to the code, got one that is det'):
        train(model, *split, sparsity_type=detached, sparsity_weight=weight, verbose=0, **OPTIONS)
    with pytest.raises(TypeError, match='a gradient with respect to the code'):
        sweep(lambda: SparseAutoencoder(64, 20), *split, dict(seed=[0, 1]), sparsity_type=detached,
              verbose=0, **OPTIONS)
    assert_close(model(split[1]), before)   # no step was taken


def test_a_penalty_of_hidden_layers_by_name_and_function(split):
    runs = [run(split, 'l1', 'l1', regularizers=[LayerSparsity(1, kind)])
            for kind in ('kl', kl_divergence_sparsity_loss)]
    assert same(*runs)


def test_attributes_of_a_registered_penalty_are_used(split, monkeypatch):
    "A new entry behaves as the built-in ones: its warm-up, by name and by function."
    def cubic(z): return z.abs().pow(3).mean()
    monkeypatch.setitem(PENALTIES, 'cubic', Penalty(cubic, warmup=0.5))
    history, _ = run(split, 'cubic', 'cubic')
    assert history['sparsity_weight'][0] < 0.1 == history['sparsity_weight'][-1]
    assert same(run(split, 'cubic', cubic), run(split, 'cubic', 'cubic'))
    assert get_penalty(cubic).warmup == 0.5
