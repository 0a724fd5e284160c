"Checks of the repository: modules, notebooks, pages, README and the documented interface."
import ast
import importlib
import inspect
import json
import re
import subprocess
import sys

import api
import check_site
import docs
import english
import nbformat
import notebooks
import pytest
import sizes
import torch
import yaml
from nbdev.export import nb_export
from pybtex.database import parse_file

import sparse_ae
from conftest import ROOT


def test_exported_modules_equal_what_the_notebooks_export(tmp_path):
    for path in notebooks.notebooks(): nb_export(path, lib_path=tmp_path/'sparse_ae')
    modules = lambda folder: {p.relative_to(folder).as_posix(): p.read_text()
                              for p in folder.rglob('*.py') if not p.name.startswith('_')}
    exported, committed = modules(tmp_path/'sparse_ae'), modules(ROOT/'sparse_ae')
    assert sorted(exported) == sorted(committed)
    # the path from module to notebook in the comments depends on where the module is written
    bare = lambda text: re.sub(r'^(# %% )\S*?nbs/|(File to edit: )\S*?nbs/', r'\1\2nbs/', text,
                               flags=re.M)
    for name in exported:
        assert bare(exported[name]) == bare(committed[name]), f'{name}: make export'


@pytest.mark.parametrize('path', notebooks.notebooks(), ids=lambda p: p.stem)
def test_notebook_is_clean(path):
    nb = nbformat.read(path, as_version=4)
    assert notebooks.faults(nb) == []
    drawn = [c for c in nb.cells if c.cell_type == 'code'
             and re.search(r'^(interact_figure|plot_\w+)\(.*\)$',
                           c.source.splitlines()[-1] if c.source else '')]
    for cell in drawn:
        assert any('image/png' in o.get('data', {}) for o in cell.outputs), \
            f'not executed: {cell.source}'


def test_a_spoilt_notebook_is_not_clean():
    nb = nbformat.read(ROOT/'nbs'/'lab'/'01_widgets.ipynb', as_version=4)
    cell = next(c for c in nb.cells if c.cell_type == 'code')
    for spoil in (lambda: cell.update(execution_count=3),
                  lambda: cell.update(source='x = 1' + 100*' ' + '# far away'),
                  lambda: [c.update(source='') for c in nb.cells if 'colab' in c.source],
                  lambda: nb.metadata.update(widgets={'state': {}}),
                  lambda: cell.update(outputs=[nbformat.v4.new_output(
                      'stream', name='stdout', text=str(ROOT/'data'))]),
                  lambda: cell.update(outputs=[nbformat.v4.new_output(
                      'error', ename='E', evalue='', traceback=[])]),
                  lambda: cell.update(outputs=[nbformat.v4.new_output(
                      'display_data',
                      data={notebooks.WIDGET: {}, 'text/plain': 'interactive(children=())'})])):
        before = nbformat.from_dict(json.loads(json.dumps(nb)))
        spoil()
        assert notebooks.faults(nb), 'not noticed'
        nb, cell = before, next(c for c in before.cells if c.cell_type == 'code')


def test_readme_is_what_the_index_says():
    text, pictures = notebooks.readme()
    assert (ROOT/'README.md').read_text(encoding='utf-8') == text, 'make readme'
    assert {p.relative_to(ROOT).as_posix(): p.read_bytes()
            for p in (ROOT/'README_files').iterdir()} == pictures
    for target in re.findall(r'\]\(([^)#]+)\)', text):
        assert target.startswith('http') or (ROOT/target).exists(), target


def test_readme_names_every_make_target():
    targets = set(re.findall(r'^([a-z]+):.*##', (ROOT/'Makefile').read_text(), flags=re.M))
    for name in re.findall(r'`make (\w+)`', (ROOT/'README.md').read_text()):
        assert name in targets, name


def test_site_configuration_is_one_file():
    assert ((ROOT/'nbs'/'_quarto.yml').is_symlink()
            and (ROOT/'nbs'/'_quarto.yml').resolve() == ROOT/'_quarto.yml')


