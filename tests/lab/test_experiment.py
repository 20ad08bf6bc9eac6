"""Experiments and their records: every setting reaches the run, every number the record."""

import json

import pytest
import torch

from rconv.data import datasets
from rconv.lab import architectures
from rconv.lab.experiment import client_gradients, run, shared_model
from rconv.lab.records import score, summary, table, write_json
from rconv.observe.exchange import load_weights, read_tensors, write_tensors


def test_run_measures_what_it_says():
    done = run("Photos", [0, 4], activation="LeakyReLU", constraints="paper")
    images = done.reconstruction.images
    own = (images - done.truth.images).square().flatten(1).mean(dim=1)
    assert [r["mse"] for r in done.records] == pytest.approx(own.tolist())
    assert [r["index"] for r in done.records] == [0, 4]
    assert done.records[0]["layers"][-1]["constraints"] == "weight"
    assert done.records[0]["layers"][1]["constraints"] == "gradient"
    assert [layer["name"] for layer in done.records[0]["layers"]] == (
        ["fc", "conv4", "conv3", "conv2", "conv1"]
    )


@pytest.mark.parametrize(
    "setting, value", [("seed", 3), ("filters", (14, 18, 12, 4)), ("initialisation", "default")]
)
def test_settings_reach_model_and_record(setting, value):
    (record,) = run("Digits", [0], **{setting: value}).records
    assert record[setting] == (list(value) if setting == "filters" else value)
    assert record["mse"] < 1e-10


def test_float32_clients_share_rounded_weights():
    model = shared_model("Photos", "lenet_main", dtype="float32")
    exact = shared_model("Photos", "lenet_main")
    assert torch.equal(model.conv1.weight, exact.conv1.weight.float())
    gradients = client_gradients(model, "lenet_main", datasets.load("Photos", [0]), "float32")
    assert {g.dtype for g in gradients.values()} == {torch.float32}


def test_float16_is_accepted_and_said_to_be_coarse():
    """Half precision leaves three digits: the record must not claim more."""
    (record,) = run("Photos", [0], dtype="float16", initialisation="default").records
    assert record["dtype"] == "float16"
    assert record["expected_error"] > 1e-4


def test_one_logit_takes_the_parity_of_the_label():
    assert architectures.targets("cnn6", torch.tensor([6, 9])).tolist() == [0, 1]
    assert architectures.targets("lenet_main", torch.tensor([6, 9])).tolist() == [6, 9]


def test_trained_weights_can_be_loaded(tmp_path):
    path = tmp_path / "w.safetensors"
    other = architectures.build("lenet_main", seed=1)
    write_tensors(path, other.state_dict())
    model = shared_model("Photos", "lenet_main", weights=str(path))
    assert torch.equal(model.fc.weight, other.fc.weight)
    with pytest.raises(ValueError, match=r"another model.*conv1\.weight"):
        load_weights(architectures.build("lenet_main", channels=1), path)


def test_tensors_survive_the_file(tmp_path):
    tensors = {"a": torch.randn(3, 2, dtype=torch.float64), "b": torch.ones(1).half()}
    write_tensors(tmp_path / "t.safetensors", tensors)
    back = read_tensors(tmp_path / "t.safetensors")
    assert back["a"].equal(tensors["a"]) and back["b"].equal(tensors["b"])
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


def test_truncated_file_is_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.randn(100)})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"no readable \.safetensors"):
        read_tensors(path)


def test_records_are_json_even_where_numbers_are_not_finite(tmp_path):
    done = run("Photos", [0])
    done.reconstruction.gradient_residual[0] = torch.inf
    records = score(done.reconstruction, None, {"seconds": 0.1})
    assert records[0]["gradient_residual"] is None and records[0]["mse"] is None
    write_json(tmp_path / "r.json", records)
    assert json.loads((tmp_path / "r.json").read_text()) == records


def test_a_record_has_the_verdict_and_its_reason():
    (good,) = run("Photos", [0]).records
    assert good["unique"] and good["full_rank"] and good["gap"] == 0
    (cat,) = run("Photos", [1], seed=2, constraints="paper").records  # a filter is dead
    assert not cat["unique"] and not cat["full_rank"] and cat["gap"] > 0
    assert cat["diagnostic"] and not good["diagnostic"]


def test_summary_shows_the_images_that_are_not_unique():
    good = {
        "index": 0,
        "label": 1,
        "mse": 1e-20,
        "psnr": 200.0,
        "ssim": 1.0,
        "gradient_residual": 1e-12,
        "unique": True,
        "diagnostic": "",
        "seconds": 0.5,
    }
    bad = {**good, "index": 7, "mse": 1.0, "unique": False, "diagnostic": "conv1 has rank 3 of 9"}
    text = summary([good] * 29 + [bad])
    lines = text.splitlines()
    assert len(lines) == 3 and lines[1].split()[0] == "7"
    assert lines[1].endswith("no: conv1 has rank 3 of 9")
    assert lines[-1] == (
        "30 images: 29 unique, 29 with MSE < 1e-06, median MSE 1.0e-20, 0.500 s an image"
    )
    assert len(summary([good] * 3).splitlines()) == 5


def test_summary_has_a_dash_for_what_is_not_known():
    record = {"index": 14, "label": 1, "mse": None, "psnr": None, "ssim": None, "unique": False}
    record |= {"gradient_residual": None, "diagnostic": "no", "seconds": 0.5}
    line = summary([record]).splitlines()[1]
    assert line.split()[:6] == ["14", "1", "-", "-", "-", "-"]


def test_table_aligns():
    assert table(("a", "bb"), [("x", 1), ("yyy", 22)]) == "a    bb\nx     1\nyyy  22"
