"""Models on the Hugging Face Hub, against a stand-in of its HTTP interface on this machine.

`huggingface_hub` reads `HF_ENDPOINT` when it is imported, so that calls run in a process of their
own that is started with it."""
import multiprocessing
import os
import re
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from sparse_ae.eval_viz import evaluate_sparse_autoencoder
from sparse_ae.io import CONFIG, WEIGHTS
from sparse_ae.models import (BaseSparseAutoencoder, SparseAutoencoder,
                              TiedWeightSparseAutoencoder)
from sparse_ae.networks import formats

yaml = pytest.importorskip('yaml')
hub_server = pytest.importorskip('hub_server')
pytest.importorskip('huggingface_hub')


def run(function, arguments, options):
    "Run a function in the other process; a model is returned as its class and its arrays."
    torch.set_num_threads(1)
    result = function(*arguments, **options)
    if not isinstance(result, torch.nn.Module): return result
    assert not result.training
    return type(result).__name__, {name: t.numpy() for name, t in result.state_dict().items()}


def load(*arguments, cls=BaseSparseAutoencoder, **options):
    return cls.from_pretrained(*arguments, **options)


class Process:
    "A process with its own environment."
    def __init__(self, **environment):
        context, before = multiprocessing.get_context('spawn'), dict(os.environ)
        os.environ.update(environment)
        try:
            self.pool = ProcessPoolExecutor(1, context)
            self.pool.submit(os.getpid).result()      # started while the environment is set
        finally:
            os.environ.clear()
            os.environ.update(before)

    def __call__(self, function, *arguments, **options):
        return self.pool.submit(run, function, arguments, options).result(timeout=120)


@pytest.fixture(scope='module')
def hub():
    with hub_server.Hub() as hub: yield hub


@pytest.fixture(scope='module')
def environment(hub, tmp_path_factory):
    home = tmp_path_factory.mktemp('home')
    return dict(HF_ENDPOINT=hub.url, HF_HOME=str(home), HF_HUB_DISABLE_XET='1',
                HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_DISABLE_PROGRESS_BARS='1', HF_TOKEN='',
                no_proxy='127.0.0.1,localhost', NO_PROXY='127.0.0.1,localhost')


@pytest.fixture(scope='module')
def call(environment):
    process = Process(**environment)
    yield process
    process.pool.shutdown()


@pytest.fixture
def repo(request, hub):
    "A new name for each test."
    yield 'owner/' + re.sub(r'\W+', '-', request.node.name.removeprefix('test_')).strip('-')
    hub.hooks.clear()
    hub.damage.clear()


def new_model(seed=0, cls=SparseAutoencoder, **options):
    torch.manual_seed(seed)
    model = cls(6, 12, **dict(hidden_dims=(), activation='relu') | options)
    with torch.no_grad():
        for p in model.parameters(): p += 0.3*torch.randn_like(p)
    return model.eval()


def model_files(seed=0, prefix='', **options):
    "Files of a model as they are in a repository."
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        new_model(seed, **options).save_pretrained(folder)
        return {prefix + name: (Path(folder)/name).read_bytes() for name in (CONFIG, WEIGHTS)}


def assert_loaded(loaded, model):
    "Compare bit for bit."
    name, arrays = loaded
    state = model.state_dict()
    assert (name, arrays.keys()) == (type(model).__name__, state.keys())
    for key, value in state.items(): assert np.array_equal(arrays[key], value.numpy()), key


# uploads and what is loaded from them

@pytest.mark.parametrize('cls', [SparseAutoencoder, TiedWeightSparseAutoencoder])
def test_push_and_load(call, hub, repo, tmp_path, cls):
    model = new_model(cls=cls)
    address = call(model.save_pretrained, tmp_path, push_to_hub=True, repo_id=repo,
                   token='hf_owner', commit_message='The first')
    there = hub.repos[repo]
    head = there.branches['main']
    assert address == f'{hub.url}/{repo}/commit/{head}'
    assert there.messages[head] == 'The first' and len(there.commits) == 2   # one for the model
    assert set(there.commits[head]) == {'.gitattributes', CONFIG, WEIGHTS, 'README.md'}
    assert not there.private
    assert_loaded(call(load, repo), model)
    assert_loaded(call(load, repo, revision=head), model)
    assert_loaded(call(load, repo, cls=cls), model)
    with pytest.raises(ValueError, match=f'folder must hold a .*, got a {cls.__name__}'):
        other = {SparseAutoencoder, TiedWeightSparseAutoencoder} - {cls}
        call(load, repo, cls=other.pop())


