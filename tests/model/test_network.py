"""Network: what is read from a model, and what is refused by name before any work starts."""

import pytest
import torch
from hypothesis import given, settings
from small import SEEDS, convolution, geometries, normal
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from rconv.model.nodes import UnsupportedModelError
from rconv.model.read import read


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
    assert (network.head.name, network.head.last, network.head.logits) == ("1.1", False, "1.3")
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
    with pytest.raises(UnsupportedModelError, match=rf"^2: {kind.__name__} is active.*eval\(\)"):
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


class Doubled(nn.Module):
    """No skip connection, which adds another map to x: those are in test_graphs.py."""

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
    ("flattens too early", [conv(), nn.Flatten(), conv(4, 1), *TAIL], "^2: Conv2d stands"),
    ("flattens nothing", [conv(), nn.ReLU(), nn.Linear(64, 2)], "^2: no Flatten"),
    ("flattens part", [conv(), nn.Flatten(1, 2), nn.Linear(64, 2)], "^1: Flatten"),
    ("one map twice", [conv(), Doubled(), *TAIL], "^1: Doubled's add: .* twice"),
    ("another dimension", [nn.Conv1d(1, 4, 3), *TAIL], "^0: Conv1d"),
    ("transposed", [nn.ConvTranspose2d(1, 4, 3), *TAIL], "^0: ConvTranspose2d.*enlarges"),
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


def test_a_model_that_is_no_sequential_is_refused_by_its_step_and_line():
    with pytest.raises(UnsupportedModelError, match=r"^add: .* twice \(line \d+ of forward: ret"):
        read(Doubled(), (1, 4, 4))


@pytest.mark.parametrize(
    "shape",
    [(4, 4), (1, 1, 4, 4), (0, 4, 4), (1, 4, -4), (), (1.0, 4.0, 4.0), (1, 4, 4.5), "144", None, 4,
     ("1", "4", "4"), (1, 4, None), (1, 4, float("nan"))],
    ids=str,
)  # fmt: skip
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


# What changes a layer behind the back of its class


class Twice(nn.Sequential):
    def forward(self, x):
        return super().forward(2 * x)


class Built(nn.Sequential):
    """Only builds its layers."""

    def __init__(self):
        super().__init__(conv(), nn.ReLU())


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 3 * super().forward(x)


class OwnLinear(nn.Linear):
    pass


class Step(nn.ReLU):
    def forward(self, x):
        return (x > 0).to(x)


def small():
    return nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()


def replaced(position, module):
    layers = small()
    layers[position] = module
    return layers


SUBCLASSES = [
    (Twice(*small()), "^mul: the attack does not know .*2 \\* x"),
    (nn.Sequential(Twice(conv()), *TAIL), "^0: Twice's mul: the attack does not know"),
    (replaced(0, Scaled(1, 4, 3, padding=1)), "^0: Scaled .* is a subclass of Conv2d"),
    (replaced(1, Step()), "^1: Step .* is a subclass of ReLU"),
    (replaced(3, OwnLinear(64, 2)), "^3: OwnLinear .* is a subclass of Linear"),
    (replaced(0, nn.LazyConv2d(4, 3, padding=1)), "^0: LazyConv2d is not initialised yet"),
]


@pytest.mark.parametrize(("layers", "message"), SUBCLASSES, ids=lambda v: str(v)[1:9])
def test_a_subclass_is_refused_because_it_may_compute_something_else(layers, message):
    with pytest.raises(UnsupportedModelError, match=message):
        read(layers, (1, 4, 4))


def test_a_sequential_that_only_builds_its_layers_is_one():
    (stage,) = read(nn.Sequential(Built(), *TAIL), (1, 4, 4)).stages
    assert (stage.name, stage.activation.name) == ("0.0", "ReLU")


def test_behind_the_first_linear_anything_may_stand():
    tail = [nn.Linear(64, 8), Twice(nn.Linear(8, 8)), OwnLinear(8, 2)]
    assert read(nn.Sequential(conv(), nn.Flatten(), *tail), (1, 4, 4)).head.logits is None


PARAMETRIZED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "own": lambda module: parametrize.register_parametrization(module, "weight", nn.Tanh()),
}


@pytest.mark.parametrize("wrap", PARAMETRIZED.values(), ids=PARAMETRIZED)
@pytest.mark.parametrize("position", [0, 3])
def test_a_parametrized_layer_is_refused(wrap, position):
    """Its gradients are those of the parametrization, under other names: a bare KeyError once."""
    layers = small()
    wrap(layers[position])
    kind = ("Conv2d", "Linear")[position == 3]
    with pytest.raises(UnsupportedModelError, match=f"^{position}: {kind} is parametrized"):
        read(layers, (1, 4, 4))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PyTorch's word on its older two
