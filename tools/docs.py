"""Build the documentation site into _docs: with Quarto if it is installed, with smalldocs if not."""
import shutil
import subprocess
import sys
from pathlib import Path

from nbdev.config import get_config
from nbdev.quarto import nbdev_docs, nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs


def with_smalldocs() -> None:
    "What `nbdev_docs` does, with smalldocs in Quarto's place."
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__()
    source = proc_nbs(force=True)
    smalldocs = Path(sys.executable).parent/'smalldocs'
    subprocess.run([smalldocs, 'render', source], check=True)
    target = get_config().doc_path
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(source/target.name, target)
    print(f'Look at {target.relative_to(Path.cwd())/"index.html"}')


if __name__ == '__main__':
    if shutil.which('quarto'): nbdev_docs.__wrapped__()
    else: with_smalldocs()
