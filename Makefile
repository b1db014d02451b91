# The book, its tests, and readouts of your own table. `make` alone lists what there is.
.DEFAULT_GOAL := help
.PHONY: help setup book test results readout studies bench lint readme lock clean

PYTHON  := .venv/bin/python
UV      := $(shell command -v uv 2>/dev/null || echo .tools/uv/bin/uv)
READY   := .venv/.ready
QUARTO_VERSION := 1.10.19
RESOLUTION := highest
PINNED_QUARTO  := .tools/quarto/bin/quarto

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(READY)  ## prepare the environment in .venv

$(READY): requirements.lock pyproject.toml .python-version
	@test -x "$(UV)" || { echo "setup: installing uv into .tools"; \
	  python3 -m venv .tools/uv >/dev/null 2>&1 && .tools/uv/bin/pip install --quiet uv || \
	  { rm -rf .tools/uv; python3 -m pip install --quiet --target .tools/uv uv; }; }
	@echo "setup: Python $$(cat .python-version) and the locked packages into .venv"
	@"$(UV)" venv --quiet --clear .venv
	@"$(UV)" pip sync --quiet --python $(PYTHON) --require-hashes requirements.lock
	@"$(UV)" pip install --quiet --python $(PYTHON) --no-deps --editable .
	@touch $(READY)

# `$(call render,FOLDER,ARGUMENTS)`: the Quarto on PATH, else the pinned one, else the offline
# edition. It falls back where there is no Quarto, never where Quarto fails.
define render
	if command -v quarto >/dev/null 2>&1; then quarto=quarto; \
	elif $(MAKE) --silent $(PINNED_QUARTO) && test -s $(PINNED_QUARTO); then \
	  quarto=$(CURDIR)/$(PINNED_QUARTO); \
	else quarto=; fi; \
	if [ -n "$$quarto" ]; then \
	  echo "book: rendering with Quarto $$($$quarto --version)"; \
	  QUARTO_PYTHON=$(CURDIR)/$(PYTHON) $$quarto render $(1) $(2); \
	else \
	  echo "book: no Quarto here, rendering the offline edition"; \
	  $(PYTHON) -m offline --project $(1) $(2); \
	fi
endef

# An empty file stands for "tried, and not to be had"; `make clean` forgets it.
$(PINNED_QUARTO): | $(READY)
	@mkdir -p $(@D)
	@"$(UV)" venv --quiet --clear .tools/quarto-env && \
	  "$(UV)" pip install --quiet --python .tools/quarto-env/bin/python \
	    quarto-cli==$(QUARTO_VERSION) >/dev/null 2>&1 && \
	  ln -sf ../../quarto-env/bin/quarto $@ || \
	  { echo "book: Quarto $(QUARTO_VERSION) could not be installed from its package"; : > $@; }

book: $(READY)  ## render the book into _output: site and PDF
	@$(call render,.,)
	@echo "book: site  _output/index.html  (search needs: $(PYTHON) -m http.server -d _output)"
	@echo "book: PDF   _output/trustworthy-readouts.pdf"

results: $(READY)  ## accept the headline numbers of the last complete render
	@$(PYTHON) tests/results.py accept

test: $(READY)  ## run the tests
	@$(PYTHON) -m pytest -n auto --dist loadfile

# Settings of a readout, for the table and for its page alike; the unit only labels the page.
SETTINGS := expected_share cluster cluster_variance
GIVEN    := $(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(name)))
UNKNOWN  := $(filter-out DATA UV PYTHON unit $(SETTINGS),$(GIVEN))

readout: $(READY)  ## readouts for your own table: make readout DATA=my.csv
	@test -n "$(DATA)" || { echo "readout: say which table: make readout DATA=my.csv"; exit 2; }
	@test -z "$(UNKNOWN)" || \
	  { echo "readout: no setting is called $(UNKNOWN); there are $(SETTINGS) unit"; exit 2; }
	@$(PYTHON) -m hbm readout "$$DATA" --users --output _readout/readouts.csv \
	  $(foreach name,$(filter $(SETTINGS),$(GIVEN)),--$(subst _,-,$(name)) "$($(name))")
	@case "$$DATA" in /*) data="$$DATA" ;; *) data="$(CURDIR)/$$DATA" ;; esac; \
	$(call render,chapters/readout,-P data:"$$data" \
	  $(foreach name,$(filter unit $(SETTINGS),$(GIVEN)),-P $(name):"$($(name))"))
	@echo "readout: page      _readout/index.html and _readout/index.pdf"
	@echo "readout: readouts  _readout/readouts.csv"

studies: $(READY)  ## compute the studies of all chapters, for the next render to find
	@$(PYTHON) -m offline.studies

bench: $(READY)  ## measure speed and memory, for the table in benchmarks
	@$(PYTHON) -m benchmarks $(ARGS)

lint: $(READY)  ## check code and chapters, and mend what can be mended
	@.venv/bin/ruff format --quiet . && .venv/bin/ruff check --quiet --fix .
	@ulimit -v 4000000; .venv/bin/panache lint --fix index.qmd chapters
	@$(PYTHON) -m pytest tests/test_book.py

readme: $(READY)  ## renew the picture and the table of the README
	@$(PYTHON) tests/readme.py

lock: $(READY)  ## renew requirements.lock from pyproject.toml
	@"$(UV)" pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --group book --group offline --group test --upgrade \
	  --resolution $(RESOLUTION) \
	  pyproject.toml -o requirements.lock

clean:  ## remove all that is made, the environment too
	@rm -rf .venv .tools .offline .quarto .store _output _readout