def test_version_is_the_same_everywhere():
    assert f'version = {sparse_ae.__version__}\n' in (ROOT/'settings.ini').read_text()
    assert f'## {sparse_ae.__version__}' in (ROOT/'CHANGELOG.md').read_text()


def test_import_is_light():
    heavy = ('matplotlib.pyplot', 'ipywidgets', 'IPython', 'transformers', 'sklearn', 'scipy',
             'pandas')
    code = f'import sys, sparse_ae; print([m for m in {heavy} if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


# a module may import modules of earlier entries; those of one entry do not import each other
LAYERS = ('validation interrupts', 'files', 'scaling', 'losses activations data targets', 'models hub',
          'callbacks regularizers',
          'io sparsity_control', 'options', 'training', 'eval_viz', 'presets sweeps export', 'sklearn',
          'measures', 'engines.triton_kernels', 'engines.dense', 'engines.sparse_codes',
          'engines.unrolled engines.elimination engines.cuda_graphs', 'engines.stacked',
          'lab.display lab.text lab.map', 'lab.dashboard lab.latents', 'lab.explorer', 'lab.figures',
          'lab.panel', 'lab.page', 'lab.widgets cli frames',
          'networks.hooks', 'networks.store', 'networks.capture networks.splice', 'networks.cli',
          'networks.conversions', 'networks.format_files', 'networks.saelens', 'networks.formats', 'networks.viewers')


def imports(path):
    "Return the modules of this library that a module imports, also within functions."
    name = path.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.')
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level: continue
        package = name.split('.')[:-node.level]
        module = '.'.join([*package[1:], *([node.module] if node.module else [])])
        found |= {module} if module else {alias.name for alias in node.names}
    return found


def test_imports_point_one_way():
    rank = {name: n for n, layer in enumerate(LAYERS) for name in layer.split()}
    for path in (ROOT/'sparse_ae').rglob('*.py'):
        name = '.'.join(path.relative_to(ROOT/'sparse_ae').with_suffix('').parts)
        if path.name.startswith('_'): continue
        assert name in rank, f'{name} has no place in LAYERS'
        for module in imports(path):
            assert rank.get(module, 99) < rank[name], f'{name} imports {module}'


def test_optional_packages_have_an_extra():
    "`require` names extras of `setup.py`, which are installed from `settings.ini`."
    setup, settings = ((ROOT/name).read_text() for name in ('setup.py', 'settings.ini'))
    named = {extra for path in (ROOT/'sparse_ae').rglob('*.py')
             for extra in re.findall(r"require\('[\w.]+', '(\w+)'\)", path.read_text())}
    assert named >= {'hf', 'sklearn'}
    for extra in named: assert f'{extra}_requirements =' in settings and f"'{extra}'" in setup


CORE = 'models losses training eval_viz activations data callbacks'


def hardware(name, source):
    "Return the words of a core module that belong into an engine or a widget."
    allowed = r'device\.type' if name == 'data' else '$^'   # to move rows to the device
    found = re.findall(r'\bdevice\.type\b|\btriton\w*|\b(?:import|from) \S*\b(?:engines|lab)\b',
                       source, re.I)
    return [word for word in found if not re.fullmatch(allowed, word)]


@pytest.mark.parametrize('name', CORE.split())
def test_core_contains_no_hardware(name):
    assert hardware(name, (ROOT/'sparse_ae'/f'{name}.py').read_text(encoding='utf-8')) == []


def test_hardware_in_a_core_module_is_found():
    for source in ('if x.device.type == "cuda": pass', 'from .engines.sparse_codes import top_k',
                   'def f():\n    from sparse_ae.lab import widgets', 'import triton',
                   'triton_kernels.unit_norm_(W)'):
        assert hardware('models', source), source
    assert hardware('data', 'x.device.type') == []
    assert hardware('data', 'import triton')


