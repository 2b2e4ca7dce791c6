PYTHON ?= python3
VENV ?= .venv
# Test processes; each takes about 2 GB.
JOBS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo test test-slow test-companions models-page companions-page test-versions check-constraints goldens lint types docs release-check \
	mutate bench bench-cpu bench-gpu bench-gpu-first bench-gpu-attention bench-gpu-models clean

help:
	@echo "make demo       generate a video dense and sparse on this machine and compare (about 5 minutes on 2 cores)"
	@echo "make test       make the environment, run lint and the tests (about 20 minutes on 2 cores)"
	@echo "make test-slow  the tests that take minutes each"
	@echo "make test-companions    the tests beside torchao, quanto, bitsandbytes, GGUF and cache-dit, which it installs (150 MB)"
	@echo "make models-page    run every diffusers pipeline of docs/models.md, whole and by blocks, and write the page (an hour)"
	@echo "make test-versions      the core tests with other versions of Python, torch and diffusers (gigabytes, an hour)"
	@echo "make check-constraints  whether constraints.txt can be installed on Python 3.10 to 3.13 (a minute)"
	@echo "make companions-page    write the table of docs/companions.md anew, out of what the tests check"
	@echo "make goldens    write the printed outputs in tests/goldens, docs/debugging.md and docs/options.md anew"
	@echo "make lint       ruff and mypy; part of make test"
	@echo "make docs       the documentation as a site, in out/site"
	@echo "make release-check  build sdist and wheel, check them, install the wheel elsewhere and compile a model there"
	@echo "make mutate     put known faults into the kernels and see the tests notice (about 12 minutes)"
	@echo "make bench-gpu  the GPU tests and the whole benchmark on a large GPU, into docs/benchmarks (half an hour)"
	@echo "make bench-gpu-first  the first ten minutes on a GPU, step by step, each stored (first_session.py --dry-run without one)"
	@echo "make bench-cpu  the CPU benchmark, as JSON and a page in docs/benchmarks (a quiet machine, 10 minutes)"
	@echo "make bench-ulysses  a sparse step against a dense one under Ulysses, two processes, into docs/benchmarks (minutes)"
	@echo "make bench-trace    CPU seconds of the first call of Wan 14B and HunyuanVideo by blocks, and of explain (2 minutes)"
	@echo "make bench      time sparse against dense: an attention and a transformer block, on this machine"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[test,lint]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

# In the order of collection, which tests/conftest.py begins with the longest file.
test: lint
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow -n $(JOBS)

# Beside, not among, what the other tests run with: transformers and peft look for these libraries and act on them.
COMPANIONS := out/companions
test-companions: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(COMPANIONS) \
		-c constraints.txt bitsandbytes cache-dit gguf ninja optimum-quanto torchao
	PYTHONPATH=$(COMPANIONS) $(BIN)/python -m pytest -n $(JOBS) tests/test_quantised.py tests/test_step_caches.py \
		tests/test_companions.py tests/test_composed.py tests/test_ulysses.py tests/test_sharded.py tests/test_examples.py

# The page says what the tests check: it is written only where all of it was found so. Without --run it is only written.
models-page: $(INSTALLED)
	$(BIN)/python tests/pipeline_table.py --run

companions-page: $(INSTALLED)
	PYTHONPATH=$(COMPANIONS) $(BIN)/python tests/companion_table.py

goldens: $(INSTALLED)
	UPDATE_GOLDENS=1 $(BIN)/python -m pytest -q tests/test_report.py tests/test_cli.py tests/test_dump.py \
		tests/test_debugging_page.py tests/test_config.py

lint: $(INSTALLED) types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# The packages laid out as they are installed, for mypy and the site: neither follows an editable install's import hook.
TYPED := out/typed
.PHONY: laid-out
laid-out:
	@rm -rf $(TYPED) && mkdir -p $(TYPED)
	@cp -r svg_compile $(TYPED)/ && cp -r passes kernels $(TYPED)/svg_compile/

types: $(INSTALLED) laid-out
	cd $(TYPED) && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p svg_compile
	MYPYPATH=$(TYPED) $(BIN)/mypy examples tests/visible_types.py

check-constraints: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.13"
	$(BIN)/python tests/versions.py resolve

test-versions: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.13"
	$(BIN)/python tests/versions.py test

# A link, an anchor or a name that leads nowhere is an error.
docs: $(INSTALLED) laid-out
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt mkdocs-material "mkdocstrings[python]"
	PATH=$(abspath $(BIN)):$$PATH NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "out/site/index.html"

release-check: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt build twine
	$(BIN)/python tests/release.py out/release

