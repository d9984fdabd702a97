# The commands of MOFI. Each is a thin line over `python -m …`, whose --help lists every option with unit and default.
# Without variables all but compare work on the files of `make demo`.

DEMO      := runs/demo
PYTHON    ?= python3
PY        := .venv/bin/python
UV        := 0.13.9

# A misspelt variable would be ignored, and the command would run on the files of the demo.
KNOWN := PYTHON RUNNER INPUT KB TEXTS ANCHORS REDIRECTS LANGUAGES GRAPH NER_MODEL SENTENCE_ENCODER OUTPUT MESH CONFIG DATA ENCODER WORKDIR DATA_DIR DUMP EMBEDDINGS \
  BENCHMARKS ARGS GOLD WEIGHTS A B NAME FILES TESTS IMAGE WORKERS FLINK_MASTER DRY_RUN UNIT_ROWS UNIT_BYTES FROM \
  IMAGE_MEMBER TEXT_MEMBER TEXT_FIELD KEEP_FIELDS MAX_SIDE_PX RUN STEP ACCELERATOR DEVICE_MEMORY CLASSES MODEL CONTEXT_LENGTH PROFILE_STEPS \
  FORMAT RESULTS
UNKNOWN := $(filter-out $(KNOWN),$(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name))))
ifneq ($(UNKNOWN),)
$(error unknown variable $(UNKNOWN); the known ones are $(KNOWN) (variables of the environment go before make))
endif
ACCELERATORS := cuda13 tpu
ifneq ($(filter-out $(ACCELERATORS),$(ACCELERATOR)),)
$(error ACCELERATOR is '$(ACCELERATOR)'; give one of $(ACCELERATORS), or leave it out for the CPU)
endif
# What is made of files of the user's must not replace what the demo made of its own.
ifneq ($(and $(filter build-i2e,$(MAKECMDGOALS)),$(INPUT)),)
$(if $(OUTPUT),,$(error INPUT is given without OUTPUT, which would write over runs/demo/i2e; give OUTPUT=, a folder))
endif
ifneq ($(and $(filter build-kb,$(MAKECMDGOALS)),$(DUMP)$(TEXTS)$(ANCHORS)$(REDIRECTS)$(GRAPH)),)
$(if $(KB),,$(error DUMP, TEXTS, ANCHORS, REDIRECTS or GRAPH is given without KB, which would write over runs/demo/kb; give KB=, a folder))
endif

RUNNER    ?= direct

# Setup compiles no modules of packages: the demo imports a fifth of them. Each is kept as it is compiled on its first import.
unexport PYTHONDONTWRITEBYTECODE
INPUT     ?= $(DEMO)/corpus/pairs-*.tar
KB        ?= $(DEMO)/kb
TEXTS     ?= $(if $(DUMP),,$(INPUT))
ANCHORS   ?= $(if $(DUMP),,$(DEMO)/anchors/anchors.tsv)
REDIRECTS ?=
LANGUAGES ?= en
GRAPH     ?=
NER_MODEL ?= $(DEMO)/tagger/best-model.pt
SENTENCE_ENCODER ?= $(DEMO)/sentence-encoder
OUTPUT    ?=
MESH      ?= 1x1
CONFIG    ?= multitask_demo
DATA      ?= $(DEMO)/i2e
ENCODER   ?=
WORKDIR   ?=
DATA_DIR  ?=
DUMP      ?=
EMBEDDINGS ?=
BENCHMARKS ?= retrieval,entities
ARGS      ?=
GOLD      ?= evaluation/linking/labelled/alt_texts.jsonl evaluation/linking/labelled/captions.jsonl
WEIGHTS   ?=
IMAGE     ?=
WORKERS   ?=
UNIT_ROWS ?=
UNIT_BYTES ?=
FLINK_MASTER ?=
DRY_RUN   ?=
FROM      ?=
IMAGE_MEMBER ?=
TEXT_MEMBER ?=
TEXT_FIELD ?=
KEEP_FIELDS ?=
MAX_SIDE_PX ?=
ACCELERATOR ?=
DEVICE_MEMORY ?=
CLASSES   ?=
MODEL     ?=
CONTEXT_LENGTH ?=
PROFILE_STEPS ?=
# SENTENCE_ENCODER= without a value mines without one.
SENTENCES  = $(if $(SENTENCE_ENCODER),--sentence-encoder '$(SENTENCE_ENCODER)')
# Which members of a tar make a row.
MEMBERS    = $(if $(IMAGE_MEMBER),--image-member '$(IMAGE_MEMBER)') $(if $(TEXT_MEMBER),--text-member '$(TEXT_MEMBER)') \
  $(if $(TEXT_FIELD),--text-field '$(TEXT_FIELD)')
