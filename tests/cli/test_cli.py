"""The command line as a user types it: answers, files, and one-line refusals."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rconv.cli import main
from rconv.cli.commands import COMMANDS
from rconv.data import datasets
from rconv.lab.experiment import client_gradients, shared_model

KEYS = (
    "dataset index label architecture activation seed dtype constraints mse psnr ssim "
    "gradient_residual unique seconds layers"
).split()
LAYER_KEYS = (
    "name unknowns gradient_rows weight_rows rank condition residual constraints signs"
).split()


def test_attack_writes_picture_and_records(tmp_path, capsys):
    out, file = tmp_path / "out.png", tmp_path / "out.json"
    assert main(["-i", "0:2", "-a", "Tanh", "--out", str(out), "--json", str(file)]) == 0
    records = json.loads(file.read_text())
    assert [r["index"] for r in records] == [0, 1]
    assert all(set(KEYS) <= set(r) for r in records)
    assert all(set(layer) == set(LAYER_KEYS) for r in records for layer in r["layers"])
    assert all(r["mse"] < 1e-12 and r["unique"] and r["psnr"] > 120 for r in records)
    assert records[0]["activation"] == "Tanh" and records[0]["dataset"] == "Photos"
    assert np.array(Image.open(out)).std() > 10
    assert "2 images: 2 unique, 2 with MSE < 1e-06" in capsys.readouterr().out


def test_the_papers_flags_keep_their_meaning(tmp_path, monkeypatch):
    """-d, -i and -a of the published script, on a snapshot that the test writes."""
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "CIFAR100-train-first3.npz",
        data=rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8),
        targets=np.array([19, 29, 0]),
    )
    monkeypatch.setenv("RCONV_DATA", str(tmp_path))
    file = tmp_path / "r.json"
    assert main(["-d", "CIFAR100", "-i", "1", "-a", "Sigmoid", "--json", str(file)]) == 0
    (record,) = json.loads(file.read_text())
    assert (record["dataset"], record["index"], record["label"]) == ("CIFAR100", 1, 29)
    assert record["mse"] < 1e-12


def test_gradients_travel_through_files(tmp_path, capsys):
    """The client writes gradients and weights; the attacker has only these two files."""
    gradients, weights = str(tmp_path / "g.safetensors"), str(tmp_path / "w.safetensors")
    picture, file = tmp_path / "x.png", tmp_path / "x.json"
    client = ["observe", "-d", "Digits", "-i", "3,5", "--seed", "7"]
    assert main([*client, "--gradients", gradients, "--save-weights", weights]) == 0
    attacker = ["attack", "-d", "Digits", "--gradients", gradients, "--weights", weights]
    assert main([*attacker, "--out", str(picture), "--json", str(file)]) == 0
    records = json.loads(file.read_text())
    assert [r["mse"] for r in records] == [None, None]
    assert records[0]["activation"] == "ReLU" and records[0]["filters"] == [12, 16, 12, 3]
    assert records[0]["initialisation"] == weights
    assert all(r["gradient_residual"] < 1e-9 and r["unique"] for r in records)
    assert picture.exists()
    assert "2 images: 2 unique" in capsys.readouterr().out


BATCH = ["-d", "Digits", "-i", "0:3", "-m", "dlg_lenet", "--initialisation", "default",
         "--filters", "6,30,16"]  # fmt: skip
"""Three digits and a network that permits batches of them."""


def test_a_batch_comes_back_in_the_order_of_its_images(tmp_path, capsys):
    out, file = tmp_path / "out.png", tmp_path / "out.json"
    assert main([*BATCH, "--batch", "3", "--out", str(out), "--json", str(file)]) == 0
    records = json.loads(file.read_text())
    assert [r["index"] for r in records] == [0, 1, 2]
    assert [r["batch"] for r in records] == [3, 3, 3]
    assert all(r["mse"] < 1e-12 and r["unique"] for r in records)
    assert np.array(Image.open(out)).std() > 10
    assert "3 images of one batch: 3 unique" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["3", "auto", "2"])
def test_the_mean_gradient_of_a_batch_travels_through_a_file(size, tmp_path, capsys):
    sent, file = str(tmp_path / "g"), tmp_path / "x.json"
    assert main(["observe", *BATCH, "--batch", "--gradients", sent]) == 0
    assert "mean gradient of 3 images" in capsys.readouterr().out
    attacker = ["attack", *BATCH[:2], *BATCH[4:], "--gradients", sent]
    assert main([*attacker, "--batch", size, "--json", str(file)]) == 0
    records = json.loads(file.read_text())
    assert len(records) == (2 if size == "2" else 3)
    assert all(r["unique"] == (size != "2") for r in records)
    assert size != "2" or all("rank 3" in r["diagnostic"] for r in records)


NO_BATCHES = {
    "none": (["--batch", "0"], "whole number from 1"),
    "no number": (["--batch", "many"], "or auto"),
    "another number of images": (["-i", "0:2", "--batch", "3"], "name 3"),
    "as many as classes": (["-i", "0:10", "--batch", "10"], "at most 9 samples"),
    "alike": (["-i", "4,4,5", "--batch", "auto"], "has the rank of 2"),
}


@pytest.mark.parametrize("arguments, hint", NO_BATCHES.values(), ids=NO_BATCHES)
def test_what_is_no_batch_is_refused_in_one_line(arguments, hint, capsys):
    code, error = refusal([*BATCH[:2], *BATCH[4:], *arguments], capsys)
    assert code == 2 and hint in error and error.count("\n") == 1


def update(folder, rate=0.01, dtype=torch.float32):
    """Files of the weights before and after a step on one digit; the options that name them."""
    model = shared_model("Digits", "lenet_main", "Tanh", seed=3).to(dtype)
    truth = datasets.load("Digits", [5])
    gradients = client_gradients(model, "lenet_main", truth, str(dtype).removeprefix("torch."))
    before, after = str(folder / "w0"), str(folder / "w1")
    weights = model.state_dict()
    save_file(weights, before)
    save_file({name: w - rate * gradients[name][0] for name, w in weights.items()}, after)
    return ["-d", "Digits", "-a", "Tanh", "--before", before, "--after", after, "--lr", str(rate)]


def test_an_update_travels_through_files(tmp_path, capsys):
    """The weights before and after are all that the attacker has; the model is the former."""
    file = tmp_path / "x.json"
    assert main([*update(tmp_path), "--json", str(file)]) == 0
    (record,) = json.loads(file.read_text())
    assert record["dtype"] == "float32" and record["learning_rate"] == 0.01
    assert record["before"] == record["initialisation"] == str(tmp_path / "w0")
    assert record["unique"] and record["gradient_residual"] < 1e-2
    assert "1 images: 1 unique" in capsys.readouterr().out


def test_a_decay_that_the_client_did_not_have_is_no_explanation(tmp_path, capsys):
    assert main([*update(tmp_path, dtype=torch.float64), "--weight-decay", "0.01"]) == 0
    assert "1 images: 0 unique" in capsys.readouterr().out


HALF_UPDATES = {
    "no weights before": (["--after", "w1", "--lr", "1"], "--before is missing"),
    "no weights after": (["--before", "w0", "--lr", "1"], "--after is missing"),
    "no rate": (["--before", "w0", "--after", "w1"], "--lr is missing"),
    "a decay alone": (["--weight-decay", "1e-4"], "--before is missing"),
    "a rate that is none": (["--before", "w0", "--after", "w1", "--lr", "x"], "invalid float"),
    "a rate of zero": (["--before", "w0", "--after", "w1", "--lr", "0"], "positive and finite"),
    "two models": (["--before", "w0", "--after", "w1", "--lr", "1", "--weights", "w0"], "model's"),
    "gradients as well": (["--gradients", "w0", "--after", "w1"], "not allowed with"),
    "no step": (["--before", "w0", "--after", "w0", "--lr", "1"], "are the same"),
    "no file": (["--before", "w0", "--after", "w2", "--lr", "1"], "no such file"),
    "over the weights": (["--before", "w0", "--after", "w1", "--lr", "1", "--json", "w1"],
        "--json and --after are one"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, hint", HALF_UPDATES.values(), ids=HALF_UPDATES)
def test_what_is_no_update_is_refused_before_the_work(
    arguments, hint, tmp_path, monkeypatch, capsys
):
    update(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rconv.cli.commands.Attack", lambda *a, **k: pytest.fail("attacked"))
    monkeypatch.setattr("rconv.cli.commands.attack_images", lambda *a, **k: pytest.fail("attacked"))
    code, error = refusal(arguments, capsys)
    assert code == 2 and error.count("\n") == 1 and hint in error


@pytest.mark.parametrize("option", ["--gradients", "--save-weights"])
def test_observe_refuses_a_missing_folder_before_it_computes(tmp_path, capsys, monkeypatch, option):
    monkeypatch.setattr(
        "rconv.cli.commands.client_gradients", lambda *a: pytest.fail("computed first")
    )
    files = {"--gradients": str(tmp_path / "g.safetensors"), option: str(tmp_path / "no" / "x")}
    arguments = [text for pair in files.items() for text in pair]
    assert main(["observe", "-d", "Digits", *arguments]) == 2
    assert "folder does not exist" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_audit_prints_the_verdict(capsys):
    assert main(["audit", *SMALL, "--trials", "0"]) == 0
    out = capsys.readouterr().out
    conv2 = next(line for line in out.splitlines() if line.startswith("conv2"))
    assert conv2.split()[1:4] == ["3072", "3600", "2880"] and "needs hybrid" in conv2
    *_, verdict, change, batches, blank, risk, action = out.rstrip().splitlines()
    assert verdict == "dlg_lenet on Digits: needs hybrid" and not blank
    assert change.startswith("Cheapest change: conv2 with 9 instead of 12 filters")
    assert batches.startswith("The gradient of one image determines it, that of more does not")
    assert risk.startswith("Risk: leaks. The equations of both kinds together determine the image")
    assert action.startswith("What to do: Train with DP-SGD")


def test_audit_tries_the_attack_without_the_datasets_files(tmp_path, capsys):
    """On photographs, in the number of channels and in the precision that are asked for."""
    audit = ["audit", "-m", "lenet_main", "-d", "MNIST", "--data-dir", str(tmp_path)]
    assert main([*audit, "--trials", "2", "--dtype", "float32"]) == 0
    rank, tried, risk = capsys.readouterr().out.split("\n\n")
    assert "\nlenet_main on MNIST: leaks\n" in rank
    header, *layers, share, verdict, features = tried.rstrip().splitlines()
    assert (
        "2 photographs of scikit-image (1 × 32 × 32, grey), labels 0 to 1, gradients in float32"
        in header
    )
    assert [line.split()[0] for line in layers] == "layer fc conv4 conv3 conv2 conv1".split()
    assert share.startswith("recovered: 2 of 2 (95 % interval 16% to 100%); unique: 2")
    assert verdict.startswith("2 of 2 images reconstructed as the only ones possible (median ")
    assert features.startswith("features that enter fc (") and "labels right: 2 of 2" in features
    assert risk.startswith("Risk: leaks. This setup leaks: the attack recovered 2 of 2 images.")


def test_audit_tries_images_of_the_dataset_and_weights_of_a_file(tmp_path, capsys):
    """PyTorch's initialisation and a dead filter: less than the shapes promise, and both say so."""
    model = shared_model("Digits", "lenet_o", initialisation="default")
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    weights["conv4.bias"] = torch.tensor([-100.0, -100.0, 0.0], dtype=torch.float64)
    save_file(weights, tmp_path / "w")
    arguments = ["-d", "Digits", "-m", "lenet_o", "-i", "3", "--weights", str(tmp_path / "w")]
    assert main(["audit", *arguments]) == 0
    out = capsys.readouterr().out
    assert "Tried with these weights: 1 given images, gradients in float32" in out
    assert "0 of 1 images reconstructed" in out and "Digits: leaks" in out
    assert "Rank and trial differ. The rank for random data says 'leaks'" in out
    assert "image 0: conv4 has rank" in out


