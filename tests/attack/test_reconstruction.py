"""Reconstruction: gap, uniqueness, selection and joining, and the error that says what is short."""

import math
from dataclasses import replace

import pytest
import torch

from rconv.attack.attempt import choose
from rconv.attack.report import LayerReport, Reconstruction, ShortRankError


def report(name, unknowns, ranks, constraints="gradient"):
    ranks = torch.tensor(ranks)
    ones = torch.ones(len(ranks)).double()
    kinds = (constraints,) * len(ranks)
    rows, guess = (ranks * 2, ranks * 0), torch.zeros(len(ranks), unknowns)
    ends = guess, guess
    return LayerReport(
        name, unknowns, *rows, ranks, ones, ones * 1e-16, kinds, ranks * 0, guess, *ends
    )


def result(*layers, twins=None, **known):
    n = len(layers[0].rank)
    twins = torch.zeros(n).long() if twins is None else torch.tensor(twins)
    images = torch.arange(n).double().reshape(n, 1, 1, 1)
    zeros = torch.zeros(n).double()
    told = {
        "gradient_residual": zeros,
        "expected_error": zeros,
        "revealed_noise": zeros,
        "systematic_error": zeros,
        "excess": zeros[:, None],
        "growth": zeros,
        "assumed": twins < 0,
        "diagnostics": ("", "a", "b")[:n],
        **known,
    }
    return Reconstruction(images, layers, torch.arange(n), twins=twins, **told)


HEAD = report("fc", 12, [12, 12, 12], "head")


def test_the_gap_is_summed_over_the_layers():
    found = result(HEAD, report("conv2", 10, [10, 8, 7]), report("conv1", 5, [5, 5, 4]))
    assert found.gap.tolist() == [0, 2, 4]
    assert found.full_rank.tolist() == found.unique.tolist() == [True, False, False]


WITNESSES = [
    ({"expected_error": torch.tensor([0.0, 1e-2, 2e-2])}, [True, True, False]),
    ({"expected_error": torch.tensor([math.nan, 1.0, 0.0])}, [False, False, True]),
    ({"gradient_residual": torch.tensor([0.0, math.inf, math.nan])}, [True, False, False]),
    ({"assumed": torch.tensor([False, True, False])}, [True, False, True]),
    ({"twins": [0, 0, 3]}, [True, True, False]),
]


@pytest.mark.parametrize(("known", "unique"), WITNESSES, ids=[next(iter(w)) for w, _ in WITNESSES])
def test_each_witness_can_refuse_the_verdict(known, unique):
    found = result(HEAD, report("conv", 10, [10, 10, 10]), **known)
    assert found.full_rank.all()
    assert found.unique.tolist() == unique


def test_a_twin_is_not_unique_although_no_rank_is_short():
    found = result(HEAD, twins=[0, 1, 0])
    assert found.gap.tolist() == [0, 0, 0]
    assert found.unique.tolist() == [True, False, True]


CANDIDATES = [
    # pixels of the candidates, residuals of their gradients: which is kept, how many twins it has
    ([0.5, -0.5], [1e-15, 1e-15], 0, 0, "the mirror image has no pixels"),
    ([-0.5, 0.5], [1e-15, 1e-15], 1, 0, "whichever comes first"),
    ([0.5, 0.7], [1e-15, 1e-15], 0, 1, "two images"),
    ([0.5, 1.5], [1e-15, 1e-15], 0, 0, "half the range beyond it is no image"),
    ([0.5, 1.0003], [1e-15, 1e-15], 0, 1, "a rounding beyond it is one"),
    ([0.5, 0.7], [1e-16, 1e-10], 0, 1, "both are rounding"),
    ([0.5, 0.7], [1e-4, 1e-15], 1, 0, "one explains nothing"),
    ([0.5, 1.5], [4e-6, 1e-6], 0, 0, "in noise the worse fit may be the truth"),
    ([0.5, 1.5], [1e-4, 1e-6], 1, 0, "not if it is a hundred times worse"),
]


@pytest.mark.parametrize(
    ("pixels", "residuals", "kept", "twins", "why"), CANDIDATES, ids=[c[-1] for c in CANDIDATES]
)
def test_of_several_candidates_one_that_explains_and_is_an_image_is_kept(
    pixels, residuals, kept, twins, why
):
    """Beside the candidates of another image, which change nothing."""
    images = torch.tensor([0.2, *pixels]).double().reshape(3, 1, 1, 1)
    told = torch.tensor([1e-9, *residuals]).double()
    candidates = replace(result(HEAD, gradient_residual=told), images=images)
    found = choose(candidates, torch.tensor([0, 1, 1]), (0.0, 1.0))
    assert torch.equal(found.images, images[[0, 1 + kept]])
    assert found.twins.tolist() == [0, twins]


def test_selection_and_joining_are_inverse():
    found = result(HEAD, report("conv", 10, [10, 8, 7]), twins=[0, 1, 2])
    parts = [found.select(torch.tensor([i])) for i in range(3)]
    joined = Reconstruction.concatenate(parts)
    assert joined.diagnostics == found.diagnostics == ("", "a", "b")
    for name in ("images", "labels", "gradient_residual", "expected_error", "twins"):
        assert torch.equal(getattr(joined, name), getattr(found, name))
    for own, layer in zip(joined.layers, found.layers, strict=True):
        assert (own.name, own.unknowns) == (layer.name, layer.unknowns)
        assert own.constraints == layer.constraints
        assert torch.equal(own.rank, layer.rank)
    backwards = found.select(torch.tensor([2, 0]))
    assert backwards.gap.tolist() == [3, 0]
    assert backwards.images.flatten().tolist() == [2, 0]


SHORT = [
    ([HEAD, report("conv1", 10, [10, 8, 7])], "^conv1: gradient .* 8 of 10 .*image 1", "hybrid"),
    ([HEAD, report("conv1", 10, [7, 8, 7], "hybrid")], "^conv1: hybrid .* rank 7 of 10", "filters"),
    ([HEAD, report("conv1", 10, [9] * 3, "weight")], "^conv1: weight .* rank 9 of 10", "filters"),
    ([report("fc", 12, [12, 0, 12], "head")], r"^fc: head .* rank 0 of 12 .*\(image 1\)", "zero"),
    ([HEAD, report("conv2", 9, [9, 9, 8]), report("conv1", 9, [1, 1, 1])], "^conv2: .*image 2", ""),
]  # fmt: skip


@pytest.mark.parametrize(("layers", "message", "remedy"), SHORT, ids=[row[1] for row in SHORT])
def test_the_error_names_layer_rank_unknowns_and_remedy(layers, message, remedy):
    with pytest.raises(ShortRankError, match=message) as caught:
        result(*layers).raise_if_short()
    assert remedy in str(caught.value)


def test_full_rank_raises_nothing():
    result(HEAD, report("conv1", 10, [10, 10, 10])).raise_if_short()
