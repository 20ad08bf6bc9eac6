"""What `pip install rconv` brings is enough for attack, audit and command line."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rconv.extras import EXTRAS, extra, remedy

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {names} else find(name, *rest)
"""
WITHOUT = BLOCKED.format(names=sorted(EXTRAS))

USED = """
import torch
from torch import nn
import rconv
from rconv.cli import main
from rconv.lab.audit_record import full_audit
from rconv.show.audit import page

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.Tanh(), nn.Flatten(), nn.Linear(512, 4))
gradients = rconv.per_sample_gradients(model, torch.rand(1, 3, 8, 8), torch.tensor([1]))
assert rconv.Attack(model, (3, 8, 8))(gradients).unique.all()
audit = full_audit(model, (3, 8, 8), trials=2)
assert audit.record["trial"]["source"].startswith("synthetic images (3 × 8 × 8")
assert audit.record["verdict"]["risk"] == "leaks" and "<svg" not in page(audit)
for line in ("-d Digits --out x.png", "-d Digits", "-d MNIST --data-dir ."):
    assert main(line.split()) == 2, line
print("done")
"""


def test_without_any_extra(tmp_path):
    """And what does need one is refused in one line that names it."""
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT + USED], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.stdout.splitlines()[-1:] == ["done"], run.stderr
    errors = run.stderr.splitlines()
    assert len(errors) == 3 and "'rconv[figures]'" in errors[0]
    assert all("'rconv[images]'" in error for error in errors[1:])


@pytest.mark.parametrize("name", ["charts", "explorer", "figures", "interactive", "responsive"])
def test_what_draws_names_its_extra(name):
    run = subprocess.run(
        [sys.executable, "-c", f"{WITHOUT}import rconv.show.{name}"], capture_output=True, text=True
    )
    assert "brings it" in run.stderr.splitlines()[-1] and "'rconv[" in run.stderr


def test_every_extra_is_one_of_the_project():
    assert set(EXTRAS.values()) <= set(PROJECT["optional-dependencies"])
    core = {requirement.split(">")[0] for requirement in PROJECT["dependencies"]}
    # threadpoolctl is what limits the threads of SciPy's LAPACK.
    assert core == {"torch", "numpy", "scipy", "safetensors", "tqdm", "threadpoolctl"}


def test_a_missing_module_is_named_with_its_extra_and_others_stay_as_they_are():
    with pytest.raises(ModuleNotFoundError, match="opacus is not installed: pip install") as found:
        with extra():
            raise ModuleNotFoundError("No module named 'opacus.x'", name="opacus.x")
    assert found.value.name == "opacus" and str(found.value) == remedy("opacus")
    with pytest.raises(ModuleNotFoundError, match="No module named 'other'"):
        with extra():
            raise ModuleNotFoundError("No module named 'other'", name="other")
