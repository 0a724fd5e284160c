"Stores of activations, and the capture that fills them: kills, damage, dtypes, and every use."
import copy
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import warnings
import weakref
from hashlib import sha256

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

import sparse_ae.data
import sparse_ae.networks.store as store_module
from sparse_ae import SparseAutoencoder, evaluate_sparse_autoencoder, sweep, train_val_split
from sparse_ae.activations import TopK
from sparse_ae.callbacks import Callback, StartFromData
from sparse_ae.data import Batches, Rows, TensorRows, open_rows, sample_rows
from sparse_ae.eval_viz import plot_reconstructions
from sparse_ae.lab.explorer import FeatureExplorer
from sparse_ae.lab.latents import latent_statistics
from sparse_ae.networks.capture import Activations, capture
from sparse_ae.networks.store import DTYPES, STORE, ActivationStore, StoreWriter
from sparse_ae.options import fitted_scaling
from sparse_ae.training import train_sparse_autoencoder_with_early_stopping as train

WIDTH = 16


def network(width=WIDTH, layers=2):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True)
    return nn.Sequential(nn.Embedding(100, width), nn.TransformerEncoder(layer, layers))


def token_batches(n=40, batch=8, length=10):
    return torch.randint(2, 100, (n * batch, length),
                         generator=torch.Generator().manual_seed(0)).split(batch)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    "Store of 3,200 rows in several shards."
    folder = tmp_path_factory.mktemp('store')
    return capture(network(), '1.layers.0', token_batches(), folder, shard_bytes=2**15, verbose=0)


@pytest.fixture
def store(original, tmp_path):
    "Copy of the store, to be damaged."
    shutil.copytree(original.folder, tmp_path/'store')
    return ActivationStore(tmp_path/'store')


@pytest.fixture
def small_buffers(monkeypatch):
    "A quarter of the rows in memory at a time."
    monkeypatch.setattr(sparse_ae.data, '_BUFFER_BYTES', 800 * WIDTH * 4)


# ---------------------------------------------------------------------------------- interruptions

KILLED = '''
import os, random, shutil, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_networks import capture, network, token_batches
home, names = Path(sys.argv[2]), ['0', '1.layers.0']
inputs = token_batches(400)
def run(folder):
    capture(network(), names, inputs, folder, shard_bytes=2**14, resume=True, verbose=0)
start = time.time()
run(home/'whole')
seconds = time.time() - start
delays, kills = random.Random(0), 0
while kills < 20:
    pid = os.fork()
    if not pid:
        try: run(home/'killed')
        finally: os._exit(0)
    time.sleep(delays.uniform(0, seconds / 12))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status): kills += 1
    else: shutil.rmtree(home/'killed')      # it was complete before the signal: start again
print(kills)
run(home/'killed')
'''


