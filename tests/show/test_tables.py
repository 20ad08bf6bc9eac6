"""Tables of records: what they say of success, rank and the worst images; numbers in them."""

import pytest

from rconv.show import tables
from rconv.show.numbers import scientific


def record(mse, rank=64, **changes):
    layer = {
        "name": "conv1",
        "unknowns": 64,
        "gradient_rows": 75,
        "weight_rows": 0,
        "rank": rank,
        "condition": 10.0,
        "residual": 0.0,
        "constraints": "gradient",
    }
    return {
        "index": 0,
        "activation": "ReLU",
        "constraints": "paper",
        "dtype": "float64",
        "mse": mse,
        "psnr": 60.0,
        "ssim": 1.0,
        "gain": 40.0,
        "unique": rank == 64,
        "diagnostic": "" if rank == 64 else f"conv1 has rank {rank} of 64",
        "seconds": 0.005,
        "layers": [layer],
        **changes,
    }


def test_quality_counts_success_and_takes_what_is_not_finite_for_the_worst():
    records = [record(1e-20), record(1e-3, 50, index=1), record(None, 0, index=2)]
    rows = tables.QUALITY.rows(records)
    assert len(rows) == 1 and len(rows[0]) == len(tables.QUALITY.header)
    success = "1 of 3<br>0 to 96 %"  # Clopper and Pearson's, a little wider: of three clusters
    assert rows[0][:7] == ("ReLU", "paper", "float64", success, 1, "1e-03", "inf")


def test_an_image_attacked_through_several_networks_is_one_draw():
    one, two = ([record(1e-9, index=k % n) for k in range(8)] for n in (2, 8))
    assert tables.success(one) == "8 of 8<br>16 to 100 %"
    assert tables.success(two) == "8 of 8<br>63 to 100 %"


def test_failures_are_counted_by_setting_and_reason():
    noise = "the noise may have grown to 3e-02 of the image"
    records = [record(1e-20), record(1e-3, 50), record(None, 40), record(1e-2, diagnostic=noise)]
    assert tables.FAILURES.rows(records) == [
        ("ReLU", "paper", "float64", 2, "conv1 is rank-deficient"),
        ("ReLU", "paper", "float64", 1, "the noise may have grown to … of the image"),
    ]


def test_quality_has_a_row_for_each_setting_in_their_order():
    settings = [("Tanh", "paper"), ("Tanh", "auto"), ("ReLU", "auto")]
    records = [record(1e-9, activation=a, constraints=c) for a, c in settings for _ in range(2)]
    assert [row[:2] for row in tables.QUALITY.rows(records)] == settings


def test_ranks_are_spanned_over_the_images():
    (row,) = tables.RANKS.rows([record(1e-20), record(1.0, rank=50)])
    assert row == ("conv1", 64, "75", "0", "50 to 64", "10", "gradient")


@pytest.mark.parametrize(
    "rank, words",
    [(64, "full rank"), (50, "conv1 has rank 50 of 64 (gradient"), (0, "gradients are zero")],
)
def test_explanations_name_the_layer(rank, words):
    assert words in tables.explain(record(1.0, rank))


def test_a_record_without_layers_is_explained_by_its_diagnostic():
    assert tables.explain(record(1.0, 50, layers=None)) == "conv1 has rank 50 of 64"
    assert tables.explain(record(1e-9, layers=None)) == "full rank in every layer"


def test_worst_first():
    found = tables.worst([record(1e-9), record(None), record(1e-3)], 2)
    assert [r["mse"] for r in found] == [None, 1e-3]


def test_markdown():
    assert tables.markdown(["a", "b"], [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |"


def sweep_record(width, successes, kind="paper", predicted=False):
    own = {"layer": "conv2", "constraints": kind, "usual": 16, "width": width}
    return {**own, "images": 4, "successes": successes, "predicted": predicted}


def test_a_sweep_says_where_success_begins():
    records = [
        sweep_record(8, 0),
        sweep_record(15, 1),
        sweep_record(16, 4, predicted=True),
        sweep_record(8, 0, "auto"),
        sweep_record(16, 3, "auto", predicted=True),
    ]
    (row,) = tables.SWEEP.rows(records)
    assert row == ("conv2", 16, 16, 16, 16, "–")
    assert len(row) == len(tables.SWEEP.header)


@pytest.mark.parametrize(
    "psnr, text", [(61.26, "61.3"), (None, "–"), (float("nan"), "–"), (float("-inf"), "–")]
)
def test_decibels(psnr, text):
    assert tables.decibel(psnr) == text


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("7e-07", "7·10⁻⁷"),
        ("1e-06", "10⁻⁶"),
        ("1.0e-06", "1.0·10⁻⁶"),
        ("-3.2e+12", "-3.2·10¹²"),
        ("3e-01", "0.3"),
        ("2.50e+01", "25.0"),
        ("1e+00", "1"),
        ("noise of 1e-9, then 2e5", "noise of 10⁻⁹, then 2·10⁵"),
    ],
)
def test_powers_of_ten(written, shown):
    assert scientific(written) == shown


@pytest.mark.parametrize("text", ["0.001", "conv3e4", "a1e-06", "1e-06b", "0x3e5", "inf", "e-06"])
def test_what_is_no_such_number_stays(text):
    assert scientific(text) == text


def test_tables_write_numbers_so():
    assert tables.markdown(["error"], [[f"{7e-7:.0e}"]]).endswith("| 7·10⁻⁷ |")
