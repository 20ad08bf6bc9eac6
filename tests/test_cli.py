"""The command line as a user types it: answers, files, and one-line refusals."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rconv.cli import main

KEYS = (
    "dataset index label architecture activation seed dtype constraints mse psnr ssim "
    "gradient_residual unique seconds layers"
).split()
LAYER_KEYS = "name unknowns gradient_rows weight_rows rank condition residual constraints".split()


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
    assert main(["audit", "-m", "dlg_lenet", "-d", "CIFAR10"]) == 0
    out = capsys.readouterr().out
    conv2 = next(line for line in out.splitlines() if line.startswith("conv2"))
    assert conv2.split()[1:4] == ["3072", "3600", "2880"] and "needs hybrid" in conv2
    assert out.rstrip().endswith("dlg_lenet on CIFAR10: needs hybrid")


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
    "no such device": (["--device", "cuda:99"], "not available"),
    "share out of range": (["audit", "--active", "2"], "(0, 1]"),
}


@pytest.mark.parametrize("arguments, hint", REFUSALS.values(), ids=REFUSALS.keys())
def test_bad_input_is_one_line_and_exit_code_2(arguments, hint, capsys):
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
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
    assert "no, " in capsys.readouterr().out
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
