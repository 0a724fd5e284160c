"The widgets in a browser: the tutorials, and the lifecycle of a training run."
import shutil

import nbformat
import pytest

from conftest import ROOT
from .pages import Page, write_notebook

SETUP = '''
import threading, torch
from sparse_ae import (FeatureExplorer, LossPlayground, SparseAutoencoder, TrainingDashboard,
                       compare_runs, digits, sweep, train_val_split)
train_data, val_data = train_val_split(digits())
def fresh(): return SparseAutoencoder(64, 40, hidden_dims=(), decoder_norm='atom')
def trainings(): return sum(t.name == 'training' for t in threading.enumerate())
'''
FOREVER = '''
dashboard = TrainingDashboard(image_shape=(8, 8))
dashboard.fit(fresh(), train_data, val_data, 10**6, 3e-3, 10**6, 0.1, sparsity_type='l1', seed=0)
'''
EXPLORER = '''
explorer = FeatureExplorer(fresh(), digits(), image_shape=(8, 8))
explorer
'''


def tutorial(root, name):
    "Copy a tutorial, and return a function from a text to the index of its cell."
    shutil.copy(ROOT/'nbs'/'tutorials'/f'{name}.ipynb', root)
    cells = nbformat.read(root/f'{name}.ipynb', as_version=4).cells
    return lambda text: next(k for k, c in enumerate(cells)
                             if c.cell_type == 'code' and text in c.source)


def steer(page, cell):
    "Pause, move a slider, resume and stop; each must have its effect."
    page.says('training: epoch', cell)
    first = page.picture(cell)
    page.wait(lambda: page.picture(cell) != first, 'curves that move')
    page.click('Pause', cell)
    page.says('paused', cell)
    still = page.picture(cell)
    before = page.readout(cell, 'sparsity weight')
    page.move_slider(20, cell, 'sparsity weight')
    assert float(page.readout(cell, 'sparsity weight')) > 2*float(before)
    assert page.picture(cell) == still
    page.click('Resume', cell)
    page.wait(lambda: page.picture(cell) != still, 'curves that move again')
    page.click('Stop', cell)
    page.says('stopped by hand', cell)


@pytest.mark.parametrize('theme, width', [('light', 1280), ('dark', 800)])
def test_tutorial_watch(lab, theme, width):
    find = tutorial(lab.root, 'watch')
    notebook = lab.open('watch.ipynb', theme, width)
    start, wait = find('dashboard.fit('), find('history = await dashboard')
    notebook.run(find('import torch'))
    notebook.run(start)
    steer(notebook, start)
    notebook.screenshot(f'watch_{theme}_{width}')
    notebook.run(wait)
    notebook.says('stopped by hand', wait)
    notebook.run(find('targeted.fit('))
    notebook.run(find('history = await targeted'), 120)
    notebook.says('weight 0.', find('history = await targeted'))
    notebook.screenshot(f'watch_target_{theme}_{width}')
    assert notebook.errors() == []


@pytest.mark.parametrize('theme, width', [('dark', 1280), ('light', 800)])
def test_tutorial_latents(lab, theme, width):
    find = tutorial(lab.root, 'latents')
    notebook = lab.open('latents.ipynb', theme, width)
    notebook.run_all(240)
    explore(notebook, find('explorer = FeatureExplorer'))
    notebook.screenshot(f'latents_{theme}_{width}')
    wine = find('feature_names=')
    notebook.type('alcohol', wine, 'search')
    notebook.says('atoms 1 to', wine)
    notebook.screenshot(f'latents_names_{theme}_{width}')
    assert notebook.errors() == []


def explore(page, cell):
    "Select a latent by click, by number and by order, and scale it."
    atoms = lambda: [b for b in page.find('button.jupyter-button', cell)
                     if (b.get_attribute('title') or '').startswith('latent ')]
    selected = lambda: page.readout(cell, 'latent')
    page.wait(lambda: len(atoms()) > 10, 'atoms')
    first = page.picture(cell)
    number = atoms()[7].get_attribute('title').removeprefix('latent ')
    page.show(atoms()[7])
    atoms()[7].click()
    clicked = page.new_picture(first, cell)
    assert selected() == number
    page.type('5', cell, 'search')
    searched = page.new_picture(clicked, cell)
    assert selected() == '5'
    page.choose('similar', cell, 'order')
    page.wait(lambda: atoms()[0].get_attribute('title') == 'latent 5', 'the latent first')
    page.move_slider(1, cell, 'latent')
    page.new_picture(searched, cell)
    assert selected() == '6'
    steered = page.picture(cell, 1)
    page.move_slider(10, cell, 'scale')
    page.new_picture(steered, cell, 1)


def test_buttons_work_while_a_cell_waits(lab):
    write_notebook(lab.root/'wait.ipynb', 'Waiting', SETUP, FOREVER,
                   'print((await dashboard)["stopped_by"])')
    notebook = lab.open('wait.ipynb')
    notebook.run(1)
    notebook.run(2)
    notebook.says('training: epoch', 2)
    notebook.start(3)
    notebook.click('Stop', 2)
    notebook.says('hand', 3)


