"Properties of the measures of a dictionary, and their errors."
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from torch import nn
from torch.utils.data import TensorDataset

from sparse_ae import Rows, SparseAutoencoder, TopK, sparse_dictionary, sweep
from sparse_ae.eval_viz import dictionary, evaluate_sparse_autoencoder
from sparse_ae.measures import (Stability, absorption, angular_entropy, atom_clusters, best_matches,
                                coactivation, coactive_groups, dictionary_coordinates,
                                dictionary_stability, explained_variance_with, main_latents,
                                manifold_clusters, mixture_index, planar_clusters,
                                plot_coactivation, plot_dictionary_map, plot_manifold_clusters, plot_stability,
                                probing_table, separability_index, span_fraction, sparse_probing,
                                splitting, stability, subspace_agreement)

seeds = st.integers(0, 2**16)


def draw(seed, *shape, density=1.):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * (rng.random(shape) < density)


def rotation(seed, n):
    return np.linalg.qr(draw(seed, n, n))[0]


class OwnRows(Rows):
    "Rows of a user, such as those of a store."
    def __init__(self, x): self.x, self.shape = x, tuple(x.shape)
    def __getitem__(self, indices): return self.x[indices]


@pytest.fixture(scope='module')
def runs():
    x = sparse_dictionary(12, 24, l0=2).sample(600).x
    make = lambda: SparseAutoencoder(12, 24, hidden_dims=(), decoder_norm='atom',
                                     activation=TopK(2))
    return sweep(make, x, x[:100], {'seed': range(3)}, num_epochs=2, patience=2,
                 learning_rate=1e-2, sparsity_type='none', verbose=0), x


# Stability and subspaces

@given(seeds, st.integers(2, 12), st.integers(2, 12), st.integers(2, 6))
def test_best_cosine_depends_on_directions_only(seed, n, m, d):
    a, b = draw(seed, n, d), draw(seed + 1, m, d)
    match = best_matches(a, b)
    cosines = (a / np.linalg.norm(a, axis=1, keepdims=True)
               ) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    np.testing.assert_allclose(match.cosines, cosines.max(1), atol=1e-5)
    turn, order = rotation(seed, d), np.random.default_rng(seed).permutation(m)
    again = best_matches(3*a @ turn, (7*b @ turn)[order])
    np.testing.assert_allclose(again.cosines, match.cosines, atol=1e-5)
    np.testing.assert_allclose(cosines[np.arange(n), order[again.latents]], match.cosines,
                               atol=1e-5)


@given(seeds, st.floats(-1, 1))
def test_stability_counts_runs_above_the_threshold(seed, threshold):
    a, others = draw(seed, 9, 4), [draw(seed + k, 7, 4) for k in (1, 2, 3)]
    found = dictionary_stability(a, others, threshold)
    np.testing.assert_allclose(found.stability, (found.cosines >= threshold).mean(0))
    assert found.mean_cosine == pytest.approx(found.cosines.mean())
    assert found.same_index.tolist() == [
        (best_matches(a, b).latents == np.arange(9)).sum() for b in others]


def test_zero_atoms_have_no_stability_and_are_no_match():
    found = dictionary_stability(torch.eye(3)[[0, 1]], [torch.tensor([[1., 0, 0], [0, 0, 0]])])
    assert found.cosines.tolist() == [[1, 0]]
    found = dictionary_stability(torch.tensor([[1., 0], [0, 0]]), [torch.eye(2)])
    assert found.mean_cosine == 1 and np.isnan(found.stability[1])
    assert plot_stability(found)


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_atoms_must_be_finite(bad):
    atoms = torch.eye(3)
    atoms[1, 2] = bad
    for measure in (best_matches, lambda a, b: dictionary_stability(a, [b]), span_fraction,
                    subspace_agreement, lambda a, b: atom_clusters(a),
                    lambda a, b: dictionary_coordinates(a)):
        with pytest.raises(ValueError, match='NaN or infinity'): measure(atoms, torch.eye(3))


