"""Mutation tests: change one place of a module, and find out whether a test fails.

    python tests/faults/mutants.py [MODULE ...] [--sample N] [--seed N] [--jobs N]

The operators of cosmic-ray change each place of a module in several ways, of which `--seed` chooses
one a place and kind of operator. A mutant is written into a copy of the project and tested there by
a child that was forked after the import of torch: first by those tests of `SUITES` that reach the
changed statement, the fastest first, then by the cells of the module's notebook, which import the
module in place of their own definitions. A mutant that exceeds its time-out counts as killed.

Survivors are written to `--report` with their diffs. `equivalent_mutants.py` lists those that were
read and that no test can kill, with the reasons.
"""
import argparse
import ast
import collections
import contextlib
import difflib
import gc
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import coverage
import execnb.shell
import fastcore.all  # noqa: F401  imported once, before the forks, as what follows
import hypothesis.extra.numpy  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import nbdev.test
import nbformat
import numpy
import pytest
import scipy.stats  # noqa: F401
import sklearn.decomposition  # noqa: F401
import torch
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider

sys.path.insert(0, str(Path(__file__).parent))
from equivalent_mutants import EQUIVALENT

ROOT = Path(__file__).resolve().parent.parent.parent
SUITES = {   # module: notebook, files of tests; tests that start processes or build pages are slow
    'losses': ('01_losses', ['test_losses.py']),
    'models': ('00_models', ['test_models_by_hand.py', 'test_models.py', 'test_scaling.py']),
    'training': (None, ['test_training_by_hand.py', 'test_training.py', 'test_checkpoints.py']),
    'io': ('11_io', ['test_checkpoints.py', 'test_io.py', 'test_saved_before.py'])}
SLOW = re.compile('killed|ctrl_c_from|keeps_only|without_a_server|without_the_package')   # names of tests left out
PYTEST = ['-q', '-p', 'no:cacheprovider', '-p', 'no:unraisableexception', '--assert=plain']
MOST_CASES = 6       # of a parametrised test
LEFT_OUT = '.*', '_docs', '_proc', 'runs', 'benchmarks', '__pycache__'   # '.*': environments, caches
PASSED, FAILED = 0, 1
LEAST_KILLED = 85   # per cent of the mutants of each module


class Mutant(NamedTuple):
    "Module with one change."
    module:str      # Name of the module
    operator:str    # Name of the operator
    line:int        # Line of the change, from 1
    source:str      # Changed source

    def diff(self):
        "Return the lines that differ, with `-` and `+` before them."
        lines = difflib.unified_diff(source_of(self.module).splitlines(), self.source.splitlines(),
                                     n=0, lineterm='')
        return [line for line in lines if line[:1] in '-+' and line[:3] not in ('---', '+++')]

    def text(self):
        "Return place, operator and diff, for a report."
        return '\n'.join([f'{self.module}.py:{self.line} {self.operator}', *self.diff()])

    def key(self):
        "Return what `EQUIVALENT` lists: module and diff without indentation."
        return self.module, *(f'{line[0]} {line[1:].strip()}' for line in self.diff())


def source_of(module):
    "Return the source of a module of the project."
    return (ROOT/'sparse_ae'/f'{module}.py').read_text(encoding='utf-8')


def places(source):
    "Return operators and their occurrences by place and kind of operator."
    found = collections.defaultdict(list)
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in ((name, OperatorProvider()[name]) for name in OperatorProvider()):
        if operator.arguments(): continue    # those that cannot choose a change themselves
        occurrence = 0
        for node in nodes:
            for start, end in operator().mutation_positions(node):
                # cosmic-ray takes the * of a signature or a call for a product
                if node.parent is None or node.parent.type not in ('parameters', 'param', 'argument'):
                    found[start, end, name.split('_')[0]].append((name, occurrence))
                occurrence += 1
    return dict(sorted(found.items()))


