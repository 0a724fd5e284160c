"Programs, ONNX files, compiled models, training loops of other libraries, formats of figures."
import copy
import importlib
import inspect
import json
import logging
import os
import pkgutil
import shutil
import sys
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.testing import assert_close

import sparse_ae
from sparse_ae import (BackwardElimination, BatchTopK, Gated, HardThreshold, JumpReLU, MatchingPursuit, SoftThreshold,
                       SparseAutoencoder, TiedWeightSparseAutoencoder, TopK, Unrolled,
                       train_sparse_autoencoder_with_early_stopping as fit)
from sparse_ae import measures
from sparse_ae.activations import AbsTopK, GroupMax
from sparse_ae.export import TrainingLoss, export_onnx, export_program
from sparse_ae.training import batch_losses

single = dict(hidden_dims=())
ACTIVATIONS = dict(
    relu='relu', sigmoid='sigmoid', identity='identity', soft=SoftThreshold(0.1),
    soft_learned=SoftThreshold(0.1, learned=True), hard=HardThreshold(0.1),
    hard_learned=HardThreshold(0.1, learned=True), topk=TopK(3), abs_topk=AbsTopK(3),
    group_max=GroupMax(3), batch_topk=BatchTopK(3), jumprelu=JumpReLU(0.1),
    jumprelu_direct=JumpReLU(0.1, log=False), gated=Gated())
untied, tied = SparseAutoencoder, TiedWeightSparseAutoencoder
MODELS = {name: (untied, dict(single, activation=activation))
          for name, activation in ACTIVATIONS.items()}
MODELS |= dict(
    two_layers=(untied, dict()), deep=(untied, dict(hidden_dims=(10, 9), decoder_norm='atom')),
    tied_deep=(tied, dict(hidden_dims=(10, 9), decoder_norm=None)),
    tied_single=(tied, dict(single, decoder_norm='atom', scaling='global')),
    batch_norm=(untied, dict(batch_norm=True, scaling='columns')),
    blocks=(untied, dict(decoder_norm='block', blocks=(3, 5), scaling='blocks')),
    transcoder=(untied, dict(output_dim=5, scaling='columns')),
    skip=(untied, dict(output_dim=5, skip=True, scaling='columns')),
    pursuit=(untied, dict(single, decoder_norm='atom', encoder=MatchingPursuit(3))),
    tied_pursuit=(tied, dict(single, decoder_norm='atom', encoder=MatchingPursuit(3))),
    elimination=(untied, dict(single, activation=TopK(3), encoder=BackwardElimination(3))),
    unrolled=(untied, dict(single, activation=SoftThreshold(0.1), encoder=Unrolled(3, 0.2))),
    unrolled_topk=(untied, dict(single, activation=TopK(3), encoder=Unrolled(2, 0.2))),
    tied_unrolled=(tied, dict(single, activation=JumpReLU(0.1), encoder=Unrolled(3, 0.2))),
    checkpointed=(untied, dict(gradient_checkpointing=True)),
    double=(untied, dict(dtype=torch.float64, scaling='columns')))


def make(name):
    "A model whose running statistics, thresholds and biases are not those of its start."
    torch.manual_seed(0)
    cls, options = MODELS[name]
    model = cls(8, 12, **copy.deepcopy(options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1: parameter += 0.1*torch.randn_like(parameter)
        if model.skip: model.skip_mat.normal_()
        if model.scaling is not None:
            model.scaling.fit(3*torch.randn(50, len(model.scaling.shift)) + 1)
        model(rows(model, 200))
    return model.eval()


def rows(model, n):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(n)).to(model.dtype)


class Several(nn.Module):
    "Models side by side as one autoencoder, since the preparations for each file take a second."
    def __init__(self, models):
        super().__init__()
        self.models = nn.ModuleList(models)
        self.input_dim, self.is_transcoder = 8, True
        self.output_dim = sum(m.output_dim for m in models)
    def encode(self, x): return torch.cat([m.encode(x) for m in self.models], -1)
    def decode(self, z):
        parts = z.split([m.latent_dim for m in self.models], -1)
        return torch.cat([m.decode(part) for m, part in zip(self.models, parts)], -1)
    def to_output(self, y, x):
        parts = y.split([m.output_dim for m in self.models], -1)
        return torch.cat([m.to_output(part, x) for m, part in zip(self.models, parts)], -1)


def run_onnx(path, given):
    onnxruntime = pytest.importorskip('onnxruntime')
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, {name: given.numpy() for name in names})
    return session, [torch.from_numpy(value) for value in found]


def onnx_packages():
    for package in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(package)


