"""Records: what is known of each attacked image, as JSON values; one score makes all of them."""

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rconv.attack.report import CLEAR, LayerReport, Reconstruction
from rconv.attack.verdict import image_size
from rconv.data.datasets import Images
from rconv.files import replacing
from rconv.lab import metrics

Record = dict[str, Any]
"""Everything about one attacked image, as JSON values; numbers that are not finite are None."""

QUALITY = ("mse", "psnr", "ssim", "gain")

SUCCESS = 1e-6
"""Mean squared error below which an image counts as reconstructed."""

SHOWN = 40.0
"""PSNR in dB below which an image is wrong, so that it must not be called unique."""

FACTOR = 10.0
"""An error above this multiple of the expected one was not expected."""


def score(
    found: Reconstruction | Tensor,
    truth: Images | Tensor | None,
    settings: Record,
    *,
    data_range: float = 1.0,
    first: int = 0,
    layers: bool = True,
) -> list[Record]:
    """One record per image: the settings, its quality, and what the attacker says of it.

    A verdict is false where an image is called unique and is wrong: its PSNR is below `SHOWN`, or
    its error is above `CLEAR` of its size, which is small where the contrast is low
    (`rconv.attack.verdict.image_size`).

    Parameters
    ----------
    found : Reconstruction or Tensor
        N images. Of a tensor (N, C, H, W), such as that of a baseline, the quality alone is known.
    truth : Images, Tensor or None
        The N originals; without them, what compares with them is None.
    data_range : float
        The difference between the largest and the smallest value that a pixel can have.
    first : int
        Number of the first image, where the truth has no indices.
    layers : bool
        Whether a record lists what is known of each layer.

    Returns
    -------
    list of dict
        JSON values: "dataset", "index", "label", the settings and `QUALITY`. Of a reconstruction
        also "gradient_residual", "expected_error", "full_rank", "gap", "unique", "diagnostic" and
        "layers"; and beside the truth "right", whether the PSNR is `SHOWN` or more,
        "error", relative to the image's size, and "false", whether the verdict is.
    """
    images = found if isinstance(found, Tensor) else found.images
    original = truth.images if isinstance(truth, Images) else truth
    measured: list[Record] = [dict.fromkeys(QUALITY) for _ in images]
    if original is not None:
        quality = metrics.quality(images.cpu(), original.cpu(), data_range)
        measured = [{key: finite(quality[key][i]) for key in QUALITY} for i in range(len(images))]
    records = [
        {"dataset": None, **_identity(found, truth, i, first), **settings, **measures}
        for i, measures in enumerate(measured)
    ]
    if not isinstance(found, Tensor):
        judged = _judged(found, original, data_range)
        for i, (record, entries) in enumerate(zip(records, judged, strict=True)):
            record |= entries
            if layers:
                record["layers"] = [_layer_record(layer, i) for layer in found.layers]
    return records


def _identity(
    found: Reconstruction | Tensor, truth: Images | Tensor | None, i: int, first: int
) -> Record:
    """An image's number and class; None where gradients do not identify the class."""
    if isinstance(truth, Images):
        return {"index": int(truth.indices[i]), "label": int(truth.labels[i])}
    label = -1 if isinstance(found, Tensor) else int(found.labels[i])
    return {"index": first + i, "label": None if label < 0 else label}


def _judged(found: Reconstruction, truth: Tensor | None, data_range: float) -> list[Record]:
    """What the attacker says of each image, and whether that is true."""
    records: list[Record] = [
        {
            "gradient_residual": finite(found.gradient_residual[i]),
            "expected_error": finite(found.expected_error[i]),
            "full_rank": bool(found.full_rank[i]),
            "gap": int(found.gap[i]),
            "unique": bool(found.unique[i]),
            "diagnostic": found.diagnostics[i],
        }
        for i in range(len(found.images))
    ]
    if truth is None:
        return records
    truth = truth.to(found.images)
    error = (found.images - truth).flatten(1).square().mean(dim=1).sqrt()
    error = error / image_size(truth, (0.0, data_range))
    shown = metrics.psnr(found.images, truth, data_range=data_range) >= SHOWN
    wrong = found.unique & ~(shown & (error <= CLEAR))
    return [
        {**r, "right": bool(shown[i]), "error": finite(error[i]), "false": bool(wrong[i])}
        for i, r in enumerate(records)
    ]


def _layer_record(layer: LayerReport, i: int) -> Record:
    return {
        "name": layer.name,
        "unknowns": layer.unknowns,
        "gradient_rows": int(layer.gradient_rows[i]),
        "weight_rows": int(layer.weight_rows[i]),
        "rank": int(layer.rank[i]),
        "condition": finite(layer.condition[i]),
        "residual": finite(layer.residual[i]),
        "constraints": layer.constraints[i],
        "signs": int(layer.signs[i]),
    }


def open_directions(layer: Record) -> int:
    """What neither equations nor signs determine of a layer's input; old records have no signs."""
    return layer["unknowns"] - layer["rank"] - layer.get("signs", 0)


def expected(record: Record) -> bool:
    """Whether the true error of an image is the expected one, within `FACTOR`."""
    return 1 / FACTOR <= record["error"] / record["expected_error"] <= FACTOR


def finite(value: Tensor) -> float | None:
    """A tensor of one element as a JSON number; None where it is not finite."""
    value = float(value)
    return value if math.isfinite(value) else None


def value(number: float | None, missing: float) -> float:
    """A record's number, where None stands for one that was not finite."""
    return missing if number is None else number


def won(records: Sequence[Record]) -> int:
    """How many of the images have a mean squared error below `SUCCESS`."""
    return sum(value(r["mse"], math.inf) < SUCCESS for r in records)


def write_json(path: str, records: list[dict]) -> None:
    """Write records, whole or not at all."""
    with replacing(path) as file:
        file.write((json.dumps(records, indent=1, allow_nan=False) + "\n").encode())


def summary(records: list[dict], most: int = 20) -> str:
    """Table of the records, one line per image while there are few, then the totals.

    Where there are more than `most`, the table has only those that are not unique or have a
    diagnostic.
    """
    header = ("index", "label", "MSE", "PSNR dB", "SSIM", "gradient residual", "unique")
    shown = records
    if len(records) > most:
        shown = [r for r in records if not r["unique"] or r["diagnostic"]][:most]
    rows = [
        (
            r["index"],
            "-" if r["label"] is None else r["label"],
            _format(r["mse"], ".1e"),
            _format(r["psnr"], ".1f"),
            _format(r["ssim"], ".4f"),
            _format(r["gradient_residual"], ".1e"),
            ("yes" if r["unique"] else "no") + (f": {r['diagnostic']}" if r["diagnostic"] else ""),
        )
        for r in shown
    ]
    lines = [table(header, rows)] if rows else []
    together = " of one batch" if records[0].get("batch") == len(records) > 1 else ""
    total = f"{len(records)} images{together}: {sum(r['unique'] for r in records)} unique"
    errors = [r["mse"] for r in records if r["mse"] is not None]
    if errors:
        median = statistics.median(errors)
        total += f", {won(records)} with MSE < {SUCCESS:g}, median MSE {median:.1e}"
    return "\n".join([*lines, f"{total}, {records[0]['seconds']:.3f} s an image"])


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Columns aligned to the right, the first to the left."""
    cells = [tuple(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if k == 0 else c.rjust(w)
            for k, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def _format(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