def test_subfolders(call, hub, repo, tmp_path):
    models = {f'run/layer_{n}': new_model(seed) for seed, n in enumerate(('0', '1', '[2]'))}
    for folder, model in models.items():
        call(model.save_pretrained, tmp_path/folder, push_to_hub=True, repo_id=repo,
             subfolder=folder, token='hf_owner')
    hub.log.clear()
    for folder, model in models.items(): assert_loaded(call(load, repo, subfolder=folder), model)
    downloads = {path.split('/resolve/')[1].split('/', 1)[1] for _, path in hub.log
                 if '/resolve/' in path}
    assert downloads == {f'{folder}/{name}' for folder in models for name in (CONFIG, WEIGHTS)}
    for wrong in ('', 'run', 'layer_0', 'run/layer_*'):       # names, not patterns
        with pytest.raises(FileNotFoundError) as error: call(load, repo, subfolder=wrong)
        assert repo in str(error.value) and "no config.json and no model.safetensors" in str(
            error.value)
        assert "'run/layer_0', 'run/layer_1', 'run/layer_[2]'" in str(error.value)
    tree = hub.repos[repo].commits[hub.repos[repo].branches['main']]
    assert b"subfolder='run/layer_1'" in tree['run/layer_1/README.md']
    assert b"subfolder='run/layer_0'" in tree['README.md']    # written by the first, then kept


def test_branches_and_commits(call, hub, repo, tmp_path):
    first, second = new_model(1), new_model(2)
    call(first.save_pretrained, tmp_path, push_to_hub=True, repo_id=repo, token='hf_owner')
    commit = hub.repos[repo].branches['main']
    call(second.save_pretrained, tmp_path, push_to_hub=True, repo_id=repo, token='hf_owner',
         revision='wide')
    assert_loaded(call(load, repo), first)
    assert_loaded(call(load, repo, revision='wide'), second)
    call(second.save_pretrained, tmp_path, push_to_hub=True, repo_id=repo, token='hf_owner')
    assert_loaded(call(load, repo), second)                      # a new commit is noticed
    assert_loaded(call(load, repo, revision=commit), first)
    del hub.repos[repo].branches['wide']                         # in the cache, but no more there
    for wrong in ('wide', 'nonsense', '0'*40):
        for function in (load, formats.load):
            with pytest.raises(FileNotFoundError, match=f"{repo}', revision '{wrong}'.* no such"):
                call(function, repo, revision=wrong)


def test_private_repositories_need_a_token(call, hub, repo, tmp_path):
    model = new_model()
    call(model.save_pretrained, tmp_path, push_to_hub=True, repo_id=repo, private=True,
         token='hf_owner')
    assert hub.repos[repo].private
    for function in (load, formats.load):
        where = dict(cache_dir=tmp_path/function.__module__)
        with pytest.raises(FileNotFoundError, match=f"{repo}.*private and needs token"):
            call(function, repo, **where)
        with pytest.raises(PermissionError, match=f"{repo}.*token is missing, not valid"):
            call(function, repo, token='hf_wrong', **where)
        assert_loaded(call(function, repo, token='hf_reader', **where), model)


@pytest.mark.parametrize('token', ['hf_reader', 'hf_wrong', None])
def test_uploads_that_are_refused(call, hub, repo, tmp_path, token):
    with pytest.raises(PermissionError, match=f"{re.escape(repo)}', revision 'main'.*token"):
        call(new_model().save_pretrained, tmp_path, push_to_hub=True, repo_id=repo, token=token)
    assert repo not in hub.repos
    assert_loaded(run(load, [tmp_path], {}), new_model())        # the local files are complete


def test_a_push_between_two_downloads(call, hub, repo):
    "The second push comes when the first file is requested."
    hub.add(repo, {})

    def push(method, path):
        if method == 'GET' and path.startswith(f'/{repo}/resolve/'):
            hub.hooks.clear()
            hub.repos[repo].commit('main', second)
    for width, function in enumerate((load, formats.load), 3):   # no file is in the cache
        sizes = dict(hidden_dims=(width,))
        first, second = model_files(dtype=torch.float64, **sizes), model_files(**sizes)
        before = hub.repos[repo].commit('main', first)
        hub.hooks.append(push)
        assert_loaded(call(function, repo), new_model(dtype=torch.float64, **sizes))
        assert hub.repos[repo].branches['main'] != before
        assert_loaded(call(function, repo), new_model(**sizes))


