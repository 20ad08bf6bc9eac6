r"""The averaged gradient of a batch, taken apart at the head.

The gradient of the last Linear, weight and bias side by side and summed over the samples, is

.. math:: G = Z^\top \tilde V, \quad Z = \mathrm{softmax}(\tilde V\,[V\ c]^\top) - Y,

with one row for each sample in Z (B, K) and in Ṽ (B, n + 1), its features and a 1 for the bias; Y
has a 1 at each label.
G = C R of rank B, with orthonormal rows R (B, n + 1), leaves one B × B matrix open, Ṽ = Q R. It
must satisfy Qᵀ Z = Cᵀ and put a 1 at the end of every row: B (K - 1) + B equations for B²
unknowns. A head without a bias, and one sample, is the equation of `rconv.attack.scale`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rconv.attack.counts import label_counts
from rconv.linalg.levenberg import levenberg_marquardt
from rconv.linalg.solution import relative

ROUNDS = 30
"""Starts for each set of labels. Distinct labels mostly need the first one; B = 8 samples of 10
classes, some of one label, five in the median, and what 30 do not find 100 seldom do."""

TRIES = 120
"""Starts in all."""

SPREADS = (0.1, 0.3, 1.0, 3.0)
"""How unlike the probabilities of the samples are at a start: deviations of their logarithms."""

FLAT = 1e-6
"""Least mean probability of a start."""


@dataclass(frozen=True)
class HeadEquations:
    """What Q must satisfy; see the module.

    Parameters
    ----------
    basis : Tensor
        R, (B, n + 1).
    sides : Tensor
        Cᵀ, (B, K).
    logits : Tensor
        R [V c]ᵀ, (B, K): logits of a sample are its row of Q times this.
    gradient : Tensor
        G, (K, n + 1).
    """

    basis: Tensor
    sides: Tensor
    logits: Tensor
    gradient: Tensor

    @staticmethod
    def of(matrix: Tensor, gradient: Tensor, batch: int) -> "HeadEquations":
        """From [V c] and the gradient summed over the samples, both (K, n + 1)."""
        u, s, basis = torch.linalg.svd(gradient, full_matrices=False)
        basis = basis[:batch]
        sides = (u[:, :batch] * s[:batch]).mT
        return HeadEquations(basis, sides, basis @ matrix.mT, gradient)

    def start(self, cotangent: Tensor) -> Tensor:
        """Q of these logit gradients Z (B, K), as well as they fit; (B·B,)."""
        q = torch.linalg.pinv(cotangent.mT) @ self.sides.mT
        ends = q @ self.basis[:, -1]
        return (q / torch.where(ends.abs() > FLAT, ends, 1.0)[:, None]).flatten()

    def cotangent(self, q: Tensor, labels: Tensor) -> Tensor:
        """Z of Q (B, B), the label's entry as what the others add up to."""
        z = torch.softmax(q @ self.logits, dim=1).scatter(1, labels[:, None], 0.0)
        return z.scatter(1, labels[:, None], -z.sum(dim=1, keepdim=True))

    def residual(self, q: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What Q, (B·B,), leaves of the equations, rows of Cᵀ by their size; its derivative."""
        batch, classes = self.sides.shape
        q = q.reshape(batch, batch)
        z = self.cotangent(q, labels)
        p = torch.softmax(q @ self.logits, dim=1)
        # ∂p_b[k] / ∂Q[b, i], and ∂(Qᵀ Z)[j, k] / ∂Q[b, i].
        slope = p[:, None, :] * (self.logits - (p @ self.logits.mT)[:, :, None])
        derivative = torch.einsum("bj,bik->jkbi", q, slope)
        derivative.diagonal(dim1=0, dim2=3).add_(z.mT[:, :, None])
        size = self.sides.norm(dim=1)
        ends = torch.einsum("bc,i->bci", torch.eye(batch).to(q), self.basis[:, -1])
        derivative = derivative / size[:, None, None, None]
        rows = ((q.mT @ z - self.sides) / size[:, None]).flatten()
        return (
            torch.cat([rows, q @ self.basis[:, -1] - 1]),
            torch.cat([derivative.reshape(batch * classes, -1), ends.reshape(batch, -1)]),
        )

    def solve(self, start: Tensor, labels: Tensor, good: float) -> tuple[Tensor, Tensor]:
        """Ṽ, (B, n + 1), and Z, (B, K), from a start (B·B,).

        Q R carries the rounding of all features into each, where a feature that is zero must not
        pass for one that is not. So Ṽ is what Z makes of the gradient, each feature by itself.
        """
        q, _ = levenberg_marquardt(lambda x: self.residual(x, labels), start, good)
        z = self.cotangent(q.reshape(len(labels), -1), labels)
        return torch.linalg.lstsq(z.mT, self.gradient).solution, z


@dataclass(frozen=True)
class Samples:
    """The samples of a batch at its head, in any order.

    Parameters
    ----------
    features : Tensor
        Ṽ, (B, n + 1), the 1 included.
    cotangent : Tensor
        Z, (B, K), logit gradients of the samples' own losses.
    labels : Tensor
        (B,), int64.
    residual : float
        ‖Zᵀ Ṽ - G‖ / ‖G‖.
    """

    features: Tensor
    cotangent: Tensor
    labels: Tensor
    residual: float


def disaggregate(matrix: Tensor, gradient: Tensor, batch: int, noise: float) -> Samples | None:
    """The samples behind the summed gradient of a head.

    Parameters
    ----------
    matrix : Tensor
        [V c], (K, n + 1).
    gradient : Tensor
        G, (K, n + 1), of rank B, summed over the samples.
    batch : int
        B, less than K.
    noise : float
        Relative residual up to which the samples explain it.

    Returns
    -------
    Samples or None
        Those of the smallest residual, which may be large; None where no labels fit.
    """
    equations, best = HeadEquations.of(matrix, gradient, batch), None
    spread = noise * float(gradient.norm()) / gradient.numel() ** 0.5
    for labels, start in _starts(equations, gradient[:, -1], spread):
        features, z = equations.solve(start, labels, noise)
        miss = float(relative((z.mT @ features - gradient)[None], gradient[None])[0])
        if best is None or miss < best.residual:
            best = Samples(features, z, labels, miss)
        if miss <= noise:
            break
    return best


def _starts(
    equations: HeadEquations, bias_gradient: Tensor, noise: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Labels (B,) and starts for them, the likeliest first.

    The mean of the samples' probabilities is told by labels and bias gradient. All are first
    taken for alike, then, and at once where two have one label, for more and more unlike.
    """
    batch, classes = equations.sides.shape
    generator, left = torch.Generator().manual_seed(0), TRIES
    counts = label_counts(bias_gradient, batch, noise)
    for i in range(ROUNDS):
        for own in counts[: max(1, left)]:
            labels = torch.repeat_interleave(torch.arange(classes), own.cpu()).to(own.device)
            mean = ((bias_gradient + own) / batch).clamp(min=FLAT)
            alike = i == 0 and int(own.max()) == 1
            unlike = torch.randn(batch, classes, generator=generator, dtype=mean.dtype).to(mean)
            p = mean * (unlike * (0.0 if alike else SPREADS[i % len(SPREADS)])).exp()
            p = p / p.sum(dim=1, keepdim=True)
            p = p + mean - p.mean(dim=0)
            left -= 1
            if left < 0:
                return
            yield labels, equations.start(p.scatter_add(1, labels[:, None], -torch.ones_like(p)))
