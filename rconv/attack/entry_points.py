"""Where the backward pass may enter a model, and what it starts from there.

Through the head, for one image or for a batch; at a position embedding; or at a convolution, by its
own gradients.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import isqrt

import torch
from torch import Tensor, nn

from rconv.attack.batch_head import from_batch, with_roundings
from rconv.attack.estimate import Cotangent, Start
from rconv.attack.head import from_head
from rconv.attack.hidden_batch import from_hidden
from rconv.attack.plan import LayerPlan
from rconv.attack.report import LayerReport
from rconv.attack.span_entry import from_spans, span_ranks
from rconv.equations.spans import Spans
from rconv.linalg.dense import MAX_UNKNOWNS
from rconv.model.blocks import Block, Fused, with_blocks
from rconv.model.entry_convolutions import entry_networks
from rconv.model.heads import ConvEntry, Head
from rconv.model.nodes import Network, UnsupportedModelError
from rconv.model.operations import Operation
from rconv.model.read import check_input_shape, read_steps, steps_of
from rconv.model.wrappers import unwrapped
from rconv.observe.noise import Observed

NOT_PRIVATE = "Not supported does not mean private."

SUPPORTED = (
    "use Conv2d, normalisation, activations, average or max pooling, sums, "
    "concatenations of channels, Flatten and Linear"
)
"""The remedy where a refusal has none of its own."""

CHUNK_BYTES = 2**27  # of the gradient matrices that are solved at a time


@dataclass(frozen=True)
class EntryPoint:
    """Where the backward pass may enter a model.

    Parameters
    ----------
    network : Network
        The model, as far as it is read.
    spans : Spans or None
        Of the convolution that is entered by its own gradients; else None.
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

    def start(
        self,
        model: nn.Module,
        clients: Observed,
        batch: int = 1,
        announce: Callable[[str], None] | None = None,
    ) -> Start:
        """What the gradients determine of the network's last node.

        Takes the shared model, clients as they were sent (one where the batch is larger than 1),
        B, the samples of each, and what is called with the progress in words.
        """
        network, head = self.network, self.network.head
        if self.spans is not None:
            return from_spans(network, self.spans, clients)
        if not isinstance(head, Head):
            return from_embedding(network, clients)
        shape = network.nodes[-1].shape
        if batch == 1:
            return from_head(head, clients, shape)
        bias = model.get_parameter(f"{head.name}.bias").detach()
        if head.hidden is not None:
            return from_hidden(head, bias, with_roundings(clients), batch, shape, announce)
        return from_batch(head, bias, clients, batch, shape)

    def lacking(self, observed: Collection[str]) -> str | None:
        """A gradient that is needed here and is missing; None where all are there."""
        head = self.network.head
        needed = head.parameters
        if isinstance(head, Head) and not head.has_bias:
            needed = needed[:1]
        elif isinstance(head, ConvEntry) and head.embedding is not None:
            needed = [head.embedding.name, f"{head.name}.weight", f"{head.logits}.bias"]
        elif isinstance(head, ConvEntry):
            entered = self.network.nodes[self.network.entered].does
            if isinstance(entered, Block):  # the gradients of its norm are means of the cotangent
                norm, _ = entered.layers[0]
                needed = [*needed, f"{norm}.weight", f"{norm}.bias"]
        return next((name for name in needed if name not in observed), None)


def entry_points(model: nn.Module, input_shape: Sequence[int]) -> list[EntryPoint]:
    """Entry points of a model for images of a shape (C, H, W).

    One where the model is read. Else one for each convolution whose own gradients determine its
    input, provided that Ō has full rank; the topmost first.

    Raises
    ------
    UnsupportedModelError
        If there is none; its `reasons` have that of each convolution.
    """
    model, refused, others = unwrapped(model), [], []
    try:
        shape = check_input_shape(input_shape)
        steps = steps_of(model, shape)
    except UnsupportedModelError as error:
        raise final_refusal([error]) from None
    joined = with_blocks(steps)
    for each in [steps, joined] if any(type(step.what) is Fused for step in joined) else [steps]:
        try:
            return [EntryPoint(read_steps(model, each, shape))]
        except UnsupportedModelError as error:
            refused.insert(0, error)
        found, closed = _spanned(model, each, shape, str(refused[0]))
        if found:
            return found
        others += closed
    raise final_refusal([*refused, *others])


def _spanned(
    model: nn.Module, steps: list[Operation], shape: tuple[int, int, int], reason: str
) -> tuple[list[EntryPoint], list[UnsupportedModelError]]:
    """Entry points at convolutions, and why others are none; see `entry_networks`."""
    most, found = isqrt(MAX_UNKNOWNS), []
    try:
        networks, refusals = entry_networks(model, steps, shape, reason, most)
    except UnsupportedModelError as error:
        return [], [error]
    for network in networks:
        spans = Spans(network.nodes[network.entered].does.geometry, network.head.subspace)
        refusal = _refusal(network, spans)
        if refusal is None:
            found.append(EntryPoint(network, spans))
        else:
            refusals.insert(0, UnsupportedModelError(f"{network.head.name}: {refusal}"))
    return found, refusals


def final_refusal(refusals: Sequence[UnsupportedModelError]) -> UnsupportedModelError:
    """One sentence that names the first layer that cannot be passed, and all reasons beside it.

    The refusals say why the model is not read up to its first Linear; then why its convolutions
    cannot be solved from their own gradients.
    """
    reasons = tuple(dict.fromkeys(chain.from_iterable(refusal.reasons for refusal in refusals)))
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


