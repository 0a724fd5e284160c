"Files: disks that are full, folders that go away, writers that are killed, files that are damaged."
import contextlib
import errno
import json
import os
import signal
import subprocess
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

import sparse_ae
from mutations import campaign
from sparse_ae import (SparseAutoencoder, evaluate_sparse_autoencoder,
                       plot_sparse_autoencoder_analysis,
                       train_sparse_autoencoder_with_early_stopping as fit)
from sparse_ae.callbacks import Callback
from sparse_ae.cli import load_matrix
from sparse_ae.eval_viz import new_figure, save_figure
from sparse_ae.files import (FolderLock, atomic_write, read_safetensors, read_torch,
                             write_safetensors)
from sparse_ae.io import CHECKPOINT, CONFIG, WEIGHTS, read_state, write_state
from sparse_ae.lab.display import LiveCurves
from sparse_ae.lab.page import FeatureExplorer
from sparse_ae.networks.capture import capture
from sparse_ae.networks.formats import load
from sparse_ae.networks.store import ActivationStore
from sparse_ae.training import Trainer

X = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
OPTIONS = dict(num_epochs=3, learning_rate=1e-3, patience=5, verbose=0, seed=0)


def model(width=6, latents=4, seed=0):
    torch.manual_seed(seed)
    return SparseAutoencoder(width, latents)


@contextlib.contextmanager
def forked(work):
    "Run `work(say)` in a child process, until it ends or the block does; yield its lines."
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException): work(lambda text: os.write(write, f'{text}\n'.encode()))
        os._exit(0)
    os.close(write)
    with open(read) as lines:
        try: yield SimpleNamespace(line=lambda: lines.readline().strip(), read=lines.read, pid=child)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@pytest.fixture
def small_disk(tmp_path):
    "Folder on a disk of 200 kB."
    folder = tmp_path/'disk'
    folder.mkdir()
    mount = lambda *options: subprocess.run(['mount', '-t', 'tmpfs', '-o', *options, 'tmpfs',
                                             str(folder)], capture_output=True).returncode
    if os.name == 'nt' or mount('size=200k'): pytest.skip('needs the right to mount a disk')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


# ------------------------------------------------------------------------ 5: names, left-overs

def test_threads_that_write_one_file_do_not_collide(tmp_path):
    path, errors, done = tmp_path/('n'*250 + '.json'), [], threading.Event()
    def write(number):
        try:
            for _ in range(40):
                with atomic_write(path) as temporary: temporary.write_text(str(number)*5000)
        except Exception as error: errors.append(error)
    def read():
        while not done.is_set():
            if path.exists() and len(set(text := path.read_text())) != 1: errors.append(text[:9])
    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    reader = threading.Thread(target=read)
    for thread in (reader, *threads): thread.start()
    for thread in threads: thread.join()
    done.set()
    reader.join()
    assert not errors and os.listdir(tmp_path) == [path.name]


def test_the_next_writer_removes_what_dead_writers_left_and_no_more(tmp_path):
    def write(say):
        with atomic_write(tmp_path/'a.txt') as temporary:
            temporary.write_text('half')
            (temporary.parent/'of another library').touch()
            say('writing')
            time.sleep(60)
    for _ in range(3):
        with forked(write) as killed: assert killed.line() == 'writing'
    user = tmp_path/'.notes.tmp'
    user.touch()
    assert len(list(tmp_path.glob('.sparse_ae-*'))) >= 1
    with forked(write) as alive:
        assert alive.line() == 'writing'
        write_state(tmp_path/'state', {})
        assert len(list(tmp_path.glob('.sparse_ae-*'))) == 1 and user.exists()
    write_state(tmp_path/'state', {})
    assert sorted(os.listdir(tmp_path)) == ['.notes.tmp', 'state']


# ------------------------------------------------------------------------------ 6: checkpoints

