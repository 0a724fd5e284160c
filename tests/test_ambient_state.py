"The public functions give the same numbers whatever the ambient state of torch is."
import copy
import tempfile
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sparse_ae
from sparse_ae import (ActivationStore, AnnealedPNorm, AuxiliaryLoss, AveragedWeights,
                       BackwardElimination, BatchTopK,
                       Contractive, EarlyStopping, FeatureExplorer, Gated, GateReconstruction,
                       HardThreshold, HoyerTarget, Isometry, JumpReLU, LayerSparsity, LogFile,
                       MatchingPursuit, NestedReconstruction, Penalty, Resample, Rows,
                       SoftThreshold, SparseAutoencoder, TiedWeightSparseAutoencoder, TopK, Trainer,
                       TrainingDashboard, TrainingOptions, Unrolled, capture, compare_runs,
                       dictionary, digits, evaluate_in_network, evaluate_sparse_autoencoder,
                       feature_contributions, get_penalty, hoyer_projection, hoyer_sparseness,
                       hoyer_sparsity_loss, image_patches, kl_divergence_sparsity_loss,
                       l0_sparsity_loss, l1_sparsity_loss, lifetime_sparseness, local_dictionary,
                       log_sparsity_loss, match_dictionaries, mean_activation, p_norm_sparsity_loss,
                       plot_dictionary, plot_reconstructions, plot_sparse_autoencoder_analysis,
                       plot_sparse_training_history, plot_sweep, population_sparseness,
                       sparse_dictionary, splice, sweep)
from sparse_ae import train_sparse_autoencoder_with_early_stopping as train
from sparse_ae import train_val_split
from sparse_ae.cli import metrics_table, representative_samples
from sparse_ae.data import Batches, TensorRows, sample_rows
from sparse_ae.engines.sparse_codes import encode_sparse, top_k, top_k_flat
from sparse_ae.eval_viz import code_results, new_figure, typical_codes
from sparse_ae.io import read_state, write_state
from sparse_ae.lab.latents import latent_statistics, unit_atoms
from sparse_ae.lab.widgets import _plot_slope, _plot_step
from sparse_ae.losses import METRICS, PENALTIES, Measurements, l1_for_sparseness
from sparse_ae.models import geometric_median, unit_norm
from sparse_ae.networks.splice import ablate_latents
from sparse_ae.networks.store import StoreWriter
from sparse_ae.options import fitted_scaling
from sparse_ae.presets import PRESETS
from sparse_ae.regularizers import (contractive_penalty, isometry_penalty, jacobians, mix_codes,
                                    prefix_reconstructions)
from sparse_ae.sparsity_control import choose_inputs, resample
from sparse_ae.training import batch_losses


@contextmanager
def setting(read, write, value):
    "Change a global setting of torch within the block."
    before = read()
    write(value)
    try: yield
    finally: write(before)


def default_dtype(dtype): return setting(torch.get_default_dtype, torch.set_default_dtype, dtype)


def default_device(name): return setting(lambda: None, torch.set_default_device, name)


def deterministic():
    return setting(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms,
                   True)


def threads(n): return setting(torch.get_num_threads, torch.set_num_threads, n)


STATES = {
    **{f'default dtype {dtype}': lambda dtype=dtype: default_dtype(dtype)
       for dtype in (torch.bfloat16, torch.float16, torch.float64)},
    'default device': lambda: default_device('meta'),
    'autocast': lambda: torch.autocast('cpu', torch.bfloat16),
    'inference_mode': torch.inference_mode, 'no_grad': torch.no_grad,
    'deterministic': deterministic, 'threads': lambda: threads(3)}

G = torch.Generator().manual_seed(0)
X = torch.rand(64, 16, generator=G)
Z = torch.rand(64, 12, generator=G) * (torch.rand(64, 12, generator=G) < 0.3)
SINGLE = dict(hidden_dims=(), decoder_norm='atom')

DEAD = torch.arange(12) % 3 == 0
MODEL = SparseAutoencoder(16, 12)
HISTORY = train(MODEL, X, X, 2, 1e-2, 9, verbose=0)
RESULTS = evaluate_sparse_autoencoder(MODEL, X)


