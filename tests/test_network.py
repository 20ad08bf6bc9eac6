"""Network: what is read from a model, and what is refused by name before any work starts."""

import pytest
import torch
from hypothesis import given, settings
from small import SEEDS, convolution, geometries, normal
from torch import nn

from rconv.model.read import UnsupportedModelError, read


def conv(c=1, d=4, k=3, **options):
    return nn.Conv2d(c, d, k, **{"padding": 1, **options})


def model(*layers):
    return nn.Sequential(*layers)


@given(geometries(), SEEDS)
@settings(max_examples=60, deadline=None)
def test_any_convolution_is_read_as_pytorch_computes_it(g, seed):
    layer = convolution(g)
    head = nn.Linear(g.weight_rows, 2, dtype=torch.float64)
    (stage,) = read(model(layer, nn.Flatten(), head), g.input).stages
    assert stage.geometry == g
    x = normal(2, *g.input, seed=seed)
    with torch.no_grad():
        expected = layer(x)
    bias = stage.bias[:, None, None]
    torch.testing.assert_close(stage.convolve(x) + bias, expected, rtol=1e-11, atol=1e-11)


@given(geometries(), SEEDS)
@settings(max_examples=60, deadline=None)
def test_transpose_is_the_adjoint(g, seed):
    """⟨conv(x), o⟩ = ⟨x, convᵀ(o)⟩, and the same as autograd."""
    head = nn.Linear(g.weight_rows, 2)
    (stage,) = read(model(convolution(g), nn.Flatten(), head), g.input).stages
    x = normal(2, *g.input, seed=seed).requires_grad_()
    o = normal(2, *g.output, seed=seed + 1)
    product = (stage.convolve(x) * o).sum()
    (expected,) = torch.autograd.grad(product, x)
    back = stage.transpose(o)
    torch.testing.assert_close(back, expected, rtol=1e-11, atol=1e-11)
    assert (x * back).sum().item() == pytest.approx(product.item(), rel=1e-9, abs=1e-9)


@given(geometries(), SEEDS)
@settings(max_examples=30, deadline=None)
def test_row_norms_and_counts_are_those_of_the_explicit_rows(g, seed):
    head = nn.Linear(g.weight_rows, 2)
    (stage,) = read(model(convolution(g), nn.Flatten(), head), g.input).stages
    basis = torch.eye(g.unknowns, dtype=torch.float64).reshape(-1, *g.input)
    columns = stage.convolve(basis).flatten(1)
    assert columns.shape == (g.unknowns, g.weight_rows)
    norms = stage.row_norms().flatten()
    torch.testing.assert_close(norms, columns.norm(dim=0), rtol=1e-11, atol=1e-11)
    assert g.gradient_rows == stage.weight.numel()


def test_names_activations_and_shapes_of_nested_sequentials():
    features = nn.Sequential(conv(3, 4), nn.Sigmoid(), nn.Sequential(conv(4, 5, stride=2)))
    head = nn.Sequential(nn.Flatten(), nn.Linear(5 * 16, 7), nn.GELU(), nn.Linear(7, 2))
    network = read(nn.Sequential(features, head), (3, 8, 8))
    assert [stage.name for stage in network.stages] == ["0.0", "0.2.0"]
    assert [stage.activation.name for stage in network.stages] == ["Sigmoid", "Identity"]
    assert [stage.geometry.output for stage in network.stages] == [(4, 8, 8), (5, 4, 4)]
    assert (network.head.name, network.head.last, network.head.logits) == (
        "1.1",
        False,
        "1.3",
    )
    assert network.input_shape == (3, 8, 8)


def test_parameters_are_read_in_float64_from_any_dtype():
    half = model(conv(), nn.Flatten(), nn.Linear(64, 2)).half()
    network = read(half, (1, 4, 4))
    assert network.stages[0].weight.dtype == network.head.weight.dtype == torch.float64
    assert torch.equal(network.stages[0].weight, half[0].weight.double())
    assert not network.stages[0].weight.requires_grad


def test_a_convolution_and_a_linear_without_bias():
    network = read(model(conv(bias=False), nn.Flatten(), nn.Linear(64, 2, bias=False)), (1, 4, 4))
    assert network.stages[0].bias is None
    assert (network.head.has_bias, network.head.last, network.head.logits) == (False, True, "2")


