"""Sphinx extension: no stale number on any page.

The cache of executed notebooks looks at a notebook's own cells only, not at the package that
they import nor at the results that they read. So it lives in a folder named by a hash of all of
these. And a page may quote a number that another page computed, so all pages are written anew
as soon as one of them was read anew.
"""

import hashlib
import shutil
from pathlib import Path

SOURCES = (
    "rconv/**/*.py",
    "rconv/show/web/*",
    "rconv/**/*.html",
    "notebooks/*/*.py",
    "pyproject.toml",
    "results/*/*.json",
    "book/records/*/*.json",
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


def note_changes(app, env, added, changed, removed):
    """Remember whether any page will be read anew."""
    app.rconv_any_change = bool(added or changed or removed)
    return []


def rewrite_all(app, env):
    """Have every page written if any was read."""
    return sorted(env.found_docs) if app.rconv_any_change else []


def setup(app):
    """Connect to the events; the last two run late, to see what other extensions did."""
    app.connect("config-inited", choose_cache)
    app.connect("env-get-outdated", note_changes, priority=900)
    app.connect("env-updated", rewrite_all, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