class Own(nn.Module):
    "User-defined module without attributes of the library's models."
    def __init__(self):
        super().__init__()
        self.D = nn.Parameter(torch.rand(16, 12, generator=torch.Generator().manual_seed(1),
                                         dtype=torch.float32, device='cpu'))
    def encode(self, x): return (x @ self.D - 2).relu()
    def decode(self, z): return z @ self.D.T


class Parameterless(nn.Module):
    def encode(self, x): return (x[:, :12] - 0.5).relu()
    def decode(self, z): return torch.cat([z, z[:, :4]], 1)


class Squares(Rows):
    shape = 40, 16
    def __getitem__(self, indices): return X[:40][indices]


def seeded(): return torch.Generator().manual_seed(0)


def model(cls=SparseAutoencoder, **options):
    torch.manual_seed(0)
    return cls(16, 12, **options)


def passes(model):
    "Codes and reconstructions in train and in eval mode."
    trained = model.encode(X), model.decode(Z), model(X)
    with torch.no_grad(): model.eval()
    return *trained, model.encode(X), model(X), model.state_dict()


def fit(model=None, data=X, val=X[:20], **options):
    "History and weights."
    own = model or globals()['model']()
    torch.manual_seed(0)
    options = dict(num_epochs=2, learning_rate=1e-2, patience=9, batch_size=20, verbose=0, seed=0,
                   sparsity_type='l1') | options
    history = train(own, data, val, **options)
    return {k: v for k, v in history.items() if k != 'seconds'}, own.state_dict()


def preset(name):
    torch.manual_seed(0)
    own, training = SparseAutoencoder.from_preset(
        name, 16, 12, **({} if name == 'ng' else dict(l0=3)), num_epochs=2, steps_per_epoch=5,
        batch_size=20, verbose=0, seed=0)
    return fit(own, **training)


def every_gradient():
    "Gradient of each penalty."
    found = {}
    for name, penalty in PENALTIES.items():
        z = Z.clone().requires_grad_()
        loss = penalty.function(z)
        if loss.requires_grad: found[name] = torch.autograd.grad(loss, z)[0]
    return found


def saved(cls=SparseAutoencoder, **options):
    own = model(cls, **options)
    with tempfile.TemporaryDirectory() as folder:
        own.save_pretrained(folder)
        return cls.from_pretrained(folder).state_dict()


def state_file():
    with tempfile.TemporaryDirectory() as folder:
        write_state(Path(folder)/'s', dict(a=X, b=[1, 2.5], c='x'))
        return read_state(Path(folder)/'s')


def resumed():
    with tempfile.TemporaryDirectory() as folder:
        options = dict(checkpoint_dir=folder, checkpoint_epochs=1, resume=True)
        fit(num_epochs=1, **options)
        return fit(num_epochs=3, **options)


def logged():
    with tempfile.TemporaryDirectory() as folder:
        fit(callbacks=[LogFile(Path(folder)/'log.csv')])
        return [line.split(',')[1] for line in (Path(folder)/'log.csv').read_text().split()]


def explored(own, **options):
    "Statistics, descriptions, orders, figures and the size of the page."
    explorer = FeatureExplorer(own, X, **options).wait()
    stats = explorer.stats
    figures = explorer.latent_figure(1), explorer.steering_figure(1, 3, 2.)
    with tempfile.TemporaryDirectory() as folder:
        page = explorer.export_html(Path(folder)/'page.html', k=2).read_text()
    return (stats.density, stats.mean, stats.top_values, stats.top_samples, stats.histogram,
            [list(explorer.describe(j)) for j in range(3)], explorer.order('rarest'),
            explorer.order('similar', 2), list(explorer.steer(1, 3, 2.)), figures, len(page))


def explored_text():
    "Text, token counts, orders and a map."
    own = Own()
    latents = own.encode(X[:1]).shape[1]
    tokens = [['a', '##b', 'c', '.'][:1 + k % 4]*2 for k in range(9)]
    explorer = FeatureExplorer(own, X, tokens=[*tokens, ['d']*(len(X) - 42)],
                               output_weights=np.eye(X.shape[1]),
                               scores=dict(rank=list(range(latents)))).wait()
    return ([explorer.latent_html(j) for j in range(3)], explorer.order('rank'),
            [list(use) for use in explorer.token_table(1)], explorer.map_coordinates(),
            list(explorer.map_colors('rank')))


def dashboard():
    own = TrainingDashboard(every=1e-3)
    own.widget
    own.fit(model(), X, X, 2, 1e-2, 9, verbose=0, seed=0)
    return [v for k, v in own.wait().items() if k != 'seconds'], own.pictures['atoms']


