"""Pages are executed side by side before Sphinx reads them, and only those that changed."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("myst_nb")
EXTENSIONS = Path(__file__).parents[2] / "book" / "_ext"

CONF = f"""
import sys
sys.path.insert(0, {str(EXTENSIONS)!r})
extensions = ["myst_nb", "execution"]
nb_execution_mode = "cache"
nb_execution_excludepatterns = ["left*"]
nb_execution_show_tb = True
"""

PAGE = """---
jupytext: {{text_representation: {{format_name: myst}}}}
kernelspec: {{display_name: Python 3, language: python, name: python3}}
---
# {title}

```{{code-cell}}
{code}
```
"""


def build(folder):
    """What Sphinx says."""
    command = [sys.executable, "-m", "sphinx", "-b", "html", str(folder), str(folder / "_html")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A book of four pages: two that run, one that fails, one that is left alone."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "conf.py").write_text(CONF)
    (folder / "index.md").write_text("# Index\n\n```{toctree}\n:glob:\n*\n```\n")
    for name in ("one", "two", "left"):
        code = f"open('runs', 'a').write('{name} ')"
        (folder / f"{name}.md").write_text(PAGE.format(title=name, code=code))
    (folder / "fails.md").write_text(PAGE.format(title="fails", code="1 / 0"))
    return folder, build(folder)


def test_pages_run_once_and_say_how_long(project):
    folder, first = project
    assert sorted((folder / "runs").read_text().split()) == ["one", "two"]
    assert {"one.md", "two.md"} <= {line.split(":")[0] for line in first.stdout.splitlines()
                                    if "Executed notebook in" in line}  # fmt: skip


def test_an_error_is_shown_once_with_its_traceback(project):
    _, first = project
    assert first.stderr.count("Executing notebook failed") == 1
    assert "ZeroDivisionError" in first.stderr and "division by zero" in first.stderr


def test_only_a_changed_page_runs_again(project):
    folder, _ = project
    (folder / "fails.md").write_text("# Mended\n")
    one = folder / "one.md"
    one.write_text(one.read_text().replace("'one '", "'again '"))
    (folder / "two.md").touch()
    build(folder)
    assert sorted((folder / "runs").read_text().split()) == ["again", "one", "two"]
