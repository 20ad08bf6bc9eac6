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
