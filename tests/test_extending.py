"""A new penalty, activation, regulariser, metric, data source and engine, each in a user's own file
and without a change of the library, as `reference/architecture.qmd` says."""
import re

import pytest
import torch
from torch.testing import assert_close

import sparse_ae
from conftest import ROOT
from sparse_ae import (SparseAutoencoder, Trainer, evaluate_sparse_autoencoder, get_penalty, sweep,
                       train_sparse_autoencoder_with_early_stopping as train)
from sparse_ae.activations import CODE_ACTIVATIONS, CodeActivation, CodeEncoder
from sparse_ae.losses import METRICS, PENALTIES
from sparse_ae.scaling import SampleScaling, Scaling
from sparse_ae.training import ENGINES

PAGE = (ROOT/'nbs'/'reference'/'architecture.qmd').read_text(encoding='utf-8')
OPTIONS = dict(num_epochs=2, learning_rate=1e-3, patience=9, seed=0, verbose=0)


@pytest.fixture
def examples(monkeypatch):
    "Run the examples of the page; what they register is removed afterwards."
    for table in (PENALTIES, CODE_ACTIVATIONS, METRICS, ENGINES):
        for name in list(table): monkeypatch.setitem(table, name, table[name])
    before = {id(table): dict(table) for table in (PENALTIES, CODE_ACTIVATIONS, METRICS, ENGINES)}
    names = {}
    for block in re.findall(r'```python\n(.*?)```', PAGE, re.S): exec(block, names)
    yield names
    for table in (PENALTIES, CODE_ACTIVATIONS, METRICS, ENGINES):
        for name in set(table) - set(before[id(table)]): del table[name]


def test_penalty(examples, split):
    z = torch.rand(20, 5)
    by_name, by_function = (train(SparseAutoencoder(64, 10), *split, sparsity_type=kind, **OPTIONS)
                            for kind in ('squared_l1', examples['squared_l1']))
    assert get_penalty('squared_l1') == get_penalty(examples['squared_l1'])
    assert_close(get_penalty('squared_l1')(z), z.sum(1).square().mean())
    assert len(by_name['val_loss']) == len(by_function['val_loss']) == 2
    runs = sweep(lambda: SparseAutoencoder(64, 10), *split,
                 dict(sparsity_type=['squared_l1', examples['squared_l1']]), verbose=0,
                 num_epochs=2, learning_rate=1e-3, patience=9)
    assert runs[0].history['val_loss'] == runs[1].history['val_loss']


def test_activation(examples, split, tmp_path):
    model = SparseAutoencoder(64, 10, activation='shifted_relu')
    train(model, *split, **OPTIONS)
    model.save_pretrained(tmp_path)
    again = SparseAutoencoder.from_pretrained(tmp_path)
    assert again.activation.shift == 0.1
    assert_close(again(split[1]), model(split[1]))


def test_regularizer(examples, split):
    history = train(SparseAutoencoder(64, 10), *split, regularizers=[examples['Decorrelation'](0.1)],
                    **OPTIONS)
    assert len(history['val_decorrelation']) == 2 and history['val_decorrelation'][0] > 0


def test_metric(examples, split):
    model = SparseAutoencoder(64, 10)
    history = train(model, *split, **OPTIONS)
    assert len(history['rare_fraction']) == len(history['val_rare_fraction']) == 2
    results = evaluate_sparse_autoencoder(model, split[1])
    density = results['density']
    assert_close(results['rare_fraction'], float(((density > 0) & (density < 0.01)).mean()))
    runs = sweep(lambda: SparseAutoencoder(64, 10), *split, dict(seed=[0]), num_epochs=1,
                 learning_rate=1e-3, patience=9, verbose=0)
    assert 'rare_fraction' in runs.table[0]


def test_data_source(examples, split):
    x, val = split
    histories = []
    for data in (x, examples['RowsInParts'](x.split(100))):
        torch.manual_seed(0)
        histories.append(train(SparseAutoencoder(64, 10), data, val, **OPTIONS)['val_loss'])
    assert histories[0] == histories[1]


def test_engine(examples, split):
    trainer = Trainer(SparseAutoencoder(64, 10), *split, **OPTIONS)
    trainer.fit()
    assert examples['CountingEngine'].steps == trainer.step > 0


def test_sizes_that_the_page_gives():
    "Each example has as many lines of code as the table of the page says."
    table = dict(re.findall(r'^\| (?:a|an) ([\w ]+?) \| (\d+) \|', PAGE, re.M))
    blocks = re.findall(r'### A[n]? ([\w ]+)\n.*?```python\n(.*?)```', PAGE, re.S)
    assert len(blocks) == len(table) == 6
    for name, block in blocks:
        lines = [line for line in block.splitlines() if line.strip() and 'import' not in line]
        assert len(lines) == int(table[name.strip().lower()]), name


def test_a_method_that_a_subclass_must_have_is_named():
    class Empty(CodeActivation): name = 'empty'
    class Encoder(CodeEncoder): name = 'without run'
    class Unmeasured(Scaling): name = 'unmeasured'
    x = torch.ones(3, 4)
    with pytest.raises(NotImplementedError, match=r'Empty must have a forward\(pre\)'):
        SparseAutoencoder(4, 5, activation=Empty()).encode(x)
    with pytest.raises(NotImplementedError, match=r'Encoder must have a run\(pre, weights, activ'):
        SparseAutoencoder(4, 5, hidden_dims=(), encoder=Encoder()).encode(x)
    with pytest.raises(NotImplementedError, match=r'Unmeasured must have a measure\(squares\)'):
        Unmeasured().measure(x)
    class NoStatistics(SampleScaling): name = 'without statistics'
    with pytest.raises(NotImplementedError, match=r'NoStatistics must have a statistics\(x\)'):
        NoStatistics().build(4)(x)


def test_a_name_that_the_package_does_not_have():
    with pytest.raises(AttributeError, match="module 'sparse_ae' has no attribute 'Dashboard'"):
        sparse_ae.Dashboard
    with pytest.raises(ImportError, match='Dashboard'): exec('from sparse_ae import Dashboard')
