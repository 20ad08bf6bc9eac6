"""Plots: what is drawn, what the titles say, and files that are whole or absent."""

import math
import os

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from rconv.show.charts import name_lines, show_dots, show_psnr, show_shares, show_sweep
from rconv.show.figures import (
    METHODS,
    comparison,
    save,
    show_error,
    show_image,
    show_map,
    show_numbers,
)
from rconv.show.numbers import RAISED

WHITE = (1, 1, 1, 1)


@pytest.fixture
def ax():
    return Figure().subplots()


def drawn(ax):
    """Return the one picture on the Axes."""
    (picture,) = ax.get_images()
    return picture


def batch(count, channels=3, side=8):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, side, side, generator=generator, dtype=torch.float64)


def test_show_image_clips_and_keeps_colours(ax):
    image = torch.tensor([[[-1.0, 0.25]], [[0.5, 2.0]], [[0.0, 1.0]]])
    assert show_image(ax, image, "cat") is ax
    assert drawn(ax).get_array().tolist() == [[[0, 0.5, 0], [0.25, 1, 1]]]
    assert ax.get_title() == "cat"


def test_show_image_draws_one_channel_in_grey_from_0_to_1(ax):
    show_image(ax, torch.tensor([[[0.25, 0.5]]]))
    picture = drawn(ax)
    shade = picture.to_rgba(picture.get_array())[0, 0, :3]
    assert np.allclose(shade, 0.25, atol=0.01)  # not stretched to black
    assert ax.get_title() == ""


@pytest.mark.parametrize("channels", [1, 3])
def test_show_image_draws_what_is_not_a_number_mid_grey(ax, channels):
    image = torch.zeros(channels, 2, 2)
    image[:, 0, 0] = math.nan
    show_image(ax, image)
    assert np.array_equal(np.ravel(drawn(ax).get_array()[0, 0]), [0.5] * channels)


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8), (1, 3, 8, 8)])
def test_show_image_refuses_what_is_no_image(ax, shape):
    with pytest.raises(ValueError, match="axes"):
        show_image(ax, torch.zeros(shape))


@pytest.mark.parametrize(
    ("error", "exponent"), [(3e-9, 8), (0.1, 1), (0.9, 0), (1.0, 0), (25.0, -2), (1e-310, 300)]
)
def test_show_error_magnifies_by_the_power_of_ten_in_the_title(ax, error, exponent):
    reference = torch.zeros(3, 4, 4, dtype=torch.float64)
    image = reference.clone()
    image[1, 2, 3] = -error
    assert show_error(ax, image, reference) is ax
    picture = drawn(ax)
    assert ax.get_title() == f"error × 10{str(exponent).translate(RAISED)}"
    assert picture.get_array()[2, 3] == pytest.approx(error * 10.0**exponent)
    assert picture.get_array().sum() == picture.get_array()[2, 3] <= 1 + 1e-9
    assert picture.get_clim() == (0, 1)
    assert picture.get_cmap().name == "magma"


def test_show_error_of_a_given_scale(ax):
    show_error(ax, torch.full((1, 2, 2), 0.1), torch.zeros(1, 2, 2), scale=5)
    assert ax.get_title() == "error × 5"
    assert np.allclose(drawn(ax).get_array(), 0.5)


def test_show_error_of_equal_images(ax):
    show_error(ax, torch.ones(1, 2, 2), torch.ones(1, 2, 2))
    assert ax.get_title() == "error 0"
    assert drawn(ax).get_array().max() == 0


def test_show_error_with_pixels_that_are_not_a_number(ax):
    image = torch.full((1, 2, 2), 0.02)
    image[0, 0, 0] = math.nan
    show_error(ax, image, torch.zeros(1, 2, 2))
    assert "10¹" in ax.get_title()
    grey = drawn(ax).to_rgba(drawn(ax).get_array())[0, 0]
    assert np.allclose(grey, (0.6, 0.6, 0.6, 1), atol=0.01)


def test_show_error_that_is_nowhere_a_number(ax):
    show_error(ax, torch.full((1, 2, 2), math.nan), torch.zeros(1, 2, 2))
    assert ax.get_title() == "error not a number"