@pytest.mark.parametrize(
    "wrap",
    [nn.utils.weight_norm, nn.utils.spectral_norm, lambda m: prune.l1_unstructured(m, "weight", 1)],
    ids=["WeightNorm", "SpectralNorm", "L1Unstructured"],
)
def test_what_recomputes_a_weight_by_a_hook_is_refused(wrap, request):
    layers = small()
    wrap(layers[0])
    name = request.node.callspec.id
    with pytest.raises(UnsupportedModelError, match=rf"^0: Conv2d has a forward pre-hook \({name}"):
        read(layers, (1, 4, 4))


def double_output(module, inputs, output):
    return 2 * output


HOOKS = {
    "forward hook": lambda m: m.register_forward_hook(double_output),
    "forward pre-hook": lambda m: m.register_forward_pre_hook(lambda m, x: None),
    "backward hook": lambda m: m.register_full_backward_hook(lambda m, i, o: None),
    "backward pre-hook": lambda m: m.register_full_backward_pre_hook(lambda m, o: None),
}


@pytest.mark.parametrize("position", [None, 0, 1, 3])
@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_is_refused_and_passes_once_it_is_removed(kind, position):
    layers = small()
    handle = HOOKS[kind](layers if position is None else layers[position])
    where = "the model" if position is None else position
    with pytest.raises(UnsupportedModelError, match=rf"^{where}: \w+ has a {kind} \("):
        read(layers, (1, 4, 4))
    handle.remove()
    assert read(layers, (1, 4, 4)).stages


def test_a_hook_on_a_parameter_and_a_forward_that_was_replaced_are_refused():
    layers = small()
    handle = layers[0].weight.register_hook(lambda g: g.clamp(-1, 1))
    with pytest.raises(UnsupportedModelError, match=r"^0: its weight has a hook"):
        read(layers, (1, 4, 4))
    handle.remove()
    layers[0].forward = lambda x: x
    with pytest.raises(UnsupportedModelError, match=r"^0: the forward of this Conv2d"):
        read(layers, (1, 4, 4))


def test_a_weight_that_is_no_parameter_or_of_another_shape_is_refused():
    layers = small()
    weight = layers[0].weight.detach()
    del layers[0].weight
    layers[0].weight = weight
    with pytest.raises(UnsupportedModelError, match=r"^0: its weight is no parameter"):
        read(layers, (1, 4, 4))
    layers = small()
    layers[3].bias = nn.Parameter(torch.zeros(3))
    with pytest.raises(UnsupportedModelError, match=r"^3: its bias has the shape \(3,\)"):
        read(layers, (1, 4, 4))


def test_a_gap_in_a_sequential_is_refused():
    layers = small()
    layers.add_module("1", None)
    with pytest.raises(UnsupportedModelError, match=r"^1: is None"):
        read(layers, (1, 4, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e200, -1e200])
@pytest.mark.parametrize("name", ["0.weight", "3.bias"])
def test_a_weight_that_is_no_number_or_overflows_is_refused(name, value):
    layers = small().double()
    with torch.no_grad():
        layers.get_parameter(name).view(-1)[0] = value
    with pytest.raises(UnsupportedModelError, match=f"^{name} has"):
        read(layers, (1, 4, 4))


def test_weights_that_overflow_only_together_are_refused():
    layers = small().double()
    with torch.no_grad():
        layers[0].weight.fill_(1e80)
    assert read(layers, (1, 4, 4)).stages
    with torch.no_grad():
        layers[3].weight.fill_(1e80)
    with pytest.raises(UnsupportedModelError, match=r"^3\.weight .* overflows"):
        read(layers, (1, 4, 4))


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.to("meta"), "^0.weight has no values"),
        (lambda m: m.to(torch.complex64), "^0.weight is torch.complex64"),
        (lambda m: setattr(m[3], "weight", nn.Parameter(m[3].weight.detach().to_sparse())),
         "^3.weight is a sparse tensor"),
    ],
    ids=["meta", "complex", "sparse"],
)  # fmt: skip
def test_weights_without_values_are_refused(change, message):
    layers = small()
    change(layers)
    with pytest.raises(UnsupportedModelError, match=message):
        read(layers, (1, 4, 4))


def test_what_is_read_is_a_copy():
    """Training goes on in place; the attack belongs to the step that it was prepared for."""
    layers = small().double()
    network = read(layers, (1, 4, 4))
    before = [t.clone() for t in (network.stages[0].weight, network.stages[0].bias)]
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.zero_()
    assert torch.equal(network.stages[0].weight, before[0])
    assert torch.equal(network.stages[0].bias, before[1])
    assert network.head.weight.abs().min() > 0


@pytest.mark.parametrize("options", [{"stride": 0}, {"dilation": 0}, {"padding": -1}], ids=str)
def test_a_convolution_that_pytorch_only_refuses_to_run_is_refused(options):
    with pytest.raises(UnsupportedModelError, match=r"^0: kernel, stride and dilation"):
        read(model(conv(**options), *TAIL), (1, 4, 4))
