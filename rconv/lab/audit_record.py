"""The whole audit as one record: rank, trial, scenarios, verdict and what to do, as JSON values.

`audit.schema.json` beside this file describes it. The record is what the command line prints,
writes, and draws as a page.
"""

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from rconv.attack.entry_points import entry_points
from rconv.audit import HYBRID, NOT_UNIQUE, TOO_LARGE, Findings, examine, weakest
from rconv.lab.intervals import rate_interval
from rconv.lab.records import Record, finite
from rconv.lab.scenarios import Scenario, matrix
from rconv.lab.trial import LEAKS, NOT_BY_THIS_ATTACK, PARTLY, Trial, trial
from rconv.model.graph import first_line
from rconv.model.nodes import UnsupportedModelError

SCHEMA_VERSION = "1.0"
"""Of `audit.schema.json`: the second number grows with new fields, the first with changed ones."""

NOT_SUPPORTED, NOT_RUN = "not supported", "not run"

MEANINGS = {
    LEAKS: "At least one of the images that were tried was recovered, at 40 dB or more or as the "
    "only image that explains the gradients.",
    PARTLY: "No image was recovered, but some information about one was: at least one "
    "reconstruction has less than half the error of a flat grey image.",
    NOT_BY_THIS_ATTACK: "No reconstruction has less than half the error of a flat grey image. "
    "Other attacks may show more.",
    NOT_SUPPORTED: "The audit has no answer for this model. That says nothing about its privacy.",
}
"""Risk level → what it means."""


@dataclass(frozen=True)
class Audit:
    """A record, as `audit.schema.json` describes it, and what it was made of.

    `findings` is None where the model cannot be read, `trial` where no image was tried.
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
    time_limit: float = 0.0,
    command: str = "",
    announce: Callable[[str], Any] | None = None,
) -> Audit:
    """Judge a model by rank, by a trial, and in the scenarios that there is time for.

    Parameters
    ----------
    model : Module
        With the weights that are asked about; is put into the mode of the scenario.
    scenario : Scenario, optional
        By default one step on one image, evaluation mode, float32.
    images, labels : Tensor, optional
        As `rconv.lab.trial.trial` takes them; by default so many photographs as `trials` says,
        where 0 means the rank alone.
    active : float
        As `rconv.audit.audit` takes it.
    time_limit : float
        Seconds after which no further scenario starts; 0 for none of them.
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
    given = {"images": images, "labels": labels}
    found, refusal = _accepted(lambda: examine(model, input_shape, active=active))
    tried = None
    if trials or images is not None:
        chosen = {**_enough(given, scenario, trials), "progress": announce is not None}
        tried, refusal = _accepted(lambda: trial(model, input_shape, scenario=scenario, **chosen))
    reasons = [{"layer": layer, "reason": r} for layer, r in getattr(refusal, "reasons", ())]
    record: Record = {
        **_question(model, input_shape, name, scenario, command),
        "rank": _rank(found, active),
        "trial": None if tried is None else _trial(tried),
        "layers": _layers(model, found, tried),
        "refusal": refusal and {"message": str(refusal), "reasons": reasons},
    }
    record["verdict"] = _verdict(record, found, tried)
    if time_limit > 0 and (trials or images is not None):
        announce = announce or (lambda text: None)
        announce(f"{record['verdict']['sentence']} Now other scenarios, for the report.")
        known = {scenario: _outcome(tried, str(refusal or ""))}
        record["scenarios"] = _scenarios(model, input_shape, given, known, time_limit, announce)
        record["verdict"] = _verdict(record, found, tried)
    return Audit(record, found, tried)


def _accepted(judged: Callable[[], Any]) -> tuple[Any, UnsupportedModelError | None]:
    """What comes of it, or the refusal."""
    try:
        return judged(), None
    except UnsupportedModelError as error:
        return None, error


def _check_shape(model: nn.Module, input_shape: tuple[int, int, int]) -> nn.Module:
    image = torch.zeros(1, *input_shape).to(next(model.parameters(), torch.zeros(1)))
    try:
        with torch.no_grad():
            model(image)
    except Exception as error:
        shape, reason = tuple(input_shape), first_line(error)
        raise ValueError(f"the model takes no image of the shape {shape}: {reason}") from error
    return model


def _enough(given: Record, scenario: Scenario, trials: int) -> Record:
    """Images for a scenario: as many as are behind one gradient, or all that are to be tried."""
    count = trials if scenario.together == 1 else scenario.together
    if given["images"] is None:
        return {"count": count}
    if scenario.together == 1:
        return given
    return {key: value[:count] for key, value in given.items()}


def _scenarios(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    given: Record,
    known: dict[Scenario, Record],
    limit: float,
    announce: Callable[[str], Any],
) -> list[Record]:
    """One entry for each scenario; those that there is no time for say so.

    `known` starts with the outcome of the user's scenario and collects the others.
    """
    whole, start = matrix(next(iter(known))), time.monotonic()
    respects = [respect for respect, *_ in whole]
    # The first of each respect, then the second, so that none is missing where time is short.
    order = sorted(range(len(whole)), key=lambda i: i - respects.index(respects[i]))
    for respect, value, scenario in (whole[i] for i in order):
        if scenario not in known:
            if time.monotonic() - start > limit:
                known[scenario] = _outcome(None, f"{NOT_RUN} within {limit:g} s")
            else:
                announce(f"trying {respect}: {value}")
                known[scenario] = _attempt(model, input_shape, given, scenario)
    return [
        {"respect": respect, "value": value, **_setup(scenario), **known[scenario]}
        for respect, value, scenario in whole
    ]