@pytest.mark.parametrize("scale", [0, -1, math.inf, math.nan])
def test_show_error_refuses_a_scale_that_is_not_positive(ax, scale):
    with pytest.raises(ValueError, match="magnification"):
        show_error(ax, torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), scale=scale)


def test_show_error_refuses_other_shapes(ax):
    with pytest.raises(ValueError, match="different shapes"):
        show_error(ax, torch.zeros(3, 2, 2), torch.zeros(1, 2, 2))


@pytest.mark.parametrize(
    ("values", "limits", "colours"),
    [
        ([[0.0, 2.0]], (0, 2), "viridis"),
        ([[-3.0, 2.0]], (-3, 3), "RdBu_r"),
        ([[0.0, 0.0]], (0, 1), "viridis"),
        ([[math.nan, 2.0]], (0, 2), "viridis"),
    ],
    ids=["positive", "signed", "dead filter", "not a number"],
)
def test_show_map_puts_zero_at_a_fixed_colour(ax, values, limits, colours):
    assert show_map(ax, torch.tensor(values), "filter 1") is ax
    assert drawn(ax).get_clim() == limits
    assert drawn(ax).get_cmap().name == colours
    assert ax.get_title() == "filter 1"


def test_show_map_refuses_more_than_one_map(ax):
    with pytest.raises(ValueError, match="row, column"):
        show_map(ax, torch.zeros(3, 2, 2))


def test_show_numbers_writes_the_entries_into_the_cells(ax):
    assert show_numbers(ax, torch.tensor([[1.0, -2.5], [0.0, math.nan]]), "A") is ax
    written = {text.get_text(): text.get_position() for text in ax.texts}
    assert written == {"1": (0, 0), "−2.5": (1, 0), "0": (0, 1)}
    assert drawn(ax).get_clim() == (-5, 5)  # twice the largest: black figures stay readable
    assert ax.get_title() == "A"


def test_show_numbers_refuses_what_is_no_matrix(ax):
    with pytest.raises(ValueError, match="row, column"):
        show_numbers(ax, torch.zeros(2))


