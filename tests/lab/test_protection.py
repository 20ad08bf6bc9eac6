"""What survives a defence: the experiment's records, and what tables make of them."""

import pytest
import torch

from rconv.data import datasets
from rconv.lab.protection import grey, protect
from rconv.show.comparison_tables import ACCURACIES, by_defence, first_without

FILTERS = (6, 16, 12, 6)


@pytest.fixture(scope="module")
def records():
    """Two photos under every kind of defence, at strengths that leave them whole."""
    pytest.importorskip("dp_accounting")
    return protect(
        "Photos",
        [0, 2],
        "lenet_main",
        FILTERS,
        {"noise": (1e-9,), "clip": (0, 1e-11), "round": ("float32",)},
        masked=(0.3,),
        seeds=(0, 1),
    )


def of(records, **wanted):
    return [r for r in records if all(r[key] == value for key, value in wanted.items())]


def test_there_is_a_record_for_each_image_draw_and_attacker(records):
    assert len(of(records, defence="noise")) == 2 * 2 * 2
    assert len(of(records, defence="clip", strength=1e-11)) == 2 * 2 * 2
    assert len(of(records, defence="clip", strength=0)) == 2 * 2, "clipping alone has no draws"
    assert len(of(records, attacker="masked")) == 2
    assert {r["index"] for r in records} == {0, 2}


def test_mild_defences_leave_the_image(records):
    assert all(r["mse"] < 1e-6 and r["unique"] and r["gain"] > 40 for r in records)


def test_clipping_alone_changes_nothing(records):
    whole = protect("Photos", [0], "lenet_main", FILTERS, {"clip": (0,)})
    assert min(r["psnr"] for r in whole) > 250


def test_draws_of_the_noise_differ(records):
    first, second = (
        of(records, defence="noise", attacker="paper", noise_seed=seed) for seed in (0, 1)
    )
    assert first[0]["psnr"] != second[0]["psnr"]


def test_only_noise_after_clipping_has_an_epsilon(records):
    assert {r["defence"] for r in records if r.get("epsilon") is not None} == {"clip"}
    assert all(r["epsilon"] is None for r in of(records, defence="clip", strength=0))


def test_grey_is_the_mean_over_the_channels():
    data = datasets.load("Photos", [1])
    assert torch.equal(grey(data).images, data.images.mean(dim=1, keepdim=True))


def made(strength, gains, attacker="auto", seeds=1):
    """Records with these gains: images in order, `seeds` draws each."""
    return [
        {
            "kind": "attack",
            "defence": "noise",
            "strength": strength,
            "attacker": attacker,
            "index": n // seeds,
            "mse": 1e-7 if gain is None or gain > 50 else 0.1,
            **dict.fromkeys(("psnr", "gain", "ssim"), gain),
        }
        for n, gain in enumerate(gains)
    ]


def test_the_median_is_a_true_one_and_the_best_stands_beside_it():
    (group,) = by_defence(made(0.1, [1.0, 2.0, 4.0, 60.0]))
    assert group.median("gain").value == 3.0
    assert group.best("gain") == 60.0 and group.exact == 1


def test_draws_of_one_image_are_one_image():
    (group,) = by_defence(made(0.1, [0.0, 0.0, 9.0, 5.0, 5.0, 5.0], seeds=3))
    found = group.median("gain")
    assert (found.value, found.clusters, found.count) == (2.5, 2, 6)


def test_a_strength_suffices_when_the_strongest_attacker_gets_nothing():
    found = by_defence(
        made(1e-3, [-5.0, -4.0, 8.0])
        + made(1e-2, [-5.0, -4.0, -3.0])
        + made(1e-2, [-9.0, -9.0, 1.0], attacker="paper")
        + made(1e-1, [-9.0, -9.0, None])
    )
    assert first_without(found, 0.0, best=False) == 1e-3
    assert first_without(found, 0.0, best=True) == 1e-1
    assert first_without(found, -20.0, best=True) is None


def test_accuracies_are_averaged_over_the_seeds():
    shared = {"kind": "training", "defence": "clip", "strength": 1.0, "epsilon": 2.34}
    rows = ACCURACIES.rows([{**shared, "accuracy": a} for a in (0.5, 0.8)])
    assert rows == [("clipping and noise σ", "1", "2.3", 2, "65", "50", "80")]
