"""The command line's arguments."""

import argparse
import re
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from rconv import data
from rconv.cli.terminal import complain, say
from rconv.lab.architectures import (
    ACTIVATIONS,
    ARCHITECTURES,
    DEFAULT,
    DTYPES,
    INITIALISATIONS,
    MODES,
    SEED,
)

FORM = "path/to/file.py:Net or package.module:function"
"""A model of the user's own, as --model takes it."""

EXCLUSIVE = (("model", "architecture"), ("trials", "index"))
"""Options of `rconv audit` of which one may be given."""

LARGEST = 2**26
"""Numbers in one image: half a GiB in float64, and an attack holds dozens of such maps."""

MOST = data.SIZES["Photos"]
"""Photographs that there are."""


def path(text: str) -> str:
    """What is given as a path: not empty."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def whole(least: int, most: int, named: str = "") -> Callable[[str], int]:
    """What takes whole numbers in a range; `named` says the ends in words."""

    def number(text: str) -> int:
        if not re.fullmatch("[0-9]{1,19}", text) or not least <= int(text) <= most:
            ends = named or f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"takes a whole number {ends}, got {text!r}")
        return int(text)

    return number


seed = whole(0, 2**63 - 1, "from 0 to 2^63 - 1")  # PyTorch's generator takes 64 bits
count, trials = whole(1, MOST), whole(0, MOST)


def batch(text: str) -> int | None:
    """Images of one step; None for auto."""
    return None if text == "auto" else whole(1, 9999, "from 1, or auto")(text)


def amount(text: str) -> float:
    """A time limit, or noise."""
    if not re.fullmatch("[0-9]{1,6}([.][0-9]*)?(e-?[0-9]{1,2})?", text):
        raise argparse.ArgumentTypeError(f"takes a number, 0 or more, got {text!r}")
    return float(text)


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


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it; notices if nobody reads."""

    def _print_message(self, message: str, file: TextIO | None = None):
        say(message.rstrip("\n"))  # help and version, whose failure argparse passes over

    def error(self, message: str):
        complain(f"error: {message} (see {self.prog} --help)")
        self.exit(2)


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments of a command line, with what pyproject.toml says of those it leaves out.

    Raises ValueError if pyproject.toml cannot be read, or has a setting that the command does not
    have.
    """
    arguments = parser().parse_args(argv)
    if arguments.command != "audit":
        return arguments
    settings = read_settings(Path("pyproject.toml"))
    parser().parse_args(
        ["audit", *_options(settings)]
    )  # checks every value, and what excludes what
    for pair in EXCLUSIVE:
        if any(getattr(arguments, name) is not None for name in pair):
            settings = {name: text for name, text in settings.items() if name not in pair}
    return parser().parse_args(["audit", *_options(settings), *argv[1:]])


def _options(settings: dict[str, str]) -> list[str]:
    return [f"--{name}={text}" for name, text in settings.items()]


def read_settings(file: Path) -> dict[str, str]:
    """The table [tool.rconv.audit] of a pyproject.toml, as texts of options; {} without the file.

    Raises ValueError if it is no TOML, or has a key that is no option of `rconv audit`, or a value
    that is neither a text, a number nor a list of them.
    """
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {error}") from None
    for key in ("tool", "rconv", "audit"):
        table = table.get(key, {})
    known = sorted(name.replace("_", "-") for name in vars(parser().parse_args(["audit"])))
    known.remove("command")
    texts = {}
    for name, value in table.items():
        where = f"{file}: [tool.rconv.audit] {name}"
        if name not in known:
            raise ValueError(f"{where}: unknown setting; known are {', '.join(known)}")
        values = value if isinstance(value, list) else [value]
        if not all(type(each) in (str, int, float) for each in values):
            raise ValueError(f"{where}: must be a text, a number or a list of them, got {value!r}")
        texts[name] = ",".join(map(str, values))
    return texts


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
        "--after", type=path, help="or one of the weights that a client sent after a step of SGD"
    )
    attack.add_argument("--before", type=path, help="with --after: the weights before the step")
    attack.add_argument("--lr", type=float, help="with --after: the learning rate of the step")
    attack.add_argument("--weight-decay", type=float, help="with --after: of the step (default 0)")
    attack.add_argument(
        "--buffers",
        type=path,
        help="with --gradients: a .safetensors file of the client's buffers, or of its whole "
        "state_dict, after the step; --mode training makes use of them",
    )


def _add_audit(commands: argparse._SubParsersAction) -> None:
    audit = commands.add_parser(
        "audit",
        help="does a model leak? by rank, and by attacking a few images; needs no data",
        description="Judge whether a training setup leaks. Exit codes: 0 below the threshold of "
        "--fail-on, 3 at or above it, 4 if the attack does not support the model, 2 for wrong "
        "usage. Settings are also read from [tool.rconv.audit] in ./pyproject.toml, with the "
        "names of the options; the command line wins.",
    )
    _add_model(audit)
    tried = audit.add_mutually_exclusive_group()
    tried.add_argument(
        "--trials",
        type=trials,
        metavar="N",
        help="photographs that the attack is tried on (default 4), 0 for the rank alone",
    )
    tried.add_argument("-i", "--index", help="images of the dataset to try instead, such as 0:10")
    _add_client(audit, "float32")
    audit.add_argument(
        "--active", type=float, default=0.5, help="share of active ReLU outputs (default 0.5)"
    )
    _add_setup(audit)
    _add_answer(audit)
    audit.set_defaults(command="audit")


def _add_setup(audit: argparse.ArgumentParser) -> None:
    audit.add_argument(
        "--batch",
        type=count,
        default=1,
        metavar="B",
        help="images of each client's step, which sends their mean gradient (default 1)",
    )
    audit.add_argument(
        "--clients",
        type=count,
        default=1,
        metavar="N",
        help="clients whose gradients are added before the server sees them (default 1)",
    )
    audit.add_argument(
        "--steps", type=count, default=1, metavar="K", help="local steps of SGD (default 1)"
    )
    audit.add_argument(
        "--noise",
        type=amount,
        default=0.0,
        metavar="SIGMA",
        help="noise multiplier of DP-SGD, which clips as well (default 0: neither)",
    )


def _add_answer(audit: argparse.ArgumentParser) -> None:
    audit.add_argument(
        "--json", type=path, help="write the record; its schema is rconv/lab/audit.schema.json"
    )
    audit.add_argument("--html", type=path, help="write the report, one file that loads nothing")
    audit.add_argument(
        "--fail-on", choices=("leaks", "partly"), help="exit with 3 at this risk level or above"
    )
    audit.add_argument(
        "--time-limit",
        type=amount,
        default=45.0,
        metavar="S",
        help="seconds for all trials (default 45), the most informative first; the report names "
        "what was left out; 0 for no limit",
    )


def _add_observe(commands: argparse._SubParsersAction) -> None:
    observe = commands.add_parser("observe", help="be the client: write gradients and weights")
    _add_model(observe)
    _add_images(observe)
    observe.add_argument("--gradients", type=path, required=True, help=".safetensors file to write")
    observe.add_argument(
        "--save-weights", type=path, help=".safetensors file to write the model's weights to"
    )
    observe.add_argument(
        "--buffers",
        type=path,
        help="with --mode training: .safetensors file to write the buffers after the step to",
    )
    observe.add_argument(
        "--batch", action="store_true", help="the images are one batch: write their mean gradient"
    )
    observe.set_defaults(command="observe")


def _add_snapshot(commands: argparse._SubParsersAction) -> None:
    snapshot = commands.add_parser("snapshot", help="write the first images of a dataset to a file")
    snapshot.add_argument("-d", "--dataset", required=True, choices=data.CLASSES)
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
        "model. This RUNS the code in it",
    )
    parser.add_argument(
        "--mode", choices=MODES, default=MODES[0], help="of the model (default evaluation)"
    )
    parser.add_argument(
        "--input-shape", type=shape, metavar="C,H,W", help="with --model: of one image"
    )
    parser.add_argument("-d", "--dataset", choices=data.CLASSES, default=data.DEFAULT)
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
