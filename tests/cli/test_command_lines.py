"""Command lines that people type, good and bad: an exit code, and one line where it is not 0."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rconv.cli import main
from rconv.cli.commands import COMMANDS
from rconv.cli.output import ResultWriter

SMALL = "-d Digits -m dlg_lenet"
"""A network and an image that take a tenth of a second."""

MODELS = """
import sys
import torch
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 12, 5, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(192, 4))


class Norm(nn.Sequential):
    def __init__(self):
        norm = nn.Conv2d(1, 24, 3, 1, 1), nn.BatchNorm2d(24), nn.ReLU()
        super().__init__(*norm, nn.Flatten(), nn.Linear(1536, 4))


class Prints(Net):
    def __init__(self):
        super().__init__()
        print("made")


class Raises(Net):
    def __init__(self):
        super().__init__()
        raise RuntimeError("no\\nmodel")


class Exits(Net):
    def __init__(self):
        sys.exit("bye")


class Infinite(Net):
    def __init__(self):
        super().__init__()
        self[3].bias.data[0] = float("inf")


class NeedsArguments(Net):
    def __init__(self, width):
        super().__init__()


class Lines(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv1d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 4))


class Empty(nn.Module):
    pass


class Recursive(nn.Module):
    def forward(self, x):
        return self(x)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x, y):
        return self.fc(x + y)


def number():
    return 3


def nothing():
    pass


def unsupported():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softmax2d(), nn.Flatten(), nn.Linear(144, 4))


