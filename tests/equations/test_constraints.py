"""Constraints: both matrices against PyTorch's convolution and autograd, for any geometry."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from small import SEEDS, convolve, geometries, normal

from rconv.equations.conv_gradient import ConvGradient, gradient_matrix, gradient_rhs
from rconv.equations.conv_output import add_weight_gram, weight_matrix
from rconv.equations.windows import residue_classes, window_index
from rconv.model.geometry import Geometry


def square(filters, side, kernel, stride, padding, channels=1):
    out = (side + 2 * padding - kernel) // stride + 1
    pairs = ((n, n) for n in (kernel, stride, padding, 1))
    return Geometry((channels, side, side), (filters, out, out), *pairs)


@given(geometries())
@settings(max_examples=60, deadline=None)
def test_window_index_is_the_loop_over_windows(g):
    expected = torch.full((g.offsets, g.pixels), g.positions)
    for r in range(g.output[1]):
        for c in range(g.output[2]):
            for i in range(g.kernel[0]):
                for j in range(g.kernel[1]):
                    y = r * g.stride[0] + i * g.dilation[0] - g.padding[0]
                    x = c * g.stride[1] + j * g.dilation[1] - g.padding[1]
                    if 0 <= y < g.input[1] and 0 <= x < g.input[2]:
                        t, q = i * g.kernel[1] + j, y * g.input[2] + x
                        expected[t, q] = r * g.output[2] + c
    assert torch.equal(window_index(g), expected)


@given(geometries(), SEEDS)
@settings(max_examples=60, deadline=None)
def test_gradient_rows_are_autograds_weight_gradient(g, seed):
    x = normal(2, *g.input, seed=seed)
    weight = normal(g.output[0], g.input[0], *g.kernel, seed=seed + 1)
    back = normal(2, *g.output, seed=seed + 2)
    matrix = gradient_matrix(back, g)
    assert matrix.shape == (2, g.output[0] * g.offsets, g.pixels)
    for n in range(2):
        w = weight.clone().requires_grad_()
        (own,) = torch.autograd.grad((convolve(g, x[n : n + 1], w) * back[n]).sum(), w)
        rhs = gradient_rhs(own[None])[0]
        torch.testing.assert_close(matrix[n] @ x[n].flatten(1).T, rhs, rtol=1e-11, atol=1e-11)


@given(geometries(), SEEDS)
@settings(max_examples=60, deadline=None)
def test_weight_rows_are_pytorchs_convolution(g, seed):
    x = normal(1, *g.input, seed=seed)
    weight = normal(g.output[0], g.input[0], *g.kernel, seed=seed + 1)
    matrix = weight_matrix(weight, g)
    assert matrix.shape == (g.weight_rows, g.unknowns)
    found = matrix @ x.flatten().numpy()
    expected = convolve(g, x, weight).flatten().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


@given(geometries(largest=5), SEEDS)
@settings(max_examples=40, deadline=None)
def test_weight_gram_is_the_normal_matrix_of_the_weighted_rows(g, seed):
    weight = normal(g.output[0], g.input[0], *g.kernel, seed=seed)
    row_weight = normal(g.output[0], g.positions, seed=seed + 1).clamp(min=0)
    rows = torch.from_numpy(weight_matrix(weight, g).toarray()) * row_weight.reshape(-1, 1)
    gram = torch.zeros(g.unknowns, g.unknowns).double()
    add_weight_gram(gram, weight, row_weight, g)
    torch.testing.assert_close(gram, rows.T @ rows, rtol=1e-11, atol=1e-11)


def test_right_hand_sides_keep_filter_offset_and_channel_apart():
    gradient = torch.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    rhs = gradient_rhs(gradient)
    assert rhs.shape == (2, 3 * 5 * 6, 4)
    assert rhs[1, 2 * 30 + 4 * 6 + 3, 1] == gradient[1, 2, 1, 4, 3]


def test_images_of_a_batch_have_matrices_of_their_own():
    g = square(2, 4, 3, 1, 1)
    back = normal(3, *g.output)
    alone = torch.cat([gradient_matrix(back[n : n + 1], g) for n in range(3)])
    assert torch.equal(gradient_matrix(back, g), alone)


RANKS = [
    # filters, side, kernel, stride, padding → rank with a random cotangent: why
    pytest.param(12, 16, 5, 2, 2, 240, id="300 rows for 256 pixels, yet a stride parity is short"),
    pytest.param(16, 16, 5, 2, 2, 256, id="lenet_main's second layer: 16 filters suffice"),
    pytest.param(3, 8, 5, 1, 2, 64, id="lenet_main's last layer: 3 filters suffice"),
    pytest.param(2, 8, 5, 1, 2, 50, id="one of its three filters is dead"),
    pytest.param(12, 6, 1, 2, 0, 9, id="a kernel of 1 with stride 2 sees a quarter of the pixels"),
    pytest.param(9, 6, 3, 3, 0, 36, id="kernel and stride 3: every window is alone"),
    pytest.param(8, 6, 3, 3, 0, 36, id="4 positions need no more than 4 filters"),
    pytest.param(3, 6, 3, 3, 0, 27, id="3 filters tell 3 of the 4 positions' worth"),
]


@pytest.mark.parametrize(("filters", "side", "kernel", "stride", "padding", "rank"), RANKS)
def test_generic_rank(filters, side, kernel, stride, padding, rank):
    g = square(filters, side, kernel, stride, padding)
    matrix = gradient_matrix(normal(1, *g.output), g)[0]
    assert int(torch.linalg.matrix_rank(matrix)) == rank


def test_a_pixel_that_no_window_covers_has_zero_columns():
    g = square(3, 6, 2, 3, 0)  # windows at 0–1 and 3–4 of 6: rows and columns 2 and 5 are unseen
    column = gradient_matrix(normal(1, *g.output), g)[0].abs().sum(0).reshape(6, 6)
    seen = torch.tensor([1, 1, 0, 1, 1, 0], dtype=torch.bool)
    assert torch.equal(column > 0, seen[:, None] & seen[None, :])
    rows = weight_matrix(normal(3, 1, 2, 2), g).toarray()
    assert np.array_equal(np.abs(rows).sum(0).reshape(6, 6) > 0, column.numpy() > 0)


@given(geometries(), SEEDS)
@settings(max_examples=60, deadline=None)
def test_residue_classes_are_the_independent_blocks_of_the_gradient_rows(g, seed):
    back = normal(2, *g.output, seed=seed)
    matrix = gradient_matrix(back, g)
    shape = (2, g.output[0], g.offsets, g.pixels)
    left = matrix.reshape(shape).clone()
    weight_gradient = normal(2, g.output[0], g.input[0], *g.kernel, seed=seed + 1)
    seen = []
    for offsets, pixels in residue_classes(g):
        block = gradient_matrix(back, g, (offsets, pixels))
        inside = (slice(None), slice(None), offsets[:, None], pixels)
        assert torch.equal(block, matrix.reshape(shape)[inside].flatten(1, 2))
        rows = gradient_rhs(weight_gradient).reshape(*shape[:3], -1)[:, :, offsets]
        part = ConvGradient(g, back[:, None]).part(offsets, pixels)
        assert torch.equal(part.take(gradient_rhs(weight_gradient)), rows.flatten(1, 2))
        assert torch.equal(part.make(), block)
        left[inside] = 0
        seen += pixels.tolist()
    assert not left.any(), "an entry lies outside all blocks"
    assert len(seen) == len(set(seen))
    assert set(matrix.abs().sum(dim=(0, 1)).nonzero()[:, 0].tolist()) <= set(seen)


def test_stride_one_has_one_class_and_stride_two_has_four():
    assert len(residue_classes(square(3, 8, 5, 1, 2))) == 1
    offsets, pixels = zip(*residue_classes(square(16, 16, 5, 2, 2)), strict=True)
    assert sorted(len(own) for own in offsets) == [4, 6, 6, 9]
    assert [len(own) for own in pixels] == [64] * 4


@pytest.mark.parametrize("samples", [1, 2])
def test_many_inputs_go_through_the_rows_of_one_cotangent(samples):
    """A batch of two through a wide layer ended in an error of zip, taken for a refusal."""
    g = square(4, 6, 3, 1, 1)
    operator = ConvGradient(g, normal(1, samples, *g.output, seed=1))
    x = normal(5, samples * g.unknowns, 1, seed=2)
    whole = operator.apply(x)
    for n in range(5):
        torch.testing.assert_close(whole[n : n + 1], operator.apply(x[n : n + 1]))
    back = operator.adjoint(whole)
    for n in range(5):
        torch.testing.assert_close(back[n : n + 1], operator.adjoint(whole[n : n + 1]))
