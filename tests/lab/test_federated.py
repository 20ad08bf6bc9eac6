"""A round of Flower: three processes, float32 weights over the loopback, what they give away."""

import ast
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rconv.attack.attack import Attack
from rconv.data import datasets
from rconv.lab import architectures, federated, metrics
from rconv.observe.update import gradients_from_update

SCRIPTS = Path(__file__).parents[2] / "notebooks" / "federated"
SHAPE = (1, 32, 32)
RATES = (0.1, 0.01)
PLAN = [{"rate": rate, "steps": 1, "images": 1} for rate in RATES]


@pytest.fixture(scope="module")
def model():
    settings = {"filters": (6, 16, 12, 6), "initialisation": "default"}
    return architectures.build("lenet_main", 1, 10, "LeakyReLU", **settings).float()


@pytest.fixture(scope="module")
def clients():
    """Two of them; each learns from its first photograph, then from its second."""
    own = (datasets.load("Photos", indices) for indices in ((0, 1), (2, 3)))
    return [replace(photos, images=photos.images.mean(dim=1, keepdim=True)) for photos in own]


@pytest.fixture(scope="module")
def rounds(model, clients, tmp_path_factory):
    """What the server kept, of clients and a server that cannot import this package."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "rconv.py").write_text("raise ImportError('this process must not need it')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        return federated.in_processes(SCRIPTS, model, clients, PLAN)


def attacked(model, before, after, rate, batch=1):
    model.load_state_dict(before)
    gradients, noise = gradients_from_update(before, after, rate)
    return Attack(model, SHAPE)(gradients, noise=noise, batch=batch)


@pytest.mark.parametrize("script", ["client.py", "server.py"])
def test_the_scripts_import_nothing_of_this_package(script):
    nodes = list(ast.walk(ast.parse((SCRIPTS / script).read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in names}
    assert "flwr" in roots and roots <= {"flwr", "torch", "numpy", "json", "sys", "pathlib"}


def test_what_travels_are_the_weights_of_the_same_rounds_computed_here(model, clients, rounds):
    here = federated.in_one_process(model, clients, PLAN)
    assert len(rounds) == len(here) == len(PLAN)
    for sent, own in zip(rounds, here, strict=True):
        for kind in ("before", "after", "average"):
            for name, weight in getattr(sent, kind).items():
                assert weight.dtype == torch.float32
                assert torch.allclose(weight, getattr(own, kind)[name], rtol=1e-5, atol=1e-6)
    for name, weight in rounds[1].before.items():
        assert torch.equal(weight, rounds[0].average[name])


@pytest.mark.parametrize(("number", "least"), [(0, 85), (1, 65)])
def test_both_clients_images_come_back(model, clients, rounds, number, least):
    one = rounds[number]
    found = attacked(model, one.before, one.after, RATES[number])
    truth = torch.stack([own.images[number] for own in clients])
    assert found.unique.all()
    assert (metrics.psnr(found.images, truth, data_range=1.0) > least).all()


def test_the_mean_over_two_clients_misleads_an_attack_on_one_image(model, clients, rounds):
    found = attacked(model, rounds[0].before, rounds[0].average, RATES[0])
    assert not found.unique.any() and found.gradient_residual.item() > 0.01
    for own in clients:
        assert metrics.psnr(found.images, own.images[:1], data_range=1.0).item() < 20


def test_the_mean_over_two_clients_hides_neither_image(model, clients, rounds):
    found = attacked(model, rounds[0].before, rounds[0].average, RATES[0], batch=None)
    truth = torch.stack([own.images[0] for own in clients])
    images = found.images[metrics.matched(found.images, truth)]
    assert found.unique.all()
    assert (metrics.psnr(images, truth, data_range=1.0) > 70).all()


@pytest.mark.parametrize(
    ("server", "seconds", "says"),
    [
        ("raise SystemExit('the port is taken')", 60, "server failed: the port is taken"),
        ("time.sleep(60)", 1, "server is not done in time"),
    ],
    ids=["fails", "hangs"],
)
def test_no_process_outlives_a_round_that_fails(tmp_path, model, clients, server, seconds, says):
    first = "import os, sys, time\nfrom pathlib import Path\n"
    pid = "Path(__file__).with_name(Path(sys.argv[2]).stem).write_text(str(os.getpid()))\n"
    (tmp_path / "server.py").write_text(f"{first}time.sleep(0.5)\n{server}")
    (tmp_path / "client.py").write_text(f"{first}{pid}time.sleep(60)")
    with pytest.raises(RuntimeError, match=says):
        federated.in_processes(tmp_path, model, clients, PLAN, seconds)
    for path in tmp_path.glob("client ?"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
