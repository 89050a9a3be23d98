# `make demo` and `make test` need nothing but Python 3.11 or newer and its pip.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    := build/demo
TRITON := .venv-triton
PEERS  := .venv-peers
READY  := $(VENV)/.ready
# PyPI's torch for Linux is its CUDA build, of gigabytes; PyTorch's own index has one for CPUs.
TORCH_CPU := https://download.pytorch.org/whl/cpu
export TRANSFORMERS_VERBOSITY := error

.PHONY: demo page-shot test test-slow test-cpp fuzz-cpp lint-cpp bench-cpp fuzz test-triton load load-serve test-gpu gpu lint docs mini mini-late mini-onevision accuracy bench bench-bits growth bench-onevision bench-session bench-slots bench-stall bench-schema bench-triton bench-serve bench-peers bench-kernel full-size full-size-engines resolve mutants fresh clean

demo: $(READY)
	$(BIN)/star-export build --model models/mini --keep 64 --output $(OUT)/bundle --overwrite
	$(BIN)/star-export run $(OUT)/bundle --image docs/shapes.png --prompt "What color is the square?"
	$(BIN)/star-export show $(OUT)/bundle --image docs/shapes.png --prompt "What number is written?" -o $(OUT)/show.png
	$(BIN)/star-export check $(OUT)/bundle --image docs/shapes.png
	$(BIN)/star-export eval $(OUT)/bundle --limit 70
	$(BIN)/star-export bench $(OUT)/bundle --image docs/shapes.png --repeats 3
	$(BIN)/star-export build --model models/mini --keep 64 --output $(OUT)/engines --overwrite --backend tensorrt-rtx
	$(BIN)/star-export check $(OUT)/engines --polygraphy

test: $(READY)
	$(BIN)/pytest -n auto --dist loadfile

# A build of a 3 GB checkpoint under a memory limit; a decoder of 36 layers; training; every family in both element types.
test-slow: $(READY)
	$(BIN)/pytest -m slow --timeout 3600

# The C++ runtime: builds it, runs its tests, compares its answers with Python's.
test-cpp: $(READY)
	.ci/test_cpp.sh $(BIN)/python

# Inputs that nobody wrote, into all that it reads from outside, for half a minute of every core.
fuzz-cpp:
	.ci/fuzz_cpp.sh 30

# clang-tidy; minutes.
lint-cpp:
	.ci/tidy_cpp.sh

# It and Python in turns: a process from start to first token, and its memory; after `make test-cpp` and `make demo`.
bench-cpp: $(READY)
	$(BIN)/python .ci/bench_cpp.py $(OUT)/bundle docs/shapes.png

# 10,000 damaged manifests, parameters, tokenizers, graphs, pictures and prompts: none may end in a traceback.
SEED ?= 1
fuzz: $(READY)
	RUST_BACKTRACE=0 $(BIN)/python -m tests.fuzz --seed $(SEED)

# The real tritonserver, in an environment of its own, on this CPU.
test-triton: $(READY) $(TRITON)/.ready
	STAR_EXPORT_TRITON=$(TRITON) $(BIN)/pytest -m triton

# Many clients against a tritonserver; throughput, TTFT, and whether anything is wrong, lost or leaked.
load: $(READY) $(TRITON)/.ready
	STAR_EXPORT_TRITON=$(TRITON) $(BIN)/python .ci/load.py build/load

# What a schema and logprobs add to a decode step of the demo's bundle; after `make demo`.
bench-schema: $(READY)
	$(BIN)/python .ci/bench_schema.py $(OUT)/bundle docs/shapes.png

# Decode in the front door's process against a Triton model of its own; after `make load`.
bench-triton: $(TRITON)/.ready
	$(TRITON)/bin/python .ci/bench_triton.py build/load/star

# Many clients against `star-export serve`: the same, for 10,000 requests, with memory within 2 %. Half an hour.
REQUESTS ?= 10000
load-serve: $(READY)
	$(BIN)/python .ci/load_serve.py build/load --requests $(REQUESTS)

# What HTTP adds to the service, the same requests both ways in turns; after `make demo` and `make load-serve`.
bench-serve: $(READY)
	taskset -c 0 $(BIN)/python .ci/bench_serve.py $(OUT)/bundle build/load/star

# Needs an NVIDIA GPU, its driver and star-export[tensorrt]; `make test` runs most of it on a fake GPU.
test-gpu: $(READY)
	$(BIN)/pytest -m gpu --timeout 3600

# Everything that this machine's GPU can be asked, in build/gpu/report.md.
gpu: $(READY)
	$(BIN)/python .ci/gpu_report.py build/gpu

# mypy and import-linter see only one of the four source folders: they look at an installed copy.
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/installed build/lib && $(BIN)/pip install -q --no-deps --target build/installed .
	cd build/installed && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml -p star_export
	cd build/installed && PYTHONPATH=. ../../$(BIN)/lint-imports --no-cache --config ../../pyproject.toml
	$(BIN)/python .ci/shape.py
	$(BIN)/python .ci/cli_reference.py --check

