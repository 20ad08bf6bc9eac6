"""The command line: `rconv` reconstructs, `rconv audit` judges, and two helpers."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from rconv import __version__, datasets, plots
from rconv.attack import Attack
from rconv.audit import audit, overall
from rconv.exchange import read_tensors, write_tensors
from rconv.experiment import DTYPES, client_gradients, run, shared_model
from rconv.models import ACTIVATIONS, ARCHITECTURES
from rconv.records import Record, make_records, summary, table, write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for bad input."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version")):
        argv.insert(0, "attack")
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"rconv: error: {message}", file=sys.stderr)
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str):
        self.exit(2, f"rconv: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rconv",
        description="Reconstruct images from the gradients of convolutional networks.",
        epilog="Without a command, `rconv` attacks: rconv -d CIFAR100 -i 92 -a ReLU",
    )
    parser.add_argument("--version", action="version", version=f"rconv {__version__}")
    commands = parser.add_subparsers(metavar="command")

    attack = commands.add_parser("attack", help="reconstruct images from gradients (default)")
    _add_model(attack)
    _add_images(attack)
    attack.add_argument(
        "--constraints",
        default="auto",
        help="auto (default), paper, gradient, weight, hybrid, or a list with one per convolution",
    )
    attack.add_argument("--gradients", help="attack a .safetensors file of gradients instead")
    attack.add_argument("--strict", action="store_true", help="fail where an image is not unique")
    attack.add_argument("--out", help="picture: original, reconstruction and magnified error")
    attack.add_argument("--json", help="write one record per image")
    attack.set_defaults(command=_attack)

    audit = commands.add_parser("audit", help="does an architecture leak? needs no data")
    _add_model(audit)
    audit.add_argument(
        "--active", type=float, default=0.5, help="share of active ReLU outputs (default 0.5)"
    )
    audit.set_defaults(command=_audit)

    observe = commands.add_parser("observe", help="be the client: write gradients and weights")
    _add_model(observe)
    _add_images(observe)
    observe.add_argument("--gradients", required=True, help=".safetensors file to write")
    observe.add_argument("--save-weights", help=".safetensors file to write the model's weights to")
    observe.set_defaults(command=_observe)

    snapshot = commands.add_parser("snapshot", help="write the first images of a dataset to a file")
    snapshot.add_argument("-d", "--dataset", required=True, choices=datasets.CLASSES)
    snapshot.add_argument("-n", "--count", type=int, default=200)
    snapshot.add_argument("--data-dir", help="folder of the datasets (default $RCONV_DATA)")
    snapshot.add_argument("--out-dir", help="folder to write to (default the data folder)")
    snapshot.set_defaults(command=_snapshot)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--architecture", choices=ARCHITECTURES, default="lenet")
    parser.add_argument("-d", "--dataset", choices=datasets.CLASSES, default=datasets.DEFAULT)
    parser.add_argument(
        "-a", "--activation", choices=ACTIVATIONS, help="where the architecture leaves it open"
    )
    parser.add_argument("--seed", type=int, default=50, help="of the initialisation (default 50)")
    parser.add_argument("--filters", help="filters per convolution, e.g. 16,24,12,12")
    parser.add_argument("--initialisation", choices=("uniform", "default"))
    parser.add_argument("--weights", help=".safetensors file of trained weights")


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--index", default="0", help="92, 0:100 or 3,5,8 (default 0)")
    parser.add_argument("--data-dir", help="folder of the datasets (default $RCONV_DATA)")
    parser.add_argument("--dtype", choices=DTYPES, default="float64")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, …")


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
        "architecture": arguments.architecture,
        "activation": arguments.activation,
        "seed": arguments.seed,
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
    plots.save(plots.gallery(images) if alone else plots.comparison(originals, images), path)


if __name__ == "__main__":
    sys.exit(main())