def test_a_capture_that_is_killed_loses_and_doubles_no_row(tmp_path):
    done = subprocess.run([sys.executable, '-c', KILLED, __file__.rpartition('/')[0], tmp_path],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == '20'
    whole, killed = contents(tmp_path/'whole'), contents(tmp_path/'killed')
    assert whole.keys() == killed.keys() and len(whole) > 40
    for name, data in whole.items(): assert killed[name] == data, name
    for name in ('0', '1.layers.0'):
        killed = ActivationStore(tmp_path/'killed'/name)
        killed.verify()
        assert torch.equal(killed.samples[:] * 10 + killed.positions[:], torch.arange(32000))


class Interrupt(Exception): pass


@given(st.integers(5, 60), st.lists(st.integers(0, 9), max_size=4), st.integers(1, 40))
def test_any_batches_and_interruptions_give_the_same_store(tmp_path_factory, n, stops, size):
    home = tmp_path_factory.mktemp('stores')
    inputs = torch.arange(60 * n).float().reshape(-1, 6).split(size)

    def interrupted(stop):
        yield from inputs[:stop]
        raise Interrupt
    options = dict(shard_bytes=2**12, verbose=0)
    whole = capture(nn.Identity(), '', inputs, home/'whole', **options)
    for number, stop in enumerate(sorted(stops)):
        try:
            capture(nn.Identity(), '', interrupted(stop), home/'part', resume=number > 0, **options)
        except Interrupt: pass
    part = capture(nn.Identity(), '', inputs, home/'part', resume=True, **options)
    assert contents(home/'whole') == contents(home/'part')
    assert torch.equal(part[:], torch.cat(inputs)) and torch.equal(part[:], whole[:])


def test_rows_are_limited_and_the_limit_is_part_of_the_capture(tmp_path):
    options = dict(verbose=0, shard_bytes=2**12)
    first = capture(network(), '0', token_batches(), tmp_path/'a', max_rows=1001, **options)
    second = capture(network(), '0', token_batches(), tmp_path/'b', **options)
    assert len(first) == 1001 and torch.equal(first[:], second[:1001])
    with pytest.raises(ValueError, match='max_rows must be as in .*store.json, 1001, got None'):
        capture(network(), '0', token_batches(), tmp_path/'a', resume=True, **options)
    with pytest.raises(ValueError, match='dtype must be as in .*, float32, got torch.float16'):
        capture(network(), '0', token_batches(), tmp_path/'b', resume=True, dtype=torch.float16,
                **options)


def interrupted(batches, folder, stop=20, **options):
    "Capture `stop` batches; the input ends with an error."
    def some():
        yield from batches[:stop]
        raise Interrupt
    with pytest.raises(Interrupt):
        capture(network(), '1.layers.0', some(), folder, shard_bytes=2**13, verbose=0, **options)


def resumed(batches, folder, **options):
    return capture(network(), '1.layers.0', batches, folder, shard_bytes=2**13, verbose=0,
                   resume=True, **options)


@pytest.mark.parametrize('change', ['others', 'fewer'])
def test_a_resumed_capture_needs_the_same_batches_even_if_no_more_follow(tmp_path, change):
    batches = token_batches()
    interrupted(batches, tmp_path)
    record = json.loads((tmp_path/STORE).read_text())
    assert record['rows_of_next']       # a part of the next batch is written as well
    passed = record['batches']
    if change == 'others': inputs, message = token_batches(80)[40:40 + passed], 'others among the'
    else: inputs, message = batches[:passed], f'the {passed + 1} batches .* got {passed}'
    with pytest.raises(ValueError, match=f'inputs must give .*{message}'):
        resumed(inputs, tmp_path)
    assert len(resumed(batches, tmp_path)) == 3200


@pytest.mark.parametrize('kind', ['arrays', 'texts', 'numbers'])
def test_batches_that_are_no_tensors_are_compared_as_well(tmp_path, kind):
    ids = token_batches()
    batches = dict(arrays=[batch.numpy() for batch in ids],
                   texts=[[' '.join(map(str, row.tolist())) for row in batch] for batch in ids],
                   numbers=[batch.tolist() for batch in ids])[kind]
    def forward(model, batch):
        if kind == 'texts': batch = [[int(word) for word in text.split()] for text in batch]
        return model(torch.as_tensor(batch))
    interrupted(batches, tmp_path, forward=forward)
    with pytest.raises(ValueError, match='the same batches in the same order'):
        resumed(batches[::-1], tmp_path, forward=forward)
    assert len(resumed(batches, tmp_path, forward=forward)) == 3200


def test_two_captures_into_one_folder_are_refused(tmp_path):
    def inputs():
        yield from token_batches(4)
        with pytest.raises(BlockingIOError, match='another run uses this folder'):
            capture(network(), '0', token_batches(4), tmp_path, resume=True, verbose=0)
    store = capture(network(), '0', inputs(), tmp_path, verbose=0)
    assert len(store) == 320 and sorted(contents(tmp_path)) == ['00000.safetensors', STORE]


def test_modules_with_one_folder_are_refused(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()
        def forward(self, x): return self.model(x)
    with pytest.raises(ValueError, match="got '' and 'model'"):
        capture(Wrapped(), ['', 'model'], token_batches(2), tmp_path, verbose=0)
    assert list(capture(Wrapped(), iter(['model']), token_batches(2), tmp_path, verbose=0)) == ['model']


def test_a_capture_that_kept_no_row_can_be_started_again(tmp_path):
    some = dict(verbose=0, out_dir=tmp_path)
    with pytest.raises(ValueError, match='at least one row'):
        capture(network(), '0', token_batches(4), keep=lambda ids: ids < 0, **some)
    assert len(capture(network(), '0', token_batches(4), **some)) == 320


def test_a_store_is_complete_only_if_its_file_says_so(tmp_path, monkeypatch):
    writer = StoreWriter(tmp_path)
    writer.append(torch.ones(5, 4))
    writer.wait()
    write = StoreWriter._write_record
    def failing(self, **changes): raise OSError(errno.ENOSPC, 'full')
    monkeypatch.setattr(StoreWriter, '_write_record', failing)
    with pytest.raises(OSError, match='full'): writer.close()
    monkeypatch.setattr(StoreWriter, '_write_record', write)
    with pytest.raises(ValueError, match='has ended'): writer.close()


def test_the_state_of_the_inputs_is_that_of_the_call(tmp_path):
    state, writer = {'rng': [0]}, StoreWriter(tmp_path, shard_bytes=2**12)
    for number in range(200):
        state['rng'][0] = number
        writer.append(torch.ones(100, 8), inputs=state)
    state['rng'][0] = -1
    writer.wait()
    record = json.loads((tmp_path/STORE).read_text())
    assert record['inputs'] == {'rng': [record['batches']]}
    with pytest.raises(TypeError, match='inputs must fit into JSON'):
        writer.append(torch.ones(1, 8), inputs={'rng': torch.get_rng_state()})
    with pytest.raises(TypeError, match='source must fit into JSON'):
        StoreWriter(tmp_path/'other', source={'dtype': torch.float32})
    writer.discard()
    source = dict(layers=(1, 2))
    for resume in (False, True): StoreWriter(tmp_path/'third', source=source, resume=resume)


def test_many_shards_in_a_batch_need_few_open_files(tmp_path):
    code = ('import resource, sys, torch; from sparse_ae.networks.store import StoreWriter; '
            'resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300)); '
            'writer = StoreWriter(sys.argv[1], shard_bytes=2**12); '
            'writer.append(torch.ones(2**14, 16)); writer.close()')
    subprocess.run([sys.executable, '-c', code, tmp_path], check=True)
    assert len(ActivationStore(tmp_path)) == 2**14


@pytest.mark.parametrize('columns, message', [
    (dict(token_ids=torch.tensor([1, 2**31])), 'token_ids must be integers from -2147483648 to 2147483647, got 1 to'),
    (dict(sample=torch.tensor([0.7, 1.])), 'sample must be integers, got torch.float32')])
def test_columns_that_do_not_fit_are_refused(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        StoreWriter(tmp_path).append(torch.ones(2, 3), columns)


def test_indices_that_are_no_rows(original):
    for index in (1.5, torch.tensor([0.9]), torch.ones(3, dtype=torch.bool),
                  torch.ones(len(original), 1, dtype=torch.bool)):
        with pytest.raises(IndexError, match='rows must be integers, or a mask of shape'):
            original[index]
    assert original[[]].shape == (0, WIDTH)


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, original):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    options = dict(shard_bytes=2**15, verbose=0)
    capture(network(), '1.layers.0', token_batches(), tmp_path/'whole', **options)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, limits[1]))
    try:
        with pytest.raises(OSError, match='00000.safetensors') as caught:
            capture(network(), '1.layers.0', token_batches(), tmp_path/'full', **options)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert contents(tmp_path/'full').keys() == {STORE}
    with pytest.raises(ValueError, match='has no rows yet'): ActivationStore(tmp_path/'full')
    capture(network(), '1.layers.0', token_batches(), tmp_path/'full', resume=True, **options)
    assert contents(tmp_path/'full') == contents(tmp_path/'whole')


