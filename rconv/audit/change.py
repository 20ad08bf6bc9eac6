"""What an audit finds in all: layers, the filters that they need, and the cheapest change."""

from dataclasses import dataclass

from torch import nn

from rconv.attack.entry_points import entry_points
from rconv.audit.batches import BatchLimit, limits
from rconv.audit.generic import random_problems
from rconv.audit.layers import (
    NOT_UNIQUE,
    LayerAudit,
    audit_network,
    check_share,
    drawn,
    judge,
    overall,
)
from rconv.audit.widths import Width, met_at, parameters, width_of, with_filters
from rconv.model.heads import ConvEntry
from rconv.model.nodes import Network, UnsupportedModelError


@dataclass(frozen=True)
class Change:
    """Fewer filters in one convolution, with which a layer no longer determines its input.

    Parameters
    ----------
    width : Width
        What is changed.
    filters : int
        To how many filters: one less than are needed.
    parameters : int
        Weights and biases of convolutions and head that go.
    layer : LayerAudit
        The audit of the layer in the changed model.
    """

    width: Width
    filters: int
    parameters: int
    layer: LayerAudit


@dataclass(frozen=True)
class Findings:
    """What the audit says of a model.

    Parameters
    ----------
    layers : list of LayerAudit
        Head first.
    widths : list of Width
        One per convolution, in the order of `layers`.
    change : Change or None
        The cheapest that makes the model one that does not leak uniquely; None where it is one
        already, or no change of one convolution's filters does.
    batches : list of BatchLimit
        Head first; none where the attack takes no batches of the model.
    """

    layers: list[LayerAudit]
    widths: list[Width]
    change: Change | None
    batches: list[BatchLimit]

    @property
    def verdict(self) -> str:
        """`overall` of the layers."""
        return overall(self.layers)


def examine(
    model: nn.Module, input_shape: tuple[int, int, int], *, active: float = 0.5, seed: int = 0
) -> Findings:
    """Judge a model, and look for the filters that its layers need and for the cheapest change.

    Parameters
    ----------
    model, input_shape, active, seed
        As `rconv.audit.audit` takes them.

    Returns
    -------
    Findings
        Ranks alone: what is short of rank may still be closed by signs, or shown by a prior. No
        widths where the model is entered below its first Linear.

    Raises
    ------
    UnsupportedModelError
        A layer that the attack cannot pass.
    ValueError
        `active` out of range.
    """
    check_share(active)
    network = entry_points(model, input_shape)[0].network
    options = {"active": active, "seed": seed}
    layers = audit_network(network, **options)
    if isinstance(network.head, ConvEntry):
        return Findings(layers, [], None, [])
    found = [
        (i, width_of(network, met, i, **options))
        for met in random_problems(network, *drawn(network, active, seed))
        for i, _ in network.fed_by(met.node)
    ]
    change = None if overall(layers) == NOT_UNIQUE else _cheapest(network, found, **options)
    try:
        batches = limits(network, **options)
    except UnsupportedModelError:
        batches = []
    return Findings(layers, [width for _, width in found], change, batches)


def _cheapest(
    network: Network, found: list[tuple[int, Width]], active: float, seed: int
) -> Change | None:
    """The change that takes the fewest filters away, then the fewest parameters.

    Each is confirmed by an audit of the changed network, with other random data.
    """
    candidates = []
    for node, width in found:
        if width.needed is not None and 1 < width.needed <= width.filters:
            changed = with_filters(network, node, width.needed - 1, seed)
            filters = (width.filters - width.needed + 1) * (1 + len(width.tied))
            cost = filters, parameters(network) - parameters(changed)
            candidates.append((*cost, node, width, changed))
    for _, less, node, width, changed in sorted(candidates, key=lambda own: own[:3]):
        layer = judge(met_at(changed, network.nodes[node].inputs[0], active, seed + 1))
        if layer.verdict == NOT_UNIQUE:
            return Change(width, width.needed - 1, less, layer)
    return None
