"""The commands: `rconv` reconstructs, `rconv audit` judges, and two helpers."""

import argparse
import time
from functools import partial

from rconv.attack.attack import Attack
from rconv.attack.report import Reconstruction
from rconv.cli.inputs import check_data, check_roles, check_update, read_received
from rconv.cli.models import check_model, images_for, shared
from rconv.cli.output import ResultWriter, check_files
from rconv.cli.terminal import say, watched
from rconv.data import datasets
from rconv.files import claimed
from rconv.lab.experiment import Experiment, attack_images, client_gradients
from rconv.lab.records import score
from rconv.observe.buffers import buffers_after
from rconv.observe.check import check_gradients
from rconv.observe.exchange import write_tensors


def attack(arguments: argparse.Namespace) -> None:
    """Reconstruct, from a dataset's images or a file of gradients; write what is asked for."""
    a = arguments
    check_model(a)
    check_update(a)
    check_data(a.dataset, a.data_dir)
    names = ("gradients", "weights", "before", "after", "buffers")
    outputs = {"--out": a.out, "--json": a.json}
    check_files(outputs, {f"--{name}": getattr(a, name) for name in names})
    constraints = a.constraints.split(",") if "," in a.constraints else a.constraints
    writer = ResultWriter(a.json, a.out)
    attacked = _attack_images if a.gradients is None and a.after is None else _attack_file
    with claimed(path for path in outputs.values() if path is not None):
        try:
            attacked(a, constraints, writer)
        finally:  # what is finished stays, whatever ends the rest
            writer.close()


def _attack_images(
    arguments: argparse.Namespace, constraints: str | list[str], writer: ResultWriter
) -> None:
    a = arguments
    options = {"dtype": a.dtype, "constraints": constraints, "batch": a.batch}
    options |= {"progress": watched(), "on_result": partial(_keep, writer)}
    asked = shared(a, a.dtype)
    check_roles(a, asked.model)
    truth = images_for(a, asked.input_shape)
    settings = {"dataset": a.dataset, **asked.settings}
    experiment = attack_images(asked.model, truth, asked.architecture, settings, **options)
    writer.clear()
    _keep(writer, experiment)
    if a.strict:
        experiment.reconstruction.raise_if_short()


def _keep(writer: ResultWriter, experiment: Experiment) -> None:
    images = experiment.reconstruction.images
    writer.add(experiment.records, images, experiment.truth.images)


def _attack_file(
    arguments: argparse.Namespace, constraints: str | list[str], writer: ResultWriter
) -> None:
    received = read_received(arguments)
    if arguments.before is not None:
        arguments.weights = arguments.before
    asked = shared(arguments, received.dtype)
    prepared = Attack(asked.model, asked.input_shape, constraints=constraints)
    check_roles(arguments, asked.model, received.gradients)
    settings = {**asked.settings, "dtype": received.dtype, "constraints": arguments.constraints}
    settings |= received.settings
    if arguments.batch != 1:
        settings["batch"] = arguments.batch
    start = time.perf_counter()

    def keep(found: Reconstruction) -> None:
        first = len(writer.records)
        seconds = (time.perf_counter() - start) / (first + len(found.images))
        records = score(found, None, {**settings, "seconds": seconds}, first=first)
        writer.add(records, found.images, None)

    reconstruction = prepared(
        received.gradients,
        batch=arguments.batch,
        noise=received.noise,
        buffers=received.buffers,
        progress=watched(),
        on_result=keep,
    )
    writer.clear()
    keep(reconstruction)
    if arguments.strict:
        reconstruction.raise_if_short()


def observe(arguments: argparse.Namespace) -> None:
    """Write the gradients that clients would send, and the model's weights."""
    a = arguments
    outputs = {"--gradients": a.gradients, "--save-weights": a.save_weights, "--buffers": a.buffers}
    check_model(a)
    check_data(a.dataset, a.data_dir)
    check_files(outputs, {"--weights": a.weights})
    with claimed(path for path in outputs.values() if path is not None):
        asked = shared(a, a.dtype)
        model = asked.model
        check_roles(a, model)
        truth = images_for(a, asked.input_shape)
        options = {"dtype": a.dtype, "together": a.batch}
        gradients = client_gradients(model, asked.architecture, truth, **options)
        check_gradients(model, gradients)
        write_tensors(a.gradients, gradients)
        if a.save_weights is not None:
            write_tensors(a.save_weights, model.state_dict())
        if a.buffers is not None:
            write_tensors(a.buffers, buffers_after(model, truth.images, a.batch))
    what = "mean gradient" if a.batch else "gradients"
    say(f"{what} of {len(truth)} images of {truth.name}: {a.gradients}")


def audit(arguments: argparse.Namespace) -> int:
    """Judge a training setup by rank and by trials; the exit code says what came of it."""
    from rconv.cli.audit import run_audit  # slow imports that an attack does not need

    return run_audit(arguments)


def snapshot(arguments: argparse.Namespace) -> None:
    """Write the first images of a dataset to a file of their own."""
    a = arguments
    check_data(a.dataset, a.data_dir)
    say(str(datasets.write_snapshot(a.dataset, a.count, a.data_dir, a.out_dir)))


COMMANDS = {"attack": attack, "audit": audit, "observe": observe, "snapshot": snapshot}
"""Name → what is done with its arguments."""