def test_stability_of_a_sweep(runs):
    runs, x = runs
    found = stability(runs, 1, x)
    atoms = [dictionary(run.model) for run in runs]
    alive = [evaluate_sparse_autoencoder(run.model, x)['density'] > 0 for run in runs]
    for k, other in enumerate((0, 2)):
        kept = best_matches(atoms[1], atoms[other][alive[other]])
        np.testing.assert_allclose(found.cosines[k][alive[1]], kept.cosines[alive[1]], atol=1e-6)
    assert np.isnan(found.stability[~alive[1]]).all()
    assert stability(runs[:2]).cosines.shape == (1, 24)


def test_common_start_is_found_out(runs):
    runs, _ = runs
    copies = [runs[0], runs[0]._replace(settings={'seed': 1})]
    with pytest.warns(UserWarning, match='common start: 24 of 24'): stability(copies)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        stability(runs)


def test_independent_runs_rarely_seem_to_have_a_common_start():
    for n in (4, 8, 30):
        most = [dictionary_stability(draw(k, n, 6), [draw(k + 10**6, n, 6)]).same_index[0]
                for k in range(200)]
        assert 0.5 < np.mean(most) < 1.6 and np.mean(np.array(most) > max(3, min(11, n//2))) < 0.03


@given(seeds, st.integers(1, 3))
def test_span_fraction_and_angles_turn_with_the_space(seed, neighbors):
    a, b, turn = draw(seed, 6, 5), draw(seed + 1, 8, 5), rotation(seed, 5)
    parts, again = span_fraction(a, b, neighbors), span_fraction(a @ turn, 2*b @ turn, neighbors)
    np.testing.assert_allclose(parts.fractions, again.fractions, atol=1e-3)
    best = best_matches(np.concatenate([a, -a]), b).cosines.reshape(2, 6).max(0)
    assert (parts.fractions >= best**2 - 1e-4).all()
    if neighbors == 1: np.testing.assert_allclose(parts.fractions, best**2, atol=1e-4)
    whole = subspace_agreement(a, b, 2), subspace_agreement(a @ turn, b @ turn, 2)
    np.testing.assert_allclose(whole[0].angles, whole[1].angles, atol=0.2)


def test_subspaces_are_those_with_most_of_the_atoms():
    e = torch.eye(4)
    found = subspace_agreement(e[[0, 0, 0, 1]], e[[0, 0, 2]], 1)
    assert found.agreement == pytest.approx(1) and found.chance == 0.25
    assert subspace_agreement(e[[0, 0, 0, 1]], e[[2, 2, 0]], 1).agreement == pytest.approx(0)
    assert subspace_agreement(e[[0]*10 + [1]], e[[0, 1]]).rank == 1   # 90 % of the squares


def test_span_of_no_atom():
    parts = span_fraction(torch.zeros(2, 4), torch.eye(4), 2)
    assert np.isnan(parts.mean) and np.isnan(parts.fractions).all()
    with pytest.raises(ValueError, match='neighbors must be'):
        span_fraction(torch.eye(4), torch.zeros(9, 4), 2)


def test_explained_variance_of_any_module(runs):
    runs, x = runs

    class Own(nn.Module):
        def encode(self, x): return x.relu()
        def decode(self, z): return z
    x = x.abs() * torch.tensor([1.] + [0]*11)
    assert explained_variance_with(Own(), x, [True] + [False]*11) == pytest.approx(1)
    assert explained_variance_with(Own(), x, [False] + [True]*11) < 0
    with pytest.raises(ValueError, match='24 booleans'):
        explained_variance_with(runs[0].model, x, np.ones(23, bool))


# Codes of any kind

@pytest.fixture
def kinds(tmp_path):
    z = draw(0, 60, 5, density=0.4).astype(np.float32)
    np.save(tmp_path/'z.npy', z)
    tensor = torch.from_numpy(z)
    with warnings.catch_warnings():   # torch calls its format a beta version
        warnings.simplefilter('ignore')
        compressed = tensor.to_sparse_csr()
    return z, [tensor, tensor.double(), np.load(tmp_path/'z.npy', mmap_mode='r'), csr_array(z),
               compressed, TensorDataset(tensor), [z[:20], z[20:]], OwnRows(tensor)]


def test_codes_of_any_kind(kinds):
    z, kinds = kinds
    y, true = np.arange(60) % 3, (z > 0)[:, :3].astype(float)
    parents = [-1, 0, 0]
    for codes in kinds:
        np.testing.assert_array_equal(coactivation(codes), coactivation(z))
        np.testing.assert_array_equal(sparse_probing(codes, y).accuracy,
                                      sparse_probing(z, y).accuracy)
        assert main_latents(codes, true).latents.tolist() == [0, 1, 2]
        assert splitting(codes, true).tolist() == splitting(z, true).tolist()
        assert absorption(codes, true, parents).mean == absorption(z, true, parents).mean
        assert len(coactive_groups(codes, 0.1)) == len(coactive_groups(z, 0.1))
        found, expected = (manifold_clusters(some, np.eye(5), [[0, 1, 2]], min_samples=5)
                           for some in (codes, z))
        assert found[0].score == expected[0].score


@pytest.mark.parametrize('measure', [
    coactivation, coactive_groups, lambda z: sparse_probing(z, np.arange(len(z)) % 2, (1,)),
    lambda z: main_latents(z, np.ones((len(z), 1))), lambda z: splitting(np.ones((len(z), 1)), z),
    lambda z: manifold_clusters(z, np.eye(3))])
def test_codes_must_be_finite(measure):
    z = np.ones((6, 3))
    z[4, 1] = np.nan
    with pytest.raises(ValueError, match='NaN or infinity'): measure(z)
    with pytest.raises(TypeError, match='codes'): measure('codes')


# Probes

@given(seeds, st.integers(2, 4))
def test_probes_do_not_depend_on_the_unit(seed, n_classes):
    y, z = np.arange(90) % n_classes, draw(seed, 90, 4)
    z[:, 0] += y
    probes = sparse_probing(z, y, (1, 2))
    again = sparse_probing(1e3*z[:, ::-1] + 5, y, (1, 2))
    np.testing.assert_array_equal(again.columns, 3 - probes.columns)
    np.testing.assert_allclose(again.accuracy, probes.accuracy, atol=0.1)


def test_fewer_samples_than_latents_and_dead_latents():
    y, z = np.arange(12) % 2, np.zeros((12, 400))
    z[:, 7] = y
    probes = sparse_probing(z, y.astype(bool), (1, 5, None))
    assert probes.columns[0, 0] == 7 and (probes.accuracy == 1).all() and probes.classes == [True]


def test_held_out_rows_are_not_used_to_choose():
    "With many random columns, the best of all rows would predict held-out rows."
    accuracy = [sparse_probing(draw(k, 60, 3000), np.arange(60) % 2, (1,), 0.5, k).accuracy[0, 0]
                for k in range(30)]
    assert abs(np.mean(accuracy) - 0.5) < 0.06


@pytest.mark.parametrize('labels, message', [
    (['a']*10, 'two classes'), ([1.5]*10, 'fractions'), ([[1]]*10, 'shape'), ([1]*9, 'shape'),
    (['a'] + ['b']*9, "'a'"), (torch.tensor([0.]*9 + [float('nan')]), 'NaN')])
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=message): sparse_probing(np.ones((10, 6)), labels)


def test_probing_table(runs):
    runs, x = runs
    table = probing_table(runs[0].model, x, (x[:, 0] > x[:, 0].median()).int(), (1, 20, None))
    assert [list(row) for row in table] == [['columns', '1', '20', 'all']]*2
    assert table[1]['1'] > 0.95 and [row['columns'] for row in table] == ['latents', 'inputs']


# Known features

@given(seeds)
def test_a_perfect_code_absorbs_and_splits_nothing(seed):
    true = sparse_dictionary(8, 12, l0=2, hierarchy=0.5).sample(300, seed)
    order = np.random.default_rng(seed).permutation(12)
    parents = sparse_dictionary(8, 12, l0=2, hierarchy=0.5).parents
    active = (true.z != 0).any(0).numpy()
    main = main_latents(true.z[:, order], true.z)
    np.testing.assert_array_equal(order[main.latents[active]], np.flatnonzero(active))
    assert (main.f1[active] == 1).all()
    rates = absorption(true.z[:, order], true.z, parents)
    assert rates.mean == 0 and np.nanmax(rates.silent_with_child) == 0
    np.testing.assert_array_equal(splitting(true.z[:, order], true.z), active.astype(int))


@given(seeds)
def test_splitting_equals_a_greedy_search(seed):
    true, z = draw(seed, 40, 2, density=0.5) != 0, draw(seed + 1, 40, 6, density=0.3) != 0

    def f1(latents, feature):
        union = z[:, latents].any(1)
        return 2*(union & feature).sum() / max(1, union.sum() + feature.sum())
    for feature, number in zip(true.T, splitting(z.astype(float), true.astype(float))):
        chosen, best = [], 0.
        while len(chosen) < 6:
            values = [f1([*chosen, j], feature) for j in range(6)]
            if max(values) < best + 0.03: break
            chosen, best = [*chosen, int(np.argmax(values))], max(values)
        assert number == len(chosen)


def test_absorbed_codes_are_counted_in_full():
    source = sparse_dictionary(16, 12, l0=2, hierarchy=0.5)
    z = source.sample(3000).z
    codes, is_child = z.clone(), source.parents >= 0
    for child in is_child.nonzero().flatten():
        codes[z[:, child] != 0, source.parents[child]] = 0
    atoms = source.atoms + is_child[:, None] * source.atoms[source.parents]
    rates = absorption(codes, z, source.parents, atoms=atoms, true_atoms=source.atoms)
    np.testing.assert_allclose(rates.silent_with_child, 1)
    np.testing.assert_allclose(rates.silent_alone, 0)
    share = [(z[:, source.parents == p][z[:, p] != 0] != 0).any(1).float().mean().item()
             for p in rates.parents]
    np.testing.assert_allclose(rates.absorbed, share, rtol=1e-5)


# Groups, clusters and maps

@given(seeds, st.sampled_from(['jaccard', 'phi']))
def test_coactivation_is_symmetric_and_bounded(seed, measure):
    z = draw(seed, 40, 6, density=0.5)
    similarity = coactivation(z, measure)
    np.testing.assert_allclose(similarity, similarity.T)
    lowest = -1 if measure == 'phi' else 0
    assert lowest - 1e-12 <= similarity.min() and similarity.max() <= 1 + 1e-12
    np.testing.assert_allclose(coactivation(-z[::-1], measure), similarity)


@given(seeds, st.floats(0.05, 0.9))
def test_groups_equal_average_linkage_of_all_latents(seed, threshold):
    from scipy.cluster.hierarchy import fcluster, linkage
    z = draw(seed, 30, 8, density=0.4)
    similarity = coactivation(z)
    tree = linkage(1 - similarity[np.triu_indices(8, 1)], 'average')
    number = fcluster(tree, 1 - threshold + 1e-9, 'distance')
    expected = {frozenset(np.flatnonzero(number == k).tolist()) for k in number}
    assert {frozenset(g.tolist()) for g in coactive_groups(z, threshold)} == {
        group for group in expected if len(group) > 1}


@given(seeds)
def test_indices_do_not_depend_on_the_basis_of_the_plane(seed):
    points = np.random.default_rng(seed).normal(size=(500, 2))**3
    other = 3 + points @ rotation(seed, 2) @ [[2, 1], [0, 1]]
    assert separability_index(points) >= 0 and 0 < mixture_index(points) <= 1
    assert mixture_index(other) == pytest.approx(mixture_index(points), abs=0.1)
    assert 0 <= angular_entropy(points) <= 1


@pytest.mark.parametrize('seed', range(4))
def test_a_trained_dictionary_shows_the_circle(seed):
    features = sparse_dictionary(32, 64, l0=4, noise=0.02, seed=seed)
    def sample(n, number):
        torch.manual_seed(100*seed + number)
        x, angle = features.sample(n, seed=number).x, 2*torch.pi*torch.rand(n)
        point = 1.5*torch.stack([angle.cos(), angle.sin()], 1) * (torch.rand(n, 1) < 0.2)
        return x + point @ plane
    plane = torch.from_numpy(rotation(seed, 32)[:2]).float()
    _, training = SparseAutoencoder.from_preset('topk', 32, 128, l0=6, num_epochs=6, betas=None,
                                                learning_rate=6e-3, batch_size=512,
                                                steps_per_epoch=250)
    run, = sweep(lambda: SparseAutoencoder(32, 128, hidden_dims=(), decoder_norm='atom',
                                           activation=TopK(6)),
                 sample(20_000, 0), val := sample(4_000, 1), {'seed': [seed]}, verbose=0, **training)
    codes = evaluate_sparse_autoencoder(run.model, val)['latent_codes']
    found = manifold_clusters(codes, dictionary(run.model))
    in_plane = (F.normalize(dictionary(run.model), dim=1) @ plane.T).norm(dim=1)
    circle = set((in_plane > 0.9).nonzero().flatten().tolist())
    clusters = [set(cluster.latents.tolist()) for cluster in found[:3]]
    assert len(circle) >= 4 and any(
        cluster >= circle and in_plane[list(cluster)].min() > 0.8 for cluster in clusters)


def test_planar_clusters_do_not_depend_on_rotation_scale_and_order():
    place = np.deg2rad([10, 80, 150, 220, 300])
    atoms = np.concatenate([np.stack([np.cos(place), np.sin(place)], 1) @ np.eye(40)[:2],
                            np.eye(40)[2:]])
    order = np.random.default_rng(0).permutation(len(atoms))
    scale = 1 + np.arange(len(atoms))[:, None]
    group, = planar_clusters((scale * atoms)[order] @ rotation(0, 40))
    assert set(order[group]) == set(range(5))


def test_points_on_a_line_are_no_manifold():
    line = np.outer(np.linspace(-1, 1, 50), [3, 4])
    for points in (line, line[:2], line[:0], 0*line):
        assert (separability_index(points), mixture_index(points), angular_entropy(points)
                ) == (0, 1, 0)


def test_clusters_do_not_link_zero_atoms():
    atoms = torch.tensor([[0., 0], [1, 0], [-1, 0], [0, 0]])
    found = atom_clusters(atoms, neighbors=3, min_cosine=-1, min_size=1)
    assert [c.tolist() for c in found] == [[1, 2], [0], [3]]


def test_map_of_a_model(runs, tmp_path):
    runs, _ = runs
    model = runs[0].model
    xy = dictionary_coordinates(dictionary(model))
    np.testing.assert_array_equal(xy, dictionary_coordinates(dictionary(model)))
    assert xy.shape == (24, 2) and np.isfinite(xy).all()
    assert plot_dictionary_map(model, ['a$', 'b']*12, '$', save_path=tmp_path/'map.png')
    assert (tmp_path/'map.png').exists()
    with pytest.raises(ValueError, match='24 latents'): plot_dictionary_map(model, [1])


def test_plots_refuse_what_they_cannot_show():
    with pytest.raises(TypeError, match='stability'): plot_stability({})
    with pytest.raises(ValueError, match='at least one'): plot_coactivation(np.eye(3), [])
    with pytest.raises(ValueError, match='at least one'): plot_manifold_clusters([])


def test_the_device_and_dtype_of_torch_do_not_matter(runs):
    runs, _ = runs
    atoms = [dictionary(run.model) for run in runs]
    expected = dictionary_stability(atoms[0], atoms[1:])
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device('meta'):
            found = dictionary_stability(atoms[0], atoms[1:])
            span_fraction(atoms[0], atoms[1])
            subspace_agreement(atoms[0], atoms[1])
            atom_clusters(atoms[0])
    finally: torch.set_default_dtype(torch.float32)
    assert isinstance(found, Stability)
    np.testing.assert_array_equal(found.cosines, expected.cosines)
    assert found.chance == expected.chance
    assert F.normalize(atoms[0]).dtype == torch.float32
