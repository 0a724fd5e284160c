"The widgets where there is no notebook, and kernels that are restarted or interrupted."
import subprocess
import sys

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from sparse_ae import FeatureExplorer, SparseAutoencoder, TrainingDashboard, digits, train_val_split

SCRIPT = '''
import torch
from sparse_ae import SparseAutoencoder, TrainingDashboard, digits, train_val_split
train_data, val_data = train_val_split(digits())
dashboard = TrainingDashboard(image_shape=(8, 8))
dashboard.fit(SparseAutoencoder(64, 20), train_data, val_data, EPOCHS, 3e-3, EPOCHS, seed=0)
'''


def python(source):
    return subprocess.run([sys.executable, '-c', source], capture_output=True, text=True,
                          timeout=100)


def test_a_script_prints_progress():
    done = python(SCRIPT.replace('EPOCHS', '5') + '''
print(dashboard.wait()['epochs_trained'])
import sys; print('ipywidgets' in sys.modules)''')
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['5', 'False']  # nor is a widget made
    assert 'training: 100%' in done.stderr and 'recon' in done.stderr


def test_a_script_that_does_not_wait_ends():
    done = python(SCRIPT.replace('EPOCHS', '10**6') + "print('the end')")
    assert (done.stdout, done.returncode) == ('the end\n', 0)


def test_a_script_that_ends_in_the_middle_of_both_ends_well():
    done = python(SCRIPT.replace('EPOCHS', '10**6') + """
from sparse_ae import FeatureExplorer
explorer = FeatureExplorer(SparseAutoencoder(64, 3000), torch.rand(100_000, 64))
raise SystemExit(4)""")
    assert done.returncode == 4, done.stderr


def test_an_explorer_can_be_used_during_its_pass():
    "In a process of its own: a race in torch would end it."
    done = python("""
import torch
from sparse_ae import FeatureExplorer, SparseAutoencoder
x, looked = torch.rand(60_000, 64), 0
for k in range(4):
    explorer = FeatureExplorer(SparseAutoencoder(64, 60, hidden_dims=()), x)
    while not explorer.ended.is_set():
        for latent in range(8):
            view = explorer.describe(latent)
            assert bool(view.top) == bool(view.quantiles) == bool(view.histogram.any())
            looked += 1
    explorer.wait()
print(looked > 20)""")
    assert (done.stdout, done.returncode) == ('True\n', 0), done.stderr


def test_looking_at_a_model_does_not_change_its_training():
    def end(look):
        dashboard = TrainingDashboard()
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 30, batch_norm=True)
        dashboard.fit(model, *train_val_split(digits()), 30, 1e-2, 30, seed=0, verbose=0)
        while look and not dashboard.ended.is_set():
            FeatureExplorer(model, digits()).wait().steer(0, 0)
        dashboard.wait()
        return torch.cat([t.flatten().float() for t in model.state_dict().values()])
    assert torch.equal(end(True), end(False))


def run(*sources):
    "The outputs of cells, each as text, from a kernel."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    NotebookClient(nb, timeout=100, kernel_name='python3', store_widget_state=False).execute()
    return nb.cells


def test_what_stays_in_the_notebook_is_the_end():
    first, second = run(SCRIPT.replace('EPOCHS', '30'), 'history = await dashboard; dashboard')
    shown = [next(o for o in cell.outputs if 'image/png' in o.get('data', {}))
             for cell in (first, second)]
    assert [o.data['text/plain'] for o in shown] == [shown[1].data['text/plain']]*2
    assert 'stopped by num_epochs: epoch 30 of 30' in shown[0].data['text/plain']
    assert shown[0].data['image/png'] == shown[1].data['image/png']


@pytest.mark.parametrize('how', ['await dashboard', 'dashboard.wait()'])
def test_an_interrupt_while_waiting_stops_training(how):
    *_, last = run(SCRIPT.replace('EPOCHS', '10**6'), f'''
import threading, signal, os
threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
try: {how}
except BaseException: pass
dashboard.ended.wait(10)
print(dashboard.ended.is_set(), dashboard.trainer.stopped_by)''')
    assert last.outputs[-1].text == 'True hand\n'


def test_mistakes_are_named_at_once(tmp_path):
    with pytest.raises(TypeError, match="max_atoms must be a whole number, got 'all'"):
        TrainingDashboard(max_atoms='all')
    explorer = FeatureExplorer(SparseAutoencoder(64, 5), digits())
    with pytest.raises(ValueError, match="path must be a file's, got the folder"):
        explorer.export_html(tmp_path)