def _attempt(
    model: nn.Module, input_shape: tuple[int, int, int], given: Record, scenario: Scenario
) -> Record:
    """What came of one scenario, on two images where each has a gradient of its own."""
    try:
        chosen = _enough(given, scenario, 2)
        return _outcome(trial(model, input_shape, **chosen, scenario=scenario))
    except ValueError as error:  # among them UnsupportedModelError
        return _outcome(None, str(error))


def _outcome(tried: Trial | None, reason: str = "") -> Record:
    if tried is None:
        risk = NOT_RUN if reason.startswith(NOT_RUN) else NOT_SUPPORTED
        return {"risk": risk, "tried": 0, "recovered": 0, "psnr": None, "reason": reason}
    return {
        "risk": tried.risk,
        "tried": len(tried.psnr),
        "recovered": int(tried.recovered.sum()),
        "psnr": finite(tried.psnr.median()),
        "reason": next(filter(None, tried.reconstruction.diagnostics), ""),
    }


def _question(
    model: nn.Module, shape: tuple[int, int, int], name: str, scenario: Scenario, command: str
) -> Record:
    """The model, the setup and the versions that the audit is about, before anything is tried."""
    packages = {name: version(name) for name in ("rconv", "torch", "numpy", "scipy")}
    knows = ["model code", "weights", "buffers", "range of the pixels", "loss"]
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": {"python": platform.python_version(), **packages},
        "model": {
            "name": name,
            "input_shape": list(shape),
            "parameters": sum(p.numel() for p in model.parameters()),
            "buffers": [buffer for buffer, _ in model.named_buffers()],
        },
        "threat_model": {**_setup(scenario), "attacker_knows": knows},
        "scenarios": [],
    }


def _setup(scenario: Scenario) -> Record:
    return {**asdict(scenario), "epsilon": scenario.epsilon}


def _rank(found: Findings | None, active: float) -> Record | None:
    """What the equations determine for random data, and how many images one gradient may have."""
    if found is None:
        return None
    least = weakest(found.batches) if found.batches else None
    return {
        "verdict": found.verdict,
        "active": active,
        "largest_batch": getattr(least, "largest", None),
        "largest_batch_layer": getattr(least, "name", None),
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
        "psnr": [finite(decibels) for decibels in tried.psnr],
        "psnr_flat": [finite(decibels) for decibels in tried.flat],
        "psnr_of_recovered": finite(tried.psnr[recovered].median()) if any(ones) else None,
        "psnr_of_rest": finite(tried.psnr[rest].median()) if not all(ones) else None,
        "reasons": list(tried.reconstruction.diagnostics),
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
        layer, row = judged.get(name), measured.get(name)
        widths = [] if found is None else [w for w in found.widths if w.layer == name]
        kind = " and ".join(_kind(model, part) for part in name.split(" and "))
        ranks = ("counted", "gradient_rank", "weight_rows", "verdict")
        layers.append(
            {
                "name": name,
                "kind": kind + followed.get(name, ""),
                "unknowns": row[1] if layer is None else layer.unknowns,
                **{key: getattr(layer, key, None) for key in ranks},
                "rank": getattr(layer, "hybrid_rank", None),
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


def _verdict(record: Record, found: Findings | None, tried: Trial | None) -> Record:
    if record["refusal"] is not None:
        risk = NOT_SUPPORTED
    elif tried is not None:
        risk = tried.risk
    else:
        risk = PARTLY if found.verdict in (NOT_UNIQUE, TOO_LARGE) else LEAKS
    return {
        "risk": risk,
        "sentence": _sentence(risk, record, found),
        "meaning": MEANINGS[risk] if tried or record["refusal"] else "By rank alone.",
        "action": _action(risk, record),
        "caveat": "" if tried is None or found is None else tried.beside(found.verdict),
    }


def _sentence(risk: str, record: Record, found: Findings | None) -> str:
    """The verdict, with the figures of the trial."""
    tried = record["trial"]
    if risk == NOT_SUPPORTED:
        reason = record["refusal"]["message"].split("; ")[0].rstrip(".")
        return f"rconv cannot judge this model: {reason}. This does not mean that it is private."
    if tried is None:
        return by_rank(found)
    of = f"{tried['tried']} image" + ("s" if tried["tried"] > 1 else "")
    if risk == LEAKS:
        return f"This setup leaks: the attack recovered {tried['recovered']} of {of}."
    best, flat = (max(filter(None, tried[key])) for key in ("psnr", "psnr_flat"))
    if risk == PARTLY:
        return (
            f"This setup leaks partly: 0 of {of} recovered, but {tried['visible']} recognisable in "
            f"part (up to {best:.0f} dB; a flat grey image has at most {flat:.0f} dB)."
        )
    return f"With this attack nothing is visible: 0 of {of} recovered, none recognisable in part."


def by_rank(found: Findings) -> str:
    """The verdict by rank in one sentence."""
    if found.verdict == TOO_LARGE:
        name = next(layer.name for layer in found.layers if layer.verdict == TOO_LARGE)
        return f"Undecided: the rank of {name} is too large to compute."
    if found.verdict == NOT_UNIQUE:
        short = [layer for layer in found.layers if layer.verdict == NOT_UNIQUE]
        worst = max(short, key=lambda layer: layer.open or 0)
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
    noisy = [tried for tried in record["scenarios"] if tried["noise"] > 0 and tried["tried"]]
    quiet = [tried for tried in noisy if tried["risk"] == NOT_BY_THIS_ATTACK]
    said = ""
    if quiet:
        least = min(quiet, key=lambda tried: tried["noise"])
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
