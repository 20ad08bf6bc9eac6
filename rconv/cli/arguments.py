"""The command line's arguments."""

import argparse
from importlib.metadata import version

from rconv.data import datasets
from rconv.lab.architectures import ACTIVATIONS, ARCHITECTURES
from rconv.lab.experiment import DTYPES


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str):
        self.exit(2, f"rconv: error: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """Of all commands; each leaves its name in `command`."""
    whole = _Parser(
        prog="rconv",
        description="Reconstruct images from the gradients of convolutional networks.",
        epilog="Without a command, `rconv` attacks: rconv -d CIFAR100 -i 92 -a ReLU",
    )
    whole.add_argument("--version", action="version", version=f"rconv {version('rconv')}")
    commands = whole.add_subparsers(metavar="command")

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
    attack.set_defaults(command="attack")

    audit = commands.add_parser("audit", help="does an architecture leak? needs no data")
    _add_model(audit)
    audit.add_argument(
        "--active", type=float, default=0.5, help="share of active ReLU outputs (default 0.5)"
    )
    audit.set_defaults(command="audit")

    observe = commands.add_parser("observe", help="be the client: write gradients and weights")
    _add_model(observe)
    _add_images(observe)
    observe.add_argument("--gradients", required=True, help=".safetensors file to write")
    observe.add_argument("--save-weights", help=".safetensors file to write the model's weights to")
    observe.set_defaults(command="observe")

    snapshot = commands.add_parser("snapshot", help="write the first images of a dataset to a file")
    snapshot.add_argument("-d", "--dataset", required=True, choices=datasets.CLASSES)
    snapshot.add_argument("-n", "--count", type=int, default=200)
    snapshot.add_argument("--data-dir", help="folder of the datasets (default $RCONV_DATA)")
    snapshot.add_argument("--out-dir", help="folder to write to (default the data folder)")
    snapshot.set_defaults(command="snapshot")
    return whole


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--architecture", choices=ARCHITECTURES, default="lenet_main")
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
