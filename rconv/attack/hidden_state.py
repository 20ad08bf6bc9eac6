"""The gradient of a batch at a hidden layer in its singular vectors, and what is left of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rconv.linalg.solution import largest_of_noise
from rconv.model.heads import Hidden

ACCUMULATED = 10.0
"""How far sums of a thousand rounded terms lie above the noise of one."""

ARITHMETIC = 1e-10
"""What float64 leaves of relations that hold exactly, after a hundred samples are subtracted."""

ROUNDING = 1e-14
"""What it leaves of singular values, relative to the largest."""


@dataclass(frozen=True)
class Factors:
    """G = U S R, with the singular values above the noise.

    Parameters
    ----------
    left, values, right : Tensor
        U (m, r), S (r,), R (r, n + 1).
    floor : float
        Largest singular value that the noise has.
    row_std : Tensor
        (m,), standard deviation of the errors of each row's entries.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    floor: float
    row_std: Tensor

    @staticmethod
    def of(gradient: Tensor, errors: Tensor) -> "Factors":
        """Of G and the standard deviations of its errors, (m, n + 1) each."""
        floor = float(largest_of_noise(errors, *gradient.shape))
        u, s, r = low_rank(gradient, floor)
        rank = int((s > _threshold(floor, s)).sum())
        # Terms that cancel leave their own rounding.
        rounding = torch.finfo(s.dtype).eps * (u * s).norm(dim=1)
        row_std = errors.square().mean(dim=1).sqrt().hypot(rounding)
        return Factors(u[:, :rank], s[:rank], r[:rank], floor, row_std)

    @property
    def rank(self) -> int:
        """Samples whose gradients are independent."""
        return len(self.values)

    @property
    def threshold(self) -> float:
        """Above which singular values are no noise."""
        return _threshold(self.floor, self.values) if self.rank else ACCUMULATED * self.floor

    @property
    def rows(self) -> Tensor:
        """U S, (m, r)."""
        return self.left * self.values

    @property
    def ones(self) -> Tensor:
        """(r,): q of every sample has the product 1 with it."""
        return self.right[:, -1]

    @property
    def mean(self) -> Tensor:
        """(r,), a mean of the samples: the first singular vector, scaled as a sample is."""
        first = torch.zeros_like(self.values)
        first[0] = 1 / self.ones[0]
        return first

    @property
    def row_noise(self) -> Tensor:
        """(m,): what noise leaves of a row whose terms cancel."""
        return ACCUMULATED * self.row_std * self.rank**0.5


def _threshold(floor: float, values: Tensor) -> float:
    """Above which singular values are no noise."""
    return ACCUMULATED * floor + ROUNDING * float(values[0])


def low_rank(matrix: Tensor, floor: float, first: int = 96) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors U, values S and vectors R of a matrix whose rank is far below its size.

    Its range is that of its products with random vectors, twice as many until the last singular
    values are noise, of which the largest is `floor`.
    """
    generator, count = torch.Generator().manual_seed(0), first
    while count < min(matrix.shape) // 2:
        random = torch.randn(matrix.shape[1], count, generator=generator, dtype=matrix.dtype)
        basis = torch.linalg.qr(matrix @ random.to(matrix)).Q
        basis = torch.linalg.qr(matrix @ (matrix.mT @ basis)).Q
        right, triangle = torch.linalg.qr(matrix.mT @ basis)
        u, s, v = torch.linalg.svd(triangle.mT)
        if float(s[-8]) <= _threshold(floor, s):
            return basis @ u, s, v @ right.mT
        count *= 2
    return torch.linalg.svd(matrix, full_matrices=False)


@dataclass(frozen=True)
class Peeled:
    """F samples that are found.

    Parameters
    ----------
    q : Tensor
        (F, r): inputs q R, of which the last is 1.
    labels : Tensor
        (F,), int64.
    weight : Tensor
        ω, (F,), the weight of each sample's gradient in the one that was sent.
    std : Tensor
        (F,), standard deviation of the inputs' entries.
    count : Tensor or None
        (F,), int64, how many times the sample is in the batch.
    certain : Tensor or None
        (F,), bool, whether it is certified.
    complete : bool
        Whether they explain the whole gradient.
    """

    q: Tensor
    labels: Tensor
    weight: Tensor
    std: Tensor
    count: Tensor | None = None
    certain: Tensor | None = None
    complete: bool = False

    @staticmethod
    def nothing(equations: "HiddenEquations") -> "Peeled":
        """No sample."""
        none, rank = equations.factors.values[:0], equations.factors.rank
        return Peeled(none.reshape(0, rank), none.long(), none, none)

    def joined(self, other: "Peeled") -> "Peeled":
        """These and others."""
        names = ("q", "labels", "weight", "std")
        return Peeled(*(torch.cat([getattr(self, n), getattr(other, n)]) for n in names))


@dataclass(frozen=True)
class Remainder:
    """What is left of the gradient when samples are subtracted.

    Parameters
    ----------
    left, values, right : Tensor
        Singular vectors (m, ρ) and values (ρ,), and (ρ, r) in the coordinates of q.
    second : Tensor
        (K₂, m), of the second Linear's weight gradient.
    floor : float
        Largest singular value that noise, and errors of what was subtracted, have in it.
    row_noise : Tensor
        (m,), of a row whose terms cancel.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    second: Tensor
    floor: float
    row_noise: Tensor

    @property
    def rank(self) -> int:
        """Samples that are left."""
        return len(self.values)

    @property
    def rows(self) -> Tensor:
        """(m, r)."""
        return (self.left * self.values) @ self.right


