"""Load damaged and hostile files with every loader: `python tests/faults/mutations.py --help`.

Each load must succeed or raise a documented error that names the file, within seconds, without
unpickling and without memory that only a header claims."""
import argparse
import collections
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from sparse_ae.cli import load_matrix
from sparse_ae.files import write_safetensors
from sparse_ae.io import read_state, write_state
from sparse_ae.models import (BaseSparseAutoencoder, SparseAutoencoder,
                              TiedWeightSparseAutoencoder)
from sparse_ae.networks import formats
from sparse_ae.networks.store import ActivationStore, StoreWriter
from sparse_ae.training import Trainer

SECONDS, MEMORY, CHUNK = 10, 2**31, 200      # of one load; of a chunk, in bytes; files of a process
HOSTILE = [None, True, -1, 0, 1, 3, 10**12, 10**30, 0.5, -0.0, 1e308, float('nan'), '', 'relu',
           'é\x00$', [], {}, [[1]], [10**12], {'a': {}}, 'x'*2000, [0]*500, {'name': 'topk'},
           {'name': 'topk', 'k': 10**12}, {'name': []}]
NUMBERS = [b'0', b'-1', b'1e999', b'nan', b'1000000000000', b'9'*40, b'9'*5000, b'[', b'"', b'{']
FORBIDDEN = {'pickle.find_class', 'os.system', 'os.exec', 'os.posix_spawn', 'subprocess.Popen',
             'socket.connect'}


# ----------------------------------------------------------------------------------- good files

def make_trainer(rows=None):
    torch.manual_seed(0)
    return Trainer(SparseAutoencoder(6, 4), torch.rand(20, 6), torch.rand(8, 6), 2, 1e-3, 2,
                   verbose=0, seed=0, batch_size=10)

def make_seeds(home):
    "Write one good file or folder for each loader; return `{name: (files, load)}`."
    torch.manual_seed(0)
    seeds, x = {}, np.random.default_rng(0).random((30, 6))
    def add(name, load, *files): seeds[name] = ([home/name/file for file in files], load)
    for name, cls, options in (('model', SparseAutoencoder, dict(activation={'name': 'topk', 'k': 2})),
                               ('tied', TiedWeightSparseAutoencoder, {}),
                               ('foreign', SparseAutoencoder, dict(hidden_dims=()))):
        cls(6, 4, **options).save_pretrained(home/name)
        add(name, lambda f: BaseSparseAutoencoder.from_pretrained(f.parent), 'model.safetensors',
            'config.json')
    from safetensors.torch import load_file, save_file
    save_file(load_file(home/'foreign'/'model.safetensors'), home/'foreign'/'model.safetensors')
    for name in ('checkpoint', 'old_checkpoint'):
        (home/name).mkdir()
        add(name, load_checkpoint, 'state.safetensors')
    trainer = make_trainer()
    trainer.fit()
    write_state(home/'checkpoint'/'state.safetensors', trainer.state_dict())
    from sparse_ae.io import _pack
    contents = json.dumps(_pack(trainer.state_dict(), tensors := {}))
    save_file(tensors, home/'old_checkpoint'/'state.safetensors', metadata={'state': contents})
    for name in ('npy', 'npz', 'deflated', 'csv'): (home/name).mkdir()
    np.save(home/'npy'/'x.npy', x)
    np.savez(home/'npz'/'x.npz', x=x, y=x[:2])
    np.savez_compressed(home/'deflated'/'x.npz', x=x.round(1))
    np.savetxt(home/'csv'/'x.csv', x, fmt='%.3f', delimiter=',', header='a,b,"c",d,e,f', comments='')
    add('npy', lambda f: np.array(load_matrix(f)), 'x.npy')
    add('npz', lambda f: load_matrix(f, 'x'), 'x.npz')
    add('deflated', load_matrix, 'x.npz')
    add('csv', load_matrix, 'x.csv')
    writer = StoreWriter(home/'store', shard_bytes=2**12)
    writer.append(torch.rand(300, 6), dict(sample=torch.arange(300)))
    writer.close()
    add('store', lambda f: ActivationStore(f.parent)[:], 'store.json', '00000.safetensors')
    make_formats(home, add)
    return seeds

