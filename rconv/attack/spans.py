"""The input of a convolution, and the derivative by its output, from its own gradients alone."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rconv.equations.spans import Spans, row_space
from rconv.linalg.solution import largest_of_noise, rank_floor

DRAWS = 2
"""Times that the noise is added once more, to see what it does to hundreds of entries."""

TOLD = 100.0
"""Times its own error that the factor is, at least: beyond a per cent no image is unique."""

SURE = 10.0
"""Times the largest singular value of pure noise from which on one counts towards the rank: the
sums that gradients are carry some ten roundings."""


@dataclass(frozen=True)
class Own:
    """A convolution's own gradients of one image, with the standard deviations of their errors.

    Parameters
    ----------
    gradient : Tensor
        G, (D, C, kh·kw): Ō of the convolution times the patches of its input.
    spread : Tensor
        Of its entries; broadcasts to it.
    total : Tensor or None
        (D,): Ō summed over the positions, where an offset's gradient tells it.
    total_spread : Tensor
        Of its entries; broadcasts to it.
    """

    gradient: Tensor
    spread: Tensor
    total: Tensor | None
    total_spread: Tensor

    def disturbed(self, generator: torch.Generator) -> "Own":
        """The same with the noise once more."""

        def noise(like: Tensor, spread: Tensor) -> Tensor:
            own = torch.randn(like.shape, generator=generator, dtype=torch.float64)
            return like + own.to(like) * spread

        total = None if self.total is None else noise(self.total, self.total_spread)
        return Own(noise(self.gradient, self.spread), self.spread, total, self.total_spread)


@dataclass(frozen=True)
class Entered:
    """What span constraints say of one convolution, for one image.

    Parameters
    ----------
    value : Tensor
        X, (C, H, W).
    cotangent : Tensor
        Ō, (D, L).
    error : Tensor
        (C,), standard deviation of X in each channel.
    cotangent_noise : Tensor
        (), relative error of Ō, both as root mean squares.
    rank : int
        Of G, at most what is needed.
    needed : int
        Rank that G needs.
    condition, rest : Tensor
        (): ratio of the extreme singular values of G that the needed rank has, and the share of
        its norm beyond them.
    open : int
        Directions of X that are not told, the factor among them if it is not.
    losses : Tensor
        Of `Spans.within`.
    scaled : bool
        Whether the factor is told.
    """

    value: Tensor
    cotangent: Tensor
    error: Tensor
    cotangent_noise: Tensor
    rank: int
    needed: int
    condition: Tensor
    rest: Tensor
    open: int
    losses: Tensor
    scaled: bool


def enter(spans: Spans, own: Own) -> Entered:
    """Solve a convolution's span constraints.

    Parameters
    ----------
    spans : Spans
        Of the convolution.
    own : Own
        Its gradients.

    Returns
    -------
    Entered
        Of a random factor where no offset's gradient tells it.
    """
    sizes = torch.linalg.svdvals(own.gradient.flatten(1))
    m, norm = spans.combinations, sizes.norm().clamp(min=1e-300)
    rank, rest = rank_of(spans, own), sizes[m:].norm() / norm
    if rank < m:
        return _nothing(spans, own, rank, rest)
    if m < len(sizes):
        # What is left of G beyond the rank that it can have is noise, told or not.
        more = (sizes[m] / _largest(own, sizes)).clamp(min=1.0)
        own = replace(own, spread=own.spread * more, total_spread=own.total_spread * more)
    x, o, losses, scaled = _solve(spans, own)
    dimension = spans.dimension(losses)
    generator = torch.Generator().manual_seed(0)
    spread, spread_o = torch.zeros_like(x), torch.zeros_like(norm)
    for _ in range(DRAWS):
        other = _solve(spans, own.disturbed(generator))
        # Without a factor the sign is chance.
        sign = 1.0 if scaled else torch.sign((x * other[0]).sum())
        spread += (sign * other[0] - x).square() / DRAWS
        spread_o += (sign * other[1] - o).square().sum() / DRAWS
    return Entered(
        x,
        o,
        spread.mean(dim=(1, 2)).sqrt(),
        (spread_o.sqrt() / o.norm().clamp(min=1e-300)).clamp(max=1.0),
        rank,
        m,
        sizes[0] / sizes[m - 1],
        rest,
        0 if dimension == 1 and scaled else dimension,
        losses,
        scaled,
    )


def _nothing(spans: Spans, own: Own, rank: int, rest: Tensor) -> Entered:
    """Where the rank of G is short."""
    g = spans.geometry
    x, o = rest.new_zeros(g.input), rest.new_zeros(len(own.gradient), g.positions)
    one = torch.ones_like(rest)
    ends = rest.new_tensor([1.0, 1.0])
    error = x.sum(dim=(1, 2))
    told = rank, spans.combinations, one * torch.inf, rest
    return Entered(x, o, error, one, *told, g.unknowns, ends, False)


def rank_of(spans: Spans, own: Own) -> int:
    """Rank of G, at most what is needed."""
    sizes = torch.linalg.svdvals(own.gradient.flatten(1))
    floor = (SURE * _largest(own, sizes)).maximum(sizes[0] * rank_floor(0.0).to(sizes))
    return int((sizes[: spans.combinations] > floor).sum())


def _largest(own: Own, sizes: Tensor) -> Tensor:
    """Largest singular value that errors can have, if they are independent and of one size."""
    noise = largest_of_noise(own.spread, *own.gradient.flatten(1).shape)
    return noise.maximum(sizes[0] * torch.finfo(sizes.dtype).eps)


def _solve(spans: Spans, own: Own) -> tuple[Tensor, Tensor, Tensor, bool]:
    """X and Ō, what `Spans.within` says, and whether the factor is told; else X has the norm 1."""
    basis, _ = row_space(own.gradient, spans.combinations)
    x, losses = spans.within(basis)
    x = x / x.norm().clamp(min=1e-300)
    reached = own.gradient.flatten(1) @ torch.linalg.pinv(spans.patches(x).flatten(1))
    sums, scaled = reached @ spans.sums, False
    if own.total is not None:
        size = sums.norm().clamp(min=1e-300)
        factor = sums @ own.total / size**2
        error = own.total_spread.square().mean().sqrt() / size
        scaled = bool(factor.abs() > TOLD * error)
    if scaled:
        x, reached = x / factor, reached * factor
    return x, reached @ spans.reach.mT, losses, scaled
