"""Print the sizes of the exported code: the ten longest exported cells, the ten functions with most
branches, and the number, the median and the largest of the exported cells of each notebook.

    python tools/sizes.py
"""
import ast
from pathlib import Path
from statistics import median
from typing import NamedTuple

import nbformat
from notebooks import ROOT, notebooks

MAX_CELL_LINES = 45
MAX_BRANCHES = 12
MAX_TRAINING_LINES = 450
MAX_LOOP_LINES = 40
MAX_LOOP_CELL = 15      # the loop is read before this cell of the notebook
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.match_case)


class Cell(NamedTuple):
    "Exported cell of a notebook."
    notebook:str    # Path below `nbs`
    number:int      # Position in the notebook
    lines:int       # Lines, with directives
    source:str      # Code


def export_cells(path:Path) -> list[Cell]:
    "Return the exported cells of a notebook."
    cells = []
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
        lines = cell.source.splitlines()
        directives = [line[2:].split() for line in lines if line.startswith('#|')]
        if cell.cell_type != 'code' or not any(d[:1] == ['export'] for d in directives): continue
        code = [line for line in lines if not line.startswith('#|')]
        name = path.relative_to(ROOT/'nbs').as_posix() if path.is_relative_to(ROOT) else path.name
        cells.append(Cell(name, number, len(lines), '\n'.join(code)))
    return cells


def branches(function:ast.AST) -> int:
    "Count the branches of a function, including those of functions defined in it."
    count = 0
    for node in ast.walk(function):
        if isinstance(node, BRANCHES): count += 1
        elif isinstance(node, ast.BoolOp): count += len(node.values) - 1
        elif isinstance(node, ast.comprehension): count += len(node.ifs)
    return count


def functions(path:Path) -> dict[str, int]:
    "Return the branches of each function of a module, under its name and line."
    return {f'{path.name}:{node.lineno} {node.name}': branches(node)
            for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


def modules() -> list[Path]:
    "Return the exported modules."
    return sorted(p for p in (ROOT/'sparse_ae').rglob('*.py') if not p.name.startswith('_'))


def loop(cells:list[Cell]) -> tuple[int, int]:
    "Return the lines of `fit`, `fit_epoch`, `fit_step` together, and the last cell that has one."
    lines, last = {}, 0
    for cell in cells:
        for node in ast.parse(cell.source).body:
            if getattr(node, 'name', None) in ('fit', 'fit_epoch', 'fit_step'):
                lines[node.name] = node.end_lineno - node.lineno + 1
                last = max(last, cell.number)
    missing = {'fit', 'fit_epoch', 'fit_step'} - set(lines)
    if missing: raise LookupError(f'no function {", ".join(sorted(missing))}')
    return sum(lines.values()), last


def faults(cells:list[Cell], counts:dict[str, int]) -> list[str]:
    "Return the exported cells and functions that exceed their limit."
    return [*(f'{c.notebook} cell {c.number}: {c.lines} lines' for c in cells
              if c.lines > MAX_CELL_LINES),
            *(f'{name}: {count} branches' for name, count in counts.items()
              if count > MAX_BRANCHES)]


if __name__ == '__main__':
    cells = {path: export_cells(path) for path in notebooks()}
    counts = {name: count for path in modules() for name, count in functions(path).items()}
    print('longest exported cells')
    for cell in sorted(sum(cells.values(), []), key=lambda c: -c.lines)[:10]:
        print(f'{cell.lines:6}  {cell.notebook} cell {cell.number}')
    print('\nfunctions with most branches')
    for name, count in sorted(counts.items(), key=lambda item: -item[1])[:10]:
        print(f'{count:6}  {name}')
    print('\nexported cells: number, median lines, largest')
    for exported in cells.values():
        if exported:
            lines = [cell.lines for cell in exported]
            print(f'{len(lines):6} {median(lines):6g} {max(lines):6}  {exported[0].notebook}')
    lines = len((ROOT/'sparse_ae'/'training.py').read_text(encoding='utf-8').splitlines())
    print(f'\n{lines:6}  lines of sparse_ae/training.py')
    try: lines, last = loop(cells[ROOT/'nbs'/'02_training.ipynb'])
    except LookupError as error: print(f'        the loop: {error}')
    else: print(f'{lines:6}  lines of the loop, which ends in cell {last}')