INTERFACE = {
    'SparseAutoencoder':
        "input_dim, latent_dim, device='cpu', dtype=torch.float32, *, hidden_dims=None, "
        "activation='relu', decoder_norm='row'",
    'TiedWeightSparseAutoencoder':
        "input_dim, latent_dim, device='cpu', dtype=torch.float32, *, hidden_dims=None, "
        "activation='relu', decoder_norm='row'",
    'SparseAutoencoder.l1_sparsity_loss': 'z, target_sparsity=0.05',
    'SparseAutoencoder.kl_divergence_sparsity_loss': 'z, target_sparsity=0.05, epsilon=1e-10',
    'SparseAutoencoder.hoyer_sparsity_loss': 'z',
    'SparseAutoencoder.forward': 'self, x', 'SparseAutoencoder.encode': 'self, x',
    'SparseAutoencoder.decode': 'self, z',
    'SparseAutoencoder.normalize_decoder_weights_row_wise': 'self',
    'TiedWeightSparseAutoencoder.normalize_weights_row_wise': 'self',
    'train_sparse_autoencoder_with_early_stopping':
        "model, train_data, val_data, num_epochs, learning_rate, patience, sparsity_weight=0.1, "
        "target_sparsity=0.05, sparsity_type='kl', device=None",
    'evaluate_sparse_autoencoder': "model, test_data, device=None",
    'plot_sparse_training_history': 'history, save_path=None',
    'plot_sparse_autoencoder_analysis': "results, model_name='Sparse Autoencoder', save_path=None"}


@pytest.mark.parametrize('name', INTERFACE)
def test_interface_that_users_know(name):
    thing = sparse_ae
    for part in name.split('.'): thing = getattr(thing, part)
    exec(f'def promised({INTERFACE[name]}): pass', {'torch': torch}, space := {})
    promised = list(inspect.signature(space['promised']).parameters.values())
    actual = list(inspect.signature(thing).parameters.values())
    for p, a in zip(promised, actual):
        assert (p.name, p.default, p.kind) == (a.name, a.default, a.kind)
    assert (len(actual) >= len(promised)
            and all(a.kind is a.KEYWORD_ONLY for a in actual[len(promised):]))


def test_public_functions_are_documented():
    for path in (ROOT/'sparse_ae').rglob('[!_]*.py'):
        name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        module = importlib.import_module(name)
        for name in module.__all__:
            if callable(getattr(module, name)):
                assert getattr(module, name).__doc__, f'{path.stem}.{name}'


def test_star_import_brings_the_public_names_only(monkeypatch):
    assert star_import_faults() == []
    for names in (['training'], ['Trainer', 'Trainer']):   # a submodule, a repetition
        monkeypatch.setattr(sparse_ae, '__all__', [*sparse_ae.__all__, *names])
        assert star_import_faults(), 'not found'


def star_import_faults():
    "Return the names that `from sparse_ae import *` should not bring or brings twice."
    exec('from sparse_ae import *', names := {})
    del names['__builtins__']
    twice = [name for name in names if sparse_ae.__all__.count(name) > 1]
    return [*(set(names) ^ set(sparse_ae.__all__)), *twice,
            *(name for name, thing in names.items() if inspect.ismodule(thing))]


def test_page_lists_the_public_names(monkeypatch):
    assert api.PAGE.read_text(encoding='utf-8') == api.text(), 'make export'
    modules = api.pages()
    assert sorted(modules) == sorted(m for task in api.TASKS for m in api.modules_of(task, modules))
    listed = re.findall(r'^\| \[`(\w+)`\]', api.text(), re.M)
    assert sorted(listed) == sorted(sparse_ae.__all__)
    monkeypatch.setattr(sparse_ae, '__all__', sparse_ae.__all__[1:])
    assert api.PAGE.read_text(encoding='utf-8') != api.text()


def test_english_is_plain():
    assert [finding for path in english.sources() for finding in english.findings(path)] == []


