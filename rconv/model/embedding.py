"""Position embeddings: found in the steps of a model by what moves where, not by their names.

A learned term that is added to a convolution's output, each entry at one place, has the derivative
of the loss by that output for its gradient (APRIL, Lu et al., 2022, arXiv 2112.14087). On the way
to the sum the output may be reshaped, permuted, and joined by class tokens. No list of such steps
is needed: they are run on random numbers, and what moves these about unchanged, is seen.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from rconv.model.agreement import refuse_other_values
from rconv.model.build import build
from rconv.model.functions import SUMS
from rconv.model.geometry import Stage
from rconv.model.graph import before, graph_of, sees, values_of
from rconv.model.heads import ConvEntry, Embedding
from rconv.model.nodes import Network, UnsupportedModelError, solve_order
from rconv.model.operations import Operation, leading_to, logits_of, refuse_bypasses


class _NoEmbeddingError(UnsupportedModelError):
    """Nothing in the model resembles a position embedding."""


def embedding_of(model: nn.Module, shape: tuple[int, int, int]) -> tuple[str, Embedding]:
    """Find the convolution whose output a learned position embedding is added to.

    Returns the convolution's name, and which entry of which parameter is added to which output.
    Raises UnsupportedModelError where there is none, where the added term is fixed or lacks an
    entry for each position, and where either of the two bypasses the sum.
    """
    nodes = graph_of(model)
    finder = _Finder(model, nodes, shape)
    reasons = []
    sums = [node for node in nodes if node.target in SUMS and len(node.args) == 2]
    for total in (node for node in sums if not node.kwargs):
        for tokens, added in (total.args, total.args[::-1]):
            try:
                found = finder.embedding_in(total, tokens, added)
            except UnsupportedModelError as error:
                reasons.append(error)
                continue
            if found is not None:
                return found
    near = [reason for reason in reasons if not isinstance(reason, _NoEmbeddingError)]
    if near or reasons:
        raise (near or reasons)[0]
    raise _NoEmbeddingError("no position embedding is added to a convolution's output")


class _Finder:
    """Runs parts of a model, with random numbers for some of its maps or parameters."""

    def __init__(self, model: nn.Module, nodes: list[fx.Node], shape: tuple[int, int, int]):
        self.model, self.nodes = model, nodes
        self.image = next(node for node in nodes if node.op == "placeholder")
        example = next(model.parameters(), torch.empty(0))
        self.images = torch.zeros(1, *shape, dtype=example.dtype, device=example.device)
        self.generator = torch.Generator().manual_seed(0)

    def embedding_in(
        self, total: fx.Node, tokens: object, added: object
    ) -> tuple[str, Embedding] | None:
        """What a sum of the two shows; None where it is not one of an output and something else."""
        if not isinstance(tokens, fx.Node) or not isinstance(added, fx.Node):
            return None
        convolution = self._convolution(tokens)
        if convolution is None or sees(added, self.image):
            return None
        line = total.meta["line"]
        moved = (
            None if self._meets_weights(convolution, tokens) else self._moved(tokens, convolution)
        )
        output = None if moved is None else self._run(convolution)
        counts = None if moved is None else moved[moved >= 0].bincount(minlength=output.numel())
        if counts is None or (counts != 1).any():
            raise _NoEmbeddingError(
                f"{convolution.target}: between it and what is added to its output stands more "
                f"than steps that move its entries about; add the embedding directly ({line})"
            )
        parameters = self._parameters(added)
        if not parameters:
            raise UnsupportedModelError(
                f"{convolution.target}: what is added to its output is fixed, so that no gradient "
                f"is the derivative by the output; train the position embedding ({line})"
            )
        shape = torch.broadcast_tensors(moved, self._run(added))[0].shape
        for name in parameters:
            index = self._own_entries(name, added, moved, shape)
            if index is None:
                continue
            self._refuse_bypasses(total, convolution, name)
            return convolution.target, Embedding(name, index.reshape(output.shape[1:]))
        raise UnsupportedModelError(
            f"{' and '.join(parameters)}: is not added entry by entry to the outputs of "
            f"{convolution.target}, so that its gradient is not the derivative by each; use one "
            f"entry for each output ({line})"
        )

    def _own_entries(
        self, name: str, added: fx.Node, moved: Tensor, shape: torch.Size
    ) -> Tensor | None:
        """Of each output, the one entry of a parameter that is added to it and to nothing else."""
        entries = self._moved(added, name)
        if entries is None:
            return None
        moved, entries = (t.expand(shape).flatten() for t in (moved, entries))
        index = torch.full((int(moved.max()) + 1,), -1, device=moved.device)
        index[moved[moved >= 0]] = entries[moved >= 0]
        once = entries[entries >= 0].bincount(minlength=1) == 1
        if (index < 0).any() or not once[index].all():
            return None
        return index

    def _refuse_bypasses(self, total: fx.Node, convolution: fx.Node, name: str) -> None:
        """Refuse an output or a parameter that reaches the loss other than through their sum."""
        around = before(self.nodes, self.nodes[-1], without=total)
        for what, users in ((convolution.target, [convolution]), (name, self._users(name, around))):
            if not set(users).isdisjoint(around):
                raise UnsupportedModelError(
                    f"{what}: reaches the loss by a path around the sum with the position "
                    "embedding, so that its gradient is not this sum's alone; use it there only "
                    f"({total.meta['line']})"
                )

    def _meets_weights(self, convolution: fx.Node, tokens: fx.Node) -> bool:
        """Whether a layer with parameters stands between a convolution and what is made of it."""
        above = {convolution}
        for node in self.nodes:
            if not above.isdisjoint(node.all_input_nodes):
                above.add(node)
        steps = above.intersection(before(self.nodes, tokens)) - {convolution}
        layers = [self.model.get_submodule(n.target) for n in steps if n.op == "call_module"]
        return any(next(layer.parameters(), None) is not None for layer in layers)

    def _convolution(self, node: fx.Node) -> fx.Node | None:
        """The last convolution that a map is made of."""
        layers = [step for step in before(self.nodes, node) if step.op == "call_module"]
        found = [n for n in layers if type(self.model.get_submodule(n.target)) is nn.Conv2d]
        return found[-1] if found else None

    def _parameters(self, node: fx.Node) -> list[str]:
        """Names of the parameters that a map is made of."""
        steps = before(self.nodes, node)
        return [name for name, _ in self.model.named_parameters() if self._users(name, steps)]

    def _users(self, name: str, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """The steps that use a parameter."""
        parameter, found = self.model.get_parameter(name), []
        for node in nodes:
            if node.op == "get_attr":
                held: Iterable = values_of(self.model, [node], self.images).values()
            elif node.op == "call_module":
                held = self.model.get_submodule(node.target).parameters()
            else:
                continue
            if any(one is parameter for one in held):
                found.append(node)
        return found

    def _run(self, node: fx.Node, given: dict | None = None, parameters: dict | None = None):
        return values_of(self.model, before(self.nodes, node), self.images, given, parameters)[node]

    def _moved(self, node: fx.Node, source: fx.Node | str) -> Tensor | None:
        """Of each entry of a map, the entry of its source that stands there; -1 where none does.

        None where a step does more than to move the source's entries about.
        """
        named = isinstance(source, str)
        values = self.model.get_parameter(source) if named else self._run(source)
        draws, found = [], []
        for _ in range(2):  # what compares entries, as pooling, does not the same to both
            draw = torch.randn(values.shape, generator=self.generator, dtype=torch.float64)
            draws.append(draw.to(values.device))
            changed = {source: draws[-1].clone()}  # which a step may change in place
            try:
                value = self._run(node, *(({}, changed) if named else (changed, {})))
            except RuntimeError:  # a weight of another dtype: this step computes
                return None
            found.append(value.double())
        (first, second), (here, there) = (draw.flatten() for draw in draws), found
        order = first.argsort()
        place = torch.searchsorted(first[order], here.contiguous()).clamp(max=len(order) - 1)
        index = torch.where(first[order][place] == here, order[place], -1)
        same = torch.where(index >= 0, second[index], here)
        return index if (index >= 0).any() and torch.equal(same, there) else None


def entered(
    model: nn.Module,
    steps: list[Operation],
    shape: tuple[int, int, int],
    reason: UnsupportedModelError,
) -> Network:
    """Read a model up to a convolution that can be entered.

    The network's last node is the convolution. `reason` says why the model cannot be read up to its
    first Linear. UnsupportedModelError carries it, or says why the position embedding is of no use.
    """
    try:
        found = embedding_of(model, shape)
        convolution, embedding = found
        if model.get_submodule(convolution).groups > 1:
            raise UnsupportedModelError(f"{convolution}: its groups have a gradient each")
        entry = ConvEntry(convolution, embedding, _logits(model, steps), str(reason))
        network = network_below(steps, shape, entry)
        refuse_other_values(model, network)
    except UnsupportedModelError as error:
        # Where there is an embedding, what is wrong with it is of more use.
        first = reason if isinstance(error, _NoEmbeddingError) else error
        raise UnsupportedModelError(str(first), (*reason.reasons, *error.reasons)) from None
    return network


def network_below(
    steps: list[Operation],
    shape: tuple[int, int, int],
    entry: ConvEntry,
    end: int | None = None,
    made: dict[tuple[int, ...], Stage] | None = None,
) -> Network:
    """The part of a model that a convolution's output is made of.

    The last node is the step `end`, by default the convolution; `made` is that of
    `rconv.model.build.build`. Raises UnsupportedModelError at a
    step below that the attack cannot pass, or where a map other than the image bypasses the
    convolution, so that its derivative is not known.
    """
    if end is None:
        end = next(i for i, step in enumerate(steps) if step.name == entry.name)
    inside = leading_to(steps, end)
    nodes, _ = build(steps, sorted(inside), shape, made)
    behind = leading_to(steps, len(steps) - 1) - inside
    # Nothing stands below the image that would need its derivative.
    refuse_bypasses(steps, behind, inside - {0, end}, entry.name)
    network = Network.of(nodes, entry)
    solve_order(network)  # or a refusal
    return network


def _logits(model: nn.Module, steps: list[Operation]) -> str:
    """Name of the Linear that the model ends in."""
    logits = logits_of(steps)
    if logits is None or model.get_submodule(logits).bias is None:
        raise UnsupportedModelError(
            "the model does not end in a Linear with a bias, whose gradient would be the "
            "derivative of the loss by the logits"
        )
    if not model.get_submodule(logits).weight.any():
        raise UnsupportedModelError(
            f"{logits}: its weights are all zero, so that nothing below it gets a gradient; "
            "train it by one step first"
        )
    return logits
