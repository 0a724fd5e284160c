"Hooks and spliced autoencoders: structures, exceptions, nesting, gradients, dtypes, positions."
import copy
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, fields
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from sparse_ae import (BatchTopK, SparseAutoencoder, TiedWeightSparseAutoencoder, TopK, Unrolled)
from sparse_ae.networks.hooks import (find_module, first_tensor, from_rows, hooked,
                                      replace_first_tensor, run_model, to_rows)
from sparse_ae.networks.splice import (ablate_latents, evaluate_in_network, logits_kl_divergence,
                                       mean_of_activations, next_token_loss, output_logits,
                                       scale_latents, set_latents, splice)

Pair = namedtuple('Pair', 'ids hidden')


@dataclass
class Output(OrderedDict):
    "A mapping whose entries are attributes, as the outputs of transformers are."
    hidden: torch.Tensor = None
    others: tuple = None

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None: super().__setitem__(field.name, value)

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __reduce__(self): return type(self), tuple(getattr(self, f.name) for f in fields(self))


STRUCTURES = {
    'tensor': lambda x: x, 'tuple': lambda x: (x, x + 1), 'list': lambda x: [None, x],
    'named': lambda x: Pair(torch.arange(2), x), 'dict': lambda x: dict(ids=torch.arange(2), x=x),
    'nested': lambda x: ((torch.tensor(True), None), [dict(x=x)]),
    'output': lambda x: Output(x, (x + 1,)), 'user': lambda x: UserDict(x=x)}


class Structured(nn.Module):
    "A linear layer whose output has some structure."
    def __init__(self, structure):
        super().__init__()
        self.linear, self.structure = nn.Linear(4, 6), structure

    def forward(self, x): return self.structure(self.linear(x))


class Reader(nn.Module):
    "A network that reads the activations out of a structure, wherever a tensor is."
    def __init__(self, structure):
        super().__init__()
        self.block, self.head = Structured(structure), nn.Linear(6, 3)

    def forward(self, x): return self.head(first_tensor(self.block(x)))


def make_sae(input_dim=6, **options):
    torch.manual_seed(1)
    return SparseAutoencoder(input_dim, 12, **dict(dict(hidden_dims=()), **options))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(
        a=nn.Linear(4, 6), b=nn.Tanh(), c=nn.Linear(6, 6), d=nn.Tanh(), e=nn.Linear(6, 3)))


def hooks(model):
    return [hook for module in model.modules()
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())]


@pytest.mark.parametrize('name', STRUCTURES)
def test_any_structure_of_an_output(name):
    torch.manual_seed(0)
    model, x, sae = Reader(STRUCTURES[name]), torch.randn(5, 4), make_sae()
    with splice(model, 'block', sae): y = model(x)
    assert_close(y, model.head(sae(model.block.linear(x))))
    original = model(x)
    with splice(model, 'block', sae, error_term=True): assert torch.equal(model(x), original)


@pytest.mark.parametrize('name', STRUCTURES)
def test_a_structure_keeps_its_type_and_its_other_items(name):
    x, new = torch.randn(2, 3), torch.zeros(2, 3)
    value = STRUCTURES[name](x)
    before = copy.copy(value)
    changed = replace_first_tensor(value, new)
    assert type(changed) is type(value)
    assert first_tensor(changed) is new and first_tensor(value) is x
    if name == 'tuple': assert changed[1] is value[1]
    if name == 'output':
        assert changed.hidden is new and changed.others is value.others
        assert list(changed) == list(value)
    if name in ('dict', 'user'): assert list(changed) == list(before)