def test_a_push_during_an_upload_with_a_card(call, hub, repo, tmp_path):
    hub.add(repo, {})

    def write_card(method, path):
        if path.endswith('/preupload/main'):
            hub.hooks.clear()
            hub.repos[repo].commit('main', {'README.md': b'mine'})
    hub.hooks.append(write_card)
    upload = dict(push_to_hub=True, repo_id=repo, token='hf_owner')
    with pytest.raises(ConnectionError, match=f'{repo}.*another commit was made'):
        call(new_model().save_pretrained, tmp_path, **upload)
    call(new_model().save_pretrained, tmp_path, **upload)
    tree = hub.repos[repo].commits[hub.repos[repo].branches['main']]
    assert tree['README.md'] == b'mine' and WEIGHTS in tree


# what is not there

def test_what_does_not_exist(call, hub, repo):
    for function in (load, formats.load):
        with pytest.raises(FileNotFoundError, match=f"repository '{repo}', revision 'main'"):
            call(function, repo)
    hub.add(repo, {'README.md': b'', **model_files()})
    del hub.repos[repo].commits[hub.repos[repo].branches['main']][WEIGHTS]
    with pytest.raises(FileNotFoundError) as error: call(load, repo)
    assert str(error.value) == (
        f"repository '{repo}', revision 'main': there is no model.safetensors; no folder holds a "
        "model; the repository has .gitattributes, README.md, config.json; "
        "sparse_ae.networks.formats.load reads files of other libraries")
    with pytest.raises(FileNotFoundError, match="subfolder 'a': there is no config.json and no"):
        call(load, repo, subfolder='a')


def test_gated_repositories(call, hub, repo):
    hub.add(repo, model_files(), gated=True)
    for function in (load, formats.load):
        for token in (None, 'hf_stranger'):
            hub.tokens['hf_stranger'] = 'stranger', True
            with pytest.raises(PermissionError, match=f"{repo}.*gated; request access"):
                call(function, repo, token=token)
    assert_loaded(call(load, repo, token='hf_owner'), new_model())


@pytest.mark.parametrize('name', ['owner/a b', 'owner/a--b', 'owner/.a', 'owner/a.git'])
def test_bad_ids(call, hub, tmp_path, name):
    hub.log.clear()
    for function in (load, formats.load):
        with pytest.raises(ValueError, match=f"owner/name.*{re.escape(name)}"): call(function, name)
    with pytest.raises(ValueError, match='owner/name'):
        call(new_model().save_pretrained, tmp_path/'new', push_to_hub=True, repo_id=name)
    assert not hub.log and not (tmp_path/'new').exists()


def test_a_server_that_fails(call, hub, repo):
    hub.add(repo, model_files())

    def fail(method, path): raise hub_server.Refused(500, message='broken')
    hub.hooks.append(fail)
    for function in (load, formats.load):
        with pytest.raises(ConnectionError, match=f'{repo}.*500'):
            call(function, repo)


def test_paths_take_precedence(call, hub, repo, tmp_path, monkeypatch):
    hub.add(repo, model_files(1))
    local = new_model(2)
    local.save_pretrained(tmp_path/repo)
    (tmp_path/'owner'/'file').touch()
    hub.log.clear()
    monkeypatch.chdir(tmp_path)
    for name in (repo, f'./{repo}', str(tmp_path/repo), Path(repo)):
        assert_loaded(run(load, [name], {}), local)
        assert_loaded(run(formats.load, [name], {}), local)
    for name in ('./owner/other', tmp_path/'owner'/'other', 'owner/file'):
        with pytest.raises(FileNotFoundError, match='no model.safetensors in'):
            run(load, [name], {})
    with pytest.raises(ValueError, match=f"revision must be None for the path '{repo}'"):
        run(load, [repo], dict(revision='v1'))
    assert_loaded(run(load, ['owner'], dict(subfolder=repo.split('/')[1])), local)
    assert not hub.log


# the cache

