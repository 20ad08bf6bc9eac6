"""A model whose upper part is not read: as far as a convolution that can be entered."""

from torch import nn

from rconv.model.agreement import refuse_other_values
from rconv.model.build import build
from rconv.model.embedding import NoEmbeddingError, embedding_of
from rconv.model.heads import ConvEntry
from rconv.model.nodes import Network, UnsupportedModelError
from rconv.model.operations import Operation, leading_to, logits_of, refuse_ways_around
from rconv.model.solve_order import solve_order


def entered(
    model: nn.Module,
    steps: list[Operation],
    shape: tuple[int, int, int],
    reason: UnsupportedModelError,
) -> Network:
    """Read a model up to a convolution that can be entered.

    Parameters
    ----------
    model : Module
        The model.
    steps : list of Operation
        Of its forward pass.
    shape : tuple of int
        (C, H, W) of the image.
    reason : UnsupportedModelError
        Why it cannot be read up to its first Linear.

    Returns
    -------
    Network
        Its last node is the convolution.

    Raises
    ------
    UnsupportedModelError
        With `reason`, or why a position embedding is not of use; all in its `reasons`.
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
        first = reason if isinstance(error, NoEmbeddingError) else error
        raise UnsupportedModelError(str(first), (*reason.reasons, *error.reasons)) from None
    return network


def network_below(
    steps: list[Operation], shape: tuple[int, int, int], entry: ConvEntry, end: int | None = None
) -> Network:
    """The part of a model that a convolution's output is made of.

    Parameters
    ----------
    steps : list of Operation
        Of the whole model.
    shape : tuple of int
        (C, H, W) of the image.
    entry : ConvEntry
        The convolution, and how it is entered.
    end : int, optional
        The step that is the last node; the convolution if not given.

    Returns
    -------
    Network

    Raises
    ------
    UnsupportedModelError
        At a step below that the attack cannot pass, or where a map other than the image has a way
        around the convolution, so that its derivative is not known.
    """
    if end is None:
        end = next(i for i, own in enumerate(steps) if own.name == entry.name)
    inside = leading_to(steps, end)
    nodes, _ = build(steps, sorted(inside), shape)
    behind = leading_to(steps, len(steps) - 1) - inside
    # Nothing stands below the image that would need its derivative.
    refuse_ways_around(steps, behind, inside - {0, end}, entry.name)
    network = Network.of(nodes, entry)
    solve_order(network)  # or a refusal
    return network


def _logits(model: nn.Module, steps: list[Operation]) -> str:
    """Name of the Linear that the model ends in."""
    logits = logits_of(steps)
    if logits is None or model.get_submodule(logits).bias is None:
        raise UnsupportedModelError(
            "the model does not end in a Linear with a bias, whose gradient would tell the "
            "derivative of the loss by the logits"
        )
    if not model.get_submodule(logits).weight.any():
        raise UnsupportedModelError(
            f"{logits}: its weights are all zero, so that nothing below it gets a gradient; "
            "train it by one step first"
        )
    return logits