def flip(path, place, bit=0):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def resumed(folder, seed=1, **options):
    "Resume a run; return the model, its weights before, and the error."
    m = model(seed=seed)
    before = {name: value.clone() for name, value in m.state_dict().items()}
    trainer = Trainer(m, X[:40], X[40:], **{**OPTIONS, 'num_epochs': 5, **options},
                      checkpoint_dir=folder, resume=True)
    random = torch.get_rng_state()
    with pytest.raises(ValueError) as caught: trainer.fit()
    assert torch.equal(torch.get_rng_state(), random)
    assert not trainer.started and trainer.epoch == 0 and not trainer.optimizer.state
    for name, value in m.state_dict().items(): assert torch.equal(value, before[name]), name
    return str(caught.value)


def test_without_locks_a_slow_file_of_this_process_is_not_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(sparse_ae.files, 'fcntl', None)
    monkeypatch.setattr(sparse_ae.files, '_OLD', -1.)      # as after an hour
    with atomic_write(tmp_path/'slow') as slow:
        with atomic_write(tmp_path/'quick') as quick: quick.write_text('b')
        slow.write_text('a')
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict(slow='a', quick='b')


def test_a_flipped_bit_of_a_checkpoint_is_named_as_damage(tmp_path):
    fit(model(), X[:40], X[40:], **OPTIONS, checkpoint_dir=tmp_path)
    path, good = tmp_path/CHECKPOINT, (tmp_path/CHECKPOINT).read_bytes()
    header = int.from_bytes(good[:8], 'little')
    tensors = read_safetensors(path).tensors
    for place in range(8 + header, len(good), (len(good) - 8 - header)//40):
        flip(path, place, place % 8)
        with pytest.raises(ValueError, match='is damaged: the checksum of t'): read_state(path)
        path.write_bytes(good)
    state = good.index(b'contents')
    flip(path, good.index(b'0.', state) + 2)    # a digit in the history
    assert f'{path} is damaged: the checksum of __metadata__' in resumed(tmp_path)
    assert len(tensors) > 20
    path.write_bytes(good)
    about = json.loads(read_safetensors(path).metadata['checkpoint'])
    assert about['format'] == 2 and about['library'] == sparse_ae.__version__


@pytest.mark.parametrize('change, message', [
    (lambda s: s.pop('optimizer'), 'missing or damaged'),
    (lambda s: s.pop('identity'), 'missing or damaged'),
    (lambda s: s.update(epoch='3'), 'missing or damaged'),
    (lambda s: s['model'].pop(next(iter(s['model']))), 'missing or damaged'),
    (lambda s: s['optimizer']['param_groups'].clear(), 'param'),
    (lambda s: s['callbacks'][0].__setitem__(1, {}), 'missing or damaged'),
    (lambda s: s.update(random=torch.zeros(3)), 'missing or damaged'),
    (lambda s: s['identity'].update(learning_rate=5.), 'learning_rate must be as in the')])
@pytest.mark.parametrize('options', [{}, dict(normalize=True)])
def test_a_failed_resume_leaves_model_and_trainer_as_they_were(tmp_path, change, message, options):
    fit(model(), X[:40], X[40:], **OPTIONS, **options, checkpoint_dir=tmp_path)
    state = read_state(tmp_path/CHECKPOINT)
    change(state)
    write_state(tmp_path/CHECKPOINT, state)
    text = resumed(tmp_path, **options)
    assert message in text and str(tmp_path/CHECKPOINT) in text


def test_a_later_format_is_refused(tmp_path):
    about = json.dumps(dict(format=3, library='0.9'))
    write_safetensors(tmp_path/CHECKPOINT, {}, dict(checkpoint=about, contents='{}'))
    assert 'format 3 of version 0.9 of the library; this version reads up to 2' in resumed(tmp_path)


class Waits(Callback):
    def __init__(self, say): self.say = say
    def after_epoch(self, trainer):
        self.say('training')
        time.sleep(60)


def test_two_runs_in_one_folder_are_refused_and_a_crash_leaves_no_lock(tmp_path):
    one = lambda **options: fit(model(), X[:40], X[40:], **OPTIONS, checkpoint_dir=tmp_path,
                                **options)
    with forked(lambda say: one(callbacks=[Waits(say)], checkpoint_epochs=1)) as other:
        assert other.line() == 'training'
        with pytest.raises(BlockingIOError, match='another run uses .*process') as caught:
            one(resume=True)
        assert caught.value.filename == str(tmp_path)
    assert one(resume=True)['epochs_trained'] == 3
    assert os.listdir(tmp_path) == [CHECKPOINT]


def test_a_run_in_the_same_process_is_refused_too(tmp_path):
    class Second(Callback):
        def after_epoch(self, trainer):
            with pytest.raises(BlockingIOError, match='this process'):
                fit(model(), X[:40], X[40:], **OPTIONS, checkpoint_dir=tmp_path)
    fit(model(), X[:40], X[40:], **OPTIONS, checkpoint_dir=tmp_path, callbacks=[Second()])
    assert not (tmp_path/'.sparse_ae-run.lock').exists()


def test_workers_do_not_keep_the_lock_of_a_run_that_ended(tmp_path):
    lock = FolderLock(tmp_path).acquire()
    child = os.fork()
    if child == 0:
        time.sleep(20)
        os._exit(0)
    os.close(lock.file)     # as if the process had ended
    lock.file = None
    import sparse_ae.files as files
    files._held.clear()
    try: FolderLock(tmp_path).acquire().release()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


# ----------------------------------------------------------------------------------- 7: models

def save_models(folder):
    "Save models of three shapes in turn, each with one value in all its weights."
    models = []
    for value, (width, latents) in enumerate(((6, 4), (9, 5), (6, 30))):
        activation = ('relu', 'sigmoid', 'identity')[value]
        models.append(SparseAutoencoder(width, latents, activation=activation))
        for p in models[-1].parameters(): p.data.fill_(value)
    def work(say):
        for number in range(10**6):
            models[number % 3].save_pretrained(folder)
            if number < 3: say('saved')
    return work


def test_readers_never_see_a_mixture_of_two_models(tmp_path):
    seen, until = set(), time.monotonic() + 2
    with (forked(save_models(tmp_path)) as one, forked(save_models(tmp_path)) as other,
          warnings.catch_warnings()):
        assert one.line() == other.line() == 'saved'
        warnings.simplefilter('ignore')     # `config.json` may be of another save for a moment
        while time.monotonic() < until or len(seen) < 3:
            m = SparseAutoencoder.from_pretrained(tmp_path)
            values = {v for p in m.parameters() for v in p.unique().tolist()}
            assert len(values) == 1
            seen.add((m.input_dim, m.latent_dim, m.activation.name, *values))
    assert seen == {(6, 4, 'relu', 0.), (9, 5, 'sigmoid', 1.), (6, 30, 'identity', 2.)}


def test_a_save_that_was_killed_between_the_files_is_the_new_model(tmp_path):
    model(6, 4).save_pretrained(tmp_path)
    old = (tmp_path/CONFIG).read_bytes()
    model(9, 5).save_pretrained(tmp_path)
    (tmp_path/CONFIG).write_bytes(old)
    with pytest.warns(UserWarning, match='differs from the configuration in model.safetensors'):
        assert SparseAutoencoder.from_pretrained(tmp_path).input_dim == 9


def test_saving_beside_a_training(tmp_path):
    m, errors = model(), []
    class Saves(Callback):
        def after_step(self, trainer): m.save_pretrained(tmp_path)
    thread = threading.Thread(target=lambda: fit(m, X[:40], X[40:], **{**OPTIONS, 'num_epochs': 40},
                                                 batch_size=5))
    thread.start()
    while thread.is_alive():
        m.save_pretrained(tmp_path)
        loaded = SparseAutoencoder.from_pretrained(tmp_path)
        weight = loaded.state_dict()
        if not all(v.isfinite().all() for v in weight.values() if v.is_floating_point()):
            errors.append('not finite')
        norms = loaded.decoder_matrix().norm(dim=1) if hasattr(loaded, 'decoder_matrix') else None
        assert norms is None or torch.allclose(norms, torch.ones_like(norms), atol=1e-5)
    thread.join()
    assert not errors


def test_a_flipped_bit_of_a_model_is_named_as_damage(tmp_path):
    model().save_pretrained(tmp_path)
    flip(tmp_path/WEIGHTS, -3, 5)
    with pytest.raises(ValueError, match='model.safetensors is damaged: the checksum of'):
        SparseAutoencoder.from_pretrained(tmp_path)


@pytest.mark.skipif(os.name == 'nt' or os.geteuid() != 0, reason='needs another user')
def test_a_file_without_permission_is_a_permission_error(tmp_path):
    folder = Path('/tmp')/f'sparse_ae-{os.getpid()}'    # parents of `tmp_path` are private
    try:
        model().save_pretrained(folder)
        folder.chmod(0o755)
        (folder/WEIGHTS).chmod(0)
        def read_as_another_user(say):
            os.seteuid(65534)
            for read in (SparseAutoencoder.from_pretrained, load,
                         lambda folder: read_state(folder/WEIGHTS)):
                try: read(folder)
                except PermissionError as error: say(error.filename)
        with forked(read_as_another_user) as child:
            assert child.read().splitlines() == [str(folder/WEIGHTS)]*3
    finally:
        for path in folder.iterdir(): path.unlink()
        folder.rmdir()


# ------------------------------------------------------------------------------------ 8: disks

def fill(disk, leave=0):
    "Fill a disk up to `leave` bytes."
    free = os.statvfs(disk)
    size = free.f_bavail*free.f_frsize - leave
    (disk/'ballast').write_bytes(bytes(max(0, size)))


def full(error, path):
    return error.errno == errno.ENOSPC and error.filename == str(path)


def test_a_full_disk_is_an_os_error_that_names_the_file(small_disk):
    model().save_pretrained(small_disk)
    old = (small_disk/WEIGHTS).read_bytes()
    fill(small_disk)
    x = FeatureExplorer(model(), X)
    writes = {WEIGHTS: lambda p: model(6, 200).save_pretrained(p.parent),
              CHECKPOINT: lambda p: write_state(p, {'w': torch.zeros(5000)}),
              'page.html': lambda p: x.export_html(p),
              'plot.png': lambda p: save_figure(new_figure(4, 4), p),
              'plot.svg': lambda p: save_figure(new_figure(4, 4), p)}
    for name, write in writes.items():
        with pytest.raises(OSError) as caught: write(small_disk/name)
        assert full(caught.value, small_disk/name), (name, caught.value)
    assert (small_disk/WEIGHTS).read_bytes() == old
    assert sorted(os.listdir(small_disk)) == ['ballast', CONFIG, WEIGHTS]


class Fills(Callback):
    "Fills the disk after the second epoch."
    def __init__(self, disk): self.disk = disk
    def after_epoch(self, trainer):
        if trainer.epoch == 2: fill(self.disk)


def test_a_disk_that_fills_up_ends_the_run_with_the_best_weights(small_disk):
    m, folder = model(), small_disk/'run'
    expected = model()
    fit(expected, X[:40], X[40:], **{**OPTIONS, 'num_epochs': 2})
    with pytest.raises(OSError) as caught:
        fit(m, X[:40], X[40:], **{**OPTIONS, 'num_epochs': 9}, checkpoint_dir=folder,
            checkpoint_epochs=1, callbacks=[Fills(small_disk)])
    assert full(caught.value, folder/CHECKPOINT)
    assert caught.value.history['epochs_trained'] == 2 == len(caught.value.history['val_loss'])
    assert not m.training and all(p.grad is None for p in m.parameters())
    for p, q in zip(m.parameters(), expected.parameters()): assert torch.equal(p, q)
    assert read_state(folder/CHECKPOINT)['epoch'] == 1 and os.listdir(folder) == [CHECKPOINT]


class Never(Callback):
    def before_epoch(self, trainer): raise AssertionError('an epoch was begun')


def test_a_capture_that_fills_the_disk_is_resumed_when_there_is_room(small_disk):
    rows, folder = torch.randn(1500, 16).split(100), small_disk/'store'
    options = dict(shard_bytes=2**14, verbose=0)
    fill(small_disk, 2**16)
    with pytest.raises(OSError) as caught: capture(nn.Identity(), '', rows, folder, **options)
    error = caught.value        # a shard, or store.json
    assert error.errno == errno.ENOSPC and Path(error.filename).parent == folder, error
    assert 'can be resumed' in str(error)
    with pytest.warns(UserWarning, match='not complete'): written = ActivationStore(folder)
    assert len(written) > 300 and torch.equal(written[:], torch.cat(rows)[:len(written)])
    assert {path.suffix for path in folder.iterdir()} == {'.json', '.safetensors'}
    (small_disk/'ballast').unlink()
    whole = capture(nn.Identity(), '', rows, folder, resume=True, **options)
    assert torch.equal(whole[:], torch.cat(rows))
    whole.verify()


def test_a_disk_without_room_is_noticed_before_the_first_epoch(small_disk):
    fill(small_disk, leave=30_000)
    with pytest.raises(OSError, match='bytes are needed') as caught:
        fit(model(6, 400), X[:40], X[40:], **OPTIONS, checkpoint_dir=small_disk/'run',
            callbacks=[Never()])
    assert caught.value.errno == errno.ENOSPC


def test_a_read_only_disk_is_noticed_before_the_first_epoch(small_disk):
    (small_disk/'run').mkdir()
    subprocess.run(['mount', '-o', 'remount,ro', str(small_disk)], check=True)
    with pytest.raises(OSError) as caught:
        fit(model(), X[:40], X[40:], **OPTIONS, checkpoint_dir=small_disk/'run',
            callbacks=[Never()])
    assert caught.value.errno == errno.EROFS and caught.value.filename.startswith(str(small_disk))
    with pytest.raises(OSError) as caught: model().save_pretrained(small_disk/'run')
    assert caught.value.errno == errno.EROFS and caught.value.filename.endswith(WEIGHTS)


@pytest.mark.parametrize('what', ['removed', 'replaced'])
def test_a_folder_that_goes_away_during_training(tmp_path, what):
    class GoesAway(Callback):
        def after_epoch(self, trainer):
            if trainer.epoch != 2: return
            (tmp_path/'run').rename(tmp_path/'moved')
            if what == 'replaced': (tmp_path/'run').mkdir()
    with pytest.raises(OSError, match='removed or replaced') as caught:
        fit(model(), X[:40], X[40:], **{**OPTIONS, 'num_epochs': 9}, checkpoint_epochs=1,
            checkpoint_dir=tmp_path/'run', callbacks=[GoesAway()])
    assert caught.value.filename == str(tmp_path/'run')
    assert caught.value.history['epochs_trained'] == 2
    assert not (tmp_path/'run').exists() or not os.listdir(tmp_path/'run')


def test_the_command_says_one_line(small_disk, script):
    np.save(small_disk.parent/'x.npy', X)
    fill(small_disk)
    done = subprocess.run(
        [script('sparse_ae_train'), str(small_disk.parent/'x.npy'), '--out', str(small_disk/'run'),
         '--verbose', '0'], capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert 'No space left on device' in done.stderr and str(small_disk/'run') in done.stderr


# ---------------------------------------------------------------------------------- 8: figures

def test_figures_in_every_format_that_matplotlib_knows(tmp_path):
    fig = new_figure(2, 2)
    fig.subplots().plot([1, 2])
    for suffix in sorted(fig.canvas.get_supported_filetypes()):
        if suffix == 'pgf': continue      # needs LaTeX
        save_figure(fig, tmp_path/f'x.{suffix}')
        assert (tmp_path/f'x.{suffix}').stat().st_size
    save_figure(fig, tmp_path/'X.PNG')
    for name in ('x', 'x.xyz', 'x.png.tmp'):
        with pytest.raises(ValueError, match='save_path must end in .*.eps, .*got'):
            save_figure(fig, tmp_path/name)
    (tmp_path/'folder.png').mkdir()
    with pytest.raises(ValueError, match='got the folder'): save_figure(fig, tmp_path/'folder.png')
    assert not [name for name in os.listdir(tmp_path) if name.startswith('.')]


@pytest.mark.parametrize('backend', ['agg', 'svg', 'pdf', 'ps'])
def test_figures_are_closed_whatever_the_backend(backend):
    m, before = model(), plt.get_backend()
    results = evaluate_sparse_autoencoder(m, X)
    try:
        plt.switch_backend(backend)
        for _ in range(3): plot_sparse_autoencoder_analysis(results)
        assert plt.get_fignums() == []
    finally: plt.switch_backend(before)


def test_titles_are_never_formulas():
    results = evaluate_sparse_autoencoder(model(), X)
    for title in ('$x', '$5 and $6', r'$\frac{$', r'\$5 and $6$', '$$', r'a\\$b$'):
        fig = plot_sparse_autoencoder_analysis(results, title)
        text = fig._suptitle
        shown, is_formula = text._preprocess_math(text.get_text())
        assert not is_formula and shown.startswith(title)
    curves = LiveCurves({'cost in $: $\\frac{$': 'linear'}, 'epoch')
    next(iter(curves.axes.values())).figure.canvas.draw()


# ---------------------------------------------------------------------------- 9: untrusted files

def test_a_number_sign_is_no_comment_in_a_csv(tmp_path):
    path = tmp_path/'x.csv'
    path.write_text('a,b\n1,2\n3,4 # or 5\n')
    with pytest.raises(ValueError, match="line 3, column 2 must be a number .*got '4 # or 5'"):
        load_matrix(path)
    path.write_text('#a,b\n1,2\n#3,4\n')
    with pytest.raises(ValueError, match="line 3, column 1 must be a number"): load_matrix(path)
    path.write_text('1,2\n"' + 'x'*200_000 + '",4\n')
    with pytest.raises(ValueError, match='x.csv'): load_matrix(path)


def test_a_model_that_claims_to_be_huge_allocates_nothing(tmp_path):
    m = model()
    config = m.config() | dict(model_class='SparseAutoencoder', dtype='float32')
    for change in (dict(latent_dim=10**7, input_dim=10**5), dict(latent_dim=10**18),
                   dict(hidden_dims=[10**9]), dict(latent_dim=10**30)):
        write_safetensors(tmp_path/WEIGHTS, m.state_dict(),
                          {'config': json.dumps({**config, **change})})
        with pytest.raises(ValueError, match='do not make a SparseAutoencoder'):
            SparseAutoencoder.from_pretrained(tmp_path)
    for text in ('x', '[1]', '['*100_000):
        write_safetensors(tmp_path/WEIGHTS, m.state_dict(), {'config': text})
        with pytest.raises(ValueError, match='the metadata of .*model.safetensors'):
            SparseAutoencoder.from_pretrained(tmp_path)


def test_mutated_files_load_or_are_refused():
    count = int(os.environ.get('SPARSE_AE_MUTATIONS', 450))
    counts, failures, _ = campaign(count)
    assert not failures, failures[0]
    assert sum(sum(c.values()) for c in counts.values()) == count and len(counts) == 15
    assert all(c['ValueError'] for c in counts.values())


def test_contents_that_are_refused_name_the_file_and_the_reason(tmp_path):
    "A header whose metadata are no strings, a pickle of a later protocol, a state that is no dict."
    header = json.dumps({'__metadata__': {'format': 1}}).encode()
    (tmp_path/'x.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header)
    with pytest.raises(ValueError, match='x.safetensors is not a safetensors file: its metadata must be s'):
        read_safetensors(tmp_path/'x.safetensors')
    torch.save({'w': torch.ones(2)}, tmp_path/'x.pt', pickle_protocol=4)
    with pytest.raises(ValueError, match='x.pt is not a file of tensors: its pickle holds the operation'):
        read_torch(tmp_path/'x.pt')
    write_state(tmp_path/'y.safetensors', [1, 2])
    with pytest.raises(ValueError, match='y.safetensors is not a checkpoint of .*: it holds a list'):
        read_state(tmp_path/'y.safetensors')
