"""Run the tests of the notebooks, so that coverage.py sees the exported cells as the modules.

    coverage run tools/line_coverage.py [--workers N] [NOTEBOOK ...]    (default: all notebooks)

A cell that is exported runs as nbdev_test runs it, but is compiled with the name of its module and
with the line numbers that it has there. Each notebook runs in a process of its own.
"""
import argparse
import ast
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import nbdev.test
from execnb.shell import CaptureShell
from IPython.core.compilerop import CachingCompiler
from nbdev.config import get_config

from notebooks import ROOT, notebooks

MARKER = re.compile(r'# %% (\S+\.ipynb) #(\S+)')


class Place(NamedTuple):
    "Lines of an exported cell in its module."
    module:str        # Path of the module
    line:int          # Line of the marker above the cell
    source:list[str]  # Lines of the cell, as the module has them


def places(notebook:Path, package:Path=ROOT/'sparse_ae') -> dict[str, Place]:
    "Return the places of the exported cells of a notebook in the modules, by the id of the cell."
    found = {}
    for module in sorted(package.rglob('*.py')):
        lines = module.read_text(encoding='utf-8').splitlines()
        markers = [(n, m) for n, line in enumerate(lines, 1) if (m := MARKER.fullmatch(line))]
        ends = [n - 1 for n, _ in markers[1:]] + [len(lines)]
        for (n, marker), end in zip(markers, ends):
            if (module.parent/marker[1]).resolve() == notebook.resolve():
                found[marker[2]] = Place(str(module), n, lines[n:end])
    return found


def is_same(place:Place, source:str) -> bool:
    "Whether a cell is in its module line by line; nbdev makes the imports relative."
    module, cell = '\n'.join(place.source).rstrip().split('\n'), source.rstrip().split('\n')
    return len(module) == len(cell) and all(
        a == b or a.lstrip().startswith('from .') and b.lstrip().startswith('from ')
        for a, b in zip(module, cell))


class ModuleCompiler(CachingCompiler):
    "Compile exported cells with the names and the line numbers of their modules."
    place:'Place|None' = None  # Place of the cell that is compiled, if it is exported

    def cache(self, transformed_code, number=0, raw_code=None):
        if self.place is None: return super().cache(transformed_code, number, raw_code)
        return self.place.module

    def ast_parse(self, source, filename='<unknown>', symbol='exec'):
        tree = super().ast_parse(source, filename, symbol)
        return tree if self.place is None else ast.increment_lineno(tree, self.place.line)


class ModuleShell(CaptureShell):
    "Shell of nbdev_test that compiles with `ModuleCompiler`."
    def __init__(self, path, *args, **kwargs):
        super().__init__(path, *args, **kwargs)
        self.compile, self.places = ModuleCompiler(), places(Path(path))

    def cell(self, cell, *args, **kwargs):
        place = self.places.get(cell.id)
        if place and not is_same(place, cell.source):
            sys.exit(f'{place.module}:{place.line} differs from the notebook: make export')
        self.compile.place = place
        try: return super().cell(cell, *args, **kwargs)
        finally: self.compile.place = None


def test_notebook(path:Path) -> bool:
    "Run the tests of one notebook in this process; return whether they pass."
    nbdev.test.CaptureShell = ModuleShell
    os.chdir(ROOT/'nbs')
    return nbdev.test.test_nb(path.resolve(), skip_flags=get_config(path=ROOT).tst_flags.split(),
                              basepath=ROOT)[0]


def test_all(paths:list[Path], workers:int) -> list[Path]:
    "Run the tests of notebooks, each in a process; return the notebooks that fail."
    run = lambda path: subprocess.run([sys.executable, __file__, '--here', path]).returncode == 0
    with ThreadPoolExecutor(workers) as pool:
        return [path for path, passed in zip(paths, pool.map(run, paths)) if not passed]


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('notebooks', nargs='*', type=lambda name: Path(name).resolve())
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--here', action='store_true', help='in this process')
    options = parser.parse_args()
    if options.here: sys.exit(not all(map(test_notebook, options.notebooks)))
    failed = test_all(options.notebooks or notebooks(), options.workers)
    sys.exit(f'failed: {", ".join(path.name for path in failed)}' if failed else 0)
