"Text and map of the explorer: activation stores, hostile tokens, memory limits, default devices."
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from sparse_ae import FeatureExplorer, SparseAutoencoder, TopK, train_val_split
from sparse_ae.lab.map import map_svg, point_colors
from sparse_ae.lab.text import (TOKEN_STYLES, ListedTokens, TokenCounts, TokenRows,
                                highlighted_html, readable_tokens, table_html, token_name, token_style)
from sparse_ae.networks.capture import capture
from sparse_ae.networks.store import ActivationStore

WORDS = ['[PAD]', '[CLS]', '[SEP]', 'the', 'cat', 'read', '##ing', '<b>', '.', 'mat']
HOSTILE = ['</script><script>alert(1)</script>', '<img src=x onerror=alert(1)>', '"><b>', "'",
           '&lt;', '\u2028', '-->', '\\u003c', 'Ġ<i>', '▁<i>', '##<i>', '\n<i>', ' ']


class Tokenizer:
    "Tokenizer with the one method that the explorer calls, as that of transformers."
    calls = 0

    def convert_ids_to_tokens(self, ids):
        assert isinstance(ids, list) and all(type(i) is int for i in ids)
        self.calls += 1
        return [WORDS[i] for i in ids]


class Embedding(nn.Module):
    "A language model whose activations are one-hot, scaled by the position."

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, input_ids, attention_mask=None):
        scale = 1 + torch.arange(input_ids.shape[1])[None, :, None]
        return self.layer(nn.functional.one_hot(input_ids, len(WORDS)) * scale / 10)


class Identity(nn.Linear):
    "A code that equals its input."

    def __init__(self, width): super().__init__(width, width)
    def encode(self, x): return x + 0*self.bias
    def decode(self, z): return z + 0*self.bias


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    "Rows of three texts, without the special tokens."
    texts = ['[CLS] the cat read ##ing the mat . [SEP]', '[CLS] the <b> . [SEP] the cat [SEP]',
             '[CLS] mat the [SEP]']
    ids = [[WORDS.index(word) for word in text.split()] for text in texts]
    longest = max(map(len, ids))
    batch = dict(input_ids=torch.tensor([row + [0]*(longest - len(row)) for row in ids]),
                 attention_mask=torch.tensor([[1]*len(row) + [0]*(longest - len(row))
                                              for row in ids]))
    return capture(Embedding(), 'layer', [batch], tmp_path_factory.mktemp('store')/'rows',
                   exclude_ids=(0, 1, 2), shard_bytes=2**12, verbose=0)


@pytest.fixture(scope='module')
def explorer(store):
    return FeatureExplorer(Identity(len(WORDS)), store,
                           token_text=Tokenizer().convert_ids_to_tokens).wait()


def test_tokens_of_a_store(store, explorer):
    assert isinstance(store, ActivationStore) and len(store) == 14
    assert explorer.tokens.style == 'wordpiece'
    assert explorer.token(3) == '##ing'
    the = WORDS.index('the')
    (use,) = explorer.token_table(the)
    assert (use.token, use.count, use.share) == ('the', 5, 1.)
    # positions 1, 5, 1, 5 and 2, so the activations are 0.2, 0.6, 0.2, 0.6 and 0.3
    assert use.mean == pytest.approx(1.9 / 5)
    assert [token for token, _ in explorer.context(the, 2)] == WORDS[3:7] + ['the', 'mat', '.']
    assert explorer.label(the) == 'the'
    plain = re.sub('<[^>]+>', '', explorer.contexts_html(the))
    assert 'the cat reading the mat.' in plain
    assert 'the &lt;b&gt;. … the cat' in plain        # [SEP] was dropped between
    assert '[SEP]' not in plain and explorer.order(search='the')[0] == the


def test_parts_of_a_store_keep_their_texts(store):
    for part in (*train_val_split(store, 0.4), store.subset(2, 6)):
        explorer = FeatureExplorer(Identity(len(WORDS)), part, token_text=WORDS).wait()
        for row in range(len(part)):
            context = explorer.tokens.context(row, 50)
            samples = part.samples[:]
            assert list(context.rows) == (samples == samples[row]).nonzero().flatten().tolist()
            assert context.tokens == [WORDS[i] for i in part.token_ids[:][list(context.rows)]]


