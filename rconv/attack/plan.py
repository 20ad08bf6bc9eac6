"""What is decided once per model: which equations each layer uses, and their factorisation."""

from collections.abc import Sequence

from rconv.equations.weight import weight_matrix
from rconv.linalg import dense
from rconv.linalg.sparse import SparseSystem
from rconv.model.geometry import Stage

KINDS = ("auto", "gradient", "weight", "hybrid")


def kinds_per_layer(constraints: str | Sequence[str], layers: int) -> tuple[str, ...]:
    if constraints == "paper":
        return ("weight", *["gradient"] * (layers - 1))[:layers]
    kinds = (constraints,) * layers if isinstance(constraints, str) else tuple(constraints)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if isinstance(constraints, str) and constraints not in KINDS:
        unknown = [constraints]
    if unknown:
        raise ValueError(
            f"unknown constraints {unknown[0]!r}: use one of {', '.join(KINDS)}, paper, "
            "or a sequence with one of the first four per convolution"
        )
    if len(kinds) != layers:
        raise ValueError(f"{len(kinds)} constraints for {layers} convolutions: give one for each")
    return kinds


def weight_system(stage: Stage, kind: str, *, first: bool) -> SparseSystem | None:
    """The stage's weight constraints, factored, where they determine its input alone.

    Raises
    ------
    ValueError : the layer would need a dense system that is too large.
    """
    g = stage.geometry
    wanted = kind == "weight" or (kind == "auto" and first)
    system = None
    if wanted and g.weight_rows >= g.unknowns and stage.activation.invertible:
        system = SparseSystem(weight_matrix(stage.weight, g))
    if system is not None and system.regular:
        return system
    if kind in ("weight", "hybrid") and g.unknowns > dense.MAX_UNKNOWNS:
        raise ValueError(
            f"{stage.name}: {kind} constraints would take a dense system of {g.unknowns} unknowns, "
            f"more than {dense.MAX_UNKNOWNS}; use gradient or auto for this layer"
        )
    return None
