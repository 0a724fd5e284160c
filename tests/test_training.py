"Training and evaluation: kinds of data, interruption, divergence, devices."
import signal
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from sparse_ae import (SparseAutoencoder, TrainingDiverged, evaluate_sparse_autoencoder,
                       train_sparse_autoencoder_with_early_stopping as fit)
from sparse_ae.activations import TopK
from sparse_ae.callbacks import Callback


def train(train_data, val_data, **kwargs):
    torch.manual_seed(0)
    model = SparseAutoencoder(64, 10)
    return model, fit(model, train_data, val_data, **{
        **dict(num_epochs=3, learning_rate=1e-3, patience=3, seed=0, verbose=0), **kwargs})


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


def test_every_kind_of_rows_trains_alike(split, tmp_path):
    train_data, val_data = split
    np.save(tmp_path/'rows.npy', train_data.numpy())
    reference, history = train(train_data, val_data)
    kinds = {'double': train_data.double(), 'array': train_data.numpy(),
             'memory map': np.load(tmp_path/'rows.npy', mmap_mode='r'),
             'with gradient': train_data.clone().requires_grad_(),
             'not contiguous': train_data.T.contiguous().T}
    for name, kind in kinds.items():
        model, other = train(kind, val_data)
        assert same(model, reference) and other['val_loss'] == history['val_loss'], name


def test_datasets_and_loaders_train(split):
    train_data, val_data = split
    labels = torch.zeros(len(train_data))

    class Stream(IterableDataset):
        def __iter__(self): return iter(train_data)

    for kind in (TensorDataset(train_data), TensorDataset(train_data, labels),
                 DataLoader(TensorDataset(train_data, labels), 100), Stream()):
        model, history = train(kind, DataLoader(val_data, 50))
        assert history['epochs_trained'] == 3 and history['val_loss'][2] < history['val_loss'][0]
        assert evaluate_sparse_autoencoder(model, kind)['errors'].shape == (len(train_data),)
    one, two = (train(TensorDataset(train_data), val_data)[0] for _ in range(2))
    assert same(one, two)  # the seed fixes a Dataset's order as well


def test_whole_numbers_are_converted_and_it_is_said(split):
    train_data, val_data = split
    pixels = (train_data * 16).round().to(torch.uint8)
    with pytest.warns(UserWarning, match='train_data has dtype torch.uint8; '
                                         'it is converted to torch.float32') as caught:
        whole, _ = train(pixels, val_data, sparsity_type='l1')
    assert caught[0].filename == __file__  # not a line of the library
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*dtype')
        assert same(whole, train(pixels.float(), val_data, sparsity_type='l1')[0])
    with pytest.warns(UserWarning, match='torch.bool'): train(train_data > 0.5, val_data)


@pytest.mark.parametrize('options', [
    dict(hidden_dims=None), dict(hidden_dims=()), dict(hidden_dims=(), activation=TopK(4)),
    dict(hidden_dims=(), activation='gated')])
def test_the_unit_of_the_data_does_not_matter(options, split):
    runs = {}
    for unit in (2.**-10, 1., 2.**10):  # powers of two: nothing is rounded
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 10, **options)
        history = fit(model, *(unit*rows for rows in split), 3, 1e-3, 3, normalize=True,
                      sparsity_type='l1', seed=0, verbose=0)
        runs[unit] = history['val_loss'], model.encode(unit*split[1]) / unit
    for losses, z in runs.values(): assert losses == runs[1.][0] and torch.equal(z, runs[1.][1])


def test_ctrl_c_from_a_keyboard_gives_the_history_back():
    "A real process, a real SIGINT, at a moment that the process does not choose."
    code = textwrap.dedent('''
        import torch, sys
        from sparse_ae import *
        train, val = train_val_split(digits())
        model = SparseAutoencoder(64, 50)
        print('ready', flush=True)
        history = train_sparse_autoencoder_with_early_stopping(model, train, val, 100_000, 1e-4, '''
        '''100_000, verbose=2)
        results = evaluate_sparse_autoencoder(model, val)
        best = history['val_recon_loss'][history['best_epoch']]
        print('stopped by', history['stopped_by'], '''
        '''len(history['val_loss']) == history['epochs_trained'] > 0, '''
        '''abs(results['mean'] - best) < 1e-6)
    ''')
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith('epoch 3:'): break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert 'stopped by interrupt True True' in out


def test_divergence_for_real(split):
    """A learning rate beyond reason makes the weights overflow;
    the model comes back with finite ones."""
    model = SparseAutoencoder(64, 10)
    with pytest.raises(TrainingDiverged,
                       match='in epoch 0 .*Try a learning_rate below 1e[+]30') as caught:
        fit(model, *split, num_epochs=5, learning_rate=1e30, patience=5, verbose=0)
    assert (all(p.isfinite().all() for p in model.parameters())
            and caught.value.history['epochs_trained'] == 0)


def test_training_again_goes_on_from_the_weights(split):
    model, first = train(*split)
    again = fit(model, *split, num_epochs=3, learning_rate=1e-3, patience=3, seed=0, verbose=0)
    assert again['train_loss'][0] < first['train_loss'][0]


def test_a_gradient_of_a_time_before_does_not_count(split):
    fresh, _ = train(*split)
    torch.manual_seed(0)
    model = SparseAutoencoder(64, 10)
    (100*model(split[0])).sum().backward()
    fit(model, *split, 3, 1e-3, 3, seed=0, verbose=0)
    assert same(model, fresh)