def make_formats(home, add):
    "Write a model in the formats of other libraries."
    model = SparseAutoencoder(6, 4, hidden_dims=(), decoder_norm='atom')
    load = lambda f: formats.load(f.parent)
    for name, files in (('saelens', ('cfg.json', 'sae_weights.safetensors')),
                        ('sparsify', ('cfg.json', 'sae.safetensors')),
                        ('dictionary_learning', ('config.json', 'ae.pt')),
                        ('gemma_scope', ('params.npz',))):
        chosen = model
        if name == 'sparsify':
            chosen = SparseAutoencoder(6, 4, hidden_dims=(), activation={'name': 'topk', 'k': 2},
                                       decoder_norm='atom')
        formats.save(chosen, home/name, name)
        add(name, load, *[file for file in files if (home/name/file).exists()])
    (home/'goodfire').mkdir()
    torch.save({'encoder_linear.weight': torch.rand(4, 6), 'encoder_linear.bias': torch.rand(4),
                'decoder_linear.weight': torch.rand(6, 4), 'decoder_linear.bias': torch.rand(6)},
               home/'goodfire'/'x.pt')
    add('goodfire', formats.load, 'x.pt')

TRAINERS, TEMPORARY = [], [None]

def load_checkpoint(path):
    "Read a checkpoint and restore it. A failure must leave the trainer as it was."
    state = read_state(path)
    trainer = TRAINERS.pop() if TRAINERS else make_trainer()
    before = [value.clone() for value in trainer.model.state_dict().values()]
    try: trainer.load_state_dict(state)
    except ValueError as error:
        assert all(map(torch.equal, before, trainer.model.state_dict().values())), 'changed'
        assert not trainer.started and trainer.epoch == 0, 'changed'
        TRAINERS.append(trainer)
        raise ValueError(f'{path}: {error}') from error     # as `resume_training` does


# ------------------------------------------------------------------------------------ mutations

def damage(data, rng):
    "Change bytes anywhere."
    data, size = bytearray(data), len(data)
    at = rng.randrange(size + 1) if rng.random() < 0.5 else min(size, int(rng.expovariate(1/200)))
    length = min(size - at, int(rng.expovariate(1/20)) + 1)
    kind = rng.randrange(8)
    if kind == 0 and at < size: data[at] ^= 1 << rng.randrange(8)
    elif kind == 1: data[at:at + length] = rng.randbytes(length)
    elif kind == 2: del data[at:]
    elif kind == 3: data[at:at] = rng.randbytes(length)
    elif kind == 4: del data[at:at + length]
    elif kind == 5: data[at:at] = data[at:at + length]*rng.choice([1, 1, 50])
    elif kind == 6: data[at:at + length] = rng.choice([b'\x00', b'\xff', b'\x7f'])*length
    else:
        width = rng.choice('BHIQ')
        value = rng.choice([0, 1, 2**7, 2**15 - 1, 2**31 - 1, 2**63 - 1, 2**64 - 1])
        packed = struct.pack('<' + width, value % 2**(8*struct.calcsize(width)))
        data[at:at + len(packed)] = packed
    return bytes(data)

def damage_text(data, rng):
    "Replace a number, or a part of the text."
    digits = [k for k in range(min(len(data), 5000)) if data[k:k + 1].isdigit()]
    if not digits: return damage(data, rng)
    at = rng.choice(digits)
    if rng.random() < 0.02: return data[:at] + b'['*100_000 + data[at:]
    return data[:at] + rng.choice(NUMBERS) + data[at + 1:]

