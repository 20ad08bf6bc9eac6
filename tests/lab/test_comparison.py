"""The comparison: every attack gets the same gradients, and is judged by the same truth."""

import math

import pytest
import torch

from rconv.baselines import dlg
from rconv.lab import metrics
from rconv.lab.comparison import EXPLAINED, Judge, compare
from rconv.lab.experiment import client_gradients, shared_model
from rconv.lab.methods import (
    AUTO,
    DLG,
    IDLG,
    INVERTING,
    METHODS,
    PAPER,
    RGAP,
    SMALL,
    Method,
    convolutions_for,
    prepared,
)
from rconv.lab.records import write_json

FEW = {DLG: {"iterations": 2}, IDLG: {"iterations": 2}, INVERTING: {"iterations": 2}}
DIGITS = (1, 32, 32)


@pytest.fixture(scope="module")
def sigmoid():
    """Two digits through a network of the paper."""
    return compare("Digits", [3, 0], "lenet_main", "Sigmoid", seed=0, settings=FEW)


def test_a_record_for_every_attack_and_image(sigmoid):
    assert [r["method"] for r in sigmoid.records] == [*METHODS, *METHODS]
    assert [r["index"] for r in sigmoid.records] == [3] * 6 + [0] * 6
    assert list(sigmoid.images) == list(METHODS)


def test_records_measure_the_images(sigmoid):
    for method, images in sigmoid.images.items():
        own = [r for r in sigmoid.records if r["method"] == method]
        for name, found in metrics.quality(images, sigmoid.truth.images).items():
            known = [(r[name], f) for r, f in zip(own, found.tolist(), strict=True)]
            for kept, f in known:  # one by one there, here together: sums of other shapes
                assert math.isnan(f) if kept is None else kept == pytest.approx(f, abs=1e-12)


def test_closed_forms_find_the_image_and_two_steps_of_an_optimiser_do_not(sigmoid):
    psnr = {m: [r["psnr"] for r in sigmoid.records if r["method"] == m] for m in METHODS}
    assert min(psnr[AUTO]) > 60 > 20 > max(psnr[DLG])
    for record in sigmoid.records:
        if record["method"] == AUTO:
            assert record["gradient_residual"] < EXPLAINED
            assert record["found_label"] == record["target"]
            assert record["preparation"] > 0


def test_the_gradients_are_the_clients_and_the_settings_reach_the_attack(sigmoid):
    model = shared_model("Digits", "lenet_main", "Sigmoid", seed=0, dtype="float32")
    gradients = client_gradients(model, "lenet_main", sigmoid.truth, "float32")
    settings = {r["method"]: r["settings"] for r in sigmoid.records}
    assert settings[DLG]["iterations"] == 2 and settings[DLG]["restarts"] == 3
    assert settings[INVERTING] == {"iterations": 2, "total_variation": 0.1, "seed": 0}
    own = {name: g[:1] for name, g in gradients.items()}
    with convolutions_for(model):
        found = dlg.attack(model, own, DIGITS, **settings[DLG])
    assert torch.equal(found.images[0].double(), sigmoid.images[DLG][0])


def test_the_curve_ends_with_the_answer(sigmoid):
    for record in sigmoid.records:
        if record["psnr"] is not None:
            seconds, decibels = record["curve"][-1]
            assert decibels == pytest.approx(record["psnr"])
            assert seconds == pytest.approx(record["preparation"] + record["seconds"])
        else:
            assert not record["curve"] or record["method"] in (DLG, IDLG)


def test_an_attack_that_refuses_the_network_says_why():
    found = compare("Digits", [0], "lenet_main", "ReLU", dtype="float64", methods=[PAPER, RGAP])
    ours, theirs = found.records
    assert "ReLU" in theirs["refusal"] and theirs["gradient_residual"] is None
    assert (theirs["psnr"], theirs["mse"], theirs["found_label"]) == (None, None, None)
    assert found.images[RGAP].isnan().all()
    assert ours["refusal"] is None and ours["psnr"] > 100


def test_records_are_json(sigmoid, tmp_path):
    write_json(str(tmp_path / "records.json"), sigmoid.records)


@pytest.fixture(scope="module")
def judge(sigmoid):
    model = shared_model("Digits", "lenet_main", "Sigmoid", seed=0, dtype="float64")
    gradients = client_gradients(model, "lenet_main", sigmoid.truth)
    return Judge(model, "lenet_main", sigmoid.truth, gradients)


def test_the_truth_explains_the_gradients_and_an_attack_that_gives_another_image_does_not(judge):
    truth, label = judge.truth.images, judge.targets
    right = Method(lambda sent, known, watch: (truth[1:], int(label[1])), {})
    _, record = judge(right, 1)
    assert record["mse"] == 0 and record["gradient_residual"] < 1e-12
    wrong = Method(lambda sent, known, watch: (truth[:1], int(label[1])), {})
    assert judge(wrong, 1)[1]["gradient_residual"] > EXPLAINED


def test_a_wrong_label_explains_nothing_however_good_the_image(judge):
    right = int(judge.targets[0])
    lied = Method(lambda sent, known, watch: (judge.truth.images[:1], (right + 1) % 10), {})
    _, record = judge(lied, 0)
    assert record["mse"] == 0 and record["gradient_residual"] > EXPLAINED


def test_the_residual_is_the_relative_distance_over_all_parameters(judge):
    own = {name: g[:1] for name, g in judge.gradients.items()}
    doubled = {name: 2 * g for name, g in own.items()}
    residual = judge.residual(judge.truth.images[:1], int(judge.targets[0]), doubled)
    assert float(residual) == pytest.approx(0.5)
    spoiled = {**own, "fc.bias": own["fc.bias"] * 0}
    size = torch.cat([g.flatten() for g in spoiled.values()]).norm()
    expected = float(own["fc.bias"].norm() / size)
    residual = judge.residual(judge.truth.images[:1], int(judge.targets[0]), spoiled)
    assert float(residual) == pytest.approx(expected)


def test_only_attacks_that_assume_the_label_look_at_it(judge):
    own = {name: g[:1].float() for name, g in judge.gradients.items()}
    model = shared_model("Digits", "lenet_main", "Sigmoid", seed=0, dtype="float32")
    lie = (judge.targets[:1] + 1) % 10
    for method in (PAPER, AUTO, DLG, IDLG, INVERTING):
        _, label = prepared(method, model, DIGITS, FEW).attack(own, lie, lambda *_: None)
        assert (label == int(lie)) is (method == INVERTING)


def test_the_faster_convolutions_are_those_of_small_layers():
    for architecture, filters in (("dlg_lenet", 12), ("cnn6", 128)):
        model = shared_model("Digits", architecture)
        before = torch.backends.mkldnn.enabled
        with convolutions_for(model):
            assert torch.backends.mkldnn.enabled is (before and filters > SMALL)
        assert torch.backends.mkldnn.enabled is before


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="unknown method 'CPL': use one of R-CONV"):
        compare("Digits", [0], methods=["CPL"])