def mutants(module, seed=0, sample=None):
    "Return one mutant of each place, or of a sample of the places, and the number of places."
    source, made = source_of(module), []
    same = ast.dump(ast.parse(source))
    every = list(places(source).items())
    chosen = every if sample is None else random.Random(seed).sample(every, min(sample, len(every)))
    for (start, _, kind), choices in sorted(chosen):
        random.Random(f'{seed} {start} {kind}').shuffle(choices)
        for name, occurrence in choices:
            changed = mutate_code(source, OperatorProvider()[name](), occurrence)
            # `not not x` is the mutant of another operator, which deletes the `not`
            with contextlib.suppress(SyntaxError):
                if 'not not' not in changed and ast.dump(ast.parse(changed)) != same:
                    made.append(Mutant(module, name, start[0], changed))
                    break
    return made, len(every)


def statement_lines(source, line):
    "Return the lines of the innermost statement at a line, of a compound statement its head."
    best = None
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno:
            if best is None or node.lineno >= best.lineno: best = node
    if best is None: return range(line, line + 1)
    body = getattr(best, 'body', None)
    last = max(best.lineno, body[0].lineno - 1) if body else best.end_lineno
    return range(best.lineno, max(last, line) + 1)


class Selected:
    "Plugin of pytest: runs the given tests only, in their order; records seconds and failures."
    def __init__(self, names=None, cover=None):
        self.order = None if names is None else {name: i for i, name in enumerate(names)}
        self.cover, self.seconds, self.failed = cover, collections.Counter(), []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        if self.order is None:
            cases = collections.defaultdict(list)    # evenly spaced ones of a parametrised test
            for item in items: cases[item.nodeid.partition('[')[0]].append(item)
            items[:] = [item for name, every in cases.items() if not SLOW.search(name)
                        for item in every[::-(-len(every)//MOST_CASES)]]
        else:
            items[:] = sorted((item for item in items if item.nodeid in self.order),
                              key=lambda item: self.order[item.nodeid])

    def pytest_runtest_logstart(self, nodeid):
        for seed in (torch.manual_seed, random.seed, numpy.random.seed): seed(0)   # in any order alike
        if self.cover: self.cover.switch_context(nodeid)

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        if report.failed: self.failed.append(report.nodeid)


class Workshop:
    "Copy of the project in which a module is mutated and tested, by one child at a time."
    def __init__(self, folder):
        self.root = Path(folder)/'project'
        shutil.copytree(ROOT, self.root, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        self.time = int(time.time())

    def write(self, module, source):
        "Write the source of a module."
        path = self.root/'sparse_ae'/f'{module}.py'
        path.write_text(source, encoding='utf-8')
        self.time += 1    # bytecode is valid for the second in which its source was written
        os.utime(path, (self.time, self.time))

    def fork(self, run, *args, seconds=1000):
        "Start `run(*args)` in a child that imports the library from here; return its process id."
        child = os.fork()
        if child: return child
        status = FAILED
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)   # ignored in a background job
            output = os.open(self.root/'output', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for descriptor in (1, 2): os.dup2(output, descriptor)
            resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
            os.chdir(self.root)
            sys.path[:] = [str(self.root), *(p for p in sys.path if p != str(ROOT))]
            os.environ['PYTHONPATH'] = os.pathsep.join(sys.path)
            os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'
            status = run(self.root, *args)
        finally: os._exit(status)


def run_tests(root, names):
    "Run tests until one fails; return the exit status."
    files = sorted({name.partition('::')[0] for name in names})
    status = pytest.main(['-x', *PYTEST, *files], [Selected(names)])
    return PASSED if status in (0, 5) else FAILED


def measure_tests(root, module):
    "Run all tests of a module; write seconds, failures and the lines that each test reaches."
    cover = coverage.Coverage(data_file=None, include=[str(root/'sparse_ae'/f'{module}.py')])
    plugin = Selected(cover=cover)
    cover.start()
    pytest.main([*PYTEST, *(f'tests/{f}' for f in SUITES[module][1])], [plugin])
    cover.stop()
    data = cover.get_data()
    lines = collections.defaultdict(list)
    for file in data.measured_files():
        for line, names in data.contexts_by_lineno(file).items():
            for name in names: lines[name].append(line)
    (root/'measured').write_text(json.dumps(dict(
        seconds=plugin.seconds, failed=plugin.failed, lines=lines)))
    return PASSED


def run_notebook(root, module):
    "Run the cells of a module's notebook with the definitions of the module; return the status."
    path = root/'nbs'/f'{SUITES[module][0]}.ipynb'
    notebook = nbformat.read(path, as_version=4)
    definitions = (f'import sparse_ae.{module}\n'
                   f'globals().update({{name: value for name, value in '
                   f'vars(sparse_ae.{module}).items() if not name.startswith("__")}})')
    for cell in notebook.cells:
        if cell.cell_type == 'code' and re.match(r'#\|\s*export', cell.source):
            cell.source, definitions = definitions, ''
    nbformat.write(notebook, root/'nbs'/'mutated.ipynb')
    execnb.shell.set_matplotlib_formats = None    # pictures are not rendered
    passed, _ = nbdev.test.test_nb(root/'nbs'/'mutated.ipynb', ['slow'], basepath=root)
    return PASSED if passed else FAILED


class Baseline(NamedTuple):
    "Measurements of the tests of a module without a change."
    seconds:dict       # Seconds of each test
    lines:dict         # Lines of the module that each test reaches
    notebook:float     # Seconds of the notebook

    def tests(self, mutant):
        "Return the tests that reach a mutant, the fastest first; all if an import reaches it."
        lines = set(statement_lines(source_of(mutant.module), mutant.line))
        names = [name for name in self.seconds
                 if lines & set(self.lines.get('', ())) or lines & set(self.lines.get(name, ()))]
        return sorted(names, key=lambda name: (self.seconds[name], name))


def baseline(shop, module):
    "Test a module without a change. Raises `RuntimeError` if a test fails."
    shop.write(module, source_of(module))
    os.waitpid(shop.fork(measure_tests, module), 0)
    if not (shop.root/'measured').exists(): raise RuntimeError((shop.root/'output').read_text())
    measured = json.loads((shop.root/'measured').read_text())
    if measured['failed']: raise RuntimeError(f"without a change fail: {measured['failed']}")
    start = time.monotonic()
    if SUITES[module][0] and os.waitpid(shop.fork(run_notebook, module), 0)[1]:
        raise RuntimeError(f'notebook of {module}: {(shop.root/"output").read_text()[-3000:]}')
    return Baseline(measured['seconds'], measured['lines'], time.monotonic() - start)


class Test:
    "Test of one mutant in a workshop, in two stages."
    def __init__(self, shop, mutant, base):
        self.shop, self.mutant, self.base, self.outcome = shop, mutant, base, None
        self.stages = []
        if SUITES[mutant.module][0]:
            self.stages.append(('notebook', run_notebook, mutant.module, base.notebook))
        if names := base.tests(mutant):
            seconds = sum(base.seconds[name] for name in names)
            self.stages.append(('pytest', run_tests, names, seconds))
        shop.write(mutant.module, mutant.source)
        if self.stages: self.start()
        else: self.outcome, self.child = 'survived', None    # no test reaches it

    def start(self):
        self.stage, run, argument, seconds = self.stages.pop()
        limit = 15 + 3*math.ceil(seconds)     # of processor time; a child that sleeps has more
        self.child = self.shop.fork(run, argument, seconds=limit)
        self.deadline = time.monotonic() + 5*limit

    def poll(self):
        "Return whether the test has ended; `outcome` is then set."
        if self.outcome: return True
        pid, status = os.waitpid(self.child, os.WNOHANG)
        if not pid:
            if time.monotonic() < self.deadline: return False
            self.outcome = 'time-out'
        with contextlib.suppress(ProcessLookupError): os.killpg(self.child, signal.SIGKILL)
        if not pid: os.waitpid(self.child, 0)
        elif status: self.outcome = 'time-out' if status == signal.SIGXCPU else self.stage
        elif self.stages:
            self.start()
            return False
        else: self.outcome = 'survived'
        return True


def test_all(shops, base, wanted):
    "Yield outcome and mutant of each of the mutants `wanted`."
    waiting, running, free = list(reversed(wanted)), [], list(shops)
    while waiting or running:
        while waiting and free: running.append(Test(free.pop(), waiting.pop(), base))
        time.sleep(0.02)
        for test in [t for t in running if t.poll()]:
            running.remove(test)
            free.append(test.shop)
            yield test.outcome, test.mutant


def controls(module, base, n=3, seed=0):
    "Return copies of a module that must survive: tests in this order fail for no other reason."
    lines = sorted({line for lines in base.lines.values() for line in lines})
    return [Mutant(module, 'control', line, source_of(module))
            for line in random.Random(seed).sample(lines, n)]


def campaign(module, shops, seed, sample, report, again=None):
    """Test the mutants of a module; return counts by outcome. Survivors are written to `report`.

    `again`: an earlier report, whose mutants alone are tested."""
    base = baseline(shops[0], module)
    for outcome, mutant in test_all(shops, base, controls(module, base)):
        if outcome != 'survived':
            outputs = '\n'.join((shop.root/'output').read_text()[-3000:] for shop in shops)
            raise RuntimeError(f'{module} fails without a change at line {mutant.line}: {outputs}')
    wanted, of = mutants(module, seed, sample)
    if again is not None: wanted = [mutant for mutant in wanted if mutant.text() in again]
    counts, start = collections.Counter(all=of), time.monotonic()
    for outcome, mutant in test_all(shops, base, wanted):
        counts[outcome] += 1
        reason = EQUIVALENT.get(mutant.key()) if outcome == 'survived' else None
        if reason: counts['equivalent'] += 1
        if outcome == 'survived':
            print(mutant.text(), *([f'equivalent: {reason}'] if reason else []), '', sep='\n',
                  file=report, flush=True)
    counts['seconds'] = round(time.monotonic() - start)
    return counts


def summary(module, counts):
    "Return the line of a module, and the share of killed mutants in per cent."
    killed = counts['pytest'] + counts['notebook'] + counts['time-out']
    run = killed + counts['survived']
    share, rest = 100*killed/max(run, 1), 100*killed/max(run - counts['equivalent'], 1)
    figures = counts['all'], run, killed, *(counts[k] for k in ('pytest', 'notebook', 'time-out',
                                                                'survived', 'equivalent'))
    return (f'{module:10}' + ''.join(f'{n:11}' for n in figures) + f'{share:9.1f} %{rest:11.1f} %'
            f'{counts["seconds"]:9}'), share


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('modules', nargs='*', default=list(SUITES), help=', '.join(SUITES))
    parser.add_argument('--sample', type=int, help='mutants a module; default: one of each place')
    parser.add_argument('--seed', type=int, default=0, help='equal seeds give equal mutants')
    parser.add_argument('--jobs', type=int, default=1, help='children at a time')
    parser.add_argument('--report', type=Path, default=ROOT/'runs'/'mutants.txt',
                        help='for survivors')
    parser.add_argument('--again', type=Path, help='earlier report, whose mutants alone are tested')
    args = parser.parse_args()
    args.report.parent.mkdir(exist_ok=True)
    again = args.again and args.again.read_text()
    torch.testing.assert_close(torch.ones(1), torch.ones(1))   # imports what it needs
    gc.collect()
    gc.freeze()    # children do not search what exists now
    torch.set_num_threads(1)    # threads of torch do not survive a fork
    heads = 'places', 'run', 'killed', 'pytest', 'notebook', 'time-out', 'survived', 'equivalent'
    print(f'{"module":10}' + ''.join(f'{head:>11}' for head in heads)
          + f'{"killed":>11}{"of others":>13}{"seconds":>9}')
    shares = []
    with tempfile.TemporaryDirectory() as folder, open(args.report, 'w') as report:
        shops = [Workshop(Path(folder)/str(i)) for i in range(args.jobs)]
        for module in args.modules:
            counts = campaign(module, shops, args.seed, args.sample, report, again)
            for shop in shops: shop.write(module, source_of(module))
            line, share = summary(module, counts)
            print(line, flush=True)
            shares.append(share)
    print(f'survivors: {args.report}')
    return min(shares) < LEAST_KILLED


if __name__ == '__main__': sys.exit(main())