def test_a_writer_that_failed_has_ended_and_is_continued_by_another(tmp_path):
    limits, x = resource.getrlimit(resource.RLIMIT_FSIZE), torch.randn(4000, 3)
    parts = x.split(300)
    writer = StoreWriter(tmp_path, shard_bytes=2**14)
    for part in parts[:6]: writer.append(part)          # more than a shard
    writer.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**13, limits[1]))
    try:
        with pytest.raises(OSError, match='00001.safetensors'):
            for part in parts[6:]: writer.append(part)
            writer.close()
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for use in (lambda: writer.append(parts[0]), writer.close):
        with pytest.raises(ValueError, match='has ended; use a new one with resume=True'): use()
    assert contents(tmp_path).keys() == {STORE, '00000.safetensors'}
    again = StoreWriter(tmp_path, shard_bytes=2**14, resume=True)
    for part in parts[again.batches:]: again.append(part)
    again.close()
    assert torch.equal(ActivationStore(tmp_path)[:], x)


def test_an_error_in_finishing_a_shard_is_raised_until_the_writer_ends(tmp_path, monkeypatch):
    writer = StoreWriter(tmp_path, shard_bytes=2**12)
    writer.append(torch.ones(1, 3))
    def fsync(file): raise OSError(errno.EIO, 'Input/output error')
    monkeypatch.setattr(os, 'fsync', fsync)
    with pytest.raises(OSError, match='could not be written.*00000.safetensors'):
        for _ in range(3): writer.append(torch.ones(300, 3))
        writer.wait()
    monkeypatch.undo()
    with pytest.raises(OSError, match='could not be written'): writer.wait()
    with pytest.raises(ValueError, match='has ended'): writer.close()
    assert contents(tmp_path).keys() == {STORE}


