"""Rounds of federated averaging: by Flower in processes that know no rconv, or computed here.

What a server has in its hands of a round, it has by following the protocol.
"""

import copy
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from rconv.data.datasets import Images

Plan = Sequence[Mapping[str, float]]
"""What each round prescribes: "rate", η of plain SGD, "steps", and "images" in each of them."""

Weights = dict[str, Tensor]

POLL = 0.05  # seconds between two looks at the processes, short beside their start


@dataclass(frozen=True)
class Round:
    """What the server of one round has: weights by name.

    All clients start from `before`, float32, and send `after`, `(client N, *weight shape)`.
    `average` belongs to the next round; with secure aggregation it is all that the server learns.
    """

    before: Weights
    after: Weights
    average: Weights


def flower_is_here(scripts: Path) -> bool:
    """Whether the processes could be started: Flower is installed, and the scripts are there."""
    return find_spec("flwr") is not None and Path(scripts, "server.py").is_file()


def in_processes(
    scripts: Path, model: nn.Module, clients: Sequence[Images], plan: Plan, seconds: float = 120
) -> list[Round]:
    """A server and clients in a process each, which send float32 weights over the loopback.

    The folder `scripts` has `server.py` and `client.py`. The model's float32 weights are those of
    the first round; a client takes the next of its images each round, and begins again. Processes
    that are not done after so many seconds are killed; RuntimeError with the end of what one wrote
    if it fails or is late.
    """
    with TemporaryDirectory() as place:
        folder, names = Path(place), [f"client {n}" for n in range(len(clients))]
        np.savez(folder / "weights.npz", *(w.numpy() for w in model.state_dict().values()))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        server = [scripts / "server.py", address, folder, len(clients), json.dumps(plan)]
        commands = {"server": server}
        for name, client in zip(names, clients, strict=True):
            path = folder / f"{name}.npz"
            np.savez(path, images=client.images.float().numpy(), labels=client.labels.numpy())
            commands[name] = [scripts / "client.py", address, path]
        _run_together(commands, folder, seconds)
        numbers = range(1, len(plan) + 1)  # Flower counts rounds from 1
        return [_read(folder / f"{n}.npz", names, list(model.state_dict())) for n in numbers]


def in_one_process(model: nn.Module, clients: Sequence[Images], plan: Plan) -> list[Round]:
    """The same rounds without Flower and without a network, computed here."""
    before, rounds = copy.deepcopy(model.state_dict()), []
    seen = 0
    for task in plan:
        turn = range(seen, seen + int(task["images"]))
        sent = [_local(model, before, client, turn, task) for client in clients]
        after = {name: torch.stack([weights[name] for weights in sent]) for name in before}
        average = {name: w.mean(dim=0) for name, w in after.items()}
        rounds.append(Round(before, after, average))
        before, seen = average, turn.stop
    return rounds


def _local(
    model: nn.Module, weights: Weights, images: Images, turn: range, task: Mapping[str, float]
) -> Weights:
    """What one client sends after its steps."""
    net = copy.deepcopy(model)
    net.load_state_dict(weights)
    chosen = [n % len(images) for n in turn]
    parameters = list(net.parameters())
    for _ in range(int(task["steps"])):
        logits = net(images.images[chosen].float())
        loss = nn.functional.cross_entropy(logits, images.labels[chosen])
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.data.sub_(gradient, alpha=task["rate"])
    return net.state_dict()


def _read(path: Path, clients: Sequence[str], names: Sequence[str]) -> Round:
    """A round that the server kept: `(whose, place of the weight)` → array."""
    with np.load(path) as file:
        before, average, *sent = (
            {name: torch.from_numpy(file[f"{whose} {n}"]) for n, name in enumerate(names)}
            for whose in ("before", "average", *clients)
        )
    return Round(before, {name: torch.stack([w[name] for w in sent]) for name in names}, average)


def _run_together(commands: Mapping[str, Sequence], folder: Path, seconds: float) -> None:
    """Run Python scripts at once; none outlives this call."""
    # Nothing is to leave this machine: no reports to Flower's makers, no proxy for the loopback.
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_HOME": str(folder), "no_grpc_proxy": "127.0.0.1"}
    logs, running = {name: folder / f"{name}.log" for name in commands}, {}
    try:
        for name, command in commands.items():
            with logs[name].open("wb") as log:
                running[name] = subprocess.Popen(
                    [sys.executable, *map(str, command)],
                    env=os.environ | quiet,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
        _wait(running, logs, time.monotonic() + seconds)
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def _wait(running: dict[str, subprocess.Popen], logs: Mapping[str, Path], deadline: float) -> None:
    """Until all have ended well; an error as soon as one has not, or at the deadline."""
    waiting = dict(running)
    while waiting:
        late = time.monotonic() > deadline
        for name, process in list(waiting.items()):
            if process.poll() == 0:
                del waiting[name]
            elif process.returncode or late:
                end = logs[name].read_text(errors="replace")[-2000:]
                how = "failed" if process.returncode else "is not done in time"
                raise RuntimeError(f"the {name} {how}: {end}")
        time.sleep(POLL)
