"""Sphinx extension: pages are executed side by side, before Sphinx reads them one by one.

What is executed here lies in the cache where MyST-NB looks for it. A page that fails is left to
MyST-NB, which executes it again and shows the error. Sphinx writes pages side by side, too.
"""

import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.read import create_nb_reader
from sphinx.util import logging

CORES = len(os.sched_getaffinity(0))
LOG = logging.getLogger(__name__)


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


def write_side_by_side(app, env):
    """Let Sphinx write so; not read, since extensions keep what they read in one process."""
    app.parallel = CORES


def setup(app):
    """Connect late: other extensions may still change the list."""
    app.connect("env-before-read-docs", execute, priority=900)
    app.connect("env-updated", write_side_by_side)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
