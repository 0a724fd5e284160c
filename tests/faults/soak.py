"""A long training of short epochs with dashboard, log file and checkpoints: what a process holds.

    python tests/faults/soak.py --minutes 120     # prints a line ten times, and the verdict
"""
import argparse
import gc
import os
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from sparse_ae import (Callback, FeatureExplorer, LogFile, SparseAutoencoder, StopTraining,
                       TrainingDashboard, Trainer, evaluate_sparse_autoencoder)


class Held(NamedTuple):
    "Resources that the process holds."
    epochs:int        # Epochs trained
    megabytes:float   # Resident memory without the history
    threads:int       # Python threads
    handles:int       # Open file descriptors
    files:int         # Files in the folder of the run
    temporary:int     # Temporary files there


def megabytes():
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 1e6


class Watch(Callback):
    "Measures what the process holds, at equal times, and ends training at the last one."
    def __init__(self, folder, seconds, times=10, report=lambda held: None):
        self.folder, self.report, self.measured = Path(folder), report, []
        self.times, self.start = [seconds*(k + 1)/times for k in range(times)], None

    def history_megabytes(self, trainer):   # lists of floats, one entry an epoch; see the page
        lists = [values for values in trainer.history.values() if isinstance(values, list)]
        return sum(sys.getsizeof(values) + sys.getsizeof(0.)*len(values) for values in lists) / 1e6

    def after_epoch(self, trainer):
        if self.start is None: self.start = time.monotonic()   # the first epoch imports much
        if time.monotonic() - self.start < self.times[0]: return
        gc.collect()
        files = [path.name for path in self.folder.rglob('*') if path.is_file()]
        temporary = sum('.tmp' in name for name in files)
        self.measured.append(Held(
            trainer.epoch, megabytes() - self.history_megabytes(trainer), threading.active_count(),
            len(os.listdir('/proc/self/fd')), len(files) - temporary, temporary))
        self.report(self.measured[-1])
        del self.times[0]
        if not self.times: raise StopTraining('soak')


class Look(Callback):
    "Evaluates the model and explores it from time to time, as a user beside the training."
    def __init__(self, data, every): self.data, self.every = data, every

    def after_epoch(self, trainer):
        if trainer.epoch % self.every: return
        evaluate_sparse_autoencoder(trainer.model, self.data)
        explorer = FeatureExplorer(trainer.model, self.data, page=8)
        explorer.wait()
        explorer.picture()


def soak(folder, seconds, report=lambda held: None):
    "Train for some seconds; return the measurements."
    torch.manual_seed(0)
    x = torch.rand(640, 32)
    watch = Watch(folder, seconds, report=report)
    dashboard = TrainingDashboard(every=0.1, share=0.2)
    dashboard.widget
    model = SparseAutoencoder(32, 16)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        Trainer(model, x[:512], x[512:], 10**9, 1e-4, 10**9, seed=0, batch_size=128, verbose=0,
                checkpoint_dir=str(folder), checkpoint_epochs=25,
                callbacks=[dashboard, LogFile(Path(folder)/'log.csv'), Look(x, 500), watch]).fit()
    return watch.measured


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--minutes', type=float, default=120)
    minutes = parser.parse_args().minutes
    print(*Held._fields, sep='\t')
    with tempfile.TemporaryDirectory() as folder:
        measured = soak(folder, 60*minutes, lambda held: print(
            *(f'{v:.1f}' if isinstance(v, float) else v for v in held), sep='\t', flush=True))
    second, last = measured[1], measured[-1]
    print(f'{last.epochs - second.epochs} epochs after the warm-up: '
          f'{last.megabytes - second.megabytes:+.1f} MB, '
          f'{last.threads - second.threads:+d} threads, '
          f'{last.handles - second.handles:+d} handles, {last.files - second.files:+d} files, '
          f'{last.temporary} temporary files')


if __name__ == '__main__': main()
