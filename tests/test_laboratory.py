"Widgets outside a notebook, interrupted kernels, and the files of the explorer page."
import os
import shutil
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile

import pytest
import torch

from conftest import ROOT
from sparse_ae import FeatureExplorer, SparseAutoencoder, TrainingDashboard, digits, train_val_split

SCRIPT = '''
import torch
from sparse_ae import SparseAutoencoder, TrainingDashboard, digits, train_val_split
train_data, val_data = train_val_split(digits())
dashboard = TrainingDashboard(image_shape=(8, 8))
dashboard.fit(SparseAutoencoder(64, 20), train_data, val_data, EPOCHS, 3e-3, EPOCHS, seed=0)
'''


def python(source):
    wide = os.environ | dict(COLUMNS='200')      # the progress bar is not cut
    return subprocess.run([sys.executable, '-c', source], capture_output=True, text=True,
                          timeout=100, env=wide)


def test_a_script_prints_progress():
    done = python(SCRIPT.replace('EPOCHS', '5') + '''
print(dashboard.wait()['epochs_trained'])
import sys; print('ipywidgets' in sys.modules)''')
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['5', 'False']  # no widget is created
    assert 'training: 100%' in done.stderr and 'recon' in done.stderr


def test_a_script_that_does_not_wait_exits():
    done = python(SCRIPT.replace('EPOCHS', '10**6') + "print('the end')")
    assert (done.stdout, done.returncode) == ('the end\n', 0)


def test_a_script_can_exit_while_both_tasks_run():
    done = python(SCRIPT.replace('EPOCHS', '10**6') + """
from sparse_ae import FeatureExplorer
explorer = FeatureExplorer(SparseAutoencoder(64, 3000), torch.rand(100_000, 64))
raise SystemExit(4)""")
    assert done.returncode == 4, done.stderr


def test_an_explorer_can_be_used_during_its_pass():
    "In a separate process, which a race in torch would crash."
    done = python("""
import torch
from sparse_ae import FeatureExplorer, SparseAutoencoder
x, views = torch.rand(60_000, 64), 0
for k in range(4):
    explorer = FeatureExplorer(SparseAutoencoder(64, 60, hidden_dims=()), x)
    while not explorer.ended.is_set():
        for latent in range(8):
            view = explorer.describe(latent)
            assert bool(view.top) == bool(view.quantiles) == bool(view.histogram.any())
            views += 1
    explorer.wait()
print(views > 20)""")
    assert (done.stdout, done.returncode) == ('True\n', 0), done.stderr


def test_exploring_a_model_does_not_change_its_training():
    def final_state(explore):
        dashboard = TrainingDashboard()
        torch.manual_seed(0)
        model = SparseAutoencoder(64, 30, batch_norm=True)
        dashboard.fit(model, *train_val_split(digits()), 30, 1e-2, 30, seed=0, verbose=0)
        while explore and not dashboard.ended.is_set():
            FeatureExplorer(model, digits()).wait().steer(0, 0)
        dashboard.wait()
        return torch.cat([t.flatten().float() for t in model.state_dict().values()])
    assert torch.equal(final_state(True), final_state(False))


def run(*sources):
    "Execute cells in a kernel, and return them with their outputs."
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    nbclient.NotebookClient(nb, timeout=100, kernel_name='python3',
                            store_widget_state=False).execute()
    return nb.cells


def test_the_static_picture_shows_the_end_of_training():
    first, second = run(SCRIPT.replace('EPOCHS', '30'), 'history = await dashboard; dashboard')
    outputs = [next(o for o in cell.outputs if 'image/png' in o.get('data', {}))
               for cell in (first, second)]
    assert [o.data['text/plain'] for o in outputs] == [outputs[1].data['text/plain']]*2
    assert 'stopped by num_epochs: epoch 30 of 30' in outputs[0].data['text/plain']
    assert outputs[0].data['image/png'] == outputs[1].data['image/png']


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


@pytest.mark.parametrize('level', [0.8, 0.995])
def test_a_slider_sets_the_target_sparsity_level(level):
    "Its range contains the target of the run, also one beyond those that are usual."
    dashboard = TrainingDashboard()
    dashboard.pause()
    dashboard.fit(SparseAutoencoder(64, 20), *train_val_split(digits()), 10**6, 3e-3, 10**6,
                  verbose=0, sparsity_type='l1', target_sparsity_level=level)
    dashboard.paused_event.wait(60)
    panel = (dashboard.widget, dashboard.panel)[1]
    assert panel.sliders['target'].value == level and panel.sliders['sparsity_weight'].disabled
    panel.sliders['target'].value = 0.9
    dashboard.resume()
    for _ in range(1000):
        if dashboard._sparsity_target().level == 0.9: break
        time.sleep(0.01)
    dashboard.stop()
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'target_sparsity_level=0.9 is not reached')
        dashboard.wait()
    assert dashboard._sparsity_target().level == 0.9 and panel.sliders['target'].disabled


def test_bad_arguments_are_reported(tmp_path):
    with pytest.raises(TypeError, match="max_atoms must be a whole number, got 'all'"):
        TrainingDashboard(max_atoms='all')
    explorer = FeatureExplorer(SparseAutoencoder(64, 5), digits())
    with pytest.raises(ValueError, match="path must be a file's, got the folder"):
        explorer.export_html(tmp_path)


def test_wheel_and_sdist_contain_the_files_of_the_explorer_page(tmp_path):
    "Built from a copy, so that the checkout stays clean; the wheel is built from the sdist."
    for package in ('build', 'setuptools'): pytest.importorskip(package)
    copy = tmp_path/'copy'
    copy.mkdir()
    shutil.copytree(ROOT/'sparse_ae', copy/'sparse_ae',
                    ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'settings.ini', 'pyproject.toml', 'MANIFEST.in', 'README.md',
                 'CHANGELOG.md', 'LICENSE'): shutil.copy(ROOT/name, copy)
    done = subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir',
                           str(tmp_path/'dist'), str(copy)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    files = {f'sparse_ae/lab/{name}': (ROOT/'sparse_ae'/'lab'/name).read_bytes()
             for name in ('explorer_page.js', 'explorer_page.css', 'explorer_map.js')}
    with zipfile.ZipFile(next((tmp_path/'dist').glob('*.whl'))) as wheel:
        assert {name: wheel.read(name) for name in files} == files
    with tarfile.open(next((tmp_path/'dist').glob('*.tar.gz'))) as sdist:
        root = sdist.getnames()[0].split('/')[0]
        assert {name: sdist.extractfile(f'{root}/{name}').read() for name in files} == files
