"The repository itself: modules, notebooks, README and the promised interface."
import ast
import importlib
import inspect
import json
import re
import subprocess
import sys

import check_site
import nbformat
import notebooks
import pytest
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


# each module may import those before it; what stands in one entry does not import each other
LAYERS = ('validation', 'engines.triton_kernels', 'losses activations', 'models', 'engines.dense', 'engines.sparse_codes', 'data callbacks regularizers', 'io sparsity_control',
          'training', 'eval_viz', 'presets sweeps', 'lab.display', 'lab.dashboard lab.explorer',
          'lab.widgets cli')


def imports(path):
    "The modules of this library that a module imports, also within functions."
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
        if path.name.startswith('_') or False: continue
        assert name in rank, f'{name} has no place in LAYERS'
        for module in imports(path):
            assert rank.get(module, 99) < rank[name], f'{name} imports {module}'


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
        "target_sparsity=0.05, sparsity_type='kl', device='cpu'",
    'evaluate_sparse_autoencoder': "model, test_data, device='cpu'",
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


def test_site_has_all_pages_and_nothing_is_wrong_with_them(site):
    pages = sorted(p.relative_to(site).with_suffix('').as_posix() for p in site.rglob('*.html'))
    sources = [*notebooks.notebooks(), *(ROOT/'nbs'/'reference').glob('*.qmd')]
    assert pages == sorted(p.relative_to(ROOT/'nbs').with_suffix('').as_posix() for p in sources)
    assert check_site.check_pages(site) == []
    assert check_site.check_names(site) == []
    listed = (site/'llms.txt').read_text()
    assert all(f'{page}.llms.md' in listed for page in pages)


def test_sidebar_leads_to_every_page():
    sidebar = yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']['sidebar']['contents']
    listed = [page for part in sidebar
              for page in ([part] if isinstance(part, str) else part['contents'])]
    sources = [*notebooks.notebooks(), *(ROOT/'nbs'/'reference').glob('*.qmd')]
    assert sorted(listed) == sorted(p.relative_to(ROOT/'nbs').as_posix() for p in sources)


SPOILT = {   # what stands on a page, and what must be said about it
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
    pages = [p.read_text() for p in (*notebooks.notebooks(), *(ROOT/'nbs'/'reference').glob('*.qmd'))]
    text = '\n'.join(pages)
    assert not re.search(r'\[[^][]*@[a-z]+\d{4}[^][]*\](?!\()', text)
    known = parse_file(ROOT/'nbs'/'references.bib').entries
    for key, entry in known.items():
        address = entry.fields.get('url') or entry.fields.get('doi', f'#ref-{key}')
        assert re.sub(r'([()])', lambda m: f'%{ord(m[1]):x}', address) in text, key
    assert set(re.findall(r'#ref-(\w+)', text)) <= set(known)
