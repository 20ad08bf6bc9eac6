"""The commands: `rconv` reconstructs, `rconv audit` judges, and two helpers."""

import argparse
import time

from torch import Tensor

from rconv.attack.attack import Attack
from rconv.cli.judge import judge
from rconv.cli.models import DEFAULT, check_model, given_options, images_for, shared
from rconv.cli.paths import check_files
from rconv.cli.received import check_update, read_received
from rconv.cli.terminal import say, watched
from rconv.data import datasets
from rconv.lab.experiment import attack_images, client_gradients, run
from rconv.lab.records import Record, make_records, summary, write_json
from rconv.observe.check import check_gradients
from rconv.observe.exchange import write_tensors


def attack(arguments: argparse.Namespace) -> None:
    """Reconstruct, from a dataset's images or a file of gradients; write what is asked for."""
    a = arguments
    check_model(a)
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
    a = arguments
    options = {"dtype": a.dtype, "constraints": constraints, "batch": a.batch}
    options["progress"] = watched()
    if a.model is None:
        indices, name = datasets.parse_indices(a.index), a.architecture or DEFAULT
        options |= {**given_options(a), "device": a.device, "data_dir": a.data_dir}
        experiment = run(a.dataset, indices, name, a.activation, **options)
    else:
        own = shared(a, a.dtype)
        truth = images_for(a, own.input_shape)
        settings = {"dataset": a.dataset, **own.settings}
        experiment = attack_images(own.model, truth, None, settings, **options)
    if a.strict:
        experiment.reconstruction.raise_if_short()
    return experiment.records, experiment.reconstruction.images, experiment.truth.images


def _attack_file(arguments: argparse.Namespace, constraints: str | list[str]) -> Attacked:
    received = read_received(arguments)
    if arguments.before is not None:
        arguments.weights = arguments.before
    own = shared(arguments, received.dtype)
    prepared = Attack(own.model, own.input_shape, constraints=constraints)
    start = time.perf_counter()
    reconstruction = prepared(
        received.gradients,
        batch=arguments.batch,
        noise=received.noise,
        strict=arguments.strict,
        progress=watched(),
    )
    settings = {
        **own.settings,
        "dtype": received.dtype,
        "constraints": arguments.constraints,
        **received.settings,
        "seconds": (time.perf_counter() - start) / len(reconstruction.images),
    }
    if arguments.batch != 1:
        settings["batch"] = arguments.batch
    return make_records(reconstruction, settings), reconstruction.images, None


def observe(arguments: argparse.Namespace) -> None:
    """Write the gradients that clients would send, and the model's weights."""
    outputs = {"--gradients": arguments.gradients, "--save-weights": arguments.save_weights}
    check_model(arguments)
    check_files(outputs, {"--weights": arguments.weights})
    own = shared(arguments, arguments.dtype)
    truth = images_for(arguments, own.input_shape)
    options = {"dtype": arguments.dtype, "together": arguments.batch}
    gradients = client_gradients(own.model, own.architecture, truth, **options)
    check_gradients(own.model, gradients)
    write_tensors(arguments.gradients, gradients)
    if arguments.save_weights is not None:
        write_tensors(arguments.save_weights, own.model.state_dict())
    what = "mean gradient" if arguments.batch else "gradients"
    say(f"{what} of {len(truth)} images of {truth.name}: {arguments.gradients}")


def snapshot(arguments: argparse.Namespace) -> None:
    """Write the first images of a dataset to a file of their own."""
    a = arguments
    say(str(datasets.write_snapshot(a.dataset, a.count, a.data_dir, a.out_dir)))


COMMANDS = {"attack": attack, "audit": judge, "observe": observe, "snapshot": snapshot}
"""Name → what is done with its arguments."""