def change_json(value, rng):
    "Replace a random entry of a JSON value by a hostile one, delete it or rename it."
    path = []
    while isinstance(value, (dict, list)) and value and (not path or rng.random() < 0.75):
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        path.append((value, key))
        value = value[key]
    if not path: return
    parent, key = path[-1]
    action = rng.random()
    if action < 0.7: parent[key] = rng.choice(HOSTILE)
    elif action < 0.85: del parent[key]
    elif isinstance(parent, dict): parent['x'] = parent.pop(key)
    else: parent.append(parent[key])

def change_json_file(data, rng):
    value = json.loads(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])): change_json(value, rng)
    return json.dumps(value).encode()

def change_archive(data, rng):
    "Change a member of an archive, with valid checksums."
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, 'w') as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            contents = old.read(name)
            if name == chosen:
                if rng.random() < 0.1: continue
                contents = rng.choice([damage, damage_text])(contents, rng)
            new.writestr(name, contents, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    return out.getvalue()

def change_safetensors(data, rng):
    "Change the header of a safetensors file; with valid checksums where it has them."
    from safetensors.torch import load
    length = struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8:8 + length])
    metadata = header.get('__metadata__', {})
    tensors = load(data)
    if rng.random() < 0.4:     # the form of the header
        change_json(header, rng)
        text = json.dumps(header).encode()
        return struct.pack('<Q', len(text)) + text + data[8 + length:]
    own = metadata.pop('sparse_ae_checksums', None)
    if metadata and rng.random() < 0.7:
        name = rng.choice(list(metadata))
        metadata[name] = rng.choice([change_json_file, damage, damage_text])(
            metadata[name].encode(), rng).decode(errors='replace')
    elif tensors:
        name, other = rng.choice(list(tensors)), rng.choice(list(tensors))
        change = rng.randrange(5)
        if change == 0: del tensors[name]
        elif change == 1: tensors[name + 'x'] = tensors.pop(name)
        elif change == 2: tensors[name] = tensors[other]
        elif change == 3: tensors[name] = tensors[name].reshape(-1)[:-1]
        else: tensors[name] = tensors[name].to(rng.choice([torch.float64, torch.int8, torch.bool]))
    folder = Path(tempfile.mkdtemp(dir=TEMPORARY[-1]))
    try:
        if own: write_safetensors(folder/'x', tensors, metadata)
        else:
            from safetensors.torch import save_file
            save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder/'x',
                      metadata or None)
        return (folder/'x').read_bytes()
    finally: shutil.rmtree(folder)

STRUCTURED = {'.json': change_json_file, '.npz': change_archive, '.pt': change_archive,
              '.safetensors': change_safetensors}

def mutate(path, rng):
    "Return a changed version of the contents of a file."
    data = path.read_bytes()
    for _ in range(rng.choice([1, 1, 2, 4])):
        change = rng.choice([damage, damage_text, STRUCTURED.get(path.suffix, damage_text),
                             STRUCTURED.get(path.suffix, damage)])
        try: data = change(data, rng)
        except Exception: data = damage(data, rng)    # an earlier change broke the structure
    return data


# --------------------------------------------------------------------------------------- checks

def check_load(name, path, load, counts):
    "Load a file; return a description of a failure, or `None`."
    before = set(path.parent.iterdir())
    try:
        load(path)
        counts['loaded'] += 1
    except (ValueError, OSError) as error:
        text = str(error)
        counts[type(error).__name__] += 1
        named = str(path.parent) in text or any(file.name in text for file in before)
        if not named: return f'{name}: the error names no file: {error!r:.300}'
        if 'allocate' in text.lower(): return f'{name}: allocated: {error!r:.300}'
    except BaseException: return f'{name}: {traceback.format_exc(limit=-4)[-1500:]}'
    if set(path.parent.iterdir()) != before: return f'{name}: files were left behind'