@pytest.mark.parametrize('dtype', DTYPES.values())
def test_shards_are_read_by_the_library_of_the_format(tmp_path, dtype):
    "Also with an odd width, which leaves the columns without alignment."
    x, sample = torch.randn(555, 7).to(dtype), torch.arange(555)
    writer = StoreWriter(tmp_path, shard_bytes=2**12)
    for rows in torch.arange(555).split(100):
        writer.append(x[rows], dict(position=sample[rows] + 1, sample=sample[rows]))
    writer.close()
    paths = sorted(tmp_path.glob('*.safetensors'))
    assert len(paths) > 2 and all(path.stat().st_size <= 2**12 for path in paths)
    parts = [load_file(path) for path in paths]
    assert torch.equal(torch.cat([part['activations'] for part in parts]), x)
    assert torch.equal(torch.cat([part['sample'] for part in parts]), sample)
    assert torch.equal(torch.cat([part['position'] for part in parts]), sample.int() + 1)
    ActivationStore(tmp_path).verify()


def test_rows_that_wait_to_be_written_are_limited(tmp_path, monkeypatch):
    write, permits = store_module._Shard.append, threading.Semaphore(0)
    def permitted(*args):
        permits.acquire()
        write(*args)
    monkeypatch.setattr(store_module._Shard, 'append', permitted)
    monkeypatch.setattr(store_module, 'WAITING_BYTES', 2000)
    writer, rows = StoreWriter(tmp_path), torch.ones(100, 2)        # 800 bytes
    for _ in range(2): writer.append(rows)          # returns, although nothing is written
    third = threading.Thread(target=writer.append, args=(rows,))
    third.start()
    third.join(0.3)
    waits = third.is_alive()
    permits.release()
    third.join(30)
    jobs = [size for _, size in writer.jobs]
    permits.release(2)
    writer.close()
    assert waits and jobs == [800, 800]
    assert len(ActivationStore(tmp_path)) == 300


MEMORY = '''
import resource, sys, torch
from sparse_ae.networks.store import StoreWriter
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
writer, rows = StoreWriter(sys.argv[1]), torch.ones(4096, 384)      # 6 MiB
writer.append(rows)
before = peak()
for _ in range(60): writer.append(rows)
writer.close()
print(len(writer.record['shards']), peak() - before)
'''


def test_a_writer_needs_no_memory_for_a_shard(tmp_path):
    done = subprocess.run([sys.executable, '-c', MEMORY, tmp_path], capture_output=True, text=True)
    shards, mebibytes = map(int, done.stdout.split())
    assert shards == 2 and mebibytes < 200      # 64 may wait; a shard has 256


# ------------------------------------------------------------------------------------------ damage

def index(shards):
    return shards[0].with_name(STORE)


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize('damage, error, message', [
    (lambda s: s[1].unlink(), FileNotFoundError, '00001.safetensors is missing'),
    (lambda s: s[1].write_bytes(s[1].read_bytes()[:-1]), ValueError,
     '00001.safetensors is damaged'),
    (lambda s: s[1].write_bytes(s[2].read_bytes()), ValueError,
     '00001.safetensors must begin with row'),
    (lambda s: s[1].write_bytes(b'\xff' * s[1].stat().st_size), ValueError,
     '00001.safetensors cannot be read as a shard'),
    (lambda s: index(s).unlink(), FileNotFoundError, 'store.json'),
    (lambda s: index(s).write_bytes(b'\xff\xfe'), ValueError, 'store.json is not JSON'),
    (lambda s: index(s).write_text('[1]'), ValueError, 'store.json must hold a JSON object'),
    (lambda s: change_json(index(s), format=3), ValueError, 'store.json has format 3'),
    (lambda s: change_json(index(s), format='1'), ValueError, "store.json is damaged: .*'format'"),
    (lambda s: change_json(index(s), width=17), ValueError, '00000.safetensors must have activations'),
    (lambda s: change_json(index(s), dtype='float16'), ValueError, 'must have activations'),
    (lambda s: change_json(index(s), dtype='int8'), ValueError, 'store.json is damaged'),
    (lambda s: change_json(index(s), rows=3201), ValueError, 'store.json is damaged'),
    (lambda s: change_json(index(s), rows=True), ValueError, 'store.json is damaged'),
    (lambda s: change_json(index(s), columns=['labels']), ValueError, 'store.json is damaged'),
    (lambda s: change_json(index(s), shards=[
        shard | dict(rows=10**6) for shard in json.loads(index(s).read_text())['shards']]),
     ValueError, 'store.json is damaged: 1000000 rows of .* bytes are more than 00000.safetensors has'),
    (lambda s: change_json(index(s), shards=[dict(file='/etc/passwd', rows=1, bytes=1, checksums={})]),
     ValueError, 'no shard')])
def test_damage_is_named(store, damage, error, message):
    damage(sorted(store.folder.glob('*.safetensors')))
    with pytest.raises(error, match=message): ActivationStore(store.folder)[:]


