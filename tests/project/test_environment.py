"""The environment: environment.yml and constraints.txt provide what pyproject.toml asks for."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "workflow"))

import records  # noqa: E402

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, EXTRAS = PYPROJECT["project"], PYPROJECT["project"]["optional-dependencies"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
CONSTRAINTS = ROOT / "constraints.txt"

ASKED = [*PROJECT["dependencies"], *PYPROJECT["dependency-groups"]["environment"]]
ASKED += [requirement for extra in EXTRAS.values() for requirement in extra]
PLATFORMS = [
    {"python_full_version": f"{python}.0", "python_version": python, "sys_platform": system}
    for python in ("3.11", "3.12", "3.13")
    for system in ("linux", "darwin")
]


def pins():
    """Requirement of each line with a version, and its hashes."""
    text = CONSTRAINTS.read_text().replace("\\\n", " ")
    lines = [line.split(" --hash=") for line in text.splitlines() if line and line[0] != "#"]
    return [(Requirement(line), hashes) for line, *hashes in lines]


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda p: " ".join(p.values()))
def test_the_constraints_are_one_allowed_version_of_all_that_is_asked_for(platform):
    exact = {}
    for pin, _ in pins():
        if pin.marker is None or pin.marker.evaluate(platform):
            assert canonicalize_name(pin.name) not in exact, f"{pin.name} is there twice"
            exact[canonicalize_name(pin.name)] = pin.specifier
    for asked in map(Requirement, ASKED):
        (own,) = exact[canonicalize_name(asked.name)]
        assert own.operator == "==" and own.version in asked.specifier, asked


def test_every_version_has_hashes_and_nothing_an_address():
    for pin, hashes in pins():
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64} *", h) for h in hashes), pin
    text = CONSTRAINTS.read_text()
    assert "://" not in text and not re.search(r"^-", text, re.MULTILINE)


def installed(monkeypatch, **versions):
    own = [SimpleNamespace(metadata={"Name": n}, version=v) for n, v in versions.items()]
    monkeypatch.setattr(records, "distributions", lambda: own)


def test_the_identity_is_that_of_the_file_if_its_versions_are_installed(tmp_path, monkeypatch):
    path = tmp_path / "constraints.txt"
    hashed = " ; sys_platform == 'linux' \\\n  --hash=sha256:0"
    path.write_text(f"a-b==1.0{hashed}\na-b==1.1\ntorch==2.9\n")
    for versions, same in [
        ({"A_b": "1.0", "torch": "2.9+cpu", "other": "3"}, True),
        ({"a.b": "1.1"}, True),
        ({"a-b": "1.2", "torch": "2.9"}, False),
        ({"a-b": "1.0", "torch": "2.10"}, False),
    ]:
        installed(monkeypatch, **versions)
        found = records.locked_environment(path)
        assert bool(re.fullmatch(r"[0-9a-f]{16}", found or "")) == same, versions
    installed(monkeypatch, torch="2.9")
    before = records.locked_environment(path)
    path.write_text(path.read_text() + "c==1\n")
    assert records.locked_environment(path) not in (before, None)


def test_make_installs_with_the_constraints_unless_told_otherwise():
    # Without the variables of the make that runs this test.
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "UV_"))}

    def commands(*arguments, **variables):
        made = subprocess.run(
            ["make", "--dry-run", "--always-make", *arguments],
            cwd=ROOT, env=outside | variables, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return [line for line in made.stdout.splitlines() if "uv pip install" in line]

    (usual,) = commands(".venv/.installed")
    assert "--constraints constraints.txt" in usual
    assert ".[images,figures,adapters,book,test]" in usual
    (small,) = commands(".venv/.installed", UV_TORCH_BACKEND="cpu")
    assert "--constraints constraints.txt" in small
    assert "--no-verify-hashes" in small and "hashes" not in usual
    (conda,) = commands("install", "PYTHON=python")
    assert "--constraints constraints.txt" in conda and "--python python" in conda
    (cluster,) = commands(".venv/.installed-slurm", "PROFILE=slurm")
    assert ".[images,figures,adapters,book,test,slurm]" in cluster
    (newest,) = commands("newest")
    assert "constraints.txt" not in newest and ".venv-newest/bin/python" in newest


def test_conda_brings_what_make_needs():
    ranges = {r.name: r.specifier for r in map(Requirement, CONDA["dependencies"])}
    group = map(Requirement, PYPROJECT["dependency-groups"]["environment"])
    assert ranges["uv"] == {r.name: r.specifier for r in group}["uv"]
    assert {"python", "pip", "make", "uv"} == set(ranges)
    least = SpecifierSet(PROJECT["requires-python"])
    assert "3.10" not in ranges["python"]
    assert all(p["python_version"] in ranges["python"] & least for p in PLATFORMS)
    assert "make install PYTHON=python" in (ROOT / "postBuild").read_text()


CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_citation_names_this_version_licence_and_repository():
    assert CITATION["version"] == PROJECT["version"]
    assert CITATION["license"] == PROJECT["license"]
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert CITATION["repository-code"] == config["repository"]["url"]


def test_the_citation_has_what_the_format_asks_for():
    assert CITATION["cff-version"] == "1.2.0" and CITATION["type"] == "software"
    for work in [CITATION, *CITATION["references"]]:
        assert work["title"] and work["authors"]
        for author in work["authors"]:
            assert set(author) in ({"name"}, {"family-names", "given-names"})
    assert all(work["type"] == "conference-paper" for work in CITATION["references"])


def test_the_citation_has_the_paper_as_the_book_cites_it():
    paper = CITATION["references"][0]
    cited = (ROOT / "book" / "references.bib").read_text()
    assert paper["doi"] in cited and f"{{{paper['volume']}}}" in cited
    assert all(author["family-names"] in cited for author in paper["authors"])


def test_zenodo_is_given_what_the_citation_says():
    given = json.loads((ROOT / ".zenodo.json").read_text())
    assert given["upload_type"] == CITATION["type"]
    assert all(given[key] == CITATION[key] for key in ("title", "version", "license", "keywords"))
    assert given["creators"] == CITATION["authors"]
    related = {own["identifier"] for own in given["related_identifiers"]}
    assert {CITATION["references"][0]["doi"], CITATION["repository-code"]} == related


def test_the_changelog_begins_with_this_version():
    headings = (line for line in (ROOT / "CHANGELOG.md").read_text().splitlines())
    assert next(line for line in headings if line.startswith("## ")) == f"## {PROJECT['version']}"
