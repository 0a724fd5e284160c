"""The object and the files for viewers against SAEDashboard and SAEBench: `make test-interop`.

Both run on a small transformer of random weights, in an environment whose Python is in the variable
INTEROP_VIEWERS, or in .interop/viewers/bin/python. It computes with this library as well."""
import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file
from test_interop import HERE, python_of
from torch.testing import assert_close

from sparse_ae import FeatureExplorer, SparseAutoencoder
from sparse_ae.networks.formats import save
from sparse_ae.networks.viewers import ViewerAutoencoder, write_dashboards

HOOK = 'blocks.0.hook_resid_post'
MODELS = {'single': dict(hidden_dims=(), decoder_norm='atom'), 'deep': {}}


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    "Models, the data of the transformer, and the results of the viewers by name."
    python, folder, models = python_of('viewers'), tmp_path_factory.mktemp('viewers'), {}
    for name, options in MODELS.items():
        torch.manual_seed(1)
        models[name] = SparseAutoencoder(16, 32, **options).eval().requires_grad_(False)
        for p in models[name].parameters(): p += 0.3*torch.randn_like(p)
        save(models[name], folder/name, 'sparse_ae')
    save(models['single'], folder/'single-saelens', metadata=dict(
        hook_name=HOOK, model_name='random', context_size=24, prepend_bos=True))
    models['single-saelens'] = models['single']
    done = subprocess.run([python, HERE/'peer_viewers.py', folder], text=True, capture_output=True,
                          env=os.environ | {'PYTHONPATH': str(HERE.parents[1])}, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return models, load_file(folder/'network.safetensors'), {
        name: json.loads((folder/f'{name}.json').read_text()) for name in models}


NAMES = [*MODELS, 'single-saelens']


@pytest.mark.parametrize('name', NAMES)
def test_core_evaluation_of_saebench(name, results):
    models, network, found = results
    x, viewed = network['x'].flatten(0, 1), ViewerAutoencoder(models[name], HOOK)
    z, y = viewed.encode(x), models[name](x)
    metrics, latents = found[name]['metrics'], found[name]['latents']
    l0 = (z != 0).sum(1).float().mean().item()
    assert_close(metrics['sparsity']['l0'], l0, rtol=1e-5, atol=0)
    assert_close(metrics['sparsity']['l1'], z.sum(1).mean().item(), rtol=1e-5, atol=0)
    quality = metrics['reconstruction_quality']
    cosine = torch.cosine_similarity(x, y).mean().item()
    assert_close(quality['cossim'], cosine, rtol=1e-4, atol=1e-5)
    norms = [t.norm(dim=1).mean().item() for t in (x, y)]
    assert_close([metrics['shrinkage'][key] for key in ('l2_norm_in', 'l2_norm_out')], norms,
                 rtol=1e-5, atol=0)
    assert_close(latents['feature_density'], (z > 0).float().mean(0).tolist(), rtol=1e-4, atol=1e-6)
    assert_close(latents['encoder_norm'], viewed.W_enc.norm(dim=0).tolist(), rtol=1e-5, atol=0)
    assert_close(latents['encoder_bias'], viewed.b_enc.tolist(), rtol=1e-5, atol=1e-6)
    assert 0 < metrics['model_behavior_preservation']['kl_div_with_sae'] < 10


@pytest.mark.parametrize('name', NAMES)
def test_dashboards_of_saedashboard(name, results, tmp_path):
    "Every figure of its files that has one definition is that of ours, to its three decimals."
    models, network, found = results
    x, tokens = network['x'].flatten(0, 1), network['tokens']
    words = [[f't{token}' for token in row] for row in tokens.tolist()]
    explorer = FeatureExplorer(models[name], x, tokens=words, output_weights=network['outputs'],
                               output_names=[f't{k}' for k in range(40)], k=4)
    paths = write_dashboards(explorer, tmp_path, model_id='random', layer=0, sae_set='demo',
                             verbose=False)
    ours, norms = json.loads(paths[0].read_text()), ViewerAutoencoder(models[name], HOOK).norms
    theirs = found[name]['dashboards']
    keys = ours.keys()
    assert keys == theirs.keys() and all(ours[key] == theirs[key] for key in keys
                                         if key not in ('features', 'sae_id_suffix'))
    assert len(ours['features']) > 20
    by_index = {record['feature_index']: record for record in theirs['features']}
    for record in ours['features']:
        other, r = by_index[record['feature_index']], norms[record['feature_index']].item()
        assert record.keys() == other.keys()
        for key in ('n_prompts_total', 'n_tokens_in_prompt', 'neuron_alignment_indices',
                    'correlated_neurons_indices', 'pos_str', 'neg_str'):
            assert record[key] == other[key], key
        for key in ('neuron_alignment_values', 'neuron_alignment_l1', 'correlated_neurons_pearson',
                    'correlated_neurons_l1', 'correlated_features_pearson',
                    'correlated_features_l1', 'pos_values', 'neg_values', 'frac_nonzero',
                    'logits_hist_data_bar_values'):
            assert_close(record[key], other[key], atol=1.1e-3, rtol=0, msg=key)
        bars = 'logits_hist_data_bar_heights', 'freq_hist_data_bar_heights'
        for key in bars: assert sum(record[key]) == sum(other[key]), key
        top, top_there = (max((a for a in each['activations'] if a['bin_min'] == -1),
                              key=lambda a: max(a['values'])) for each in (record, other))
        assert_close(r*max(top['values']), max(top_there['values']), atol=1.1e-3, rtol=1e-3)
        k = top_there['values'].index(max(top_there['values']))
        assert top['tokens'][top['qualifying_token_index']].strip() == top_there['tokens'][k]


def test_the_object_gives_the_results_of_the_folder(results):
    "One model as an object of this library and as a folder of SAELens."
    _, _, found = results
    one, other = found['single'], found['single-saelens']
    for part in ('metrics', 'latents'):
        for key, values in one[part].items(): assert_close(values, other[part][key], rtol=1e-4,
                                                           atol=1e-5)
    for a, b in zip(one['dashboards']['features'], other['dashboards']['features']):
        assert a.keys() == b.keys()
        assert [x['tokens'] for x in a['activations']] == [x['tokens'] for x in b['activations']]