def assert_each_is_close(names, widths, found, expected, **tolerance):
    for name, own, other in zip(names, found.split(widths, -1), expected.split(widths, -1)):
        assert_close(own, other, **tolerance, msg=lambda text: f'{name}: {text}')


SINGLE_PRECISION = [name for name in MODELS if name != 'double']


@pytest.mark.parametrize('names', [SINGLE_PRECISION[i::4] for i in range(4)], ids=' '.join)
def test_programs_and_onnx_files_compute_what_the_models_do(names, tmp_path):
    "Batches of any size: matching pursuit has two ways in a model, below and from 12 rows."
    model = Several([make(name) for name in names]).eval()
    widths = [m.output_dim for m in model.models]
    program = export_program(model).module()
    files = all(find_spec(package) for package in ('onnx', 'onnxscript', 'onnxruntime'))
    path = export_onnx(model, tmp_path/'several.onnx') if files else None
    for n in (0, 1, 13, 50):
        x = rows(model.models[0], n)
        with torch.no_grad(): z, y = model.encode(x), torch.cat([m(x) for m in model.models], -1)
        found = [program(x)] + ([run_onnx(path, x)[1]] if files else [])
        for x_reconstructed, code in found:
            assert_each_is_close(names, 12, code, z, rtol=1e-5, atol=2e-6)
            assert_each_is_close(names, widths, x_reconstructed, y, rtol=1e-5, atol=2e-6)
    assert all(code.count_nonzero() > 0 for code in z.split(12, -1))


@pytest.mark.parametrize('name', ['double', 'skip', 'tied_deep'])
def test_programs_of_the_parts(name):
    model = make(name)
    x = rows(model, 20)
    z = rows(model, 30).view(20, 12)     # of both signs
    assert_close(export_program(model, 'encoder').module()(x), model.encode(x).detach())
    assert_close(export_program(model, 'decoder').module()(z), model.decode(z).detach())
    plain = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim('n')},))
    assert_close(plain.module()(x), model(x))


@pytest.mark.parametrize('name, part', [('double', 'encoder'), ('skip', 'decoder')])
def test_parts_and_metadata_of_onnx_files(name, part, tmp_path):
    onnx_packages()
    model = make(name)
    path = export_onnx(model, str(tmp_path/'new'/'model.onnx'), part)
    assert [p.name for p in path.parent.iterdir()] == ['model.onnx']
    given = rows(model, 30)
    if part == 'decoder': given = model.encode(given).detach()
    session, (found,) = run_onnx(path, given)
    assert_close(found, getattr(model, part[:-1])(given).detach())
    value, = session.get_inputs()
    assert (value.name, value.shape) == {'encoder': ('x', ['batch', 8]),
                                         'decoder': ('z', ['batch', 12])}[part]
    metadata = json.loads(session.get_modelmeta().custom_metadata_map['sparse_ae'])
    assert metadata['part'] == part and metadata['model_class'] == 'SparseAutoencoder'
    config = {**metadata['config'], 'dtype': getattr(torch, metadata['config']['dtype'])}
    other = SparseAutoencoder(**config)
    other.load_state_dict(model.state_dict())
    assert_close(other.eval()(rows(model, 9)), model(rows(model, 9)))


class Branches(nn.Module):
    input_dim = 4
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
    def encode(self, x): return self.layer(x).relu() if x.sum() > 0 else self.layer(x)
    def decode(self, z): return z @ self.layer.weight


class OneSize(Branches):
    def encode(self, x): return self.layer(x).reshape(2, 3)


def test_models_that_cannot_be_exported(tmp_path, capfd):
    for cls, reason in {Branches: 'data-dependent', OneSize: 'batch'}.items():
        message = rf'got the encoder of {cls.__name__}: \w+: .*{reason}'
        with pytest.raises(ValueError, match=message):
            export_program(cls(), 'encoder')
    assert capfd.readouterr() == ('', '')
    assert logging.getLogger('torch').level < logging.CRITICAL
    with pytest.raises(ValueError, match='model must not be in bfloat16'):
        onnx_packages()
        export_onnx(make('relu').bfloat16(), tmp_path/'x.onnx')
    with pytest.raises(ValueError, match='path must be a file, got the folder'):
        export_onnx(make('relu'), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_the_file_and_the_model_as_they_are(tmp_path, monkeypatch):
    onnx_packages()
    path = tmp_path/'model.onnx'
    path.write_text('earlier')
    model = make('batch_norm').train()
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(os, 'fsync', lambda file: (_ for _ in ()).throw(OSError('no space left')))
    with pytest.raises(OSError, match='no space left'): export_onnx(model, path, 'encoder')
    assert path.read_text() == 'earlier' and len(list(tmp_path.iterdir())) == 1
    assert all(part.training for part in model.modules())
    assert_close(model.state_dict(), before)


def test_weights_that_do_not_fit_into_one_file():
    from sparse_ae.export import _check_size
    class Value:
        class const_value: nbytes = 2**30
    class Program:
        class model:
            class graph: initializers = {'a': Value, 'b': Value}
    with pytest.raises(ValueError, match=r"weights below 2 GiB .* got 2.0 GiB; export part"):
        _check_size(Program)
    del Program.model.graph.initializers['b']
    _check_size(Program)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ImportError, match=r"pip install 'sparse_ae\[onnx\]'"):
        export_onnx(make('relu'), tmp_path/'x.onnx')