def swept(**options):
    runs = sweep(lambda latent_dim: SparseAutoencoder(16, latent_dim), X, X,
                 dict(latent_dim=[6], sparsity_weight=[0.1, 0.3]), verbose=0, num_epochs=2,
                 learning_rate=1e-2, patience=9, batch_size=20, sparsity_type='l1', **options)
    return runs.table, [run.model.state_dict() for run in runs], plot_sweep(runs)


def compared():
    own = model()
    history = train(own, X, X, 2, 1e-2, 9, verbose=0, seed=0)
    runs = compare_runs(dict(a=dict(history=history, results=evaluate_sparse_autoencoder(own, X),
                                    model=own)))
    return runs.picture()


def playground():
    "Parts of the figure of `LossPlayground`."
    fig = new_figure(4, 2)
    for ax, plot in zip(fig.subplots(1, 2), (_plot_slope, _plot_step)):
        plot(ax, 'hoyer', 0.2, [0.5, 0.2])
    return fig


def resampled(**options):
    own = model(**options).eval()
    return resample(own, DEAD, X, seeded()), own.state_dict()


def batches():
    own = model()
    torch.manual_seed(0)
    return [[*Batches('x', data, own, 20, **options)] for data, options in (
        (X, dict(shuffle=True, seed=1, buffer_rows=8)), (X, dict(shuffle=True)), (X.numpy(), {}),
        (Squares(), dict(shuffle=True)))] + [*Batches('x', X, Parameterless(), 20)]


def batches_of_data_set():
    torch.manual_seed(0)
    return [*Batches('x', TensorDataset(X), model(), 20, shuffle=True)]


class Lists(torch.utils.data.Dataset):
    "Data set whose samples are lists of numbers."
    def __len__(self): return len(X)
    def __getitem__(self, number): return X[number].numpy().tolist(), number


def shards():
    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for number, rows in enumerate(X.numpy()[:20], 1):
            np.save(f'{folder}/{number}.npy', rows[None])
            parts.append(np.load(f'{folder}/{number}.npy', mmap_mode='r'))
        return fit(data=parts, val=X)


def network():
    torch.manual_seed(0)
    where = dict(device='cpu', dtype=torch.float32)
    return nn.Sequential(nn.Linear(16, 16, **where), nn.ReLU(), nn.Linear(16, 4, **where))


def captured():
    with tempfile.TemporaryDirectory() as folder:
        store = capture(network(), '0', X.split(20), f'{folder}/store', verbose=0)
        return store[:], store.samples[:], store.positions[:]


def stored():
    with tempfile.TemporaryDirectory() as folder:
        writer = StoreWriter(f'{folder}/store', shard_bytes=2**12)
        for part in X.split(20): writer.append(part, dict(sample=torch.arange(len(part), device='cpu')))
        writer.close()
        store = ActivationStore(f'{folder}/store')
        parts = store.split(0.3)
        return store[5:60:3], [part[:] for part in parts], [part.samples[:] for part in parts]


def spliced():
    found = network()
    with splice(found, '0', model(), error_term=True, edit=ablate_latents(1)): return found(X)


def options_checked():
    options = TrainingOptions(1, 1e-3, 1, sparsity_type='kl')
    options.check()
    return [*options.make_batches(model(), X, X, get_penalty('kl'))[0]]