def test_the_cache_without_a_server(environment, hub, tmp_path):
    with hub_server.Hub() as server:
        repo, saelens = 'owner/cached', 'owner/cached-saelens'
        server.add(repo, model_files() | model_files(1, 'wide/'))
        plain = new_model(decoder_norm=None)
        formats.save(plain, tmp_path/'saelens')
        server.add(saelens, {f'a/{p.name}': p.read_bytes() for p in (tmp_path/'saelens').iterdir()})
        process = Process(**environment | dict(HF_ENDPOINT=server.url))
        for _ in range(2): assert_loaded(process(load, repo), new_model())
        assert_loaded(process(formats.load, saelens, subfolder='a'), plain)
        gets = [path for method, path in server.log if method == 'GET' and '/resolve/' in path]
        assert len(gets) == 2        # of `config.json` and `cfg.json`; weights are elsewhere
        assert len([path for _, path in server.log if '/cdn/' in path]) == 2
    # now the server is closed
    not_cached = [(function, name, folder) for function in (load, formats.load)
                  for name, folder in ((repo, 'wide'), ('owner/unknown', ''))]
    assert_loaded(process(load, repo), new_model())
    assert_loaded(process(formats.load, saelens, subfolder='a'), plain)
    for function, name, folder in not_cached:
        with pytest.raises(FileNotFoundError, match=name): process(function, name, subfolder=folder)
    process.pool.shutdown()
    offline = Process(**environment | dict(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE='1'))
    hub.log.clear()
    assert_loaded(offline(load, repo), new_model())
    assert_loaded(offline(formats.load, repo), new_model())
    assert_loaded(offline(formats.load, saelens, subfolder='a'), plain)
    assert_loaded(offline(load, repo, local_files_only=True), new_model())
    for function, name, folder in not_cached:
        with pytest.raises(FileNotFoundError, match=name): offline(function, name, subfolder=folder)
    with pytest.raises(FileNotFoundError, match='not in the cache'):
        offline(load, repo, cache_dir=tmp_path/'empty')
    with pytest.raises((ConnectionError, FileNotFoundError), match='owner/new'):
        offline(new_model().save_pretrained, tmp_path/'new', push_to_hub=True, repo_id='owner/new')
    assert not hub.log
    offline.pool.shutdown()


def test_local_files_only_and_force_download(call, hub, repo, tmp_path):
    hub.add(repo, model_files(1))
    with pytest.raises(FileNotFoundError, match=f"{repo}.*not in the cache"):
        call(load, repo, local_files_only=True)
    where = dict(cache_dir=tmp_path/'cache')
    assert_loaded(call(load, repo, **where), new_model(1))
    hub.repos[repo].commit('main', model_files(2))
    hub.log.clear()
    assert_loaded(call(load, repo, local_files_only=True, **where), new_model(1))
    assert not hub.log
    assert_loaded(call(load, repo, **where), new_model(2))
    hub.log.clear()
    assert_loaded(call(load, repo, force_download=True, **where), new_model(2))
    assert [path for method, path in hub.log if method == 'GET' and '/cdn/' in path]


@pytest.mark.parametrize('name', [CONFIG, WEIGHTS])
def test_downloads_of_a_wrong_size(call, hub, repo, name):
    hub.add(repo, model_files())
    hub.damage[name] = lambda content: content[:-9]
    for function in (load, formats.load):
        with pytest.raises(ConnectionError, match=f"repository '{repo}'.*size"):
            call(function, repo)
    hub.damage.clear()
    assert_loaded(call(load, repo), new_model())


def test_damaged_weights(call, hub, repo, tmp_path):
    "One wrong bit in the weights: every file is of the right size and opens."
    hub.add(repo, model_files())
    hub.damage[WEIGHTS] = lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    for function in (load, formats.load):
        with pytest.raises(ConnectionError, match=f"{repo}.*is damaged"): call(function, repo)
    hub.damage.clear()
    assert_loaded(call(load, repo), new_model())                 # downloaded again
    # the same in the cache, later
    where = dict(cache_dir=tmp_path)
    call(load, repo, **where)
    weights, = tmp_path.rglob(WEIGHTS)
    content = weights.read_bytes()
    weights.resolve().write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(ConnectionError, match='is damaged'): call(load, repo, local_files_only=True,
                                                                  **where)
    assert_loaded(call(load, repo, **where), new_model())


def test_damaged_configuration(call, hub, repo):
    hub.add(repo, model_files() | {CONFIG: b'{"model_class": '})
    with pytest.raises(ValueError, match='not JSON'): call(load, repo)
    hub.repos[repo].commit('main', {CONFIG: model_files(activation='sigmoid')[CONFIG]})
    assert_loaded(call(load, repo), new_model())   # the weights have a configuration of their own


