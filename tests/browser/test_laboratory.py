"The widgets in a browser: the tutorials, and the lifecycle of a training run."
import shutil

import nbformat
import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.support.ui import Select

from conftest import ROOT
from .pages import Page, write_notebook

SETUP = '''
import threading, torch
from sparse_ae import (FeatureExplorer, LossPlayground, SparseAutoencoder, TrainingDashboard,
                       compare_runs, digits, sweep, train_val_split)
train_data, val_data = train_val_split(digits())
def fresh():
    torch.manual_seed(0)
    return SparseAutoencoder(64, 40, hidden_dims=(), decoder_norm='atom')
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
    atom = next(b for b in atoms()[7:] if b.get_attribute('title') != 'latent 5')  # searched below
    number = atom.get_attribute('title').removeprefix('latent ')
    page.show(atom)
    atom.click()
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


TEXT = '''
import numpy as np, torch
from sparse_ae import FeatureExplorer, SparseAutoencoder, TopK
from sparse_ae.data import Rows

class Columns(Rows):
    "Rows with token ids, texts and positions, as an activation store has them."
    def __init__(self, rows, token_ids, samples, positions):
        self.rows, self.shape = rows, tuple(rows.shape)
        self.token_ids, self.samples, self.positions = token_ids, samples, positions
    def __getitem__(self, indices): return self.rows[indices]

