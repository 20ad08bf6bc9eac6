"""The whole audit as one record: rank, trial, scenarios, verdict and what to do, as JSON values.

`audit.schema.json` beside this file describes it. The record is what the command line prints,
writes, and draws as a page.
"""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from rconv.attack.entry_points import entry_points
from rconv.audit import HYBRID, NOT_UNIQUE, TOO_LARGE, Findings, examine, weakest
from rconv.lab.audit_trials import FIRST, NOT_SUPPORTED, Outcome, Trials, described
from rconv.lab.features import Features
from rconv.lab.intervals import rate_interval
from rconv.lab.records import Record, finite
from rconv.lab.scenarios import Scenario
from rconv.lab.trial import LEAKS, NOT_BY_THIS_ATTACK, PARTLY, Trial
from rconv.model.nodes import UnsupportedModelError

SCHEMA_VERSION = "2.0"
"""Of `audit.schema.json`: the second number grows with new fields, the first with changed ones."""

MEANINGS = {
    LEAKS: "At least one of the images that were tried was recovered, at 40 dB or more or as the "
    "only image that explains the gradients.",
    PARTLY: "No image was recovered, but some information about one was: a reconstruction has less "
    "than half the error of a flat grey image, or the numbers that enter a Linear were computed "
    "exactly. Others have rebuilt likenesses of images from such numbers; that was not tried.",
    NOT_BY_THIS_ATTACK: "No reconstruction has less than half the error of a flat grey image, and "
    "no input of a Linear was computed exactly. Other attacks may show more.",
    NOT_SUPPORTED: "The audit has no answer for this model. That says nothing about its privacy.",
}
"""Risk level → what it means."""


TWO = (
    "BatchNorm in training mode takes no channel of a single value, so a client cannot make a step "
    "on one such image: the audit takes two."
)
"""Caveat where a batch of one image is not possible."""


@dataclass(frozen=True)
class Audit:
    """A record, and the trial whose images it is about.

    Parameters
    ----------
    record : dict
        JSON values, as `audit.schema.json` describes them.
    findings : Findings or None
        The verdict by rank; None where the model cannot be read.
    trial : Trial or None
        None where no image was tried, or the attack on images is refused.
    """

    record: Record
    findings: Findings | None
    trial: Trial | None


def full_audit(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    name: str = "model",
    scenario: Scenario | None = None,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    trials: int = 4,
    active: float = 0.5,
    scenarios: bool = False,
    time_limit: float = torch.inf,
    command: str = "",
    announce: Callable[[str], Any] | None = None,
) -> Audit:
    """Judge a model by rank, by a trial, and in the scenarios that there is time for.

    Parameters
    ----------
    model : Module
        With the weights that are asked about; is put into the mode of the scenario.
    input_shape : tuple of int
        (C, H, W) of one image.
    name : str
        What it is called.
    scenario : Scenario, optional
        The user's own; by default one step on one image, evaluation mode, float32.
    images, labels : Tensor, optional
        As `rconv.lab.trial.trial` takes them; by default photographs.
    trials : int
        Number of photographs; 0 for the rank alone.
    active : float
        As `rconv.audit.audit` takes it.
    scenarios : bool
        Whether others are tried as well, as `rconv.lab.scenarios.matrix` lists them.
    time_limit : float
        Seconds within which all is to end: fewer images and fewer scenarios are tried then, but at
        least one image.
    command : str
        The command line that asked for it.
    announce : callable, optional
        Is called with the verdict as soon as it is known, and with the name of each scenario that
        starts; trials then show progress bars.

    Returns
    -------
    Audit
        Also of a model that is not supported, with the reason.

    Raises
    ------
    ValueError
        If the model takes no image of this shape, and as `trial`.
    """
    scenario = scenario or Scenario()
    _check_shape(model.eval(), input_shape).train(scenario.mode == "training")
    trials_of = Trials(model, input_shape, images, labels, trials, time_limit, announce)
    _, asked = trials_of.feasible("", scenario)
    found, refusal = _accepted(lambda: examine(model, input_shape, active=active))
    own = Outcome(refusal=refusal)
    attacked = bool(trials) or images is not None
    if attacked:
        own = trials_of.own(asked, FIRST if scenarios else 1.0)
    record: Record = {
        **_made(command),
        **_question(model, input_shape, name, asked),
        "rank": _rank(found, active),
        **_found(model, found, own),
    }
    if asked != scenario:
        record["verdict"]["caveat"] = TWO
    if scenarios and attacked:
        if announce is not None:
            announce(f"{record['verdict']['sentence']} Now other scenarios, for the report.")
        record["scenarios"] = trials_of.others(asked, own.record)
        record["verdict"]["action"] = _action(own.risk, record)
    return Audit(record, found, own.trial)


