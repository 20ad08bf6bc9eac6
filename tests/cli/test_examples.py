"""The job for GitHub Actions: its settings and its command are ones that the audit takes."""

import re
import shlex
import tomllib
from pathlib import Path

import yaml

from rconv.cli.arguments import parse, read_settings

ROOT = Path(__file__).parents[2]


def test_the_job_audits_with_settings_that_are_known(tmp_path, monkeypatch):
    text = (ROOT / "examples" / "leak-audit.yml").read_text()
    job = yaml.safe_load(text)["jobs"]["audit"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    (command,) = (own for own in commands if own.startswith("rconv "))
    commented = re.search(r"# {3}\[tool.*?(?=#\n)", text, re.DOTALL)[0]
    settings = "".join(f"{line[4:]}\n" for line in commented.splitlines())
    (readme,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tomllib.loads(settings) == tomllib.loads(readme)
    (tmp_path / "pyproject.toml").write_text(settings)
    assert read_settings(tmp_path / "pyproject.toml")["input-shape"] == "3,32,32"
    monkeypatch.chdir(tmp_path)
    found = parse(shlex.split(command)[1:])
    assert (found.model, found.fail_on, found.json) == ("net.py:Net", "leaks", "audit.json")
    kept = job["steps"][-1]
    assert kept["if"] == "always()" and kept["with"]["path"].split() == [found.json, found.html]
