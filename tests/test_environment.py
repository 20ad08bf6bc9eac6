"""environment.yml says what pyproject.toml says, under conda's names."""

import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())

CONDA_NAMES = {"pytorch-cpu": "torch"}

*CONDA, PIP = ENVIRONMENT["dependencies"]


def test_conda_packages_have_the_ranges_of_pyproject():
    ranges = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    for line in CONDA:
        package = Requirement(line)
        if package.name not in ("python", "pip"):
            assert package.specifier == ranges[CONDA_NAMES.get(package.name, package.name)], line


def test_python_is_within_the_range():
    (python,) = (Requirement(line) for line in CONDA if line.startswith("python"))
    assert python.specifier == SpecifierSet(PROJECT["requires-python"])


def test_pip_installs_the_project_with_all_that_book_and_tests_need():
    (line,) = PIP["pip"]
    option, project = line.split()
    extras = Requirement(project.replace(".", "rconv", 1)).extras
    assert option == "-e"
    assert extras == {"book", "test"} <= set(PROJECT["optional-dependencies"])


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


def test_the_changelog_begins_with_this_version():
    headings = (line for line in (ROOT / "CHANGELOG.md").read_text().splitlines())
    assert next(line for line in headings if line.startswith("## ")) == f"## {PROJECT['version']}"
