"""What is decided once per model: which equations each layer uses, and their factorisation."""

from collections.abc import Sequence

from rconv.equations.conv_output import ConvOutput
from rconv.equations.windows import residue_classes, window_index
from rconv.linalg import dense
from rconv.linalg.system import FREE
from rconv.model.geometry import Geometry, Stage
from rconv.model.heads import ConvEntry
from rconv.model.nodes import Network

KINDS = ("auto", "gradient", "weight", "hybrid")


class LayerPlan:
    """The equations of one convolution, as far as the model alone decides them.

    Parameters
    ----------
    stage : Stage
        The convolution.
    kind : str
        One of `KINDS`.
    first : bool
        Whether the image is its input and what becomes of its output is read: there `auto` tries
        weight constraints before gradient constraints, which three channels make few.
    bounds : tuple of float
        Range of the convolution's input.
    signs, prior, exact : bool
        Whether `auto` lets the range close what equations leave open, and a prior the rest;
        whether the intervals that are left are exact.
    """

    def __init__(
        self,
        stage: Stage,
        kind: str = "auto",
        *,
        first: bool = False,
        bounds: tuple[float, float] = FREE,
        signs: bool = True,
        prior: bool = True,
        exact: bool = False,
    ):
        self.stage, self.kind, self.first, self.bounds = stage, kind, first, bounds
        self.signs, self.prior, self.exact = signs, prior, exact
        self.output = ConvOutput(stage)
        if (kind == "weight" or (kind == "auto" and first)) and self.affordable:
            _ = self.output.factor  # here, so that no image waits for it

    @property
    def affordable(self) -> bool:
        """Whether the unknowns of one sample are few enough for a dense factorisation."""
        return self.stage.geometry.unknowns <= dense.MAX_UNKNOWNS

    def weights_determine(self, relative_std: float) -> bool:
        """Whether `auto` tries weight constraints first where every output is known.

        Those of the image before gradient constraints, which three channels make few; others where
        gradient constraints cannot suffice. The outputs have the relative error `relative_std`.
        """
        if not self.first and gradients_suffice(self.stage.geometry):
            return False
        if not self.affordable:
            return self.output.enough
        factor = self.output.factor
        # Directions that drown in the noise are better determined by more rows.
        return factor is not None and bool(factor.spectrum.condition * relative_std < 1)


def gradients_suffice(geometry: Geometry, samples: int = 1) -> bool:
    """Whether gradient constraints can have full rank: enough for every residue class.

    Those of a batch are shared by its samples.
    """
    if not (window_index(geometry) < geometry.positions).any():
        return False
    classes = residue_classes(geometry)
    covered = sum(len(pixels) for _, pixels in classes)
    filters = geometry.output[0]
    return covered == geometry.pixels and all(
        filters * len(offsets) >= samples * len(pixels) for offsets, pixels in classes
    )


def make_plan(
    network: Network,
    constraints: str | Sequence[str],
    value_range: tuple[float, float] = FREE,
    **options: bool,
) -> tuple[LayerPlan, ...]:
    """One plan per convolution, in the order of the forward pass.

    Constraints are those that `Attack` takes, `value_range` that of the pixels, and options those
    of `LayerPlan`. Unknown constraints raise a ValueError.
    """
    kinds = kinds_per_layer(constraints, len(network.stages))
    entry = network.head.name if isinstance(network.head, ConvEntry) else None
    if entry and kinds[-1] == "weight":
        raise ValueError(f"{entry}: its output is unknown, it has no weight constraints: use auto")
    for stage, kind in zip(network.stages, kinds, strict=True):
        if not stage.linear and kind != "auto":
            raise ValueError(
                f"{stage.name}: with {stage.layers[-1][0]} behind it, all its equations are solved "
                "together: use constraints='auto'"
            )
    each = zip(network.stages, kinds, network.input_ranges, strict=True)
    return tuple(
        LayerPlan(
            stage, kind,
            first=own is None and stage.name != entry and stage.linear,
            bounds=own or value_range, **options,
        )
        for stage, kind, own in each
    )  # fmt: skip


def kinds_per_layer(constraints: str | Sequence[str], layers: int) -> tuple[str, ...]:
    """The kind of equations of each convolution, one of `KINDS`, as `Attack` takes them."""
    if constraints == "paper":
        return ("weight", *["gradient"] * (layers - 1))[:layers]
    if not isinstance(constraints, (str, Sequence)):
        kinds: tuple[str, ...] = (constraints,)
    else:
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
