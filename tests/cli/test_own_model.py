"""`--model`: a user's own network from a file or a module."""

import json

import pytest
from safetensors.torch import load_file, save_file

from rconv.cli import main
from rconv.cli.models import load_own

SOURCE = """
import sys
import torch
from torch import nn
from helper import SIDE

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.one, self.two = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.fc = nn.Linear(4 * SIDE**2, 3)

    def forward(self, x):
        x = self.norm(self.stem(x)).tanh()
        return self.fc((self.two(self.one(x).tanh()) + x).tanh().flatten(1))

model, number = Net(), 3
def make(): return Net()
def needs(filters): return Net()
def raises(): raise RuntimeError("no\\x1b[31m luck")
def leaves(): sys.exit("bye")
def counts(): return 3
"""
LINE = 1 + next(i for i, text in enumerate(SOURCE.splitlines()) if "def raises" in text)
SHAPE = ["--input-shape", "1,6,6"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "helper.py").write_text("SIDE = 6\n")
    (tmp_path / "broken.py").write_text("\n\nnothing\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


REFUSED = {
    "no colon": (["--model", "net.py", *SHAPE], "path/to/file.py:Net or package.module:function"),
    "no file": (["--model", "no.py:Net", *SHAPE], "no.py: no such file"),
    "a folder": (["--model", "./:Net", *SHAPE], "./: is no regular file"),
    "no module": (["--model", "no.such:Net", *SHAPE], "No module named 'no'"),
    "no name": (["--model", "net.py:Nope", *SHAPE], "there is no Nope in it"),
    "no model": (["--model", "net.py:number", *SHAPE], "is int, no torch.nn.Module"),
    "makes no model": (["--model", "net.py:counts", *SHAPE], "makes int, no torch.nn.Module"),
    "needs arguments": (["--model", "net.py:needs", *SHAPE], "argument: 'filters'"),
    "raises": (["--model", "net.py:raises", *SHAPE], rf"in line {LINE} of net.py: no\x1b[31m luck"),
    "ends the program": (["--model", "net.py:leaves", *SHAPE], "raises SystemExit"),
    "raises at once": (["--model", "broken.py:Net", *SHAPE], "NameError in line 3 of broken.py"),
    "a shape it does not take": (["--model", "net.py:Net", "--input-shape", "1,8,8"], "(1, 8, 8)"),
    "no shape": (["--model", "net.py:Net"], "--model needs --input-shape"),
    "a shape that is none": (["--model", "net.py:Net", "--input-shape", "1,6"], "3,64,64"),
    "a shape of nothing": (["--model", "net.py:Net", "--input-shape", "0,6,6"], "3,64,64"),
    "a shape alone": ([*SHAPE], "goes with --model"),
    "two models": (["--model", "net.py:Net", "-m", "lenet", *SHAPE], "not allowed with"),
    "an activation": (["--model", "net.py:Net", "-a", "ReLU", *SHAPE], "your own code says"),
    "a steering name": (["--model", "\x1b[31m.py:Net", *SHAPE], r"\x1b[31m.py: no such file"),
}


@pytest.mark.parametrize("arguments, hint", REFUSED.values(), ids=REFUSED)
def test_what_is_no_model_is_one_line_before_the_work(arguments, hint, folder, monkeypatch, capsys):
    monkeypatch.setattr("rconv.lab.audit_trials.trial", lambda *a, **k: pytest.fail("tried first"))
    try:
        code = main(["audit", *arguments])
    except SystemExit as stop:
        code = stop.code
    found = capsys.readouterr()
    assert code == 2 and not found.out
    assert found.err.count("\n") == 1 and hint in found.err and found.err[:-1].isprintable()


def test_a_class_a_function_and_a_model_are_taken_from_files_and_modules(folder):
    whole = load_own("net.py:Net", 1).state_dict()
    assert all((load_own("net:make", 1).state_dict()[k] == v).all() for k, v in whole.items())
    assert not (load_own("net.py:Net", 2).stem.weight == whole["stem.weight"]).all()
    assert not load_own("net.py:model", 1).training


def test_clients_and_attacker_share_a_model_of_their_own(folder, capsys):
    """Gradients, then an update, through files; the weights hold BatchNorm's counter as well."""
    own = ["--model", "net.py:Net", *SHAPE]
    files = ["--gradients", "g", "--save-weights", "w0"]
    assert main(["observe", *own, "-i", "1,2", "--seed", "3", *files]) == 0
    assert main(["attack", *own, "--gradients", "g", "--weights", "w0", "--json", "r"]) == 0
    records = json.loads((folder / "r").read_text())
    assert [r["unique"] for r in records] == [True, True]
    assert records[0]["architecture"] == "net.py:Net" and records[0]["initialisation"] == "w0"
    weights, sent = load_file("w0"), load_file("g")
    moved = {n: w - 0.1 * sent[n][1] if n in sent else w for n, w in weights.items()}
    save_file({n: w.contiguous() for n, w in moved.items()}, "w1")
    update = ["--before", "w0", "--after", "w1", "--lr", "0.1"]
    assert main(["attack", *own, *update, "--json", "r"]) == 0
    assert json.loads((folder / "r").read_text())[0]["unique"]
    assert main(["attack", *own, "--seed", "3", "-i", "1", "--json", "r"]) == 0
    (record,) = json.loads((folder / "r").read_text())
    assert record["unique"] and record["psnr"] > 100
    assert main(["attack", *own, "-d", "Digits"]) == 2
    assert "give --gradients" in capsys.readouterr().err