@pytest.mark.parametrize('arguments, error, message', [
    (dict(forward='call'), TypeError, 'forward must be a function, got str'),
    (dict(keep=3), TypeError, 'keep must be a function, got int'),
    (dict(exclude_ids=None), TypeError, 'exclude_ids must be token ids, .* got None'),
    (dict(exclude_ids=3), TypeError, 'exclude_ids must be token ids, .* got 3'),
    (dict(keep=lambda batch: torch.ones(2)), ValueError, r'keep\(batch\) must have the shape'),
    (dict(io='both'), ValueError, "io must be 'in' or 'out'")])
def test_arguments_of_a_capture(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        capture(nn.Linear(3, 3), '', [torch.ones(5, 3)], tmp_path, verbose=0, **arguments)


def test_columns_of_a_writer_have_an_entry_for_each_row(tmp_path):
    writer = StoreWriter(tmp_path)
    with pytest.raises(ValueError, match=r'sample must have shape \(5,\), got \(4,\)'):
        writer.append(torch.ones(5, 3), dict(sample=torch.arange(4)))
    with pytest.raises(ValueError, match=r'shape \(n, width\), got \(5,\) of torch.float32'):
        writer.append(torch.ones(5))
    with pytest.raises(ValueError, match=r'shape \(n, width\), got \(5, 0\)'):
        writer.append(torch.ones(5, 0))
    rows, sample = torch.ones(5, 3), torch.arange(5)
    writer.append(rows, dict(sample=sample))
    rows.zero_(), sample.zero_()        # what is appended is written
    with pytest.raises(ValueError, match='columns must be .*sample.*, as before, got'):
        writer.append(torch.ones(5, 3))
    with pytest.raises(ValueError, match='rows must have width 3, as those before, got width 4'):
        writer.append(torch.ones(5, 4), dict(sample=torch.arange(5)))
    writer.close()
    store = ActivationStore(tmp_path)
    assert store.samples[:].tolist() == [0, 1, 2, 3, 4] and torch.equal(store[:], torch.ones(5, 3))


def test_changed_bits_are_found_by_the_checksum(store):
    store.verify()
    path = store.folder/'00002.safetensors'
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    ActivationStore(store.folder)[:]
    with pytest.raises(ValueError, match='00002.safetensors is damaged: the checksum of'):
        store.verify()


def test_a_shard_of_another_store_is_found_by_the_checksum(store, original, tmp_path):
    other = StoreWriter(tmp_path/'other', shard_bytes=2**15)
    columns = {name: getattr(store, attribute)[:] for name, attribute in
               dict(token_ids='token_ids', sample='samples', position='positions').items()}
    other.append(store[:].neg(), columns)
    other.close()
    name = '00001.safetensors'
    (store.folder/name).write_bytes((tmp_path/'other'/name).read_bytes())
    rows = ActivationStore(store.folder)[:]       # can be read, since it has the same shape
    assert (rows < 0).ne(original[:] < 0).any()
    with pytest.raises(ValueError, match='damaged: the checksum of activations is not that'):
        store.verify()


def as_format_1(folder):
    "Change a store into one of format 1, whose shards `save_file` wrote."
    record = json.loads((folder/STORE).read_text()) | dict(format=1)
    for shard in record['shards']:
        path = folder/shard['file']
        with safe_open(path, 'pt') as file: first_row = file.metadata()['first_row']
        save_file(load_file(path), path, metadata=dict(first_row=first_row))
        del shard['checksums']
        shard |= dict(bytes=path.stat().st_size, sha256=sha256(path.read_bytes()).hexdigest())
    (folder/STORE).write_text(json.dumps(record))


def test_stores_of_format_1_are_read_checked_and_continued(tmp_path, original):
    options = dict(shard_bytes=2**15, verbose=0)
    def interrupted():
        yield from token_batches()[:20]
        raise Interrupt
    with pytest.raises(Interrupt):
        capture(network(), '1.layers.0', interrupted(), tmp_path, **options)
    as_format_1(tmp_path)
    with pytest.warns(UserWarning, match='not complete'): old = ActivationStore(tmp_path)
    assert torch.equal(old[:], original[:len(old)])
    old.verify()
    again = capture(network(), '1.layers.0', token_batches(), tmp_path, resume=True, **options)
    assert torch.equal(again[:], original[:]) and again.record['format'] == 2
    assert ['sha256' in shard for shard in again.record['shards']] == [
        number < len(old.record['shards']) for number in range(len(again.record['shards']))]
    again.verify()
    path = tmp_path/'00000.safetensors'
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match='00000.safetensors is damaged: the checksum of the file'):
        again.verify()