# cards

def test_card(call, hub, repo, tmp_path):
    model = new_model()
    results = evaluate_sparse_autoencoder(model, torch.rand(50, 6))
    upload = dict(push_to_hub=True, repo_id=repo, token='hf_owner')
    call(model.save_pretrained, tmp_path/'a', card=results, **upload)
    tree = lambda: hub.repos[repo].commits[hub.repos[repo].branches['main']]
    text = tree()['README.md'].decode()
    assert text == (tmp_path/'a'/'README.md').read_text()
    front = yaml.safe_load(text.split('---\n')[1])
    assert front['library_name'] == 'sparse_ae' and 'sparse-autoencoder' in front['tags']
    row, = [line for line in text.splitlines() if line.startswith('| L0 |')]
    assert row.split(' | ')[1] == f"{results['l0']:.4g}"
    lines = text.split('```python\n')[1].split('```')[0]
    assert len(lines.splitlines()) == 3
    assert_loaded(call(run_lines, lines), model)                 # the three lines do load it
    call(model.save_pretrained, tmp_path/'b', card='---\nlicense: mit\n---\nanother', **upload)
    assert tree()['README.md'].decode() == text                  # there is one already
    assert (tmp_path/'b'/'README.md').read_text() != text
    (tmp_path/'a'/'README.md').write_text('edited')
    call(model.save_pretrained, tmp_path/'a', card=results, **upload)
    assert (tmp_path/'a'/'README.md').read_text() == 'edited'
    assert tree()['README.md'].decode() == text


def run_lines(lines):
    names = dict(x=torch.rand(3, 6))
    exec(lines, names)
    assert names['z'].shape == (3, 12)
    return names['model']


def test_no_card_and_a_bad_card(call, hub, repo, tmp_path):
    upload = dict(push_to_hub=True, repo_id=repo, token='hf_owner')
    call(new_model().save_pretrained, tmp_path, card=False, subfolder='a', **upload)
    tree = hub.repos[repo].commits[hub.repos[repo].branches['main']]
    assert set(tree) == {'.gitattributes', f'a/{CONFIG}', f'a/{WEIGHTS}'}
    with pytest.raises(ValueError, match='README.md'):
        call(new_model().save_pretrained, tmp_path, card='---\na: "b\n---\n', **upload)


# other libraries' formats

def test_formats_from_the_hub(call, hub, repo, tmp_path):
    "Many models of several libraries in the subfolders of one repository."
    kinds = {'saelens': 'jumprelu', 'sparsify': {'name': 'topk', 'k': 4}, 'sparse_ae': 'relu',
             'dictionary_learning': {'name': 'batch_topk', 'k': 4}, 'gemma_scope': 'jumprelu'}
    models, files = {}, {'README.md': b'', 'runner_cfg.json': b'{}'}
    for n, (format, kind) in enumerate(kinds.items()):
        folder = f'{format}/layer_{n}/average_l0_71'
        models[folder] = new_model(n, activation=kind, decoder_norm=None)
        formats.save(models[folder], tmp_path/folder, format)
        files |= {f'{folder}/{path.name}': path.read_bytes()
                  for path in (tmp_path/folder).iterdir()}
        files[f'{folder}/sparsity.safetensors'] = save({'sparsity': torch.zeros(12)})
    hub.add(repo, files)
    for folder in models:
        hub.log.clear()
        expected = run(formats.load, [tmp_path/folder], {})
        loaded = call(formats.load, repo, subfolder=folder)
        assert loaded[0] == expected[0]
        for name, array in expected[1].items(): assert np.array_equal(loaded[1][name], array)
        fetched = {path.rsplit('/', 1)[1] for _, path in hub.log if '/resolve/' in path}
        assert fetched == set(formats.FORMATS[folder.split('/')[0]].files)
        assert call(formats.load, repo, folder.split('/')[0], subfolder=folder)[0] == expected[0]
    weights = 'dictionary_learning/layer_3/average_l0_71/ae.pt'
    assert call(formats.load, repo, subfolder=weights)[0] == 'SparseAutoencoder'
    for format, listed in (('auto', list(models)),
                           ('sparsify', ['sparsify/layer_1/average_l0_71'])):
        with pytest.raises(FileNotFoundError) as error: call(formats.load, repo, format)
        message = str(error.value)
        assert repo in message and all(repr(folder) in message for folder in listed)
        assert len(re.findall('average_l0', message)) == len(listed)


