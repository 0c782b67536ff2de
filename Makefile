# make demo | make lab | make test      Each makes .venv itself; repeated calls skip what is done.
PYTHON   ?= python3
PROMPT   ?= a dog barks in the rain
OUT      ?= demo.wav
LAB_ARGS ?=
RUNS     ?= runs
ATEN_CPU_CAPABILITY ?= avx2
ONEDNN_MAX_CPU_ISA  ?= AVX2
CONFIGS  := audiogen_nb/configs

VENV     := .venv
BIN      := $(VENV)/bin
PIP      := $(BIN)/python -m pip install -qq --disable-pip-version-check
CONFIG   := settings.ini setup.py MANIFEST.in pyproject.toml
LIBRARY  := $(shell find audiogen_nb -type f -not -name '*.pyc' 2>/dev/null)
export PROMPT OUT

.DEFAULT_GOAL := help
.PHONY: help demo lab test numeric fuzz kills docs figures sounds trial codec-race export clean-notebooks readme sync pocket clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

demo: $(VENV)/.demo ## generate one sound: make demo PROMPT="rain on a tin roof" OUT=rain.wav
	@echo "generating \"$$PROMPT\" with the pocket model ..."
	@$(BIN)/audiogen-nb generate "$$PROMPT" --out "$$OUT" --seed 0 $(if $(filter demo.wav,$(OUT)),--force)

lab: $(VENV)/.lab ## open the book in JupyterLab: make lab LAB_ARGS="--no-browser --port 8889"
	@$(BIN)/jupyter lab index.ipynb $(LAB_ARGS)

test: $(VENV)/.dev ## run every check
	@PYTHONWARNDEFAULTENCODING=1 $(BIN)/python -m pytest tests -n 2 --dist loadscope -ra --durations=10

numeric: $(VENV)/.dev ## run what another processor computes otherwise: make numeric ATEN_CPU_CAPABILITY=default
	@ATEN_CPU_CAPABILITY=$(ATEN_CPU_CAPABILITY) ONEDNN_MAX_CPU_ISA=$(ONEDNN_MAX_CPU_ISA) \
	  $(BIN)/python -m pytest tests -n 2 --dist loadscope -m numeric -ra --durations=10

fuzz: $(VENV)/.dev ## damage files in 2000 ways and load each: a result or a sentence (minutes)
	@$(BIN)/python tests/fuzz.py --n 2000

kills: $(VENV)/.dev ## kill 104 processes at random moments: nothing finished is lost (minutes)
	@$(BIN)/python tests/kills.py --n 104

docs: $(VENV)/.docs ## build the book as a site, _docs/site/index.html, from the notebooks' outputs
	@$(BIN)/python docs/build.py

figures: $(VENV)/.lab ## draw nbs/figures from the configurations
	@$(BIN)/python -c "from audiogen_nb.lab.drawings import draw_all; draw_all('nbs/figures')"

sounds: $(VENV)/.lab ## make nbs/sounds: recordings (fetched), takes of the bundled model
	@$(BIN)/python -c "from audiogen_nb.lab.gallery import make_sounds; make_sounds('nbs/sounds', 'audiogen_nb/sounds')"

trial: $(VENV)/.lab ## try the claims of the paper again (hours); results go to nbs/labs/results/trial.json
	@$(BIN)/audiogen-nb fetch-judge && $(BIN)/audiogen-nb fetch-recordings
	@$(BIN)/python -c "from audiogen_nb.lab.claims import full_trial; full_trial('$(RUNS)/trial', '$(RUNS)/trial.json')"
	@cp $(RUNS)/trial.json nbs/labs/results/trial.json

codec-race: $(VENV)/.lab ## train seven codecs against each other (hours); results go to nbs/labs/results/codec_race.json
	@$(BIN)/audiogen-nb fetch-judge && $(BIN)/audiogen-nb fetch-recordings --all
	@$(BIN)/python -c "from audiogen_nb.engine.surroundings import keep_freed_memory; keep_freed_memory(); \
	  from audiogen_nb.lab.codec_race import full_race; full_race('$(RUNS)/codec_race', '$(RUNS)/codec_race.json')"
	@cp $(RUNS)/codec_race.json nbs/labs/results/codec_race.json

export: $(VENV)/.dev ## write audiogen_nb/ from the notebooks
	@$(BIN)/nbdev_export && echo "audiogen_nb/ is written"

clean-notebooks: $(VENV)/.dev ## strip players, widget state and stray metadata from the notebooks
	@$(BIN)/python .ci/clean.py

readme: $(VENV)/.dev ## write README.md from index.ipynb
	@$(BIN)/python .ci/readme.py

sync: export clean-notebooks readme ## export, clean-notebooks and readme in one

pocket: $(VENV)/.lab ## train the bundled model again, from its recordings (seven hours on two cores)
	$(BIN)/audiogen-nb fetch-recordings --all
	$(BIN)/audiogen-nb fit-codec $(CONFIGS)/pocket_codec.json --out $(RUNS)/pocket_codec
	$(BIN)/audiogen-nb fit-codec $(CONFIGS)/pocket_codec_adversarial.json --start-from $(RUNS)/pocket_codec \
	  --out $(RUNS)/pocket_codec_adversarial
	$(BIN)/audiogen-nb fit-codec $(CONFIGS)/pocket_codec_levels.json --start-from $(RUNS)/pocket_codec_adversarial \
	  --out $(RUNS)/pocket_codec_levels
	$(BIN)/audiogen-nb fit-lm $(CONFIGS)/pocket_lm.json --codec-run $(RUNS)/pocket_codec_levels --out $(RUNS)/pocket_lm
	$(BIN)/audiogen-nb fit-lm $(CONFIGS)/pocket_lm_listening.json --codec-run $(RUNS)/pocket_codec_levels \
	  --start-from $(RUNS)/pocket_lm --out $(RUNS)/pocket_lm_listening
	@echo "copy $(RUNS)/pocket_lm_listening/model over audiogen_nb/pocket to bundle it"

clean: ## remove .venv and build leftovers
	rm -rf $(VENV) _docs build dist *.egg-info

$(BIN)/python:
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The editable installs below include the plain one, so that one is skipped where they are.
$(VENV)/.demo: $(CONFIG) $(LIBRARY) | $(BIN)/python
	@if [ ! -e $(VENV)/.lab ] && [ ! -e $(VENV)/.dev ]; then \
	  echo "installing audiogen_nb into $(VENV) (the first time this fetches PyTorch: a few minutes) ..."; \
	  rm -rf build && $(PIP) . && rm -rf build; fi
	@touch $@

$(VENV)/.lab: $(CONFIG) | $(BIN)/python
	@echo "installing audiogen_nb and JupyterLab into $(VENV) (the first time: a few minutes) ..."
	@$(PIP) -e '.[notebooks]'
	@touch $@

$(VENV)/.dev: $(CONFIG) | $(BIN)/python
	@echo "installing audiogen_nb and its development tools into $(VENV) (the first time: a few minutes) ..."
	@$(PIP) -e '.[dev]'
	@touch $@

# The site is made of files alone: the library need not be installed, so this fetches no PyTorch.
$(VENV)/.docs: settings.ini | $(BIN)/python
	@echo "installing the site's tools into $(VENV) (the first time: a minute) ..."
	@sed -n 's/^docs_requirements = //p' settings.ini | xargs $(PIP)
	@touch $@