def test_a_mapping_without_attention_mask_is_passed_as_keyword_arguments():
    batch = UserDict(input=torch.ones(2, 4))       # as the encodings of tokenizers
    linear = nn.Linear(4, 6)
    assert_close(run_model(linear, batch), linear(batch['input']))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_rows_round_trip(shape, data):
    channels = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = torch.arange(torch.Size(shape).numel()).reshape(shape).float()
    rows = to_rows(x, channels)
    assert rows.shape == (x.numel() // shape[channels], shape[channels])
    assert_close(from_rows(rows, x, channels), x)
    assert_close(rows[0], x.movedim(channels, -1).flatten(0, -2)[0] if x.ndim > 1 else x)


@pytest.mark.parametrize('wrapped', ['module', 'nested'])
def test_names_of_wrapped_models(network, wrapped):
    wrapper = nn.ModuleDict({wrapped: network})
    with pytest.raises(ValueError, match=f"nearest: .*'{wrapped}.c'"): find_module(wrapper, 'c')
    assert find_module(wrapper, f'{wrapped}.c') is network.c


# Exceptions and modes

@pytest.mark.parametrize('where', ['edit', 'positions', 'block', 'later', 'encode'])
def test_exceptions_leave_nothing_behind(network, where):
    def fail(*_): raise KeyError(where)
    sae = make_sae().train()
    network.train()
    options = {where: fail} if where in ('edit', 'positions') else {}
    if where == 'encode': sae.activation.forward = fail
    if where == 'later': network.e.register_forward_hook(fail)
    before = len(hooks(network))
    with pytest.raises(KeyError, match=where), splice(network, 'c', sae, **options):
        if where == 'block': fail()
        network(torch.ones(2, 4))
    assert len(hooks(network)) == before
    assert sae.training and network.training and network.c.training


def test_an_exception_in_the_block_is_not_hidden_by_one_about_a_module_that_was_not_called(network):
    with pytest.raises(ZeroDivisionError), splice(network, 'c', make_sae()): 1/0


def test_the_sae_is_in_eval_mode_and_the_network_is_left_alone(network):
    sae = SparseAutoencoder(6, 12, hidden_dims=(), activation=BatchTopK(2)).train()
    sae(torch.randn(50, 6))                          # a threshold
    state = copy.deepcopy(sae.state_dict())
    x = torch.randn(7, 4)
    with splice(network, 'b', sae) as spliced:
        assert spliced is network and network.training and not sae.training
        together = network(x)
        apart = torch.cat([network(row[None]) for row in x])
    assert_close(together, apart)                    # no dependence on the other rows of a batch
    assert sae.training
    assert_close(sae.state_dict(), state)


def test_frozen_parts_of_an_sae_stay_frozen(network):
    sae = make_sae(hidden_dims=(8,), batch_norm=True).train()
    norm = next(part for part in sae.modules() if isinstance(part, nn.BatchNorm1d))
    norm.eval()
    with splice(network, 'c', sae): network(torch.ones(2, 4))
    assert sae.training and not norm.training


# Nesting

def test_nested_blocks(network):
    one, two = make_sae(activation=TopK(2)), make_sae(activation=TopK(4))
    x = torch.randn(5, 4)
    with splice(network, 'b', one), splice(network, 'd', two): y = network(x)
    assert_close(y, network.e(two(network.d(network.c(one(network.b(network.a(x))))))))
    with splice(network, 'b', one), splice(network, 'b', two): y = network(x)      # the same module
    assert_close(y, network.e(network.d(network.c(two(one(network.b(network.a(x))))))))
    with splice(network, 'b', one, error_term=True), splice(network, 'd', one, error_term=True):
        y = network(x)
    assert not hooks(network)
    assert torch.equal(y, network(x))


def test_nested_blocks_of_one_sae_restore_its_mode(network):
    sae = make_sae().train()
    with splice(network, 'b', sae):
        with splice(network, 'd', sae): network(torch.ones(1, 4))
        assert not sae.training
        network(torch.ones(1, 4))
    assert sae.training


def test_a_module_that_is_called_twice_is_replaced_twice():
    shared = nn.Tanh()
    network, x = nn.Sequential(shared, nn.Linear(6, 6), shared), torch.randn(3, 6)
    sae = make_sae()
    with splice(network, '0', sae): y = network(x)
    assert_close(y, sae(shared(network[1](sae(shared(x))))))


def test_a_block_may_be_left_only_after_a_call_of_the_module(network):
    with pytest.raises(RuntimeError, match="module 'c' was not called"), \
            splice(network, 'c', make_sae()): network.c.forward(torch.ones(1, 6))
    with splice(network, 'c', make_sae()):
        for _ in range(2): network(torch.ones(1, 4))


# Gradients

def test_gradients_reach_the_network_the_input_and_the_sae(network):
    sae, x = make_sae(), torch.randn(5, 4, requires_grad=True)
    network.double()
    sae.double()
    x = x.detach().double().requires_grad_()
    def function(x):
        with splice(network, 'b', sae): return network(x)
    assert torch.autograd.gradcheck(function, x)
    function(x).sum().backward()
    assert all(p.grad is not None for p in (*network.a.parameters(), *sae.parameters()))


@pytest.mark.parametrize('edit', [None, scale_latents([0, 3], 2.), set_latents(1, 0.5)])
def test_gradients_with_the_error_term(network, edit):
    sae, x = make_sae().double(), torch.randn(5, 4).double().requires_grad_()
    network.double()
    def function(x):
        with splice(network, 'b', sae, error_term=True, edit=edit): return network(x)
    def by_hand(x):
        h = network.b(network.a(x))
        z = sae.encode(h)
        return network.e(network.d(network.c(
            h + sae.decode(z if edit is None else edit(z)) - sae.decode(z))))
    assert_close(function(x), by_hand(x))
    gradient, expected = (torch.autograd.grad(f(x).square().sum(), x)[0]
                          for f in (function, by_hand))
    assert_close(gradient, expected)


def test_parameters_and_their_gradients_stay_as_they_are_without_gradients(network):
    sae = make_sae()
    before = copy.deepcopy([*network.parameters(), *sae.parameters()])
    with torch.no_grad(), splice(network, 'b', sae): y = network(torch.ones(2, 4))
    assert not y.requires_grad
    after = [*network.parameters(), *sae.parameters()]
    assert all(torch.equal(a, b) and a.grad is None and a.requires_grad
               for a, b in zip(after, before))
    with torch.inference_mode(), splice(network, 'b', sae, error_term=True, edit=ablate_latents(0)):
        assert_close(network(torch.ones(2, 4)).shape, torch.Size([2, 3]))


# Edits

def test_an_edit_may_work_in_place(network):
    sae, x = make_sae(), torch.randn(5, 4)
    def ablate(z): z[:, 3:] = 0
    for error_term in (False, True):
        with splice(network, 'b', sae, error_term=error_term, edit=ablate): y = network(x)
        with splice(network, 'b', sae, error_term=error_term, edit=ablate_latents(range(3, 12))):
            assert_close(network(x), y)


def test_an_edit_must_return_codes(network):
    for edit, error in ((lambda z: z[:, :3], 'shape'), (lambda z: 'text', 'tensor')):
        with pytest.raises((TypeError, ValueError), match=f'edit must return a.*{error}'), \
                splice(network, 'b', make_sae(), edit=edit): network(torch.ones(1, 4))


@pytest.mark.parametrize('make', [ablate_latents, partial(scale_latents, factors=0.),
                                  partial(set_latents, values=0.)])
@pytest.mark.parametrize('latents', [2, [2], torch.tensor([2]), (2, 2), range(2, 3)])
def test_indices_of_latents(make, latents):
    z = torch.rand(3, 4, 5) + 1
    expected = z.clone()
    expected[..., 2] = 0
    assert_close(make(latents)(z), expected)
    assert (z > 0).all()                                  # codes that came are unchanged
    assert_close(make([])(z), z)


def test_values_of_latents_may_need_gradients():
    value = torch.tensor([2., 3.], requires_grad=True)
    set_latents([0, 4], value)(torch.rand(3, 5)).sum().backward()
    assert_close(value.grad, torch.tensor([3., 3.]))


@pytest.mark.parametrize('wrong', [0.5, [0.5], 'a', None, True, torch.tensor([True, False])])
def test_bad_indices_of_latents(wrong):
    with pytest.raises(TypeError, match='latents must be'): ablate_latents(wrong)(torch.ones(2, 3))


# Dtypes and devices

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize('model_dtype', DTYPES)
@pytest.mark.parametrize('sae_dtype', DTYPES[:3])
def test_the_dtype_of_the_network_is_kept(network, model_dtype, sae_dtype):
    network.to(model_dtype)
    sae, x = make_sae().to(sae_dtype), torch.randn(9, 4).to(model_dtype)
    seen = []
    with splice(network, 'b', sae, edit=lambda z: seen.append(z.dtype)): y = network(x)
    assert y.dtype == model_dtype and seen == [sae_dtype]
    inner = sae(network.b(network.a(x)).to(sae_dtype)).to(model_dtype)
    assert_close(y, network.e(network.d(network.c(inner))))
    with splice(network, 'b', sae, error_term=True): y = network(x)
    assert torch.equal(y, network(x))


def test_autocast_of_the_network_does_not_reach_the_sae(network):
    sae, x, seen = make_sae(), torch.randn(9, 4), []
    with splice(network, 'b', sae, edit=seen.append), torch.autocast('cpu', torch.bfloat16):
        network(x)
    with torch.autocast('cpu', torch.bfloat16): h = network.b(network.a(x))
    assert h.dtype == torch.bfloat16 and seen[0].dtype == torch.float32
    assert_close(seen[0], sae.encode(h.float()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_an_sae_on_another_device(network):
    sae, x = make_sae(), torch.randn(9, 4)
    with splice(network, 'b', sae): expected = network(x)
    network.cuda()
    with splice(network, 'b', sae): y = network(x.cuda())
    assert y.is_cuda
    assert_close(y.cpu(), expected)
    sae.cuda()
    mask = torch.arange(9) < 4                       # on the CPU
    with splice(network, 'b', sae, positions=mask, error_term=True, edit=ablate_latents(0)):
        assert network(x.cuda()).is_cuda
    result = evaluate_in_network(network, 'b', sae, [x.cuda()], verbose=0)
    assert_close(result['loss_spliced'], evaluate_in_network(
        network.cpu(), 'b', sae.cpu(), [x], verbose=0)['loss_spliced'], atol=1e-4, rtol=1e-4)


# Autoencoders

class Duck(nn.Module):
    "A user-defined autoencoder without parameters."
    def encode(self, x): return x.relu()
    def decode(self, z): return z / 2


@pytest.mark.parametrize('sae', [
    Duck(), TiedWeightSparseAutoencoder(6, 12), SparseAutoencoder(6, 12, scaling='columns'),
    SparseAutoencoder(6, 12, hidden_dims=(), encoder=Unrolled(2), activation=TopK(3)),
    SparseAutoencoder(6, 12, hidden_dims=(), activation='gated')],
    ids=lambda sae: type(sae).__name__)
def test_any_autoencoder(network, sae):
    x = torch.randn(9, 4)
    with splice(network, 'b', sae): y = network(x)
    reconstruction = sae.decode(sae.encode(network.b(network.a(x))))
    assert_close(y, network.e(network.d(network.c(reconstruction))))


def test_a_wrong_autoencoder(network):
    x = torch.ones(2, 4)
    for wrong, error, match in (
            (nn.Linear(6, 6), TypeError, 'sae: .*encode'), ('sae', TypeError, 'sae: '),
            (make_sae(5), ValueError, "the 6 features of module 'b'.*input_dim=5")):
        with pytest.raises(error, match=match), splice(network, 'b', wrong): network(x)
    class Wrong(Duck):
        def decode(self, z): return z[:, :3]
    with pytest.raises(ValueError, match='decode must return shape'), splice(network, 'b', Wrong()):
        network(x)
    embed = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 3))
    with pytest.raises(TypeError, match='floating-point'), splice(embed, '0', make_sae(), io='in'):
        embed(torch.arange(3))


def test_a_transcoder_needs_a_row_of_its_input_for_each_row():
    class Pairs(nn.Module):
        def forward(self, x): return x.unflatten(0, (-1, 2)).mean(1)
    pairs = nn.Sequential(nn.Linear(4, 4), Pairs())
    transcoder = SparseAutoencoder(4, 8, output_dim=4)
    with pytest.raises(ValueError, match='got 6 and 3 rows'), splice(pairs, '1', transcoder):
        pairs(torch.ones(6, 4))


# Positions and convolutional maps

def test_maps_of_a_convolutional_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    x, sae = torch.randn(2, 3, 8, 7), make_sae(activation=TopK(2))
    h = network[0](x)
    expected = sae(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    with splice(network, '0', sae, channels=1): y = network(x)
    assert_close(y, network[2](expected.relu()))
    mask = torch.rand(2, 6, 5) < 0.3
    with splice(network, '0', sae, channels=1, positions=mask): y = network(x)
    assert_close(y, network[2](torch.where(mask[:, None], expected, h).relu()))
    with pytest.raises(ValueError, match="the 5 features of module '0'"), splice(network, '0', sae):
        network(x)
    with pytest.raises(ValueError, match='channels must be'), splice(network, '0', sae, channels=4):
        network(x)


@given(st.integers(0, 2**31))
def test_positions_choose_rows(seed):
    torch.manual_seed(seed)
    network, x, sae = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), torch.randn(3, 5, 4), make_sae()
    mask = torch.rand(3, 5) < torch.rand(())
    h = network[0](x)
    expected = torch.where(mask[..., None], sae(h), h).tanh()
    seen = []
    for positions in (mask, mask.numpy(), lambda activations: mask):
        with splice(network, '0', sae, positions=positions, edit=lambda z: seen.append(len(z))):
            assert_close(network(x), expected)
    assert seen == ([int(mask.sum())]*3 if mask.any() else [])   # other rows are not encoded


def test_without_positions_nothing_is_encoded(network):
    x, codes = torch.randn(9, 4), []
    with splice(network, 'b', make_sae(), positions=torch.tensor(False), edit=codes.append):
        y = network(x)
    assert torch.equal(y, network(x)) and not codes


def test_gradients_at_positions(network):
    sae, x = make_sae(), torch.randn(5, 4, requires_grad=True)
    mask = torch.tensor([True, False, False, True, False])
    with splice(network, 'b', sae, positions=mask): y = network(x)
    gradient, = torch.autograd.grad(y.sum(), x)
    with splice(network, 'b', sae): all_replaced = torch.autograd.grad(network(x).sum(), x)[0]
    none_replaced, = torch.autograd.grad(network(x).sum(), x)
    assert_close(gradient, torch.where(mask[:, None], all_replaced, none_replaced))


# Measures

class Language(nn.Module):
    "A language model with the arguments and the output of transformers."
    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(11, 6), nn.Tanh(), nn.Linear(6, 11)

    def forward(self, input_ids, attention_mask=None):
        h = self.mix(self.embed(input_ids))
        return dict(loss=h.mean(), logits=self.head(h.cumsum(1)))


class CumulativeMask(Language):
    "The same, with padding that other tokens do not see."
    def forward(self, input_ids, attention_mask):
        h = self.mix(self.embed(input_ids)) * attention_mask[..., None]
        return dict(loss=h.mean(), logits=self.head(h.cumsum(1)))


@pytest.mark.parametrize('left', [False, True])
def test_padding_changes_no_measure(left):
    torch.manual_seed(0)
    model, sae = CumulativeMask(), make_sae(activation=TopK(2))
    texts = [torch.randint(11, (n,)) for n in (3, 7, 5)]
    alone = [dict(input_ids=text[None], attention_mask=torch.ones(1, len(text))) for text in texts]
    fill = lambda text: (7 - len(text), 0) if left else (0, 7 - len(text))
    pad = lambda rows, value: torch.stack([F.pad(row, fill(row), value=value) for row in rows])
    padded = dict(input_ids=pad(texts, 10),
                  attention_mask=pad([torch.ones(len(text)) for text in texts], 0))
    a, b = (evaluate_in_network(model, 'mix', sae, batches, next_token_loss, verbose=0)
            for batches in (alone, [padded]))
    assert_close(a, b, atol=1e-5, rtol=1e-4)             # ratios of small differences among them
    means = [mean_of_activations(model, 'mix', batches) for batches in (alone, [padded])]
    assert_close(*means)
    ignored = evaluate_in_network(model, 'mix', sae, [padded], next_token_loss, verbose=0,
                                  keep=lambda batch: None)
    assert ignored['loss_mean_ablated'] != b['loss_mean_ablated']


def test_measures_by_hand():
    torch.manual_seed(0)
    model, sae = Language(), make_sae(activation=TopK(2))
    batches = [torch.randint(11, (n, 5)) for n in (3, 1)]
    result = evaluate_in_network(model, 'mix', sae, batches, next_token_loss, verbose=0)
    ids = torch.cat(batches)
    h = model.mix(model.embed(ids))
    logits = lambda h: model.head(h.cumsum(1))
    loss = lambda h: F.cross_entropy(logits(h)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
    mean = h.mean((0, 1)).expand_as(h)
    runs = dict(original=h, spliced=sae(h), zero_ablated=0*h, mean_ablated=mean)
    for name, activations in runs.items():
        assert result[f'loss_{name}'] == pytest.approx(loss(activations))
    drop = loss(sae(h)) - loss(h)
    for name, ablated in (('loss_recovered', 0*h), ('loss_recovered_from_mean', mean)):
        assert result[name] == pytest.approx(1 - drop / (loss(ablated) - loss(h)), rel=1e-4)
    for name in ('spliced', 'zero_ablated', 'mean_ablated'):
        log_q, log_p = (logits(activations).log_softmax(-1) for activations in (runs[name], h))
        kl = F.kl_div(log_q, log_p, log_target=True, reduction='sum') / ids.numel()
        assert result[f'kl_{name}'] == pytest.approx(kl.item(), rel=1e-4)
    assert result['samples'] == 4


def test_without_a_loss_the_divergence_is_the_loss(network):
    result = evaluate_in_network(network, 'b', make_sae(), [torch.randn(9, 4)], verbose=0)
    assert result['loss_original'] == 0
    for name in ('spliced', 'zero_ablated', 'mean_ablated'):
        assert result[f'loss_{name}'] == result[f'kl_{name}']
    assert result['loss_recovered'] == 1 - result['kl_spliced']/result['kl_zero_ablated']


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
@pytest.mark.parametrize('io', ['in', 'out'])
def test_identity_and_zero_recover_all_and_nothing(network, io, dtype):
    class Factor(Duck):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor
        def encode(self, x): return x
        def decode(self, z): return z * self.factor
    network.to(dtype)
    x, labels = torch.randn(9, 4, dtype=dtype), torch.randint(3, (9,))
    loss = lambda output, batch: F.cross_entropy(output, batch[1], reduction='none')
    for factor, expected in ((1., 1.), (0., 0.)):
        result = evaluate_in_network(network, 'c', Factor(factor), [(x, labels)], loss, io=io,
                                     forward=lambda model, batch: model(batch[0]), verbose=0)
        assert result['loss_recovered'] == expected
        assert result['kl_spliced'] == (0 if factor else result['kl_zero_ablated'])


def test_a_network_that_ignores_the_module_has_no_loss_recovered(network):
    nn.init.zeros_(network.e.weight)
    result = evaluate_in_network(network, 'b', make_sae(), [torch.randn(9, 4)], verbose=0)
    assert result['kl_spliced'] == 0 and result['loss_recovered'] != result['loss_recovered']


def test_measuring_leaves_network_and_sae_as_they_are(network):
    network.add_module('dropout', nn.Dropout())
    network.train()
    network.c.eval()
    sae, x = make_sae().train(), torch.randn(9, 4)
    a, b = (evaluate_in_network(network, 'b', sae, [x], verbose=0) for _ in range(2))
    assert a == b                                        # no dropout
    assert network.training and network.dropout.training and not network.c.training and sae.training
    assert not hooks(network)
    assert all(p.grad is None for p in (*network.parameters(), *sae.parameters()))


def test_batches(network):
    sae, x = make_sae(), torch.randn(9, 4)
    loader = torch.utils.data.DataLoader(x, batch_size=4)
    expected = evaluate_in_network(network, 'b', sae, [x], verbose=0)
    assert_close(evaluate_in_network(network, 'b', sae, loader, verbose=0), expected)
    mean = mean_of_activations(network, 'b', iter(loader))
    assert_close(evaluate_in_network(network, 'b', sae, iter(loader), mean=mean.numpy(), verbose=0),
                 expected)
    with pytest.raises(ValueError, match='readable twice'):
        evaluate_in_network(network, 'b', sae, iter(loader), verbose=0)
    with pytest.raises(ValueError, match='inputs must'):
        evaluate_in_network(network, 'b', sae, [], verbose=0)
    with pytest.raises(ValueError, match='inputs must'):
        evaluate_in_network(network, 'b', sae, [], mean=mean, verbose=0)
    with pytest.raises(TypeError, match='inputs must'):
        evaluate_in_network(network, 'b', sae, x, mean=mean, verbose=0)
    with pytest.raises(ValueError, match='inputs must'):
        evaluate_in_network(network, 'b', sae, [x], keep=lambda x: torch.zeros(9), verbose=0)


def test_bad_losses_and_logits(network):
    x = torch.randn(9, 4)
    measure = partial(evaluate_in_network, network, 'b', make_sae(), [x], verbose=0)
    with pytest.raises(TypeError, match='loss must'): measure(lambda output, batch: None)
    with pytest.raises(ValueError, match='loss must'): measure(logits=None)
    with pytest.raises(ValueError, match='logits=None'): measure(logits=lambda y: y[:, :1])
    assert measure(lambda output, batch: 1., logits=None)['loss_spliced'] == 1
    assert 'kl_spliced' not in measure(lambda output, batch: 1., logits=None)


def test_logits_that_are_ruled_out():
    a = torch.tensor([[0., -torch.inf, 1.]], dtype=torch.float64)
    assert logits_kl_divergence(a, a).item() == 0
    assert logits_kl_divergence(torch.zeros(1, 3).double(), a).item() == torch.inf
    assert logits_kl_divergence(a.half(), a.half()).dtype == torch.float32


def test_the_entry_logits_comes_before_other_tensors():
    logits = torch.randn(2, 3, 4)
    assert output_logits(dict(loss=torch.tensor(1.), logits=logits)) is logits
    assert output_logits((logits, torch.tensor(1.))) is logits


def test_hooks_are_not_called_after_the_block(network):
    calls = []
    with hooked(network.c, calls.append), hooked(network.c, calls.append, io='in'):
        network(torch.ones(1, 4))
    network(torch.ones(1, 4))
    assert len(calls) == 2 and not hooks(network)
