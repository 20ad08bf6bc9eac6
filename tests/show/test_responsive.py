"""Figures on a page: panels, colours of the page, text and pixels that stay sharp."""

import re

import matplotlib as mpl
import pytest
import torch
from matplotlib.figure import Figure

from rconv.show.figures import STYLE, comparison, show_image, show_map
from rconv.show.responsive import LOW, PHONE, SHRINK, page


@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context(STYLE):
        yield


def drawn(width, columns=1, rows=1):
    """A figure of lines, its axes, and a legend of all of them."""
    figure = Figure((width, 3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.plot([0, 1], [0, 1], color="black", label="a line")
        ax.set(title="a title", xlabel="$x_1$")
    return figure, axes


def panels(html, kind=""):
    """The SVGs of a figure's version."""
    return re.search(rf'rconv-panels{kind}">(.*?)</div>', html, re.S)[1].count("<svg")


def widths(html):
    """Points of each panel, as its viewBox has them."""
    return [float(w) for w in re.findall(r'viewBox="\S+ \S+ (\S+)', html)]


def test_a_narrow_figure_is_one_panel():
    html = page(drawn(3)[0])
    assert panels(html) == 1 and "rconv-narrow" not in html


def test_plots_and_legends_are_panels_of_their_own():
    figure, axes = drawn(7, columns=3, rows=2)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center")
    assert panels(page(figure)) == 7


def test_pictures_that_belong_together_stay_so():
    images = torch.rand(4, 3, 4, 4)
    assert panels(page(comparison(images, images))) == 4


def test_panels_of_one_row_are_equally_high():
    figure, axes = drawn(5, columns=2, rows=2)
    axes[1, 0].set_title("a title\nof two lines")
    heights = [float(h) for h in re.findall(r'viewBox="\S+ \S+ \S+ (\S+)"', page(figure))]
    assert heights[0] == heights[1] < heights[2] == heights[3]


def test_an_empty_place_is_no_panel():
    figure = Figure((5, 4), layout="constrained")
    axes = figure.subplots(2, 3)
    for ax in axes.flat[[0, 1, 3, 4, 5]]:
        show_image(ax, torch.rand(3, 4, 4))
    axes[0, 2].axis("off")
    assert panels(page(figure)) == 3


def test_panels_of_several_lines_are_as_many_in_each():
    images = torch.rand(8, 3, 4, 4)
    html = page(comparison(images, images + 1e-3))
    limit = float(re.search(r'style="max-width: (\d+)pt" class="rconv-panels"', html)[1])
    own = widths(html)
    assert panels(html) == 8 and sum(own) * SHRINK > 72 * 7 >= limit
    assert sum(sorted(own)[-4:]) <= limit < sum(sorted(own)[:5])
    assert "max-width" not in page(drawn(4)[0]).split("<svg")[0]


def test_what_is_too_wide_for_a_phone_is_drawn_again():
    html = page(drawn(7)[0])
    wide, narrow = widths(html)
    assert wide > 1.5 * narrow and narrow == pytest.approx(72 * PHONE, rel=0.05)


def test_pictures_limited_by_their_height_become_narrow_too():
    figure = Figure((6.5, 2.6), layout="constrained")
    for ax, columns in zip(figure.subplots(1, 2, width_ratios=(2, 6)), (2, 9), strict=True):
        show_map(ax, torch.rand(4, columns), "a map")
    assert max(widths(page(figure))[2:]) < 72 * PHONE * 1.05


def test_a_figure_is_left_as_it_was():
    figure, axes = drawn(7, columns=2)
    page(figure)
    assert tuple(figure.get_size_inches()) == (7, 3)
    assert all(ax.get_visible() for ax in axes.flat)


def test_black_is_the_pages_own_and_other_colours_stay():
    figure, axes = drawn(3)
    axes[0, 0].plot([0, 1], [1, 0], color="#0072B2")
    html = page(figure)
    assert "#000000" not in html and "#ffffff" not in html
    assert "currentColor" in html and "#0072b2" in html


def test_powers_of_ten_are_text_that_a_reader_can_copy():
    figure, axes = drawn(3)
    axes[0, 0].set(xscale="log", yscale="log", xlim=(1e-9, 1e3), ylim=(1e-9, 1))
    html = page(figure)
    powers = set(re.findall(">(10[⁻⁰¹²³⁴-⁹]*|1)<", html))  # which ticks, matplotlib chooses
    assert {"10⁻⁸", "10⁻⁴", "1"} <= powers and "mathdefault" not in html


def test_plots_are_low_on_a_phone_but_leave_room_for_the_names_of_rows():
    figures = [Figure((7, 6), layout="constrained") for _ in range(2)]
    for figure, rows in zip(figures, (3, 24), strict=True):
        ax = figure.subplots()
        ax.plot(range(rows), range(rows))
        ax.set_yticks(range(rows))
    low, high = (float(re.findall(r'viewBox="\S+ \S+ \S+ (\S+)"', page(f))[-1]) for f in figures)
    assert low <= 72 * (LOW + 0.2) < 24 * 9 < high


def test_names_differ_between_figures_and_what_is_named_is_there():
    pair = [page(drawn(width)[0]) for width in (3, 4)]
    names = [set(re.findall(r' id="([^"]+)"', html)) for html in pair]
    used = [set(re.findall(r'(?:href="#|url\(#)([\w-]+)', html)) for html in pair]
    assert names[0] and not names[0] & names[1]
    assert used[0] <= names[0] and used[1] <= names[1]


def test_a_figure_is_drawn_the_same_again():
    assert page(drawn(7)[0]) == page(drawn(7)[0])


def test_pixels_are_stored_as_they_are():
    figure = Figure((3, 3), layout="constrained")
    show_image(figure.subplots(), torch.rand(3, 5, 7))
    (image,) = re.findall(r"<image[^>]*>", page(figure))
    assert re.search(r'width="7"', image) and re.search(r'height="5"', image)


def test_text_stays_text_of_eleven_pixels_or_more():
    images = torch.rand(2, 3, 4, 4)
    for figure in (drawn(7)[0], comparison(images, images + 1e-3, titles=["one", "two"])):
        html = page(figure)
        alone = re.sub(r"<tspan.*?</tspan>", "", html, flags=re.S)  # exponents are smaller
        sizes = [float(s) for s in re.findall(r"font-size: ([\d.]+)px", alone)]
        assert "a title" in html or "one" in html
        assert sizes and min(sizes) * 96 / 72 * SHRINK >= 11


def test_many_marks_at_one_place_are_one():
    figure, axes = drawn(3)
    axes[0, 0].plot([0.5] * 1000 + [1.0], [0.5] * 1000 + [1.0], "o", color="#0072B2")
    html = page(figure)
    name, mark = re.search(r'<marker id="([\w-]+)"[^>]*>(.*?)</marker>', html).groups()
    assert "fill: #0072b2" in html and "<use" in mark
    (path,) = re.findall(rf'<path d="M([^"]*)" style="fill: none; marker: url\(#{name}\)"', html)
    assert len(path.split()) == 4  # two places


def test_what_panels_share_is_defined_in_one_of_them():
    html = page(drawn(7, columns=3)[0])
    for name in set(re.findall(r'<use href="#([^"]+)"', html)):
        (mark,) = re.findall(rf'<path id="{name}"[^>]*>', html)
        assert "class=" in mark or "style=" in mark