NOT_PLAIN = {   # Python code: a finding
    'def f():\n    "What the encoder makes of `x`."': 'begins with What',
    'def f(x):   # Of each prefix\n    pass': 'begins with Of',
    '# Along which\n': 'begins with Along',
    'class A:\n    "A trainer, which starts anew."': 'anew', "# one's own\n": "one's own",
    'def f(x):   # Is it welcome?\n    pass': 'ends with a question mark',
    '# the run\n# goes\n# on\n': 'goes on', '"A module for whoever reads it."': 'whoever'}


@pytest.mark.parametrize('source', NOT_PLAIN)
def test_english_that_is_not_plain_is_found(source):
    assert NOT_PLAIN[source] in [phrase for _, phrase in english.code_findings(source)]


def test_english_of_pages_is_checked_outside_code():
    assert english.page_findings('# What is a code?\n\nA run\ngoes on.') == [(4, 'goes on')]
    assert english.page_findings('`anew` and\n```\nanew\n```\n') == []
    assert english.code_findings('x = "anew"  # a string is no comment') == []


def test_exported_cells_and_functions_are_short():
    cells = [cell for path in notebooks.notebooks() for cell in sizes.export_cells(path)]
    counts = {k: n for path in sizes.modules() for k, n in sizes.functions(path).items()}
    assert cells and counts and sizes.faults(cells, counts) == []


def test_the_loop_is_short_and_comes_early():
    source = (ROOT/'sparse_ae'/'training.py').read_text(encoding='utf-8')
    assert len(source.splitlines()) <= sizes.MAX_TRAINING_LINES
    lines, last_cell = sizes.loop(sizes.export_cells(ROOT/'nbs'/'02_training.ipynb'))
    assert lines <= sizes.MAX_LOOP_LINES
    assert last_cell < sizes.MAX_LOOP_CELL


def test_long_cells_and_functions_are_found(tmp_path):
    path, code = tmp_path/'long.ipynb', nbformat.v4.new_code_cell
    nbformat.write(nbformat.v4.new_notebook(cells=[
        code('#| export\n' + 44*'x = 1\n'), code('#| export\n' + 45*'x = 1\n'),
        code(60*'x = 1\n')]), path)
    cells = sizes.export_cells(path)
    assert [cell.lines for cell in cells] == [45, 46]
    assert sizes.faults(cells, {'f': 12, 'g': 13}) == ['long.ipynb cell 1: 46 lines',
                                                       'g: 13 branches']
    source = ('def f(x):\n    if x and x or x: return [y for y in x if y]\n'
              '    try: return 1 if x else 2\n    except ValueError: pass\n'
              '    def g():\n        while True:\n            for y in x: pass\n')
    assert sizes.branches(ast.parse(source)) == 8
    loop = [sizes.Cell('nb', 3, 2, 'def fit(run):\n    pass'),
            sizes.Cell('nb', 9, 5, 'def fit_epoch(run):\n    pass\n\ndef fit_step(run): pass')]
    assert sizes.loop(loop) == (5, 9)
    with pytest.raises(LookupError, match='fit_epoch, fit_step'): sizes.loop(loop[:1])


def test_site_has_all_pages_and_nothing_is_wrong_with_them(site):
    built = {p.relative_to(site).with_suffix('').as_posix() for p in site.rglob('*.html')}
    moved = {page.removesuffix('.html') for page in check_site.redirects(site)}
    sources = [*notebooks.notebooks(), *(ROOT/'nbs').rglob('*.qmd')]
    pages = {p.relative_to(ROOT/'nbs').with_suffix('').as_posix() for p in sources}
    assert built == pages | moved and not pages & moved
    assert check_site.check_pages(site) == []
    assert check_site.check_names(site) == []
    listed = (site/'llms.txt').read_text()
    assert all(f'{page}.llms.md' in listed for page in pages)
    assert not any(f'/{page}.llms.md' in listed for page in moved)


