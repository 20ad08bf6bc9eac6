"""What becomes of the equations where some gradients are missing, as those of frozen parameters.

A missing gradient is not a gradient of zero: its equations have the weight 0. Where a convolution's
weight is frozen, the weight constraints of its known outputs are what is left. Nothing replaces
the gradients at which the attack enters the network.
"""

from collections.abc import Collection

from rconv.attack.ways import Way
from rconv.model.ends import Entry
from rconv.model.nodes import UnsupportedModelError


def observed_ways(ways: list[Way], observed: Collection[str]) -> list[Way]:
    """The entry points whose gradients are there.

    Parameters
    ----------
    ways : list of Way
        Into the model.
    observed : collection of str
        Names of the parameters whose gradients are there.

    Returns
    -------
    list of Way
        One or more.

    Raises
    ------
    UnsupportedModelError
        If there is none, naming a gradient that is missing; or if a layer is to be solved by its
        gradient constraints, which are missing.
    """
    lacking = [_lacking(way, observed) for way in ways]
    left = [way for way, name in zip(ways, lacking, strict=True) if name is None]
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


def _lacking(way: Way, observed: Collection[str]) -> str | None:
    """A gradient that this entry point needs and that is missing; None where all are there."""
    head = way.network.head
    if not isinstance(head, Entry):
        needed = head.parameters if head.has_bias else head.parameters[:1]
    elif head.embedding is None:
        needed = head.parameters
    else:
        needed = [head.embedding.name, f"{head.name}.weight", f"{head.logits}.bias"]
    return next((name for name in needed if name not in observed), None)
