"""The command line's arguments."""

import argparse
import re
from importlib.metadata import version
from typing import TextIO

from rconv.cli.terminal import complain, say
from rconv.data import names
from rconv.lab.catalogue import (
    ACTIVATIONS,
    ARCHITECTURES,
    DEFAULT,
    DTYPES,
    INITIALISATIONS,
    SEED,
)

FORM = "path/to/file.py:Net or package.module:function"
"""A model of the user's own, as --model takes it."""

LARGEST = 2**26
"""Numbers in one image: half a GiB in float64, and an attack holds dozens of such maps."""

MOST = names.SIZES["Photos"]
"""Photographs that there are."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it; notices if nobody reads."""

    def _print_message(self, message: str, file: TextIO | None = None):
        say(message.rstrip("\n"))  # help and version, whose failure argparse passes over

    def error(self, message: str):
        complain(f"error: {message} (see {self.prog} --help)")
        self.exit(2)


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; each leaves its name in `command`."""
    whole = _Parser(
        prog="rconv",
        description="Reconstruct images from the gradients of convolutional networks.",
        epilog="Without a command, `rconv` attacks: rconv -d CIFAR100 -i 92 -a ReLU",
    )
    whole.add_argument("--version", action="version", version=f"rconv {version('rconv')}")
    commands = whole.add_subparsers(metavar="command")
    _add_attack(commands)
    _add_audit(commands)
    _add_observe(commands)
    _add_snapshot(commands)
    return whole


def _add_attack(commands: argparse._SubParsersAction) -> None:
    attack = commands.add_parser("attack", help="reconstruct images from gradients (default)")
    _add_model(attack)
    _add_images(attack)
    attack.add_argument(
        "--constraints",
        default="auto",
        help="auto (default), paper, gradient, weight, hybrid, or a list with one per convolution",
    )
    attack.add_argument(
        "--batch",
        type=batch,
        default=1,
        metavar="B",
        help="images of each client's step, which sends their mean gradient (default 1): those "
        "that -i names, or those behind a file of gradients; auto reads B from the gradient",
    )
    _add_received(attack)
    attack.add_argument("--strict", action="store_true", help="fail where an image is not unique")
    attack.add_argument(
        "--out", type=path, help="picture: original, reconstruction and magnified error"
    )
    attack.add_argument("--json", type=path, help="write one record per image")
    attack.set_defaults(command="attack")


def _add_received(attack: argparse.ArgumentParser) -> None:
    sent = attack.add_mutually_exclusive_group()
    sent.add_argument(
        "--gradients", type=path, help="attack a .safetensors file of gradients instead"
    )
    sent.add_argument(
        "--after",
        type=path,
        help="or one of the weights that a client sent after a step of SGD",
    )
    attack.add_argument("--before", type=path, help="with --after: the weights before the step")
    attack.add_argument("--lr", type=float, help="with --after: the learning rate of the step")
    attack.add_argument("--weight-decay", type=float, help="with --after: of the step (default 0)")


def _add_audit(commands: argparse._SubParsersAction) -> None:
    audit = commands.add_parser(
        "audit", help="does a model leak? by rank, and by attacking a few images; needs no data"
    )
    _add_model(audit)
    tried = audit.add_mutually_exclusive_group()
    tried.add_argument(
        "--trials",
        type=trials,
        default=4,
        metavar="N",
        help="photographs that the attack is tried on (default 4), 0 for the rank alone",
    )
    tried.add_argument("-i", "--index", help="images of the dataset to try instead, such as 0:10")
    _add_client(audit, "float32")
    audit.add_argument(
        "--active", type=float, default=0.5, help="share of active ReLU outputs (default 0.5)"
    )
    audit.add_argument(
        "--html",
        type=path,
        help="write the answer as a page to hand on, one file without links",
    )
    audit.set_defaults(command="audit")


def _add_observe(commands: argparse._SubParsersAction) -> None:
    observe = commands.add_parser("observe", help="be the client: write gradients and weights")
    _add_model(observe)
    _add_images(observe)
    observe.add_argument("--gradients", type=path, required=True, help=".safetensors file to write")
    observe.add_argument(
        "--save-weights", type=path, help=".safetensors file to write the model's weights to"
    )
    observe.add_argument(
        "--batch", action="store_true", help="the images are one batch: write their mean gradient"
    )
    observe.set_defaults(command="observe")


def _add_snapshot(commands: argparse._SubParsersAction) -> None:
    snapshot = commands.add_parser("snapshot", help="write the first images of a dataset to a file")
    snapshot.add_argument("-d", "--dataset", required=True, choices=names.CLASSES)
    snapshot.add_argument("-n", "--count", type=int, default=200)
    snapshot.add_argument("--data-dir", type=path, help="folder of the datasets (or $RCONV_DATA)")
    snapshot.add_argument(
        "--out-dir", type=path, help="folder to write to (default the data folder)"
    )
    snapshot.set_defaults(command="snapshot")


def _add_model(parser: argparse.ArgumentParser) -> None:
    named = parser.add_mutually_exclusive_group()
    named.add_argument(
        "-m",
        "--architecture",
        choices=ARCHITECTURES,
        metavar="NAME",
        help=f"{', '.join(ARCHITECTURES)} (default {DEFAULT}, that of the paper's script)",
    )
    named.add_argument(
        "--model",
        type=path,
        metavar="FILE.py:NAME",
        help=f"a model of your own, {FORM}: a class or function without arguments, or a "
        "model. This RUNS the code in it. It is taken in evaluation mode",
    )
    parser.add_argument(
        "--input-shape", type=shape, metavar="C,H,W", help="with --model: of one image"
    )
    parser.add_argument("-d", "--dataset", choices=names.CLASSES, default=names.DEFAULT)
    parser.add_argument(
        "-a", "--activation", choices=ACTIVATIONS, help="where the architecture leaves it open"
    )
    parser.add_argument(
        "--seed", type=seed, help=f"of the initialisation (default the paper's, {SEED})"
    )
    parser.add_argument("--filters", type=filters, help="filters per convolution, e.g. 16,24,12,12")
    parser.add_argument("--initialisation", choices=INITIALISATIONS)
    parser.add_argument("--weights", type=path, help=".safetensors file of trained weights")


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--index", default="0", help="92, 0:100 or 3,5,8 (default 0)")
    _add_client(parser)
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")


def _add_client(parser: argparse.ArgumentParser, dtype: str = DTYPES[0]) -> None:
    parser.add_argument("--data-dir", type=path, help="folder of the datasets (or $RCONV_DATA)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=dtype,
        help=f"what the clients send: {', '.join(DTYPES)} (default {dtype})",
    )


def path(text: str) -> str:
    """What is given as a path: not empty."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def seed(text: str) -> int:
    """Seed of PyTorch's generator, which takes 64 bits."""
    if not re.fullmatch("[0-9]{1,19}", text) or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"takes a whole number from 0 to 2^63 - 1, got {text!r}")
    return int(text)


