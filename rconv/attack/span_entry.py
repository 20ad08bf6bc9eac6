"""A convolution entered by its own gradients: its input, and the derivative by its output.

Span constraints leave a factor of the input X open where no gradient of an offset fixes it. With
X' in place of X = X'/f, the derivative by everything below is that of the loss divided by f, as
long as the activations' derivatives do not depend on the size of their inputs. The gradient of an
offset below, the sum of a derivative over the positions, then determines f.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rconv.attack.activation_vjp import through_activation
from rconv.attack.backward import BackwardState, propagated
from rconv.attack.block_entry import cotangent_behind_norm
from rconv.attack.estimate import Cotangent, Estimate, Start
from rconv.attack.report import LayerReport
from rconv.equations.spans import Spans, row_space
from rconv.linalg.solution import largest_of_noise, rank_floor
from rconv.model.activations import Activation
from rconv.model.blocks import Block
from rconv.model.geometry import Stage
from rconv.model.nodes import Network
from rconv.observe.noise import Observed
from rconv.observe.observation import Gradients

DRAWS = 2
"""Times that the noise is added once more, to see what it does to hundreds of entries."""

SIGNIFICANT = 100.0
"""Times its own error that the factor is, at least: beyond a per cent no image is unique."""

SURE = 10.0
"""Times the largest singular value of pure noise from which on one counts towards the rank: the
sums that gradients are carry some ten roundings."""


@dataclass(frozen=True)
class _ConvGradients:
    """A convolution's own gradients of one image, with the standard deviations of their errors.

    Parameters
    ----------
    gradient : Tensor
        G, (D, C, kh·kw): Ō of the convolution times the patches of its input.
    spread : Tensor
        Of its entries; broadcasts to it.
    total : Tensor or None
        (D,): Ō summed over the positions, where an offset's gradient determines it.
    total_spread : Tensor
        Of its entries; broadcasts to it.
    """

    gradient: Tensor
    spread: Tensor
    total: Tensor | None
    total_spread: Tensor

    def disturbed(self, generator: torch.Generator) -> "_ConvGradients":
        """The same with the noise once more."""

        def noise(like: Tensor, spread: Tensor) -> Tensor:
            own = torch.randn(like.shape, generator=generator, dtype=torch.float64)
            return like + own.to(like) * spread

        total = None if self.total is None else noise(self.total, self.total_spread)
        return replace(self, gradient=noise(self.gradient, self.spread), total=total)


@dataclass(frozen=True)
class _Entered:
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
        Directions of X that are not determined; the factor may be one.
    losses : Tensor
        Of `Spans.within`.
    scaled : bool
        Whether the factor is determined.
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


def enter(spans: Spans, own: _ConvGradients) -> _Entered:
    """Solve a convolution's span constraints, for one image.

    The factor is random where no offset's gradient fixes it.
    """
    sizes = torch.linalg.svdvals(own.gradient.flatten(1))
    m, norm = spans.combinations, sizes.norm().clamp(min=1e-300)
    rank, rest = rank_of(spans, own), sizes[m:].norm() / norm
    if rank < m:
        return _nothing(spans, own, rank, rest)
    if m < len(sizes):
        # What is left of G beyond the rank that it can have is noise, declared or not.
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
    return _Entered(
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


def _nothing(spans: Spans, own: _ConvGradients, rank: int, rest: Tensor) -> _Entered:
    """Where the rank of G is short."""
    g = spans.geometry
    x, o = rest.new_zeros(g.input), rest.new_zeros(len(own.gradient), g.positions)
    one = torch.ones_like(rest)
    ends = rest.new_tensor([1.0, 1.0])
    error = x.sum(dim=(1, 2))
    told = rank, spans.combinations, one * torch.inf, rest
    return _Entered(x, o, error, one, *told, g.unknowns, ends, False)


def rank_of(spans: Spans, own: _ConvGradients) -> int:
    """Rank of G, at most what is needed."""
    sizes = torch.linalg.svdvals(own.gradient.flatten(1))
    floor = (SURE * _largest(own, sizes)).maximum(sizes[0] * rank_floor(0.0).to(sizes))
    return int((sizes[: spans.combinations] > floor).sum())


def _largest(own: _ConvGradients, sizes: Tensor) -> Tensor:
    """Largest singular value that errors can have, if they are independent and of one size."""
    noise = largest_of_noise(own.spread, *own.gradient.flatten(1).shape)
    return noise.maximum(sizes[0] * torch.finfo(sizes.dtype).eps)


def _solve(spans: Spans, own: _ConvGradients) -> tuple[Tensor, Tensor, Tensor, bool]:
    """X and Ō, what `Spans.within` says, and whether the factor is known; else X has the norm 1."""
    basis, _ = row_space(own.gradient, spans.combinations)
    x, losses = spans.within(basis)
    x = x / x.norm().clamp(min=1e-300)
    reached = own.gradient.flatten(1) @ torch.linalg.pinv(spans.patches(x).flatten(1))
    sums, scaled = reached @ spans.sums, False
    if own.total is not None:
        size = sums.norm().clamp(min=1e-300)
        factor = sums @ own.total / size**2
        error = own.total_spread.square().mean().sqrt() / size
        scaled = bool(factor.abs() > SIGNIFICANT * error)
    if scaled:
        x, reached = x / factor, reached * factor
    return x, reached @ spans.subspace.mT, losses, scaled


def from_spans(network: Network, spans: Spans, clients: Observed) -> Start:
    """Start from a convolution's own gradients, which determine its input.

    The network ends at the convolution, or at a sum that its output is added to; clients are as
    they were sent.
    """
    observed = clients.normalised()
    node = network.entered
    stage, source = network.nodes[node].does, network.nodes[node].inputs[0]
    found = [enter(spans, own) for own in _own(stage, observed)]
    level = observed.relative_std(f"{stage.name}.weight")
    value = torch.stack([own.value for own in found])
    # Errors that are not independent do not average out.
    least = level[:, None] * value.flatten(2).square().mean(dim=2).sqrt()
    error = torch.stack([own.error for own in found])
    estimate = Estimate.whole(value, error.maximum(least))
    relative = torch.stack([own.cotangent_noise for own in found]).maximum(level)
    back = torch.stack([own.cotangent for own in found]).reshape(-1, *stage.geometry.output)
    if stage.scale is not None:
        scale = stage.scale[:, None, None]
        back = torch.where(scale == 0, 0.0, back / torch.where(scale == 0, 1.0, scale))
    cotangent = Cotangent(back, relative)
    opened = torch.tensor([own.open for own in found], device=value.device)
    loose = torch.tensor([own.rank == own.needed and not own.scaled for own in found])
    if loose.any():
        factor, error = scale_from_bias(network, source, estimate, cotangent, observed.gradients)
        takes = loose.to(error.device) & (error < 1 / SIGNIFICANT)
        # Where nothing determines the factor, its sign would be that of a singular vector, which
        # differs between libraries: take the one that makes the sum of the map positive.
        negative = loose.to(takes.device) & (estimate.value.flatten(1).sum(dim=1) < 0)
        factor = torch.where(takes, factor, torch.where(negative, -1.0, 1.0).to(factor))
        error = torch.where(takes, error, 0.0)
        estimate, cotangent = _multiplied(estimate, cotangent, factor, error)
        opened = opened - takes.long()
    below = cotangent.value
    if isinstance(stage, Block):
        cotangent = cotangent_behind_norm(stage, estimate, cotangent, observed.gradients)
    reports = _reports(spans, stage, found, estimate.value, opened)
    end = network.head.logits
    derivative = observed.gradients.get(f"{end}.bias")
    if end is None:
        end, derivative = stage.name, stage.unscaled(below)
    every, solved = torch.arange(len(found), device=value.device), (source, estimate, reports[1])
    return Start(observed, every, None, cotangent, reports[0], end, derivative, solved)


def span_ranks(network: Network, spans: Spans, clients: Observed) -> Tensor:
    """(N,), int64: rank of the weight gradient that is entered by, at most what is needed."""
    stage = network.nodes[network.entered].does
    name = f"{stage.name}.weight"
    alone = Observed({name: clients.gradients[name]}, clients.noise, clients.unit).normalised()
    return torch.tensor([rank_of(spans, one) for one in _own(stage, alone)])


def _own(stage: Stage, observed: Observed) -> list[_ConvGradients]:
    """Each client's gradients of one convolution, and their errors."""
    name, gradients = f"{stage.name}.weight", observed.gradients
    weight, spread = gradients[name].flatten(3), observed.every_std(name).flatten(3)
    offset = f"{stage.name}.bias" if f"{stage.name}.bias" in gradients else stage.offset
    totals, errors = [None] * len(weight), spread.new_zeros(len(weight))
    if offset in gradients and not isinstance(stage, Block):  # below a norm all sums are zero
        scaled = stage.scale is not None and offset != f"{stage.name}.bias"
        factor = stage.scale if scaled else 1.0
        totals = gradients[offset] * factor
        errors = (observed.every_std(offset) * factor).abs()
    return [_ConvGradients(*own) for own in zip(weight, spread, totals, errors, strict=True)]


