"""Short versions of memory.py and soak.py, and processes that fork after a training.

    python tests/faults/memory.py; python tests/faults/soak.py    # the long ones"""
import re
import subprocess
import sys

import memory
import pytest
from soak import soak


@pytest.fixture(scope='module')
def kernel():
    with memory.kernel() as started: yield started


def test_an_object_that_is_deleted_or_closed_frees_what_it_holds():
    source = memory.SETUP + ''.join(f'''
a, b = new_{kind}(), new_{kind}()
del a
b.close()
gc.collect()
print([type(reference()).__name__ for reference in held if reference() is not None],
      len(widgets_alive))
del b
held.clear()''' for kind in memory.KINDS)
    done = subprocess.run([sys.executable, '-c', source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(r'\[.*', done.stdout.replace('\x1b[2K\n', '')) == [   # of `clear_output`
        f"['{name}'] 0" for name in ('TrainingDashboard', 'FeatureExplorer', 'RunComparison',
                                     'LossPlayground')]


@pytest.mark.parametrize('kind,event', [
    ('dashboard', 'cell run again, a variable'), ('explorer', 'cell run again, no variable'),
    ('comparison', 'cell run again, display()'), ('playground', 'cell deleted'),
    ('dashboard', 'cell deleted')])
def test_a_cell_that_is_run_again_or_deleted_frees_its_widget(kernel, kind, event):
    source = memory.SHOWN[event].format(kind=kind)
    before = kernel.state()
    for k in range(2): kernel.run(source, 'cell 0' if event != 'cell deleted' else f'cell {k}')
    kernel.run('value = None', 'cell 0', ['cell 0', 'cell 1'])
    assert kernel.state()[:2] == before[:2]


def test_a_widget_without_a_variable_works_while_its_cell_shows_it(kernel):
    kernel.run('display(new_comparison(True))', 'shown')
    shown = 'next(r() for r in reversed(held) if type(r()).__name__ == "RunComparison")'
    assert kernel.run(f'gc.collect(); c = {shown}; c.atoms.value = b""; c.buttons[0].click(); '
                      'print(len(c.atoms.value) > 100); del c', 'other') == 'True\n'
    kernel.run('', 'other', ['shown'])
    assert kernel.state()[:2] == (0, 0)


def test_an_object_survives_when_another_cell_shows_or_names_it(kernel):
    kernel.run('value = new_explorer(True)\nvalue', 'first')
    kernel.run('value', 'second')
    kernel.run('pass', 'first')                # was edited: shows it no longer
    assert kernel.run('print(value.is_open)', 'third') == 'True\n'
    kernel.run('pass', 'second')               # no output shows it: the widget is made again
    assert kernel.run('print(value.is_open); value.show_latent(1); print(value.is_open)',
                      'third') == 'False\nTrue\n'
    kernel.run('del value', 'fourth')
    kernel.run('pass', 'third')
    assert kernel.state()[:2] == (0, 0)


def test_a_short_soak_is_flat(tmp_path):
    second, *_, last = soak(tmp_path, 4)[1:]
    assert last.epochs > second.epochs and last.temporary == 0
    assert (last.threads, last.handles) == (second.threads, second.handles)
    assert last.files <= 3 and last.megabytes < second.megabytes + 40


FORK = '''
import os, signal, sys, warnings
import torch
from sparse_ae import SparseAutoencoder, train_sparse_autoencoder_with_early_stopping as train

def work(_=None):
    history = train(SparseAutoencoder(64, 128), x, x[:100], 2, 1e-3, 2, verbose=0, seed=0)
    return history['epochs_trained']

warnings.simplefilter('ignore')
x = torch.rand(2000, 64)
if __name__ == '__main__':
    torch.set_num_threads(2)
    work()
    if not os.fork():
        signal.alarm(60)
        torch.set_num_threads(1)
        os._exit(work())
    print(os.waitstatus_to_exitcode(os.wait()[1]))
    import multiprocessing
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        print(pool.apply_async(work).get(timeout=90))
'''


def test_processes_after_a_training_with_two_threads(tmp_path):
    "The remedies of the troubleshooting: one thread in a forked process, or a spawned process."
    (tmp_path/'script.py').write_text(FORK)
    done = subprocess.run([sys.executable, tmp_path/'script.py'], capture_output=True, text=True,
                          timeout=200)
    assert done.stdout == '2\n2\n', done.stderr
