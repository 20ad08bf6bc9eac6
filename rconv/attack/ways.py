"""The ways into a model: through its head, or by a convolution's own gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import isqrt

import torch
from torch import nn

from rconv.attack.from_spans import span_ranks
from rconv.attack.plan import LayerPlan
from rconv.equations.spans import Spans
from rconv.linalg.dense import MAX_UNKNOWNS
from rconv.model.entrances import entrances
from rconv.model.nodes import Network, UnsupportedModelError
from rconv.model.read import read
from rconv.model.wrappers import unwrapped
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients

NOT_PRIVATE = "Not supported does not mean private."

SUPPORTED = (
    "use Conv2d without groups, BatchNorm2d in evaluation, invertible activations or ReLU, sums, "
    "concatenations of channels, Flatten and Linear"
)
"""The remedy where a refusal has none of its own."""

CHUNK_BYTES = 2**27  # of the gradient matrices that are solved at a time


@dataclass(frozen=True)
class Way:
    """One way into a model.

    Parameters
    ----------
    network : Network
        The model, as far as it is read.
    spans : Spans or None
        Of the convolution that is entered by its own gradients; None for any other way.
    plans : tuple of LayerPlan
        The equations of each convolution.
    """

    network: Network
    spans: Spans | None = None
    plans: tuple[LayerPlan, ...] = ()

    @property
    def chunk(self) -> int:
        """Images at a time, so that their gradient matrices stay within `CHUNK_BYTES`."""
        shapes = [stage.geometry for stage in self.network.stages]
        sizes = [8 * g.output[0] * g.offsets * g.pixels for g in shapes]
        return max(1, CHUNK_BYTES // max(sizes, default=CHUNK_BYTES))


def ways_into(model: nn.Module, input_shape: Sequence[int]) -> list[Way]:
    """Ways into a model.

    Parameters
    ----------
    model : Module
        The model.
    input_shape : sequence of int
        (C, H, W) of one image.

    Returns
    -------
    list of Way
        One where the model is read. Else one for each convolution whose own gradients determine
        its input, provided that Ō has full rank; the topmost first.

    Raises
    ------
    UnsupportedModelError
        If there is none; its `reasons` have that of each convolution.
    """
    model = unwrapped(model)
    try:
        return [Way(read(model, input_shape))]
    except UnsupportedModelError as error:
        reason = error
    most = isqrt(MAX_UNKNOWNS)
    try:
        networks, refusals = entrances(model, input_shape, str(reason), most)
    except UnsupportedModelError as error:
        raise final_refusal([reason, error]) from None
    ways = []
    for network in networks:
        spans = Spans(network.nodes[network.entered].does.geometry, network.head.reach)
        refusal = _refusal(network, spans)
        if refusal is None:
            ways.append(Way(network, spans))
        else:
            refusals.insert(0, UnsupportedModelError(f"{network.head.name}: {refusal}"))
    if not ways:
        raise final_refusal([reason, *refusals])
    return ways


def final_refusal(refusals: Sequence[UnsupportedModelError]) -> UnsupportedModelError:
    """One sentence that names the first layer that cannot be passed, and all reasons beside it.

    Parameters
    ----------
    refusals : sequence of UnsupportedModelError
        Why the model is not read up to its first Linear; then why its convolutions cannot be
        solved from their own gradients.
    """
    reasons = tuple(dict.fromkeys(chain.from_iterable(own.reasons for own in refusals)))
    first = str(refusals[0])
    remedy = "" if "; " in first else f"; {SUPPORTED}"
    return UnsupportedModelError(f"{first}{remedy}. {NOT_PRIVATE}", reasons)


def _refusal(network: Network, spans: Spans) -> str | None:
    """Why span constraints cannot determine the input of a convolution, whatever the image."""
    stage, m = network.nodes[network.entered].does, spans.combinations
    filters = len(stage.weight) if stage.scale is None else int((stage.scale != 0).sum())
    if m == 0:
        return "nothing of its output reaches the result"
    if filters < m:
        return f"{filters} filters give its gradient a rank of {filters}, and {m} is needed"
    if filters < len(stage.weight) and network.entered < len(network.nodes) - 1:
        return "a BatchNorm behind it has weights that are zero"
    if m * m > MAX_UNKNOWNS:
        return f"a dense system of {m * m} unknowns, more than {MAX_UNKNOWNS}"
    dimension = spans.generic_dimension()
    if dimension is None:
        return f"its {m} windows are not independent, they have {spans.row_length} entries each"
    if dimension > 1:
        return f"its windows overlap too little: they leave a family of dimension {dimension}"
    return None


def best_way(ways: list[Way], gradients: Gradients, noise: Noise) -> tuple[Way, tuple[str, ...]]:
    """The topmost way that the most images can take.

    Parameters
    ----------
    ways : list of Way
        From the top down.
    gradients : dict of str to Tensor
        Name → (N, *parameter shape).
    noise : Noise
        What is known of their errors.

    Returns
    -------
    Way
    tuple of str
        Of each of the N images, the rank of every convolution that was tried and the rank that it
        needs, if the way is closed to this image; "" if it is open.
    """
    spans = [way.spans for way in ways]
    if None in spans:
        return ways[0], ("",) * len(next(iter(gradients.values())))
    ranks = torch.stack([span_ranks(way.network, way.spans, gradients, noise) for way in ways])
    needed = torch.tensor([own.combinations for own in spans])[:, None]
    best = int((ranks == needed).sum(dim=1).argmax())
    names = [way.network.head.name for way in ways]
    reasons = []
    for own in ranks.T.tolist():
        each = zip(names, own, needed[:, 0].tolist(), strict=True)
        tried = [f"{name} has rank {rank}, and {need} is needed" for name, rank, need in each]
        closed = own[best] < needed[best] and any(own)
        reasons.append("; ".join(tried) if closed else "")
    return ways[best], tuple(reasons)