def _found(model: nn.Module, found: Findings | None, own: Outcome) -> Record:
    """What came of the user's own scenario, and the verdict."""
    record: Record = {
        "trial": None if own.trial is None else _trial(own.trial),
        "features": None if own.features is None else _features(own.features),
        "layers": _layers(model, found, own.trial),
        "refusal": None if own.refusal is None else _refusal(own.refusal),
    }
    return {**record, "verdict": _verdict(record, found, own)}


def _accepted(judged: Callable[[], Any]) -> tuple[Any, UnsupportedModelError | None]:
    """What comes of it, or the refusal."""
    try:
        return judged(), None
    except UnsupportedModelError as error:
        return None, error


def _made(command: str) -> Record:
    """Schema, time, command and versions."""
    names = ("rconv", "torch", "numpy", "scipy")
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in names},
        },
    }


def _check_shape(model: nn.Module, input_shape: tuple[int, int, int]) -> nn.Module:
    image = torch.zeros(1, *input_shape).to(next(model.parameters(), torch.zeros(1)))
    try:
        with torch.no_grad():
            model(image)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the model takes no image of the shape {tuple(input_shape)}: {reason}"
        ) from error
    return model


def _question(
    model: nn.Module, input_shape: tuple[int, int, int], name: str, scenario: Scenario
) -> Record:
    """The model and the setup that the audit is about, before anything is tried."""
    asked = {
        "name": name,
        "input_shape": list(input_shape),
        "parameters": sum(p.numel() for p in model.parameters()),
        "buffers": [own for own, _ in model.named_buffers()],
    }
    knows = ["model code", "weights", "buffers", "range of the pixels", "loss"]
    threat_model = {**described(scenario), "attacker_knows": knows}
    return {"model": asked, "threat_model": threat_model, "scenarios": []}


def _rank(found: Findings | None, active: float) -> Record | None:
    """What the equations determine for random data, and how many images one gradient may have."""
    if found is None:
        return None
    least = weakest(found.batches) if found.batches else None
    return {
        "verdict": found.verdict,
        "active": active,
        "largest_batch": None if least is None else least.largest,
        "largest_batch_layer": None if least is None else least.name,
    }


def _trial(tried: Trial) -> Record:
    recovered, rest = tried.recovered, ~tried.recovered
    ones = recovered.int().tolist()
    return {
        "source": tried.source,
        "dtype": tried.dtype,
        "tried": len(ones),
        "recovered": sum(ones),
        "interval": list(rate_interval(ones, [1] * len(ones))),
        "unique": int(tried.unique.sum()),
        "unique_and_wrong": int(tried.false.sum()),
        "visible": int(tried.visible.sum()),
        "psnr": [finite(own) for own in tried.psnr],
        "psnr_flat": [finite(own) for own in tried.flat],
        "psnr_of_recovered": finite(median(tried.psnr[recovered].tolist())) if any(ones) else None,
        "psnr_of_rest": finite(median(tried.psnr[rest].tolist())) if not all(ones) else None,
        "reasons": list(tried.reconstruction.diagnostics),
    }


