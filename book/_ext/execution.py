"""Sphinx extension: notebooks are executed side by side, and no number on any page is stale.

MyST-NB's cache of executed notebooks looks at a notebook's own cells only, not at the package that
they import nor at the results that they read. So it lies in a folder named by a hash of all of
these. Notebooks that it does not hold are executed before Sphinx reads the pages one by one; one
that fails is left to MyST-NB, which executes it again and shows the error. Since a page may quote a
number that another page computed, all pages are written anew, side by side, as soon as one of them
was read anew.
"""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.read import create_nb_reader
from sphinx.util import logging

CORES = len(os.sched_getaffinity(0))
LOG = logging.getLogger(__name__)

SOURCES = (
    "rconv/**/*.py",
    "rconv/show/web/*",
    "rconv/**/*.html",
    "notebooks/*/*.py",
    "pyproject.toml",
    "results/*/*.json",
    "book/records/*.*",
    "book/records/*/*.json",
    "benchmarks/*.json",
)


def digest(root):
    """A short hash of the names and contents of all files that notebooks depend on."""
    sha = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in root.glob(pattern)):
        content = path.read_bytes()
        sha.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return sha.hexdigest()[:16]


def choose_cache(app, config):
    """Use the cache that belongs to the present sources, and remove those of earlier ones."""
    caches = Path(app.outdir).parent / ".jupyter_cache"
    current = caches / digest(Path(app.srcdir))
    for old in caches.glob("*"):
        if old != current:
            shutil.rmtree(old)
    config.nb_execution_cache_path = str(current)


def read(path, env):
    """The notebook behind a page, as MyST-NB reads it, or None where it executes none."""
    if any(path.match(pattern) for pattern in env.mystnb_config.execution_excludepatterns):
        return None
    text = path.read_text(encoding="utf-8")
    reader = create_nb_reader(str(path), env.myst_config, env.mystnb_config, text)
    return reader and reader.read(text)


def is_cached(notebook, cache):
    """Whether the cache holds the outputs of these very cells."""
    try:
        return bool(cache.match_cache_notebook(notebook))
    except KeyError:
        return False


def execute(app, env, docnames):
    """Execute what Sphinx is about to read and the cache does not hold."""
    config = env.mystnb_config
    if config.execution_mode != "cache":
        return
    cache = get_cache(config.execution_cache_path)
    pages = {path: read(path, env) for path in map(Path, map(env.doc2path, docnames))}
    stale = {path: page for path, page in pages.items() if page and not is_cached(page, cache)}
    os.environ["RCONV_FIGURES"] = "html"  # see rconv.show.responsive
    with ThreadPoolExecutor(CORES) as pool:
        running = {
            pool.submit(
                single_nb_execution, page, str(path.parent), config.execution_timeout, False
            ): path
            for path, page in stale.items()
        }
        for future in as_completed(running):
            path, result = running[future], future.result()
            if result.err is None:
                seconds = {"execution_seconds": result.time}
                bundle = CacheBundleIn(stale[path], str(path), data=seconds)
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
                name = path.relative_to(app.srcdir)
                LOG.info(f"{name}: Executed notebook in {result.time:.2f} seconds")


def note_changes(app, env, added, changed, removed):
    """Remember whether any page will be read anew."""
    app.rconv_any_change = bool(added or changed or removed)
    return []


def rewrite_all(app, env):
    """Have every page written if any was read, side by side; reading is done in one process."""
    app.parallel = CORES
    return sorted(env.found_docs) if app.rconv_any_change else []


def setup(app):
    """Connect late, but for the cache: other extensions may still change the list of pages."""
    app.connect("config-inited", choose_cache)
    app.connect("env-get-outdated", note_changes, priority=900)
    app.connect("env-before-read-docs", execute, priority=900)
    app.connect("env-updated", rewrite_all, priority=900)
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}