# The demo's pictures are a Parquet file instead of an I2E set; head and tail are counted in its training set.
DEMO_EVAL := $(if $(findstring entities,$(BENCHMARKS))$(filter all,$(BENCHMARKS)),\
  --option entities.data=evaluation.parquet --option entities.vocabulary=../i2e/vocabulary.jsonl)

export TF_CPP_MIN_LOG_LEVEL ?= 2
export TOKENIZERS_PARALLELISM ?= false
# The demo and the tests never use a model hub; other commands may, for example for NER_MODEL=flair/ner-english.
demo demo-check test test-cluster mutate: export HF_HUB_OFFLINE ?= 1

# Large arrays in pages of 2 MB, where Linux gives them to programs that ask: a step on a CPU writes hundreds of megabytes of new memory, and the
# kernel would hand them out 4 kB at a time.
train: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.DEFAULT_GOAL := help
.PHONY: help setup setup-gcp demo demo-check build-kb build-i2e flink-up flink-down explain retry data-card train encoder import export plan params eval eval-linker fit-linker compare tensorboard test test-cluster bench mutate docs lint format lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/setup.json: requirements.txt setup.cfg pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: '$(PYTHON)' is missing; install Python 3.11, 3.12 or 3.13, or name one with PYTHON=" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v < (3, 14))' || { echo "error: $$($(PYTHON) --version) is not 3.11, 3.12 or 3.13; name another with PYTHON=" >&2; exit 2; }
	@[ ! -L .venv ] || { echo "error: .venv is a link, and setup would empty what it points to; remove the link" >&2; exit 2; }
	@echo "setup: making a virtual environment in .venv (some 8 GB; about a minute, where packages arrive fast)"
	@start=$$(date +%s) && $(PYTHON) -m venv --clear .venv \
	  && .venv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV) \
	  && .venv/bin/uv pip sync --quiet --require-hashes --python $(PY) requirements.txt \
	  && .venv/bin/uv pip install --quiet --no-deps --no-build-isolation --python $(PY) -e . \
	  && echo "{\"step\": \"setup\", \"seconds\": $$(( $$(date +%s) - start ))}" > $@
	@echo "setup: done"

.venv/accelerator-%.txt: infra/accelerators/%.txt .venv/setup.json
	@echo "setup: adding JAX for $*"
	@.venv/bin/uv pip install --quiet --require-hashes --python $(PY) -r $<
	@cp $< $@

setup: .venv/setup.json $(ACCELERATOR:%=.venv/accelerator-%.txt) ## ACCELERATOR=cuda13|tpu: make .venv from requirements.txt, with JAX for GPUs or TPUs

setup-gcp: setup ## add Google's client libraries to .venv, for gs:// and RUNNER=dataflow
	@.venv/bin/uv pip install --quiet --require-hashes --python $(PY) -r infra/dataflow/requirements.txt

demo: setup ## run the whole loop on the embedded corpus; writes runs/demo/report.html
	@$(PY) infra/demo.py $(ARGS)

demo-check: demo ## run the demo, and fail when a number is below its goal
	@$(PY) -m evaluation.demo.run --demo $(DEMO) --check-goals

build-kb: setup ## DUMP= LANGUAGES= REDIRECTS= ANCHORS= TEXTS= GRAPH= KB=: build a knowledge base from a Wikidata dump
	@$(PY) -m pipeline.build_kb --source '$(or $(DUMP),$(DEMO)/corpus/kb_source.jsonl)' \
	  --languages '$(LANGUAGES)' $(if $(TEXTS),--texts '$(TEXTS)') $(if $(ANCHORS),--anchors '$(ANCHORS)') \
	  $(if $(REDIRECTS),--redirects '$(REDIRECTS)') $(if $(GRAPH),--graph '$(GRAPH)') $(MEMBERS) --output '$(KB)' $(ARGS)