net, text = Net(), "net"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the command lines name."""
    here = tmp_path_factory.mktemp("files")
    before = os.getcwd()
    os.chdir(here)
    try:
        client = [*SMALL.split(), "-i", "3", "--gradients", "g", "--save-weights", "w"]
        assert main(["observe", *client]) == 0
        damaged()
        odd()
    finally:
        os.chdir(before)
    return here


def damaged():
    """Files of gradients and weights that are not what they should be."""
    sent, weights = load_file("g"), load_file("w")
    save_file({n: torch.zeros_like(g) for n, g in sent.items()}, "zeros")
    save_file({n: g * torch.nan for n, g in sent.items()}, "nan")
    save_file({n: g.float() * 1e30 * 1e30 for n, g in sent.items()}, "infinite")
    save_file({n: g for n, g in sent.items() if n != "fc.bias"}, "partial")
    save_file({**sent, "extra": torch.ones(2)}, "extra")
    save_file({n: g[..., :1].contiguous() for n, g in sent.items()}, "cut")
    save_file({n: g.long() for n, g in sent.items()}, "whole")
    save_file({}, "none")
    save_file({n: g[0] for n, g in sent.items()}, "single")
    save_file({n: w - 0.01 * sent[n][0] for n, w in weights.items()}, "after")
    save_file({n: -w for n, w in weights.items()}, "negative")
    whole = open("g", "rb").read()
    for name, content in {
        "truncated": whole[: len(whole) // 2],
        "header": whole[:5],
        "empty": b"",
        "text": b"no tensors\n",
        "noise": bytes(np.random.default_rng(0).integers(0, 256, 999, dtype=np.uint8)),
    }.items():
        with open(name, "wb") as file:
            file.write(content)
    torch.save(weights, "pickle")
    torch.save(weights, "old", _use_new_zipfile_serialization=False)


def odd():
    """Models, folders and pipes."""
    sources = {
        "net.py": MODELS,
        "latin.py": "name = 'caf\xe9'\n".encode("latin-1"),
        "syntax.py": "def f(:\n",
        "imports.py": "import no_such_module\n",
        "exits.py": "import sys\nsys.exit(3)\n",
        "zeros.py": b"\0\0",
        "divides.py": "1 / 0\n",
    }
    for name, source in sources.items():
        with open(name, "wb") as file:
            file.write(source if isinstance(source, bytes) else source.encode())
    os.mkdir("d")
    os.mkfifo("pipe")
    os.mkdir("broken")
    with open("broken/MNIST-train-first1.npz", "wb") as file:
        file.write(b"PK\3\4 but no archive")


NET = "--input-shape 1,8,8 --model net.py"

GOOD = (
    "",
    SMALL,
    f"attack {SMALL}",
    f"{SMALL} -i 0:2 --json out.json",
    f"{SMALL} --out out.PNG",
    f"{SMALL} --dtype float16",
    f"{SMALL} --constraints hybrid",
    f"{SMALL} --gradients g --weights w --json out.json",
    f"{SMALL} --gradients single",
    f"{SMALL} --gradients zeros",
    f"{SMALL} --before w --after after --lr 0.01",
    f"{SMALL} --json café.json",
    f"observe {SMALL} --gradients out",
    f"audit {NET}:Net --trials 0",
    f"audit {NET}:Net --trials 1 --html out.html",
    f"attack {NET}:net",
    f"attack {NET}:Prints --batch 1",
)

USAGE = {
    "attac": "invalid choice",
    "--foo": "unrecognized",
    "attack extra": "unrecognized",
    "-i": "expected one argument",
    "-d": "expected one argument",
    "-d Foo": "Foo",
    "-m foo": "foo",
    "-a GELU": "GELU",
    "-a relu": "relu",
    "--dtype double": "double",
    "--dtype bfloat16": "bfloat16",
    "--seed 1.5": "whole number",
    "--seed -1": "whole number",
    "--batch -2": "whole number",
    "--batch 1.5": "whole number",
    "--batch 99999": "whole number",
    "--lr fast": "invalid float",
    "--filters 3,x": "16,24,12,12",
    "--input-shape 3,32": "three numbers",
    "--input-shape 3,0,32": "three numbers",
    "--input-shape 3,-1,32": "three numbers",
    "--input-shape 3,99999,99999": "at most",
    "--input-shape 99999,99999,99999": "at most",
    "--model net.py:Net -m lenet": "not allowed with",
    "--gradients g --after w": "not allowed with",
    "observe": "required",
    "observe --gradients g --strict": "unrecognized",
    "snapshot": "required",
    "snapshot -d Foo": "Foo",
    "snapshot -d MNIST -n many": "invalid int",
    "audit --trials -1": "whole number",
    "audit --active half": "invalid float",
    "audit --gradients g": "unrecognized",
    "audit --fail-on never": "leaks",
    "audit --batch 0": "whole number",
    "audit --time-limit -1": "a number, 0 or more",
    "--out=": "the path is empty",
}

SETTINGS = {
    "-i -1": "0:100",
    "-i 5:2": "is empty",
    "-i 0:5:0": "step",
    "-i 1,,2": "0:100",
    "-i 0:": "0:100",
    "-i 1e3": "0:100",
    "-i 100": "0 to 99",
    "-i 999999": "0 to 99",
    "-d Digits -i 1797": "0 to 1796",
    "-m cnn6_narrow -a ReLU": "LeakyReLU",
    "--filters 1,2,3": "4 convolutions",
    "--filters 0,1,2,3": "positive",
    "--filters 999999,999999,9,9": "memory",
    "--constraints foo": "hybrid",
    "--constraints gradient,weight": "4",
    "--constraints=": "hybrid",
    "--device gpu": "not available",
    "--device cuda:77": "not available",
    f"{SMALL} -i 0:2 --batch 3": "name 3",
    "--lr 0.1": "--before is missing",
    "--weight-decay 1": "--before is missing",
    "--buffers g": "goes with --gradients",
    f"{SMALL} --before w --after after --lr 0": "positive",
    f"{SMALL} --before w --after after --lr nan": "positive",
    f"{SMALL} --before w --after after --lr -1": "positive",
    f"{SMALL} --before w --after w --lr 1": "are the same",
    f"{SMALL} --before w --after after --lr 1 --weight-decay -1": "0 or more",
    f"{SMALL} --before w --after after --lr 1 --weights w": "the model's",
    f"{SMALL} --before w --after negative --lr 1 --batch 20": "at most",
    "--input-shape 3,32,32": "goes with --model",
    "--model net.py:Net": "needs --input-shape",
    f"{NET}:Net -a ReLU": "your own code",
    f"{NET}:Net --filters 3": "your own code",
    f"{NET}:Net -d Digits": "come in any shape",
    "audit --active 0": "(0, 1]",
    "audit --active nan": "(0, 1]",
    "audit -i 3:1": "is empty",
    "snapshot -d Digits": "MNIST",
    "snapshot -d MNIST -n 0": "choose 1 to",
    "snapshot -d MNIST -n -5": "choose 1 to",
}

OWN = {
    "net.py": "path/to/file.py:Net",
    ":Net": "path/to/file.py:Net",
    "net.py:": "path/to/file.py:Net",
    "nowhere.py:Net": "no such file",
    "d.py/:Net": "no such file",
    "d/:Net": "no regular file",
    "no_such_module:Net": "no_such_module",
    "net.py:Missing": "there is no Missing",
    "net.py:text": "no torch.nn.Module",
    "net.py:number": "no torch.nn.Module",
    "net.py:nothing": "no torch.nn.Module",
    "net.py:Raises": "raises RuntimeError in line",
    "net.py:Exits": "raises SystemExit",
    "net.py:NeedsArguments": "needs arguments",
    "net.py:Infinite": "3.bias",
    "net.py:Empty": "",
    "net.py:Recursive": "",
    "net.py:Two": "",
    "net.py:unsupported": "",
    "latin.py:Net": "SyntaxError: (unicode error)",
    "syntax.py:Net": "SyntaxError",
    "imports.py:Net": "no_such_module",
    "exits.py:Net": "SystemExit",
    "zeros.py:Net": "",
    "divides.py:Net": "ZeroDivisionError",
}

RECEIVED = {
    "nowhere": "no such file",
    "d": "no regular file",
    "pipe": "no regular file",
    "g/x": "cannot be read",
    "truncated": "no readable",
    "header": "no readable",
    "empty": "no readable",
    "text": "no readable",
    "noise": "no readable",
    "pickle": "is a pickle",
    "old": "is a pickle",
    "none": "empty",
    "nan": "NaN",
    "infinite": "infinite",
    "partial": "fc.bias",
    "extra": "extra",
    "cut": "shape",
    "whole": "int64",
}

OUTPUTS = {
    "--out x": "suffix",
    "--out x.foo": "suffix",
    "--out x.pgf": "suffix",
    "--out nowhere/x.png": "does not exist",
    "--out d": "is a folder",
    "--json d": "is a folder",
    "--json /dev/full": "a device",
    "--json pipe": "a pipe",
    "--json g/x": "",
    "--json x.png --out x.png": "one file",
    "--gradients g --json g": "one file",
    "--json /proc/x": "cannot be written",
    "--data-dir nowhere": "no such folder",
    "--data-dir g": "is no folder",
    "-d MNIST -m dlg_lenet --data-dir broken": "cannot be read",
}

REFUSED = {
    **USAGE,
    **SETTINGS,
    **{f"attack {NET[:-6]}{place}": hint for place, hint in OWN.items()},
    **{f"{SMALL} --gradients {name}": hint for name, hint in RECEIVED.items()},
    **{
        f"observe {SMALL} --gradients out --weights {name}": hint
        for name, hint in {**RECEIVED, "none": "another model", "cut": "another model"}.items()
        if name in ("nowhere", "d", "truncated", "pickle", "none", "cut")
    },
    **{f"{SMALL} {option}": hint for option, hint in OUTPUTS.items()},
    f"{SMALL} --weights g": "holds gradients",
    f"{SMALL} --gradients w --weights w": "holds weights",
    f"{SMALL} --gradients w": "holds weights",
    f"observe {SMALL} --gradients nowhere/x": "does not exist",
    f"observe {SMALL} --gradients o --save-weights o": "one file",
    f"audit {SMALL} --html nowhere/x": "does not exist",
    f"audit {SMALL} --data-dir nowhere": "no such folder",
    "snapshot -d MNIST --data-dir nowhere": "no such folder",
}


def answered(line, capsys):
    """Exit code, standard output and standard error of a command line."""
    try:
        code = main(line.split())
    except SystemExit as end:
        code = end.code
    found = capsys.readouterr()
    return code, found.out, found.err


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("line", GOOD, ids=[line or "nothing" for line in GOOD])
def test_a_good_command_line_answers(line, here, capsys):
    code, out, err = answered(line, capsys)
    assert (code, err) == (0, "") and out.endswith("\n")


@pytest.mark.parametrize("line, hint", REFUSED.items(), ids=REFUSED)
def test_a_bad_command_line_is_refused_in_one_line(line, hint, here, capsys):
    before = set(os.listdir(here))
    code, _, err = answered(line, capsys)
    assert code == 2
    assert err.startswith("rconv: error: ") and err.count("\n") == 1 and hint in err
    assert "Traceback" not in err
    assert set(os.listdir(here)) <= before | {"__pycache__"}


def test_buffers_after_a_step_in_training_mode_are_written_and_read(here, capsys):
    own = f"{NET}:Norm --mode training"
    client = f"observe {own} -i 0:2 --gradients trained --buffers moved --save-weights initial"
    assert main(client.split()) == 0
    attack = f"attack {own} --gradients trained --buffers moved --weights initial --json out.json"
    assert main(attack.split()) == 0
    with open("out.json") as file:
        records = json.load(file)
    assert [own["unique"] for own in records] == [True, True]
    assert main(attack.replace(" --mode training", "").split()) == 2
    assert "or --mode training" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--gradients", "--weights"])
def test_a_file_that_may_not_be_read_is_no_missing_file(option, here, monkeypatch, capsys):
    def forbidden(path, *arguments, **options):
        if path == "g":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return unchanged(path, *arguments, **options)

    unchanged = open
    monkeypatch.setattr("builtins.open", forbidden)
    code, _, err = answered(f"{SMALL} {option} g", capsys)
    assert (code, err) == (2, "rconv: error: g: cannot be read (Permission denied)\n")


WARNED = {
    f"observe {SMALL} --gradients out --weights single": "--weights: these look like gradients",
    f"{SMALL} --gradients negative": "--gradients: these look like weights",
    f"{SMALL} --before after --after w --lr 0.01": "exchanged?",
    f"{SMALL} --before w --after g --lr 1": "--after: these look like gradients",
}


@pytest.mark.parametrize("line, hint", WARNED.items(), ids=WARNED)
def test_files_that_seem_to_be_exchanged_are_named_before_the_work(line, hint, here, capsys):
    code, out, err = answered(line, capsys)
    assert code == 0 and out
    assert err.startswith("rconv: warning: ") and err.count("\n") == 1 and hint in err


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
RCONV = [sys.executable, "-m", "rconv"]


def started(line, folder, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options = {"cwd": folder, "env": ENVIRONMENT, **pipes, **options}
    return subprocess.Popen([*RCONV, *line.split()], **options)


IMPORTED = "import sys; print(*sorted({'torch', 'numpy', 'scipy'} & set(sys.modules)))"


@pytest.mark.parametrize("line", ["--help", "--version", "attack --help", "audit --help", "-d x"])
def test_help_and_usage_need_no_torch(line):
    code = f"from rconv.cli import main\ntry: main({line.split()})\nexcept SystemExit: pass\n"
    run = [sys.executable, "-c", code + IMPORTED]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


SLOW = {"sympy", "scipy.optimize", "scipy.ndimage", "skimage", "sklearn", "torchvision"}
SLOW |= {"matplotlib", "torch._dynamo"}


def test_one_image_needs_no_slow_imports():
    """Each of these takes as long as the attack, or longer."""
    code = f"""