def test_show_shares_writes_percentages_and_leaves_out_what_is_not_known(ax):
    show_shares(ax, [[0.999, math.nan], [0.0, 1.0]], ["a", "b"], ["c", "d"], "t")
    assert [text.get_text() for text in ax.texts] == ["99", "–", "0", "100"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["c", "d"]
    assert drawn(ax).get_clim() == (0, 1)


def test_show_psnr_sorts_leaves_room_for_what_is_not_finite_and_draws_the_bar(ax):
    records = [{"psnr": 80.0}, {"psnr": None}, {"psnr": 40.0}, {"psnr": 60.0}]
    assert show_psnr(ax, records, "auto") is ax
    curve, bar = ax.lines
    assert curve.get_xdata().tolist() == [12.5, 37.5, 62.5, 87.5]
    assert curve.get_ydata().tolist() == [-math.inf, 40, 60, 80]
    assert bar.get_ydata() == pytest.approx([60, 60])  # an MSE of 1e-6, the bar for success
    show_psnr(ax, records[:1], "paper")
    assert len(ax.lines) == 3  # one bar only


def test_show_sweep_draws_success_as_points_and_rank_as_a_line_for_each_kind(ax):
    def record(kind, width, successes, rank):
        own = {"constraints": kind, "width": width, "successes": successes, "rank": rank}
        return {**own, "images": 4, "unknowns": 10, "usual": 3}

    kinds = [record("paper", 2, 0, 5), record("paper", 3, 4, 10), record("auto", 2, 1, 8)]
    assert show_sweep(ax, kinds, "conv2") is ax
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines["paper: rank"] == [[2, 0.5], [3, 1.0]]
    assert lines["paper: success"] == [[2, 0.0], [3, 1.0]]
    assert lines["auto: success"] == [[2, 0.25]]
    assert ax.get_title() == "conv2"


def test_names_at_the_ends_of_lines_do_not_overlap(ax):
    for name in ("a", "b"):
        ax.plot([0, 1], [0, 1], label=name)
    ax.plot([0, 1], [0.5, 0.5])
    name_lines(ax)
    assert [text.get_text() for text in ax.texts] == ["a", "b"]
    below, above = (text.xyann[1] for text in ax.texts)
    assert above - below == pytest.approx(11)


def test_a_line_is_named_where_it_leaves_the_plot(ax):
    ax.plot([0, 1, 2, 3], [0, 1, 2, 99], label="a")
    ax.set_ylim(0, 2.5)
    name_lines(ax)
    assert [*ax.texts[0].xy] == [2, 2]


def test_dots_have_the_colour_of_their_method_and_stay_below_the_limit(ax):
    show_dots(ax, {"x": {"paper": (1.0,), "auto": (20.0, 5.0, math.inf)}}, limit=10)
    dots = {line.get_label(): line for line in ax.lines if line.get_label() in METHODS}
    assert {name: line.get_color() for name, line in dots.items()} == {
        name: METHODS[name] for name in ("paper", "auto")
    }
    assert [*dots["auto"].get_xdata()] == [10]
    assert ax.collections[0].get_segments()[0].tolist() == [[1, -0.08], [1, -0.08]]


def test_comparison_has_a_column_per_image():
    originals = batch(4)
    reconstructions = originals + 1e-6
    figure = comparison(originals, reconstructions, titles=list("abcd"))
    grid = np.array(figure.axes).reshape(3, 4)
    assert [ax.get_title() for ax in grid[0]] == list("abcd")
    assert [ax.get_ylabel() for ax in grid[:, 0]] == ["original", "reconstruction", "error"]
    assert all("× 10" in ax.get_title() for ax in grid[2])
    assert np.allclose(drawn(grid[0, 2]).get_array(), originals[2].permute(1, 2, 0))
    assert np.allclose(
        drawn(grid[1, 3]).get_array(), reconstructions[3].clamp(0, 1).permute(1, 2, 0)
    )
    assert figure.get_facecolor() == WHITE


def test_comparison_begins_new_rows_where_it_is_wide():
    figure = comparison(batch(5, channels=1), batch(5, channels=1), columns=3)
    visible = np.array([ax.get_visible() for ax in figure.axes]).reshape(6, 3)
    assert visible.tolist() == [[True] * 3] * 3 + [[True, True, False]] * 3


@pytest.mark.parametrize(
    ("originals", "reconstructions", "titles"),
    [(2, 3, None), (0, 0, None), (2, 2, ["one"])],
    ids=["numbers", "none", "titles"],
)
def test_comparison_refuses_what_does_not_fit(originals, reconstructions, titles):
    with pytest.raises(ValueError, match=r"titles|comparison"):
        comparison(batch(originals), batch(reconstructions), titles)


def test_save_writes_an_opaque_white_page(tmp_path):
    path = save(comparison(batch(2), batch(2)), tmp_path / "picture.png")
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]
    pixels = np.asarray(Image.open(path).convert("RGBA"))
    assert pixels[0, 0].tolist() == [255, 255, 255, 255]
    assert pixels[..., 3].min() == 255
    assert pixels[..., :3].std() > 10


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "PNG"])
def test_save_gives_the_same_bytes_twice(suffix, tmp_path):
    first, second = (
        save(comparison(batch(1), batch(1)), tmp_path / f"{n}.{suffix}").read_bytes()
        for n in (1, 2)
    )
    assert first == second


@pytest.mark.parametrize("name", ["picture", "picture.xyz", ".png", "picture.pgf"])
def test_save_refuses_an_unknown_suffix(name, tmp_path):
    with pytest.raises(ValueError, match=r"suffix is one of .*png") as caught:
        save(Figure(), tmp_path / name)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_save_refuses_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="cannot be written: the folder does not") as caught:
        save(Figure(), tmp_path / "no" / "picture.png")
    assert "\n" not in str(caught.value)


def test_save_that_fails_keeps_the_old_picture(tmp_path, monkeypatch):
    path = save(Figure(), tmp_path / "picture.png")
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ValueError, match="No space left"):
        save(Figure(), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]
