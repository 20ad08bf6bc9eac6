"""The comparison: every attack gets the same gradients, and is judged by the same truth."""

import pytest
import torch

from rconv.baselines import dlg
from rconv.lab import comparison, metrics
from rconv.lab.comparison import AUTO, PAPER, compare
from rconv.lab.experiment import client_gradients, shared_model
from rconv.lab.records import write_json
from rconv.show import tables

METHODS = [PAPER, AUTO, "R-GAP", "DLG", "iDLG", "Inverting Gradients"]
FEW = {"iterations": 2, "smooth_iterations": 2}


@pytest.fixture(scope="module")
def sigmoid():
    """Two digits through DLG's network, with a second layer of full rank."""
    return compare("Digits", [3, 0], "dlg_lenet", seed=0, filters=(12, 16, 12), **FEW)


def test_a_record_for_every_attack_and_image(sigmoid):
    assert [r["method"] for r in sigmoid.records] == METHODS * 2
    assert [r["index"] for r in sigmoid.records] == [3] * 6 + [0] * 6
    assert list(sigmoid.images) == METHODS


def test_records_measure_the_images(sigmoid):
    for method, images in sigmoid.images.items():
        own = [r for r in sigmoid.records if r["method"] == method]
        found = metrics.mse(images, sigmoid.truth.images)
        assert [r["mse"] for r in own] == pytest.approx(found.tolist())


def test_closed_forms_find_the_image_and_two_steps_of_an_optimiser_do_not(sigmoid):
    psnr = {m: [r["psnr"] for r in sigmoid.records if r["method"] == m] for m in METHODS}
    assert min(psnr[AUTO]) > 80 > 30 > max(psnr["DLG"])
    assert all(r["sound"] for r in sigmoid.records if r["method"] == AUTO)
    assert all(r["found_label"] == r["target"] for r in sigmoid.records if r["method"] == AUTO)


def test_the_gradients_are_the_clients_and_the_settings_reach_the_attack(sigmoid):
    model = shared_model("Digits", "dlg_lenet", seed=0, dtype="float32", filters=(12, 16, 12))
    gradients = client_gradients(model, "dlg_lenet", sigmoid.truth, "float32")
    for n in range(2):
        own = {name: g[n : n + 1] for name, g in gradients.items()}
        found = dlg.attack(model, own, (1, 32, 32), iterations=2, seed=0)
        assert torch.equal(found.images[0].double(), sigmoid.images["DLG"][n])
    settings = {r["method"]: r["settings"] for r in sigmoid.records}
    assert settings["DLG"] == {"iterations": 2, "seed": 0}
    assert settings["Inverting Gradients"]["iterations"] == 2


def test_an_attack_that_refuses_the_network_says_why():
    found = compare("Digits", [0], "lenet_main", "ReLU", dtype="float64", **FEW)
    (record,) = (r for r in found.records if r["method"] == "R-GAP")
    assert "ReLU" in record["refusal"] and not record["sound"]
    assert (record["psnr"], record["mse"]) == (None, None)
    assert found.images["R-GAP"].isnan().all()
    (ours,) = (r for r in found.records if r["method"] == PAPER)
    assert ours["refusal"] is None and ours["psnr"] > 100


def test_records_are_json_and_make_a_table(sigmoid, tmp_path):
    write_json(str(tmp_path / "records.json"), sigmoid.records)
    rows = tables.comparison_rows(sigmoid.records)
    assert [row[1] for row in rows] == METHODS
    assert all(len(row) == len(tables.COMPARISON_HEADER) for row in rows)
    assert rows[1][2:4] == ("2 of 2", 2)


def test_a_reconstruction_that_does_not_explain_the_gradients_is_not_sound(monkeypatch):
    monkeypatch.setattr(comparison, "EXPLAINED", 0.0)
    found = compare("Digits", [0], "dlg_lenet", filters=(12, 16, 12), **FEW)
    assert not any(r["sound"] for r in found.records if r["method"] in (PAPER, AUTO))