def test_saelens_with_a_factor_and_a_single_file(call, hub, repo, tmp_path):
    "A file that is read only if it exists, and a model of one file whose name has no folder."
    model = new_model(decoder_norm=None)
    formats.save(model, tmp_path)
    config = (tmp_path/'cfg.json').read_text().replace('"none"', '"expected_average_only_in"', 1)
    weights = load_file(tmp_path/'sae_weights.safetensors')
    state = {'W_enc': weights['W_enc'].T.contiguous(), 'b_enc': weights['b_enc'],
             'W_dec': weights['W_dec'].T.contiguous(), 'b_dec': weights['b_dec']}
    torch.save(state, tmp_path/'layer3.sae.pt')
    hub.add(repo, {'a/cfg.json': config.encode(), 'a/activation_scaler.json': b'{"scaling_factor":'
                   b' 2.0}', 'a/sae_weights.safetensors': (tmp_path/'sae_weights.safetensors')
                   .read_bytes(), 'layer3.sae.pt': (tmp_path/'layer3.sae.pt').read_bytes()})
    _, scaled = call(formats.load, repo, subfolder='a')
    np.testing.assert_allclose(scaled['encoder_mat_1'], 2*model.encoder_mat_1.detach(), rtol=1e-6)
    _, single = call(formats.load, repo, subfolder='layer3.sae.pt', k=4)
    np.testing.assert_allclose(single['encoder_mat_1'], model.encoder_mat_1.detach(), rtol=1e-6)


def test_formats_to_the_hub(call, hub, repo, tmp_path):
    model = new_model(activation='jumprelu', decoder_norm=None)
    call(formats.save, model, tmp_path, 'saelens', push_to_hub=True, repo_id=repo, subfolder='a',
         token='hf_owner', card={'l0': 3.})
    there = hub.repos[repo]
    tree = there.commits[there.branches['main']]
    assert set(tree) == {'.gitattributes', 'README.md', 'a/README.md', 'a/cfg.json',
                         'a/sae_weights.safetensors'} and len(there.commits) == 2
    for name in ('README.md', 'a/README.md'):
        text = tree[name].decode()
        assert yaml.safe_load(text.split('---\n')[1])['library_name'] == 'saelens'
        lines = text.split('```python\n')[1].split('```')[0]
        name, arrays = call(run_lines, lines)
        assert np.array_equal(arrays['encoder_mat_1'], model.encoder_mat_1.detach())


# without the package, and in the middle of a download

def without_package(function, *arguments, **options):
    "Call a function as if `huggingface_hub` were not installed."
    import sys
    names = [name for name in sys.modules if name.partition('.')[0] == 'huggingface_hub']
    kept = {name: sys.modules.pop(name) for name in names}
    sys.modules['huggingface_hub'] = None
    try: return function(*arguments, **options)
    finally:
        del sys.modules['huggingface_hub']
        sys.modules.update(kept)


def test_without_the_package(call, tmp_path):
    line = re.escape("pip install 'sparse_ae[hub]'")
    for function in (load, formats.load):
        with pytest.raises(ImportError, match=f"'owner/name' is no folder here.*{line}"):
            call(without_package, function, 'owner/name')
    with pytest.raises(ImportError, match=line):
        call(without_package, new_model().save_pretrained, tmp_path/'new', push_to_hub=True,
             repo_id='owner/name')
    assert not (tmp_path/'new').exists()
    new_model().save_pretrained(tmp_path)
    assert_loaded(call(without_package, load, tmp_path), new_model())


def test_a_process_that_is_killed_in_a_download(call, environment, hub, repo, tmp_path):
    hub.add(repo, model_files())
    process = Process(**environment)
    pid = process(os.getpid)

    def kill(method, path):
        if method == 'GET' and path.startswith('/cdn/'):
            hub.hooks.clear()
            os.kill(pid, signal.SIGKILL)
    hub.hooks.append(kill)
    with pytest.raises(BrokenProcessPool): process(load, repo, cache_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=repo):
        call(load, repo, cache_dir=tmp_path, local_files_only=True)
    assert_loaded(call(load, repo, cache_dir=tmp_path), new_model())
