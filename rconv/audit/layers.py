"""The verdict on every layer of a model, and on the whole."""

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn

from rconv.audit.generic import Meeting, meetings, random_maps
from rconv.model.ends import Entry, Head
from rconv.model.nodes import Network, UnsupportedModelError
from rconv.model.read import read

GRADIENT = "leaks by gradient constraints"
WEIGHT = "leaks by weight constraints"
HYBRID = "needs hybrid"
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
        Rank of all together; None where it is too large to compute.
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
        One for the head, then one for each map that convolutions take.

    Raises
    ------
    UnsupportedModelError
        A layer that the attack cannot pass.
    ValueError
        `active` out of range.
    """
    check_share(active)
    return audit_network(read(model, input_shape), active=active, seed=seed)


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
    if isinstance(network.head, Entry):
        raise UnsupportedModelError(f"{network.head.reason}; the audit starts at the first Linear")
    met = meetings(network, *drawn(network, active, seed))
    return [_judge_head(network.head), *map(judge, met)]


def drawn(network: Network, active: float, seed: int) -> tuple[list[Tensor], Tensor]:
    """Random maps, and a random derivative by the head's input, as `meetings` takes them."""
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


def judge(met: Meeting) -> LayerAudit:
    """What the attack's equations determine of one map."""
    report, n = met.solve(), met.unknowns
    rank, kind = int(report.rank), report.constraints[0]
    alone = kind == "gradient" and met.told is None
    gradient = rank if alone else met.gradient_rank()
    hybrid: int | None = rank
    if rank < n:
        verdict = NOT_UNIQUE
        if not met.plans[0].affordable and met.weight_rows:  # which the attack leaves out then
            hybrid = None
            verdict = TOO_LARGE if gradient + met.weight_rows >= n else NOT_UNIQUE
    elif kind == "weight" or met.told_whole:
        verdict = WEIGHT
    else:
        verdict = GRADIENT if gradient == n else HYBRID
    counted = int(report.gradient_rows) or met.stages[0].geometry.gradient_rows
    return LayerAudit(met.name, n, counted, gradient, met.weight_rows, hybrid, verdict)


def _judge_head(head: Head) -> LayerAudit:
    k, n = head.weight.shape
    return LayerAudit(head.name, n, k * n, n, 0, n, GRADIENT)