# docs/cli.md, from the commands themselves.
docs: $(READY)
	$(BIN)/python .ci/cli_reference.py

# The mini model of models/mini, from nothing; a run that was stopped goes on. Hours on two CPU cores.
mini: $(READY)
	$(BIN)/python -m models.training mini models/mini --work build/mini

# The same without practice halfway, for docs/accuracy-late.md.
mini-late: $(READY)
	$(BIN)/python -m models.training mini-late models/mini-late --work build/mini-late

# The mini OneVision model of models/mini-onevision, likewise; it begins with the mini model's language model.
mini-onevision: $(READY)
	$(BIN)/python -m models.training mini-onevision models/mini-onevision --work build/mini-onevision

# docs/accuracy.md, docs/accuracy-late.md and their plots; an hour on a CPU core. A run that was stopped goes on with
# RESUME=--resume.
accuracy: $(READY)
	mkdir -p build
	$(BIN)/star-export compare --model models/mini --task shapes --limit 280 --threads 1 --quantize int8 --quantize int4 -o docs/accuracy.md --answers build/accuracy.jsonl $(RESUME)
	$(BIN)/star-export compare --model models/mini-late --task shapes --limit 280 --threads 1 -o docs/accuracy-late.md --answers build/accuracy-late.jsonl $(RESUME)

# The table of docs/performance.md.
BENCH := build/bench
bench: $(READY)
	$(BIN)/python -m star_export.testing.checkpoints bench $(BENCH)/checkpoint
	$(BIN)/star-export build --model $(BENCH)/checkpoint --no-prune --output $(BENCH)/unpruned --overwrite
	$(BIN)/star-export build --model $(BENCH)/checkpoint --schedule balanced-64 --output $(BENCH)/balanced --overwrite
	$(BIN)/star-export bench $(BENCH)/balanced --image docs/shapes.png --baseline $(BENCH)/unpruned
	$(BIN)/star-export build --model $(BENCH)/checkpoint --schedule fast-64 --proportional --output $(BENCH)/fast --overwrite
	$(BIN)/star-export bench $(BENCH)/fast --image docs/shapes.png --baseline $(BENCH)/unpruned --side pruned --side unpruned --side hf-sdpa
	$(BIN)/star-export build --model $(BENCH)/checkpoint --keep 64 --output $(BENCH)/bundle --overwrite
	$(BIN)/star-export bench $(BENCH)/bundle --image docs/shapes.png --baseline $(BENCH)/unpruned --side pruned --side unpruned

# The same model in float32, 8 and 4 bits, in turns; after `make bench`.
bench-bits: $(READY)
	$(BIN)/star-export build --model $(BENCH)/checkpoint --schedule balanced-64 --quantize int8 --quantize-vision --output $(BENCH)/int8 --overwrite
	$(BIN)/star-export build --model $(BENCH)/checkpoint --schedule balanced-64 --quantize int4 --quantize-vision --output $(BENCH)/int4 --overwrite
	$(BIN)/star-export bench $(BENCH)/balanced $(BENCH)/int8 $(BENCH)/int4 --image docs/shapes.png

# docs/page.png: the page of `star-export serve`, in the machine's Chromium.
page-shot: $(READY)
	test -e $(OUT)/bundle/manifest.json || $(BIN)/star-export build --model models/mini -o $(OUT)/bundle
	$(BIN)/python -m tests.serving.page.shot $(OUT)/bundle docs/page.png

# docs/growth.png: time and memory against text, tokens kept, batch and model size. Minutes; 1.4 GB of disk.
growth: $(READY)
	$(BIN)/python -m star_export.measure.growth build/growth --picture docs/shapes.png --output docs/growth.png

# The table of a large picture in docs/performance.md: LLaVA-OneVision-0.5B's shape, 640x480 pixels, 11 GB of disk.
LARGE := build/bench-onevision
bench-onevision: $(READY)
	$(BIN)/python -m star_export.testing.checkpoints bench-onevision $(LARGE)/checkpoint
	$(BIN)/python -c "from PIL import Image; Image.open('docs/shapes.png').resize((640, 480)).save('$(LARGE)/picture.png')"
	$(BIN)/star-export build --model $(LARGE)/checkpoint --keep 320 --prune-layer $(or $(LAYER),11) --output $(LARGE)/bundle --overwrite
	$(BIN)/star-export bench $(LARGE)/bundle --image $(LARGE)/picture.png --side pruned --side unpruned --side hf-sdpa --repeats 3

