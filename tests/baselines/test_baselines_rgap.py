"""R-GAP: exact where it applies, against explicit matrices, and what it refuses."""

import numpy as np
import pytest
import torch
from torch import nn

from rconv.attack.estimate import Cotangent, Estimate
from rconv.attack.map_problem import ConvData
from rconv.attack.plan import LayerPlan
from rconv.baselines import rank_analysis, rgap
from rconv.lab import architectures
from rconv.lab.metrics import mse
from rconv.model.read import UnsupportedModelError, read
from rconv.observe.observation import per_sample_gradients

SHAPE = (2, 8, 8)
LOGISTIC = nn.functional.binary_cross_entropy_with_logits


def net(activation, outputs=1, bias=False, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 8, 4, 2, 2, bias=bias),
            activation(),
            nn.Conv2d(8, 6, 3, 1, 1, bias=bias),
            activation(),
            nn.Flatten(),
            nn.Linear(150, outputs, bias=bias),
        ).double()


def leaky():
    return nn.LeakyReLU(0.2)


def images(n=3):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("activation", [leaky, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU])
@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_exact_with_every_invertible_activation(activation, outputs, bias):
    model, labels = net(activation, outputs, bias), torch.tensor([0, 1, 1])
    loss = LOGISTIC if outputs == 1 else None
    gradients = per_sample_gradients(model, images(), labels, loss)
    odd = activation is nn.Tanh and not bias and outputs == 1  # -x and the other label: a twin
    result = rgap.attack(model, gradients, SHAPE, labels=labels if odd else None)
    assert mse(result.images, images()).max() < 1e-14
    assert result.labels.equal(labels)
    assert not result.diverged.any()
    assert (result.rank == result.unknowns).all()
    own = per_sample_gradients(model, result.images, result.labels, loss)
    for name, observed in gradients.items():
        torch.testing.assert_close(own[name], observed, rtol=1e-5, atol=1e-9)


def test_a_known_label_chooses_the_sign():
    model, labels = net(leaky), torch.tensor([0, 1, 0])
    gradients = per_sample_gradients(model, images(), labels, LOGISTIC)
    right = rgap.attack(model, gradients, SHAPE, labels=labels)
    wrong = rgap.attack(model, gradients, SHAPE, labels=1 - labels)
    assert mse(right.images, images()).max() < 1e-20
    assert mse(wrong.images, images()).min() > 1e-2
    assert (wrong.objective > 1e6 * right.objective).all()


def test_an_odd_network_with_one_logit_has_a_twin_for_the_other_label():
    model, labels = net(nn.Tanh), torch.tensor([0, 1, 1])
    gradients = per_sample_gradients(model, images(), labels, LOGISTIC)
    twins = rgap.attack(model, gradients, SHAPE, labels=1 - labels)
    torch.testing.assert_close(twins.images, -images())
    assert twins.objective.max() < 1e-20


def test_a_layer_is_the_least_squares_solution_of_all_rows():
    """Contradictory equations, written row by row and solved by LAPACK."""
    stage = read(net(leaky), SHAPE).stages[1]
    generator = torch.Generator().manual_seed(0)
    output, back = torch.randn(2, 1, 6, 5, 5, generator=generator, dtype=torch.float64)
    observed = torch.randn(1, 6, 8, 3, 3, generator=generator, dtype=torch.float64)
    rows = stacked_rows(stage.weight.numpy(), back[0].numpy(), side=5)
    rhs = np.concatenate([output.numpy().ravel(), observed.numpy().ravel()])
    expected = np.linalg.lstsq(rows, rhs, rcond=None)[0]
    known = Estimate.whole(output, output[..., 0, 0]), Cotangent(back, torch.zeros(1))
    layer = ConvData(LayerPlan(stage, "hybrid"), *known, observed, torch.zeros(1))
    value = rgap._solve(layer).value[0, :, 0].numpy()
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-10 * abs(expected).max())


def stacked_rows(weight, back, side):
    """Rows of a 3 × 3 convolution with padding 1: first its outputs, then its gradient."""
    d, c = weight.shape[:2]
    outputs = np.zeros((d, side, side, c, side + 2, side + 2))
    gradient = np.zeros((d, c, 3, 3, c, side + 2, side + 2))
    for i, j, u, v in np.ndindex(side, side, 3, 3):
        outputs[:, i, j, :, i + u, j + v] = weight[:, :, u, v]
        for channel in range(c):
            gradient[:, channel, u, v, channel, i + u, j + v] = back[:, i, j]
    inner = np.s_[..., 1:-1, 1:-1]
    return np.concatenate(
        [outputs[inner].reshape(-1, c * side**2), gradient[inner].reshape(-1, c * side**2)]
    )


