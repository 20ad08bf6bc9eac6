"""Comparison over seeds: who gets which images, the choice of the prior, and the tables."""

import pytest
import torch
from matplotlib.figure import Figure

from rconv.lab import comparison
from rconv.lab.methods import AUTO, DLG, IDLG, INVERTING, METHODS, OPTIMISED, PAPER, RGAP
from rconv.show import charts
from rconv.show.comparison_tables import ATTACKS, by_attack, decibels, interval, shared

FEW = {DLG: {"iterations": 2}, IDLG: {"iterations": 2}, INVERTING: {"iterations": 2}}


def test_the_seeds_share_the_images_out():
    images = list(range(20, 30))
    own = comparison.spread(images, [7, 8, 9, 3, 4], 2, 2)
    assert own == {7: [20, 21], 8: [22, 23], 9: [24, 25], 3: [26, 27], 4: [28, 29]}
    assert [image for few in own.values() for image in few] == images


@pytest.mark.parametrize(("each", "count"), [(1, 1), (2, 4), (2, 10), (3, 7)])
def test_the_few_are_among_the_many_and_none_comes_twice(each, count):
    images, seeds = list(range(10)), range(6)
    few, many = (comparison.spread(images, seeds, each, number) for number in (each, count))
    for seed in seeds:
        assert set(few[seed]) <= set(many[seed])
        assert len(set(many[seed])) == count


@pytest.mark.parametrize(("each", "count"), [(0, 2), (3, 2), (2, 11)])
def test_impossible_shares_are_refused(each, count):
    with pytest.raises(ValueError, match="10 images cannot give"):
        comparison.spread(range(10), [0], each, count)


@pytest.fixture(scope="module")
def records():
    """Two models, one image each for all, one more for two closed forms."""
    found = comparison.study(
        "Digits", [0, 1], "dlg_lenet", seeds=[0, 1], each=1, count=2, settings=FEW
    )
    return [r for result in found for r in result.records]


def test_every_attack_meets_every_other_on_the_same_pairs(records):
    together = shared(records)
    for method in METHODS:
        own = {(r["seed"], r["index"]) for r in together if r["method"] == method}
        assert own == {(0, 0), (1, 1)}


def test_the_closed_forms_get_more_images_and_both_dtypes(records):
    counts = {key: len(own) for key, own in by_attack(records).items()}
    assert {key[0]: n for key, n in counts.items() if key[1] == "float64"} == {
        PAPER: 2, AUTO: 4, RGAP: 4
    }  # fmt: skip
    assert all(counts[method, "float32"] == 2 for method in OPTIMISED)
    assert not any((method, "float64") in counts for method in OPTIMISED)


def test_a_row_for_every_attack_and_dtype(records):
    rows = ATTACKS.rows(records)
    assert [row[0] for row in rows] == [PAPER] * 2 + [AUTO] * 2 + [RGAP] * 2 + list(OPTIMISED)
    assert all(len(row) == len(ATTACKS.header) for row in rows)
    named = [dict(zip(ATTACKS.header, row, strict=True)) for row in rows]
    (ours,) = (row for row in named if row["attack"] == AUTO and row["dtype"] == "float64")
    assert ours["n"] == "4 in 2" and ours["MSE < 10⁻⁶"] == "4 of 4"
    assert ours["explains the gradients"] == "4 of 4"
    assert " + " in ours["CPU s"]


def record(seed, psnr, **changes):
    own = {"method": DLG, "dtype": "float32", "seed": seed, "index": 0, "psnr": psnr}
    return {**own, "gain": psnr, "ssim": 0.5, "mse": 1.0, "gradient_residual": 0.5,
            "seconds": 2.0, "preparation": 0.0, **changes}  # fmt: skip


def test_what_is_no_number_is_the_worst():
    records = [record(0, None, gradient_residual=None), record(1, 10.0), record(2, 20.0)]
    (row,) = ATTACKS.rows(records)
    assert row[2:] == (
        "3 in 3", "0 of 3", "0 of 3", "10.0 [–, 20.0]", "–", "10.0", "0.500", "2"
    )  # fmt: skip


def test_progress_has_a_line_per_image_and_one_name_per_attack():
    ax = Figure().subplots()
    curves = [[[0.1, 5.0], [0.2, 9.0]], [], [[0.1, 3.0], [0.4, 4.0]], [[1.0, 80.0]]]
    methods = [DLG, DLG, DLG, AUTO]
    records = [
        record(0, 1.0, method=method, curve=curve)
        for method, curve in zip(methods, curves, strict=True)
    ]
    charts.show_progress(ax, records, "title")
    ends = [line for line in ax.lines if line.get_marker() not in ("None", None)]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in ends] == [
        (0.2, 9.0), (0.4, 4.0), (1.0, 80.0)
    ]  # fmt: skip
    assert ax.get_legend_handles_labels()[1] == [DLG, AUTO]
    assert ax.get_xscale() == "log" and ax.get_title() == "title"


def test_one_model_has_no_interval():
    assert interval(decibels([record(0, 10.0), record(0, 20.0)])) == "15.0"


def test_pairs_that_one_attack_lacks_are_left_out():
    records = [record(0, 1.0), record(1, 1.0), record(1, 2.0, method=AUTO)]
    assert {r["seed"] for r in shared(records)} == {1}


def test_the_prior_is_tried_on_the_images_it_is_given():
    options = {"seed": 0, "iterations": 3}
    records = comparison.try_variations("Digits", [5], "lenet_main", "Sigmoid", **options)
    weights = [r["settings"]["total_variation"] for r in records]
    assert weights == list(comparison.VARIATIONS)
    assert {r["index"] for r in records} == {5}
    assert {r["settings"]["iterations"] for r in records} == {3}
    medians = comparison.variation_medians(records)
    assert list(medians.values()) == [r["psnr"] for r in records]


def test_a_trace_keeps_the_best_image_so_far(monkeypatch):
    now = iter([0.0, *[2.0**n for n in range(40)]])
    monkeypatch.setattr(comparison.time, "process_time", lambda: next(now))
    truth = torch.zeros(1, 1, 2, 2)
    kept = comparison.Trace(truth)
    for error, objective in ((0.1, 2.0), (1.0, 3.0), (0.01, 1.0), (torch.nan, torch.nan)):
        kept(truth + error, objective)
    assert [round(decibels) for _, decibels in kept.points] == [20, 20, 40, 40]
    seconds = [s for s, _ in kept.points]
    assert seconds == sorted(seconds) and len(set(seconds)) == 4


def test_a_trace_thins_out(monkeypatch):
    clock = iter(n / 100 for n in range(100_000))
    monkeypatch.setattr(comparison.time, "process_time", lambda: next(clock))
    kept = comparison.Trace(torch.zeros(1, 1, 2, 2))
    for _ in range(10_000):
        kept(torch.ones(1, 1, 2, 2), 1.0)
    assert 10 < len(kept.points) < 30