COMPILED = 'batch_topk pursuit tied_unrolled skip batch_norm'.split()


@pytest.mark.parametrize('name', COMPILED)
def test_a_compiled_model_has_no_graph_breaks(name):
    "Codes, reconstructions, losses and gradients, in train mode and in eval mode."
    torch._dynamo.reset()
    for training in (True, False):
        plain = make(name).train(training)
        other = copy.deepcopy(plain)
        compiled = torch.compile(other, backend='eager', fullgraph=True)
        x = rows(plain, 20)
        with torch.no_grad(): assert_close(compiled(x), plain(x))
        for model in (plain, compiled): model(x).square().sum().backward()
        assert_close(compiled.encode(x), plain.encode(x))
        for own, expected in zip(other.parameters(), plain.parameters(), strict=True):
            assert_close(own.grad, expected.grad)


def test_the_trainer_trains_a_compiled_model_and_code_for_it(split):
    "A compiled model has the parameters of the model: the next call computes with new weights."
    if not shutil.which('c++') and not shutil.which('g++'): pytest.skip('no C++ compiler')
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = SparseAutoencoder(64, 20, hidden_dims=(), activation=TopK(4))
    compiled = torch.compile(model)
    x = split[1][:64]
    with torch.no_grad(): before = compiled(x)
    history = fit(compiled, *split, 4, 1e-2, 4, sparsity_type='none', verbose=0)
    with torch.no_grad():
        assert_close(compiled(x), model(x))
        assert (compiled(x) - x).square().mean() < (before - x).square().mean()
    assert history['epochs_trained'] == 4


def fresh_model():
    torch.manual_seed(0)
    model = SparseAutoencoder(64, 20, **single, activation=JumpReLU(0.05), decoder_norm='atom')
    model.normalize_decoder_weights()
    return model


def steps_of_a_loop(x, steps=4):
    "Model after some steps in a loop of plain torch."
    model = fresh_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        batch_losses(model, x, 'l1', 1e-2).objective.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.normalize_decoder_weights()
    return model


def assert_same_weights(model, other, **tolerance):
    for own, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert_close(own, expected, **tolerance)


def test_a_loop_takes_the_steps_of_the_trainer(split):
    x = split[0][:200]
    model = fresh_model()
    with pytest.warns(UserWarning, match='explains less'):   # after four steps
        fit(model, x, x, 4, 1e-2, 4, 1e-2, sparsity_type='l1', sparsity_warmup=0, revive=None,
            batch_size=200, verbose=0, engine='plain')
    assert_same_weights(model, steps_of_a_loop(x), rtol=1e-4, atol=1e-6)


def test_an_accelerate_loop(split):
    accelerate = pytest.importorskip('accelerate')
    x = split[0][:200]
    model = fresh_model()
    accelerator = accelerate.Accelerator(cpu=True)
    loss_of, optimizer, loader = accelerator.prepare(
        TrainingLoss(model, 'l1', 1e-2), torch.optim.Adam(model.parameters(), lr=1e-2),
        torch.utils.data.DataLoader(x, batch_size=200))
    for _ in range(4):
        for batch in loader:
            accelerator.backward(loss_of(batch).objective)
            optimizer.step()
            optimizer.zero_grad()
            model.normalize_decoder_weights()
    assert_same_weights(model, steps_of_a_loop(x))