import sys, torch
torch.func.vmap(torch.sin)(torch.zeros(1))  # torch 2.4 imports its compiler here
before = set(sys.modules)
from rconv.cli import main
main(['-a', 'ReLU'])
print("loaded", *({SLOW} & set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded"


def test_a_mistyped_variable_creates_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RCONV_DATA", str(tmp_path / "nowhere"))
    code, _, err = answered("-d MNIST", capsys)
    assert code == 2 and "RCONV_DATA" in err and "no such folder" in err
    assert not list(tmp_path.iterdir())
    assert answered(SMALL, capsys)[0] == 0


def test_gradients_of_zeros_have_no_label(here, capsys):
    code, out, _ = answered(f"{SMALL} --gradients zeros --json zeros.json", capsys)
    (record,) = json.loads((here / "zeros.json").read_text())
    assert code == 0 and record["label"] is None and not record["unique"]
    assert out.splitlines()[1].split()[:2] == ["0", "-"] and "zero" in record["diagnostic"]


def test_the_package_has_its_names_without_importing_them():
    code = "import rconv; assert {*rconv.__all__, '__version__'} <= set(dir(rconv))\n" + IMPORTED
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_a_full_device_is_an_error(folder):
    with open("/dev/full", "w") as full:
        process = started("--version", folder, stdout=full)
        _, err = process.communicate()
    assert process.returncode == 2
    assert err == "rconv: error: standard output: No space left on device\n"


def test_an_environment_without_colours_and_in_ascii_answers(folder):
    environment = {**ENVIRONMENT, "NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "ascii"}
    process = started(SMALL, folder, env=environment)
    out, err = process.communicate()
    assert process.returncode == 0 and out and not err


MANY = "-m relu_lenet -d Digits -i 0:400"
"""Minutes of work, in groups of some seconds."""


def eventually(found, seconds=120):
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("seconds", [0.3, 0.8])
def test_an_interruption_at_the_start_is_one_line(seconds, folder):
    process = started(MANY, folder)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "rconv: interrupted\n")


def test_an_interruption_keeps_what_is_finished(tmp_path):
    """The file of records is written while the process works, and once more at its end."""
    file = tmp_path / "out.json"
    process = started(f"{MANY} --json {file}", tmp_path)
    eventually(file.exists)
    early = len(json.loads(file.read_text()))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    kept = len(json.loads(file.read_text()))
    assert process.returncode == 130 and err == "rconv: interrupted\n"
    assert 0 < early <= kept < 400 and f"{kept} images: " in out
    assert os.listdir(tmp_path) == ["out.json"]


def test_an_interrupted_audit_is_one_line_and_leaves_nothing(tmp_path):
    process = started("audit --json a.json --html a.html", tmp_path)
    eventually(lambda: list(tmp_path.glob(".rconv-*.lock")))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "rconv: interrupted\n")
    assert not os.listdir(tmp_path)


def test_records_and_the_picture_are_written_as_images_come(tmp_path, monkeypatch, capsys):
    """An error, or Ctrl-C, in the middle keeps those that are finished."""
    out, file = tmp_path / "out.png", tmp_path / "out.json"
    monkeypatch.setattr("rconv.cli.output.WAIT", 0.0)
    monkeypatch.setattr("rconv.attack.attack.FIRST", 1)
    monkeypatch.setattr("rconv.attack.attack.QUICK", 0.0)
    add, seen = ResultWriter.add, []

    def interrupted(kept, *group):
        if len(seen) == 2:
            raise KeyboardInterrupt
        add(kept, *group)
        seen.append((out.exists(), len(json.loads(file.read_text()))))

    monkeypatch.setattr(ResultWriter, "add", interrupted)
    code, found, err = answered(f"{SMALL} -i 3:6 --json {file} --out {out}", capsys)
    assert (code, err) == (130, "rconv: interrupted\n")
    assert seen[0] == (True, 1)
    assert [r["index"] for r in json.loads(file.read_text())] == [3, 4]
    assert "2 images: " in found


def test_the_second_process_with_the_same_output_is_refused(tmp_path, monkeypatch, capsys):
    """Until the first has ended, were it by force."""
    monkeypatch.chdir(tmp_path)
    process = started(f"{MANY} --json out.json", tmp_path)
    eventually(lambda: list(tmp_path.glob(".rconv-*.lock")))
    code, _, err = answered(f"{SMALL} --json out.json", capsys)
    assert code == 2 and "another process is writing it" in err and err.count("\n") == 1
    assert answered(f"{SMALL} --json other.json", capsys)[0] == 0
    process.kill()
    process.communicate()
    assert answered(f"{SMALL} --json out.json", capsys)[0] == 0
    assert not list(tmp_path.glob(".rconv-*.lock"))


def test_an_unexpected_error_is_one_line(monkeypatch, capsys):
    def broken(arguments):
        raise TypeError("two\nlines")

    monkeypatch.setitem(COMMANDS, "attack", broken)
    code, _, err = answered("", capsys)
    assert code == 1 and "TypeError: two lines" in err and err.count("\n") == 1


def test_there_are_many_command_lines():
    assert len(GOOD) + len(REFUSED) >= 120