def test_each_string_is_requested_once(store):
    tokenizer = Tokenizer()
    explorer = FeatureExplorer(Identity(len(WORDS)), store,
                               token_text=tokenizer.convert_ids_to_tokens).wait()
    calls = tokenizer.calls
    for latent in range(len(WORDS)): explorer.latent_html(latent)
    assert tokenizer.calls == calls                   # those from which the style was inferred


def test_output_names_come_from_the_tokenizer(store):
    weights = torch.eye(len(WORDS)) - 0.5
    explorer = FeatureExplorer(Identity(len(WORDS)), store, token_text=WORDS,
                               output_weights=weights).wait()
    for latent, word in enumerate(WORDS):
        found = explorer.output_scores(latent, 1)
        assert found.highest == [(word, 0.5)] and found.lowest[0][1] == -0.5
    with pytest.raises(ValueError, match=r'output_weights must have shape \(vocabulary, 10\)'):
        FeatureExplorer(Identity(10), store, output_weights=weights[:, :3])


def test_a_store_without_tokens_is_refused(tmp_path):
    from sparse_ae.networks.store import StoreWriter
    writer = StoreWriter(tmp_path/'rows')
    writer.append(torch.rand(5, 3))
    writer.close()
    rows = ActivationStore(tmp_path/'rows')
    with pytest.raises(ValueError, match='data must have token_ids, samples, positions .* has no '):
        FeatureExplorer(Identity(3), rows, token_text=WORDS)
    assert FeatureExplorer(Identity(3), rows).wait().latent_html(0) == ''


def test_hostile_tokens_never_become_markup(tmp_path):
    tokens = [HOSTILE*3]
    x = torch.eye(len(HOSTILE)).repeat(3, 1)
    explorer = FeatureExplorer(
        Identity(len(HOSTILE)), x, tokens=tokens, output_weights=torch.eye(len(HOSTILE)),
        output_names=HOSTILE, scores={'<b>a': HOSTILE}).wait()
    allowed = {'span', 'table', 'tr', 'td', 'th', 'div'}
    for latent in range(len(HOSTILE)):
        page = explorer.latent_html(latent)
        assert set(re.findall(r'</?(\w+)', page)) <= allowed
        assert not re.search(r'<[^>]*\son\w+=', page)
    path = explorer.export_html(tmp_path/'page.html', HOSTILE[0], with_map=True)
    text = path.read_text(encoding='utf-8')
    assert text.count('<script') == text.count('</script>') == 2
    assert not re.search(r'<(img|b|i)\b', text)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    record = next(r for r in data['latents'] if r['id'] == 0)
    assert record['label'] == HOSTILE[0] == record['tables'][0][1][0][0]
    assert {token for token, _ in record['top'][0][1]} >= {HOSTILE[0]}
    explorer.widget
    explorer._compute_map()
    svg = explorer.panel.map.value
    assert set(re.findall(r'<(\w+)', svg)) == {'svg', 'circle', 'title'}
    assert set(re.findall(r'<(\w+)', explorer.panel.map_legend.value)) == {'span'}


text = st.text(st.sampled_from('ab<>&"\' \nĠ▁#Ċé'), max_size=5)


@given(st.lists(text, min_size=1, max_size=12), st.sampled_from(TOKEN_STYLES))
def test_readable_tokens(tokens, style):
    "One text for each token; words keep their letters, and markup stays text."
    texts = readable_tokens(tokens, style)
    assert len(texts) == len(tokens) and token_style(tokens) in TOKEN_STYLES
    if style == 'words': assert ''.join(texts).replace(' ', '') == ''.join(tokens).replace(' ', '')
    if style == 'verbatim': assert texts == tokens
    page = highlighted_html(texts, [1.]*len(texts), 2.) + table_html(
        ['a'], [[token_name(token, style)] for token in tokens])
    assert set(re.findall(r'<(.)', page)) <= set('s/t')
    assert '\n' not in page


@given(st.lists(st.lists(st.sampled_from('abc'), max_size=6), max_size=6), st.integers(0, 4),
       st.booleans())
