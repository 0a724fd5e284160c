"""Models of other libraries against those libraries themselves: `make test-interop`.

Each library runs in an environment of its own, whose Python is in the variable INTEROP_<NAME>, or
in .interop/<name>/bin/python. With INTEROP_SMALL, a folder of the packages without dependencies, all
run in the environment of this library (`make test-interop-short`, see small.py)."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sparse_ae import SparseAutoencoder, TiedWeightSparseAutoencoder
from sparse_ae.activations import MatchingPursuit
from sparse_ae.networks.formats import load, save

HERE = Path(__file__).resolve().parent
PEERS = {'sae_lens': 'saelens', 'dictionary_learning': 'dictionary_learning', 'sparsify': 'sparsify'}
K = 3
CLOSE = dict(atol=1e-5, rtol=1e-5)
NORMS = {'layer_norm': 'topk', 'constant_norm': 'jumprelu'}     # scaling -> activation
KINDS = ('relu', 'topk', 'abs_topk', 'group_max', 'batch_topk', 'jumprelu', 'gated', 'pursuit',
         'pursuit_stops', *NORMS)
TRANSCODERS = tuple(f'{kind}-{form}' for form in ('transcoder', 'skip', 'narrow-skip')
                    for kind in ('relu', 'jumprelu', 'batch_topk', 'topk', 'group_max'))
LARGEST = {}   # (from, to, architecture) -> largest difference of codes and of reconstructions


def python_of(peer):
    "Python of the environment of a library."
    if os.environ.get('INTEROP_SMALL') and peer in PEERS: return sys.executable
    own = HERE.parents[1]/'.interop'/peer
    name = os.environ.get(f'INTEROP_{peer.upper()}')
    if not name and (own/'.ready').exists(): name = own/'bin'/'python'
    if not name: pytest.skip(f'no environment for {peer}: make test-interop')
    return str(name)


def run_peer(peer, command, folder):
    "Run the script of a library; its environment sees nothing of this one."
    environment = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV')}
    if small := environment.get('INTEROP_SMALL'): environment['PYTHONPATH'] = os.path.abspath(small)
    done = subprocess.run([python_of(peer), HERE/f'peer_{peer}.py', command, folder], text=True,
                          capture_output=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def compare(key, z, y, wanted):
    "Compare codes and reconstructions, and note the largest differences."
    LARGEST[key] = tuple((a.double() - b.double()).abs().max().item()
                         for a, b in ((z, wanted['z']), (y, wanted['y'])))
    assert_close(z, wanted['z'], **CLOSE)
    assert_close(y, wanted['y'], **CLOSE)
    assert (z != 0).any(1).float().mean() > 0.3     # codes are not empty


@pytest.fixture(scope='session')
def written(tmp_path_factory):
    "Folder of the models that a library wrote; written once."
    folders = {}
    def folder_of(peer):
        if peer not in folders:
            folders[peer] = tmp_path_factory.mktemp(peer)
            run_peer(peer, 'write', folders[peer])
        return folders[peer]
    return folder_of


def cases(folder): return sorted(p for p in folder.iterdir() if p.is_dir())


@pytest.mark.parametrize('peer', PEERS)
def test_their_models_here(peer, written):
    folder = written(peer)
    x = load_file(folder/'inputs.safetensors')['x']
    for path in cases(folder):
        if path.name.startswith('refused'):
            with pytest.raises(ValueError, match=f'^{PEERS[peer]}: .* but '): load(path)
            continue
        model, wanted = load(path), load_file(folder/f'{path.name}.safetensors')
        assert model.is_transcoder == ('transcoder' in path.name or path.name == 'skip')
        x_here = x.to(model.dtype)
        compare((peer, 'ours', path.name), model.encode(x_here).detach(), model(x_here).detach(),
                wanted)


def random_model(kind):
    kind, _, form = kind.partition('-')
    scaling, kind = (kind, NORMS[kind]) if kind in NORMS else ('columns', kind)
    options = dict(output_dim=4 if 'narrow' in form else 6, skip='skip' in form) if form else {}
    activation = {'name': kind, 'k': K} if 'topk' in kind or kind == 'group_max' else kind
    if kind.startswith('pursuit'):
        rules = dict(residual_threshold=2., stop_on_duplicate_support=True) if '_' in kind else {}
        model = TiedWeightSparseAutoencoder(6, 12, hidden_dims=(), decoder_norm='atom',
                                            encoder=MatchingPursuit(2*K if rules else K, **rules))
    else: model = SparseAutoencoder(6, 12, hidden_dims=(), activation=activation,
                                    decoder_norm='atom', scaling=scaling, **options)
    with torch.no_grad():
        for p in model.parameters(): p.copy_(0.4*torch.randn_like(p))
        if kind == 'jumprelu': model.activation.log_threshold.sub_(1)
        if kind.startswith('pursuit'):
            model.encoder_bias_1.copy_(-model.encoder_weights()[0] @ model.decoder_bias_1)
        else:
            data = 2*torch.randn(50, 6) + torch.arange(6)
            if form: data = torch.cat([data, 5*data[:, :model.output_dim].sin() - 2], 1)
            model.set_scaling(model.scaling.fit(data))
        model(2*torch.randn(64, 6) + torch.arange(6))     # thresholds of the data
    return model.eval()


@pytest.mark.parametrize('peer', PEERS)
def test_our_models_there(peer, tmp_path):
    python_of(peer)
    torch.manual_seed(1)
    x, models, refused = 2*torch.randn(200, 6) + torch.arange(6), {}, []
    save_file({'x': x}, tmp_path/'inputs.safetensors')
    for kind in (*KINDS, *TRANSCODERS):
        model = random_model(kind)
        try: save(model, tmp_path/kind, PEERS[peer])
        except ValueError: refused.append(kind)
        else: models[kind] = model
    held = {'sae_lens': ('relu', 'batch_topk', 'jumprelu'), 'dictionary_learning': (),
            'sparsify': ('topk', 'group_max')}[peer]      # activations of transcoders
    narrow = [k for k in TRANSCODERS if 'narrow' in k and peer == 'sparsify']
    assert refused == {'sae_lens': ['group_max'],
                       'dictionary_learning': ['abs_topk', 'group_max', 'pursuit', 'pursuit_stops', *NORMS],
                       'sparsify': [k for k in KINDS if k not in ('topk', 'group_max')]}[peer] + [
        k for k in TRANSCODERS if k.split('-')[0] not in held or k in narrow]
    run_peer(peer, 'run', tmp_path)
    for kind, model in models.items():
        with torch.no_grad(): wanted = dict(z=model.encode(x), y=model(x))
        result = load_file(tmp_path/f'{kind}.safetensors')
        compare(('ours', peer, kind), result['z'], result['y'], wanted)


@pytest.mark.parametrize('target', PEERS)
def test_from_one_library_to_another(target, written, tmp_path):
    python_of(target)
    moved = []
    for source in PEERS:      # all draw the same inputs, so the other library runs once
        folder = written(source)
        inputs = load_file(folder/'inputs.safetensors')
        assert not moved or torch.equal(inputs['x'], load_file(tmp_path/'inputs.safetensors')['x'])
        save_file(inputs, tmp_path/'inputs.safetensors')
        for path in cases(folder):
            if path.name.startswith(('refused', 'checkpoint')): continue
            try: save(load(path), tmp_path/f'{source}-{path.name}', PEERS[target])
            except ValueError as error: assert PEERS[target] in str(error)
            else: moved.append((source, path.name))
    assert {source for source, _ in moved} == set(PEERS)
    run_peer(target, 'run', tmp_path)
    for source, name in moved:
        wanted = load_file(written(source)/f'{name}.safetensors')
        result = {key: value.to(wanted[key])
                  for key, value in load_file(tmp_path/f'{source}-{name}.safetensors').items()}
        compare((source, target, name), result['z'], result['y'], wanted)


def test_table_of_differences(capsys):
    "Print the table; it is the result of the tests above."
    if not LARGEST: pytest.skip('no environment of another library: make test-interop')
    with capsys.disabled():
        print(f"\n{'from':20} {'to':20} {'architecture':24} {'codes':>8} {'outputs':>8}")
        for (source, target, name), (z, y) in LARGEST.items():
            print(f'{source:20} {target:20} {name:24} {z:8.1e} {y:8.1e}')