mutate: $(INSTALLED)
	$(BIN)/python tests/mutation/run.py

bench: $(INSTALLED)
	$(BIN)/svg-compile bench attention --json out/bench/attention.json
	$(BIN)/svg-compile bench block --json out/bench/block.json
	$(BIN)/svg-compile bench page out/bench/attention.json out/bench/block.json --out out/bench/page.md

# What the README's CPU table is made of: run it on a machine that does nothing else.
CPU_RESULTS ?= docs/benchmarks/cpu
bench-cpu: $(INSTALLED)
	$(BIN)/svg-compile bench attention --dtype bfloat16 --repeats 9 --json $(CPU_RESULTS)/attention-bfloat16.json
	$(BIN)/svg-compile bench attention --dtype float32 --repeats 9 --json $(CPU_RESULTS)/attention-float32.json
	$(BIN)/svg-compile bench block --density 0.3 --dtype bfloat16 --json $(CPU_RESULTS)/block-small.json
	$(MAKE) bench-cpu-page

.PHONY: bench-cpu-page
bench-cpu-page: $(INSTALLED)
	$(BIN)/svg-compile bench page $(sort $(wildcard $(CPU_RESULTS)/*.json)) --out $(CPU_RESULTS).md --heading "On a CPU"

# Two processes on the CPU's cores, or on two GPUs. Run it on a machine that does nothing else.
.PHONY: bench-ulysses
bench-ulysses: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node 2 examples/several_gpus_times.py \
		--json docs/benchmarks/ulysses.json --page docs/benchmarks/ulysses.md

# CPU seconds of a look at a whole model, in the size that was released, without weights.
.PHONY: bench-trace
bench-trace: $(INSTALLED)
	$(BIN)/svg-compile bench trace --model WanTransformer3DModel --model HunyuanVideoTransformer3DModel \
		--json docs/benchmarks/trace.json
	$(BIN)/svg-compile bench page docs/benchmarks/trace.json --out docs/benchmarks/trace.md --heading "A look at a model"

# Results are stored beside the page that is made of them. Where nothing can be installed: make INSTALLED= BIN=/usr/bin
RESULTS ?= docs/benchmarks/h200
SWEEP := --density 0.1 --density 0.2 --density 0.3 --density 0.5 --density 1.0 --peer cudnn --peer svg --repeats 5
GPU_PRESETS := $(addprefix bench-gpu-attention-,hunyuanvideo-720p wan-720p cogvideox1.5 cosmos)
GPU_BLOCKS := $(addprefix bench-gpu-block-,hunyuanvideo wan-14b cogvideox1.5)
GPU_FORWARDS := $(addprefix bench-gpu-forward-,hunyuanvideo wan-14b)
.PHONY: $(GPU_PRESETS) $(GPU_BLOCKS) $(GPU_FORWARDS)

# Each step is a target of its own, and a step that fails keeps no other from being measured.
bench-gpu: $(INSTALLED)
	$(BIN)/python -m pytest tests/gpu -m gpu -q --ignore tests/gpu/test_hopper.py
	-$(MAKE) -k $(GPU_PRESETS) $(GPU_BLOCKS) $(GPU_FORWARDS)
	$(MAKE) bench-gpu-page

# Without a GPU it ends at once; SESSION=--dry-run tries its steps on the CPU.
SESSION ?= --results $(RESULTS)/first
bench-gpu-first: $(INSTALLED)
	$(BIN)/python tests/gpu/first_session.py $(SESSION)

bench-gpu-attention: $(GPU_PRESETS)
bench-gpu-models: $(GPU_BLOCKS) $(GPU_FORWARDS)

$(GPU_PRESETS): bench-gpu-attention-%: $(INSTALLED)
	$(BIN)/svg-compile bench attention --preset $* --density 0.25 --seconds 150 --json $(RESULTS)/$*.json
	$(BIN)/svg-compile bench attention --preset $* $(SWEEP) --seconds 90 --json $(RESULTS)/$*-sweep.json

$(GPU_BLOCKS): bench-gpu-block-%: $(INSTALLED)
	$(BIN)/svg-compile bench block --model $* --seconds 60 --json $(RESULTS)/block-$*.json

$(GPU_FORWARDS): bench-gpu-forward-%: $(INSTALLED)
	$(BIN)/svg-compile bench forward --model $* --repeats 3 --json $(RESULTS)/forward-$*.json

bench-gpu-page: $(INSTALLED)
	$(BIN)/svg-compile bench page $(RESULTS)/*.json --out $(RESULTS).md --heading "On an H200"

clean:
	rm -rf $(VENV) build dist out *.egg-info