words = 'the cat sat on a mat , and then it was read ##ing <script>alert(1)</script> .'.split()
generator = torch.Generator().manual_seed(0)
ids = torch.randint(0, len(words), (800,), generator=generator)
vectors = torch.randn(len(words), 32, generator=generator)
rows = vectors[ids] + 0.2*torch.randn(800, 32, generator=generator)
columns = Columns(rows, ids, torch.arange(800) // 40, torch.arange(800) % 40)
torch.manual_seed(0)
model = SparseAutoencoder(32, 60, hidden_dims=(), activation=TopK(4))
explorer = FeatureExplorer(model, columns, token_text=words, output_weights=vectors,
                           scores={'stability': np.linspace(0, 1, 60),
                                   'group': ['even', 'odd <b>']*30})
explorer
'''


def text_explorer():
    "Explorer of words, with output weights and scores."
    names = {}
    exec(TEXT, names)
    return names['explorer'].wait()


def points(page): return page.find('svg.map circle')


def test_text_view_of_the_exported_page(driver, tmp_path):
    explorer, page = text_explorer(), Page(driver)
    page.go(explorer.export_html(tmp_path/'page.html', 'Words', k=5).as_uri(), 1280)
    buttons = lambda: page.find('#atoms button')
    page.wait(lambda: len(buttons()) == 60, 'all latents')
    first = int(explorer.order()[0])
    use, = explorer.token_table(first, 1)
    table = page.find('#latent table')[0].text.split('\n')
    assert table[0] == 'token active on share mean activation'
    assert table[1] == f'{use.token} {use.count} {use.share:.1%} {use.mean:.3g}'
    assert len(page.find('#latent .context')) == 5 + 5       # the strongest, and quantiles
    for line in page.find('#latent .context'):
        assert len(line.find_elements('css selector', '.marked')) == 1
    marked = page.find('#latent .context .marked')[0].text.strip()
    assert marked == explorer.token(explorer.describe(first).top[0][1])
    assert not page.find('#latent script') and not page.find('#map[open]')[0].is_displayed()
    raised, score = explorer.output_scores(first).highest[0]
    assert f'{raised} {score:+.3g}' in page.find('#latent table')[2].text
    near = explorer.describe(first).nearest[0][0]
    page.find('#latent table button')[0].click()
    assert page.find('#latent h1')[0].text == f'Latent {near}'
    Select(page.find('#order')[0]).select_by_visible_text('stability')
    titles = [button.get_attribute('title').split(':')[0] for button in buttons()[:3]]
    assert titles == ['latent 59', 'latent 58', 'latent 57']
    buttons()[0].click()
    assert 'stability 1, group odd <b>' in page.find('#latent')[0].text
    page.screenshot('page_text_1280')
    assert page.errors() == []


@pytest.mark.parametrize('width', [1280, 800])
def test_map_of_the_exported_page(driver, tmp_path, width):
    "By mouse, also beside a point, and by keyboard."
    explorer, page = text_explorer(), Page(driver)
    path = explorer.export_html(tmp_path/'page.html', 'Words', k=3, with_map=True)
    page.go(path.as_uri(), width)
    page.wait(lambda: points(page), 'points')
    heading = lambda: page.find('#latent h1')[0].text
    number = lambda point: point.get_attribute('data-latent')
    assert len(points(page)) == int((explorer.stats.density > 0).sum())
    point = points(page)[7]
    click_beside(page, point, 2)
    assert heading() == f'Latent {number(point)}'
    assert [number(p) for p in points(page) if p.get_attribute('aria-pressed') == 'true'] == [
        number(point)]
    assert page.driver.switch_to.active_element == point
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_DOWN, Keys.ARROW_UP):
        page.driver.switch_to.active_element.send_keys(key)
    focused = page.driver.switch_to.active_element
    assert focused.tag_name == 'circle' and heading() == f'Latent {number(point)}'
    focused.send_keys(Keys.ENTER)
    assert heading() == f'Latent {number(focused)}'
    stops = [p for p in points(page) if p.get_attribute('tabindex') == '0']
    assert stops == [focused]
    before = focused.get_attribute('fill')
    Select(page.find('#color')[0]).select_by_visible_text('group')
    assert before != focused.get_attribute('fill')
    assert {p.get_attribute('fill') for p in points(page)} == {'#0072b2', '#e69f00'}
    assert 'odd <b>' in page.find('#legend')[0].text
    page.screenshot(f'page_map_{width}')
    assert page.errors() == []


def click_beside(page, point, distance):
    "Click some pixels to the left of the centre of a point."
    page.show(point)
    ActionChains(page.driver).move_to_element_with_offset(point, -distance, 0).click().perform()


def use_map(page, cell):
    "Compute the map, open a latent by click and by keyboard, and mark the latent of the slider."
    selected = lambda: page.readout(cell, 'latent')
    page.click('map', cell)
    page.wait(lambda: len(points(page)) > 10, 'the map')
    page.wait(lambda: page.widget('text', 'input', cell, 'latent').is_displayed(), 'its controls')
    for k in (5, 6):
        number = points(page)[k].get_attribute('data-latent')
        click_beside(page, points(page)[k], 1)
        page.wait(lambda: selected() == number, f'latent {number} in the slider')
        page.says(f'stability {int(number)/59:.3g}, group', cell)
    before = selected()
    focused = lambda: page.driver.switch_to.active_element
    assert focused().get_attribute('data-latent') == before
    moved = []
    for key in (Keys.ARROW_LEFT, Keys.ARROW_RIGHT, Keys.ARROW_UP, Keys.ARROW_DOWN):
        focused().send_keys(key)
        moved.append(focused().get_attribute('data-latent'))
    assert set(moved) - {before} and selected() == before
    focused().send_keys(Keys.ENTER)
    page.wait(lambda: selected() == moved[-1], 'the latent of the keyboard')
    page.says(f'stability {int(selected())/59:.3g}, group', cell)
    page.choose('stability', cell, 'colour')
    page.says('0.508', cell)     # in the legend


@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_text_and_map_in_jupyterlab(lab, theme):
    write_notebook(lab.root/'text.ipynb', 'Text', TEXT)
    notebook = lab.open('text.ipynb', theme, 1280)
    notebook.run(1)
    notebook.says('mean activation', 1)
    notebook.resize(1280, 1800)
    use_map(notebook, 1)
    notebook.screenshot(f'text_map_{theme}_1280')
    assert notebook.errors() == []


def test_text_and_map_in_voila(voila):
    write_notebook(voila.root/'text.ipynb', 'Text', TEXT)
    page = voila.open('text.ipynb', width=1280)
    page.wait(lambda: len(page.find('.jp-Cell')) > 1, 'the cells', 60)
    page.says('mean activation', 1)
    use_map(page, 1)
    page.screenshot('voila_text_map_1280')
    assert page.errors() == []
