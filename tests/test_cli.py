"The commands, run as shell commands, and the example."
import importlib.util
import json
import re
import subprocess

import numpy as np
import pytest

from conftest import ROOT
from sparse_ae.data import digits
from sparse_ae.models import TiedWeightSparseAutoencoder

FILES = {'model.safetensors', 'config.json', 'history.json', 'results.json', 'training_history.png',
         'analysis.png', 'dictionary.png', 'reconstructions.png', 'report.html', 'latents.html'}
# one option in each spelling
TINY = ['--patches', '2000', '--size', '8', '--latent_dim', '20', '--num-epochs=2']


def shell(*command, cwd):
    return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)


def test_demo_writes_everything_and_the_same_numbers_again(script, tmp_path):
    for run in ('one', 'two'):
        done = shell(script('sparse_ae_demo'), '--out', run, *TINY, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    for label in ('explained variance', 'L0', 'sparsity level', 'dead latents', 'epochs',
                  'seconds'):
        assert re.search(rf'^  {label} +\S', done.stdout, re.M)
    assert 'Look at two/report.html and two/latents.html' in done.stdout
    assert 'training: 100%' in done.stderr
    assert {p.name for p in (tmp_path/'one').iterdir()} == FILES
    for name in ('model.safetensors', 'results.json', 'dictionary.png', 'reconstructions.png',
                 'latents.html'):
        assert (tmp_path/'one'/name).read_bytes() == (tmp_path/'two'/name).read_bytes(), name
    histories = [json.loads((tmp_path/run/'history.json').read_text()) for run in ('one', 'two')]
    for history in histories: del history['seconds'], history['arguments']
    assert histories[0] == histories[1]
    report = (tmp_path/'one'/'report.html').read_text()
    assert (report.count('<img ') == 4 and not re.search(r'(src|href)="(?!data:)', report)
            and str(tmp_path) not in report)


def test_train_on_a_matrix(script, tmp_path):
    np.savez(tmp_path/'data.npz', digits=digits(), other=np.eye(3))
    options = ('--key digits --latent_dim 20 --hidden_dims none --tied --decoder_norm atom '
               '--sparsity_type l1 --sparsity_weight 0.05 --learning_rate 0.01 --num_epochs 20 '
               '--verbose 0')
    done = shell(script('sparse_ae_train'), 'data.npz', *options.split(), '--out', 'deep/run',
                 cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path/'deep'/'run').iterdir()} == FILES and done.stderr == ''
    model = TiedWeightSparseAutoencoder.from_pretrained(tmp_path/'deep'/'run')
    assert model.config() | dict(dtype=None) == dict(
        input_dim=64, latent_dim=20, dtype=None, hidden_dims=(), activation='relu',
        decoder_norm='atom', encoder='linear', batch_norm=False, scaling='columns')
    results = json.loads((tmp_path/'deep'/'run'/'results.json').read_text())
    assert (results['n'] == 359 and len(results['density']) == 20
            and 0 < results['explained_variance'] < 1)


def test_the_report_escapes_file_names(script, tmp_path):
    name = '<script>alert(1)</script>.npy'.replace('/', '_')
    np.save(tmp_path/name, np.random.default_rng(0).random((50, 6)))
    done = shell(script('sparse_ae_train'), name, '--num_epochs', 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '<script>' not in (tmp_path/'runs'/'train'/'report.html').read_text()


MISTAKES = {
    'missing.npy': "data must be a file that exists, got 'missing.npy'",
    'data.txt': "data must be a .npy, .npz or .csv file, got 'data.txt'",
    'good.npy --sparsity_type L2':
        "sparsity_type must be 'kl', 'l1', 'hoyer', 'log', 'l0' or 'none', got 'L2'",
    'good.npy --hidden_dims wide':
        "hidden_dims must be 'half', 'none' or widths such as 64,32, got 'wide'",
    'good.npy --image_shape 2x2': 'image_shape must have 6 entries',
    'good.npy --target_l0 99': 'target_l0 must be at most 6, the number of latents, got 99',
    'good.npy --revive always':
        "revive must be 'auto', 'resample', 'auxiliary' or 'none', got 'always'",
    'good.npy --latent_dim -3': 'latent_dim must be at least 1, got -3',
    'good.npy --device cuda:99': "device 'cuda:99' does not exist here",
    'nan.npy': 'has 1 of ', 'empty.npy': 'data must not be empty',
    'vector.npy': 'data must have shape (n, features), got (9,)',
    'words.npy': 'data must hold real numbers', 'broken.npy': 'broken.npy is not an .npy file of numbers: ',
    'nothing.npz': 'the file holds no array',
    'good.npy --learning_rate 1e30': 'the loss became NaN or infinite'}


@pytest.mark.parametrize('arguments', MISTAKES)
def test_a_mistake_is_one_clear_line(arguments, script, tmp_path):
    good = np.random.default_rng(0).random((40, 6))
    spoilt = good.copy()
    spoilt[3, 3] = np.nan
    for name, data in dict(good=good, nan=spoilt, empty=good[:0], vector=np.ones(9),
                           words=np.array([['a', 'b']])).items():
        np.save(tmp_path/f'{name}.npy', data)
    np.savez(tmp_path/'nothing.npz')
    (tmp_path/'broken.npy').write_bytes((tmp_path/'good.npy').read_bytes()[:100])
    done = shell(script('sparse_ae_train'), *arguments.split(), '--verbose', 0, '--num_epochs', 1,
                 cwd=tmp_path)
    assert (done.returncode == 1 and done.stderr.startswith('sparse_ae_train: ')
            and MISTAKES[arguments] in done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_longer_run_resumes_from_a_shorter_one(script, tmp_path):
    np.save(tmp_path/'data.npy', np.random.default_rng(0).random((60, 6)))
    def history(out, *options):
        done = shell(script('sparse_ae_train'), 'data.npy', '--out', out, '--verbose', 0,
                     '--batch_norm', '--patience', 99, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path/out/'history.json').read_text())
    whole = history('whole', '--num_epochs', 5)
    assert history('parts', '--num_epochs', 2, '--resume')['epochs_trained'] == 2
    assert history('parts', '--num_epochs', 5, '--resume')['val_loss'] == whole['val_loss']
    done = shell(script('sparse_ae_train'), 'data.npy', '--out', 'parts', cwd=tmp_path)
    assert done.returncode and 'out must not hold a checkpoint of another run' in done.stderr


@pytest.mark.parametrize('command', ['sparse_ae_demo', 'sparse_ae_train'])
def test_help_explains_every_option_with_its_default(command, script, tmp_path):
    done = shell(script(command), '--help', cwd=tmp_path)
    assert done.returncode == 0
    text = ' '.join(done.stdout.split()).partition('options:')[2]
    for option in re.split(r' (?=--[a-z])', text)[1:]:
        if not option.startswith('--help'): assert 'default' in option, option
    if command == 'sparse_ae_train': assert text.count('--') >= 23


def test_example_parts(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location(
        'example', ROOT/'examples'/'sparse_autoencoder_example.py')
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.basic_training(tmp_path/'new', 2)['errors'].shape == (359,)
    assert len(example.compare_penalties(2)) == 3 and len(example.compare_tied(2)) == 2
    assert (list(example.effect_of_sparsity_weight(tmp_path/'new', num_epochs=2))
            == [0, 0.05, 0.1, 0.5, 1.0])
    assert len(example.effect_of_target_l0(num_epochs=2)) == 3
    assert ({p.name for p in (tmp_path/'new').iterdir()}
            == {'training_history.png', 'analysis.png', 'sparsity_weight.png'})
