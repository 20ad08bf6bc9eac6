r"""The averaged gradient of a batch, disaggregated at a hidden fully connected layer.

The gradient of a Linear with ReLU behind it, weight and bias side by side, is

.. math:: G = \omega \bar Z^\top \tilde X, \quad \bar Z = D \odot (\bar Z_2 V),

with one row per sample: X̃ (B, n + 1) its input and a 1, Z̄₂ the derivative of its loss by the
output of the second Linear V, and D (B, m) the activation's derivative; ω = 1/B for a mean. With
G = U S R of rank B, a sample is a vector q of B numbers, X̃ = q R, and its pre-activations are
q R [W b]ᵀ: the forward pass then gives D and Z̄.

A unit that fires for ONE sample has that sample's q for its row of U S. So has, with C = Σ ω z̄₂ q,
a unit that is silent for one sample in the row of Vᵀ C - U S; and C follows from units that fire
for all. A sample is certified where its z̄ lies in the column space of G and z̄ᵀ G⁺ x̃ = 1/ω; it is
subtracted, and more units are left with one sample (peeling).
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rconv.attack.hidden_state import (
    ACCUMULATED,
    ARITHMETIC,
    HiddenEquations,
    Peeled,
    Remainder,
)

SCREEN = 0.1
"""Relative mismatch up to which the second Linear's gradient lets a candidate pass to its
certificate, which alone decides."""

ALIKE = 1e-3
"""Candidates of one round that are closer than this, relatively, are taken for one sample; the
other one, where there are two, is found after the first is subtracted."""

BLIND = 1e-2
"""A certificate whose own noise is larger than this could not reject a wrong sample."""

SUBSETS = 3_000
"""Sets of K₂ units that are tried for C: where half of the first 2 K₂ units fire for all, one set
in 200 of K₂ = 10 does. Beyond `MANY` rows of V sets are hopeless, and a few are tried."""

MANY = 20


def disaggregate_hidden(
    equations: HiddenEquations,
    batch: int | None,
    *,
    on_found: Callable[[int, int], None] | None = None,
) -> Peeled:
    """The samples of a batch at the input of a hidden layer.

    `batch` is B, if known. `on_found` receives the number of samples found so far and the rank of
    the gradient. Returns the certified samples; `complete` says whether they explain the gradient.
    """
    found = Peeled.nothing(equations)
    while True:
        left = equations.remainder(found)
        if left.rank == 0 or len(found.labels) == equations.factors.rank:
            break
        new = certified(equations, left, *row_candidates(equations, left, found), found, batch)
        if not len(new.labels):
            new = certified(equations, left, *restarted(equations, left, found), found, batch)
        if not len(new.labels):
            break
        found = polished(equations, found.joined(new))
        if len(found.labels) == equations.factors.rank and equations.remainder(found).rank:
            found = polished(equations, from_patterns(equations, found))
        if on_found is not None:
            on_found(len(found.labels), equations.factors.rank)
    return judged(equations, found, batch)


def row_candidates(
    equations: HiddenEquations, left: Remainder, found: Peeled
) -> tuple[Tensor, Tensor]:
    """Candidates q (M, r) and their labels (M,): every unit taken for one of a single sample."""
    slope, inputs = equations.hidden.slope, equations.inputs
    common = common_part(equations, left, found)
    sides = []
    if slope == 0:
        sides.append((left.rows, left.second, 1.0))
    if common is not None:
        rows, second = equations.hidden.weight.mT @ common, common @ inputs
        if slope != 0:
            sides.append((left.rows - slope * rows, left.second - slope * second, 1.0))
        sides.append((rows - left.rows, second - left.second, -1.0))
    candidates, labels = [], []
    for rows, second, sign in sides:
        ends = rows @ equations.factors.ones
        size = rows.norm(dim=1)
        units = ((size > left.row_noise) & (ends.abs() > ARITHMETIC * size)).nonzero()[:, 0]
        q = rows[units] / ends[units, None]
        pre = (q * inputs[:, units].mT).sum(dim=1)
        active = pre * sign > 0
        q, units, pre = q[active], units[active], pre[active]
        observed = second[:, units].mT / ((1 - slope) * pre[:, None])
        own, fits = equations.likely_labels(q, observed, SCREEN)
        candidates.append(q[fits])
        labels.append(own[fits])
    if not candidates:
        return left.rows[:0], torch.zeros(0, dtype=torch.int64, device=left.rows.device)
    return torch.cat(candidates), torch.cat(labels)


def common_part(equations: HiddenEquations, left: Remainder, found: Peeled) -> Tensor | None:
    """C (K₂, r) of the samples that are left, from units that fire for all of them.

    Their rows are Vᵀ C. Units whose mean pre-activation is large beside its spread are likely to;
    C is that of the set of K₂ units which two others, at least, agree with.
    """
    weight = equations.hidden.weight
    count, generator = len(weight), torch.Generator().manual_seed(0)
    mean = found.q.mean(dim=0) if len(found.labels) > 4 else equations.factors.mean
    spread = (equations.inputs - torch.outer(equations.factors.ones, mean @ equations.inputs)).norm(
        dim=0
    )
    order = (mean @ equations.inputs / spread).argsort(descending=True)
    directions = torch.randn(left.rows.shape[1], 3, generator=generator, dtype=weight.dtype)
    some = left.rows @ directions.to(left.rows)
    limit = left.row_noise + ARITHMETIC * some.norm(dim=1)
    for width in (count + 2, 3 * count // 2, 2 * count, 3 * count, 4 * count):
        top = order[:width]
        if len(top) < max(width, count + 2):
            break
        sets = SUBSETS if count <= MANY else 30
        chosen = torch.rand(sets, width, generator=generator).argsort(dim=1)[:, :count]
        units = top[chosen.to(top.device)]
        trial, _ = torch.linalg.solve_ex(weight.mT[units], some[units])
        misses = (some[top] - weight.mT[top] @ trial).norm(dim=2)
        # Rounding of an ill-conditioned set grows with the size of its solution.
        slack = limit[top] + ARITHMETIC * trial.norm(dim=(1, 2))[:, None] * weight[:, top].norm(
            dim=0
        )
        agree = misses <= 3 * slack
        best = int(agree.sum(dim=1).argmax())
        if int(agree[best].sum()) >= count + 2:
            return _fitted(weight, left, top[agree[best]])
    return None


def _fitted(weight: Tensor, left: Remainder, units: Tensor) -> Tensor:
    """C by least squares over all units that agree with it."""
    for _ in range(3):
        common = torch.linalg.lstsq(weight[:, units].mT, left.rows[units]).solution
        misses = (left.rows - weight.mT @ common).norm(dim=1)
        limit = left.row_noise + ARITHMETIC * left.rows.norm(dim=1)
        units = (misses <= 3 * limit).nonzero()[:, 0]
        if len(units) < len(weight):
            break
    return common


def certified(
    equations: HiddenEquations,
    left: Remainder,
    q: Tensor,
    labels: Tensor,
    found: Peeled,
    batch: int | None,
) -> Peeled:
    """Those candidates whose subtraction lowers the rank of what is left by one, each once.

    z̄ must lie in the column space of the remainder, up to what its noise makes of a vector that
    is this long in its coordinates; and ω = 1 / z̄ᵀ G⁺ x̃ must be a multiple of the common one: a
    row with a trace of another sample moves it as much as the input.
    """
    z = equations.cotangents(q, labels)[0]
    size = z.norm(dim=1).clamp(min=1e-300)
    inside = z @ left.left
    outside = (z - inside @ left.left.mT).norm(dim=1) / size
    d, f = inside / left.values, q @ left.right.mT / left.values
    missed = (q - (q @ left.right.mT) @ left.right).norm(dim=1) / q.norm(dim=1)
    value = (d * f * left.values).sum(dim=1)
    noise = left.floor * d.norm(dim=1) / size
    spread = left.floor * d.norm(dim=1) * f.norm(dim=1) / value.abs().clamp(min=1e-300)
    limit = ACCUMULATED * noise + ARITHMETIC
    good = (outside <= limit) & (limit < BLIND) & (value > 0) & (missed < BLIND)
    good &= ACCUMULATED * spread < BLIND
    weight = snapped(torch.cat([found.weight, 1 / value[good]]), batch)[0]
    weight = torch.ones_like(value).masked_scatter(good, weight[len(found.weight) :])
    good &= (1 / (value * weight) - 1).abs() <= ACCUMULATED * spread + ARITHMETIC
    order = good.nonzero()[:, 0]
    order = order[outside[order].argsort()]
    kept: list[int] = []
    for i in order.tolist():
        others = q[kept]
        if not kept or float((others - q[i]).norm(dim=1).min()) > ALIKE * float(q[i].norm()):
            kept.append(i)
    kept = kept[: left.rank]
    # The row that a candidate is made of carries the noise of one row over its share in it.
    return Peeled(q[kept], labels[kept], weight[kept], left.floor / (weight * size)[kept])


def polished(equations: HiddenEquations, found: Peeled) -> Peeled:
    """The samples refitted, together, to the rows in which they are alone."""
    factors, whole = equations.factors, len(found.labels) == equations.factors.rank
    limit = factors.row_noise + ARITHMETIC * factors.rows.norm(dim=1)
    before = found.std
    for i in range(3):
        z = found.weight[:, None] * equations.cotangents(found.q, found.labels)[0]
        left = factors.rows - z.mT @ found.q
        quiet = (left.norm(dim=1) <= limit) | whole
        inverse = _inverse(z[:, quiet])
        if inverse is None:
            return found
        # A row that passes for quiet may carry as much of a sample that is missing.
        missed = left[quiet].norm(dim=1) * (i > 1) if whole else limit[quiet]
        missed = missed / factors.right.shape[1] ** 0.5
        std = (inverse.square() @ factors.row_std[quiet].hypot(missed).square()).sqrt()
        q = found.q + inverse @ left[quiet]
        q = q / (q @ factors.ones)[:, None]
        # Rows in which a sample is weak determine it less well than the one that it was found in.
        better = ((std < before) | whole) & q.isfinite().all(dim=1)
        q = torch.where(better[:, None], q, found.q)
        found = replace(found, q=q, std=torch.where(better, std, found.std))
    return found


def from_patterns(equations: HiddenEquations, found: Peeled) -> Peeled:
    """All samples, determined by which units fire for each, and by nothing else of them.

    The pattern D of a sample leaves z̄ = D ∘ (Vᵀ w) with the one w that puts it into the column
    space. A softmax that multiplies errors of q a hundred times does not enter.
    """
    factors, weight = equations.factors, equations.hidden.weight
    if len(weight) + factors.rank >= len(factors.left):
        return found
    directions = []
    for slopes in equations.hidden.derivative(found.q @ equations.inputs):
        shaped = (slopes * weight).mT
        outside = shaped - factors.left @ (factors.left.mT @ shaped)
        w = torch.linalg.svd(outside, full_matrices=False)[2][-1]
        directions.append(factors.left.mT @ (shaped @ w))
    q, info = torch.linalg.solve_ex(torch.stack(directions, dim=1), torch.diag(factors.values))
    q = q / (q @ factors.ones)[:, None]
    return found if int(info) or not bool(q.isfinite().all()) else replace(found, q=q)


def _inverse(z: Tensor) -> Tensor | None:
    """Pseudo-inverse of Z̄ᵀ (rows, samples), or None where it has not full rank."""
    if z.shape[1] < z.shape[0]:
        return None
    size = z.norm(dim=1, keepdim=True).clamp(min=1e-300)
    u, s, v = torch.linalg.svd(z / size, full_matrices=False)
    if float(s[-1]) < 1e-6 * float(s[0]):
        return None
    return (u / s) @ v / size


def snapped(weight: Tensor, batch: int | None) -> tuple[Tensor, Tensor]:
    """ω of each sample as a multiple of the common one, and how often each is there, (F,).

    The common one is 1/B of a mean, whose weights add up to 1 at most, and 1 of a sum. Where B is
    not known, or the gradient is scaled, most samples are taken to be there once.
    """
    if not len(weight):
        return weight, weight.long()
    common = float(weight.median())
    if batch is not None:
        stated = 1 / batch if float(weight.sum()) <= 1 + BLIND else 1.0
        times = common / stated
    else:
        stated, times = 1 / max(1, round(1 / common)), 1.0
    if abs(common / (max(1, round(times)) * stated) - 1) < BLIND:
        common = stated
    count = (weight / common).round().clamp(min=1)
    return count * common, count.long()


def judged(equations: HiddenEquations, found: Peeled, batch: int | None) -> Peeled:
    """The samples with the verdict on each.

    What weighs as two samples may be one image twice, but as well the mean of two with one pattern
    of units, which the gradient does not separate. What is too small to be seen in the gradient may
    still move every sample.
    """
    factors = equations.factors
    count = snapped(found.weight, batch)[1]
    every = len(found.labels) == factors.rank
    complete = every and equations.remainder(found).rank == 0
    z = found.weight[:, None] * equations.cotangents(found.q, found.labels)[0]
    hidden = factors.threshold / (z.norm(dim=1) * factors.right.shape[1] ** 0.5)
    std = found.std.hypot(hidden)
    return replace(found, std=std, count=count, certain=count == 1, complete=complete)


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