# pages of the first version, which numbered them by date
OLD_PAGES = """00_models 01_losses 02_training 03_eval_viz 04_data 05_widgets 06_io 07_cli 08_checks
    09_geometry 10_batches 11_callbacks 12_live_latents 13_checkpoints 14_sweeps 15_pictures
    16_dashboard 17_latent_statistics 18_explorer 19_explorer_page 20_activations 21_encoders
    22_sparseness 23_objectives 24_initialisation 25_reading 26_presets 27_sparse_codes
    28_triton_kernels"""


def lost_pages(site):
    "Return the old addresses that lead to no page or to no place on it."
    found, redirects = [], check_site.redirects(site)
    for old in (f'{name}.html' for name in OLD_PAGES.split()):
        page, _, anchor = redirects.get(old, old).partition('#')
        exists = (site/page).exists() and page not in redirects
        if not exists: found.append(old)
        elif anchor and f'id="{anchor}"' not in (site/page).read_text(encoding='utf-8'):
            found.append(old)
    return found


def test_old_addresses_lead_to_the_new_pages(site):
    assert lost_pages(site) == []


def test_a_lost_address_is_found(tmp_path):
    for name in OLD_PAGES.split(): (tmp_path/f'{name}.html').write_text('<main id="x"></main>')
    assert lost_pages(tmp_path) == []
    (tmp_path/'06_io.html').unlink()
    docs.write_redirects(tmp_path, {'07_cli.html': '00_models.html#y', '08_checks.html': 'z.html',
                                    '09_geometry.html': '00_models.html#x'})
    assert lost_pages(tmp_path) == ['06_io.html', '07_cli.html', '08_checks.html']
    assert len(check_site.check_pages(tmp_path)) > 0


def test_old_addresses_are_derived_from_the_front_matter():
    pages = {'lab/01_new.html': {'aliases': ['/05_old.html', '/12_reading.html']}, 'old.html': {}}
    assert docs.moved_pages(pages) == {
        '05_old.html': 'lab/01_new.html', '12_reading.html': 'lab/01_new.html#reading-a-deep-model',
        'reading.html': 'lab/01_new.html#reading-a-deep-model'}


def sidebar():
    "Return the pages of each section of the sidebar."
    contents = yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']['sidebar']['contents']
    return [[part] if isinstance(part, str) else part['contents'] for part in contents]


def test_sidebar_leads_to_every_page():
    sources = [*notebooks.notebooks(), *(ROOT/'nbs').rglob('*.qmd')]
    assert sorted(sum(sidebar(), [])) == sorted(p.relative_to(ROOT/'nbs').as_posix()
                                               for p in sources)


def out_of_order(sections):
    "Return the sections that mix folders or whose numbered pages are not in the order of files."
    numbered = lambda pages: [page for page in pages if re.match(r'\d', page.rpartition('/')[2])]
    return [pages for pages in sections if numbered(pages) != sorted(numbered(pages))
            or len({page.rpartition('/')[0] for page in pages}) > 1]


def test_sidebar_has_the_order_of_the_files():
    assert out_of_order(sidebar()) == []
    assert out_of_order([['00_a.ipynb', '02_b.ipynb', '01_c.ipynb']])
    assert out_of_order([['lab/00_a.ipynb', '01_b.ipynb']])


ADDRESS = notebooks.get_config(path=ROOT).git_url
ANY_ADDRESS = re.compile(re.escape(ADDRESS.partition('://')[2])
                         + r'|git clone \S*://|git\+\w+://')


def address_faults(path):
    "Return the lines with a repository's address; that of settings.ini may stand in one cell."
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.ipynb':
        nb = nbformat.reads(text, as_version=4)
        text = '\n'.join(cell.source for cell in nb.cells
                         if cell.source != notebooks.installs(nb))
    if path.name == '_quarto.yml': text = text.replace(f'href: "{ADDRESS}"', '')
    return [f'{path.name}: {line}' for line in text.splitlines() if ANY_ADDRESS.search(line)]


