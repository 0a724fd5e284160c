"Shared by the benchmarks: run parts that return rows, and write the rows to a page."
import argparse
import multiprocessing
import platform
import sys
from pathlib import Path

import torch


def run(
    doc,      # Docstring of the benchmark, shown by `--help`
    parts,    # Functions by name: number of rounds -> rows of words and figures
    title,    # Title of the page
    intro,    # Description of the figures
    page,     # Path of the page
    rounds,   # Default of `--rounds`
    header=('measurement', 'figure', 'target'),  # Columns of the table
):
    "Measure the parts, print a table, and write the page if all were measured."
    parser = argparse.ArgumentParser(description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('part', nargs='?', choices=parts)
    parser.add_argument('--rounds', type=int, default=rounds)
    args = parser.parse_args()
    rows = []
    # a fresh process for each part, so that no part sees the memory of another
    with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
        for name, part in parts.items():
            if args.part in (None, name): rows += pool.apply(part, (args.rounds,))
    cell = lambda value: (value if isinstance(value, str) else
                          '' if value != value else f'{value:.3f}')  # NaN: not measured
    lines = [f"| {' | '.join(header)} |", '|' + '---|'*len(header),
             *(f"| {' | '.join(map(cell, row))} |" for row in rows)]
    print('\n'.join(lines))
    if args.part is None:
        rounds = f'{args.rounds} round' + ('s' if args.rounds > 1 else '')
        where = (f'{rounds}, {torch.get_num_threads()} threads, torch '
                 f'{torch.__version__}, {platform.machine()} with '
                 f'{torch.backends.cpu.get_cpu_capability()}')
        text = f'{intro} ({where}). Written by `python benchmarks/{Path(sys.argv[0]).name}`.'
        Path(page).write_text(f'## {title}\n\n{text}\n\n' + '\n'.join(lines) + '\n')