def test_audit_refuses_images_that_are_not_to_be_had_before_it_computes(monkeypatch, capsys):
    monkeypatch.setattr("rconv.cli.audit.full_audit", lambda *a, **k: pytest.fail("judged first"))
    assert main(["audit", "-i", "100"]) == 2
    found = capsys.readouterr()
    assert "0 to 99" in found.err and not found.out


# Files: nothing is lost, and what would be is refused before the work

SMALL = ["-d", "Digits", "-m", "dlg_lenet"]
REFUSED_FILES = {
    "no path": (["--out", ""], "--out: the path is empty"),
    "no path of gradients": (["--gradients", ""], "--gradients: the path is empty"),
    "no path of weights": (["--weights", ""], "--weights: the path is empty"),
    "no folder of data": (["--data-dir", ""], "--data-dir: the path is empty"),
    "no such user": (["-d", "MNIST", "--data-dir", "~nosuch"], "no such user"),
    "two outputs, one name": (["--out", "x.png", "--json", "x.png"], "--json and --out are one"),
    "two outputs, two spellings": (["--out", "x.png", "--json", "a/../x.png"], "are one file"),
    "two outputs, by a link": (["--out", "x.png", "--json", "here/x.png"], "are one file"),
    "over the gradients": (["--gradients", "g", "--json", "g"], "--json and --gradients are one"),
    "over the gradients, by a link": (["--gradients", "g", "--json", "link"], "are one file"),
    "over the gradients, by a hard link": (["--gradients", "g", "--json", "hard"], "are one file"),
    "over the weights": (["--weights", "g", "--out", "g.png"], "--out and --weights are one"),
    "a pipe": (["--json", "pipe"], "pipe: is a pipe"),
    "a link to a device": (["--out", "null.png"], "is a pipe, a socket or a device"),
    "a folder": (["--json", "a"], "is a folder"),
    "a loop of links": (["--json", "loop"], "loop: Too many levels"),
    "a name that is too long": (["--json", "x" * 300], "File name too long"),
    "a folder that takes no files": (["--json", "/proc/x"], "cannot be written to"),
    "LaTeX": (["--out", "x.pgf"], "suffix"),
    "a suffix alone": (["--out", ".png"], "suffix"),
    "gradients from a pipe": (["--gradients", "pipe"], "is no regular file"),
    "weights from a pipe": (["--weights", "pipe"], "is no regular file"),
    "weights from a loop of links": (["--weights", "loop"], "no such file"),
    "control characters": (["--weights", "\x1b[31mred\n"], r"\x1b[31mred"),
    "a mark of direction": (["--weights", "\u202egnp.x"], r"\u202egnp.x"),
    "a name that is no text": (["--weights", os.fsdecode(b"\xff")], r"\udcff"),
    "an option that steers the terminal": (["--\x1b]0;title"], r"\x1b]0;title"),
}


