PYTHON ?= python3.11
BIN := .venv/bin
MODEL := .models/SmolLM2-135M-Instruct

.PHONY: schemas demo frontier test test-nodes test-gpu check lint bench-shard bench-train bench-sample bench-score bench-scale bench-checkpoint bench-memory bench-load bench-driver bench-plan sbom audit clean

demo: .venv/.runtime $(MODEL)  ## install, run all stages on the embedded triples, show what they changed
	$(BIN)/raydpo run configs/recipes/demo.yaml
	$(BIN)/raydpo show configs/recipes/demo.yaml --samples 3

frontier: .venv/.runtime $(MODEL)  ## the paper's experiment: expected reward against KL, of DPO and others
	$(BIN)/python -m infra.frontier vader

test: .venv/.dev $(MODEL)  ## the tests, in two processes
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder

test-nodes: .venv/.dev  ## runs that lose nodes, drivers, workers and storage, and end as if they had not
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m nodes

GPU_PYTHON ?= $(BIN)/python
test-gpu:  ## what needs a GPU, as plain torch, without Ray and vLLM: any Python that has torch will do
	$(GPU_PYTHON) -m tests.gpu

lint: .venv/.dev  ## the fast part of `make check`
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

schemas:  ## JSON schemas of recipe and cluster files, made anew
	$(BIN)/python -m pipeline.recipe.schema

check: lint test test-nodes

bench-shard: .venv/.dev $(MODEL)  ## the shard stage beside datasets.map; growth with pairs
	$(BIN)/python -m tests.benchmarks.shard

bench-train: .venv/.dev $(MODEL)  ## training speed and memory beside TRL's
	$(BIN)/python -m tests.benchmarks.train

bench-sample: .venv/.dev $(MODEL)  ## sampling through the stage beside the bare engine
	$(BIN)/python -m tests.benchmarks.sample

bench-score: .venv/.dev $(MODEL)  ## scoring speed beside TRL's, transformers' and a bare engine's; growth with pairs
	$(BIN)/python -m tests.benchmarks.score

bench-scale: .venv/.dev $(MODEL)  ## training on 1 and 2 workers, growth with pairs, the start on 2 million of them
	$(BIN)/python -m tests.benchmarks.scale

bench-checkpoint: .venv/.dev $(MODEL)  ## what checkpoints cost training, and the export's memory
	$(BIN)/python -m tests.benchmarks.checkpoint

bench-memory: .venv/.dev  ## peak memory of a training step against vocabulary, length and pairs
	$(BIN)/python -m tests.benchmarks.memory

bench-load: .venv/.dev  ## what each of 2 ranks holds while a model of 4.3 GB is read by shards and trained
	$(BIN)/python -m tests.benchmarks.load

bench-driver: .venv/.dev  ## what the driver does for each part, up to 100,000 of them
	$(BIN)/python -m tests.benchmarks.driver

bench-plan: .venv/.dev $(MODEL)  ## time and memory that plan says, beside what stages take
	$(BIN)/python -m tests.benchmarks.plan

sbom: .venv/.runtime  ## sbom.json: what is locked, as a CycloneDX bill of materials
	$(BIN)/uv tool run --from cyclonedx-bom==7.5.0 cyclonedx-py requirements infra/requirements/cpu.txt --output-file sbom.json

audit: .venv/.runtime  ## what is known to be vulnerable of what is locked; asks a public database
	$(BIN)/uv tool run pip-audit==2.10.1 --requirement infra/requirements/cpu.txt --no-deps --disable-pip --strict

# torch first and by itself, with its own needs; then everything else exactly as locked, by uv, which takes a tenth of
# pip's time. It compiles all of it, or each of Ray's processes would.
UV := uv==0.13.9
LOCKED = $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --compile-bytecode
.venv/.runtime: infra/requirements/cpu.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 $(UV)
	$(LOCKED) --requirement infra/requirements/cpu.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

.venv/.dev: .venv/.runtime infra/requirements/dev.txt
	$(LOCKED) --requirement infra/requirements/dev.txt
	touch $@

$(MODEL): | .venv/.runtime
	$(BIN)/python infra/demo/smollm2.py $(MODEL)

clean:  ## artifacts and caches; keeps .venv and .models
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
