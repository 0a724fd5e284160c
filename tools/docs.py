"Build the site into _docs: with Quarto if it is installed, with smalldocs if not."
import shutil
import subprocess
import sys
from pathlib import Path

from nbdev.config import get_config
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs

if __name__ == '__main__':
    # As `nbdev_docs`, but README.md stays as `make readme` wrote it, and Quarto may be missing
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__()
    source, target = proc_nbs(force=True), get_config().doc_path
    smalldocs = [Path(sys.executable).parent/'smalldocs', 'render', '.']
    render = ['quarto', 'render', '--no-cache'] if shutil.which('quarto') else smalldocs
    subprocess.run(render, cwd=source, check=True)
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(source/target.name, target)
    print(f'Look at {target.relative_to(Path.cwd())/"index.html"}')