# trainings by name
TRAININGS = {
    'AnnealedPNorm': lambda: fit(sparsity_type=AnnealedPNorm(0.4)),
    'AuxiliaryLoss': lambda: fit(model(**SINGLE), revive=AuxiliaryLoss(window=20), num_epochs=4),
    'Contractive': lambda: fit(regularizers=[Contractive(0.1), LayerSparsity(1)]),
    'EarlyStopping': lambda: fit(callbacks=[EarlyStopping(3)], num_epochs=3),
    'AveragedWeights': lambda: fit(callbacks=[AveragedWeights(0.9)]),
    'scaling': lambda: fit(model(scaling='columns')),
    'GateReconstruction': lambda: fit(model(activation='gated', **SINGLE),
                                      regularizers=[GateReconstruction()]),
    'HoyerTarget': lambda: fit(sparsity_type=HoyerTarget(0.8)),
    'Isometry': lambda: fit(regularizers=[Isometry(0.1, 2)]),
    'LayerSparsity': lambda: fit(regularizers=[LayerSparsity(1, 'hoyer')]), 'LogFile': logged,
    'NestedReconstruction': lambda: fit(model(**SINGLE), regularizers=[NestedReconstruction()]),
    'Resample': lambda: fit(model(**SINGLE), revive=Resample(window=20), num_epochs=4),
    'StepEngine': lambda: fit(engine='plain'),
    'Trainer': lambda: Trainer(model(), X, X, 2, 1e-2, 9, verbose=0, seed=0).fit()['val_loss'],
    'compare_runs': compared, 'plot_sweep, sweep': swept,
    'sweep one by one': lambda: swept(engine='plain', autocast='bfloat16'),
    'train_sparse_autoencoder_with_early_stopping': lambda: fit(sparsity_type='kl'),
    'without a seed': lambda: fit(seed=None),
    'all of the rest': lambda: fit(
        model(TiedWeightSparseAutoencoder), sparsity_type='hoyer',
        sparsity_warmup=1, lr_schedule='cosine', lr_warmup=0.5, clip_grad_norm=1., accumulate=2,
        optimizer='adamw', betas=(0.8, 0.9), learning_rate=1e-3),
    'bfloat16': lambda: fit(autocast='bfloat16'),
    'bfloat16 model': lambda: fit(model(dtype=torch.bfloat16)),
    'float64 model': lambda: fit(model(dtype=torch.float64), target_sparsity_level=0.6),
    'gradient_checkpointing': lambda: fit(model(gradient_checkpointing=True)),
    'loader': lambda: fit(data=DataLoader(TensorDataset(X), 20)),
    'data set': lambda: fit(data=TensorDataset(X), val=TensorDataset(X)),
    'data set of lists': lambda: fit(data=Lists(), val=Lists()),
    'shards on disk': shards,
    'user-defined module': lambda: fit(Own()), 'resume': resumed,
    'normalize': lambda: fit(model(**SINGLE), normalize=True, initialize=True),
    **{f'preset {name}': lambda name=name: preset(name) for name in PRESETS}}

# functions that compute in the dtype of the model, whatever autocast surrounds them
EXACT = {
    'ActivationStore': stored,
    'FeatureExplorer': lambda: explored(model(), image_shape=(4, 4)), 'LossPlayground': playground,
    'Metric': lambda: [METRICS[name].value(Measurements(64, (Z != 0).sum(0)))
                       for name in ('l0', 'dead_fraction')],
    'Rows': lambda: (Squares().fingerprint(), sample_rows(TensorRows(X), 5)),
    'TrainingOptions': options_checked,
    'dictionary': lambda: (dictionary(model()), dictionary(model(), Z, [3, 1]),
                           dictionary(model(**SINGLE)), dictionary(Own(), Z)),
    'digits': digits,
    'evaluate_sparse_autoencoder': lambda: [evaluate_sparse_autoencoder(own, X)
                                            for own in (model(), Parameterless(), Own())],
    'feature_contributions': lambda: [*feature_contributions(model(), X[:3])],
    'image_patches': lambda: image_patches(20, 6),
    'local_dictionary': lambda: local_dictionary(model(), X[:3]),
    'match_dictionaries': lambda: [*match_dictionaries(X[:12], X[12:24], Z, Z)],
    'plot_dictionary': lambda: (plot_dictionary(model(), (4, 4), Z.numpy()),
                                plot_dictionary(model())),
    'plot_reconstructions': lambda: (plot_reconstructions(model(), X[:3], (4, 4)),
                                     plot_reconstructions(Own(), X[:3].numpy())),
    'plot_sparse_autoencoder_analysis': lambda: plot_sparse_autoencoder_analysis(RESULTS),
    'plot_sparse_training_history': lambda: plot_sparse_training_history(HISTORY),
    'metrics_table': lambda: metrics_table(HISTORY, RESULTS),
    'sparse_dictionary': lambda: [
        *sparse_dictionary(16, 24, l0=2., correlation=0.3, hierarchy=0.5, noise=0.1).sample(10),
        next(sparse_dictionary(16, 24, l0=2.).batches(5))],
    'train_val_split': lambda: [*train_val_split(X)],
    'save_pretrained': saved,
    'save_pretrained bfloat16': lambda: saved(dtype=torch.bfloat16, batch_norm=True),
    'write_state': state_file, 'Batches': batches, 'Batches of a data set': batches_of_data_set,
    'geometric_median': lambda: geometric_median(X),
    'initialize': lambda: model(activation='jumprelu', **SINGLE).initialize(X, 3.).state_dict(),
    'rescale': lambda: model().rescale(3.).state_dict(),
    'latent_statistics': lambda: latent_statistics(Own(), X).histogram,
    'explorer of a user-defined module': lambda: explored(Own()),
    'explorer of text': explored_text,
    'explorer with names': lambda: explored(model(**SINGLE), feature_names=map(str, range(16))),
    'representative_samples': lambda: representative_samples(X),
    'code_results': lambda: code_results(Z.numpy()),
    'fitted_scaling': lambda: fitted_scaling(True, model(), TensorRows(X)).state_dict(),
    'choose_inputs': lambda: choose_inputs(X[:, 0], 5, seeded()),
    'unit_atoms': lambda: unit_atoms(model()),
    'top_k': lambda: [top_k(X, 3)[0].sort().values, top_k_flat(X.flatten(), 30)],
    'unit_norm': lambda: unit_norm(X, 1),
    'l1_for_sparseness': lambda: l1_for_sparseness(0.5, 9)}

