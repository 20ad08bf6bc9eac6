"""The result of an attack: the images, and how good they are."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from rconv.linalg.solution import index, join
from rconv.linalg.system import FREE

CLEAR = 1e-2
"""Expected relative error up to which an image can be called unique. It is 40 dB below the
image's size, which is its root mean square or, where the contrast is low, four standard deviations
about its mean; beyond it an error changes the derivatives of the activations, which the linear
estimate leaves out."""

TWO_LAYERS = "two layers"
"""Kind of the equations of a map that is solved for together with the convolution below it."""


class ShortRankError(ValueError):
    """A layer's equations do not determine its input."""


@dataclass(frozen=True)
class LayerReport:
    """How well one layer's input is determined, for N images.

    Parameters
    ----------
    name : str
        The layer; several convolutions that take one map are joined by "and".
    unknowns : int
        Entries of its input.
    gradient_rows, weight_rows : Tensor
        (N,) equations of each kind that were used; entries that are known count among the latter.
    rank : Tensor
        (N,), at most `unknowns`.
    condition : Tensor
        (N,), ratio of the extreme singular values that count (an estimate); of gradient
        constraints, that of the worst of their residue classes, which are solved one by
        one.
    residual : Tensor
        (N,), relative residual of the equations.
    constraints : tuple[str, ...]
        N names of the kinds of equations that were used.
    signs : Tensor
        (N,), directions that the equations leave open and the range of the input closes.
    guess : Tensor
        (N, unknowns): what a prior chose in the directions that are open all the same; the rest
        of the layer's input is as exact as its equations.
    low, high : Tensor
        (N, unknowns): the interval of each entry of the layer's input that its equations and its
        range leave, the noise left aside. It holds for certain; with `exact` no smaller one does.
    """

    name: str
    unknowns: int
    gradient_rows: Tensor
    weight_rows: Tensor
    rank: Tensor
    condition: Tensor
    residual: Tensor
    constraints: tuple[str, ...]
    signs: Tensor
    guess: Tensor
    low: Tensor
    high: Tensor

    @staticmethod
    def plain(
        name: str,
        kind: str,
        unknowns: int,
        rows: int,
        rank: Tensor,
        condition: Tensor,
        residual: Tensor,
        value: Tensor | None = None,
    ) -> "LayerReport":
        """Of a layer that no range closes, by one kind of equations; value (N, unknowns)."""
        none, known = torch.zeros_like(rank), (rank == unknowns)[:, None]
        guess = residual.new_zeros(len(rank), unknowns)
        ends = (torch.full_like(guess, end) for end in FREE)
        low, high = ends if value is None else (torch.where(known, value, end) for end in ends)
        equations = none + rows, none, rank, condition, residual, (kind,) * len(rank)
        return LayerReport(name, unknowns, *equations, none, guess, low, high)

    @property
    def open(self) -> Tensor:
        """(N,), directions that nothing determines."""
        return self.unknowns - self.rank - self.signs

    @property
    def known(self) -> Tensor:
        """(N, unknowns), the layer's input where it is determined; elsewhere not a number."""
        return torch.where(self.low == self.high, self.low, torch.nan)

    def under(self, above: Sequence["LayerReport"], bounds: tuple[float, float]) -> "LayerReport":
        """The same with nothing but the range for an interval where a layer above is open."""
        opened = (sum(report.open for report in above) > 0)[:, None]
        if not opened.any():
            return self
        low, high = (
            torch.where(opened, end, own)
            for end, own in zip(bounds, (self.low, self.high), strict=True)
        )
        return replace(self, low=low, high=high)