def _features(known: Features) -> Record:
    return {
        "layer": known.layer,
        "count": known.count,
        "tried": len(known.error),
        "exact": int(known.exact.sum()),
        "labels_right": int(known.labels.sum()),
        "error": [finite(own) for own in known.error],
    }


def _layers(model: nn.Module, found: Findings | None, tried: Trial | None) -> list[Record]:
    """What is known of each layer, head first: by rank, and in the trial."""
    if found is None and tried is None:
        return []
    measured = {} if tried is None else {layer[0]: layer for layer in tried.layers}
    judged = {} if found is None else {layer.name: layer for layer in found.layers}
    followed = _followers(model, found, tried)
    layers = []
    for name in judged or measured:
        own, row = judged.get(name), measured.get(name)
        widths = [] if found is None else [w for w in found.widths if w.layer == name]
        layers.append(
            {
                "name": name,
                "kind": " and ".join(_kind(model, part) for part in name.split(" and "))
                + followed.get(name, ""),
                "unknowns": row[1] if own is None else own.unknowns,
                "counted": None if own is None else own.counted,
                "gradient_rank": None if own is None else own.gradient_rank,
                "weight_rows": None if own is None else own.weight_rows,
                "rank": None if own is None else own.hybrid_rank,
                "verdict": None if own is None else own.verdict,
                "filters": [w.filters for w in widths],
                "filters_needed": [w.needed for w in widths],
                "open_in_trial": None if row is None else row[4],
            }
        )
    return layers


def _followers(model: nn.Module, found: Findings | None, tried: Trial | None) -> dict[str, str]:
    """Convolution → the layers that are solved for together with it, where only a trial knows."""
    if found is not None or tried is None:
        return {}
    stages = entry_points(model, tuple(tried.truth.shape[1:]))[0].network.stages
    blocks = [stage for stage in stages if not stage.linear]
    return {
        block.name: "".join(f" and {type(module).__name__}" for _, module in block.layers)
        for block in blocks
    }