def test_contexts_stay_in_their_text(texts, n, ascending):
    "Also where the positions of one text follow those of the text before, by left padding."
    columns = ListedTokens(texts)
    if ascending: columns.positions = torch.arange(len(columns.token_ids))
    rows = TokenRows(columns, columns.names) if len(columns.token_ids) else None
    row = 0
    for sequence in texts:
        for k, token in enumerate(sequence):
            context = rows.context(row, n)
            assert context.tokens == sequence[max(0, k - n):k + n + 1]
            assert context.tokens[row - context.rows.start] == token
            row += 1


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(1, 9)),
                         max_size=8), max_size=6))
def test_token_counts_in_blocks(blocks):
    "Rows of one activation each, against sums in a dictionary."
    counts, wanted = TokenCounts(), {}
    for block in blocks:
        column = lambda k: torch.tensor([row[k] for row in block], dtype=torch.long)
        counts.add(column(0), torch.arange(len(block)), column(1), column(2).float())
        counts.pairs.merge()
        for token, latent, value in block: wanted.setdefault((latent, token), []).append(value)
    occurrences = [token for block in blocks for token, *_ in block]
    for latent in range(4):
        table = counts.table(latent, 99)
        found = {use.token: use for use in table}
        assert {token for one, token in wanted if one == latent} == set(found)
        sums = [use.count * use.mean for use in table]
        assert sums == pytest.approx(sorted(sums, reverse=True))
        for token, use in found.items():
            values = wanted[latent, token]
            assert use.count == len(values) and use.mean == pytest.approx(np.mean(values))
            assert use.share == pytest.approx(len(values) / occurrences.count(token))


@given(st.lists(st.one_of(st.floats(-9, 9), st.just(float('nan'))), min_size=1, max_size=20))
def test_colours_follow_the_order_of_numbers(values):
    values = np.array(values)
    colors, legend = point_colors(values)
    assert all(re.fullmatch('#[0-9a-f]{6}', color) for color in colors)
    assert {color for _, color in legend} <= set(colors)
    for a, color in zip(values, colors):
        for b, other in zip(values, colors):
            if a == b: assert color == other


def test_map_needs_no_scikit_learn_with_given_coordinates(monkeypatch, tmp_path):
    import sys
    monkeypatch.setitem(sys.modules, 'sklearn.manifold', None)
    torch.manual_seed(0)
    model, x = SparseAutoencoder(8, 12), torch.rand(50, 8)
    places = np.random.default_rng(0).normal(size=(12, 2))
    explorer = FeatureExplorer(model, x, coordinates=places).wait()
    assert '<circle' in explorer.export_html(tmp_path/'page.html').read_text()
    without = FeatureExplorer(model, x).wait()
    assert '<circle' not in without.export_html(tmp_path/'other.html').read_text()
    with pytest.raises(ImportError, match='sklearn'): without.map_coordinates()


def test_dead_latents_and_those_without_a_place_are_left_out():
    svg = map_svg(np.array([[0, np.inf], [1, 1], [2, 2]]), ['#000000']*3, {2: '', 0: '', 1: ''})
    assert re.findall(r'data-latent="(\d)"', svg) == ['2', '1']
    torch.manual_seed(0)
    model = SparseAutoencoder(8, 12, hidden_dims=(), activation=TopK(2))
    with torch.no_grad(): model.encoder_bias_1[3] = -100
    explorer = FeatureExplorer(model, torch.rand(50, 8)).wait()
    assert np.isnan(explorer.map_coordinates()[3]).all()
    assert (np.isfinite(explorer.map_coordinates()).all(1)
            == (explorer.stats.density > 0).numpy()).all()


@pytest.mark.parametrize('module', ('sparse_ae', 'sparse_ae.lab.explorer'))
def test_explorer_has_the_methods_of_all_modules(module):
    "The modules that add methods are imported wherever the class comes from."
    code = (f'from {module} import FeatureExplorer as F; '
            'F.describe, F.latent_figure, F.widget, F.map_coordinates, F.export_html')
    subprocess.run([sys.executable, '-c', code], check=True)
