"""Builds the package from `settings.ini`,
which is the one place for its name, version and requirements."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
extras = {name: cfg[f'{name}_requirements'].split()
          for name in ('sklearn', 'hf', 'hub', 'onnx', 'pandas', 'polars', 'tensorboard', 'wandb',
                       'dev')}

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    keywords=cfg['keywords'].split(),
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    license='Apache-2.0',
    classifiers=[f'Intended Audience :: {cfg["audience"]}', 'Development Status :: 3 - Alpha',
                 'Programming Language :: Python :: 3',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    python_requires='>=' + cfg['min_python'], install_requires=cfg['requirements'].split(),
    extras_require=extras, packages=find_packages(include=[cfg['lib_path'] + '*']),
    package_data={'sparse_ae.lab': ['*.js', '*.css']}, include_package_data=True, zip_safe=False,
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f'{cfg["lib_name"]}={cfg["lib_path"]}._modidx:d']})