def run_chunk(seeds, numbers, seed, home, report):
    "Load the mutations `numbers`; write what happens into `report`, line by line."
    events = []
    sys.addaudithook(lambda event, args: events.append(event) if event in FORBIDDEN else None)
    pages = int(Path('/proc/self/statm').read_text().split()[0]) if sys.platform == 'linux' else 0
    if pages:
        limit = pages*resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    names = list(seeds)
    for number in numbers:
        rng = random.Random(f'{seed} {number}')
        name, counts = names[number % len(names)], collections.Counter()
        files, load = seeds[name]
        path = rng.choice(files)
        target = home/name/path.name
        shutil.copytree(path.parent, target.parent, dirs_exist_ok=True)
        target.write_bytes(mutate(path, rng))
        print(json.dumps(dict(start=number, name=name)), file=report, flush=True)
        signal.alarm(SECONDS)
        problem = check_load(name, target, load, counts)
        signal.alarm(0)
        if events: problem = f'{name}: {events}'
        events.clear()
        print(json.dumps(dict(done=number, name=name, counts=counts, problem=problem)),
              file=report, flush=True)

def campaign(mutations, seed=0, start=0, verbose=False):
    "Load mutated files in child processes; return counts by loader, and failures."
    warnings.simplefilter('ignore')
    counts, failures = collections.defaultdict(collections.Counter), []
    memory = '/dev/shm' if Path('/dev/shm').is_dir() else None     # no disk has to keep up
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        home, began = Path(folder), time.monotonic()
        TEMPORARY.append(folder)
        seeds = make_seeds(home/'good')
        for files, load in seeds.values():
            for file in files: load(file)       # the good files load
        first = start
        while first < start + mutations:
            report = home/'report'
            last = min(first + CHUNK, start + mutations)
            child = os.fork()
            if child == 0:
                with open(report, 'w') as file, contextlib.suppress(BaseException):
                    run_chunk(seeds, range(first, last), seed, home/'mutated', file)
                    os._exit(0)
                os._exit(1)
            status = os.waitpid(child, 0)[1]
            lines = [json.loads(line) for line in report.read_text().splitlines()]
            for line in lines:
                if 'done' not in line: continue
                counts[line['name']].update(line['counts'])
                if line['problem']:
                    failures.append((line['done'], line['problem']))
                    if verbose: print(f'--- file {failures[-1][0]}\n{failures[-1][1]}', flush=True)
            last_done = max((line['done'] for line in lines if 'done' in line), default=first - 1)
            if status:       # a crash, or no end within the time
                what = f'signal {os.WTERMSIG(status)}' if os.WIFSIGNALED(status) else 'exit'
                last_done += 1
                failures.append((last_done, f"{lines[-1]['name'] if lines else ''}: {what}"))
                if verbose: print(f'--- file {last_done}\n{failures[-1][1]}', flush=True)
            first = last_done + 1
            if verbose and first // 5000 != last_done // 5000 - 1 and first % 5000 == 0:
                rate = (first - start) / (time.monotonic() - began)
                print(f'{first:,} files, {rate:.0f} a second, {len(failures)} failures', flush=True)
        seconds = time.monotonic() - began
    return counts, failures, seconds

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--mutations', type=int, default=100_000, help='number of files')
    parser.add_argument('--seed', type=int, default=0, help='equal seeds give equal files')
    parser.add_argument('--start', type=int, default=0, help='number of the first file')
    args = parser.parse_args()
    counts, failures, seconds = campaign(args.mutations, args.seed, args.start, verbose=True)
    kinds = sorted({kind for c in counts.values() for kind in c})
    print(f"{'loader':22}" + ''.join(f'{kind:>20}' for kind in kinds))
    for name, c in counts.items():
        print(f'{name:22}' + ''.join(f'{c[kind]:20,}' for kind in kinds))
    total = sum(sum(c.values()) for c in counts.values())
    print(f'{total:,} files in {seconds:.0f} s, {total/seconds:.0f} a second; '
          f'{len(failures)} failures')
    sys.exit(bool(failures))

if __name__ == '__main__': main()
