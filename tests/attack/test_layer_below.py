"""Maps of short rank, closed together with the convolution below them."""

import pytest
import torch
from torch import nn

from rconv import Attack
from rconv.attack.layer_below import Softened, two_layers
from rconv.equations.block import BlockFunction
from rconv.model.read import read

SHAPE = (2, 6, 6)


def client(activation, filters, seed, dtype=torch.float64):
    """A network whose second convolution has few filters, an image, and its gradients."""
    torch.manual_seed(seed)
    width = filters * SHAPE[1] * SHAPE[2]
    model = nn.Sequential(
        *(nn.Conv2d(2, 8, 3, 1, 1), activation(), nn.Conv2d(8, filters, 3, 1, 1), activation()),
        *(nn.Flatten(), nn.Linear(width, 5)),
    ).to(dtype)
    image = torch.rand(1, *SHAPE, dtype=torch.float64)
    nn.functional.cross_entropy(model(image.to(dtype)), torch.tensor([1])).backward()
    return model, image, {name: p.grad.clone() for name, p in model.named_parameters()}


# seeds whose two filters are both alive; one filter leaves less than half of the rank
@pytest.mark.parametrize(
    ("activation", "filters", "seed"),
    [(nn.ReLU, 2, 1), (nn.ReLU, 3, 2), (nn.LeakyReLU, 2, 0), (nn.Tanh, 2, 0), (nn.Tanh, 1, 1)],
)
def test_the_layer_below_closes_what_the_equations_leave_open(activation, filters, seed):
    model, image, gradients = client(activation, filters, seed)
    attack = {"loss": "cross-entropy"}
    alone = Attack(model, SHAPE, signs=False, **attack)(gradients)
    assert int(alone.layers[1].open[0]) > 0 and not alone.unique.any()
    found = Attack(model, SHAPE, **attack)(gradients)
    assert found.layers[1].constraints == ("two layers",) and int(found.layers[1].open[0]) == 0
    assert (found.images - image).abs().max() < 1e-9 and found.unique.all()


def test_each_client_is_closed_for_itself():
    clients = [client(nn.ReLU, 3, 2), client(nn.ReLU, 3, 2)]
    model = clients[0][0]
    images = torch.cat([clients[0][1], torch.zeros(1, *SHAPE, dtype=torch.float64)])
    gradients = {}
    for image in images:
        model.zero_grad()
        nn.functional.cross_entropy(model(image[None]), torch.tensor([1])).backward()
        for name, p in model.named_parameters():
            gradients.setdefault(name, []).append(p.grad.clone())
    stacked = {name: torch.stack(own) for name, own in gradients.items()}
    found = Attack(model, SHAPE, loss="cross-entropy")(stacked)
    assert (found.images[0] - images[0]).abs().max() < 1e-9 and bool(found.unique[0])
    wrong = (found.images[1] - images[1]).abs().max() > 1e-2
    assert not (wrong and bool(found.unique[1]))


def test_single_precision_closes_a_map_and_is_not_called_unique():
    model, image, gradients = client(nn.Tanh, 2, 0, torch.float32)
    found = Attack(model, SHAPE, loss="cross-entropy")(gradients)
    assert found.layers[1].constraints == ("two layers",)
    assert (found.images - image).abs().max() < 1e-2 and not found.unique.any()
    assert "exact float64" in found.diagnostics[0]


def test_two_layers_are_a_block_whose_equations_the_truth_fulfils():
    model, image, gradients = client(nn.ReLU, 3, 2)
    network = read(model, SHAPE)
    block = two_layers(network.stages[0], "1", nn.ReLU(), network.stages[1])
    z = model[:3](image)
    z.retain_grad()
    nn.functional.cross_entropy(model[3:](z), torch.tensor([1])).backward()
    parameters = ("0.weight", "0.bias", "2.weight", "2.bias")
    parts, _ = BlockFunction(block, z.grad, parameters).parts(image.requires_grad_())
    assert torch.allclose(parts[block.name], z)
    for name in parameters:
        assert torch.allclose(parts[name], gradients[name], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_a_softened_kink_becomes_sharp(slope):
    z = torch.linspace(-2, 2, 81, dtype=torch.float64)
    sharp = nn.functional.leaky_relu(z, slope)
    widths = [0.5, 0.1, 0.02]
    errors = [float((Softened(slope, w)(z) - sharp).abs().max()) for w in widths]
    # the largest error is that at 0: (1 - slope) · width · log 2
    for error, width in zip(errors, widths, strict=True):
        assert error == pytest.approx((1 - slope) * width * 0.6931, rel=1e-3)