def test_a_lightning_loop(split):
    lightning = pytest.importorskip('lightning')
    x = split[0][:200]

    class Autoencoder(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = fresh_model()
        def training_step(self, batch, index):
            return batch_losses(self.model, batch, 'l1', 1e-2).objective
        def on_train_batch_end(self, *args): self.model.normalize_decoder_weights()
        def configure_optimizers(self): return torch.optim.Adam(self.parameters(), lr=1e-2)

    module = Autoencoder()
    trainer = lightning.Trainer(max_epochs=4, accelerator='cpu', logger=False,
                                enable_progress_bar=False, enable_checkpointing=False,
                                enable_model_summary=False)
    trainer.fit(module, torch.utils.data.DataLoader(x, batch_size=200))
    assert_same_weights(module.model, steps_of_a_loop(x))


def test_losses_in_distributed_data_parallel(split, tmp_path):
    "One process: gradients pass through the wrapper's reducer, which calls `forward` only."
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0,
                                         world_size=1)
    try:
        model, x = fresh_model(), split[0][:200]
        loss_of = nn.parallel.DistributedDataParallel(TrainingLoss(model, 'l1', 1e-2))
        optimizer = torch.optim.Adam(loss_of.parameters(), lr=1e-2)
        for _ in range(4):
            loss_of(x).objective.backward()
            optimizer.step()
            optimizer.zero_grad()
            model.normalize_decoder_weights()
    finally: torch.distributed.destroy_process_group()
    assert_same_weights(model, steps_of_a_loop(x))


@pytest.fixture(scope='module')
def plots():
    "Calls of all functions that take `save_path`, by name."
    torch.manual_seed(0)
    x = sparse_ae.digits()[:300]
    runs = sparse_ae.sweep(lambda seed: SparseAutoencoder(64, 16, **single, decoder_norm='atom'),
                           x[:200], x[200:], dict(seed=[0, 1]), num_epochs=30, learning_rate=1e-2,
                           patience=30, sparsity_weight=1e-3, verbose=0)
    model = runs[0].model
    results = sparse_ae.evaluate_sparse_autoencoder(model, x)
    codes, atoms = results['latent_codes'], sparse_ae.dictionary(model)
    calls = dict(
        plot_sparse_training_history=(runs[0].history,),
        plot_sparse_autoencoder_analysis=(results,),
        plot_dictionary=(model, (8, 8)), plot_reconstructions=(model, x), plot_sweep=(runs,),
        plot_stability=(measures.stability(runs),), plot_coactivation=(codes, [[0, 1, 2]]),
        plot_dictionary_map=(model, None, '', 'mds'),
        plot_manifold_clusters=(measures.manifold_clusters(codes, atoms, [[0, 1, 2]]),))
    return {name: partial(getattr(sparse_ae, name, None) or getattr(measures, name), *arguments)
            for name, arguments in calls.items()}


def test_all_functions_that_write_figures_are_tested(plots):
    found = set()
    for module in pkgutil.walk_packages(sparse_ae.__path__, 'sparse_ae.'):
        module = importlib.import_module(module.name)
        found |= {name for name in getattr(module, '__all__', ())
                  if inspect.isfunction(function := getattr(module, name))
                  and 'save_path' in inspect.signature(function).parameters}
    assert found - {'save_figure'} == set(plots)


BEGINNINGS = dict(png=b'\x89PNG', jpg=b'\xff\xd8\xff', jpeg=b'\xff\xd8\xff', pdf=b'%PDF-',
                  svg=b'<?xml', svgz=b'\x1f\x8b', eps=b'%!PS-Adobe', ps=b'%!PS-Adobe',
                  tif=b'II*\0', tiff=b'II*\0', webp=b'RIFF', gif=b'GIF8', avif=b'\0\0\0')


def all_formats():
    formats = {*Figure().canvas.get_supported_filetypes()}
    return sorted(formats if shutil.which('xelatex') else formats - {'pgf'})


@pytest.mark.parametrize('suffix', all_formats())
def test_figures_are_written_in_every_format_that_matplotlib_has(suffix, plots, tmp_path):
    path = tmp_path/'new folder'/f'figure.{suffix}'
    figure = plots['plot_sweep'](save_path=path)
    assert isinstance(figure, Figure)
    assert path.read_bytes().startswith(BEGINNINGS.get(suffix, b'')) and path.stat().st_size > 1000
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize('name', [
    'plot_sparse_training_history', 'plot_sparse_autoencoder_analysis', 'plot_dictionary',
    'plot_reconstructions', 'plot_stability', 'plot_coactivation', 'plot_dictionary_map',
    'plot_manifold_clusters'])
def test_every_plot_is_written(name, plots, tmp_path):
    for suffix in ('jpg', 'pdf'):
        path = tmp_path/f'figure.{suffix}'
        assert isinstance(plots[name](save_path=str(path)), Figure)
        assert path.read_bytes().startswith(BEGINNINGS[suffix])


@pytest.mark.parametrize('name', ['figure.xyz', 'figure.doc'])
def test_a_format_that_matplotlib_does_not_have(name, plots, tmp_path):
    with pytest.raises(ValueError, match=r"(?i)format.*xyz|format.*doc"):
        plots['plot_sweep'](save_path=tmp_path/name)
    assert list(tmp_path.iterdir()) == []
