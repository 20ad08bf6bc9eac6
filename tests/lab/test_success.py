"""The table of successes: every cell counts what was attacked, and is judged by the truth."""

import pytest
import torch
from small import relative_error

from rconv.attack.attack import Attack
from rconv.data import datasets
from rconv.lab import channels, metrics, success_rates
from rconv.lab.channels import sgd_step
from rconv.lab.experiment import client_gradients
from rconv.lab.records import SUCCESS, write_json
from rconv.observe.update import gradients_from_update

NONE = [0, 0]
SAMPLES = {
    "paper": [[2, 3], NONE, [1, 1], NONE, NONE],
    "R-GAP": [[1, 1], NONE, NONE, NONE, NONE],
    "auto": [[1, 1], NONE, NONE, NONE, NONE],
}


@pytest.fixture(scope="module")
def records():
    """Digits through `lenet_main` with ReLU."""
    return success_rates.success_rates("Digits", samples=SAMPLES, training=30)


def of(records, start, sent, method):
    (own,) = (
        r for r in records if (r["initialisation"], r["sent"], r["method"]) == (start, sent, method)
    )
    return own


def test_a_cell_for_everything_that_was_asked_for(records):
    assert len(records) == 3 * 4
    for r in records:
        if r["method"] != "R-GAP":
            asked = SAMPLES[r["method"]][channels.SENT.index(r["sent"])]
            assert [len(r["images"]), *set(r["images"])] == asked
            assert len(r["successes"]) == len(r["unique"]) == len(r["images"])


def test_counts_are_those_of_the_attack_itself(records):
    truth = datasets.load("Digits", range(3))
    expected = []
    for seed in range(2):
        model = success_rates.network("Digits", "lenet_main", None, "default", seed)
        gradients = client_gradients(model, "lenet_main", truth)
        found = Attack(model, (1, 32, 32), constraints="paper")(gradients)
        expected.append(int((metrics.mse(found.images, truth.images) < SUCCESS).sum()))
    assert of(records, "default", "float64", "paper")["successes"] == expected


def test_verdicts_and_failures_add_up(records):
    for r in records:
        if r["refusal"] is None:
            good, total = sum(r["successes"]), sum(r["images"])
            assert sum(r["reasons"].values()) == total - good
            assert sum(r["missed"]) <= good
            assert sum(r["false"]) <= sum(r["unique"])


def test_rgap_refuses_relu_and_says_so(records):
    own = of(records, "trained", "float64", "R-GAP")
    assert "ReLU" in own["refusal"] and own["images"] == [0] and own["unique"] is None


def test_only_trained_networks_have_an_accuracy(records):
    for r in records:
        if r["initialisation"] == "trained":
            assert len(r["accuracy"]) == 2 and 0 < min(r["accuracy"]) <= 1
        else:
            assert r["accuracy"] is None


def test_records_are_json(records, tmp_path):
    write_json(str(tmp_path / "records.json"), records)


def test_rgap_is_measured_where_it_has_an_inverse():
    model = success_rates.network("Digits", "lenet_main", "LeakyReLU", "uniform", 0)
    truth = datasets.load("Digits", [5, 6])
    seen = channels.observe(model, "lenet_main", truth)["float64"]
    (own,) = success_rates.judged("R-GAP", seen.first(1), truth)
    assert own["psnr"] > 100 and "unique" not in own


@pytest.fixture(scope="module")
def seen():
    """The five ways of sending, of two digits."""
    model = success_rates.network("Digits", "lenet_main", "Tanh", "default", 1)
    return channels.observe(model, "lenet_main", datasets.load("Digits", [0, 1]))


def test_each_way_shows_the_gradients_of_the_same_step(seen):
    assert tuple(seen) == channels.SENT
    exact = seen["float64"].gradients["conv1.weight"]
    errors = [
        float((way.gradients["conv1.weight"].double() - exact).norm() / exact.norm())
        for way in seen.values()
    ]
    assert errors[0] == 0 < errors[1] < 1e-5
    assert errors[1] < errors[2] < errors[3] < errors[4] < 0.1


def test_the_attacker_of_updates_knows_their_precision(seen):
    single = seen["float32"].model
    before = {name: p.detach() for name, p in single.named_parameters()}
    for rate, key in zip(channels.RATES, channels.SENT[2:], strict=True):
        after = sgd_step(single, seen["float32"].gradients, rate)
        gradients, noise = gradients_from_update(before, after, rate)
        for name, std in noise.std.items():
            assert torch.equal(seen[key].noise.std[name], std)
        assert torch.equal(seen[key].gradients["fc.weight"], gradients["fc.weight"])


@pytest.mark.arithmetic
def test_clients_are_attacked_one_by_one_where_their_precision_differs(seen):
    way = seen[channels.SENT[2]]
    both = way.attacked((1, 32, 32), "paper")
    alone = way.first(1).attacked((1, 32, 32), "paper")
    assert len(both.images) == 2
    # The expected error is of float32's rounding, 2^-24; between the two there is only float64's.
    limit = 100 * 2.0**-29 * alone.expected_error.item()
    assert relative_error(both.images[:1], alone.images) < limit


def image(mse, unique=True, false=False, layers=()):
    psnr = None if not mse else -10 * torch.tensor(mse).log10().item()
    quality = {"mse": mse, "psnr": psnr, "ssim": 0.5, "gain": psnr}
    return {**quality, "unique": unique, "false": false, "layers": layers}


SHORT = ({"name": "fc", "rank": 9, "unknowns": 9}, {"name": "conv4", "rank": 1, "unknowns": 2})


def test_a_cell_of_known_images():
    seeds = [
        [image(1e-9), image(1e-9, unique=False)],
        [image(0.1, unique=True, false=True), image(0.1, unique=False, layers=SHORT)],
    ]
    own = success_rates.cell({"method": "auto"}, seeds)
    counted = {key: own[key] for key in ("images", "successes", "unique", "false", "missed")}
    assert counted == {
        "images": [2, 2],
        "successes": [2, 0],
        "unique": [1, 1],
        "false": [0, 1],
        "missed": [1, 0],
    }
    assert own["reasons"] == {success_rates.NOISE: 1, "conv4": 1}
    assert (own["psnr_median"], own["psnr_worst"]) == pytest.approx((50, 10), abs=1e-4)
    share, low, high = success_rates.rate(own)
    assert low < share == 0.5 < high


def test_no_error_is_the_best_and_no_number_the_worst():
    own = success_rates.cell({}, [[image(0.0)], [image(None)]])
    assert (own["psnr_worst"], own["psnr_median"]) == (-400, 0)
    assert own["successes"] == [1, 0]


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        ({"DLG": [[1, 1]] * 5}, "unknown method 'DLG': use one of paper, R-GAP, equations, auto"),
        ({"paper": [[1, 1]]}, "1 counts for 5 ways of sending"),
        ({"paper": [[0, 0]] * 5}, "nothing would be measured"),
    ],
)
def test_samples_that_do_not_fit_are_refused(samples, why):
    with pytest.raises(ValueError, match=why):
        success_rates.success_rates(samples=samples)