build-i2e: setup ## INPUT= KB= NER_MODEL= SENTENCE_ENCODER= ENCODER= OUTPUT= FROM= RUNNER= WORKERS= UNIT_ROWS=: mine an I2E set from image-text pairs
	@$(PY) -m pipeline.build_i2e --runner '$(RUNNER)' $(if $(WORKERS),--workers '$(WORKERS)') \
	  $(if $(FLINK_MASTER),--flink-master '$(FLINK_MASTER)') $(if $(DRY_RUN),--dry-run) --input '$(INPUT)' --kb '$(KB)' --ner-model '$(NER_MODEL)' $(SENTENCES) \
	  --encoder '$(or $(ENCODER),$(DEMO)/models/bootstrap/encoder)' --output '$(or $(OUTPUT),$(DEMO)/i2e)' \
  $(if $(FROM),--from-set '$(FROM)') $(if $(UNIT_ROWS),--unit-rows '$(UNIT_ROWS)') \
  $(if $(UNIT_BYTES),--unit-bytes '$(UNIT_BYTES)') $(MEMBERS) $(if $(KEEP_FIELDS),--keep-fields '$(KEEP_FIELDS)') \
  $(if $(MAX_SIDE_PX),--max-side-px '$(MAX_SIDE_PX)') $(ARGS)

flink-up: setup ## WORKERS=: start a Flink cluster on this machine for RUNNER=flink (two task managers by default)
	@$(PY) infra/flink/cluster.py up $(if $(WORKERS),--workers '$(WORKERS)') $(ARGS)

flink-down: setup ## stop it, and all its processes
	@$(PY) infra/flink/cluster.py down $(ARGS)

explain: setup ## DATA= IMAGE=: why rows of a set ended as they did, step by step; without IMAGE, lists ids
	@$(PY) -m pipeline.explain --data '$(DATA)' $(if $(filter-out file,$(origin KB)),--kb '$(KB)') \
	  $(if $(IMAGE),--image $(foreach id,$(IMAGE),'$(id)')) $(ARGS)

retry: setup ## DATA=: run the failed rows of a set again, and no others
	@$(PY) -m pipeline.retry --data '$(DATA)' $(ARGS)

data-card: setup ## DATA= OUTPUT=: describe a set on one page, with JSON and a CSV of its entities
	@$(PY) -m pipeline.data_card --data '$(DATA)' $(if $(OUTPUT),--output '$(OUTPUT)') \
	  $(if $(filter-out file,$(origin KB)),--kb '$(KB)') $(ARGS)

train: setup ## CONFIG= DATA= WORKDIR= MESH= PROFILE_STEPS=: train an encoder on an I2E set (MESH is data x model)
	@$(PY) -m trainer.train --config '$(CONFIG)' --mesh '$(MESH)' --data '$(DATA)' \
	  --workdir '$(or $(WORKDIR),runs/$(CONFIG)-$(MESH))' \
	  $(if $(PROFILE_STEPS),--profile-steps '$(PROFILE_STEPS)') $(ARGS)

encoder: setup ## RUN= STEP= OUTPUT=: write an encoder from any checkpoint of a run, also while it goes on
	@$(if $(and $(RUN),$(STEP)),,$(error give RUN=, the WORKDIR of a run, and STEP=, the step of one of its checkpoints))
	@$(PY) -m trainer.write_encoder --run '$(RUN)' --step '$(STEP)' $(if $(OUTPUT),--output '$(OUTPUT)') $(ARGS)

import: setup ## MODEL= OUTPUT= CONTEXT_LENGTH=: write an encoder from a published model: CLIP, SigLIP, DINOv2, ...
	@$(if $(and $(MODEL),$(OUTPUT)),,$(error give MODEL=, a folder or a name of the Hugging Face hub, and OUTPUT=, the folder of the encoder))
	@$(PY) -m trainer.import_encoder --model '$(MODEL)' --output '$(OUTPUT)' \
	  $(if $(CONTEXT_LENGTH),--context-length '$(CONTEXT_LENGTH)') $(ARGS)

export: setup ## ENCODER= FORMAT=hf|onnx OUTPUT= RESULTS=: write a trained encoder for Hugging Face's Transformers or as ONNX, with a model card
	@$(if $(and $(ENCODER),$(OUTPUT)),,$(error give ENCODER=, a trained encoder, and OUTPUT=, a folder))
	@$(PY) -m trainer.export_encoder --encoder '$(ENCODER)' --format '$(or $(FORMAT),hf)' --output '$(OUTPUT)' \
	  $(if $(RESULTS),--results $(foreach folder,$(RESULTS),'$(folder)')) $(ARGS)

plan: setup ## CONFIG= MESH= DEVICE_MEMORY= CLASSES=: memory, collectives and FLOPs of a training step; nothing is allocated
	@$(PY) -m trainer.plan --config '$(CONFIG)' --mesh '$(MESH)' $(if $(DEVICE_MEMORY),--device-memory '$(DEVICE_MEMORY)') \
	  $(if $(CLASSES),--classes '$(CLASSES)') $(ARGS)

