"""Adapters against the real packages; a test is skipped, saying so, where its package is missing.

Flower and Opacus come with the extra `adapters`. For breaching and LeakPro run this file in the
environments that `rconv.adapters.breaching` and `rconv.adapters.leakpro` describe.
"""

import copy
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rconv.attack.attack import Attack
from rconv.data.datasets import dead_leaves
from rconv.observe.check import normalised_range


def needs(package):
    """Skip, naming the package."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 12, 3, padding=1), nn.Tanh(), nn.Conv2d(12, 12, 3, padding=1), nn.Tanh()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(768, 6))


IMAGES = torch.stack([dead_leaves((3, 8, 8), seed) for seed in range(2)]).float()
MEAN, STD = torch.tensor([0.5, 0.45, 0.4]), torch.tensor([0.2, 0.25, 0.3])
PAGE = Path(__file__).parents[2] / "notebooks/adapters.md"


def test_the_range_of_normalised_pixels():
    low, high = normalised_range(MEAN, STD)
    assert abs(low + 2.5) < 1e-6 and abs(high - 2.5) < 1e-6
    assert normalised_range([0.5], [0.25]) == (-2, 2)


def test_flower_audits_each_client_and_aggregates_as_before():
    needs("flwr")
    from flwr.common import FitRes, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server.strategy import FedAvg

    from rconv.adapters.flower import Audited

    model, rate = network(), 0.1
    before = [w.numpy() for w in model.state_dict().values()]
    results = []
    for i, image in enumerate(IMAGES):
        client = copy.deepcopy(model)
        nn.functional.cross_entropy(client(image[None]), torch.tensor([i])).backward()
        torch.optim.SGD(client.parameters(), rate).step()
        sent = ndarrays_to_parameters([w.numpy() for w in client.state_dict().values()])
        results.append((SimpleNamespace(cid=f"client {i}"), FitRes(None, sent, 1, {})))
    results.append(
        (SimpleNamespace(cid="idle"), FitRes(None, ndarrays_to_parameters(before), 1, {}))
    )
    plain, seen = FedAvg(), []
    strategy = Audited(plain, network(), (3, 8, 8), rate, on_finding=seen.append)
    manager = SimpleNamespace(num_available=lambda: 2, sample=lambda **_: [])
    strategy.configure_fit(7, ndarrays_to_parameters(before), manager)
    average, _ = strategy.aggregate_fit(7, results, [])
    for ours, theirs in zip(
        parameters_to_ndarrays(average),
        parameters_to_ndarrays(plain.aggregate_fit(7, results, [])[0]),
        strict=True,
    ):
        assert (ours == theirs).all()
    assert seen == strategy.findings and [f.client for f in seen] == [
        "client 0",
        "client 1",
        "idle",
    ]
    for found, image in zip(seen, IMAGES, strict=False):
        assert found.unique and found.round == 7 and not found.reason
        assert (found.result.images[0] - image).abs().max() < 1e-2
    assert not seen[2].unique and "are the same" in seen[2].reason
    assert strategy.min_fit_clients == plain.min_fit_clients  # whatever else the strategy has


@pytest.mark.parametrize("sigma", [0.0, 1e-6, 1.0])
def test_opacus_shows_the_clipped_gradient_and_states_its_noise(sigma):
    needs("opacus")
    from opacus import PrivacyEngine

    from rconv.adapters.opacus import observed

    original = network()
    module = copy.deepcopy(original)
    data = torch.utils.data.TensorDataset(IMAGES[:1], torch.tensor([1]))
    private, optimizer, loader = PrivacyEngine().make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), 0.1),
        data_loader=torch.utils.data.DataLoader(data, batch_size=1),
        noise_multiplier=sigma,
        max_grad_norm=0.5,
        poisson_sampling=False,
    )
    ((x, y),) = loader
    nn.functional.cross_entropy(private(x), y).backward()
    gradients, noise = observed(private, optimizer)
    assert list(gradients) == [name for name, _ in original.named_parameters()]
    size = torch.cat([g.flatten() for g in gradients.values()]).norm()
    count = sum(g.numel() for g in gradients.values())
    assert abs(size**2 - 0.25 - sigma**2 * 0.25 * count) < 0.1 * (0.25 + sigma**2 * 0.25 * count)
    assert set(noise.std.values()) == {sigma * 0.5}
    found = Attack(original, (3, 8, 8))(gradients, noise=noise)
    error = (found.images[0] - IMAGES[0]).square().mean().sqrt()
    assert bool(found.unique) == (sigma == 0) or error < 1e-2
    assert (error < 1e-2) == (sigma < 1)


def test_opacuss_clipped_batch_is_separated():
    """Each image has a factor of its own, which the attack finds; see the page's example."""
    needs("opacus")
    from opacus import PrivacyEngine

    from rconv.adapters.opacus import observed

    torch.manual_seed(0)
    layers = nn.Conv2d(3, 24, 3, padding=1), nn.Tanh(), nn.Flatten()
    original = nn.Sequential(*layers, nn.Linear(1536, 6))
    data = torch.utils.data.TensorDataset(IMAGES, torch.tensor([1, 4]))
    module = copy.deepcopy(original)
    private, optimizer, loader = PrivacyEngine().make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), 0.1),
        data_loader=torch.utils.data.DataLoader(data, batch_size=2),
        noise_multiplier=0.0,
        max_grad_norm=0.5,
        poisson_sampling=False,
    )
    ((x, y),) = loader
    nn.functional.cross_entropy(private(x), y).backward()
    gradients, noise = observed(private, optimizer)
    found = Attack(original, (3, 8, 8))(gradients, noise=noise, batch=len(x))
    assert found.unique.all() and sorted(found.labels.tolist()) == [1, 4]
    assert torch.cdist(found.images.flatten(1).float(), x.flatten(1)).amin(dim=1).max() < 1e-2


def test_opacuss_replacement_of_batchnorm_is_read_or_refused():
    needs("opacus")
    from opacus.validators import ModuleValidator

    from rconv import UnsupportedModelError

    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Tanh(), nn.Flatten(), nn.Linear(432, 6)
    )
    fixed = ModuleValidator.fix(model)
    assert isinstance(fixed[1], nn.GroupNorm)
    try:
        Attack(fixed, (3, 8, 8))
    except UnsupportedModelError as error:
        assert "GroupNorm" in str(error)


def example(package):
    """Run the example of the page about adapters, and return its names."""
    needs(package)
    code = re.search(rf"```python\n# {package}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[1]
    names = {}
    exec(code, names)
    return SimpleNamespace(**names)


def test_breachings_protocol():
    own = example("breaching")
    assert own.stats["unique"] == [True, True] and own.error < 1e-4
    assert sorted(own.found["labels"].tolist()) == [1, 4]
    assert own.found["data"].dtype == torch.float32
    own.shared["metadata"]["local_hyperparams"] = {"lr": 0.1}
    with pytest.raises(ValueError, match="local_gradient"):
        own.attacker.reconstruct([own.payload], [own.shared])


def test_leakpros_orchestrator():
    own = example("leakpro")
    assert own.config["converged"] and own.config["final_loss"] < 1e-2 and own.error < 1e-4
    assert own.client.compute_metrics(own.images, own.config).PSNR_score > 40
    assert bool(own.strategy.result.unique.all())