def folder_of_traps(folder):
    """Files, links and pipes for `REFUSED_FILES`."""
    (folder / "a").mkdir()
    (folder / "g").write_bytes(b"content")
    os.mkfifo(folder / "pipe")
    os.link(folder / "g", folder / "hard")
    links = {"here": ".", "link": "g", "g.png": "g", "loop": "loop2", "loop2": "loop"}
    for name, target in {**links, "null.png": os.devnull}.items():
        (folder / name).symlink_to(target)


def contents(folder):
    return {
        path.name: (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in folder.iterdir()
        if path.name not in ("loop", "loop2")
    }


@pytest.mark.parametrize("arguments, hint", REFUSED_FILES.values(), ids=REFUSED_FILES)
def test_a_file_that_would_be_lost_is_refused(arguments, hint, tmp_path, monkeypatch, capsys):
    folder_of_traps(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rconv.cli.commands.Attack", lambda *a, **k: pytest.fail("attacked first"))
    before = contents(tmp_path)
    code, error = refusal([*SMALL, *arguments], capsys)
    assert code == 2
    assert hint in error and error.startswith("rconv: error: ")
    assert error.endswith("\n") and error[:-1].isprintable()
    assert contents(tmp_path) == before


def refusal(arguments, capsys):
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().err


def test_a_link_is_written_through(tmp_path, capsys):
    link = tmp_path / "link.json"
    link.symlink_to("target.json")
    assert main([*SMALL, "--json", str(link)]) == 0
    assert link.is_symlink() and json.loads((tmp_path / "target.json").read_text())


@pytest.mark.parametrize("weights", ["o", "here/o", "w"])
def test_two_outputs_of_observe_are_two_files(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").symlink_to(".")
    (tmp_path / "w").write_bytes(b"weights")
    out = ["--gradients", "o", "--save-weights", weights, "--weights", "w"]
    assert main(["observe", *SMALL, *out]) == 2
    assert "are one file" in capsys.readouterr().err
    assert (tmp_path / "w").read_bytes() == b"weights" and not (tmp_path / "o").exists()


@pytest.mark.parametrize("command", [[], ["audit"], ["observe", "--gradients", "o"]], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e308, "float8"])
def test_weights_that_are_no_numbers_are_refused(command, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = dict(shared_model("Digits", "dlg_lenet").state_dict())
    if value == "float8":
        weights["fc.bias"] = weights["fc.bias"].to(torch.float8_e5m2)
    else:
        weights["fc.bias"][0] = value
    save_file(weights, "w")
    assert main([*command, *SMALL, "--weights", "w"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rconv: error: w: fc.bias ") and error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_gradients_of_eight_bits_are_refused(tmp_path, capsys):
    model = shared_model("Digits", "dlg_lenet")
    path = str(tmp_path / "g")
    save_file({n: p.detach().to(torch.float8_e5m2) for n, p in model.named_parameters()}, path)
    assert main([*SMALL, "--gradients", path]) == 2
    assert "float8_e5m2, not one of float64" in capsys.readouterr().err


def test_a_full_disk_takes_the_picture_and_not_the_answer(tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main([*SMALL, "--out", str(tmp_path / "x.png")]) == 2
    found = capsys.readouterr()
    assert "1 images: 1 unique" in found.out
    assert "x.png cannot be written: No space left" in found.err
    assert not list(tmp_path.iterdir())


def test_an_answer_that_nobody_reads_is_an_error():
    """Python itself would end with 120, or with 0."""
    code = "import sys; from rconv.cli import main; sys.exit(main(['--version']))"
    reader, writer = os.pipe()
    os.close(reader)
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (2, "rconv: error: standard output: Broken pipe\n")


def test_a_closed_output_is_refused_before_the_work(monkeypatch, capsys):
    monkeypatch.setattr("rconv.cli.commands.COMMANDS", {})
    monkeypatch.setattr(sys, "stdout", None)
    assert main([*SMALL]) == 2
    assert capsys.readouterr().err == "rconv: error: standard output is closed\n"


def test_an_interruption_is_no_traceback(monkeypatch, capsys):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "attack", interrupt)
    assert main([]) == 130
    assert capsys.readouterr().err == "rconv: interrupted\n"


REFUSALS = {
    "unknown dataset": (["-d", "FOO"], "FOO"),
    "unknown activation": (["-a", "GELU"], "GELU"),
    "unknown command": (["foo"], "foo"),
    "index out of range": (["-i", "100"], "0 to 99"),
    "index not a number": (["-i", "x"], "0:100"),
    "activation that the architecture fixes": (["-m", "cnn6_narrow", "-a", "ReLU"], "LeakyReLU"),
    "too few filters": (["--filters", "3"], "4 convolutions"),
    "filters not numbers": (["--filters", "a,b"], "16,24,12,12"),
    "unknown constraints": (["--constraints", "foo"], "hybrid"),
    "constraints for the wrong number of layers": (["--constraints", "weight,gradient"], "4"),
    "missing folder of the picture": (["--out", "nowhere/x.png"], "does not exist"),
    "unknown suffix of the picture": (["--out", "x.foo"], "suffix"),
    "missing file of gradients": (["--gradients", "nowhere.safetensors"], "no such file"),
    "missing file of weights": (["--weights", "nowhere.safetensors"], "no such file"),
    "a seed that is none": (["--seed", "-1"], "2^63"),
    "too large a seed": (["--seed", "9" * 30], "2^63"),
    "too many filters": (["--filters", "9" * 30 + ",1,1,1"], "16,24,12,12"),
    "a device without values": (["--device", "meta"], "meta device"),
    "no such device": (["--device", "cuda:99"], "not available"),
    "share out of range": (["audit", "--active", "2"], "(0, 1]"),
    "trials not a number": (["audit", "--trials", "x"], "from 0 to 100"),
    "more trials than photographs": (["audit", "--trials", "101"], "from 0 to 100"),
    "trials and images": (["audit", "--trials", "2", "-i", "0"], "not allowed with"),
    "images to try not a number": (["audit", "-i", "x"], "0:100"),
    "unknown precision of a trial": (["audit", "--dtype", "float8"], "float64"),
}


@pytest.mark.parametrize("arguments, hint", REFUSALS.values(), ids=REFUSALS.keys())
def test_bad_input_is_one_line_and_exit_code_2(arguments, hint, capsys):
    code, error = refusal(arguments, capsys)
    assert code == 2
    assert error.count("\n") == 1 and hint in error and error.startswith("rconv: error: ")


def test_missing_dataset_names_the_remedy(tmp_path, monkeypatch, capsys):
    import urllib.request
    from urllib.error import URLError

    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert main(["-d", "CIFAR10", "--data-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "--data-dir" in error and "Photos" in error and error.count("\n") == 1


def test_strict_fails_where_the_image_is_not_unique(capsys):
    """Two filters in the last convolution: 50 equations for 64 unknowns in each channel."""
    few = ["--filters", "12,16,12,2", "--constraints", "paper"]
    assert main([*few]) == 0
    assert "1 images: 0 unique" in capsys.readouterr().out
    assert main([*few, "--strict"]) == 2
    error = capsys.readouterr().err
    assert "conv4" in error and "564 of 768" in error and "more filters" in error


def test_damaged_gradients_are_refused(tmp_path, capsys):
    path = tmp_path / "g.safetensors"
    path.write_bytes(b"\x80\x04 this is a pickle, or worse")
    assert main(["--gradients", str(path)]) == 2
    assert ".safetensors" in capsys.readouterr().err


def test_runs_as_a_module_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "rconv", "-i", "999"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("rconv: error: ") and "Traceback" not in done.stderr
