"""The commands: `rconv` reconstructs, `rconv audit` judges, and two helpers."""

import argparse
import sys
import time

from torch import Tensor, nn

from rconv.attack.attack import Attack
from rconv.audit import audit, overall
from rconv.cli.paths import check_files
from rconv.cli.received import check_update, read_received
from rconv.cli.terminal import say
from rconv.data import datasets
from rconv.lab import architectures
from rconv.lab.experiment import client_gradients, model_settings, run, shared_model
from rconv.lab.outcome import LAYER_COLUMNS
from rconv.lab.records import Record, make_records, summary, table, write_json
from rconv.lab.trial import trial
from rconv.model.weights import check_weights
from rconv.observe.check import check_gradients
from rconv.observe.exchange import write_tensors


def attack(arguments: argparse.Namespace) -> None:
    """Reconstruct, from a dataset's images or a file of gradients; write what is asked for."""
    a = arguments
    check_update(a)
    names = ("gradients", "weights", "before", "after")
    check_files(
        {"--out": a.out, "--json": a.json}, {f"--{name}": getattr(a, name) for name in names}
    )
    if a.out is not None:
        from rconv.show import figures  # matplotlib, which only a picture needs

        figures.picture_format(a.out)
    constraints = a.constraints.split(",") if "," in a.constraints else a.constraints
    attacked = _attack_images if a.gradients is None and a.after is None else _attack_file
    records, images, originals = attacked(a, constraints)
    try:
        if a.json is not None:
            write_json(a.json, records)
        if a.out is not None:
            alone = originals is None
            images = images.cpu()
            picture = figures.gallery(images) if alone else figures.comparison(originals, images)
            figures.save(picture, a.out)
    finally:  # a full disk does not take the answer too
        say(summary(records))


Attacked = tuple[list[Record], Tensor, Tensor | None]
"""Records, reconstructions and originals, the last two (N, C, H, W)."""


def _attack_images(arguments: argparse.Namespace, constraints: str | list[str]) -> Attacked:
    experiment = run(
        arguments.dataset,
        datasets.parse_indices(arguments.index),
        arguments.architecture,
        arguments.activation,
        dtype=arguments.dtype,
        constraints=constraints,
        device=arguments.device,
        data_dir=arguments.data_dir,
        progress=_watched(),
        **_options(arguments),
    )
    if arguments.strict:
        experiment.reconstruction.raise_if_short()
    return experiment.records, experiment.reconstruction.images, experiment.truth.images


def _attack_file(arguments: argparse.Namespace, constraints: str | list[str]) -> Attacked:
    received = read_received(arguments)
    if arguments.before is not None:
        arguments.weights = arguments.before
    model = _model(arguments, received.dtype)
    prepared = Attack(model, (model[0].in_channels, 32, 32), constraints=constraints)
    start = time.perf_counter()
    reconstruction = prepared(
        received.gradients,
        noise=received.noise,
        strict=arguments.strict,
        progress=_watched(),
    )
    settings = {
        **model_settings(arguments.architecture, arguments.activation, **_options(arguments)),
        "dtype": received.dtype,
        "constraints": arguments.constraints,
        **received.settings,
        "seconds": (time.perf_counter() - start) / len(reconstruction.images),
    }
    return make_records(reconstruction, settings), reconstruction.images, None


def _watched() -> bool:
    """Whether somebody sees a progress bar."""
    return sys.stderr is not None and sys.stderr.isatty()


def _model(arguments: argparse.Namespace, dtype: str) -> nn.Sequential:
    model = shared_model(
        arguments.dataset,
        arguments.architecture,
        arguments.activation,
        dtype=dtype,
        device=getattr(arguments, "device", "cpu"),
        **_options(arguments),
    )
    check_weights(model)
    return model


def _options(arguments: argparse.Namespace) -> dict:
    """The settings of the model that were given; the others have their defaults in the lab."""
    names = ("seed", "filters", "initialisation", "weights")
    given = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def judge(arguments: argparse.Namespace) -> None:
    """Audit an architecture by its generic rank, then try its weights on images."""
    a = arguments
    model, shape = _model(a, "float64"), (datasets.CHANNELS[a.dataset], 32, 32)
    given = None
    if a.index is not None:
        given = datasets.load(a.dataset, datasets.parse_indices(a.index), data_dir=a.data_dir)
    layers = audit(model, shape, active=a.active)
    header = "layer,unknowns,counted,generic rank,weight rows,hybrid rank,verdict".split(",")
    rows = [
        (a.name, a.unknowns, a.counted, a.gradient_rank, a.weight_rows, a.hybrid_rank, a.verdict)
        for a in layers
    ]
    generic = overall(layers)
    say(f"{table(header, rows)}\n{a.architecture} on {a.dataset}: {generic}")
    if given is not None or a.trials:
        _try(model, shape, given, a, generic)


def _try(
    model: nn.Sequential,
    shape: tuple[int, int, int],
    given: datasets.Images | None,
    arguments: argparse.Namespace,
    generic: str,
) -> None:
    """Attack the given images or photographs, and say what came of it."""
    images = labels = None
    if given is not None:
        images, labels = given.images, architectures.targets(arguments.architecture, given.labels)
    options = {"count": arguments.trials, "dtype": arguments.dtype, "progress": _watched()}
    found = trial(model, shape, images, labels, **options)
    source = found.source if given is None else f"images of {given.name}"
    rate, low, high = found.share
    rows = [(name, n, *(f"{d:g}" for d in rest)) for name, n, *rest in found.layers]
    lines = [
        f"\nTried with these weights: {len(found.psnr)} {source}, gradients in {found.dtype}",
        table(LAYER_COLUMNS, rows),
        f"unique: {rate:.0%} (95 % interval {low:.0%} to {high:.0%}); "
        f"at 40 dB or more: {found.clear} of {len(found.psnr)}",
        found.verdict,
        found.beside(generic),
    ]
    say("\n".join(line for line in lines if line))


def observe(arguments: argparse.Namespace) -> None:
    """Write the gradients that clients would send, and the model's weights."""
    outputs = {"--gradients": arguments.gradients, "--save-weights": arguments.save_weights}
    check_files(outputs, {"--weights": arguments.weights})
    model = _model(arguments, arguments.dtype)
    indices = datasets.parse_indices(arguments.index)
    truth = datasets.load(arguments.dataset, indices, data_dir=arguments.data_dir)
    gradients = client_gradients(model, arguments.architecture, truth, arguments.dtype)
    check_gradients(model, gradients)
    write_tensors(arguments.gradients, gradients)
    if arguments.save_weights is not None:
        write_tensors(arguments.save_weights, model.state_dict())
    say(f"gradients of {len(truth)} images of {truth.name}: {arguments.gradients}")


def snapshot(arguments: argparse.Namespace) -> None:
    """Write the first images of a dataset to a file of their own."""
    a = arguments
    say(str(datasets.write_snapshot(a.dataset, a.count, a.data_dir, a.out_dir)))


COMMANDS = {"attack": attack, "audit": judge, "observe": observe, "snapshot": snapshot}
"""Name → what is done with its arguments."""
