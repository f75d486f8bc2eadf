# `make demo` and `make test` need Python >= 3.11 and nothing else; everything lands in .venv.
PYTHON ?= python3
# How pip finds torch. Empty: whatever your pip is set up for. See the README for CPU-only and CUDA builds.
TORCH_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# llama.cpp, a peer of the benchmark, is compiled into an environment of its own.
LLAMA := .venv-bench
# A folder of tiny checkpoints, each written by `save_pretrained`, with what transformers answered beside it.
ZOO ?=

FUZZ ?= 10000

.PHONY: demo test check fast fuzz bench gpu-check offloading offloading-check fitted soak soak-processes together scale sharing sharing-scaled \
  targets placement instances accuracy families zoo-is-given calibrate clean

PICTURES := calibration/shapes/pictures
DEPLOYMENT := artifacts/deployments/shapes-vqa
ASK = $(BIN)/msao-compile run $(DEPLOYMENT) --max-new-tokens 48

demo: $(STAMP)
	@$(BIN)/msao-compile build recipes/shapes-vqa.toml --jobs 2
	@$(BIN)/msao-compile report $(DEPLOYMENT) --quiet
	@for route in edge cloud split; do \
	  echo; echo "== route $$route"; \
	  sed -n '1p;2p;12p' $(PICTURES)/questions.jsonl | $(BIN)/python -c "import json, sys; [print(row['image'], row['question'], sep='\t') for row in map(json.loads, sys.stdin)]" | \
	  while IFS="$$(printf '\t')" read -r picture question; do \
	    echo "$$picture: $$question"; \
	    $(ASK) --route $$route --image $(PICTURES)/$$picture --prompt "$$question" || exit 1; \
	  done || exit 1; \
	done
	@echo; echo "report: $(DEPLOYMENT)/report.html"

test: $(STAMP) check
	$(BIN)/python -m pytest tests --ignore=tests/bench -m "golden or whole"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest tests -m "not golden and not whole and not device"

# More made-up requests at a cloud server than a check has time for.
fuzz: $(STAMP)
	FUZZ=$(FUZZ) $(BIN)/python -m pytest tests/runtime/serve/cloud/test_fuzz.py

bench: $(STAMP)
	@$(LLAMA)/bin/python -c "import llama_cpp, gguf" 2>/dev/null || { $(PYTHON) -m venv $(LLAMA) && \
	  CMAKE_ARGS="-DGGML_NATIVE=on" $(LLAMA)/bin/python -m pip install --quiet -r tests/bench/requirements-llama.txt; } || true
	$(BIN)/python -m tests.bench --builds 1 --json docs/benchmarks.json --markdown docs/benchmarks.md

# On a machine with an NVIDIA GPU and no network: the environment here where there is one, else what $(PYTHON) has.
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tests.bench.gpu \
	  --json 'docs/gpu/{gpu}.json' --markdown 'docs/gpu/{gpu}.md'

# Ways to answer between edge and cloud under emulated links and devices: fits, then sweeps.
HARNESS := artifacts/bench/offloading
offloading: fitted
	$(BIN)/msao-compile bench $(HARNESS)/deployment --offload --samples $(HARNESS)/heldout/questions.jsonl \
	  --setting recipes/settings/msao.toml --jobs 2 --out $(HARNESS)/out
	cp $(HARNESS)/out/offloading.md $(HARNESS)/out/offloading.json $(HARNESS)/out/offloading.svg docs/

# The same harness against real processes on the clock: a near and a poor link, declared and this machine's own speeds.
CHECK = $(BIN)/msao-compile bench $(HARNESS)/deployment --offload --check --samples $(HARNESS)/heldout/questions.jsonl \
  --setting recipes/settings/msao.toml --questions 24 --rounds 3 --policy cloud-only --policy edge-only --policy stop-and-wait \
  --policy auto --out $(HARNESS)/check
offloading-check: $(STAMP)
	@test -f $(HARNESS)/deployment/deployment.json || $(MAKE) fitted
	$(CHECK) --mbps 300 --rtt-ms 20 --declared
	$(CHECK) --mbps 20 --rtt-ms 80 --declared
	$(CHECK) --mbps 300 --rtt-ms 20
	$(CHECK) --mbps 20 --rtt-ms 80
	cp $(HARNESS)/check/offloading-check.md $(HARNESS)/check/offloading-check.json docs/

# A deployment fitted on samples of its own, and others to show it on.
fitted: $(STAMP)
	$(BIN)/msao-compile build recipes/shapes-vqa.toml --jobs 2
	$(BIN)/python -m calibration.shapes --set fit --count 2400 --out $(HARNESS)/fit
	$(BIN)/python -m calibration.shapes --set heldout --count 2400 --out $(HARNESS)/heldout
	rm -rf $(HARNESS)/deployment && cp -r $(DEPLOYMENT) $(HARNESS)/deployment
	$(BIN)/msao-compile fit $(HARNESS)/deployment --samples $(HARNESS)/fit/questions.jsonl \
	  --held-out $(HARNESS)/heldout/questions.jsonl --epsilon 0.007 \
	  --setting recipes/settings/msao.toml --mbps 300 --rtt-ms 20

# What batching gives a cloud on this machine, and what a probe costs an edge.
together: $(STAMP)
	$(BIN)/python -m tests.bench.together artifacts/bench/together --json docs/together.json --markdown docs/together.md

# At least ten minutes of answers under random faults.
soak: $(STAMP)
	$(BIN)/python -m tests.soak --seconds 610 --clients 8 --deployment $(DEPLOYMENT) --json docs/soak.json

# The same against a real server process that is killed, started again and stopped meanwhile.
soak-processes: $(STAMP)
	$(BIN)/python -m tests.soak_processes --seconds 610 --clients 8 --deployment $(DEPLOYMENT) --json docs/soak-processes.json

scale: $(STAMP)
	$(BIN)/python -m tests.bench.scale --json docs/scale.json --markdown docs/scale.md

# What 14 public models over 5 tasks share, told from their config.json files.
sharing: $(STAMP)
	$(BIN)/python -m tests.bench.sharing --json docs/sharing.json --markdown docs/sharing.md

# The same models small and random, built for real: each alone and all together, compared bit for bit.
sharing-scaled: $(STAMP)
	$(BIN)/python -m tests.bench.scaled --json docs/sharing-scaled.json --markdown docs/sharing-scaled.md

targets: $(STAMP)
	$(BIN)/python -m tests.bench.targets --standard artifacts/bench --json docs/targets.json --markdown docs/targets.md

# Every published placement instance by every solver; `make instances` draws them again.
placement: $(STAMP)
	$(BIN)/python -m tests.bench.placement --json docs/placement.json --markdown docs/placement.md

instances: $(STAMP)
	$(BIN)/python -m tests.bench.instances

accuracy: $(STAMP)
	$(BIN)/python -m tests.bench.accuracy --json docs/accuracy.json --markdown docs/accuracy.md

families: zoo-is-given $(STAMP)
	$(BIN)/python -m tests.bench.families "$(ZOO)" --jobs 2 --json docs/families.json --markdown docs/families.md

zoo-is-given:
	@test -n "$(ZOO)" || { echo "say which checkpoints: make families ZOO=FOLDER, where each folder in FOLDER is one" >&2; exit 2; }

calibrate: $(STAMP)
	$(BIN)/python -m calibration.train
	$(BIN)/python -m calibration.evaluate

clean:
	rm -rf artifacts/store artifacts/deployments artifacts/bench

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt $(TORCH_FLAGS) torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[bench,compile,dev,fit,kit,place,rtx,serve]"
	touch $(STAMP)
