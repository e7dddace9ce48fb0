# make run     set up the runtime (no torch) and let the starter pack's adapters answer
# make test    set up everything and run the tests
# make test-optimum  compare with Hugging Face's optimum, in an environment of its own (.venv-optimum)
# make test-oldest  the tests of export and training with the oldest libraries that they take (.venv-oldest)
# make peers   what we are measured beside, in an environment of its own (.venv-peers)
# make clients  clients of a server, in an environment of its own (.venv-clients)
# make check   linters, types, layers
# make starter train, export and pack the starter adapters again:  make starter DATA=folder-with-the-data-sets
# make router  train the starter's router again and put it into edge/starter:  make router DATA=folder
# make wheelhouse  a folder to install from without a network or a compiler:  make wheelhouse [ARCH=aarch64] [OUT=folder]
# make clean   remove the virtual environments
# make uninstall  clean, and remove what was built and fetched by itself; packs and models that you pulled stay

PYTHON ?= python3
VENV   ?= .venv
# The release that the tests were run with; unpinned, pip may draw gigabytes of GPU libraries.
TORCH  ?= torch==2.13.0
# Tests run in so many processes, a file in one of them.
JOBS   ?= 2
BIN    := $(VENV)/bin

# Only what we load of llama.cpp is built: no multimodal library, no command-line helpers.
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/.ci/llama-lean.cmake
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: run test test-optimum test-oldest peers clients check starter router wheelhouse clean uninstall setup setup-dev
.DELETE_ON_ERROR:

run: setup
	@$(BIN)/slm-edge demo

test: setup-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# optimum-onnx pins transformers below what the rest may take, so it never shares an environment with it.
test-optimum: .venv-optimum/.ready
	.venv-optimum/bin/python -m pytest tests/export/onnx/test_onnx_optimum.py

.venv-optimum/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-optimum
	.venv-optimum/bin/pip install --quiet "$(TORCH)"
	.venv-optimum/bin/pip install --quiet -e '.[export,onnx,optimum,dev]'
	@touch $@

# The oldest releases that pyproject.toml admits; the newest are what `make test` installs.
test-oldest: .venv-oldest/.ready
	.venv-oldest/bin/python -m pytest tests/export tests/train tests/test_family_row.py

.venv-oldest/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet "$(TORCH)"
	.venv-oldest/bin/pip install --quiet -e '.[export,onnx,train,bench,dev]' \
		'transformers==4.52.4' 'huggingface-hub==0.30.2' 'tokenizers==0.21.1' 'peft==0.18.0'
	@touch $@

# Only measured beside, by `python -m slm_edge.benchmarks.peers`; 600 MB.
peers: .venv-peers/.ready

.venv-peers/.ready:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet xllamacpp openvino-genai onnxruntime-genai mistralrs
	@touch $@

# Only tried against a server, by `python -m slm_edge.benchmarks.clients`; 900 MB, and needs npm.
clients: .venv-clients/.ready

.venv-clients/.ready:
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install --quiet uv
	.venv-clients/bin/uv pip install --quiet --python .venv-clients/bin/python openai langchain-openai llama-index-llms-openai-like 'litellm[proxy]' \
		instructor pydantic-ai schemathesis
	mkdir -p .venv-clients/npm
	cd .venv-clients/npm && npm init -y >/dev/null && npm install --silent openai ai @ai-sdk/openai-compatible zod
	@touch $@

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p slm_edge
	$(BIN)/python -m pytest -q tests/test_layers.py

starter: setup-dev
	@test -n "$(DATA)" || { echo "say where the data sets are: make starter DATA=FOLDER (docs/training.md names the files)"; exit 2; }
	bash .ci/make-starter "$(DATA)"

router: setup-dev
	OMP_NUM_THREADS=1 $(BIN)/slm-edge router train --pack edge/starter $(if $(DATA),--data "$(DATA)")

OUT ?= wheelhouse
wheelhouse:
	PYTHON="$(PYTHON)" bash .ci/wheelhouse "$(OUT)" $(ARCH)

setup: $(VENV)/.runtime
setup-dev: $(VENV)/.dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, {sys.executable} is {v.major}.{v.minor}: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	@echo "installing the runtime; llama.cpp is built from source once, which takes some minutes"
	$(BIN)/pip install --quiet -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -e '.[export,onnx,train,nf4,bench,serve,dev]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-optimum .venv-oldest .venv-peers .venv-clients

uninstall:
	@test ! -x $(BIN)/slm-edge || $(BIN)/slm-edge cache clean --bases
	@test ! -x $(BIN)/slm-edge || $(BIN)/python -c 'from slm_edge.edge.files.cache import state_folder, store_folder; print(f"what stays, for the next install or to be deleted: packs and models in {store_folder()}, the chat history in {state_folder()}")'
	rm -rf $(VENV) .venv-optimum .venv-oldest .venv-peers .venv-clients build wheelhouse *.egg-info
