"""What is open, closed and seen: counts on layers whose openness is known, tables and figures."""

import matplotlib.pyplot as plt
import pytest

from rconv.lab.underdetermined import underdetermined
from rconv.show import charts, tables


@pytest.fixture(scope="module")
def records():
    """The last layer of the main script's network, with seed 1 and PyTorch's initialisation."""
    return underdetermined(
        "Photos", range(2), "lenet_main", "ReLU", layer=3, widths=(4, 3, 1), seeds=(1,),
        initialisation="default",
    )  # fmt: skip


def test_signs_close_what_a_dead_filter_leaves_open(records):
    assert len(records) == 6
    three = [r for r in records if r["width"] == 3]
    assert all(r["filters"] == [12, 16, 12, 3] and not r["by_rank"] for r in three)
    assert all(r["full_rank"] and r["unique"] and r["psnr"] > 100 for r in three)


def test_one_filter_of_25_equations_needs_the_layer_below(records):
    one = [r for r in records if r["width"] == 1]
    assert not any(r["false"] for r in one)
    # Signs close hundreds of the 12 · (64 - 25) directions where many pixels are zero, never all;
    # the layer below closes all or none.
    left = [r for r in one if not r["full_rank"]]
    assert all(100 < r["gap"] <= 12 * (64 - 25) and not r["unique"] for r in left)
    assert all(5 < r["psnr"] < 40 for r in left)
    assert all(r["psnr"] > 100 for r in one if r["full_rank"])


def test_every_record_has_the_flat_image_and_the_answer_without_the_prior(records):
    for record in records:
        assert 5 < record["flat"] < 40 and record["seconds"] > 0
        assert not record["full_rank"] or abs(record["least"] - record["psnr"]) < 3


def test_unknown_layers_are_refused():
    with pytest.raises(ValueError, match="layer 4 of 4"):
        underdetermined("Photos", [0], "lenet_main", layer=4, widths=(3,))


def test_tables_and_figures_show_every_width(records):
    rows = tables.WIDTHS.rows(records)
    assert [row[0] for row in rows] == [4, 3, 1] and all(len(r) == 9 for r in rows)
    assert all(row[1] == 2 and row[2] <= row[3] for row in rows)
    fig, ax = plt.subplots()
    charts.show_widths(ax, records)
    drawn = sum(len(line.get_xdata()) for line in ax.lines)
    open_ones = sum(not r["full_rank"] for r in records)
    assert drawn == 2 * open_ones + len(records) - open_ones
    plt.close(fig)


def test_calibration_counts_what_is_within_a_factor():
    cases = [{"error": e, "expected_error": 1.0} for e in (0.01, 0.2, 5.0, 50.0)]
    assert tables.CALIBRATION.rows({"some": cases}) == [("some", 4, 2, 1)]
    fig, ax = plt.subplots()
    charts.show_calibration(ax, [*cases, {"error": 0.0, "expected_error": 1.0}], "some")
    assert len(ax.lines[0].get_xdata()) == 4
    plt.close(fig)
