r"""The averaged gradient of a batch, disaggregated at the head into its samples.

The gradient of the last Linear, weight and bias side by side and summed over the samples, is

.. math:: G = Z^\top \tilde V, \quad Z = \mathrm{softmax}(\tilde V\,[V\ c]^\top) - Y,

with one row for each sample in Z (B, K) and in Ṽ (B, n + 1), its features and a 1 for the bias; Y
has a 1 at each label.
G = C R of rank B, with orthonormal rows R (B, n + 1), leaves one B × B matrix open, Ṽ = Q R. It
must satisfy Qᵀ Z = Cᵀ and put a 1 at the end of every row: B (K - 1) + B equations for B²
unknowns. A head without a bias, and one sample, is the equation in
`rconv.attack.head.scales_from_softmax`.

DP-SGD clips each sample's gradient, that is, multiplies row b of Z by a factor of its own. These B
factors are further unknowns, which B < K - 1 samples leave determined; they are looked for where
neither the mean nor the sum of whole gradients fits.

What the noise does to features and cotangents is measured: gradients with random errors of its
size are disaggregated again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rconv.attack.estimate import Cotangent, Estimate, Start
from rconv.attack.head import head_report
from rconv.attack.hidden_state import Factors
from rconv.attack.label_inference import label_counts
from rconv.attack.verdict import ACCUMULATED, ARITHMETIC
from rconv.linalg.gauss_newton import levenberg_marquardt
from rconv.linalg.solution import largest_of_noise, relative, root_mean_square
from rconv.model.heads import ConvEntry, Head
from rconv.model.nodes import Network, UnsupportedModelError
from rconv.observe.noise import ARITHMETIC as ROUNDING
from rconv.observe.noise import Observed, largest_entry

ROUNDS = 30
"""Starts for each set of labels. Distinct labels mostly need the first one; B = 8 samples of 10
classes, some of one label, five in the median, and what 30 do not find 100 seldom do."""

TRIES = 120
"""Starts in all."""

SPREADS = (0.1, 0.3, 1.0, 3.0)
"""How unlike the probabilities of the samples are at a start: deviations of their logarithms."""

FLAT = 1e-6
"""Least mean probability of a start."""

REPEATS = 4
"""Random errors whose effect is measured: the root mean square of four is within a factor of two
nineteen times in twenty."""

ROUNDINGS = 4.0
"""Of the gradients' dtype, that their entries carry: an average is summed over all samples and
positions. Chosen on 213 images of random networks, which without it had 1.2 times their expected
error in the median and 13 times at the most; with it, on others, 0.7 times in the median."""

SCATTERED = 0.9
"""Share of the energy beyond the rank of B samples that may lie in one direction, for that energy
to be noise: a further sample, or several steps, leave all of it there."""


class InseparableError(ValueError):
    """The gradient of a batch that is not disaggregated, with the reason.

    Parameters
    ----------
    reason : str
        In words.
    noise : float
        Relative noise that would explain it, of the size of a parameter's entries; 0 for none.
    """

    def __init__(self, reason: str, noise: float = 0.0):
        super().__init__(reason)
        self.noise = noise


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
    clipped : bool
        Whether each sample has a factor; the unknowns x are Q and, then, the logarithms of these.
    """

    basis: Tensor
    sides: Tensor
    logits: Tensor
    gradient: Tensor
    clipped: bool = False

    @staticmethod
    def of(matrix: Tensor, gradient: Tensor, batch: int, clipped: bool = False) -> "HeadEquations":
        """From [V c] and the gradient summed over the samples, both (K, n + 1)."""
        u, s, basis = torch.linalg.svd(gradient, full_matrices=False)
        basis = basis[:batch]
        sides = (u[:, :batch] * s[:batch]).mT
        return HeadEquations(basis, sides, basis @ matrix.mT, gradient, clipped)

    def start(self, cotangent: Tensor, factors: Tensor) -> Tensor:
        """Unknowns for logit gradients (B, K), factors (B,) included, as well as they fit."""
        q = torch.linalg.pinv(cotangent.mT) @ self.sides.mT
        ends = q @ self.basis[:, -1]
        q = (q / torch.where(ends.abs() > FLAT, ends, 1.0)[:, None]).flatten()
        return torch.cat([q, factors.log()]) if self.clipped else q

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Q (B, B) and the factors (B,)."""
        count = len(self.basis)
        q, rest = x[: count**2].reshape(count, count), x[count**2 :]
        return q, rest.exp() if self.clipped else q.new_ones(count)

    def cotangent(self, q: Tensor, labels: Tensor) -> Tensor:
        """Z of Q (B, B), the label's entry as what the others add up to."""
        z = torch.softmax(q @ self.logits, dim=1).scatter(1, labels[:, None], 0.0)
        return z.scatter(1, labels[:, None], -z.sum(dim=1, keepdim=True))

    def residual(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the unknowns leave of the equations, rows of Cᵀ by their size; its derivative."""
        batch, classes = self.sides.shape
        q, factors = self.parts(x)
        z = factors[:, None] * self.cotangent(q, labels)
        p = torch.softmax(q @ self.logits, dim=1)
        # ∂p_b[k] / ∂Q[b, i], and ∂(Qᵀ Z)[j, k] / ∂Q[b, i].
        slope = p[:, None, :] * (self.logits - (p @ self.logits.mT)[:, :, None])
        slope = factors[:, None, None] * slope
        derivative = torch.einsum("bj,bik->jkbi", q, slope)
        derivative.diagonal(dim1=0, dim2=3).add_(z.mT[:, :, None])
        size = self.sides.norm(dim=1)
        ends = torch.einsum("bc,i->bci", torch.eye(batch).to(q), self.basis[:, -1])
        derivative = derivative / size[:, None, None, None]
        rows = ((q.mT @ z - self.sides) / size[:, None]).flatten()
        columns = torch.cat([derivative.reshape(batch * classes, -1), ends.reshape(batch, -1)])
        if self.clipped:
            of_factors = (torch.einsum("bj,bk->jkb", q, z) / size[:, None, None]).flatten(0, 1)
            of_factors = torch.cat([of_factors, of_factors.new_zeros(batch, batch)])
            columns = torch.cat([columns, of_factors], dim=1)
        return torch.cat([rows, q @ self.basis[:, -1] - 1]), columns

    def solve(self, start: Tensor, labels: Tensor, good: float) -> tuple[Tensor, Tensor, Tensor]:
        """Ṽ, (B, n + 1), Z with its factors, (B, K), and these, (B,), from a start.

        Q R carries the rounding of all features into each, where a feature that is zero must not
        pass for one that is not. So Ṽ is what Z makes of the gradient, each feature by itself.
        """
        x, _ = levenberg_marquardt(lambda x: self.residual(x, labels), start, good)
        q, factors = self.parts(x)
        z = factors[:, None] * self.cotangent(q, labels)
        return torch.linalg.lstsq(z.mT, self.gradient).solution, z, factors


@dataclass(frozen=True)
class _Samples:
    """The samples of a batch at its head, in any order.

    Parameters
    ----------
    features : Tensor
        Ṽ, (B, n + 1), the 1 included.
    cotangent : Tensor
        Z, (B, K), logit gradients of the samples' own losses, times their factors.
    factors : Tensor
        (B,), 1 where they are not clipped.
    labels : Tensor
        (B,), int64.
    residual : float
        ‖Zᵀ Ṽ - G‖ / ‖G‖.
    """

    features: Tensor
    cotangent: Tensor
    factors: Tensor
    labels: Tensor
    residual: float


def disaggregate(
    matrix: Tensor, gradient: Tensor, batch: int, noise: float, clipped: bool = False
) -> _Samples | None:
    """The samples behind the summed gradient of a head; None where no labels fit.

    Of those that are found, the ones of the smallest residual, which may be large.

    Parameters
    ----------
    matrix : Tensor
        [V c], (K, n + 1).
    gradient : Tensor
        G, (K, n + 1), of rank B < K, summed over the samples.
    batch : int
        B.
    noise : float
        Relative residual up to which the samples explain it.
    clipped : bool
        Whether each sample has an unknown factor.
    """
    equations, best = HeadEquations.of(matrix, gradient, batch, clipped), None
    spread = noise * float(gradient.norm()) / gradient.numel() ** 0.5
    for labels, start in _starts(equations, gradient[:, -1], spread):
        features, z, factors = equations.solve(start, labels, noise)
        miss = float(relative((z.mT @ features - gradient)[None], gradient[None])[0])
        if best is None or miss < best.residual:
            best = _Samples(features, z, factors, labels, miss)
        if miss <= noise:
            break
    return best


def _starts(
    equations: HeadEquations, bias_gradient: Tensor, noise: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Labels (B,) and starts for them, the likeliest first.

    The mean of the samples' probabilities follows from labels and bias gradient. All are first
    taken for alike, then, and at once where two have one label, for more and more unlike.
    """
    batch, classes = equations.sides.shape
    generator, left = torch.Generator().manual_seed(0), TRIES
    # Of clipped gradients a class counts once at first: no entry shows more than its largest.
    unit = float((-bias_gradient).max().clamp(min=1e-300)) if equations.clipped else 1.0
    counts = label_counts(bias_gradient / unit, batch, noise / unit)
    for i in range(ROUNDS):
        for count in counts[: max(1, left)]:
            labels = torch.repeat_interleave(torch.arange(classes), count.cpu()).to(count.device)
            factor = _common_factor(bias_gradient, count) if equations.clipped else 1.0
            mean = ((bias_gradient / factor + count) / batch).clamp(min=FLAT)
            alike = i == 0 and int(count.max()) == 1
            unlike = torch.randn(batch, classes, generator=generator, dtype=mean.dtype).to(mean)
            p = mean * (unlike * (0.0 if alike else SPREADS[i % len(SPREADS)])).exp()
            p = p / p.sum(dim=1, keepdim=True)
            p = p + mean - p.mean(dim=0)
            left -= 1
            if left < 0:
                return
            z = factor * p.scatter_add(1, labels[:, None], -torch.ones_like(p))
            yield labels, equations.start(z, torch.full_like(mean[:batch], factor))


def _common_factor(bias_gradient: Tensor, count: Tensor) -> float:
    """A factor of all samples: that of equal probabilities, or where a label's would be negative.

    The gradient by the bias (K,) and the label counts (K,).
    """
    present, batch = count > 0, int(count.sum())
    share = batch * (1 - float(present.double().mean()))
    least = float((-bias_gradient[present] / count[present]).max())
    return max(float(bias_gradient[~present].sum()) / share, least, 1e-300)


def required_for_batches(network: Network, batch: int | None) -> None:
    """Refuse batches of B images, or of any number, that the network does not permit.

    Raises
    ------
    UnsupportedModelError
        A network that is not read up to its head, or whose first Linear is neither the last with
        a bias nor a hidden layer with a bias and ReLU or LeakyReLU.
    ValueError
        A batch that is no positive number, or not below the number of classes where the first
        Linear is the last.
    """
    head = network.head
    if isinstance(head, ConvEntry):
        raise UnsupportedModelError(
            f"{head.reason}; a batch is separated by the softmax of the last layer, which must be "
            "reached"
        )
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise ValueError(f"the batch must be a whole number, 1 or more, or None, got {batch!r}")
    pooled = next((stage for stage in network.stages if stage.pool is not None), None)
    if pooled is not None and batch != 1:
        raise UnsupportedModelError(
            f"{pooled.layers[-1][0]}: the positions of maxima are searched for one image at a "
            "time; ask for batches of one image"
        )
    if head.hidden is not None:
        network.refuse_blocks("an attack on a batch through a hidden layer")
        return
    if not (head.last and head.has_bias and head.logits):
        what = "has no bias" if head.last and head.logits else "is not followed by the loss"
        raise UnsupportedModelError(
            f"{head.name}: a batch is told apart by the softmax of the last layer; this Linear "
            f"{what}, and it is no hidden layer with a bias and ReLU or LeakyReLU. Ask for "
            "batches of one image"
        )
    classes = head.weight.shape[0]
    if batch is not None and batch >= classes:
        raise ValueError(
            f"a batch of {batch} with {classes} classes: logit gradients add up to zero, so that "
            f"at most {classes - 1} samples are told apart"
        )


def permits_batches(network: Network) -> bool:
    """Whether two images or more can be separated in a network, as `required_for_batches` says."""
    try:
        required_for_batches(network, 2)
    except (UnsupportedModelError, ValueError):
        return False
    return True


def batch_size(head: Head, clients: Observed) -> int:
    """Samples of one client's batch, from the rank of its head's gradient; at least 1."""
    known = head_gradient(head, with_roundings(clients))
    return max(1, head_rank(*known) if head.hidden is None else Factors.of(*known).rank)


def with_roundings(clients: Observed) -> Observed:
    """The same with the rounding of sums over several samples; see `ROUNDINGS`."""
    relative = ROUNDINGS * max(clients.noise.relative, ROUNDING)
    return replace(clients, noise=replace(clients.noise, relative=relative))


def from_batch(
    head: Head, bias: Tensor, clients: Observed, batch: int, shape: tuple[int, int, int]
) -> Start:
    """Start from the averaged gradient of a head.

    The head is the network's only Linear, and its input a map of the shape (C, H, W); `clients`
    holds one client's gradients as they were sent. Raises InseparableError where the rank is not B,
    or no samples explain the gradient.
    """
    clients = with_roundings(clients)
    gradient, errors = head_gradient(head, clients)
    rank = head_rank(gradient, errors)
    if rank != batch:
        raise _wrong_rank(gradient[:, :-1], rank, batch)
    matrix = torch.cat([head.weight, bias[:, None]], dim=1)
    level = float(errors.norm() / gradient.norm())
    accepted = ACCUMULATED * level + ARITHMETIC
    factor, clipped, samples = _separated(matrix, gradient, batch, accepted)
    # The samples' own cotangents are measured by what was sent, the sum by its share of that.
    largest = largest_entry(clients.gradients)
    equations = HeadEquations.of(matrix, factor * gradient, batch, clipped)
    maps = _measured(equations, matrix, factor * errors, samples, largest, shape)
    every = torch.ones(batch, dtype=torch.bool, device=bias.device)
    residual = torch.full_like(every, samples.residual, dtype=torch.float64)
    value = samples.features[:, :-1]
    report = head_report(head.name, value, len(bias), residual, every)
    return Start(
        clients.divided(largest / factor),
        torch.zeros(1, dtype=torch.int64, device=bias.device),
        *maps,
        report,
        head.name,
        samples.cotangent / largest,
        labels=samples.labels,
    )


def _separated(
    matrix: Tensor, gradient: Tensor, batch: int, accepted: float
) -> tuple[int, bool, _Samples]:
    """The factor that makes the gradient a sum, whether samples are clipped, and the samples.

    The gradient is a mean, or a sum; or a sum of clipped ones, where equations are left over.
    """
    least, clipping = None, [(1, True)] if batch < len(matrix) - 1 else []
    for factor, clipped in [(batch, False), (1, False), *clipping]:
        samples = disaggregate(matrix, factor * gradient, batch, accepted, clipped)
        if samples is not None and samples.residual <= accepted:
            return factor, clipped, samples
        if samples is not None and (least is None or samples.residual < least):
            least = samples.residual
    miss = "no labels fit" if least is None else f"residual {least:.0e}"
    raise InseparableError(
        f"no {batch} samples of cross-entropy, averaged, summed or clipped, were found to "
        f"explain the head's gradient ({miss}): labels that repeat, a network that is sure of "
        "its classes, another loss, or noise"
    )


def _wrong_rank(gradient: Tensor, rank: int, batch: int) -> InseparableError:
    """Of the gradient (K, n) of a weight: the reason, and the noise that could be another."""
    why = "there are more, or there is noise that was not declared"
    if rank < batch:
        why = "two of them are alike, or their differences drown in the noise"
    energy, noise = torch.linalg.svdvals(gradient).square(), 0.0
    beyond, (k, n) = energy[batch:], gradient.shape
    if rank > batch and len(beyond) and beyond[0] <= SCATTERED * beyond.sum():
        share = (k - batch) * (n - batch) / (k * n)
        noise = float((beyond.sum() / energy.sum() / share).sqrt())
    return InseparableError(
        f"the head's gradient has rank {rank}, that of {batch} samples has {batch}: {why}", noise
    )


def head_gradient(head: Head, clients: Observed) -> tuple[Tensor, Tensor]:
    """[∂ℓ/∂V, ∂ℓ/∂c] and the standard deviation of every entry's error, (K, n + 1) each."""
    parts, errors = [], []
    for name in head.parameters:
        own = clients.gradients[name][0]
        parts.append(own.reshape(len(own), -1))
        errors.append(clients.every_std(name)[0].reshape(parts[-1].shape))
    return torch.cat(parts, dim=1), torch.cat(errors, dim=1)


def head_rank(gradient: Tensor, errors: Tensor) -> int:
    """Number of samples: singular values of the gradient above those of its errors (K, n + 1)."""
    values = torch.linalg.svdvals(gradient)
    floor = ACCUMULATED * float(largest_of_noise(errors, *gradient.shape))
    return int((values > floor + ARITHMETIC * values[0]).sum())


def _measured(
    known: HeadEquations,
    matrix: Tensor,
    errors: Tensor,
    samples: _Samples,
    unit: Tensor,
    shape: tuple[int, int, int],
) -> tuple[Estimate, Cotangent]:
    """The samples as maps, with what random errors of the gradient make of them."""
    weight, batch = matrix[:, :-1], len(samples.labels)
    generator = torch.Generator().manual_seed(0)
    value, back = samples.features[:, :-1], samples.cotangent @ weight
    shifts, turns = [], []
    for _ in range(REPEATS):
        e = torch.randn(errors.shape, generator=generator, dtype=errors.dtype).to(errors)
        shifted = known.gradient + e * errors
        equations = HeadEquations.of(matrix, shifted, batch, known.clipped)
        start = equations.start(samples.cotangent, samples.factors)
        features, z, _ = equations.solve(start, samples.labels, samples.residual)
        shifts.append(features[:, :-1] - value)
        turns.append(z @ weight - back)
    channels = torch.stack(shifts).reshape(REPEATS, batch, shape[0], -1)
    error = channels.square().mean(dim=(0, 3)).sqrt()
    turn = torch.stack(turns).square().mean(dim=(0, 2)).sqrt()
    size = root_mean_square(back)
    relative = (turn / torch.where(size > 0, size, 1.0)).clamp(max=1.0)
    estimate = Estimate.whole(value.reshape(batch, *shape), error)
    return estimate, Cotangent((back / unit).reshape(batch, *shape), relative)