def _kind(model: nn.Module, name: str) -> str:
    """Such as "Conv2d 8→8, 3×3, stride 2"; the class alone of other modules; "" for none."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return ""
    if isinstance(module, nn.Conv2d):
        kernel, stride = ("×".join(map(str, pair)) for pair in (module.kernel_size, module.stride))
        step = "" if module.stride == (1, 1) else f", stride {stride}"
        return f"Conv2d {module.in_channels}→{module.out_channels}, {kernel}{step}"
    if isinstance(module, nn.Linear):
        return f"Linear {module.in_features}→{module.out_features}"
    return type(module).__name__


def _refusal(error: UnsupportedModelError) -> Record:
    reasons = [{"layer": layer, "reason": reason} for layer, reason in error.reasons]
    return {"message": str(error), "reasons": reasons}


def _verdict(record: Record, found: Findings | None, own: Outcome) -> Record:
    tried = own.trial
    if tried is not None or own.refusal is not None:
        risk, meaning = own.risk, MEANINGS[own.risk]
    else:
        risk = PARTLY if found.verdict in (NOT_UNIQUE, TOO_LARGE) else LEAKS
        meaning = "By rank alone."
    return {
        "risk": risk,
        "sentence": _sentence(risk, record, found),
        "meaning": meaning,
        "action": _action(risk, record),
        "caveat": "" if tried is None or found is None else tried.beside(found.verdict),
    }


def _sentence(risk: str, record: Record, found: Findings | None) -> str:
    """The verdict, with the figures of the trial."""
    tried, known = record["trial"], record["features"]
    if record["refusal"] is not None:
        reason = record["refusal"]["message"].split("; ")[0].rstrip(".")
        if risk == NOT_SUPPORTED:
            return (
                f"rconv cannot judge this model: {reason}. This does not mean that it is private."
            )
        return (
            f"This setup leaks partly: {features_found(known)}. The image itself is not determined "
            f"by this attack: {reason}."
        )
    if tried is None:
        return by_rank(found)
    of = f"{tried['tried']} image" + ("s" if tried["tried"] > 1 else "")
    if risk == LEAKS:
        return f"This setup leaks: the attack recovered {tried['recovered']} of {of}."
    if risk == PARTLY and tried["visible"]:
        best, flat = (max(filter(None, tried[key])) for key in ("psnr", "psnr_flat"))
        return (
            f"This setup leaks partly: 0 of {of} recovered, but {tried['visible']} recognisable in "
            f"part (up to {best:.0f} dB; a flat grey image has at most {flat:.0f} dB)."
        )
    if risk == PARTLY:
        return (
            f"This setup leaks partly: 0 of {of} recovered, none recognisable in part, but "
            f"{features_found(known)}."
        )
    return f"With this attack nothing is visible: 0 of {of} recovered, none recognisable in part."


def features_found(known: Record) -> str:
    """What the gradients of a Linear revealed, in words."""
    of = f"{known['tried']} image" + ("s" if known["tried"] > 1 else "")
    label = "the label and " if known["labels_right"] >= known["exact"] else ""
    exact = f"{known['exact']} of " if known["exact"] < known["tried"] else ""
    what = f"{label}the {known['count']} features that enter {known['layer']}"
    return f"{what} are exact for {exact}{of}"


def by_rank(found: Findings) -> str:
    """The verdict by rank in one sentence."""
    if found.verdict == TOO_LARGE:
        name = next(layer.name for layer in found.layers if layer.verdict == TOO_LARGE)
        return f"Undecided: the rank of {name} is too large to compute."
    if found.verdict == NOT_UNIQUE:
        short = [layer for layer in found.layers if layer.verdict == NOT_UNIQUE]
        worst = max(short, key=lambda own: own.open or 0)
        return (
            f"The equations do not determine the image: {worst.name} leaves "
            f"{worst.open or 'some'} of {worst.unknowns} directions of its input open. That alone "
            "is no privacy."
        )
    kinds = " of both kinds together" if found.verdict == HYBRID else ""
    return f"The equations{kinds} determine the image that a gradient was computed from: it leaks."


def _action(risk: str, record: Record) -> str:
    """The one thing to do."""
    if risk == NOT_SUPPORTED:
        return (
            "Treat the model as leaking until another attack has been tried on it, for example an "
            "optimisation-based one: see rconv.adapters.breaching."
        )
    if risk == NOT_BY_THIS_ATTACK:
        return (
            "Do not rely on this alone: try an optimisation-based attack as well (see "
            "rconv.adapters.breaching), and repeat the audit with trained weights and real images."
        )
    noisy = [own for own in record.get("scenarios", ()) if own["noise"] > 0 and own["tried"]]
    quiet = [own for own in noisy if own["risk"] == NOT_BY_THIS_ATTACK]
    said = ""
    if quiet:
        least = min(quiet, key=lambda own: own["noise"])
        said = (
            " Do not choose it from this trial, which is one attack: nothing was visible at "
            f"σ = {least['noise']:g}"
        )
        if least["epsilon"] is not None:
            said += f", where ε of a single step is {least['epsilon']:,.0f}; useful values have "
            said += "one digit"
        said += "."
    elif noisy:
        said = " The noise that was tried here did not stop the attack."
    return (
        "Train with DP-SGD, which clips the gradient of each image and adds noise. Let an "
        "accountant, such as that of Opacus, compute the noise from an ε that you can "
        f"accept.{said}"
    )


def above(risk: str, threshold: str) -> bool:
    """Whether a risk is at or above a threshold, "leaks" or "partly"."""
    return risk == LEAKS or (risk == PARTLY and threshold == PARTLY)


def images_of(tried: Trial) -> list[tuple[Tensor, Tensor]]:
    """Pairs of an original and its reconstruction, (C, H, W) in [0, 1], best first."""
    order = torch.argsort(tried.psnr, descending=True)
    shown = tried.reconstruction.images.clamp(0, 1)
    return [(tried.truth[i].cpu(), shown[i].cpu()) for i in order.tolist()]
