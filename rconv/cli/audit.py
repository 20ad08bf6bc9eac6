"""`rconv audit`: the verdict on the terminal, as JSON and as a page, and as an exit code."""

import argparse
import json
import math

from torch import Tensor

from rconv.cli.inputs import check_data, check_roles
from rconv.cli.models import Shared, check_model, images_for, shared
from rconv.cli.output import check_files
from rconv.cli.terminal import complain, say, watched
from rconv.files import claimed, replacing
from rconv.lab import architectures
from rconv.lab.audit_record import Audit, above, full_audit
from rconv.lab.audit_trials import NOT_SUPPORTED
from rconv.lab.scenarios import Scenario
from rconv.show import audit as shown

REACHED, UNSUPPORTED = 3, 4
"""Exit codes: the risk is at or above the threshold; the attack does not support the model."""

TRIALS = 4
"""Photographs to try where no number is given."""


def run_audit(arguments: argparse.Namespace) -> int:
    """Audit a model, print and write what came of it.

    Parameters
    ----------
    arguments : Namespace
        As `rconv.cli.arguments` gives them.

    Returns
    -------
    int
        The exit code: 0, `REACHED` or `UNSUPPORTED`.
    """
    a = arguments
    check_model(a)
    check_data(a.dataset, a.data_dir)
    outputs = {"--json": a.json, "--html": a.html}
    check_files(outputs, {"--weights": a.weights})
    with claimed(path for path in outputs.values() if path is not None):
        model = shared(a, "float64")
        check_roles(a, model.model)
        audit = _audited(model, a)
        say(shown.text(audit))
        if a.json is not None:
            with replacing(a.json) as file:
                file.write((json.dumps(audit.record, indent=1, allow_nan=False) + "\n").encode())
        if a.html is not None:
            with replacing(a.html) as file:
                file.write(shown.page(audit).encode())
    risk = audit.record["verdict"]["risk"]
    if risk == NOT_SUPPORTED:
        return UNSUPPORTED
    return REACHED if a.fail_on and above(risk, a.fail_on) else 0


def _audited(model: Shared, arguments: argparse.Namespace) -> Audit:
    a = arguments
    images, labels = _given(model, a)
    scenario = Scenario(a.batch, a.clients, a.mode, a.dtype, a.steps, a.noise)
    return full_audit(
        model.model,
        model.input_shape,
        name=model.title,
        scenario=scenario,
        images=images,
        labels=labels,
        trials=TRIALS if a.trials is None else a.trials,
        active=a.active,
        scenarios=bool(a.json or a.html),
        time_limit=a.time_limit or math.inf,
        command=a.line,
        announce=complain if watched() else None,
    )


def _given(
    model: Shared, arguments: argparse.Namespace
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """The images that -i names, with labels as the model's loss takes them."""
    if arguments.index is None:
        return None, None
    given = images_for(arguments, model.input_shape)
    labels = given.labels
    if model.architecture is not None:
        labels = architectures.targets(model.architecture, labels)
    return given.images, labels