def test_a_short_rank_gives_the_solution_of_minimum_norm():
    """One filter of stride 2: too few equations, and the result says so."""
    model = nn.Sequential(
        nn.Conv2d(1, 1, 3, 2, 1, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)
    ).double()
    image = images(1)[:, :1]
    gradients = per_sample_gradients(model, image, torch.tensor([2]))
    result = rgap.attack(model, gradients, (1, 8, 8))
    assert result.rank[0, 0] < result.unknowns[0] == 64
    assert mse(result.images, image)[0] > 1e-3
    assert result.objective[0] < 1e-20  # it explains the gradients, as the true image does
    assert result.images.norm() < image.norm()


def test_float32_gradients_give_float32_images():
    model, labels = net(leaky), torch.tensor([0, 1, 1])
    gradients = per_sample_gradients(model.float(), images(), labels, LOGISTIC)
    result = rgap.attack(model, gradients, SHAPE)
    assert result.images.dtype == torch.float32
    assert mse(result.images, images()).max() < 1e-4


def test_each_image_is_attacked_alone():
    model, labels = net(nn.Tanh, 4), torch.tensor([3, 0, 2])
    gradients = per_sample_gradients(model, images(), labels)
    together = rgap.attack(model, gradients, SHAPE)
    alone = rgap.attack(model, {name: g[1] for name, g in gradients.items()}, SHAPE)
    torch.testing.assert_close(together.images[1:2], alone.images)
    assert together.labels.equal(labels)
    assert alone.iterations.tolist() == [2]
    assert len(alone.history[0]) == 3


def test_saturated_outputs_have_no_inverse_and_that_is_reported():
    model = net(nn.Sigmoid, 4, bias=True)
    with torch.no_grad():
        model[2].weight.mul_(1e4)
    gradients = per_sample_gradients(model, images(1), torch.tensor([0]))
    result = rgap.attack(model, gradients, SHAPE)
    assert result.diverged.tolist() == [True]
    assert result.images.isnan().all()
    assert result.layers == ("2", "0")
    assert result.rank.tolist() == [[0, 0]]


def test_refusals():
    model = net(nn.ReLU)
    gradients = per_sample_gradients(model, images(1), torch.tensor([1]), LOGISTIC)
    with pytest.raises(UnsupportedModelError, match="ReLU has none"):
        rgap.attack(model, gradients, SHAPE)
    wide = nn.Sequential(nn.Conv2d(3, 1, 5, 4), nn.Flatten(), nn.Linear(256, 2))
    gradients = {name: torch.ones_like(p) for name, p in wide.named_parameters()}
    with pytest.raises(UnsupportedModelError, match="12675 unknowns in one dense system"):
        rgap.attack(wide, gradients, (3, 65, 65))
    model = net(leaky)
    gradients = per_sample_gradients(model, images(1), torch.tensor([1]), LOGISTIC)
    with pytest.raises(ValueError, match="1 images need as many labels"):
        rgap.attack(model, gradients, SHAPE, labels=torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="no gradient for"):
        rgap.attack(model, {}, SHAPE)
    deep = nn.Sequential(*net(leaky, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    gradients = per_sample_gradients(deep, images(1), torch.tensor([1]))
    with pytest.raises(UnsupportedModelError, match="scale of its input"):
        rgap.attack(deep, gradients, SHAPE)


def test_rank_analysis_counts_cnn6():
    counts = rank_analysis(architectures.build("cnn6"), (3, 32, 32))
    table = [(c.name, c.unknowns, c.gradient, c.weight, c.virtual) for c in counts]
    assert table == [
        ("conv1", 3 * 32**2, 12 * 3 * 4**2, 12 * 17**2, 0),
        ("conv2", 12 * 17**2, 36 * 12 * 9, 36 * 9**2, 12 * 17**2 - 3 * 32**2),
        ("conv3", 36 * 9**2, 36 * 36 * 9, 36 * 9**2, 396),
        ("conv4", 36 * 9**2, 36 * 36 * 9, 36 * 9**2, 396),
        ("conv5", 36 * 9**2, 64 * 36 * 9, 64 * 5**2, 396),
        ("conv6", 64 * 5**2, 128 * 64 * 9, 128 * 5**2, 396),
        ("fc", 3200, 3200, 1, 396 + 1600),
    ]
    assert counts[0].index == 3072 - 576 - 3468
    assert max(c.index for c in counts) < 0
