"""Span constraints: a convolution's input from its own gradients, nothing above it known."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small import SEEDS, normal, relative_error

from rconv.attack.span_entry import _ConvGradients as Own
from rconv.attack.span_entry import enter
from rconv.equations.spans import Spans, fixed_space, row_space
from rconv.equations.windows import window_index
from rconv.model.geometry import Geometry

SQUARE = Geometry((4, 4, 4), (20, 4, 4), (3, 3), (1, 1), (1, 1), (1, 1))


def window_pixels(geometry):
    """(L, kh·kw): the pixel that window p has at offset t, or -1 in the padding."""
    window = window_index(geometry)
    pixels = torch.full((geometry.offsets, geometry.positions + 1), -1)
    pixels.scatter_(1, window, torch.arange(geometry.pixels).expand_as(window))
    return pixels[:, :-1].T


def unfolded(geometry, x):
    """(L, C·kh·kw), by the index of windows: another way than the equations go."""
    pixels = window_pixels(geometry)
    padded = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1)
    return padded[:, pixels].transpose(0, 1).flatten(1)


def orthonormal(rows, columns, seed):
    return torch.linalg.qr(normal(rows, columns, seed=seed))[0]


@st.composite
def overlapping(draw):
    """Convolutions with windows that mostly overlap, on maps of 3 to 5 pixels a side."""
    c, axes = draw(st.integers(2, 4)), []
    for _ in range(2):
        n, k, s = draw(st.integers(3, 5)), draw(st.integers(2, 3)), draw(st.integers(1, 2))
        p = draw(st.integers(0, k - 1))
        axes.append((n, (n + 2 * p - k) // s + 1, k, s, p, 1))
    sizes, out, *rest = zip(*axes, strict=True)
    return Geometry((c, *sizes), (1, *out), *rest)


@given(overlapping(), st.integers(0, 2), SEEDS)
@settings(max_examples=40, deadline=None)
def test_the_family_has_the_dimension_of_the_equations_null_space(geometry, tied, seed):
    g = geometry
    m = max(1, g.positions - tied)
    reach = orthonormal(g.positions, m, seed)
    patches = reach.mT @ unfolded(g, normal(*g.input, seed=seed + 1))
    space, rank = row_space(patches.reshape(m, g.input[0], -1), m)
    assume(rank == m)
    rows = space.flatten(1)
    assume(g.unknowns <= 64)
    images = torch.eye(g.unknowns, dtype=torch.float64).reshape(-1, *g.input)
    left = [reach.mT @ unfolded(g, x) for x in images]
    equations = torch.stack([(own - own @ rows.mT @ rows).flatten() for own in left], dim=1)
    sizes = torch.linalg.svdvals(equations)
    open_still = (sizes <= 1e-9 * g.positions).sum() + g.unknowns - len(sizes)
    spans = Spans(g, reach)
    found = spans.dimension(spans.within(space)[1])
    assert found == open_still >= 1 or 32 <= found < open_still  # no more are looked for


@given(st.integers(0, 3), st.booleans(), SEEDS)
@settings(max_examples=15, deadline=None)
def test_map_and_derivative_come_back_with_the_error_that_is_expected(tied, single, seed):
    m = 16 - tied
    spans, x = Spans(SQUARE, orthonormal(16, m, seed)), normal(4, 4, 4, seed=seed)
    o = normal(20, m, seed=seed + 1) @ spans.subspace.mT
    spread = 1e-7 if single else 1e-15
    g = o @ unfolded(SQUARE, x)
    g = g + spread * normal(*g.shape, seed=seed + 2)
    own = Own(g.reshape(20, 4, 9), g.new_tensor(spread), o.sum(dim=1), g.new_tensor(spread))
    found = enter(spans, own)
    assert found.scaled and found.open == 0 and found.rank == found.needed == m
    error, expected = relative_error(found.value, x), float(found.error.norm() / 2 / x.std())
    assert error < 10 * expected + 1e-12 and (expected < 10 * error or not single)
    error = relative_error(found.cotangent, o)
    assert error < 10 * float(found.cotangent_noise) + 1e-12


def test_the_rank_that_is_short_is_named():
    x, o = normal(4, 4, 4), normal(20, 12) @ normal(12, 16, seed=1)
    spans = Spans(SQUARE, torch.eye(16, dtype=torch.float64))
    noise = o.new_tensor(1e-12)
    found = enter(spans, Own((o @ unfolded(SQUARE, x)).reshape(20, 4, 9), noise, None, noise))
    assert (found.rank, found.needed, found.open) == (12, 16, 64) and not found.value.any()


def test_noise_that_was_not_told_is_seen_beside_the_span():
    x, o = normal(4, 4, 4), normal(20, 16)
    g = o @ unfolded(SQUARE, x)
    g = g + 1e-3 * normal(*g.shape, seed=1)
    spans = Spans(SQUARE, torch.eye(16, dtype=torch.float64))
    noise = o.new_tensor(1e-15)
    found = enter(spans, Own(g.reshape(20, 4, 9), noise, o.sum(dim=1), noise))
    assert relative_error(found.value, x) < 10 * float(found.error.norm() / 2 / x.std())


def test_sums_that_vanish_tell_no_factor():
    reach = torch.eye(16, dtype=torch.float64) - 1 / 16
    spans = Spans(SQUARE, torch.linalg.svd(reach)[0][:, :15])
    x, o = normal(4, 4, 4), normal(20, 15) @ spans.subspace.mT
    noise = o.new_tensor(1e-15)
    own = Own((o @ unfolded(SQUARE, x)).reshape(20, 4, 9), noise, o.sum(dim=1), noise)
    found = enter(spans, own)
    assert not found.scaled and found.open == 1
    factor = (found.value * x).sum() / found.value.square().sum()
    assert relative_error(factor * found.value, x) < 1e-12


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dimension"),
    [(3, 1, 1, 1), (5, 2, 2, 1), (2, 1, 1, 1), (3, 2, 1, 4), (2, 2, 0, 16), (1, 1, 0, None)],
    ids=["same", "overlap", "even", "stride", "apart", "points"],
)
def test_which_shapes_determine_their_input(kernel, stride, padding, dimension):
    out = (4 + 2 * padding - kernel) // stride + 1
    pairs = [(n, n) for n in (kernel, stride, padding, 1)]
    g = Geometry((8, 4, 4), (out * out, out, out), *pairs)
    assert Spans(g, torch.eye(out * out, dtype=torch.float64)).generic_dimension() == dimension


def test_what_is_preserved_by_two_constructions():
    q = orthonormal(50, 50, 3)
    values = torch.cat([q.new_ones(3), torch.linspace(0.999, 0, 47, dtype=torch.float64)])
    losses, vectors = fixed_space(q * values @ q.mT, most=6)
    assert (losses - (1 - values[:6]))[:4].abs().max() < 1e-9 and losses[4] > 1e-2
    assert (vectors[:, :3] - q[:, :3] @ (q[:, :3].mT @ vectors[:, :3])).norm() < 1e-12