# follow a surrounding autocast, as all modules and functions of torch do
FOLLOWS = {
    'capture': captured, 'splice': spliced,
    'evaluate_in_network': lambda: evaluate_in_network(network(), '0', model(), X.split(20),
                                                       verbose=0),
    'BackwardElimination': lambda: passes(model(encoder=BackwardElimination(3), **SINGLE)),
    'BatchTopK': lambda: passes(model(activation=BatchTopK(3))),
    'Gated': lambda: passes(model(activation=Gated())),
    'HardThreshold': lambda: passes(model(activation=HardThreshold(learned=True))),
    'JumpReLU': lambda: passes(model(activation=JumpReLU())),
    'MatchingPursuit': lambda: passes(model(encoder=MatchingPursuit(3), **SINGLE)),
    'SoftThreshold': lambda: passes(model(activation=SoftThreshold(learned=True))),
    'SparseAutoencoder': lambda: passes(model(batch_norm=True, hidden_dims=(14, 10))),
    'TiedWeightSparseAutoencoder': lambda: passes(model(TiedWeightSparseAutoencoder)),
    'TopK': lambda: (passes(model(activation=TopK(3), **SINGLE)),
                     encode_sparse(model(activation=TopK(3), **SINGLE), X).dense()),
    'Unrolled': lambda: passes(model(encoder=Unrolled(2, 0.1), **SINGLE)),
    **{f'activation {name}': lambda name=name: passes(model(activation=name))
       for name in ('sigmoid', 'identity')},
    'dtypes': lambda: [passes_of(dtype) for dtype in (torch.float64, torch.bfloat16)],
    'Penalty': lambda: [get_penalty(name)(Z) for name in PENALTIES] + [Penalty(torch.std)(Z)],
    'get_penalty': lambda: get_penalty('kl', 0.1)(Z.double()),
    **{function.__name__: lambda function=function: [function(Z), function(Z.bfloat16())]
       for function in (hoyer_sparseness, hoyer_sparsity_loss, kl_divergence_sparsity_loss,
                        l0_sparsity_loss, l1_sparsity_loss, lifetime_sparseness,
                        log_sparsity_loss, mean_activation, p_norm_sparsity_loss,
                        population_sparseness)},
    'hoyer_projection': lambda: [hoyer_projection(X, 2.),
                                 hoyer_projection(X - 0.5, 2., signed=True)],
    'batch_losses': lambda: [*batch_losses(model(), X, get_penalty('hoyer'), 0.1)[:3]],
    'typical_codes': lambda: [typical_codes(Z), typical_codes(Z.numpy())],
    'jacobians': lambda: jacobians(model().encode, X[:5]),
    'contractive_penalty': lambda: [contractive_penalty(MODEL.encode, X, probes, seeded())
                                    for probes in (None, 4)],
    'isometry_penalty': lambda: [isometry_penalty(MODEL.decode, Z, probes, seeded())
                                 for probes in (None, 4)],
    'mix_codes': lambda: mix_codes(Z, 0.2, seeded()),
    'prefix_reconstructions': lambda: [*prefix_reconstructions(model(), Z, [3, 6])],
}

