# Everything that this project does, from a bare clone:
#
#   make book        run the embedded grid and build the book (no download of data)
#   make test        run the tests, the book's included
#   make arithmetic  run the tests that rounding could decide, under other arithmetic
#   make newest      run the tests with the newest versions that pyproject.toml allows
#   make package     build wheel and sdist, and try the wheel in an environment without extras
#   make lock        write constraints.txt, the exact versions that everything else is run with
#   make paper       the book with the paper's own grid; RCONV_DATA names the data folder
#   make kept        draw the pages of points whose records are kept, as make book does
#   make records     keep that grid's results in book/records, as make paper does
#   make notebooks   write the .ipynb beside each .md in notebooks/, and those of the grids' points
#   make lint, make clean
#
# The first run makes .venv with the versions of constraints.txt. PYTHON=python uses an environment
# of your own instead; `make install PYTHON=python` installs the same versions into it (conda,
# Binder). PROFILE=slurm uses a cluster, and UV_TORCH_BACKEND=cpu in the environment installs the
# small CPU build of torch.

GRID    := embedded
PROFILE := local
PAGES   := html

VENV    := .venv
LOCK    := constraints.txt
PLUGIN  := $(filter slurm,$(PROFILE))

ifeq ($(origin PYTHON),command line)
READY :=
else
PYTHON := $(VENV)/bin/python
READY  := $(VENV)/.installed$(PLUGIN:%=-%)
endif

ifdef RCONV_DATA # notebooks run in their own folder
override export RCONV_DATA := $(abspath $(RCONV_DATA))
endif

SHELL := bash
.SHELLFLAGS := -o pipefail -c
RUN := $(PYTHON) -m
WARM := $(if $(PLUGIN),,$(PYTHON) workflow/warm.py)# a job's kernel is its own, on its own node
# What the tools say when nothing is wrong.
SNAKEMAKE := Select jobs|Execute .* jobs|Using |Assuming |Building DAG|Nothing to be done|Complete log
CHATTER := ^($(SNAKEMAKE)|Elapsed time|\[IPKernelApp\] WARNING)
HUSH := 2> >(grep --line-buffered -vE '$(CHATTER)' >&2)

.PHONY: book both paper records grid kept html test arithmetic newest package lock install notebooks lint clean

book: $(READY) # both with the same warm kernels
	@$(WARM) $(MAKE) --no-print-directory both WARM=

# The pages that could be made are built even if a point of the grid failed; make fails all the same.
both:
	@$(MAKE) --no-print-directory --keep-going --jobs=2 grid kept; grid=$$?; \
	$(MAKE) --no-print-directory $(PAGES) && exit $$grid

paper:
	@$(MAKE) --no-print-directory book GRID=paper PAGES="records html"

records: $(READY)
	@$(PYTHON) workflow/records.py paper

grid: $(READY)
	@echo "Grid $(GRID): a page for every dataset and architecture"
	@$(WARM) $(RUN) snakemake $(POINT:%=book/%.ipynb) --profile workflow/profiles/$(PROFILE) \
	    --configfile workflow/grids/$(GRID).yaml $(HUSH)

kept: $(READY)
	@OMP_NUM_THREADS=1 $(PYTHON) workflow/kept.py

# Sphinx warns of a page only when it reads it. So after a build that failed or was killed, all
# pages are read again; the notebooks' outputs stay cached.
html: $(READY) kept
	@echo "Pages: notebooks that changed are executed"
	@[ -e _build/complete ] || rm -rf _build/.doctrees
	@rm -f _build/complete
	@$(WARM) $(PYTHON) -c 'from jupyter_book.cli.main import main; main()' build . \
	    --warningiserror --keep-going $(HUSH) \
	    | { grep --line-buffered -o 'notebooks/.*Executed notebook in .* seconds' || true; }
	@touch _build/complete
	@echo "The book: file://$(CURDIR)/_build/html/index.html"

test: $(READY)
	@$(RUN) pytest --numprocesses auto --no-loadscope-reorder

# Each line has a value of every setting that the other has not. OPENBLAS_CORETYPE is for NumPy and
# SciPy, ATEN_CPU_CAPABILITY for PyTorch.
SENSITIVE := $(RUN) pytest -m arithmetic --quiet --numprocesses 0

arithmetic: $(READY)
	@ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1 OPENBLAS_CORETYPE=Haswell $(SENSITIVE)
	@ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=2 OPENBLAS_CORETYPE=Sandybridge $(SENSITIVE)

newest:
	@rm -rf .venv-newest
	@$(MAKE) --no-print-directory test VENV=.venv-newest LOCK=

# The wheel is built from the sdist, so that both are tried.
package: $(READY)
	@rm -rf dist .venv-package
	@$(RUN) uv build --quiet --no-build-isolation --python $(PYTHON)
	@$(RUN) uv venv --quiet --python $(PYTHON) .venv-package
	@$(RUN) uv pip install --quiet --python .venv-package $(LOCK:%=--constraints %) \
	    $(if $(UV_TORCH_BACKEND),--no-verify-hashes) dist/*.whl
	@.venv-package/bin/python workflow/try_package.py README.md

lock: $(READY)
	@$(RUN) uv pip compile pyproject.toml --all-extras --group environment --universal \
	    --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	    --no-annotate --upgrade --quiet --custom-compile-command 'make lock' \
	    --output-file constraints.txt

notebooks: $(READY)
	@$(RUN) jupytext --quiet --update --to ipynb notebooks/*.md
	@$(PYTHON) workflow/launchable.py

lint: $(READY)
	@$(RUN) ruff check .

clean:
	rm -rf _build book/published book/experiment book/filters book/comparison book/defences book/verdict \
	    book/initialisation book/openings book/api results .snakemake

# pip refuses a constraint with hashes, so it takes the lines of uv alone. PyTorch's index, which
# UV_TORCH_BACKEND names, has the same versions as PyPI with other hashes.
UV = $(if $(LOCK),--requirement <(sed -n '/^uv==/,/[^\\]$$/p' $(LOCK)),uv)
INSTALL = $(RUN) pip install --quiet --disable-pip-version-check $(UV) && \
    $(RUN) uv pip install --quiet --python $(PYTHON) $(LOCK:%=--constraints %) \
    $(if $(UV_TORCH_BACKEND),--no-verify-hashes) --editable '.[images,figures,adapters,book,test$(PLUGIN:%=,%)]'

install: $(READY)
	@$(if $(READY),true,$(INSTALL))

$(VENV)/.installed $(VENV)/.installed-slurm: pyproject.toml $(LOCK)
	@echo "The environment: $(VENV) (a few minutes, once)"
	@python3 -m venv $(VENV)
	@$(INSTALL)
	@touch $@
