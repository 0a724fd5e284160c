"""Write nbs/reference/api.qmd: the public names by task, with links to their entries.

    python tools/api.py
"""
import importlib
import inspect
import re

import nbformat
from notebooks import ROOT, notebooks
from torch import nn

import sparse_ae

PAGE = ROOT/'nbs'/'reference'/'api.qmd'
TASKS = {
    'Build a model': 'models activations scaling presets',
    'Choose a penalty or a regulariser': 'losses regularizers',
    'Train': 'training options targets callbacks sparsity_control',
    'Compare settings': 'sweeps',
    'Load data': 'data',
    'Evaluate and plot': 'eval_viz measures',
    'Use the activations of a network': 'networks.',
    'Use widgets in a notebook': 'lab.widgets lab.dashboard lab.explorer lab.figures '
                                 'lab.panel lab.page lab.latents lab.text lab.map lab.display',
    'Save, load, use the command line': 'io hub cli files interrupts',
    'Use other tools': 'sklearn export frames',
    'Compute faster': 'engines.',   # all modules of the folder
    'Check arguments': 'validation'}
HEAD = """\
---
title: Public interface
description: "All public names by task, with links to their documentation"
---

<!-- Written by `make export` from the docstrings: edit those. -->

The names in the tables are imported from the package: `from sparse_ae import SparseAutoencoder`.
The names below a table are imported from their module: `from sparse_ae.losses import PENALTIES`.
"""


def pages() -> dict[str, str]:
    "Return the notebook of each module, relative to the folder of the page."
    found = {}
    for path in notebooks():
        source = '\n'.join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        module = re.search(r'^#\| default_exp (\S+)', source, re.M)
        if module: found[module[1]] = '../' + path.relative_to(ROOT/'nbs').as_posix()
    return found


def modules_of(task:str, modules:dict[str, str]) -> list[str]:
    "Return the modules of a task; a name that ends with a dot stands for a folder."
    return [module for name in TASKS[task].split() for module in modules
            if module == name or name.endswith('.') and module.startswith(name)]


def has_entry(thing:object) -> bool:
    "Return whether pages have an entry for an object: for classes and functions."
    return inspect.isclass(thing) or inspect.isroutine(thing)


def summary(thing:object) -> str:
    "Return the first sentence of a docstring, without line breaks."
    if not has_entry(thing): return ''
    first = ' '.join((inspect.getdoc(thing) or '').partition('\n\n')[0].split())
    return re.match(r'.*?(?:\.(?= [A-Z])|$)', first)[0].rstrip('.').replace('|', r'\|')


def link(name:str, thing:object, page:str) -> str:
    "Return a link to the entry of a name, or to the page of a constant."
    return f'[`{name}`]({page}{"#" + name.lower() if has_entry(thing) else ""})'


def methods(cls:type) -> list[str]:
    "Return the public methods that a model adds to those of `torch.nn.Module`."
    return [name for name in dir(cls) if not name.startswith('_') and not hasattr(nn.Module, name)
            and callable(getattr(cls, name))]


def section(task:str, modules:dict[str, str]) -> str:
    "Return the section of a task: a table of the package's names, then the names of the modules."
    rows, more = [], []
    for module_name in modules_of(task, modules):
        module, page = importlib.import_module(f'sparse_ae.{module_name}'), modules[module_name]
        things = {name: getattr(module, name) for name in module.__all__}
        entries = {name: link(name, thing, page) for name, thing in things.items()
                   if getattr(thing, '__module__', module.__name__) == module.__name__
                   or not has_entry(thing)}   # a name imported from another module stands there
        rows += [f'| {entry} | {summary(things[name])} |'
                 for name, entry in entries.items() if name in sparse_ae.__all__]
        rest = [entry for name, entry in entries.items() if name not in sparse_ae.__all__]
        if rest: more.append(f'[`sparse_ae.{module_name}`]({page}): {", ".join(rest)}.')
    table = ['| name | summary |\n|---|---|\n' + '\n'.join(rows)] if rows else []
    if task == 'Build a model':
        names = ', '.join(f'`{name}`' for name in methods(sparse_ae.SparseAutoencoder))
        more.insert(0, f'Methods of the models: {names}.')
    return '\n\n'.join([f'## {task}', *table, *more])


def text() -> str:
    "Return the text of the page."
    modules = pages()
    return '\n'.join([HEAD, *(section(task, modules) + '\n' for task in TASKS)])


if __name__ == '__main__': PAGE.write_text(text(), encoding='utf-8')
