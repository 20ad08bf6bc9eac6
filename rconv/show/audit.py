"""An audit in words, as rows, and as one page of HTML that needs nothing else.

The page's markup and style are in `audit.html` beside this file; it runs no script and loads
nothing. Everything on it is in the record (`rconv.lab.audit_record`), but for the images.
"""

import base64
import struct
import zlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from itertools import groupby
from string import Template
from typing import Any

import torch
from torch import Tensor

from rconv.audit import NOT_UNIQUE, Findings, weakest
from rconv.lab.audit_record import MEANINGS, Audit, images_of
from rconv.lab.audit_trials import NOT_RUN
from rconv.lab.records import Record, table
from rconv.lab.trial import LAYER_COLUMNS

HEADER = (
    "layer",
    "unknowns",
    "counted",
    "gradient rank",
    "weight rows",
    "rank",
    "open",
    "filters (needed)",
    "verdict",
)

TERMS = {
    "recovered": "The reconstruction has 40 dB or more, or it is the only image that explains the "
    "gradients.",
    "PSNR": "Peak signal-to-noise ratio in decibels: 20 dB is a mean error of a tenth of the range "
    "of the pixels, 40 dB one of a hundredth, which is invisible.",
    "features": "The numbers that enter a Linear layer, which its own gradients determine whatever "
    "the layers below are. They count as exact up to 1 % of their size.",
    "flat image": "An image of one colour, the mean of the original: what an attacker who learns "
    "almost nothing would show.",
    "interval": "95 % confidence interval of the share of recovered images, for images of the "
    "same kind.",
    "unknowns": "Numbers in the input of a layer, which the attack computes from its equations.",
    "rank": "Number of independent equations for the input of a layer, for random data. If it "
    "equals the unknowns, the equations determine the input.",
    "open": "Unknowns minus rank: directions of the input that no equation determines. Bounds and "
    "a prior may still show some of them.",
    "filters (needed)": "Filters of the convolution, and the fewest with which its rank is full.",
    "σ": "Standard deviation of the noise over the clipping bound, for the gradient of one step.",
    "ε": "Bound of differential privacy, here of one step on one image at δ = 1e-5: replacing the "
    "image changes the probability of any gradient at most by the factor e^ε. Useful values have "
    "one digit. More steps increase ε, random sampling of the batches reduces it.",
    "evaluation mode": "BatchNorm uses its running statistics, dropout is off.",
    "training mode": "BatchNorm normalises with the statistics of the batch, dropout is on.",
    "sum over clients": "The server sees the sum of the gradients of several clients, as with "
    "secure aggregation.",
    "local steps": "The client makes several steps of SGD and sends the sum of their gradients.",
}
"""Terms that the page explains."""

MEANS_NOT = (
    "A short rank is not privacy. The range of the pixels and zeros behind a ReLU determine many "
    "of the open directions, and a prior of what images look like fills others.",
    "A full rank is no promise that every image comes back: dead filters, rounding and noise "
    "reduce it.",
    "This is one attack. Others may show more, and only a mechanism such as differential privacy "
    "bounds them all.",
)
"""What the verdict does not mean."""

PAIRS = 4
"""Images that the page shows."""


def layer_rows(found: Findings) -> list[tuple]:
    """One row per layer, head first; see `HEADER`.

    The filters are those that each convolution has, and in brackets the fewest with which the
    layer's rank is full.
    """
    rows = []
    for layer in found.layers:
        widths = [w for w in found.widths if w.layer == layer.name]
        filters = ", ".join(f"{w.filters} ({_known(w.needed)})" for w in widths)
        counts = layer.unknowns, layer.counted, layer.gradient_rank, layer.weight_rows
        ranks = _known(layer.hybrid_rank), _known(layer.open)
        rows.append((layer.name, *counts, *ranks, filters or "–", layer.verdict))
    return rows


def cheapest(found: Findings) -> str:
    """The change that makes a layer short most cheaply, and what it does not promise."""
    change = found.change
    if not found.widths:
        return "No change of filters was looked for: the attack starts below the first Linear."
    if found.verdict == NOT_UNIQUE:
        return "The rank is short already: no change of filters was looked for."
    if change is None:
        return (
            "Fewer filters in one convolution leave every layer at full rank, as far as ranks can "
            "be computed: a change of width does not close this leak."
        )
    width, short = change.width, change.layer
    others = f", and with it {', '.join(width.tied)}" if width.tied else ""
    return (
        f"Cheapest change: {width.convolution} with {change.filters} instead of {width.filters} "
        f"filters{others} ({change.parameters:,} parameters less). {short.name} then leaves "
        f"{short.open} of {short.unknowns} directions open. This closes the equations, not the "
        "leak: signs and a prior may still show the image."
    )


