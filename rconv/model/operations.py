"""A model as the steps of its forward pass, whether it is written as layers or as code."""

from dataclasses import dataclass

from torch import nn

from rconv.model.nodes import UnsupportedModelError

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
PASSED = (nn.Identity, *DROPOUTS)
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus
)  # fmt: skip
READ = (
    nn.Sequential, nn.Conv2d, nn.Linear, nn.Flatten, nn.BatchNorm2d, *PASSED, *ACTIVATIONS
)  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One step of a forward pass.

    Parameters
    ----------
    name : str
        Of the layer, or of the step where it is none.
    what : Module or str or None
        The module that computes it, of PyTorch's own class or unknown; SUM or CONCATENATION;
        None for the image. Any other text says why it is not known.
    inputs : tuple of int
        The steps that it takes, as indices into the list of all.
    line : str
        Where it stands in the model's code, "" where it is a layer of a Sequential.
    """

    name: str
    what: nn.Module | str | None
    inputs: tuple[int, ...]
    line: str = ""

    def refusal(self, reason: str) -> UnsupportedModelError:
        """The error that names this step, and its line."""
        place = f" ({self.line})" if self.line else ""
        return UnsupportedModelError(f"{self.name}: {reason}{place}")


def of_layers(layers: list[tuple[str, nn.Module]]) -> list[Operation]:
    """The steps of a Sequential: each layer takes the one before.

    Parameters
    ----------
    layers : list of (str, Module)
        Name and layer, in order.

    Returns
    -------
    list of Operation
        The image first.
    """
    steps = [Operation("the image", None, ())]
    return steps + [Operation(name, layer, (i,)) for i, (name, layer) in enumerate(layers)]


def without_passed(operations: list[Operation]) -> list[Operation]:
    """The steps that do something; those that take what passes through take its source.

    Parameters
    ----------
    operations : list of Operation
        All steps.

    Returns
    -------
    list of Operation
        Those that are left, with new indices.
    """
    left: list[Operation] = []
    place: list[int] = []
    for own in operations:
        inputs = tuple(place[i] for i in own.inputs)
        if type(own.what) in PASSED:
            place.append(inputs[0])
        else:
            place.append(len(left))
            left.append(Operation(own.name, own.what, inputs, own.line))
    return left


def leading_to(operations: list[Operation], end: int) -> set[int]:
    """Indices of the steps that step `end` depends on, itself included."""
    found: set[int] = set()
    waiting = [end]
    while waiting:
        step = waiting.pop()
        if step not in found:
            found.add(step)
            waiting.extend(operations[step].inputs)
    return found


def refuse_shared_parameters(operations: list[Operation]) -> None:
    """Refuse a parameter that serves twice.

    Parameters
    ----------
    operations : list of Operation
        All steps.

    Raises
    ------
    UnsupportedModelError
        Naming the second step.
    """
    owners: dict[nn.Parameter, Operation] = {}
    for own in operations:
        for parameter in own.what.parameters() if isinstance(own.what, nn.Module) else ():
            if owners.setdefault(parameter, own) is not own:
                raise own.refusal(
                    f"shares a parameter with {owners[parameter].name}, whose gradient is the "
                    "sum over both layers"
                )


def refuse_ways_around(
    steps: list[Operation], behind: set[int], inside: set[int], end: str
) -> None:
    """Refuse a map that reaches the loss other than through where the network ends.

    Parameters
    ----------
    steps : list of Operation
        All steps.
    behind, inside : set of int
        Those that are not read, and those that are.
    end : str
        Where the network ends.

    Raises
    ------
    UnsupportedModelError
        Naming the step that takes it.
    """
    for i in sorted(behind):
        for j in steps[i].inputs:
            if j in inside:
                raise steps[i].refusal(
                    f"takes {steps[j].name}, which so reaches the loss by a way around {end}: "
                    "its derivative is not known"
                )


def logits_of(steps: list[Operation]) -> str | None:
    """Name of the Linear that makes the logits; None where more than LogSoftmax follows it."""
    last = len(steps) - 1
    while type(steps[last].what) is nn.LogSoftmax:
        (last,) = steps[last].inputs
    return steps[last].name if type(steps[last].what) is nn.Linear else None
