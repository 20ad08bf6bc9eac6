"""R-CONV: from a model and the gradients of one client step back to the image, layer by layer.

The attack is prepared once per model and then applied to the gradients of one image or of
hundreds. It receives what an attacker has, the model and the gradients, and nothing else.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rconv.attack.backward import through_activation
from rconv.attack.candidates import choose
from rconv.attack.certificate import gradient_residual
from rconv.attack.head import HeadInput, head_input, rank_one
from rconv.attack.layer import solve_layer
from rconv.attack.plan import kinds_per_layer, weight_system
from rconv.attack.report import LayerReport, Reconstruction
from rconv.linalg.solution import root_mean_square
from rconv.model.read import read
from rconv.observe.check import check_gradients
from rconv.observe.noise import Rounding
from rconv.observe.observation import Gradients

CHUNK_BYTES = 2**27


class Attack:
    """R-CONV on one model, prepared for any number of gradients.

    Parameters
    ----------
    model : a Sequential of convolutions with activations, Flatten, a Linear and any head.
    input_shape : (C, H, W) of one image.
    constraints : the equations that each convolution's input is solved from: "gradient",
        "weight" or "hybrid" (both) for every layer, or one of them per convolution in a
        sequence. "paper" is weight constraints on the first layer and gradient constraints
        on the others. "auto" takes the cheapest that have full rank, layer by layer and image
        by image, and hybrid where neither has, or where they would amplify the noise.
    value_range : of the pixels; used only to choose between twin images.

    Raises
    ------
    UnsupportedModelError : a layer that the attack cannot pass, named.
    ValueError : unknown constraints.
    """

    def __init__(
        self,
        model: nn.Sequential,
        input_shape: tuple[int, int, int],
        *,
        constraints: str | Sequence[str] = "auto",
        value_range: tuple[float, float] = (0.0, 1.0),
    ):
        self.network = read(model, input_shape)
        self.model = copy.deepcopy(model).double()
        self.value_range = value_range
        self.constraints = kinds_per_layer(constraints, len(self.network.stages))
        self.systems = [
            weight_system(stage, kind, first=stage is self.network.stages[0])
            for stage, kind in zip(self.network.stages, self.constraints, strict=True)
        ]

    def __call__(
        self,
        gradients: Gradients,
        *,
        strict: bool = False,
        precision: float | None = None,
        progress: bool = False,
    ) -> Reconstruction:
        """Reconstruct the images behind gradients.

        Parameters
        ----------
        gradients : parameter name → gradient, shaped as the parameter (one image) or with a
            leading axis N. float64, float32, bfloat16 or float16, on any device.
        strict : raise where a layer does not determine its input, instead of reporting it.
        precision : relative error of the gradients; by default the rounding of their dtype.
        progress : show a progress bar over the images.

        Returns
        -------
        Reconstruction of N images.

        Raises
        ------
        ValueError : missing or unknown names, wrong shapes, NaN or infinite entries.
        ShortRankError : with `strict`, the first layer of short rank and what would help.
        """
        gradients, rounding = check_gradients(self.model, gradients)
        if precision is not None:
            rounding = replace(rounding, relative=precision)
        total = len(next(iter(gradients.values())))
        parts = []
        with tqdm(total=total, disable=not progress, unit="image") as bar:
            for start in range(0, total, self._chunk()):
                part = {name: g[start : start + self._chunk()] for name, g in gradients.items()}
                parts.append(self._reconstruct(part, rounding))
                bar.update(len(parts[-1].images))
        result = Reconstruction.concatenate(parts)
        if strict:
            result.raise_if_short()
        return result

    def _reconstruct(self, gradients: Gradients, rounding: Rounding) -> Reconstruction:
        """The recursion: head, then activation, constraints and propagation per layer."""
        head = head_input(self.network.head, gradients)
        # Relative to the largest entry: gradients of 1e-200, of a saturated softmax, are sound,
        # but have no square.
        unit = largest_entry(gradients)[head.image]
        head = replace(head, cotangent=head.cotangent / unit[:, None])
        gradients = {
            name: g[head.image] / unit.reshape(-1, *[1] * (g.dim() - 1))
            for name, g in gradients.items()
        }
        output, cotangent = head.value, head.cotangent @ self.network.head.weight
        noise = (rounding.relative + rounding.absolute / unit).clamp(max=1.0)
        reports = [_head_report(self.network.head.name, head)]
        layers = zip(self.network.stages, self.constraints, self.systems, strict=True)
        for stage, kind, system in reversed(list(layers)):
            shape = (-1, *stage.geometry.output)
            passed = through_activation(
                stage.activation,
                output.reshape(shape),
                cotangent.reshape(shape),
                gradients.get(f"{stage.name}.bias"),
                noise,
            )
            weight_gradient = gradients[f"{stage.name}.weight"]
            noise = noise.maximum(rounding.absolute / unit / root_mean_square(weight_gradient))
            noise = noise.nan_to_num(nan=1.0).clamp(max=1.0)
            solution, report = solve_layer(
                stage, kind, system, passed, weight_gradient, noise, rounding.relative
            )
            output, cotangent = solution.value, stage.transpose(passed.cotangent)
            noise = noise * solution.amplification.clamp(min=1.0)
            noise = noise.nan_to_num(nan=1.0).clamp(max=1.0)
            reports.append(report)
        images = output.reshape(-1, *self.network.input_shape)
        return self._certify(images, tuple(reports), head, gradients, noise)

    def _certify(
        self,
        images: Tensor,
        reports: tuple[LayerReport, ...],
        head: HeadInput,
        gradients: Gradients,
        noise: Tensor,
    ) -> Reconstruction:
        """Recompute the gradients, and keep for each image the candidate that explains them."""
        name = self.network.head.name
        labels = self._labels(images, head, gradients)
        residual = gradient_residual(self.model, name, images, head.cotangent, gradients)
        twins = torch.zeros_like(labels)
        result = Reconstruction(images, reports, labels, residual, noise, twins)
        return choose(result, head.image, self.value_range)

    def _labels(self, images: Tensor, head: HeadInput, gradients: Gradients) -> Tensor:
        """The class whose logit the step pushes up: the only negative logit gradient (iDLG).

        Where rounding has left none, the softmax is saturated at the right class: the label is
        the model's own prediction. It is -1 where the head does not end in logits.
        """
        logit_gradient = self._logit_gradient(head, gradients)
        if logit_gradient is None:
            return torch.full_like(head.image, -1)
        if logit_gradient.shape[1] == 1:
            return (logit_gradient[:, 0] < 0).long()
        with torch.no_grad():
            predicted = self.model(images).argmax(dim=1)
        told = (logit_gradient < 0).any(dim=1)
        return torch.where(told, logit_gradient.argmin(dim=1), predicted)

    def _logit_gradient(self, head: HeadInput, gradients: Gradients) -> Tensor | None:
        """(N, K) derivative of the loss by the logits, up to a factor."""
        name = self.network.head.logits
        if name is None or name == self.network.head.name:
            return None if name is None else head.cotangent
        if f"{name}.bias" in gradients:
            return gradients[f"{name}.bias"]
        return torch.stack([rank_one(g)[0] for g in gradients[f"{name}.weight"]])

    def _chunk(self) -> int:
        """Images at a time, so that their gradient matrices stay within `CHUNK_BYTES`."""
        shapes = [stage.geometry for stage in self.network.stages]
        sizes = [8 * g.output[0] * g.offsets * g.pixels for g in shapes]
        return max(1, CHUNK_BYTES // max(sizes, default=CHUNK_BYTES))


def largest_entry(gradients: Gradients) -> Tensor:
    """(N,): size of the largest entry of each image's gradients, 1 where all are zero."""
    sizes = torch.stack([g.flatten(1).abs().amax(dim=1) for g in gradients.values()])
    unit = sizes.amax(dim=0)
    return torch.where(unit > 0, unit, 1.0)


def _head_report(name: str, head: HeadInput) -> LayerReport:
    unknowns = head.value.shape[1]
    rows = torch.full_like(head.image, head.cotangent.shape[1] * unknowns)
    ones = torch.ones_like(head.residual)
    return LayerReport(
        name,
        unknowns,
        rows,
        torch.zeros_like(rows),
        head.known * unknowns,
        torch.where(head.known, ones, torch.inf),
        head.residual,
        ("head",) * len(rows),
    )