def test_a_model_that_starts_with_its_linear_has_no_stages():
    network = read(model(nn.Flatten(), nn.Linear(48, 2)), (3, 4, 4))
    assert network.stages == ()
    assert network.head.last


@pytest.mark.parametrize(
    ("padding", "kernel", "output"),
    [("same", 3, 6), ("same", (3, 5), 6), ("valid", 3, 4), (0, 3, 4), (2, 3, 8)],
    ids=str,
)
def test_padding_by_name_and_by_number(padding, kernel, output):
    layer = nn.Conv2d(1, 2, kernel, padding=padding, dtype=torch.float64)
    (stage,) = read(model(layer, nn.Flatten(), nn.Linear(2 * output**2, 2)), (1, 6, 6)).stages
    assert stage.geometry.output == (2, output, output)
    x = normal(1, 1, 6, 6)
    with torch.no_grad():
        expected = layer(x) - layer.bias[:, None, None]
    torch.testing.assert_close(stage.convolve(x), expected)


def test_padding_same_with_dilation():
    layer = nn.Conv2d(1, 2, 3, padding="same", dilation=2, dtype=torch.float64)
    (stage,) = read(model(layer, nn.Flatten(), nn.Linear(2 * 36, 2)), (1, 6, 6)).stages
    assert stage.geometry.padding == (2, 2)


@pytest.mark.parametrize(
    "kind", [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout]
)
def test_dropout_passes_in_evaluation_and_is_refused_by_name_in_training(kind):
    layers = model(conv(), nn.ReLU(), kind(0.5), nn.Flatten(), nn.Linear(64, 2))
    assert read(layers.eval(), (1, 4, 4)).stages[0].activation.name == "ReLU"
    with pytest.raises(UnsupportedModelError, match=r"^2: Dropout is active.*eval\(\)"):
        read(layers.train(), (1, 4, 4))


def test_dropout_in_the_head_is_refused_too_and_one_that_drops_nothing_is_not():
    layers = model(conv(), nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.1), nn.Linear(8, 2))
    with pytest.raises(UnsupportedModelError, match=r"^3: Dropout is active"):
        read(layers.train(), (1, 4, 4))
    layers[3].p = 0.0
    assert read(layers.train(), (1, 4, 4)).stages


def test_identities_pass_anywhere():
    layers = model(
        nn.Identity(), conv(), nn.Identity(), nn.Tanh(), nn.Identity(), nn.Flatten(), nn.Identity(),
        nn.Linear(64, 2), nn.Identity(),
    )  # fmt: skip
    network = read(layers, (1, 4, 4))
    assert network.stages[0].activation.name == "Tanh"
    assert network.head.last


def test_an_activation_module_may_serve_several_layers():
    """`named_children` lists a module once, however often the Sequential calls it."""
    shared = nn.Tanh()
    layers = model(conv(1, 4), shared, conv(4, 4), shared, nn.Flatten(), nn.Linear(64, 2))
    names = [stage.activation.name for stage in read(layers, (1, 4, 4)).stages]
    assert names == ["Tanh", "Tanh"]