def batch(text: str) -> int | None:
    """Images of one step; None for auto."""
    if text == "auto":
        return None
    if not re.fullmatch("[0-9]{1,4}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"takes a whole number from 1, or auto, got {text!r}")
    return int(text)


def trials(text: str) -> int:
    """Photographs to try."""
    if not re.fullmatch("[0-9]{1,3}", text) or int(text) > MOST:
        raise argparse.ArgumentTypeError(f"takes a whole number from 0 to {MOST}, got {text!r}")
    return int(text)


def shape(text: str) -> tuple[int, int, int]:
    """(C, H, W) of one image."""
    if not re.fullmatch("[0-9]{1,5}(,[0-9]{1,5}){2}", text) or 0 in map(int, text.split(",")):
        raise argparse.ArgumentTypeError(f"takes three numbers such as 3,64,64, got {text!r}")
    channels, height, width = map(int, text.split(","))
    if channels * height * width > LARGEST:
        raise argparse.ArgumentTypeError(
            f"{text} is {channels * height * width:,} numbers in one image: at most {LARGEST:,}"
        )
    return channels, height, width


def filters(text: str) -> list[int]:
    """Filters of each convolution."""
    numbers = text.split(",")
    if not all(re.fullmatch("[0-9]{1,6}", number.strip()) for number in numbers):
        raise argparse.ArgumentTypeError(f"takes numbers such as 16,24,12,12, got {text!r}")
    return [int(number) for number in numbers]