@dataclass(frozen=True)
class HiddenEquations:
    """A batch at a hidden layer.

    Parameters
    ----------
    hidden : Hidden
        The network from the layer's output up.
    matrix : Tensor
        [W b], (m, n + 1).
    factors : Factors
        Of the gradient by W and b.
    second : Tensor
        (K₂, m), the gradient by V.
    shares : Tensor or None
        (K,), estimated share of each label; None where nothing says so.
    """

    hidden: Hidden
    matrix: Tensor
    factors: Factors
    second: Tensor
    shares: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        """R [W b]ᵀ, (r, m): pre-activations of a sample are q times this."""
        cached = self.__dict__.get("_inputs")
        if cached is None:
            cached = self.factors.right @ self.matrix.mT
            object.__setattr__(self, "_inputs", cached)
        return cached

    def cotangents(self, q: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives of a sample's own loss, by forward and backward pass of the upper network.

        Returns the derivatives by the layer's output (F, m), by the second Linear's (F, K₂), by the
        logits.
        """
        pre = q @ self.inputs
        second = self.hidden.activation(pre) @ self.hidden.weight.mT + self.hidden.bias
        by_second, by_logits = self.above(second, labels)
        return self.hidden.derivative(pre) * (by_second @ self.hidden.weight), by_second, by_logits

    def above(self, second: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives by the second Linear's output, (F, K₂), and by the logits, (F, K)."""
        with torch.enable_grad():
            inner = second.detach().requires_grad_()
            logits = self.hidden.logits(inner)
            z = torch.softmax(logits.detach(), dim=1).scatter(1, labels[:, None], 0.0)
            # The label's entry is what the others add up to: 1 - p would lose its digits.
            z = z.scatter(1, labels[:, None], -z.sum(dim=1, keepdim=True))
            (by_second,) = torch.autograd.grad(logits, inner, z)
        return by_second, z

    def likely_labels(self, q: Tensor, observed: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        """Labels (M,) under which candidates explain ω z̄₂, (M, K₂), and whether they do."""
        pre = q @ self.inputs
        second = self.hidden.activation(pre) @ self.hidden.weight.mT + self.hidden.bias
        pushed = self._pushed(second, observed) if self.hidden.rest else observed
        labels = pushed.argmin(dim=1)
        by_second = self.above(second, labels)[0]
        weight = (observed * by_second).sum(dim=1) / by_second.square().sum(dim=1).clamp(min=1e-300)
        miss = (observed - weight[:, None] * by_second).norm(dim=1)
        return labels, (weight > 0) & (miss <= limit * observed.norm(dim=1))

    def _pushed(self, second: Tensor, observed: Tensor) -> Tensor:
        """J z̄₂, (M, K), with J the derivative of the logits: its least entry is at the label."""
        with torch.enable_grad():
            inner = second.detach().requires_grad_()
            logits = self.hidden.logits(inner)
            u = torch.zeros_like(logits, requires_grad=True)
            (back,) = torch.autograd.grad(logits, inner, u, create_graph=True)
            (pushed,) = torch.autograd.grad(back, u, observed)
        return pushed

    def remainder(self, found: Peeled) -> Remainder:
        """What samples leave of the gradient."""
        factors = self.factors
        rank = factors.rank - len(found.labels)
        z, by_second, _ = self.cotangents(found.q, found.labels)
        z = found.weight[:, None] * z
        core = torch.diag(factors.values) - (z @ factors.left).mT @ found.q
        u, s, v = torch.linalg.svd(core)
        # What exceeds the rank is an error of the samples, unless they are all there.
        floor = max(factors.floor, float(s[rank])) if 0 < rank < len(s) else factors.floor
        threshold = _threshold(floor, factors.values) * (1 if rank else ACCUMULATED)
        rank = int((s[: rank or None] > threshold).sum())
        u, s, v = u[:, :rank], s[:rank], v[:rank]
        active = self.hidden.activation(found.q @ self.inputs)
        second = self.second - (found.weight[:, None] * by_second).mT @ active
        left = factors.left @ u
        grown = floor / max(factors.floor, 1e-300)
        return Remainder(left, s, v, second, floor, factors.row_noise * grown)
