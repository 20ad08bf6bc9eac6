"""Max pooling behind a convolution: the position of each maximum as a random variable.

Given an estimate of the input X, position j of window w carries the maximum with the probability
p = softmax(z / T). Then every equation is linear in X, with a known mean and covariance:

    value of a window       Σ_j p_j z_j = y,                  variance Σ_j p_j (z_j - mean)²
    gradient of a filter    Σ_w ȳ_w Σ_j p_wj patch_wj = g,    covariance DᵀD + ε²,

where the rows of D are √p_wj ȳ_w (patch_wj - Σ_j p patch). Divided by their standard deviations,
the rows form one least-squares problem.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from rconv.equations.block import Linearised
from rconv.equations.conv_gradient import gradient_matrix, gradient_rhs
from rconv.linalg.gauss_newton import Change, roots_of
from rconv.linalg.system import Rows, System
from rconv.model.geometry import Geometry, Stage

EXPLORED, DECAY, LAST = 0.5, 0.75, 0.1
"""Share of the covariance's root that is added to it in every direction, in the first step; what
it is multiplied with in each step; and its least. Patches are those of an estimate, and directions
that they do not show are no more certain than the estimate is."""

QUANTILE, WARMTH, OWN = 0.75, 1.5, 2.0
"""Temperature: this quantile of what the largest values of the windows miss, times `WARMTH`; of
each window `OWN` times what it misses itself, if that is more. With the median, temperature falls
before all routings are right."""

EXCEEDED = 2.0
"""Weight of z ≤ y where it is violated, per temperature of the window."""

LEAST = 1e-7
"""Least standard deviation of a value, relative to the values: rounding of single precision."""

NEAR, PATIENCE, BETTER = 0.05, 4, 0.98
"""A search whose best estimate misses less than this, relative, ends after so many steps that did
not leave this share of it: single precision has no more digits, or the search has come to rest."""

CERTAIN = 1e-6
"""Probability of all other positions below which the routing of a window has no variance."""


@dataclass(frozen=True)
class Windows:
    """The positions that each window of a pooling layer takes the maximum of.

    Parameters
    ----------
    positions : Tensor, int64
        (L', K), position of the map for each window and each of its places; 0 outside of the map.
    inside : Tensor, bool
        (L', K).
    """

    positions: Tensor
    inside: Tensor

    @staticmethod
    def of(pool: nn.MaxPool2d, shape: tuple[int, int], pooled: tuple[int, int]) -> "Windows":
        """Of a layer that takes maps of one shape to maps of another."""
        places = []
        for axis in range(2):
            size, step, pad, wide = (
                own if isinstance(own, int) else own[axis]
                for own in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
            )
            start = torch.arange(pooled[axis]) * step - pad
            places.append(start[:, None] + torch.arange(size) * wide)
        rows, columns = places[0][:, None, :, None], places[1][None, :, None, :]
        inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
        flat = torch.where(inside, rows * shape[1] + columns, 0)
        return Windows(flat.flatten(2).flatten(0, 1), inside.flatten(2).flatten(0, 1))

    def values(self, z: Tensor, outside: float = -torch.inf) -> Tensor:
        """(D, L) → (D, L', K)."""
        return torch.where(self.inside, z[:, self.positions], outside)

    def summed(self, rows: Tensor, count: int) -> Tensor:
        """(D, L', K) → (D, L), L = count: the adjoint of `values`."""
        rows = torch.where(self.inside, rows, 0.0).flatten(1)
        return rows.new_zeros(len(rows), count).index_add_(1, self.positions.flatten(), rows)

    def least(self, limit: Tensor, count: int) -> Tensor:
        """(D, L), L = count, the smallest of the limits (D, L') of the windows of each position."""
        rows = torch.where(self.inside, limit[..., None], torch.inf).flatten(1)
        start = rows.new_full((len(rows), count), torch.inf)
        index = self.positions.flatten().expand_as(rows)
        return start.scatter_reduce(1, index, rows, "amin")

    def candidates(
        self, value: Tensor, known: Tensor, limit: Tensor, count: int, room: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Places that can carry each maximum, (D, L', K), and how many windows share it, (D, L').

        A position of several windows has no larger value than the least of their maxima, and
        windows that overlap and have equal maxima share the position of it.

        Parameters
        ----------
        value : Tensor
            (D, L'), the maxima.
        known : Tensor, bool
            (D, L'), where they are known.
        limit : Tensor
            (D, L'), what they are at most.
        count : int
            L, positions of the map.
        room : Tensor
            (D, 1), difference within which values count as equal.
        """
        holds = value.new_zeros(len(self.positions), count)
        holds.scatter_add_(1, self.positions, self.inside.to(value))
        free = self.inside.expand(len(value), -1, -1)
        if not (holds.sum(dim=0) > 1).any():
            return free, torch.ones_like(value)
        equal = (value[:, :, None] - value[:, None, :]).abs() <= room[..., None]
        equal &= known[:, :, None] & known[:, None, :] & (holds @ holds.mT > 0)
        shared = equal.sum(dim=2).clamp(min=1)
        at = (equal.to(value) @ holds).gather(2, self.positions.expand(len(value), -1, -1))
        low = self.values(self.least(limit, count)) >= (value - room)[..., None]
        found = free & low & (at >= shared[..., None]) & known[..., None]
        return torch.where(found.any(dim=2, keepdim=True), found, free), shared

    def routed(self, z: Tensor, tolerance: Tensor | float) -> Tensor:
        """(D, L', K), 1 at the first position that is within the tolerance of the maximum.

        PyTorch takes the first of equal values, which rounding of an estimate would make different.
        """
        values = self.values(z)
        near = values >= values.amax(dim=2, keepdim=True) - tolerance
        return functional.one_hot(near.int().argmax(dim=2), near.shape[2]).to(z)


@dataclass(frozen=True)
class LiveNorm:
    """BatchNorm in training mode between convolution and pooling; all of them (D, 1).

    Parameters
    ----------
    mean : Tensor
        Of the outputs over the positions.
    by_bias, by_weight : Tensor
        m₁ and m₂: the derivative by the outputs is that of the maxima less m₁ + ô m₂, where ô are
        the outputs less their mean over their standard deviation.
    """

    mean: Tensor
    by_bias: Tensor
    by_weight: Tensor

    def beside(self, outputs: Tensor) -> Tensor:
        """(D, L) → (D, L), what it adds to the derivative. An estimate is normalised by itself."""
        return -self.by_bias - self.by_weight * _normal(outputs)[0]

    def moved(self, outputs: Tensor, change: Tensor) -> Tensor:
        """The derivative of `beside` for a change of the outputs; it is its own adjoint.

        That of a change of scale is zero, so that linear equations with it hold for the estimate.
        """
        normal, scale = _normal(outputs)
        mean, along = ((own * change).mean(dim=1, keepdim=True) for own in (1.0, normal))
        return -self.by_weight * scale * (change - mean - normal * along)


def _normal(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of (D, L) less its mean over its standard deviation, and the inverse of that."""
    variance, mean = torch.var_mean(outputs, dim=1, correction=0, keepdim=True)
    scale = torch.where(variance > 0, variance, torch.inf).rsqrt()
    return (outputs - mean) * scale, scale


@dataclass(frozen=True)
class PooledMap:
    """What is known of a convolution whose output is pooled, of one sample.

    Parameters
    ----------
    stage : Stage
        The convolution.
    windows : Windows
        Of the pooling.
    value : Tensor
        (D, L'), the maxima, without the bias of the convolution.
    known, bounded : Tensor, bool
        (D, L'), where the maximum equals the value, and where it is at most the value.
    cotangent : Tensor
        (D, L'), the derivative of the loss by the maxima.
    gradient : Tensor
        (D, C·kh·kw), the derivative by the weights as they are in the stage.
    observed : Tensor, bool
        (D,), filters whose gradient is observed.
    low : float
        Least value of the input.
    prior : tuple of float
        Mean of the entries of the input, standard deviation of differences of neighbours, and of
        the entries, before anything is known. Where the input is flat, routings are open whatever
        the equations, and without a prior the search invents a texture there.
    possible : Tensor, bool
        (D, L', K), places that can carry the maximum.
    shared : Tensor
        (D, L'), how many windows have this maximum in common.
    norm : LiveNorm or None
        Between the convolution and the pooling.
    cautious : bool
        Whether gradient rows are no more certain than the estimate. Below many maxima that are
        nearly right the search rests then; where gradient rows determine most, it goes astray.
    """

    stage: Stage
    windows: Windows
    value: Tensor
    known: Tensor
    bounded: Tensor
    cotangent: Tensor
    gradient: Tensor
    observed: Tensor
    low: float
    prior: tuple[float, float, float]
    possible: Tensor
    shared: Tensor
    norm: LiveNorm | None = None
    cautious: bool = False

    def to(self, dtype: torch.dtype) -> "PooledMap":
        """The same in another precision, cotangent and gradient scaled to a mean square of one."""
        size = self.cotangent.square().mean().sqrt().clamp(min=1e-300)
        stage = replace(self.stage, weight=self.stage.weight.to(dtype), bias=None)
        own = {"cotangent": self.cotangent / size, "gradient": self.gradient / size}
        own = {name: tensor.to(dtype) for name, tensor in own.items()}
        norm, n = None, self.norm
        if n is not None:
            parts = n.mean, n.by_bias / size, n.by_weight / size
            norm = LiveNorm(*(part.to(dtype) for part in parts))
        return replace(self, stage=stage, value=self.value.to(dtype), norm=norm, **own)

    def outputs(self, x: Tensor) -> Tensor:
        """(n,) → (D, L), without the bias."""
        return self.stage.convolve(x.reshape(1, *self.stage.geometry.input))[0].flatten(1)

    def miss(self, x: Tensor) -> Tensor:
        """(D, L'), how far the largest value of each window is from its maximum, where known."""
        seen = self.windows.values(self.outputs(x))
        top = torch.where(self.possible, seen, -torch.inf).amax(dim=2)
        return torch.where(self.known, (top - self.value).abs(), 0.0)

    def linearised(self, x: Tensor, step: int) -> tuple[System, Change]:
        """Equations of a step from x (n,), routings being random, and a preconditioner."""
        own = RoutedRows(self, x, step)
        rhs = (own.target - own.apply(x))[None, :, None]
        rows = Linearised(own.apply, own.adjoint, rhs.shape[1], len(x))
        return System((Rows(rows, rhs),), len(x)), own.preconditioner()


@dataclass(frozen=True)
class RoutedRows:
    """The weighted equations at one estimate: values, gradients, inequalities, range and prior.

    Parameters
    ----------
    given : PooledMap
        What is known.
    x : Tensor
        (n,).
    step : int
        Steps taken. At first x is no estimate yet, and all positions are equally probable.
    """

    given: PooledMap
    x: Tensor
    step: int

    @property
    def first(self) -> bool:
        """Whether x is no estimate yet."""
        return self.step == 0

    @property
    def geometry(self) -> Geometry:
        """Of the convolution."""
        return self.given.stage.geometry

    @cached_property
    def _outputs(self) -> Tensor:
        """(D, L), at x."""
        return self.given.outputs(self.x)

    @cached_property
    def _seen(self) -> Tensor:
        """(D, L', K), values of the windows at x."""
        return self.given.windows.values(self._outputs)

    @cached_property
    def _miss(self) -> tuple[Tensor, Tensor]:
        """(D, L') and (), what each window misses and what most miss at most."""
        miss = self.given.miss(self.x)
        least = LEAST * self.given.value.square().mean().sqrt()
        level = miss[self.given.known].quantile(QUANTILE)
        return miss, level.maximum(least)

    @cached_property
    def _temperature(self) -> Tensor:
        """(D, L', 1)."""
        miss, level = self._miss
        return torch.maximum(WARMTH * level, OWN * miss)[..., None]

    @cached_property
    def share(self) -> Tensor:
        """(D, L', K), probability of each position."""
        possible = self.given.possible
        if self.first:
            return possible / possible.sum(dim=2, keepdim=True).to(self.x)
        seen = torch.where(possible, self._seen, -torch.inf)
        return torch.softmax(seen / self._temperature, dim=2)

    @cached_property
    def _value_weight(self) -> Tensor:
        """(D, L')."""
        given = self.given
        if self.first:
            return given.known / given.value[given.known].std().clamp(min=1e-30)
        seen = torch.where(given.windows.inside, self._seen, 0.0)
        mean = (self.share * seen).sum(dim=2, keepdim=True)
        miss, level = self._miss
        variance = (self.share * (seen - mean).square()).sum(dim=2)
        return given.known * (variance + (miss.maximum(level) / 2).square()).rsqrt()

    @cached_property
    def _over_weight(self) -> Tensor:
        """(D, L', K), weight of z = y where z ≤ y is violated."""
        given = self.given
        over = (self._seen > given.value[..., None]) & (given.known | given.bounded)[..., None]
        return over * (0.0 if self.first else EXCEEDED / self._temperature)

    @cached_property
    def _low_weight(self) -> Tensor:
        """(n,), weight of x = low where x is below."""
        _, level = self._miss
        size = self.given.stage.weight.square().sum(dim=(1, 2, 3)).mean().sqrt()
        return (self.x < self.given.low) * (0.0 if self.first else size / level)

    @cached_property
    def _expected(self) -> Tensor:
        """(D·kh·kw, H·W), the matrix of the expected gradient, one for all channels."""
        given, shares = self.given, self.share * self.given.cotangent[..., None]
        positions = given.windows.summed(shares, self.geometry.positions)
        if given.norm is not None:
            positions = positions + given.norm.beside(self._outputs)
        return gradient_matrix(positions[None], self.geometry)[0]

    @cached_property
    def _whitening(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each filter directions (D, m, r), their shares (D, r), and 1 / ε (D,).

        (DᵀD + ε²)^(-1/2) = (1 - U diag(share) Uᵀ) / ε.
        """
        count, size = self.given.gradient.shape
        level = self.given.gradient.square().mean()
        if self.first:
            none = self.x.new_zeros(count, size, 0)
            return none, none[:, 0], self.given.observed * level.rsqrt()
        found = [self._directions(i) for i in range(count)]
        width = max(len(sizes) for sizes, _ in found)
        directions, sizes = self.x.new_zeros(count, size, width), self.x.new_zeros(count, width)
        for i, (own, vectors) in enumerate(found):
            sizes[i, : len(own)], directions[i, :, : len(own)] = own, vectors
        share = max(EXPLORED * DECAY**self.step, LAST)
        floor = share**2 * sizes.sum(dim=1) / size + (LEAST**2 + self._missed) * level
        shrunk = 1 - (floor[:, None] / (sizes + floor[:, None])).sqrt()
        return directions, shrunk, self.given.observed * floor.rsqrt()

    @property
    def _missed(self) -> Tensor | float:
        """Least variance of a gradient row, relative: that of the estimate, if it is cautious."""
        if not self.given.cautious:
            return 0.0
        return self._miss[1].square() / self.given.value[self.given.known].square().mean()

    def _directions(self, i: int) -> tuple[Tensor, Tensor]:
        """Eigenvalues (r,) and eigenvectors (m, r) of the covariance of one filter's gradient."""
        share, cotangent = self.share[i], self.given.cotangent[i]
        unsure = (share.amax(dim=1) < 1 - CERTAIN) & (cotangent != 0)
        share, cotangent = share[unsure], cotangent[unsure]
        patches = self._patches[self.given.windows.positions[unsure]]
        patches = patches - torch.einsum("wk,wkm->wm", share, patches)[:, None]
        rows = (patches * (share.sqrt() * cotangent[:, None])[..., None]).flatten(0, 1)
        wide = rows.shape[0] < rows.shape[1]
        gram = (rows @ rows.mT if wide else rows.mT @ rows).double()
        sizes, vectors = torch.linalg.eigh(gram)
        if not len(sizes) or not sizes[-1] > 0:
            return self.x.new_zeros(0), self.x.new_zeros(rows.shape[1], 0)
        kept = sizes > sizes[-1] * LEAST
        sizes, vectors = sizes[kept], vectors[:, kept]
        if wide:
            vectors = rows.mT.double() @ (vectors * sizes.rsqrt())
        return sizes.to(self.x), vectors.to(self.x)

    @cached_property
    def _patches(self) -> Tensor:
        """(L, C·kh·kw), the input of each position."""
        g = self.geometry
        maps = self.x.reshape(1, *g.input)
        return functional.unfold(maps, g.kernel, g.dilation, g.padding, g.stride)[0].T

    def _whitened(self, rows: Tensor) -> Tensor:
        """Symmetric, (D, m) → (D, m)."""
        directions, shrunk, scale = self._whitening
        inside = shrunk[..., None] * (directions.mT @ rows[..., None])
        return (rows - (directions @ inside)[..., 0]) * scale[:, None]

    @cached_property
    def target(self) -> Tensor:
        """(m,), the weighted right-hand sides."""
        given = self.given
        parts = [
            given.value * self._value_weight,
            self._whitened(given.gradient),
            given.value[..., None] * self._over_weight,
            self._low_weight * max(given.low, -1e30),
            *self._prior_rows(torch.full_like(self.x, given.prior[0])),
            *self._mean_rows(None if given.norm is None else given.norm.mean),
        ]
        return torch.cat([part.flatten() for part in parts])

    def apply(self, x: Tensor) -> Tensor:
        """(n,) → (m,)."""
        x, (channels, *_), g = x.to(self.x), self.geometry.input, self.geometry
        outputs = self.given.outputs(x)
        seen = self.given.windows.values(outputs, 0.0)
        own = (self._expected @ x.reshape(channels, -1).T).reshape(g.output[0], -1, channels)
        gradient = own.mT.flatten(1)
        if self.given.norm is not None:
            gradient = gradient + self.given.norm.moved(self._outputs, outputs) @ self._patches
        parts = [
            (self.share * seen).sum(dim=2) * self._value_weight,
            self._whitened(gradient),
            self._over_weight * seen,
            self._low_weight * x,
            *self._prior_rows(x),
            *self._mean_rows(outputs.mean(dim=1, keepdim=True)),
        ]
        return torch.cat([part.flatten() for part in parts])

    def adjoint(self, rows: Tensor) -> Tensor:
        """(m,) → (n,)."""
        g, (d, places) = self.geometry, self.given.value.shape
        gradient, over = self.given.gradient.numel(), self._over_weight.numel()
        means = d * (self.given.norm is not None)
        left = len(rows) - d * places - gradient - over - len(self.x) - means
        sizes = [d * places, gradient, over, len(self.x), left, means]
        value, own, above, low, prior, mean = rows.to(self.x).split(sizes)
        value = (value.reshape(d, places) * self._value_weight)[..., None] * self.share
        value = value + above.reshape(value.shape) * self._over_weight
        maps = self.given.windows.summed(value, g.positions)
        own = self._whitened(own.reshape(d, -1))
        if means:
            maps = maps + self.given.norm.moved(self._outputs, own @ self._patches.mT)
            maps = maps + mean[:, None] * self._mean_weight / g.positions
        own = own.reshape(1, d, g.input[0], *g.kernel)
        found = self.given.stage.transpose(maps.reshape(1, *g.output)).flatten()
        found = found + (self._expected.T @ gradient_rhs(own)[0]).T.flatten()
        return found + self._low_weight * low + self._prior_adjoint(prior)

    @property
    def _mean_weight(self) -> Tensor:
        """(), of the mean of the outputs, which is known: that of all positions together."""
        value = self.given.value[self.given.known]
        spread = value.std().clamp(min=1e-30) if self.first else self._miss[1]
        return self.geometry.positions**0.5 / spread

    def _mean_rows(self, mean: Tensor | None) -> list[Tensor]:
        """Means of the outputs (D, 1), over their standard deviation; none without a norm."""
        return [] if self.given.norm is None else [mean * self._mean_weight]

    def _prior_rows(self, x: Tensor) -> list[Tensor]:
        """Differences of neighbours, and entries, over their standard deviations."""
        _, slope, spread = self.given.prior
        maps = x.reshape(self.geometry.input)
        return [maps.diff(dim=1) / slope, maps.diff(dim=2) / slope, x / spread]

    def _prior_adjoint(self, rows: Tensor) -> Tensor:
        (_, slope, spread), (c, h, w) = self.given.prior, self.geometry.input
        down, right, entries = rows.split([c * (h - 1) * w, c * h * (w - 1), c * h * w])
        down = functional.pad(down.reshape(c, h - 1, w), (0, 0, 1, 1)).diff(dim=1)
        right = functional.pad(right.reshape(c, h, w - 1), (1, 1)).diff(dim=2)
        return entries / spread - (down + right).flatten() / slope

    def preconditioner(self) -> Change:
        """L⁻ᵀ with L Lᵀ = AᵀA + α: A the gradient rows, for all channels; α of all others.

        One matrix (H·W, H·W) for all channels.
        """
        g, n = self.geometry, len(self.x)
        directions, shrunk, scale = self._whitening
        d, k = g.output[0], g.offsets
        parts = directions.reshape(d, g.input[0], k, -1)
        known = shrunk * (2 - shrunk)
        inverse = -torch.einsum("dckr,dr,dclr->dkl", parts, known, parts) / g.input[0]
        inverse = (inverse + torch.eye(k).to(inverse)) * scale.square()[:, None, None]
        sizes, vectors = torch.linalg.eigh(inverse.double())
        root = (vectors * sizes.clamp(min=0).sqrt()[:, None]).mT.to(self.x)
        rows = (root @ self._expected.reshape(d, k, -1)).flatten(0, 1)
        v = torch.randn(n, generator=torch.Generator().manual_seed(0)).to(self.x)
        seen = self.apply(v)
        start, end = (
            self.given.value.numel(),
            self.given.value.numel() + self.given.gradient.numel(),
        )
        alpha = (seen.square().sum() - seen[start:end].square().sum()) / n
        _, inverse = roots_of((rows.mT @ rows).double(), alpha.double())
        inverse = inverse.to(self.x)
        return Change(
            lambda y: (y.reshape(-1, g.pixels) @ inverse).flatten(),
            lambda v: (v.reshape(-1, g.pixels) @ inverse.mT).flatten(),
        )


def search(
    given: PooledMap,
    solve: Callable[[System, Change], Tensor],
    *,
    rounds: int,
    rest: float,
) -> Tensor:
    """An estimate of the input, (n,), whose largest values miss the maxima by little.

    Parameters
    ----------
    given : PooledMap
        What is known.
    solve : callable
        Solves the equations of a step.
    rounds : int
        Steps at most.
    rest : float
        Root mean square of what the windows miss, relative to the maxima, at which it ends.
    """
    x, found = given.value.new_zeros(given.stage.geometry.unknowns), 0
    size, best, least = given.value[given.known].square().mean().sqrt(), x, torch.inf
    for step in range(rounds):
        x = x + solve(*given.linearised(x, step))
        miss = float(given.miss(x)[given.known].square().mean().sqrt() / size)
        found = step if miss < BETTER * least else found
        if miss < least:
            best, least = x, miss
        diverged = not miss < torch.inf  # NaN: noise does that
        if miss <= rest or diverged or (step - found >= PATIENCE and least <= NEAR):
            break
    return best
