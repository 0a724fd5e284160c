"""Memory of a process that makes widgets again and again; prints a table.

    python tests/faults/memory.py              # 200 of each kind, about half an hour
    python tests/faults/memory.py --n 20 explorer
"""
import argparse
import subprocess
import sys
from contextlib import contextmanager

from jupyter_client.manager import start_new_kernel

SETUP = '''
import gc, os, warnings, weakref
import torch
import ipywidgets.widgets.widget as widgets
from sparse_ae import (FeatureExplorer, LossPlayground, SparseAutoencoder, TrainingDashboard,
                       compare_runs, evaluate_sparse_autoencoder)
from sparse_ae.lab.display import RUNNING_TASKS

warnings.simplefilter('ignore')
# an attribute of the class in ipywidgets 8.0.0
widgets_alive = (widgets._instances if hasattr(widgets, '_instances')
                 else widgets.Widget._active_widgets)
torch.set_num_threads(1)
held, x = [], torch.rand(1000, 100)

def watch(*values): held.extend(map(weakref.ref, values))

def new_dashboard(display=False):
    "A dashboard whose training has ended; watched are trainer, model, optimiser and data."
    model, data, dashboard = SparseAutoencoder(100, 300), x.clone(), TrainingDashboard()
    if not display: dashboard.widget
    dashboard.fit(model, data, x[:100], 2, 1e-3, 2, verbose=0)
    dashboard.wait()
    dashboard.picture()
    watch(dashboard, dashboard.trainer, model, dashboard.trainer.optimizer, data)
    return dashboard

def new_explorer(display=False):
    data = x.clone()
    explorer = FeatureExplorer(SparseAutoencoder(100, 60), data, page=12).wait()
    if not display: explorer.picture()
    watch(explorer, explorer.model, data, explorer.stats)
    return explorer

def new_comparison(display=False):
    model = SparseAutoencoder(100, 60)
    results = evaluate_sparse_autoencoder(model, x)
    history = dict(val_recon_loss=[1.], val_l0=[1.], epochs_trained=1)
    comparison = compare_runs({'a': dict(history=history, results=results, model=model)})
    watch(comparison, model)
    return comparison

def new_playground(display=False):
    playground = LossPlayground('l1')
    watch(playground)
    return playground

def state():
    "Objects that still exist, widgets that are open, resident memory in MB."
    pages = int(open('/proc/self/statm').read().split()[1])
    return (sum(reference() is not None for reference in held), len(widgets_alive),
            pages * os.sysconf('SC_PAGE_SIZE') / 1e6)
'''
KINDS = 'dashboard', 'explorer', 'comparison', 'playground'

SCRIPT = '''
for i in range(1, {n} + 1):
    value = new_{kind}()
    {end}
    value = None
    if i in ({first}, {n}):
        gc.collect()
        print(*state(), flush=True)
'''
ENDS = {'its variable is rebound': '', 'close()': "kept = [*globals().get('kept', ()), value]; "
                                                  'value.close()'}


def in_a_script(kind, end, n, first):
    "Objects, widgets and memory after `first` and after `n` widgets of a process."
    source = SETUP + SCRIPT.format(kind=kind, end=ENDS[end], n=n, first=first)
    done = subprocess.run([sys.executable, '-c', source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [tuple(map(float, line.split())) for line in done.stdout.splitlines()]


class Kernel:
    "A kernel that gets cells with their ids, as JupyterLab sends them."
    def __init__(self, client): self.client = client

    def run(self, source, cell=None, deleted=(), timeout=100):
        "Execute a cell; return what it printed. Raises `RuntimeError` for an exception."
        session, channel = self.client.session, self.client.shell_channel
        content = dict(code=source, silent=False, store_history=True, user_expressions={},
                       allow_stdin=False, stop_on_error=True)
        metadata = {} if cell is None else dict(cellId=cell, deletedCells=[*deleted])
        message = session.msg('execute_request', content, metadata=metadata)
        channel.send(message)
        text, id = '', message['header']['msg_id']
        while True:
            reply = self.client.get_iopub_msg(timeout=timeout)
            if reply['parent_header'].get('msg_id') != id: continue
            kind, content = reply['msg_type'], reply['content']
            if kind == 'stream' and content['name'] == 'stdout': text += content['text']
            if kind == 'error': raise RuntimeError('\n'.join(content['traceback']))
            if kind == 'status' and content['execution_state'] == 'idle': break
        self.client.get_shell_msg(timeout=timeout)
        return text

    def state(self):
        return tuple(map(float, self.run('gc.collect(); print(*state())').split()))


@contextmanager
def kernel():
    "A new kernel, in which `SETUP` has run."
    manager, client = start_new_kernel(kernel_name='python3')
    try:
        started = Kernel(client)
        started.run(SETUP, 'setup')
        yield started
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


SHOWN = {  # cells that show a widget, and what a user does with it
    'cell run again, a variable': 'value = new_{kind}(True)\nvalue',
    'cell run again, no variable': 'new_{kind}(True)',
    'cell run again, display()': 'display(new_{kind}(True))',
    'cell deleted': 'new_{kind}(True)',
}


def in_a_kernel(kind, event, n, first):
    "The same, of cells that are executed in a kernel."
    states, source = [], SHOWN[event].format(kind=kind)
    with kernel() as k:
        for i in range(1, n + 1):
            if event == 'cell deleted': k.run(source, f'cell {i}', [f'cell {i - 1}'])
            else: k.run(source, 'cell')
            if i in (first, n): states.append(k.state())
    return states


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('kinds', nargs='*', default=KINDS)
    parser.add_argument('--n', type=int, default=200)
    options = parser.parse_args()
    n, first = options.n, max(1, options.n // 10)
    print(f'| widget | ends by | objects kept after {n} | widgets open | MB after {first} | '
          f'MB after {n} |\n|---|---|---|---|---|---|')
    for kind in options.kinds:
        for event in (*ENDS, *SHOWN):
            measure = in_a_script if event in ENDS else in_a_kernel
            (*_, before), (objects, widgets, after) = measure(kind, event, n, first)
            print(f'| {kind} | {event} | {objects:.0f} | {widgets:.0f} | {before:.0f} | '
                  f'{after:.0f} |', flush=True)


if __name__ == '__main__': main()
