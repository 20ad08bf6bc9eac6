"""Every example of the README runs, as it stands there."""

import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from rconv.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text()
COMMANDS = re.findall(r"^\.venv/bin/rconv (.*?)(?:\s+#|$)", README, re.MULTILINE)


def test_the_python_example_reconstructs(capsys):
    source, update, tried = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    torch.manual_seed(0)  # model and image are random
    for block in (source, update):
        exec(block, names)
        assert names["result"].unique.all()
        assert names["result"].gradient_residual < 1e-4
        assert (names["result"].images - names["image"]).abs().max() < 1e-2
    assert names["noise"].std
    exec(tried, names)
    assert " of 4 images reconstructed" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_command_lines(command, tmp_path, monkeypatch, capsys):
    if "CIFAR100" in command and not os.environ.get("RCONV_DATA"):
        pytest.skip("needs CIFAR-100 in the folder that RCONV_DATA names")
    if "RCONV_DATA" in os.environ:
        monkeypatch.setenv("RCONV_DATA", str(Path(os.environ["RCONV_DATA"]).resolve()))
    monkeypatch.chdir(tmp_path)
    before, _, _ = README.split("```python\n")[1].partition("model = Net()")
    (tmp_path / "net.py").write_text(before)
    arguments = shlex.split(command)
    if "--html" in arguments:  # the first scenarios do
        arguments += ["--time-limit", "5"]
    assert main(arguments) == 0
    for option in ("--out", "--json", "--html"):
        if option in arguments:
            assert (tmp_path / arguments[arguments.index(option) + 1]).stat().st_size > 1000


def test_the_two_commands_are_there():
    assert len(COMMANDS) == 6
    assert "make book" in README and "make test" in README
