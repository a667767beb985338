# make distill   installs the package, and distills the sample world's CLIP into its BART
# make test      installs the package, and runs the tests
# make zeroshot  after make distill: every zero-shot benchmark on the sample world
# make finetune  after make distill: every fine-tuning on the sample world, about half an hour
# make demo      after make distill: a page to try the model on
# make check     formatter, linter and type checker
# make test-lowest   the tests on the lowest releases that setup.cfg allows, in .venv-lowest; on Python 3.10 to 3.12
# make test-newest   the tests on the newest releases, in .venv-newest
# make docs      the documentation, in build/docs; warnings are errors
# make dist      wheel and source distribution, in dist

PYTHON ?= python3
VENV ?= .venv
EXTRA ?= dev
BIN := $(VENV)/bin
RUN := runs/sample
PRETRAINING := runs/pretraining
export TOKENIZERS_PARALLELISM := false
# The sample world's models are too small for more: two threads on busy cores are several times slower than one, and with
# one thread the figures do not depend on the number of cores.
export OMP_NUM_THREADS ?= 1
# But on two idle cores a step of the distillation takes two thirds of the time; make distill THREADS=1 on busy ones.
THREADS ?= 2

.PHONY: help distill zeroshot finetune demo test test-slow test-lowest test-newest check docs dist format sample-models clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(BIN)/.installed: setup.cfg pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS:%=--constraint %) --editable '.[$(EXTRA)]'
	touch $@

distill: $(BIN)/.installed
	rm -rf $(RUN)
	$(BIN)/vlkd-pl sample $(RUN)/world
	$(BIN)/vlkd-pl cache --config sample/distill.yaml --model.image_features all --output $(RUN)/features
	$(BIN)/vlkd-pl test --config sample/distill.yaml --config sample/before.yaml
	OMP_NUM_THREADS=$(THREADS) $(BIN)/vlkd-pl fit --config sample/distill.yaml
	$(BIN)/vlkd-pl test --config sample/distill.yaml --config sample/after.yaml
	$(BIN)/vlkd-pl test --config zeroshot_vqav2.yaml --config sample/zeroshot_vqav2.yaml
	$(BIN)/vlkd-pl summary $(RUN)

zeroshot: $(addprefix zeroshot-,zeroshot_coco zeroshot_nocaps zeroshot_vqav2 zeroshot_okvqa retrieval_coco classification)

zeroshot-%: $(BIN)/.installed
	$(BIN)/vlkd-pl test --config $*.yaml --config sample/$*.yaml

# Images: the model folder that the fit writes is tested. Text: the best checkpoint is.
FINETUNE_IMAGES := $(addprefix finetune-,captioning_coco scst_coco vqa_vqav2 vqa_vqav2_1percent vqa_karpathy)
FINETUNE_TEXT := $(addprefix finetune-,glue summarization_xsum)

finetune: $(FINETUNE_IMAGES) $(FINETUNE_TEXT)

finetune-scst_coco: finetune-captioning_coco

$(FINETUNE_IMAGES) $(FINETUNE_TEXT): finetune-%: $(BIN)/.installed
	rm -rf $(RUN)/$*
	$(BIN)/vlkd-pl fit $(CONFIGS:%=--config %.yaml)
	$(BIN)/vlkd-pl test $(CONFIGS:%=--config %.yaml) --run_dir $(RUN)/$*/test $(TESTED)

$(FINETUNE_IMAGES) $(FINETUNE_TEXT): CONFIGS = $(@:finetune-%=%) $(@:finetune-%=sample/%)
finetune-scst_coco: CONFIGS = scst_coco sample/captioning_coco sample/scst_coco
finetune-vqa_vqav2_1percent: CONFIGS = vqa_vqav2 overlays/vqav2_1percent sample/vqa_vqav2 sample/vqav2_1percent
$(FINETUNE_IMAGES): TESTED = --model.init_from $(RUN)/$(@:finetune-%=%)/model
$(FINETUNE_TEXT): TESTED = --ckpt_path $(RUN)/$(@:finetune-%=%)/checkpoints/best.ckpt

demo: $(BIN)/.installed
	$(BIN)/vlkd-pl demo --model $(RUN)/distill/model --num-masks 3

test: $(BIN)/.installed
	$(BIN)/python -m pytest -q -n auto --dist loadfile

test-lowest: build/lowest.txt
	$(MAKE) test VENV=.venv-lowest EXTRA=test CONSTRAINTS=$<

test-newest:
	rm -rf .venv-newest
	$(MAKE) test VENV=.venv-newest

build/lowest.txt: setup.cfg .ci/lowest.py
	mkdir -p build
	$(PYTHON) .ci/lowest.py > $@

dist: $(BIN)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check build twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

test-slow: $(BIN)/.installed
	$(BIN)/python -m pytest -q -m slow

check: $(BIN)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(BIN)/.installed
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs build/docs

format: $(BIN)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The small CLIP and BART that ship with the package, trained anew: hours on two cores. Interrupted and called again, it
# resumes: a model that is trained stays as it is, until make clean.
sample-models: $(addprefix $(PRETRAINING)/,clip_log/.trained bart_separate_log/.trained)
	mkdir -p src/vlkd_pl/sample/models
	cp -r $(PRETRAINING)/clip $(PRETRAINING)/bart src/vlkd_pl/sample/models/

$(PRETRAINING)/bart_questions_log/.trained: $(PRETRAINING)/bart_log/.trained
$(PRETRAINING)/bart_separate_log/.trained: $(PRETRAINING)/bart_questions_log/.trained
$(PRETRAINING)/bart_questions_log/.trained: STAGES = bart bart_questions
$(PRETRAINING)/bart_separate_log/.trained: STAGES = bart bart_questions bart_separate

$(PRETRAINING)/%_log/.trained: STAGES = $*
$(PRETRAINING)/%_log/.trained: $(PRETRAINING)/tokenizers/.trained
	$(BIN)/vlkd-pl fit $(STAGES:%=--config sample/%.yaml) --ckpt_path last
	touch $@

$(PRETRAINING)/tokenizers/.trained: | $(BIN)/.installed
	$(BIN)/python -m vlkd_pl.sample.tokenizers $(PRETRAINING)/tokenizers
	touch $@

clean:
	rm -rf runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