def test_a_damaged_shard_stops_a_resumed_capture(store):
    change_json(store.folder/STORE, complete=False)
    (store.folder/'00000.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='00000.safetensors is missing'):
        capture(network(), '1.layers.0', token_batches(), store.folder, resume=True, verbose=0)


# ----------------------------------------------------------------------------------------- reading

@given(st.data())
def test_every_selection_equals_that_of_a_tensor(tmp_path_factory, data):
    n, width = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 40))
    dtype = DTYPES[data.draw(st.sampled_from(sorted(DTYPES)))]
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, width, generator=generator).to(dtype)
    samples = torch.randint(0, 1 + n // 5, (n,), generator=generator).sort()[0]
    folder = tmp_path_factory.mktemp('store')
    writer = StoreWriter(folder, shard_bytes=2**12)
    for rows in torch.arange(n).split(data.draw(st.integers(1, 100))):
        writer.append(x[rows], dict(sample=samples[rows]))
    writer.close()
    store = ActivationStore(folder)
    if len(samples.unique()) > 1:
        parts = store.split(data.draw(st.floats(0.1, 0.9)), seed=data.draw(st.integers(0, 9)))
        ids = [set(part.samples[:].tolist()) for part in parts]
        assert not ids[0] & ids[1] and sum(map(len, parts)) == n
        for part, own in zip(parts, ids):
            assert torch.equal(part[:], x.float()[[int(s) in own for s in samples]])
        store = parts[0]
        x, samples = store[:], store.samples[:]
    x, index = x.float(), st.integers(-len(x), len(x) - 1)
    start, stop, step = (data.draw(st.none() | index) for _ in range(3))
    indices = torch.tensor(data.draw(st.lists(index, max_size=20)), dtype=torch.long)
    selections = slice(start, stop), slice(start, stop, abs(step or 1)), indices, data.draw(index)
    for selection in selections:
        assert torch.equal(store[selection], x[selection])
        assert torch.equal(store.samples[selection], samples[selection])
    assert_close(sample_rows(store, 7), sample_rows(x, 7), rtol=0, atol=0)


@pytest.mark.parametrize('dtype', DTYPES.values())
@pytest.mark.parametrize('source', [*DTYPES.values(), torch.float64])
def test_dtypes_make_the_round_trip(tmp_path, dtype, source):
    x = torch.randn(300, 5, dtype=torch.float64).to(source)
    store = capture(nn.Identity(), '', x.split(70), tmp_path/'store', dtype=dtype, verbose=0,
                    shard_bytes=2**12)
    assert torch.equal(store[:], x.to(dtype).float())
    assert torch.equal(ActivationStore(store.folder, dtype)[:], x.to(dtype))
    double = ActivationStore(store.folder, torch.float64)
    assert torch.equal(double[torch.tensor([5, 2])], x.to(dtype).double()[[5, 2]])
    unset = capture(nn.Identity(), '', [x], tmp_path/'unset', verbose=0)
    assert unset.record['dtype'] == str(torch.float32 if source == torch.float64 else source)[6:]


def test_rows_are_copies_and_few_files_are_open(store):
    before = store[:]
    store[:].zero_()
    store[torch.arange(9)].zero_()
    assert torch.equal(store[:], before) and torch.equal(ActivationStore(store.folder)[:], before)
    assert len(store.record['shards']) > 4
    assert store._mapped.cache_info().currsize <= 2


def test_a_store_can_be_sent_to_workers_and_copied(original):
    loader = DataLoader(range(20), batch_size=5, num_workers=2, collate_fn=original.__getitem__)
    assert torch.equal(torch.cat(list(loader)), original[:20])
    assert torch.equal(copy.deepcopy(original)[5:9], original[5:9])


def test_ambient_defaults_do_not_matter(original, tmp_path):
    expected = original[:], original.split()[0][:]
    with torch.device('meta'):
        again = ActivationStore(original.folder)
        assert torch.equal(again[:], expected[0]) and torch.equal(again.split()[0][:], expected[1])
        assert again[torch.tensor([1, 2], device='cpu')].device.type == 'cpu'
    torch.set_default_dtype(torch.float64)
    try: assert ActivationStore(original.folder)[:].dtype == torch.float32
    finally: torch.set_default_dtype(torch.float32)


def test_an_unfinished_store_warns(store):
    change_json(store.folder/STORE, complete=False)
    with pytest.warns(UserWarning, match='not complete: it has the 3200 rows'):
        ActivationStore(store.folder)


# ------------------------------------------------------------------------------------ every use

def fit(train_data, val_data, hidden_dims=None, **options):
    torch.manual_seed(0)
    model = SparseAutoencoder(WIDTH, 24, hidden_dims=hidden_dims)
    options = dict(num_epochs=2, learning_rate=1e-3, patience=9, verbose=0, seed=0,
                   sparsity_type='l1', batch_size=100) | options
    return model, train(model, train_data, val_data, **options)


def test_training_and_evaluation_take_a_store_as_a_tensor(original):
    parts = original.split()
    memory = [part[:] for part in parts]
    (model, history), (other, expected) = fit(*parts), fit(*memory)
    assert {**history, 'seconds': 0} == {**expected, 'seconds': 0}
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    results, wanted = (evaluate_sparse_autoencoder(model, data) for data in (parts[1], memory[1]))
    for name, value in wanted.items(): assert np.array_equal(results[name], value), name


def test_statistics_sweeps_initialization_and_the_explorer_take_a_store(original, tmp_path):
    parts = original.split()
    memory = [part[:] for part in parts]
    assert open_rows('data', original) is original and isinstance(original, Rows)
    assert parts[0].fingerprint() == TensorRows(memory[0]).fingerprint()
    scales = [fitted_scaling(True, SparseAutoencoder(WIDTH, 5), data).scale
              for data in (parts[0], memory[0])]
    assert torch.equal(*scales)
    common = dict(num_epochs=2, learning_rate=1e-3, patience=9, verbose=0, sparsity_type='l1')
    tables = [sweep(lambda: SparseAutoencoder(WIDTH, 8), *data, dict(sparsity_weight=[0.1, 0.2]),
                    **common).table for data in (parts, memory)]
    assert tables[0] == tables[1]
    model = SparseAutoencoder(WIDTH, 24, hidden_dims=(), activation=TopK(4))
    stats, wanted = (latent_statistics(model, data) for data in (parts[1], memory[1]))
    assert torch.equal(stats.density, wanted.density)
    plot_reconstructions(model, parts[1])
    explorer = FeatureExplorer(model, parts[1])
    explorer.wait()
    assert torch.equal(explorer.stats.density, wanted.density)
    for ours, own in zip(train_val_split(original), original.split()):
        assert ours.fingerprint() == own.fingerprint() and len(ours) == len(own)


def test_initialization_takes_a_store(original):
    models = [SparseAutoencoder(WIDTH, 24, hidden_dims=()) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[0].initialize(original)
    models[1].initialize(original[:])
    for p, q in zip(*(model.parameters() for model in models)): assert torch.equal(p, q)
    started = [fit(data, data, callbacks=[StartFromData()], hidden_dims=())[1]['train_loss']
               for data in (original, original[:])]
    assert started[0] == started[1]


def test_training_resumes_in_the_middle_of_an_epoch(original, tmp_path, small_buffers):
    class Kill(Callback):
        def before_step(self, trainer):
            if trainer.step == 45: raise KeyboardInterrupt
    parts = original.split()
    assert Batches('x', parts[0], SparseAutoencoder(WIDTH, 5)).buffer_rows < len(parts[0]) / 3
    options = dict(num_epochs=3, checkpoint_dir=tmp_path/'run', checkpoint_minutes=1e-9)
    fit(*parts, callbacks=[Kill()], **options)
    model, history = fit(*parts, resume=True, **options)
    other, expected = fit(*parts, num_epochs=3)
    assert history['train_loss'] == expected['train_loss'] and len(history['train_loss']) == 3
    for p, q in zip(model.parameters(), other.parameters()): assert torch.equal(p, q)
    with pytest.raises(ValueError, match='train_data must be as in the checkpoint'):
        fit(*parts[::-1], resume=True, **options)


def test_every_row_comes_once_from_shuffled_blocks(original, small_buffers):
    part = original.split(0.3)[0]
    batches = Batches('x', part, SparseAutoencoder(WIDTH, 5), 64, shuffle=True, seed=0)
    for _ in range(2):
        rows = torch.cat(list(batches))
        assert torch.equal(rows.sort(0)[0], part[:].sort(0)[0]) and not torch.equal(rows, part[:])


def test_shuffled_blocks_are_not_kept_beside_the_buffer(original, small_buffers):
    blocks, alive = [], []

    class Watched(ActivationStore):
        def __getitem__(self, indices):
            alive.append(sum(block() is not None for block in blocks))
            rows = super().__getitem__(indices)
            blocks.append(weakref.ref(rows))
            return rows
    store = Watched(original.folder)
    batches = Batches('x', store, SparseAutoencoder(WIDTH, 5), 64, shuffle=True, seed=0)
    alive.clear()
    assert sum(map(len, batches)) == len(store) and len(alive) > 60 and max(alive) <= 1


def test_a_store_of_another_width(original):
    for use in (lambda m: train(m, original, original, 1, 1e-3, 1, verbose=0),
                lambda m: evaluate_sparse_autoencoder(m, original),
                lambda m: FeatureExplorer(m, original)):
        with pytest.raises(ValueError, match=r'must have shape \(n, 7\)'):
            use(SparseAutoencoder(7, 5))


def test_damage_during_training_names_the_file(store, small_buffers):
    path = store.folder/'00003.safetensors'
    path.write_bytes(b'\xff' * path.stat().st_size)
    with pytest.raises(ValueError, match='00003.safetensors cannot be read'):
        fit(store, torch.randn(50, WIDTH))


# ------------------------------------------------------------------------------------------ capture

def test_layers_of_a_transformer_are_those_of_its_own_forward_pass(tmp_path):
    model, inputs = network().eval(), token_batches(3)
    stores = capture(model, ['0', '1.layers.0', '1', ''], inputs, tmp_path/'all', verbose=0)
    with torch.no_grad():
        embedded = model[0](torch.cat(inputs))
        first = model[1].layers[0](embedded)
        last = model(torch.cat(inputs))
    for name, expected in {'0': embedded, '1.layers.0': first, '1': last, '': last}.items():
        assert_close(stores[name][:], expected.reshape(-1, WIDTH))
    assert (tmp_path/'all'/'model'/STORE).exists()


def test_models_of_transformers_with_padding_on_either_side(tmp_path):
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=60, n_embd=WIDTH, n_layer=3, n_head=2,
                                     n_positions=32, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2Model(config).train()
    ids = torch.randint(2, 60, (6, 12))
    mask = torch.ones_like(ids)
    mask[:3, 9:], mask[3:, :4] = 0, 0
    inputs = [dict(input_ids=i, attention_mask=m) for i, m in zip(ids.split(2), mask.split(2))]
    store = capture(model, 'h.1', inputs, tmp_path/'gpt', verbose=0, exclude_ids=[5])
    kept = (mask == 1) & (ids != 5)
    assert model.training and torch.equal(store.token_ids[:], ids[kept].int())
    with torch.no_grad(): hidden = model.eval()(
        input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert_close(store[:], hidden[2][kept])
    assert torch.equal(store.samples[:], kept.nonzero()[:, 0])
    assert torch.equal(store.positions[:], kept.nonzero()[:, 1].int())


@pytest.mark.parametrize('stop_early', [True, False])
def test_nan_is_named_wherever_it_appears(tmp_path, stop_early):
    inputs = [torch.randn(4, 5, 3) for _ in range(3)]
    inputs[2][1, 4, 0] = torch.nan
    with pytest.raises(ValueError, match='1 of 20 rows .* at sample 9, position 4'):
        capture(nn.Identity(), '', inputs, tmp_path/'a', verbose=0, stop_early=stop_early)
    with pytest.raises(ValueError, match='sample 9, position 4'):
        list(Activations(nn.Identity(), '', inputs, batch_size=4, buffer_rows=8))


def test_a_network_is_left_as_it_was(tmp_path):
    model = network()
    model[1].layers[1].eval()
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    live = iter(Activations(model, '1.layers.0', token_batches(), batch_size=64, buffer_rows=128))
    next(live)
    assert modes == [module.training for module in model.modules()] and torch.is_grad_enabled()
    with pytest.raises(IndexError):
        capture(model, '1', [torch.tensor([[1000]])], tmp_path/'a', verbose=0)
    assert modes == [module.training for module in model.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for name, value in model.state_dict().items(): assert torch.equal(value, state[name])
    assert all(p.grad is None for p in model.parameters())


def test_live_training_resumes_exactly(tmp_path):
    class Kill(Callback):
        def before_step(self, trainer):
            if trainer.step == 25: raise KeyboardInterrupt
    val = torch.randn(100, WIDTH)
    live = lambda seed=0: Activations(network(), '1.layers.0', token_batches(), batch_size=100,
                                      buffer_rows=800, seed=seed)
    options = dict(num_epochs=3, steps_per_epoch=20)
    stored = options | dict(checkpoint_dir=tmp_path/'run', checkpoint_minutes=1e-9)
    fit(live(), val, callbacks=[Kill()], **stored)
    model, history = fit(live(seed=3), val, resume=True, **stored)
    other, expected = fit(live(), val, **options)
    assert history['train_loss'] == expected['train_loss']
    for p, q in zip(model.parameters(), other.parameters()): assert torch.equal(p, q)


def test_live_rows_of_a_stream_end_training(tmp_path):
    stream = Activations(network(), '0', iter(token_batches(5)), batch_size=50, buffer_rows=100)
    _, history = fit(stream, torch.randn(50, WIDTH), num_epochs=9, steps_per_epoch=5)
    assert history['stopped_by'] == 'data' and history['epochs_trained'] == 2


def test_progress_is_shown_in_rows(tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')     # tqdm warns where ipywidgets is incomplete
        capture(network(), '0', token_batches(), tmp_path/'store')
    shown = capsys.readouterr().err
    assert 'capture: ' in shown and 'rows/s' in shown and '3.20k' in shown
