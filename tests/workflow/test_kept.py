"""Pages that are drawn from records: all that a fresh page says, and no number but the record's."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml

from rconv.lab import archive
from rconv.lab.records import won

ROOT = Path(__file__).parents[2]
RECORDS = sorted((ROOT / "book" / "records").glob("*/*.json"))
PAPER = yaml.safe_load((ROOT / "workflow" / "grids" / "paper.yaml").read_text())


def smallest(notebook):
    """Point of the smallest record of a notebook."""
    return min((p.stat().st_size, p.stem) for p in RECORDS if p.parent.name == notebook)[1]


POINTS = {notebook: smallest(notebook) for notebook in PAPER}


def draw(root):
    """Run the script in a copy of the repository's folders."""
    command = [sys.executable, "workflow/kept.py"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A repository with one record for each parameterised notebook, its pages drawn."""
    folder = tmp_path_factory.mktemp("kept")
    for name in ("rconv", "workflow"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    for notebook, point in POINTS.items():
        (folder / "book" / "records" / notebook).mkdir(parents=True)
        name = f"book/records/{notebook}/{point}.json"
        shutil.copy(ROOT / name, folder / name)
    made = draw(folder)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith(f"Records: {len(POINTS)} pages drawn")
    return folder


def page(root, notebook):
    return nbformat.read(root / "book" / notebook / f"{POINTS[notebook]}.ipynb", 4)


def said(notebook):
    """The text of a page, its outputs included."""
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    outputs = (o for cell in notebook.cells for o in cell.get("outputs", []))
    return "\n".join([*texts, *(o.data.get("text/markdown", "") for o in outputs)])


@pytest.mark.parametrize("notebook", PAPER)
def test_a_page_says_how_when_and_by_which_version_it_was_made(root, notebook):
    kept = archive.read(root / "book" / "records" / notebook / f"{POINTS[notebook]}.json")
    text = said(page(root, notebook))
    assert f"on {kept.date} by version {kept.version}" in text
    assert f"make grid GRID=paper POINT={notebook}/{POINTS[notebook]}" in text
    for name, value in kept.parameters.items():
        assert f"| `{name}` | `{value}` |" in text
    assert "{dataset}" not in text and "{architecture}" not in text


def rows(text, first):
    """Cells of the table lines that begin with a word."""
    lines = (line.strip("| ").split(" | ") for line in text.splitlines())
    return [line for line in lines if line[0] == first]


def test_the_numbers_of_a_page_are_the_records(root):
    kept = archive.read(root / "book" / "records" / "experiment" / f"{POINTS['experiment']}.json")
    text = said(page(root, "experiment"))
    (activation,) = {r["activation"] for r in kept.records}
    table = [row for row in rows(text, activation) if " of " in row[3]]
    assert len(table) == 3
    for _, constraints, dtype, success, unique, *_ in table:
        own = [r for r in kept.records if (r["constraints"], r["dtype"]) == (constraints, dtype)]
        assert success.startswith(f"{won(own)} of {len(own)}<br>")
        assert int(unique) == sum(r["unique"] for r in own)
    failures = [row for row in rows(text, activation) if " is rank-deficient" in row[-1]]
    lost = [r for r in kept.records if not won([r])]
    assert lost and sum(int(row[3]) for row in failures) == len(lost)


def test_figures_have_texts_and_the_attack_is_left_out(root):
    for notebook in PAPER:
        cells = page(root, notebook).cells
        shown = {n: str(c.get("outputs")) for n, c in enumerate(cells)}
        figures = [cells[n] for n, text in shown.items() if "rconv-figure" in text]
        alts = [cell.metadata.mystnb.image.alt for cell in figures]
        assert not any("image/png" in text for text in shown.values())
        assert alts and not [alt for alt in alts if "{" in alt]
        assert not [c for c in cells if "needs-images" in c.metadata.get("tags", [])]


def test_what_is_up_to_date_is_not_drawn_again_and_fresh_results_win(root):
    before = {notebook: page(root, notebook) for notebook in PAPER}
    fresh = root / "results" / "filters" / f"{POINTS['filters']}.json"
    fresh.parent.mkdir(parents=True)
    fresh.write_text("[]")
    own = root / "book" / "filters" / f"{POINTS['filters']}.ipynb"
    own.write_text(json.dumps({"metadata": {}, "cells": [], "nbformat": 4, "nbformat_minor": 5}))
    made = draw(root)
    assert (made.returncode, made.stdout) == (0, "")
    assert not page(root, "filters").cells
    assert all(page(root, name) == before[name] for name in PAPER if name != "filters")


def test_a_damaged_record_is_refused_by_its_name(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy", symlinks=True)
    record = tmp_path / "copy" / "book" / "records" / "openings" / f"{POINTS['openings']}.json"
    record.write_text(record.read_text()[:500])
    made = draw(tmp_path / "copy")
    assert made.returncode and f"{POINTS['openings']}.json is no archive of records" in made.stderr


@pytest.mark.parametrize("notebook", PAPER)
def test_notebooks_say_which_cells_need_images(notebook):
    cells = jupytext.read(ROOT / "notebooks" / f"{notebook}.md").cells
    needy = [c for c in cells if "needs-images" in c.metadata.get("tags", [])]
    assert any("records" in c.source for c in needy)
    assert all("figures.comparison" not in c.source for c in cells if c not in needy)
