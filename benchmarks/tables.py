"What the benchmarks share: parts that give rows, and the file that these are written into."
import argparse
import platform
from pathlib import Path

import torch


def run(
    doc,      # Of the benchmark, shown by `--help`
    parts,    # Functions of the number of rounds, by name, that give rows of words and figures
    title,    # Of the page
    intro,    # What the figures are, in words
    page,     # `Path` of the page
    rounds,   # Where `--rounds` is not given
    header=('what', 'figure', 'wanted'),  # Of the table
):
    "Measure the parts, print a table, and write the page if all were measured."
    parser = argparse.ArgumentParser(description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('part', nargs='?', choices=parts)
    parser.add_argument('--rounds', type=int, default=rounds)
    args = parser.parse_args()
    rows = []
    for name, part in parts.items():
        if args.part in (None, name): rows += part(args.rounds)
    cell = lambda value: (value if isinstance(value, str) else
                          '' if value != value else f'{value:.3f}')  # NaN: there is none
    lines = [f"| {' | '.join(header)} |", '|' + '---|'*len(header),
             *(f"| {' | '.join(map(cell, row))} |" for row in rows)]
    print('\n'.join(lines))
    if args.part is None:
        where = (f'{args.rounds} rounds, {torch.get_num_threads()} threads, torch '
                 f'{torch.__version__}, {platform.machine()}')
        text = f'{intro} ({where}). Written by `python benchmarks/{Path(page).stem}.py`.'
        Path(page).write_text(f'# {title}\n\n{text}\n\n' + '\n'.join(lines) + '\n')