@dataclass(frozen=True)
class Reconstruction:
    """N reconstructed images and what the attacker can say of them without the truth.

    Parameters
    ----------
    images : Tensor
        (N, C, H, W), float64.
    layers : tuple of LayerReport
        From the head down to the first convolution.
    labels : Tensor
        (N,), int64, class of each image as the gradients reveal it; -1 where they do not.
    gradient_residual : Tensor
        (N,), ‖g(x̂) - g‖ / ‖g‖ of the gradients recomputed from the reconstruction: the
        certificate.
    expected_error : Tensor
        (N,), root mean square error of the image that the noise of the gradients leads one to
        expect, the revealed noise included, relative to `rconv.attack.verdict.image_size`; 1 where
        nothing is known.
    twins : Tensor
        (N,), int64, other images that explain the gradients as well.
    revealed_noise : Tensor
        (N,), relative: what the certificate shows beyond the declared noise; 0 for nothing.
    systematic_error : Tensor
        (N,), relative error that the image would have if what the known noise does not explain
        were no noise, but a trace of several similar images or of several steps; at most 1.
    excess : Tensor
        (N, layers), residual of each layer's gradients over what their noise alone allows.
    growth : Tensor
        (N,), expected error of the image per relative noise of the gradients.
    assumed : Tensor
        (N,), bool, whether the image rests on an assumption that nothing in the gradients confirms.
    diagnostics : tuple of str
        N reasons to doubt the image, "" for none.
    """

    images: Tensor
    layers: tuple[LayerReport, ...]
    labels: Tensor
    gradient_residual: Tensor
    expected_error: Tensor
    twins: Tensor
    revealed_noise: Tensor
    systematic_error: Tensor
    excess: Tensor
    growth: Tensor
    assumed: Tensor
    diagnostics: tuple[str, ...]

    @property
    def gap(self) -> Tensor:
        """(N,) directions that equations and signs leave open, summed over the layers."""
        return sum(layer.open for layer in self.layers)

    @property
    def guess(self) -> Tensor:
        """(N, C, H, W), the part of the images that a prior chose and no equation determines."""
        return self.layers[-1].guess.reshape(self.images.shape)

    @property
    def interval(self) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) twice, least and greatest value of each pixel; `LayerReport.low`, `high`."""
        layer, shape = self.layers[-1], self.images.shape
        return layer.low.reshape(shape), layer.high.reshape(shape)

    @property
    def full_rank(self) -> Tensor:
        """(N,) whether every layer's input is determined: by equations, or by signs as well."""
        return self.gap == 0

    @property
    def unique(self) -> Tensor:
        """(N,) the verdict: is this the one image that explains the gradients?

        Full rank in every layer, no twin, nothing assumed; and at most `CLEAR` of the certificate,
        of the expected error, and of the systematic error. Undeclared noise counts for both errors.
        """
        sound = (self.gradient_residual <= CLEAR) & (self.expected_error <= CLEAR)
        sound &= self.systematic_error <= CLEAR
        return self.full_rank & (self.twins == 0) & ~self.assumed & sound

    def select(self, where: Tensor | list[int]) -> "Reconstruction":
        """The reconstructions of some of the images."""
        return _map(self, lambda field: index(field, where))

    @staticmethod
    def concatenate(parts: list["Reconstruction"]) -> "Reconstruction":
        """Reconstructions of several groups of images, one after the other."""
        return _map(parts[0], lambda *chunk: join(chunk), *parts[1:])

    def raise_if_short(self) -> None:
        """Raise `ShortRankError` if any layer of any image is short of rank."""
        for layer in self.layers:
            short = (layer.open > 0).nonzero()[:, 0]
            if len(short):
                i = int(short[0])
                raise ShortRankError(
                    f"{layer.name}: {layer.constraints[i]} constraints give rank "
                    f"{int(layer.rank[i])} of {layer.unknowns} unknowns (image {i}); "
                    + _remedy(layer, i)
                )


def _remedy(layer: LayerReport, i: int) -> str:
    if layer.constraints[i] in ("head", "embedding"):
        return "its gradients are zero: this step tells nothing"
    if layer.constraints[i] == "span":
        return "more filters than it has positions would help, and a bias"
    if layer.constraints[i] == "gradient":
        return "more filters, a smaller stride or hybrid constraints would help"
    return "more filters or a smaller stride would help; ReLU outputs that are zero do not"


def _map(first, function, *others):
    """Apply a function to every tensor of a Reconstruction and its reports."""
    values = {}
    for field in fields(first):
        parts = [getattr(part, field.name) for part in (first, *others)]
        if field.name == "layers":
            values["layers"] = tuple(
                _map(layer, function, *rest) for layer, *rest in zip(*parts, strict=True)
            )
        elif isinstance(parts[0], (Tensor, tuple)):
            values[field.name] = function(*parts)
        else:
            values[field.name] = parts[0]
    return type(first)(**values)