def _multiplied(
    estimate: Estimate, cotangent: Cotangent, factor: Tensor, error: Tensor
) -> tuple[Estimate, Cotangent]:
    """X and its derivative with a factor for each image, and the factor's relative error."""
    value = estimate.value / factor.reshape(-1, 1, 1, 1)
    spread = estimate.std / factor.abs()[:, None]
    size = value.flatten(2).square().mean(dim=2).sqrt()
    noise = torch.hypot(cotangent.relative_std, error).clamp(max=1.0)
    back = Cotangent(cotangent.value * factor.reshape(-1, 1, 1, 1), noise)
    return replace(estimate, value=value, std=torch.hypot(spread, error[:, None] * size)), back


def _reports(
    spans: Spans, stage: Stage, found: list[_Entered], value: Tensor, opened: Tensor
) -> tuple[LayerReport, LayerReport]:
    """How well the derivative by the output is known, and how well the input is."""
    m, device = spans.combinations, value.device
    rank = torch.tensor([own.rank for own in found], device=device)
    losses = torch.stack([own.losses[:2] if len(own.losses) > 1 else own.losses.expand(2)
                          for own in found]).clamp(min=0.0)  # fmt: skip
    weights = stage.geometry.input[0] * stage.geometry.offsets
    condition = torch.where(rank == m, torch.stack([own.condition for own in found]), torch.inf)
    rest, flat = torch.stack([own.rest for own in found]), value.flatten(1)
    told = LayerReport.plain(
        stage.name, "span", m, len(stage.weight) * weights, rank, condition, rest
    )
    n, condition = flat.shape[1], losses[:, 1].clamp(min=1e-300).rsqrt()
    rows, residual = m * (weights - m), losses[:, 0].sqrt()
    return told, LayerReport.plain(
        stage.name, "span", n, rows, n - opened, condition, residual, flat
    )