def batches(found: Findings) -> str:
    """How many images one averaged gradient may be of, and what ends it."""
    if not found.batches:
        return "The attack does not separate the averaged gradient of several images at this head."
    least = weakest(found.batches)
    if not least.largest:
        return f"No batch is determined: {least.name} does not determine one image."
    own = f"The averaged gradient of {least.largest} images determines all of them"
    if least.largest == 1:
        own = "The gradient of one image determines it, that of more does not"
    return f"{own}; {least.name} sets the limit (counted, for random data)."


def text(audit: Audit) -> str:
    """The audit as lines for a terminal."""
    record, found, tried = audit.record, audit.findings, audit.trial
    lines = []
    if found is not None:
        lines += [table(HEADER, layer_rows(found)), f"{record['model']['name']}: {found.verdict}"]
        lines += [cheapest(found), batches(found), ""]
    if tried is not None:
        rows = [(name, n, *(f"{d:g}" for d in rest)) for name, n, *rest in tried.layers]
        own = record["trial"]
        low, high = own["interval"]
        lines += [
            f"Tried with these weights: {own['tried']} {own['source']}, "
            f"gradients in {own['dtype']}",
            table(LAYER_COLUMNS, rows),
            f"recovered: {own['recovered']} of {own['tried']} (95 % interval {low:.0%} to "
            f"{high:.0%}); unique: {own['unique']}",
            tried.verdict,
        ]
    if record["features"] is not None:
        known = record["features"]
        errors = ", ".join("–" if own is None else f"{own:.0e}" for own in known["error"])
        lines += [
            f"features that enter {known['layer']} ({known['count']} numbers): {known['exact']} of "
            f"{known['tried']} exact (relative errors {errors}); labels right: "
            f"{known['labels_right']} of {known['tried']}",
        ]
    lines += [record["verdict"]["caveat"], ""]
    lines += [f"Risk: {record['verdict']['risk']}. {record['verdict']['sentence']}"]
    lines += [f"What to do: {record['verdict']['action']}"]
    return "\n".join(line for i, line in enumerate(lines) if line or (i and lines[i - 1]))


def page(audit: Audit) -> str:
    """Write the audit as one page of HTML.

    Parameters
    ----------
    audit : Audit
        As `rconv.lab.audit_record.full_audit` returns it.

    Returns
    -------
    str
        A whole document, which loads nothing. What others have named is escaped.
    """
    record, found = audit.record, audit.findings
    verdict = record["verdict"]
    details = [verdict["meaning"], verdict["caveat"]]
    first, stop, rest = verdict["sentence"].partition(". ")
    if found is not None:
        details += [cheapest(found), batches(found)]
    return Template(files(__package__).joinpath("audit.html").read_text("utf-8")).substitute(
        title=_text(record["model"]["name"]),
        risk=_text(verdict["risk"]),
        state=_state(verdict["risk"]),
        sentence=_text(first + stop.strip()),
        reason=f"<p>{_text(rest)}</p>" if rest else "",
        scale="".join(_level(level, verdict["risk"]) for level in MEANINGS),
        figure=_figure(record),
        pairs=_pairs(audit),
        action=_text(verdict["action"]),
        setup=_setup(record),
        scenarios=_scenarios(record["scenarios"]),
        layers=_layers(record),
        details="".join(f"<p>{_text(detail)}</p>\n" for detail in details if detail),
        means_not="".join(f"<li>{_text(own)}</li>\n" for own in MEANS_NOT),
        terms="".join(
            f'<dt id="{_id(name)}">{_text(name)}</dt><dd>{_text(own)}</dd>\n'
            for name, own in TERMS.items()
        ),
        versions=_text(", ".join(f"{name} {own}" for name, own in record["versions"].items())),
        created=_text(record["created"]),
        command=_text(record["command"]),
    )


