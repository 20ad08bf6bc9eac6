"""Records: what is known of each attacked image, as JSON, and as a table for people."""

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rconv.attack.report import LayerReport, Reconstruction
from rconv.data.datasets import Images
from rconv.files import replacing
from rconv.lab import metrics

Record = dict[str, Any]
"""Everything about one attacked image, as JSON values; numbers that are not finite are None."""

QUALITY = ("mse", "psnr", "ssim", "gain")

SUCCESS = 1e-6
"""Mean squared error below which an image counts as reconstructed."""


def make_records(
    reconstruction: Reconstruction, settings: Record, truth: Images | None = None, first: int = 0
) -> list[Record]:
    """One record per image; without the truth, what compares with it is None.

    Parameters
    ----------
    reconstruction : Reconstruction
        N images.
    settings : dict
        Entries that all records share.
    truth : Images, optional
        The N originals.
    first : int
        Number of the first image, where there is no truth.

    Returns
    -------
    list of dict
        JSON values: the settings; `QUALITY`; and of what the attacker sees "gradient_residual",
        "expected_error", "full_rank", "gap", "unique", the verdict, and "doubt", its reason.
    """
    quality: dict[str, Tensor] = {}
    if truth is not None:
        quality = metrics.quality(reconstruction.images.cpu(), truth.images)
    records = []
    for i in range(len(reconstruction.images)):
        measured = {key: finite(quality[key][i]) if key in quality else None for key in QUALITY}
        record = {
            "dataset": None,
            "index": int(truth.indices[i]) if truth is not None else first + i,
            "label": _label(reconstruction if truth is None else truth, i),
            **settings,
            **measured,
            "gradient_residual": finite(reconstruction.gradient_residual[i]),
            "expected_error": finite(reconstruction.expected_error[i]),
            "full_rank": bool(reconstruction.full_rank[i]),
            "gap": int(reconstruction.gap[i]),
            "unique": bool(reconstruction.unique[i]),
            "doubt": reconstruction.diagnostics[i],
            "layers": [_layer_record(layer, i) for layer in reconstruction.layers],
        }
        records.append(record)
    return records


def _label(known: Images | Reconstruction, i: int) -> int | None:
    """The class; None where gradients do not tell it."""
    label = int(known.labels[i])
    return None if label < 0 else label


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
        shown = [r for r in records if not r["unique"] or r["doubt"]][:most]
    rows = [
        (
            r["index"],
            "-" if r["label"] is None else r["label"],
            _format(r["mse"], ".1e"),
            _format(r["psnr"], ".1f"),
            _format(r["ssim"], ".4f"),
            _format(r["gradient_residual"], ".1e"),
            ("yes" if r["unique"] else "no") + (f": {r['doubt']}" if r["doubt"] else ""),
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