def scale_from_bias(
    network: Network, node: int, estimate: Estimate, cotangent: Cotangent, gradients: Gradients
) -> tuple[Tensor, Tensor]:
    """The factor f (N,), with its sign, of a map and of the derivative by the network's last node.

    Of the estimate X' of a map and the cotangent by the last node, divided by f. The relative error
    (N,) is infinite where nothing determines the factor.
    """
    does = network.nodes[node].does
    best = torch.ones_like(cotangent.relative_std)
    error = torch.full_like(best, torch.inf)
    if does is None or (isinstance(does, Activation) and not _homogeneous(does)):
        return best, error
    below = network.nodes[node].inputs[0] if isinstance(does, Activation) else node
    for sign in (1.0, -1.0):
        own = replace(estimate, value=sign * estimate.value)
        state = _passed(network, node, own, replace(cotangent, value=sign * cotangent.value))
        observed = None if state is None else state.offset_gradient(below, gradients)
        if observed is None:
            break
        factor, own_error = _ratio(observed, state.cotangent(below))
        better = own_error < error
        best = torch.where(better, sign * factor, best)
        error = torch.where(better, own_error, error)
    return best, error


def _ratio(observed: Tensor, derivative: Cotangent) -> tuple[Tensor, Tensor]:
    """Offset gradients over what they are divided by f, by least squares; the relative error."""
    sums, rows = derivative.value.sum(dim=(2, 3)), observed.shape[1]
    size = sums.square().sum(dim=1).clamp(min=1e-300)
    factor = (sums * observed).sum(dim=1) / size
    miss = (observed - factor[:, None] * sums).norm(dim=1) / max(1, rows - 1) ** 0.5
    # A sum over positions has the errors of all of them.
    size_below = derivative.value.flatten(1).norm(dim=1)
    spread = derivative.relative_std * size_below * factor.abs() / rows**0.5
    error = torch.hypot(miss, spread) / (factor.abs() * size.sqrt()).clamp(min=1e-300)
    # With the right sign, the derivatives of the activation are those of a positive multiple.
    return factor, torch.where(factor > 0, error, torch.inf)


def _passed(
    network: Network, node: int, estimate: Estimate, cotangent: Cotangent
) -> BackwardState | None:
    """The pass from the last node to behind a map; None where another map must be solved first."""
    # Gradients of offsets, which settle the sides of kinks, are not divided by f.
    state = BackwardState(network, (), None, cotangent, {})
    entered = network.nodes[network.entered].does
    if isinstance(entered, Block):  # the derivative behind its norm is not known before f is
        return _past_block(state, entered, node, estimate, cotangent)
    state.given[node] = estimate
    return None if any(True for _ in state.unsolved(node)) else state


def _past_block(
    state: BackwardState, block: Block, node: int, estimate: Estimate, cotangent: Cotangent
) -> BackwardState | None:
    """`_passed` where the network is entered by a block, whose input alone it takes."""
    if len(state.network.consumers[node]) > 1:
        return None
    does, inputs = state.network.nodes[node].does, state.network.nodes[node].inputs
    back = propagated(block, cotangent)
    if isinstance(does, Activation):
        own = does, estimate.value, back.value, None, estimate.std, back.relative_std
        state.receive(inputs[0], through_activation(*own)[0])
    return state


def _homogeneous(activation: Activation) -> bool:
    """Whether a multiple of the input gives the same multiple of the output."""
    x = torch.tensor([-3.0, -1.5, 1.5, 3.0], dtype=torch.float64)
    return torch.equal(activation.function(2 * x), 2 * activation.function(x))