def test_address_of_the_repository_stands_in_settings_alone():
    folders = [ROOT/name for name in ('nbs', 'sparse_ae', 'benchmarks', 'examples', '.github')]
    paths = [*ROOT.glob('*'), *(p for folder in folders for p in folder.rglob('*'))]
    texts = [p for p in paths if re.search(r'\.(md|qmd|ipynb|py|html|js|yml|toml)$', p.name)
             and p.name not in ('_modidx.py', 'nbdev.yml')]   # nbdev writes these
    assert sum((address_faults(path) for path in texts), []) == []


@pytest.mark.parametrize('line', [
    f'git clone {ADDRESS} && cd sparse_ae', f'see {ADDRESS}/issues',
    'pip install "x @ git+https://github.com/x/y"', 'git clone https://example.org/sparse_ae'])
def test_an_address_is_found(line, tmp_path):
    (tmp_path/'_quarto.yml').write_text(f'href: "{ADDRESS}"\n{line}\n')
    assert address_faults(tmp_path/'_quarto.yml') == [f'_quarto.yml: {line}']
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(line)])
    nb.cells.append(nbformat.v4.new_code_cell(notebooks.installs(nb)))
    nbformat.write(nb, tmp_path/'a.ipynb')
    assert address_faults(tmp_path/'a.ipynb') == [f'a.ipynb: {line}']


SPOILT = {   # content of a page: the fault that must be reported
    '<a href="nowhere.html">x</a>': 'leads nowhere', '<a href="#nowhere">x</a>': 'no such place',
    '<img src="index.html">': 'no alt text', '<p>a $$x^2$$</p>': 'shows a formula',
    '<pre>#| export\n</pre>': 'shows a directive', '<p>[@hoyer2004]</p>': 'shows a citation',
    '<p>widths $d_0 = $</p>': 'shows a formula in a line', '<p>[`x`](y.html)</p>': 'shows a link',
    '<pre>x # [`y`](https://z)</pre>': 'shows a link of the site',
    '<pre>VBox(children=())</pre>': 'shows a widget', '<p id="x"></p><p id="x"></p>': '2 elements',
    '<pre>Traceback (most recent call last)</pre>': 'shows a traceback',
    f'<pre>{ROOT.parent}/data</pre>': 'shows a path',
    f'<a href="{check_site.HOME}nowhere.html">x</a>': 'leads nowhere'}


@pytest.mark.parametrize('html', SPOILT)
def test_a_spoilt_page_is_noticed(html, tmp_path):
    (tmp_path/'index.html').write_text(f'<main>{html}</main>')
    found = check_site.check_pages(tmp_path)
    assert len(found) == 1 and SPOILT[html] in found[0], found


def test_equations_are_numbered_in_order():
    for path in notebooks.notebooks():
        text = '\n'.join(c.source for c in nbformat.read(path, as_version=4).cells
                         if c.cell_type == 'markdown')
        numbers = [int(n) for n in re.findall(r'\\tag\{(\d+)\}', text)]
        assert numbers == list(range(1, text.count('$$')//2 + 1)), path.stem


def test_every_reference_is_cited():
    "Citations are links: to the paper, or to the bibliography where there is no address."
    pages = [p.read_text() for p in (*notebooks.notebooks(),
                                     *(ROOT/'nbs').rglob('*.qmd'))]
    text = '\n'.join(pages)
    assert not re.search(r'\[[^][]*@[a-z]+\d{4}[^][]*\](?!\()', text)
    known = parse_file(ROOT/'nbs'/'references.bib').entries
    for key, entry in known.items():
        address = entry.fields.get('url') or entry.fields.get('doi', f'#ref-{key}')
        assert re.sub(r'([()])', lambda m: f'%{ord(m[1]):x}', address) in text, key
    assert set(re.findall(r'#ref-(\w+)', text)) <= set(known)