# Bundles of two published models' full size, made of zeros: time and memory of a build. 17 GB of disk.
full-size: $(READY)
	$(BIN)/python -m star_export.testing.checkpoints bench-onevision build/full/onevision --zeros
	/usr/bin/time -v $(BIN)/star-export build --model build/full/onevision --keep 320 --dtype float16 --output build/full/onevision-star --overwrite
	$(BIN)/python -m star_export.testing.checkpoints v1.6-mistral-7b build/full/mistral --zeros
	/usr/bin/time -v $(BIN)/star-export build --model build/full/mistral --keep 320 --dtype float16 --output build/full/mistral-star --overwrite

# LLaVA-1.5's full size with engines, without a GPU; `make full-size-engines SIZE=13b` needs 27 GB of disk.
SIZE ?= 7b
full-size-engines: $(READY)
	$(BIN)/python -m star_export.testing.checkpoints 1.5-$(SIZE) build/full/$(SIZE) --zeros
	/usr/bin/time -v $(BIN)/star-export -v build --model build/full/$(SIZE) --keep 64 --backend tensorrt-rtx --output build/full/$(SIZE)-star --overwrite

# The other tables of docs/performance.md; after `make bench bench-bits`.
bench-session: $(READY)
	$(BIN)/python .ci/bench_session.py build/bench/bundle docs/shapes.png
	$(BIN)/python .ci/bench_session.py build/bench/int8 docs/shapes.png --variant spinning
	$(BIN)/python .ci/bench_session.py build/bench/int8 docs/shapes.png --variant spinning --neighbour

# How many requests run at once in 1 GiB of KV caches; after `make bench`.
bench-slots: $(READY)
	$(BIN)/python .ci/bench_slots.py build/bench/bundle docs/shapes.png

# How long others wait for a long prompt that arrives, with new requests prepared between decode steps and beside them.
bench-stall: $(READY)
	taskset -c 0 $(BIN)/python .ci/bench_stall.py build/stall --threads 1
	$(BIN)/python .ci/bench_stall.py build/stall --threads 1

# Bundles beside OpenVINO GenAI, transformers and llama.cpp, on this CPU; a peer that can't be had is a line that says why.
# Hours on two cores; `.venv/bin/python .ci/bench_peers.py --help` tells how to ask for less.
bench-peers: $(READY)
	-$(MAKE) $(PEERS)/.ready
	$(BIN)/python .ci/bench_peers.py build/peers

# The table of docs/kernels.md, on a GPU.
bench-kernel: $(READY)
	$(BIN)/python -m star_export.measure.kernel_bench

# That every extra can be installed from PyPI alone, on every supported Python.
resolve: $(READY)
	$(BIN)/python .ci/resolve.py

# Small faults planted in the logic, of which the tests should notice most: a sample within 15 minutes.
# The whole, hours: .venv/bin/python .ci/mutants.py --seconds 0
mutants: $(READY)
	$(BIN)/python .ci/mutants.py --seconds 600

# The README's two commands as a new user has them: a fresh clone, a fresh environment, packages from PyPI alone.
fresh:
	rm -rf build/fresh
	git clone -q . build/fresh
	env -u PIP_FIND_LINKS -u PIP_CONSTRAINT PIP_CONFIG_FILE=/dev/null $(MAKE) -C build/fresh demo
	env -u PIP_FIND_LINKS -u PIP_CONSTRAINT PIP_CONFIG_FILE=/dev/null $(MAKE) -C build/fresh test
	rm -rf build/fresh

define install_torch
@if [ "$$(uname -s)" = Linux ] && ! nvidia-smi -L > /dev/null 2>&1 && $(1)/python -c \
	    "import urllib.request as u; u.urlopen('$(TORCH_CPU)/torch/', timeout=5)" 2> /dev/null; then \
	    echo "downloading about 0.7 GB, with torch for CPUs: this machine has no NVIDIA GPU; pip is silent meanwhile"; \
	    $(1)/pip install -q --no-deps --index-url $(TORCH_CPU) -c constraints.txt torch \
	        || echo "not there: downloading about 3 GB, with torch for CUDA"; \
	else \
	    echo "downloading about 3 GB on Linux, with torch for CUDA; 0.7 GB elsewhere; pip is silent meanwhile"; \
	fi
endef

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(call install_torch,$(BIN))
	$(BIN)/pip install -q -c constraints.txt --editable '.[export,rtx,openvino,polygraphy,eval,serve,dev]'
	touch $@

$(TRITON)/.ready: pyproject.toml
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/pip install -q --editable '.[triton,schema]'
	touch $@

# optimum-intel wants an older transformers than ours, and does not import where torchvision lies beside it.
$(PEERS)/.ready: pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(call install_torch,$(PEERS)/bin)
	$(PEERS)/bin/pip install -q --editable . torch==2.13.0 optimum-intel==2.2.0 openvino-genai==2026.4.1.0 nncf==3.4.0
	$(PEERS)/bin/pip uninstall -q -y torchvision
	touch $@

clean:
	rm -rf build $(VENV) $(TRITON) $(PEERS) *.egg-info
