"""`rconv audit`: the verdict by rank, then a trial, on the terminal and as a page."""

import argparse

from rconv.audit import examine
from rconv.cli.inputs import check_data, check_roles
from rconv.cli.models import Shared, check_model, images_for, shared
from rconv.cli.output import check_files
from rconv.cli.terminal import say, watched
from rconv.data import datasets
from rconv.files import claimed, replacing
from rconv.lab import architectures
from rconv.lab.outcome import LAYER_COLUMNS, Trial
from rconv.lab.records import table
from rconv.lab.trial import trial
from rconv.show import audit as shown


def run_audit(arguments: argparse.Namespace) -> None:
    """Audit a model by its generic rank, then try its weights on images."""
    a = arguments
    check_model(a)
    check_data(a.dataset, a.data_dir)
    check_files({"--html": a.html}, {"--weights": a.weights})
    with claimed([] if a.html is None else [a.html]):
        _judge(a)


def _judge(arguments: argparse.Namespace) -> None:
    a = arguments
    own = shared(a, "float64")
    check_roles(a, own.model)
    given = None if a.index is None else images_for(a, own.input_shape)
    found = examine(own.model, own.input_shape, active=a.active)
    say(table(shown.HEADER, shown.layer_rows(found)))
    say(f"{own.title}: {found.verdict}\n{shown.cheapest(found)}\n{shown.batches(found)}")
    tried = None
    try:
        if given is not None or a.trials:
            tried = _tried(own, given, a)
            say(_told(tried, given, found.verdict))
    finally:  # an interrupted trial does not take the page too
        if a.html is not None:
            page = shown.page(found, own.title, a.active, tried, a.line)
            with replacing(a.html) as file:
                file.write(page.encode())


def _tried(own: Shared, given: datasets.Images | None, arguments: argparse.Namespace) -> Trial:
    """The attack on the given images, or on photographs."""
    images = labels = None
    if given is not None:
        images, labels = given.images, given.labels
        if own.architecture is not None:
            labels = architectures.targets(own.architecture, labels)
    options = {"count": arguments.trials, "dtype": arguments.dtype, "progress": watched()}
    return trial(own.model, own.input_shape, images, labels, **options)


def _told(found: Trial, given: datasets.Images | None, generic: str) -> str:
    """What came of it, line by line."""
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
    return "\n".join(line for line in lines if line)