def test_a_convolution_that_serves_twice_is_refused():
    """Its gradient is a sum over both uses."""
    tied = conv(1, 1)
    layers = model(tied, nn.Tanh(), tied, nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(UnsupportedModelError, match=r"^2: .*0"):
        read(layers, (1, 4, 4))


def test_a_weight_that_serves_twice_is_refused():
    first, second = conv(1, 1), conv(1, 1)
    second.weight = first.weight
    layers = model(first, nn.Tanh(), second, nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(UnsupportedModelError, match=r"^2: .*0"):
        read(layers, (1, 4, 4))


class Residual(nn.Module):
    def forward(self, x):
        return x + x


TAIL = [nn.Flatten(), nn.Linear(64, 2)]
REFUSED = [
    # why, layers, what the message says of which layer
    ("pooling loses pixels", [conv(), nn.MaxPool2d(2), nn.Linear(16, 2)], "^1: MaxPool2d"),
    ("pooling loses pixels", [conv(), nn.ReLU(), nn.AvgPool2d(2), *TAIL], "^2: AvgPool2d"),
    ("mixes a batch", [conv(), nn.BatchNorm2d(4), nn.ReLU(), *TAIL], "^1: BatchNorm2d"),
    ("derivative not told by the output", [conv(), nn.GELU(), *TAIL], "^1: GELU"),
    ("not monotone", [conv(), nn.SiLU(), *TAIL], "^1: SiLU"),
    ("shares one matrix per group", [conv(4, 4, groups=2), *TAIL], "^0: grouped"),
    ("padding that depends on X", [conv(padding_mode="reflect"), *TAIL], "^0: padding_mode 'refl"),
    ("padding that depends on X", [conv(padding_mode="circular"), *TAIL], "^0: padding_mode 'circ"),
    ("one is enough", [conv(), nn.ReLU(), nn.Tanh(), *TAIL], "^2: Tanh is a second"),
    ("nothing to solve from", [nn.ReLU(), conv(), *TAIL], "^0: ReLU stands before"),
    ("nothing to start from", [conv(), nn.ReLU(), nn.Flatten()], "no Linear"),
    ("nothing at all", [], "no Linear"),
    ("wrong channels", [conv(2, 4), *TAIL], r"^0: takes 2 channels"),
    ("wrong channels below", [conv(1, 4), nn.ReLU(), conv(3, 4), *TAIL], "^2: takes 3 channels"),
    ("wrong size", [conv(), nn.Flatten(), nn.Linear(63, 2)], "^2: takes 63 features"),
    ("kernel too large", [conv(k=7), *TAIL], "^0: the kernel is larger"),
    ("lopsided padding", [conv(k=2, padding="same"), *TAIL], "^0: padding 'same'"),
    ("flattens the batch", [conv(), nn.Flatten(0), nn.Linear(64, 2)], "^1: Flatten"),
    ("flattens part", [conv(), nn.Flatten(1, 2), nn.Linear(64, 2)], "^1: Flatten"),
    ("unknown module", [conv(), Residual(), *TAIL], "^1: Residual"),
    ("another dimension", [nn.Conv1d(1, 4, 3), *TAIL], "^0: Conv1d"),
    ("transposed", [nn.ConvTranspose2d(1, 4, 3), *TAIL], "^0: ConvTranspose2d"),
    ("no scale", [conv(), nn.Flatten(), nn.Linear(64, 8, bias=False), nn.GELU(), nn.Linear(8, 2)],
     "^2: .*bias"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("why", "layers", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else ""
)
def test_refused_with_the_layers_name(why, layers, message):
    channels = 4 if why.startswith("shares") else 1
    with pytest.raises(UnsupportedModelError, match=message):
        read(model(*layers), (channels, 4, 4))


def test_the_name_of_a_nested_layer_is_its_path():
    layers = nn.Sequential()
    layers.add_module("body", nn.Sequential(conv(), nn.Sequential(nn.MaxPool2d(2))))
    layers.add_module("fc", nn.Linear(16, 2))
    with pytest.raises(UnsupportedModelError, match=r"^body\.1\.0: MaxPool2d"):
        read(layers, (1, 4, 4))


def test_a_model_that_is_no_sequential_is_refused_by_class():
    with pytest.raises(UnsupportedModelError, match="Residual is no Sequential"):
        read(Residual(), (1, 4, 4))


@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 4, 4), (0, 4, 4), (1, 4, -4), ()], ids=str)
def test_an_input_shape_that_is_none_is_refused(shape):
    with pytest.raises(UnsupportedModelError, match=r"\(C, H, W\)"):
        read(model(conv(), *TAIL), shape)


@pytest.mark.parametrize(
    ("tail", "logits"),
    [
        ([nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 2)], "4"),
        ([nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 2), nn.Identity()], "4"),
        ([nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 2), nn.Dropout()], "4"),
        ([nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 2, bias=False)], "4"),
        ([nn.Linear(64, 8), nn.Linear(8, 2), nn.LogSoftmax(1)], "3"),
        ([nn.Linear(64, 8), nn.Linear(8, 2), nn.Tanh()], None),
    ],
    ids=["MLP", "then Identity", "then Dropout", "no bias", "then LogSoftmax", "then Tanh"],
)
def test_the_linear_that_makes_the_logits_tells_the_label(tail, logits):
    network = read(model(conv(), nn.Flatten(), *tail).eval(), (1, 4, 4))
    assert network.head.logits == logits
    assert network.head.name == "2"