params: setup ## CONFIG= CLASSES=: name, shape and size of each parameter of a config
	@$(PY) -m trainer.params --config '$(CONFIG)' $(if $(CLASSES),--classes '$(CLASSES)') $(ARGS)

eval: setup ## ENCODER= or EMBEDDINGS=, BENCHMARKS= DATA_DIR= OUTPUT=: measure a model by published protocols
	@$(PY) -m evaluation.run $(if $(EMBEDDINGS),--embeddings '$(EMBEDDINGS)') \
	  $(if $(ENCODER)$(EMBEDDINGS),$(if $(ENCODER),--encoder '$(ENCODER)'),--encoder '$(DEMO)/models/multitask/encoder') \
	  --benchmarks '$(BENCHMARKS)' --output '$(or $(OUTPUT),runs/eval)' \
	  --data-dir '$(or $(DATA_DIR),$(DEMO)/corpus)' $(if $(DATA_DIR),,$(DEMO_EVAL)) $(ARGS)

eval-linker: setup ## GOLD= KB= NER_MODEL= SENTENCE_ENCODER= WEIGHTS=: the linker on labelled texts, beside simpler rules
	@$(PY) infra/eval_linker.py --gold $(GOLD) --kb '$(KB)' --ner-model '$(NER_MODEL)' \
	  $(if $(filter file,$(origin GOLD)),--demo '$(DEMO)') $(if $(WEIGHTS),--weights '$(WEIGHTS)') $(SENTENCES) $(ARGS)

fit-linker: setup ## SENTENCE_ENCODER= OUTPUT=: fit the linker's weights to the demo's texts and the labelled ones
	@$(PY) infra/fit_linker.py --demo $(DEMO) --labelled $(GOLD) --output '$(or $(OUTPUT),runs/linker-weights.json)' $(SENTENCES) $(ARGS)
	@$(PY) infra/fit_picture.py --demo $(DEMO) --weights '$(or $(OUTPUT),runs/linker-weights.json)' $(SENTENCES)

compare: setup ## A= B=: compare the results of two models, from the folders that make eval wrote
	@$(PY) -m evaluation.compare '$(or $(A),runs/eval)' $(if $(B),'$(B)') $(ARGS)

tensorboard: setup ## WORKDIR=: show training curves in a browser
	@.venv/bin/tensorboard --logdir '$(or $(WORKDIR),$(DEMO)/models)' $(ARGS)

test: setup ## run the tests, one process per core, at most 8 (ARGS='-n 0': one process)
	@$(PY) -m pytest -n logical --maxprocesses 8 --dist worksteal $(ARGS)

test-cluster: demo ## run the tests that need a cluster; they start and stop it, and work on files of the demo
	@$(PY) -m pytest -m cluster $(ARGS)

bench: ## NAME= ARGS=: run a benchmark of tests/benchmarks; without NAME, list them
ifdef NAME
bench: setup
	@PYTHONPATH=. $(PY) tests/benchmarks/$(NAME).py $(ARGS)
else
bench:
	@for file in tests/benchmarks/*.py; do \
	  printf '  make bench NAME=%-20s %s\n' "$$(basename $$file .py)" "$$(sed -n '1s/"""//gp' $$file)"; done
endif

mutate: setup ## FILES= TESTS=: break lines of FILES, one at a time, and print the changes that no test notices
	@$(PY) infra/mutate.py $(FILES) $(if $(TESTS),--tests $(TESTS)) $(ARGS)

docs: setup ## build the documentation into build/site; broken links are errors
	@.venv/bin/zensical build --clean --strict

lint: setup ## check with ruff, mypy and the import contracts
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports

format: setup ## format with ruff, and apply its fixes
	@.venv/bin/ruff check --fix --quiet . ; .venv/bin/ruff format .

lock: setup ## resolve setup.cfg with all extras into requirements.txt (exact versions and hashes)
	@.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header setup.cfg --extra all -o requirements.txt
	@echo 'apache-beam[gcp]' | .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header - -c requirements.txt -o infra/dataflow/requirements.txt
	@for accelerator in $(ACCELERATORS); do \
	  echo "jax[$$accelerator]" | .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header - -c requirements.txt -o infra/accelerators/$$accelerator.txt || exit 1; done

clean: ## remove runs/demo
	rm -rf $(DEMO)