# functions that raise an error where there are no gradients; one that runs in a thread
NEED_GRADIENTS = {
    'gradients of the penalties': every_gradient,
    'resample': lambda: [resampled(), resampled(activation=TopK(3), **SINGLE)],
    'TrainingDashboard': dashboard}

# names of `sparse_ae.__all__` that compute nothing by themselves
NOT_COMPUTING = {
    'Callback': 'base class', 'CodeActivation': 'base class', 'Regularizer': 'base class',
    'StopTraining': 'exception', 'TrainingDiverged': 'exception',
    'TensorBoardLog': 'writes the history, needs tensorboard',
    'WandbLog': 'sends the history, needs wandb'}

TABLE = TRAININGS | EXACT | FOLLOWS | NEED_GRADIENTS


def passes_of(dtype):
    own = model(dtype=dtype)
    return own.encode(X.to(dtype)), own.decode(Z.to(dtype)), own(X.to(dtype))


def artists(fig):
    "What a figure shows: data of lines, images and bars, and texts."
    return [([line.get_xydata() for line in ax.lines], [i.get_array() for i in ax.images],
             [p.get_extents().bounds for p in ax.patches],
             [ax.get_title(), ax.get_xlabel(), ax.get_ylabel()]) for ax in fig.get_axes()]


def flat(value):
    "All arrays, numbers and texts within a value, in order; numbers as arrays."
    if isinstance(value, Figure): return flat(artists(value))
    if isinstance(value, dict): return [x for k, v in value.items() for x in [k, *flat(v)]]
    if isinstance(value, (list, tuple)): return [x for v in value for x in flat(v)]
    if isinstance(value, Tensor):
        assert value.device.type == 'cpu'
        return [(value.dtype, value.detach().double().numpy())]
    if isinstance(value, (str, bytes, type(None))): return [value]
    return [(np.asarray(value).dtype, np.asarray(value, float))]


@lru_cache(None)
def expected(name):
    return flat(TABLE[name]())


def assert_same(found, expected, loosely):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        if not isinstance(b, tuple): assert loosely or a == b
        elif loosely:   # some latents are selected differently
            assert abs(a[1] - b[1]).mean() <= 0.05 * (1 + abs(b[1]).mean())
        else:
            assert a[0] == b[0]
            np.testing.assert_allclose(a[1], b[1], rtol=1e-3, atol=1e-4)


NO_LOADER = "torch's DataLoader itself needs the default device"
OTHER_CASES = {('default device', 'loader'): NO_LOADER,
               **{(state, 'gradients of the penalties'): 'they are gradients'
                  for state in ('no_grad', 'inference_mode')}}

CASES = [pytest.param(name, state, id=f'{name}-{state}')
         for name in TABLE for state in STATES]


@pytest.mark.parametrize('name, state', CASES)
@pytest.mark.filterwarnings('ignore:target_')
def test_numbers_do_not_depend_on_ambient_state(name, state):
    if reason := OTHER_CASES.get((state, name)): pytest.skip(reason)
    reference = expected(name)
    if state == 'inference_mode' and name in TRAININGS | NEED_GRADIENTS:
        with STATES[state](), pytest.raises(RuntimeError, match='grad'): TABLE[name]()
        return
    with STATES[state](): found = TABLE[name]()
    assert_same(flat(found), reference, state == 'autocast' and name in FOLLOWS)


def test_models_made_within_inference_mode():
    with torch.inference_mode(): own = model()
    with pytest.raises(ValueError, match='model must not be made within torch.inference_mode'):
        fit(own)
    fit(copy.deepcopy(own))


def test_trainers_run_outside_of_inference_mode():
    trainer = Trainer(model(), X, X, 1, 1e-2, 9, verbose=0)
    with torch.inference_mode(), pytest.raises(RuntimeError, match='no_grad instead'): trainer.fit()


def test_weights_cached_by_a_surrounding_autocast_are_not_used_again():
    own = model(**SINGLE)
    with torch.autocast('cpu', torch.bfloat16):
        before = own(X)
        fit(own, autocast='bfloat16')
        torch.testing.assert_close(own(X), copy.deepcopy(own)(X))
        assert not torch.equal(own(X), before)


def test_table_is_complete():
    listed = {name for names in TABLE for name in names.split(', ')} | {*NOT_COMPUTING}
    assert {*sparse_ae.__all__} <= listed
