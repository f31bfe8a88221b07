# make demo   install, and convert, verify, fold and score the digits run
# make test   install what tests need, check types and style, run all tests
# make check  types and style alone
# make quick  the tests without whole models
# make docs   the pages of docs/, with every command and function, into build/site
# make pictures   the pictures of the documentation, from real runs in Chromium, into docs/pictures
# make fuzz   thousands of damaged files; ARGS="--only KIND:SEED" for one of them
# make test-long   all tests, the long ones too, which do not fit the time of continuous integration
# make test-openvino   the tests of a provider beside the CPU's, in an environment of its own: OpenVINO runs on any x86-64
# make lab-runtime     gets onnxruntime-web through npm, which the tests of labs in a browser need, into build/
# make release-check   builds the distributions, runs them by pipx and uvx, and tests the source distribution in an
#                      environment of its own; it downloads torch with its CUDA packages from PyPI
# make gpu-evidence    on a machine with a GPU: all that is to be known of CUDA, into benchmarks/results/cuda.md

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

OPENVINO_VENV ?= .venv-openvino

.PHONY: demo docs pictures release-check test test-long test-openvino gpu-evidence check quick fuzz lab-runtime clean

demo: $(VENV)/.demo
	PATH="$(abspath $(BIN)):$$PATH" sh examples/01_digits/demo.sh

test: check
	$(BIN)/python -m pytest --numprocesses auto -m "not long"

test-long: check
	$(BIN)/python -m pytest --numprocesses auto

quick: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto -m "not slow and not long"

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

pictures: $(VENV)/.dev lab-runtime
	$(BIN)/python tools/pictures.py $(ARGS)

fuzz: $(VENV)/.dev
	$(BIN)/python benchmarks/fuzz.py $(or $(ARGS),--results benchmarks/results/fuzz.md)

# What cannot run there fails before the tests, which would skip.
test-openvino: $(OPENVINO_VENV)/.dev
	$(OPENVINO_VENV)/bin/python -c "from spdexport.ort.sessions import usable_provider as usable; usable('openvino')"
	$(OPENVINO_VENV)/bin/python -m pytest -m openvino tests/verification/test_openvino.py

gpu-evidence: $(VENV)/.dev
	$(BIN)/python benchmarks/gpu_evidence.py --provider cuda --output benchmarks/results/cuda.md

# The version that the package knows the hashes of; what npm packs is not committed.
lab-runtime: build/lab-runtime/package/package.json

build/lab-runtime/package/package.json: spdexport/laboratory/runtime.py
	rm -rf build/lab-runtime
	mkdir -p build/lab-runtime
	cd build/lab-runtime && npm pack --silent onnxruntime-web@$$(sed -n 's/^VERSION = "\(.*\)"/\1/p' ../../$<)
	tar -xzmf build/lab-runtime/onnxruntime-web-*.tgz -C build/lab-runtime

RELEASE := build/release

# The tests run on what is installed from the source distribution, and with its files alone.
release-check: $(VENV)/bin/python
	rm -rf $(RELEASE)
	$(PIP) build twine pipx uv
	$(BIN)/python -m build --outdir $(RELEASE)/dist .
	$(BIN)/python -m twine check --strict $(RELEASE)/dist/*
	cd $(RELEASE) && PIPX_HOME="$$PWD/pipx" $(abspath $(BIN))/pipx run --spec dist/*.whl spdexport --version
	cd $(RELEASE) && $(abspath $(BIN))/uvx --from dist/*.whl spdexport --version
	$(PYTHON) -m venv $(RELEASE)/venv
	mkdir $(RELEASE)/source
	tar -xzf $(RELEASE)/dist/spdexport-*.tar.gz --strip-components 1 -C $(RELEASE)/source
	$(RELEASE)/venv/bin/python -m pip install --quiet --constraint constraints.txt "$$(ls $(RELEASE)/dist/*.whl)[dev]"
	$(RELEASE)/venv/bin/python -m pip check
	cd $(RELEASE)/source && ../venv/bin/python -P -m pytest --numprocesses auto -m "not slow and not long"

check: $(VENV)/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[dev]"
	touch $@

# The packages of ONNX Runtime overwrite each other's files, so that this one has an environment of its own, with all
# else that pyproject.toml asks for.
$(OPENVINO_VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OPENVINO_VENV)
	$(OPENVINO_VENV)/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
		print(*(r for r in p['dependencies'] + p['optional-dependencies']['dev'] if not r.startswith('onnxruntime')), sep='\n')" \
		> $(OPENVINO_VENV)/requirements.txt
	$(OPENVINO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--requirement $(OPENVINO_VENV)/requirements.txt onnxruntime-openvino
	$(OPENVINO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) $(OPENVINO_VENV) build *.egg-info