def best_entry_point(
    points: list[EntryPoint], clients: Observed
) -> tuple[EntryPoint, tuple[str, ...]]:
    """The topmost entry point that the most clients' gradients permit, and why others are closed.

    Of each of the N clients, the rank of every convolution that was tried and the rank that it
    needs, if it cannot be entered there; else "".
    """
    spans = [point.spans for point in points]
    if None in spans:
        return points[0], ("",) * len(clients)
    ranks = torch.stack([span_ranks(point.network, point.spans, clients) for point in points])
    needed = torch.tensor([span.combinations for span in spans])[:, None]
    best = int((ranks == needed).sum(dim=1).argmax())
    names = [point.network.head.name for point in points]
    reasons = []
    for own in ranks.T.tolist():
        each = zip(names, own, needed[:, 0].tolist(), strict=True)
        tried = [f"{name} has rank {rank}, and {need} is needed" for name, rank, need in each]
        closed = own[best] < needed[best] and any(own)
        reasons.append("; ".join(tried) if closed else "")
    return points[best], tuple(reasons)


def observed_entry_points(points: list[EntryPoint], observed: Collection[str]) -> list[EntryPoint]:
    """The entry points whose gradients are there.

    A missing gradient, as of a frozen parameter, is no gradient of zero: its equations have the
    weight 0, and the weight constraints of known outputs are what is left. Nothing replaces the
    gradients at which the attack enters the network.

    Raises
    ------
    UnsupportedModelError
        If there is none, naming a gradient that is missing; or if a layer is to be solved by its
        gradient constraints, which are missing.
    """
    lacking = [point.lacking(observed) for point in points]
    left = [point for point, name in zip(points, lacking, strict=True) if name is None]
    if not left:
        raise UnsupportedModelError(
            f"no gradient for {lacking[0]}: the attack starts there; it must be trained and sent"
        )
    for plan in left[0].plans:
        name = f"{plan.stage.name}.weight"
        if plan.kind == "gradient" and name not in observed:
            raise UnsupportedModelError(
                f"no gradient for {name}: its gradient constraints are missing; use "
                "constraints='auto'"
            )
    return left


def from_embedding(network: Network, clients: Observed) -> Start:
    """Start from a position embedding, which is added to the output of a convolution.

    Its gradient is the derivative Ō of the loss by the output, entry for entry; the output itself
    is not known. The gradient of the convolution's bias, the sum of Ō over the positions, checks
    it. The network ends at the convolution; clients are as they were sent.
    """
    observed, entry, stage = clients.normalised(), network.head, network.stages[-1]
    name, index = entry.embedding.name, entry.embedding.index
    value = observed.gradients[name].flatten(1)[:, index.flatten()].reshape(-1, *index.shape)
    sums, flat = value.sum(dim=(2, 3)), value.flatten(1)
    # Measured by the rounding of the sum and by that of its terms, which may cancel.
    size = torch.hypot(sums.norm(dim=1), flat.norm(dim=1))
    difference = observed.gradients.get(f"{stage.name}.bias", sums) - sums
    residual = difference.norm(dim=1) / torch.where(size > 0, size, 1.0)
    known, rows = (flat != 0).any(dim=1), flat.shape[1]
    condition = torch.where(known, 1.0, torch.inf).to(residual)
    report = LayerReport.plain(
        name, "embedding", rows, rows, known * rows, condition, residual, flat
    )
    logits, every = observed.gradients[f"{entry.logits}.bias"], torch.arange(len(flat))
    cotangent = Cotangent(value, observed.relative_std(name))
    return Start(observed, every.to(flat.device), None, cotangent, report, entry.logits, logits)


def checked(
    network: Network, start: Start, reports: tuple[LayerReport, ...]
) -> tuple[LayerReport, ...]:
    """The reports, the first with how far the gradients at a position embedding are consistent.

    There are more of them than unknowns: the convolution's weight gradient is the product of Ō and
    the windows of its input, its bias gradient the sum of Ō. Undeclared noise shows here at its own
    size, also where the image is so sensitive to it that it explains the gradients all the same.
    The residual is relative to what errors of one relative size would leave.
    """
    residual = reports[0].residual.maximum(_contradiction(network, start, reports[1]))
    return (replace(reports[0], residual=residual), *reports[1:])


def _contradiction(network: Network, start: Start, solved: LayerReport) -> Tensor:
    """(N,): what the windows of the input leave of the weight gradient; 0 if the rank is short."""
    stage, g = network.stages[-1], network.stages[-1].geometry
    output, given = (
        start.cotangent.value.flatten(2),
        start.observed.gradients[f"{stage.name}.weight"].flatten(2),
    )
    # Where the input is determined, both ends of its interval are its value.
    known = torch.where(solved.low == solved.high, solved.low, 0.0).reshape(-1, *g.input)
    windows = nn.functional.unfold(known, g.kernel, g.dilation, g.padding, g.stride)
    sizes = [own.flatten(1).norm(dim=1) for own in (given, output, windows)]
    size = torch.hypot(sizes[0], sizes[1] * sizes[2] / g.positions**0.5)
    left = (given - output @ windows.mT).flatten(1).norm(dim=1)
    contradiction = left / torch.where(size > 0, size, 1.0)
    determined = solved.rank == solved.unknowns
    return torch.where(determined, contradiction, 0.0)