def test_lifecycle_of_training_runs(lab):
    "A cell is run again, two runs are concurrent, an output is cleared, the kernel restarts."
    write_notebook(lab.root/'around.ipynb', 'Training runs', SETUP, FOREVER,
                   FOREVER.replace('dashboard', 'other'), 'print("trainings:", trainings())',
                   'dashboard')
    notebook = lab.open('around.ipynb', width=800)
    for cell in (1, 2, 2, 4): notebook.run(cell)
    notebook.says('trainings: 1', 4)            # running the cell again ended the first run
    for cell in (3, 4): notebook.run(cell)
    notebook.says('trainings: 2', 4)            # another cell: concurrent runs
    moving = {cell: notebook.picture(cell) for cell in (2, 3)}
    for cell in (2, 3): notebook.wait(lambda: notebook.picture(cell) != moving[cell], 'both move')
    notebook.screenshot('two_dashboards_light_800')
    notebook.clear_outputs(2)
    notebook.wait(lambda: notebook.output(2) == '', 'a cell without output')
    notebook.run(5)                              # displayed again, still connected
    steer(notebook, 5)
    def one_left():   # the thread ends shortly after the status is shown
        notebook.run(4)
        return 'trainings: 1' in notebook.output(4)
    notebook.wait(one_left, 'the end of the thread')
    notebook.restart()                           # while the other one runs
    for cell in (1, 4): notebook.run(cell)
    notebook.says('trainings: 0', 4)
    notebook.run(3)
    notebook.says('training: epoch', 3)
    assert notebook.errors() == []


def test_an_error_in_training_is_shown(lab):
    write_notebook(lab.root/'error.ipynb', 'An error', SETUP,
                   FOREVER.replace('3e-3', '1e30'), 'dashboard.wait()')
    notebook = lab.open('error.ipynb')
    notebook.run(1)
    notebook.run(2)
    notebook.says('TrainingDiverged: the loss became NaN or infinite', 2)
    notebook.run(3)
    notebook.says('TrainingDiverged', 3)


def test_playground_and_comparison(lab):
    write_notebook(
        lab.root/'play.ipynb', 'Playground', SETUP, "LossPlayground('l1')", '''
runs = sweep(fresh, train_data, val_data, dict(sparsity_weight=[0.1, 1.]), sparsity_type='l1',
             num_epochs=10, learning_rate=3e-3, patience=10, verbose=0)
compare_runs(runs, (8, 8))''')
    notebook = lab.open('play.ipynb', 'dark')
    notebook.run_all()
    before = notebook.picture(2)
    notebook.move_slider(-30, 2, 'z₁')
    dragged = notebook.new_picture(before, 2)
    notebook.choose('hoyer', 2, 'penalty')
    notebook.new_picture(dragged, 2)
    notebook.screenshot('playground_dark_1280')
    opened = notebook.picture(3, 1)
    notebook.click('sparsity_weight 1.0', 3)
    notebook.new_picture(opened, 3, 1)
    notebook.screenshot('comparison_dark_1280')
    assert notebook.errors() == []


def test_voila(voila):
    "Both widgets on a Voila page."
    write_notebook(voila.root/'laboratory.ipynb', 'Laboratory', SETUP, FOREVER, EXPLORER)
    page = voila.open('laboratory.ipynb', width=1280)
    page.wait(lambda: len(page.find('.jp-Cell')) > 3, 'the cells', 60)
    steer(page, 2)
    explore(page, 3)
    page.screenshot('voila_light_1280')
    assert page.errors() == []


@pytest.mark.parametrize('width', [1280, 800])
def test_exported_page(driver, tmp_path, width):
    "Opened as a file, without a kernel or a server."
    import torch
    from sparse_ae import FeatureExplorer, SparseAutoencoder, digits
    torch.manual_seed(0)
    explorer = FeatureExplorer(SparseAutoencoder(64, 60), digits(), image_shape=(8, 8))
    path = explorer.export_html(tmp_path/'page.html')
    page = Page(driver)
    page.go(path.as_uri(), width)
    heading = lambda: page.find('#latent h1')[0].text
    page.wait(lambda: len(page.find('#atoms button')) == 60, 'all atoms')
    page.find('#atoms button')[3].click()
    assert heading() == page.find('#atoms button')[3].get_attribute('title').capitalize()
    page.find('#search')[0].send_keys('17')
    assert [heading(), len(page.find('#atoms button'))] == ['Latent 17', 1]
    page.screenshot(f'page_search_{width}')
    page.find('#search')[0].clear()
    page.find('#search')[0].send_keys(' ')
    page.find('#order option')[3].click()
    near = [figure.text.split(' ')[0] for figure in page.find('#latent figcaption')][-8:]
    titles = [b.get_attribute('title') for b in page.find('#atoms button')[:9]]
    assert titles == [f'latent {k}' for k in ('17', *near)]
    page.find('#latent figure button')[0].click()
    assert heading() == f'Latent {near[0]}'
    page.screenshot(f'page_{width}')
    assert page.errors() == []


def test_exported_page_keeps_text_as_text(driver, tmp_path):
    from sparse_ae import FeatureExplorer, SparseAutoencoder, digits
    hostile = '</script><script>document.title = "hacked"</script><b>'
    tokens = [[hostile, 'two', '<img src=x onerror=alert(1)>']*10, ['x']*20]
    explorer = FeatureExplorer(SparseAutoencoder(64, 20), digits()[:50], tokens=tokens)
    page = Page(driver)
    page.go(explorer.export_html(tmp_path/'page.html', hostile).as_uri(), 800)
    page.wait(lambda: page.find('.context'), 'contexts')
    assert page.driver.title == hostile and not page.find('#latent b, #latent img')
    assert hostile in page.find('#latent')[0].text
    page.find('#search')[0].send_keys('onerror')
    page.screenshot('page_tokens_800')
    assert page.errors() == []