def term(name: str, shown: str | None = None) -> str:
    """A term of `TERMS` as HTML that explains itself on hover and on focus."""
    own = f'tabindex="0" aria-describedby="{_id(name)}" data-means="{_text(TERMS[name])}"'
    return f'<span class="term" {own}>{_text(shown or name)}</span>'


def _level(level: str, risk: str) -> str:
    current = ' aria-current="true"' if level == risk else ""
    return f'<li class="{_state(level)}"{current}>{_text(level)}</li>'


def _state(risk: str) -> str:
    """The class of a risk level."""
    return "state-" + risk.replace(" ", "-")


def _figure(record: Record) -> str:
    """The figures of the trial."""
    known, said = record["features"], ""
    if known is not None:
        errors = [own for own in known["error"] if own is not None]
        error = f", relative error {max(errors):.0e} at most" if errors else ""
        said = (
            f"<p>{term('features', 'Features')} that enter {_text(known['layer'])}, "
            f"{known['count']} numbers: <strong>{known['exact']} of {known['tried']}</strong> exact"
            f"{error}; labels right: {known['labels_right']} of {known['tried']}.</p>"
        )
    return _recovered(record["trial"]) + said


def _recovered(tried: Record | None) -> str:
    """Images recovered of those that were tried, and how well the others are shown."""
    if tried is None:
        return "<p>No image was computed.</p>"
    low, high = (f"{100 * end:.0f}" for end in tried["interval"])
    said = (
        f"<p><strong>{tried['recovered']} of {tried['tried']}</strong> images "
        f"{term('recovered')} (95 % {term('interval')}: {low} to {high} %).</p>"
    )
    if tried["psnr_of_recovered"] is not None:
        said += f"<p>{term('PSNR')} of these: {tried['psnr_of_recovered']:.0f} dB (median).</p>"
    if tried["psnr_of_rest"] is not None:
        flat = sorted(tried["psnr_flat"])[len(tried["psnr_flat"]) // 2]
        said += (
            f"<p>{term('PSNR')} of the rest: {tried['psnr_of_rest']:.0f} dB (median); a "
            f"{term('flat image')}: {flat:.0f} dB.</p>"
        )
    if tried["unique_and_wrong"]:
        said += "<p>An image was called unique and is wrong: a defect of rconv, please report.</p>"
    return said


def _pairs(audit: Audit) -> str:
    """Originals beside reconstructions, best first."""
    if audit.trial is None:
        return ""
    pairs, order = images_of(audit.trial)[:PAIRS], sorted(audit.trial.psnr.tolist(), reverse=True)
    figures = []
    for (truth, found), decibels in zip(pairs, order, strict=False):
        both = "".join(
            f'<div><img src="{data_url(own)}" alt="{name}"><span>{name}</span></div>'
            for name, own in (("original", truth), ("reconstruction", found))
        )
        figures.append(f"<figure>{both}<figcaption>{decibels:.0f} dB</figcaption></figure>")
    return f'<div class="pairs">{"".join(figures)}</div>'


def _setup(record: Record) -> str:
    """What was assumed."""
    own, model = record["threat_model"], record["model"]
    behind = own["batch"] * own["clients"]
    facts = {
        "Model": f"{model['name']}, {model['parameters']:,} parameters",
        "Mode": term(f"{own['mode']} mode"),
        "Images behind one gradient": f"{behind}"
        + (f" ({own['clients']} clients, {own['batch']} each)" if own["clients"] > 1 else ""),
        "Numbers sent": own["dtype"],
        "Local steps": f"{own['steps']}",
        "DP noise": f"σ = {own['noise']:g}" if own["noise"] else "none",
        "The attacker knows": ", ".join(own["attacker_knows"]),
        "Images tried": record["trial"]["source"]
        if record["trial"]
        else "none, features alone"
        if record["features"]
        else "none",
    }
    return "".join(
        f"<dt>{name}</dt><dd>{value if value.startswith('<span') else _text(value)}</dd>\n"
        for name, value in facts.items()
    )


def _scenarios(cells: Sequence[Record]) -> str:
    """The matrix: a row for each respect, a cell for each value."""
    if not cells:
        return "<p>No other scenario was tried.</p>"
    known = {name.lower(): name for name in TERMS}
    rows = []
    for respect, group in groupby(cells, key=lambda cell: cell["respect"]):
        own = known.get(respect.lower())
        head = term(own, respect) if own else _text(respect)
        items = "".join(map(_cell, group))
        rows.append(f'<tr><th scope="row">{head}</th><td><ul>{items}</ul></td></tr>')
    late = [cell["reason"] for cell in cells if cell["reason"].startswith(f"{NOT_RUN} within")]
    said = ""
    if late:
        said = f"<p>{len(late)} scenarios were {_text(late[0])}; --time-limit 0 runs all.</p>"
    return f'{said}<table class="matrix"><tbody>{"".join(rows)}</tbody></table>'


def _cell(cell: Record) -> str:
    value = _text(cell["value"])
    if cell["noise"]:
        value = value.replace("σ", term("σ"))
    elif cell["value"] in TERMS:
        value = term(cell["value"])
    result = ""
    if cell["tried"]:
        psnr = "" if cell["psnr"] is None else f", {cell['psnr']:.0f} dB"
        result = f"<span>{cell['recovered']} of {cell['tried']} recovered{psnr}</span>"
    if cell["features"]:
        result += f"<span>{term('features')} exact: {cell['features']}</span>"
    if cell["epsilon"] is not None:
        epsilon = f"{cell['epsilon']:,.{1 if cell['epsilon'] < 100 else 0}f}"
        result += f"<span>{term('ε')} = {epsilon} for one step</span>"
    why = ""
    if cell["reason"] and not cell["reason"].startswith(f"{NOT_RUN} within"):
        why = f"<details><summary>why</summary>{_text(cell['reason'])}</details>"
    return (
        f'<li class="{_state(cell["risk"])}"><b>{value}</b> <em>{_text(cell["risk"])}</em>'
        f"{result}{why}</li>"
    )


def _layers(record: Record) -> str:
    """The table of layers, or what the refusal names."""
    if record["refusal"] is not None:
        reasons = record["refusal"]["reasons"]
        said = (f"{reason['layer']}: {reason['reason']}" if reason["layer"] else reason["reason"]
                for reason in reasons)  # fmt: skip
        return f"<ul>{''.join(f'<li>{_text(own)}</li>' for own in said)}</ul>"
    names = ("unknowns", "rank", "open", "filters (needed)")
    header = ["layer", *map(term, names), "open in the trial", "by rank"]
    body = []
    for own in record["layers"]:
        open_ = None if own["rank"] is None else own["unknowns"] - own["rank"]
        filters = zip(own["filters"], own["filters_needed"], strict=True)
        cells = (
            own["unknowns"],
            _known(own["rank"]),
            _known(open_),
            ", ".join(f"{a} ({_known(b)})" for a, b in filters) or "–",
            "–" if own["open_in_trial"] is None else f"{own['open_in_trial']:g}",
            own["verdict"] or "–",
        )
        labels = (*names, "open in the trial", "by rank")
        body.append(
            f'<tr><th scope="row">{_text(own["name"])}: {_text(own["kind"])}</th>'
            + "".join(f'<td data-label="{label}">{_text(cell)}</td>'
                      for label, cell in zip(labels, cells, strict=True))
            + "</tr>"
        )  # fmt: skip
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    head, rows = f"<thead><tr>{head}</tr></thead>", "".join(body)
    return f'<table class="layers">{head}<tbody>{rows}</tbody></table>'


def data_url(image: Tensor) -> str:
    """An image as the address of a PNG that contains it.

    Parameters
    ----------
    image : Tensor
        (C, H, W), values in [0, 1]. Of other numbers of channels than three, their mean is shown.
    """
    if image.shape[0] != 3:
        image = image.mean(dim=0, keepdim=True)
    channels, height, width = image.shape
    pixels = (255 * image.nan_to_num()).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    rows = b"".join(b"\0" + bytes(row.flatten().tolist()) for row in pixels)
    kind = 2 if channels == 3 else 0  # RGB, or grey
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    )
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(own)) + name + own + struct.pack(">I", zlib.crc32(name + own))
        for name, own in parts
    )
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _id(name: str) -> str:
    return "term-" + "-".join("".join(c if c.isalnum() else " " for c in name).split())


def _known(number: int | None) -> int | str:
    return "–" if number is None else number


def _text(value: Any) -> str:
    """Text as HTML; what is not to be seen but steers a page, as its escape."""
    return escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value)))
