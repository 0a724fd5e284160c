"""Resume training from the checkpoint of each of its steps, and compare with the whole run.

    python tests/faults/resumes.py [--configurations N] [--seed N]

The configurations are those of `kills.py`. A run keeps its checkpoint after each step and each
epoch. From each of them it is resumed, in this process, without a signal: what kills meet by
chance, this meets in any case. Model, history and log must be equal, bit for bit.
"""
import argparse
import os
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from kills import REFUSED, configurations, results, run

from sparse_ae import Callback
from sparse_ae.io import CHECKPOINT, Checkpoint


class KeepCheckpoints(Callback):
    "Writes a checkpoint after each step and each epoch, and keeps a copy of checkpoint and log."
    def __init__(self, folder): self.folder, self.copies = folder, []

    def before_fit(self, trainer):
        self.checkpoint, = (c for c in trainer.callbacks if isinstance(c, Checkpoint))
        self.checkpoint.minutes = None

    def keep(self, trainer):
        self.checkpoint._write(trainer)
        self.copies.append(self.folder/f'copy{len(self.copies)}')
        self.copies[-1].mkdir()
        for name in (CHECKPOINT, 'log.csv'):
            if (self.folder/name).exists(): shutil.copy(self.folder/name, self.copies[-1]/name)

    def after_step(self, trainer): self.keep(trainer)
    def after_epoch(self, trainer): self.keep(trainer)


def resume_from_each(c, folder, every=1):
    """Return the number of resumed runs, and the checkpoints from which the result differs.
    `every=n`: from each n-th checkpoint. `None` for a refused combination."""
    keep, pipe = KeepCheckpoints(folder/'whole'), os.open(os.devnull, os.O_RDWR)
    try:
        if run(c, folder/'whole', pipe, keep) == REFUSED: return None
        expected, differing, chosen = results(folder/'whole'), [], keep.copies[every-1::every]
        for copy in chosen:
            run(c, copy, pipe)
            if results(copy) != expected: differing.append(copy.name.removeprefix('copy'))
            shutil.rmtree(copy)
    finally: os.close(pipe)
    return len(chosen), differing


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--configurations', type=int, default=40)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    begin, done, resumed, wrong = time.monotonic(), 0, 0, 0
    for c in configurations(options.seed):
        if done >= options.configurations: break
        with tempfile.TemporaryDirectory() as folder: outcome = resume_from_each(c, Path(folder))
        if outcome is None: continue
        done, resumed, wrong = done + 1, resumed + outcome[0], wrong + len(outcome[1])
        print(f'{", ".join(map(str, c)):60}{outcome[0]:4} checkpoints',
              f'differs after {", ".join(outcome[1])}' if outcome[1] else 'equal', flush=True)
    print(f'\n{done} configurations, {resumed} resumed, {resumed - wrong} equal, '
          f'{time.monotonic() - begin:.0f} s')
    return bool(wrong)


if __name__ == '__main__': sys.exit(main())
