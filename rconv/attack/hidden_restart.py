"""A restart of the peeling at a hidden layer, where no unit is left with one sample.

Every z̄ of label y is, entry by entry, nearly s_y where the unit fires and nearly 0 where it does
not, s_y being the derivative for a mean sample; and it lies in the known column space. Random
patterns of units, projected on either set in turn, converge to samples.
"""

import torch
from torch import Tensor

from rconv.attack.hidden_state import HiddenEquations, Peeled, Remainder

STARTS, STEPS, ROUNDS, IDLE = 320, 40, 30, 4
"""Patterns of one round, projections of each, rounds, and rounds without a new sample that end it.
MNIST, 1,000 units, 64 images: 8 patterns of 10 end at a sample; 512 units: one in four."""

NEAR, SEEN = 0.5, 0.02
"""Relative distance from its pattern up to which a projection is looked at; and share of the units
by which a pattern differs at most from one that has been."""


SAME = 1 - 1e-6
"""Cosine from which two directions are one."""


def restarted(equations: HiddenEquations, left: Remainder, found: Peeled) -> tuple[Tensor, Tensor]:
    """Candidates q (M, r) and labels (M,): none unless directions of all samples are found."""
    none = left.rows[:0], torch.zeros(0, dtype=torch.int64, device=left.rows.device)
    count = len(equations.hidden.weight)
    if left.rank + count >= len(left.left):
        return none
    templates = label_templates(equations, found)
    generator = torch.Generator().manual_seed(0)
    directions, labels, idle = left.values[:0].reshape(0, left.rank), none[1], 0
    seen = templates[:0].bool()
    for _ in range(ROUNDS):
        counted = torch.cat([found.labels, labels])
        own = _drawn_labels(equations, counted, len(templates), generator).to(labels.device)
        on = _converged(left.left, templates[own], equations.hidden.slope, generator)
        on, own = _unseen(on, own, seen)
        d, patterns, which = _exact(equations, left, on, own)
        before = len(directions)
        for row, pattern, label in zip(d, patterns, which, strict=True):
            if not len(directions) or float((directions @ row).abs().max()) < SAME:
                directions = torch.cat([directions, row[None]])
                labels, seen = torch.cat([labels, label[None]]), torch.cat([seen, pattern[None]])
        idle = idle + 1 if len(directions) == before else 0
        if len(directions) >= left.rank or idle == IDLE:
            break
    if len(directions) != left.rank:
        return none
    rows = torch.linalg.lstsq(directions.mT, left.values[:, None] * left.right).solution
    ends = rows @ equations.factors.ones
    return rows / ends[:, None], labels


def label_templates(equations: HiddenEquations, found: Peeled) -> Tensor:
    """(K, m): the derivative by the layer's output, as if all units fired, of a mean sample."""
    mean = found.q.mean(dim=0) if len(found.labels) > 4 else equations.factors.mean
    hidden = equations.hidden
    second = hidden.activation(mean @ equations.inputs) @ hidden.weight.mT + hidden.bias
    classes = hidden.logits(second[None]).shape[1]
    labels = torch.arange(classes, device=second.device)
    return equations.above(second.expand(classes, -1), labels)[0] @ hidden.weight


def _drawn_labels(
    equations: HiddenEquations, found: Tensor, classes: int, generator: torch.Generator
) -> Tensor:
    """Labels of the patterns, as often as they are estimated to be, less those found."""
    shares = torch.full((classes,), 1.0 / classes)
    if equations.shares is not None:
        rank = equations.factors.rank
        counted = torch.bincount(found.cpu(), minlength=classes)
        shares = (equations.shares.cpu().float() * rank - counted).clamp(min=0.2)
    return torch.multinomial(shares, STARTS, replacement=True, generator=generator)


def _converged(
    basis: Tensor, templates: Tensor, slope: float, generator: torch.Generator
) -> Tensor:
    """Patterns (N, m), bool, that random ones converge to; all off where not near the space."""
    on = (torch.rand(templates.shape, generator=generator) < 0.5).to(templates.device)
    for _ in range(STEPS):
        shaped = torch.where(on, templates, slope * templates)
        z = (shaped @ basis) @ basis.mT
        on = z * templates > (1 + slope) / 2 * templates.square()
    shaped = torch.where(on, templates, slope * templates)
    near = (shaped - (shaped @ basis) @ basis.mT).norm(dim=1) < NEAR * shaped.norm(dim=1)
    return on & near[:, None]


def _unseen(on: Tensor, labels: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The patterns that differ from each other and from those seen, and their labels."""
    on, inverse = torch.unique(on, dim=0, return_inverse=True)
    first = torch.empty(len(on), dtype=torch.int64, device=on.device)
    first[inverse] = labels  # any of those that share the pattern
    new = on.any(dim=1)
    if len(seen):
        a, b = on.double(), seen.double()
        differing = a.sum(dim=1)[:, None] + b.sum(dim=1) - 2 * a @ b.mT
        new &= differing.amin(dim=1) > SEEN * on.shape[1]
    return on[new], first[new]


def _exact(
    equations: HiddenEquations, left: Remainder, on: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Directions d (M, ρ) with U d = D ∘ (Vᵀ w) for patterns D that allow one, these, and labels.

    So d and w are the null vector of [U, -D Vᵀ], and the signs of U d correct the pattern.
    """
    slope, weight = equations.hidden.slope, equations.hidden.weight
    found, patterns, kept = [], [], []
    for pattern, label in zip(on, labels, strict=True):
        for _ in range(4):
            scale = slope + (1 - slope) * pattern.to(weight)
            matrix = torch.cat([left.left, -(weight * scale).mT], dim=1)
            values, vectors = torch.linalg.eigh(matrix.mT @ matrix)
            d, w = vectors[: left.rank, 0], vectors[left.rank :, 0]
            z, whole = left.left @ d, w @ weight
            before, pattern = pattern, z * whole > (1 + slope) / 2 * whole.square()
            if torch.equal(before, pattern):
                break
        if float(values[0]) < 1e-6 * float(values[1]):
            d = torch.linalg.svd(matrix, full_matrices=False)[2][-1][: left.rank]
            found.append(d / d.norm())
            patterns.append(pattern)
            kept.append(label)
    if not found:
        return left.values[:0].reshape(0, left.rank), on[:0], labels[:0]
    return torch.stack(found), torch.stack(patterns), torch.stack(kept)
