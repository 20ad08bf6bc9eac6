"""Sweeps over the filters: the networks that are tried, and what is said of them."""

import pytest

from rconv.lab import architectures, underdetermined
from rconv.lab.experiment import run
from rconv.lab.records import SUCCESS


@pytest.fixture(scope="module")
def records():
    """One digit through `lenet_o`, every layer varied, close to the filters that it needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(underdetermined, "SHARES", (1,))
        return underdetermined.sweep("Digits", [0], "lenet_o", "Tanh")


@pytest.mark.parametrize("needed", [1, 3, 16, 64])
def test_widths_lie_around_the_needed_one(needed):
    found = underdetermined.widths(needed, usual=12)
    assert found == sorted(set(found)) and min(found) >= 1
    assert {needed, max(1, needed - 1), 12} <= set(found)
    assert max(found) > needed or needed == 1


def test_one_layer_is_varied_at_a_time(records):
    usual = list(architectures.ARCHITECTURES["lenet_o"].filters)
    assert {r["layer"] for r in records} == {"conv1", "conv2", "conv3", "conv4"}
    for r in records:
        layer = int(r["layer"][-1]) - 1
        others = [f for k, f in enumerate(r["filters"]) if k != layer]
        assert others == [f for k, f in enumerate(usual) if k != layer]
        assert (r["filters"][layer], usual[layer]) == (r["width"], r["usual"])


def test_the_needed_filters_are_those_of_the_architecture(records):
    # One grey channel: 1,024 unknowns of the first layer, 256 outputs a filter.
    needed = {r["layer"]: r["needed"] for r in records}
    assert needed == {"conv1": 4, "conv2": 16, "conv3": 3, "conv4": 3}


def test_success_is_that_of_the_attack_on_this_network(records):
    for r in records[::7]:
        again = run(
            "Digits", [0], "lenet_o", "Tanh", filters=r["filters"], constraints=r["constraints"]
        )
        assert r["successes"] == sum(x["mse"] < SUCCESS for x in again.records)


def test_prediction_is_full_rank_everywhere_and_auto_needs_no_more_than_the_paper(records):
    for r in records:
        assert not r["predicted"] or r["rank"] == r["unknowns"]
        if r["constraints"] == "auto" and r["rank"] < r["unknowns"]:
            assert not r["predicted"]
    paper = {(r["layer"], r["width"]) for r in records if r["predicted"] and _is(r, "paper")}
    auto = {(r["layer"], r["width"]) for r in records if r["predicted"] and _is(r, "auto")}
    assert paper < auto
    assert ("conv2", 15) in auto - paper, "one filter fewer than the rank asks for"


def test_what_is_called_unique_is_right(records):
    assert all(r["unique"] <= r["successes"] for r in records)


def test_without_an_inverse_the_first_layer_takes_gradient_constraints():
    usual = architectures.ARCHITECTURES["lenet_all_relu"].filters
    found = underdetermined._settings(usual, architectures.build("lenet_all_relu", 1), (1, 32, 32))
    assert {needed for layer, needed, _ in found if layer == 0} == {64}


def _is(record, kind):
    return record["constraints"] == kind


def test_an_unknown_dataset_is_refused_with_a_reason():
    with pytest.raises(ValueError, match="unknown dataset 'Nowhere': use one of"):
        underdetermined.sweep("Nowhere", [0])