@pytest.mark.parametrize('k', [4, 8])
def test_the_memory_layout_of_the_decoder_stays_on_a_cpu(split, tmp_path, k):
    "Weights and moments are contiguous during training; resuming gives the same bits."
    def run(epochs, folder):
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 200, hidden_dims=(), activation=TopK(k), decoder_norm='atom')
        contiguous = []
        class Look(Callback):
            def after_step(self, trainer):
                state = trainer.optimizer.state[model.decoder_mat_1]
                contiguous.append(all(t.is_contiguous() for t in (
                    model.decoder_mat_1, state['exp_avg'], state['exp_avg_sq'])))
        fit(model, *split, epochs, 1e-3, 9, sparsity_type='none', seed=0, verbose=0,
            checkpoint_dir=tmp_path/folder, resume=True, callbacks=[Look()])
        assert contiguous and all(contiguous)
        return model
    run(2, 'parts')
    assert same(run(4, 'parts'), run(4, 'whole'))


def test_an_optimiser_of_ones_own_can_flatten_the_weights(split):
    class Flat(torch.optim.SGD):
        def step(self):
            for group in self.param_groups:
                for p in group['params']: p.data.view(-1).sub_(group['lr']*p.grad.view(-1))
    model = SparseAutoencoder(64, 200, hidden_dims=(), activation=TopK(4), decoder_norm='atom')
    history = fit(model, *split, 3, 0.1, 9, sparsity_type='none', seed=0, verbose=0, optimizer=Flat)
    assert history['val_loss'][-1] < history['val_loss'][0]


def test_frozen_parameters_stay(split):
    torch.manual_seed(0)
    model = SparseAutoencoder(64, 10)
    model.encoder_mat_1.requires_grad_(False)
    before = model.encoder_mat_1.clone()
    fit(model, *split, num_epochs=1, learning_rate=1e-3, patience=1, verbose=0)
    assert torch.equal(before, model.encoder_mat_1)
    with pytest.raises(ValueError, match='model must have parameters that require a gradient'):
        fit(model.requires_grad_(False), *split, num_epochs=1, learning_rate=1e-3, patience=1,
            verbose=0)


def test_images_through_a_convolutional_autoencoder(split):
    "A user's own model, with codes and data that are not rows."
    class Convolutional(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encode = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, stride=2, padding=1),
                                              torch.nn.ReLU())
            self.decode = torch.nn.ConvTranspose2d(4, 1, 2, stride=2)

    images = [part.reshape(-1, 1, 8, 8) for part in split]
    torch.manual_seed(0)
    model = Convolutional()
    for penalty in ('l1', 'hoyer', 'kl'):
        history = fit(model, *images, num_epochs=2, learning_rate=1e-2, patience=2,
                      sparsity_type=penalty, sparsity_weight=0.01, verbose=0)
        assert history['val_loss'][1] < history['val_loss'][0]
    results = evaluate_sparse_autoencoder(model, images[1])
    assert (results['latent_codes'].shape == (len(images[1]), 64)
            and results['explained_variance'] > 0)


def test_progress_is_shown_and_can_be_silenced(split, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')     # the progress bar is not cut
    for verbose, bar, lines in ((0, False, 0), (1, True, 0), (2, True, 3), (True, True, 0)):
        train(*split, verbose=verbose)
        out, err = capsys.readouterr()
        assert ('training: 100%' in err and 'recon' in err) == bar and out.count('epoch ') == lines


def test_model_moves_to_the_device_and_half_precision_trains(split):
    for dtype in (torch.float64, torch.bfloat16):
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 10, dtype=dtype)
        history = fit(model, *split, num_epochs=3, learning_rate=3e-3, patience=3, seed=0,
                      verbose=0)
        assert model.dtype == dtype and history['val_loss'][-1] < history['val_loss'][0]
        results = evaluate_sparse_autoencoder(model, split[1])
        assert results['latent_codes'].dtype == np.float32 and results['errors'].dtype == np.float64


def test_results_do_not_depend_on_the_batch(split):
    model, _ = train(*split)
    one, two = (evaluate_sparse_autoencoder(model, split[1], batch_size=size)
                for size in (7, 10_000))
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert_close(torch.from_numpy(one['latent_codes']), model.encode(split[1]).detach())


def test_evaluation_keeps_only_what_it_reports(tmp_path):
    "200,000 rows through a layer of 2,000 units would be 1.6 GB at once; in batches, a few MB."
    np.save(tmp_path/'rows.npy', np.random.default_rng(0).random((200_000, 16), dtype=np.float32))
    code = textwrap.dedent('''
        import resource, numpy as np
        from sparse_ae import SparseAutoencoder, evaluate_sparse_autoencoder
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB on Linux
        model = SparseAutoencoder(16, 4, hidden_dims=(2000,))
        evaluate_sparse_autoencoder(model, np.ones((10, 16), dtype=np.float32))
        before = peak()
        results = evaluate_sparse_autoencoder(model, np.load('rows.npy', mmap_mode='r'))
        print(len(results['errors']), peak() - before)
    ''')
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True,
                          text=True, check=True)
    n, megabytes = done.stdout.split()
    assert int(n) == 200_000 and float(megabytes) < 200
