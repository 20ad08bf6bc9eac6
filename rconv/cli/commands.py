"""The command line: `rconv` reconstructs, `rconv audit` judges, and two helpers."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from rconv.attack.attack import Attack
from rconv.audit import audit, overall
from rconv.cli.arguments import parser
from rconv.data import datasets
from rconv.lab.experiment import client_gradients, model_settings, run, shared_model
from rconv.lab.records import Record, make_records, summary, table, write_json
from rconv.observe.exchange import read_tensors, write_tensors
from rconv.show import figures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for bad input."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version")):
        argv.insert(0, "attack")
    arguments = parser().parse_args(argv)
    try:
        COMMANDS[arguments.command](arguments)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"rconv: error: {message}", file=sys.stderr)
        return 2
    return 0


def _attack(arguments: argparse.Namespace) -> None:
    _check_outputs(arguments.out, arguments.json)
    constraints = arguments.constraints
    if "," in constraints:
        constraints = constraints.split(",")
    if arguments.gradients:
        records, images = _attack_file(arguments, constraints)
        originals = None
    else:
        experiment = run(
            arguments.dataset,
            datasets.parse_indices(arguments.index),
            arguments.architecture,
            arguments.activation,
            dtype=arguments.dtype,
            constraints=constraints,
            device=arguments.device,
            data_dir=arguments.data_dir,
            progress=sys.stderr.isatty(),
            **_options(arguments),
        )
        if arguments.strict:
            experiment.reconstruction.raise_if_short()
        records, images = experiment.records, experiment.reconstruction.images
        originals = experiment.truth.images
    if arguments.json:
        write_json(arguments.json, records)
    if arguments.out:
        _write_picture(arguments.out, images.cpu(), originals)
    print(summary(records))


def _attack_file(
    arguments: argparse.Namespace, constraints: str | list[str]
) -> tuple[list[Record], Tensor]:
    gradients = read_tensors(arguments.gradients)
    model = _model(arguments, _dtype_of(gradients))
    attack = Attack(model, (model[0].in_channels, 32, 32), constraints=constraints)
    start = time.perf_counter()
    reconstruction = attack(gradients, strict=arguments.strict, progress=sys.stderr.isatty())
    settings = {
        **model_settings(arguments.architecture, arguments.activation, **_options(arguments)),
        "dtype": _dtype_of(gradients),
        "constraints": arguments.constraints,
        "gradients": arguments.gradients,
        "seconds": (time.perf_counter() - start) / len(reconstruction.images),
    }
    return make_records(reconstruction, settings), reconstruction.images


def _model(arguments: argparse.Namespace, dtype: str) -> nn.Sequential:
    return shared_model(
        arguments.dataset,
        arguments.architecture,
        arguments.activation,
        dtype=dtype,
        device=getattr(arguments, "device", "cpu"),
        **_options(arguments),
    )


def _options(arguments: argparse.Namespace) -> dict:
    filters = arguments.filters
    if filters is not None:
        try:
            filters = [int(n) for n in filters.split(",")]
        except ValueError:
            raise ValueError(
                f"--filters takes numbers such as 16,24,12,12, got {filters!r}"
            ) from None
    return {
        "seed": arguments.seed,
        "filters": filters,
        "initialisation": arguments.initialisation,
        "weights": arguments.weights,
    }


def _dtype_of(gradients: dict[str, Tensor]) -> str:
    if not gradients:
        raise ValueError("the file of gradients is empty")
    return str(next(iter(gradients.values())).dtype).removeprefix("torch.")


def _audit(arguments: argparse.Namespace) -> None:
    model = _model(arguments, "float64")
    layers = audit(model, (datasets.CHANNELS[arguments.dataset], 32, 32), active=arguments.active)
    header = "layer,unknowns,counted,generic rank,weight rows,hybrid rank,verdict".split(",")
    rows = [
        (a.name, a.unknowns, a.counted, a.gradient_rank, a.weight_rows, a.hybrid_rank, a.verdict)
        for a in layers
    ]
    print(table(header, rows))
    print(f"{arguments.architecture} on {arguments.dataset}: {overall(layers)}")


def _observe(arguments: argparse.Namespace) -> None:
    _check_outputs(arguments.gradients, arguments.save_weights)
    model = _model(arguments, arguments.dtype)
    indices = datasets.parse_indices(arguments.index)
    truth = datasets.load(arguments.dataset, indices, data_dir=arguments.data_dir)
    gradients = client_gradients(model, arguments.architecture, truth, arguments.dtype)
    write_tensors(arguments.gradients, gradients)
    if arguments.save_weights:
        write_tensors(arguments.save_weights, model.state_dict())
    print(f"gradients of {len(truth)} images of {truth.name}: {arguments.gradients}")


def _snapshot(arguments: argparse.Namespace) -> None:
    a = arguments
    print(datasets.write_snapshot(a.dataset, a.count, a.data_dir, a.out_dir))


def _check_outputs(*paths: str | None) -> None:
    """Refuse an output whose folder is missing before the work starts, not after it."""
    for path in paths:
        if path and not Path(path).resolve().parent.is_dir():
            raise ValueError(f"{path}: the folder does not exist, create it first")


def _write_picture(path: str, images: Tensor, originals: Tensor | None) -> None:
    alone = originals is None
    figures.save(figures.gallery(images) if alone else figures.comparison(originals, images), path)


COMMANDS = {"attack": _attack, "audit": _audit, "observe": _observe, "snapshot": _snapshot}


if __name__ == "__main__":
    sys.exit(main())
