"""The verdict on every layer of a model, and on the whole."""

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn

from rconv.attack.entry_points import entry_points
from rconv.audit.generic import RandomProblem, random_maps, random_problems
from rconv.model.heads import ConvEntry
from rconv.model.nodes import Network

GRADIENT = "leaks by gradient constraints"
WEIGHT = "leaks by weight constraints"
HYBRID = "needs hybrid"
SPAN = "leaks by span constraints"
EMBEDDING = "read off a position embedding"
NOT_UNIQUE = "does not leak uniquely"
TOO_LARGE = "too large to tell"


@dataclass(frozen=True)
class LayerAudit:
    """What the equations of one map can determine, for generic gradients.

    Parameters
    ----------
    name : str
        The layer; several convolutions that take one map are joined by "and".
    unknowns : int
        Entries of its input, C·H·W.
    counted : int
        Gradient equations as the paper counts them, C·D·kh·kw.
    gradient_rank : int
        Rank of the gradient constraints for a random Ō, which is zero where a ReLU is silent.
    weight_rows : int
        Weight equations that are available: all, or the active ones of a ReLU; and entries that
        a sum or a concatenation above tells.
    hybrid_rank : int or None
        Rank of all together; None where it is too large to compute exactly, and not full.
    verdict : str
        What follows.
    """

    name: str
    unknowns: int
    counted: int
    gradient_rank: int
    weight_rows: int
    hybrid_rank: int | None
    verdict: str

    @property
    def open(self) -> int | None:
        """Directions that no equation tells; None where the rank is too large to compute."""
        return None if self.hybrid_rank is None else self.unknowns - self.hybrid_rank


def audit(
    model: nn.Module, input_shape: tuple[int, int, int], *, active: float = 0.5, seed: int = 0
) -> list[LayerAudit]:
    """Judge every layer of a model, in the order of the attack: head first.

    A model that is not read up to its first Linear is judged from where it is entered: span
    constraints are taken to hold, which they do where the derivative by the convolution's output
    has full rank.

    Parameters
    ----------
    model : Module
        As the attack takes it.
    input_shape : tuple of int
        (C, H, W) of one image.
    active : float
        Share of ReLU outputs that are taken to be positive, in (0, 1].
    seed : int
        Of the random Ō and of the random active outputs.

    Returns
    -------
    list of LayerAudit
        One for the head, or for what is entered instead; then one for each map that convolutions
        take.

    Raises
    ------
    UnsupportedModelError
        A layer that the attack cannot pass.
    ValueError
        `active` out of range.
    """
    check_share(active)
    return audit_network(entry_points(model, input_shape)[0].network, active=active, seed=seed)


def audit_network(network: Network, *, active: float = 0.5, seed: int = 0) -> list[LayerAudit]:
    """`audit` of a model as it was read.

    Parameters
    ----------
    network : Network
        The model.
    active, seed
        As `audit` takes them.

    Returns
    -------
    list of LayerAudit
        Head first.
    """
    met = random_problems(network, *drawn(network, active, seed))
    return [_judge_top(network), *map(judge, met)]


def drawn(network: Network, active: float, seed: int) -> tuple[list[Tensor], Tensor]:
    """Random maps, and a random derivative by the head's input, as `random_problems` takes them."""
    generator = torch.Generator().manual_seed(seed)
    maps = random_maps(network, active, generator)
    cotangent = torch.randn(maps[-1].shape, generator=generator, dtype=torch.float64)
    return maps, cotangent.to(maps[-1])


def check_share(active: float) -> None:
    """Refuse, with a ValueError, what is no share of active outputs."""
    if not isinstance(active, Real) or not 0 < active <= 1:
        raise ValueError(f"active must be a share in (0, 1], got {active!r}")


def overall(layers: list[LayerAudit]) -> str:
    """The verdict on the whole model: that of its weakest link."""
    verdicts = {layer.verdict for layer in layers}
    return next((v for v in (NOT_UNIQUE, TOO_LARGE, HYBRID) if v in verdicts), "leaks")


def judge(met: RandomProblem) -> LayerAudit:
    """What the attack's equations determine of one map."""
    report, n = met.attacked(), met.unknowns
    rank, kind = int(report.rank), report.constraints[0]
    alone = kind == "gradient" and met.estimate is None
    gradient = rank if alone else met.gradient_rank()
    hybrid: int | None = rank
    if rank < n:
        verdict = NOT_UNIQUE
        if not met.layers[0].plan.affordable and met.weight_rows:  # or LSMR did not converge
            hybrid = None
            verdict = TOO_LARGE if gradient + met.weight_rows >= n else NOT_UNIQUE
    elif kind == "weight" or met.known:
        verdict = WEIGHT
    else:
        verdict = GRADIENT if gradient == n else HYBRID
    counted = int(report.gradient_rows) or met.stages[0].geometry.gradient_rows
    return LayerAudit(met.name, n, counted, gradient, met.weight_rows, hybrid, verdict)


def _judge_top(network: Network) -> LayerAudit:
    """The head, or what the network is entered by."""
    head = network.head
    if not isinstance(head, ConvEntry):
        k, n = head.weight.shape
        return LayerAudit(head.name, n, k * n, n, 0, n, GRADIENT)
    if head.embedding is not None:
        n = head.embedding.index.numel()
        return LayerAudit(head.embedding.name, n, n, n, 0, n, EMBEDDING)
    g = network.nodes[network.entered].does.geometry
    return LayerAudit(head.name, g.unknowns, g.gradient_rows, g.unknowns, 0, g.unknowns, SPAN)
