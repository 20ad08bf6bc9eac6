"""Models: shapes and counts against the paper's table, seeds, initialisations, refusals."""

import hashlib

import pytest
import torch

from rconv.lab import architectures
from rconv.lab.architectures import ACTIVATIONS, ARCHITECTURES, activation_names, build, targets
from rconv.model.read import read

LENET, CNN6 = (16, 8, 8, 8), (17, 9, 9, 9, 5, 5)
SIDES = {
    # sides after each convolution of a 32 × 32 image
    **dict.fromkeys(architectures.PUBLISHED, LENET),
    "o_cnn6": (*LENET, 8, 8),
    "relu_lenet": LENET,
    "cnn6_narrow": CNN6,
    "dlg_lenet": LENET[:3],
    "cnn6": CNN6,
}
PARAMETERS = {
    # weights and biases of the convolutions and the head, for 3 channels and 10 classes
    "lenet_main": 912 + 4816 + 4812 + 903 + 1930,
    "lenet": 912 + 4816 + 4812 + 3612 + 7690,
    "lenet_o": 912 + 4816 + 1203 + 228 + 1930,
    "o_cnn6": 912 + 4816 + 1203 + 3 * 228 + 1930,
    "lenet_4_relu": 912 + 6622 + 1653 + 228 + 1930,
    "lenet_all_relu": 5852 + 42372 + 1653 + 228 + 1930,
    "cnn6_narrow": 588 + 3924 + 11700 + 11700 + 20800 + 1731 + 760,
    "dlg_lenet": 912 + 3612 + 3612 + 7690,
    "cnn6": 576 + 3888 + 11664 + 11664 + 20736 + 73728 + 3200,
}
PUBLISHED = {
    # inputs and outputs of the published head, for the notebook's dataset
    "lenet": (3, 100, 768),
    "lenet_o": (3, 100, 192),
    "o_cnn6": (3, 10, 192),
    "lenet_4_relu": (3, 100, 192),
    "lenet_all_relu": (3, 100, 192),
    "test_cifar10": (3, 10, 192),
    "test_cifar100": (3, 100, 768),
    "test_mnist": (1, 10, 768),
}
RELUS = {
    # how many of the activations are ReLU, the last ones; LeakyReLU before them
    "lenet_main": 2,
    "lenet": 2,
    "lenet_o": 2,
    "o_cnn6": 4,
    "lenet_4_relu": 3,
    "lenet_all_relu": 4,
    "test_cifar10": 2,
    "test_cifar100": 2,
    "test_mnist": 2,
}
every = pytest.mark.parametrize("name", ARCHITECTURES)
sizes = pytest.mark.parametrize(
    ("channels", "classes"), [(1, 10), (3, 10), (1, 100), (3, 100)], ids=str
)


def fingerprint(model):
    """A hash of all weights, in the order of the model."""
    data = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return hashlib.sha256(data).hexdigest()[:16]


@every
@sizes
def test_shapes_and_layers(name, channels, classes):
    architecture = ARCHITECTURES[name]
    model = build(name, channels, classes)
    x = torch.rand(2, channels, 32, 32, dtype=torch.float64)
    logits = 1 if architecture.logistic else classes
    assert model(x).shape == (2, logits)
    stages = read(model, (channels, 32, 32)).stages
    assert tuple(stage.geometry.output[1] for stage in stages) == SIDES[name]
    assert tuple(stage.geometry.output[0] for stage in stages) == architecture.filters
    numbers = range(1, len(stages) + 1)
    names = [f"{kind}{i}" for i in numbers for kind in ("conv", "act")]
    assert [key for key, _ in model.named_children()] == [*names, "flatten", "fc"]
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert not model.training


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts(name, count):
    assert sum(p.numel() for p in build(name).parameters()) == count


@pytest.mark.parametrize("name", architectures.PUBLISHED)
def test_published_networks_are_as_published(name):
    own = ARCHITECTURES[name]
    assert {(kernel, padding) for kernel, _, padding in own.shapes} == {(5, 2)}
    assert [stride for _, stride, _ in own.shapes] == [2, 2] + [1] * (len(own.filters) - 2)
    assert own.bias and not own.logistic and own.initialisation == "uniform"
    kinds = activation_names(name)
    assert kinds == ("LeakyReLU",) * (len(kinds) - RELUS[name]) + ("ReLU",) * RELUS[name]
    if name != "lenet_main":  # the script takes every dataset
        channels, classes, features = PUBLISHED[name]
        head = build(name, channels, classes).fc
        assert (head.in_features, head.out_features) == (features, classes)


def test_heads_of_the_other_networks():
    features = {name: build(name).fc.in_features for name in architectures.OTHERS}
    assert features == {"relu_lenet": 768, "cnn6_narrow": 75, "dlg_lenet": 768, "cnn6": 3200}


@every
@sizes
def test_uniform_weights_lie_within_a_half_and_fill_it(name, channels, classes):
    model = build(name, channels, classes, initialisation="uniform")
    flat = torch.cat([p.flatten() for p in model.parameters()])
    assert -0.5 <= flat.min() < -0.49 and 0.49 < flat.max() <= 0.5
    assert abs(flat.mean()) < 0.02
    assert flat.unique().numel() == flat.numel()


@every
def test_the_seed_and_nothing_else_decides(name):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build(name, seed=7)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random stream goes on
    torch.manual_seed(2)
    assert fingerprint(build(name, seed=7)) == fingerprint(first)
    assert fingerprint(build(name, seed=8)) != fingerprint(first)


def test_the_seed_decides_whatever_the_default_dtype_is():
    first = build("lenet_main", seed=7)
    torch.set_default_dtype(torch.float64)
    try:
        assert fingerprint(build("lenet_main", seed=7)) == fingerprint(first)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_weights_of_the_papers_script_are_pinned():
    """lenet_main, seed 50, uniform, CIFAR-10."""
    model = build("lenet_main", 3, 10)
    total = sum(p.double().sum() for p in model.parameters()).item()
    assert (fingerprint(model), total) == (FINGERPRINT, pytest.approx(TOTAL, abs=1e-9))


FINGERPRINT = "61d4730115a357c2"
TOTAL = 24.534601511420224


def test_the_activation_does_not_change_the_weights():
    assert len({fingerprint(build("lenet_main", activation=a)) for a in ACTIVATIONS}) == 1


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_chosen_activation_follows_the_last_two_convolutions(activation):
    found = build("lenet_main", activation=activation)
    kinds = [type(getattr(found, f"act{i}")).__name__ for i in range(1, 5)]
    assert kinds == ["LeakyReLU", "LeakyReLU", activation, activation]
    assert found.act1.negative_slope == 0.2
    assert list(activation_names("lenet_main", activation)) == kinds


def test_relu_is_chosen_where_nothing_is():
    assert activation_names("lenet_main") == ("LeakyReLU", "LeakyReLU", "ReLU", "ReLU")
    assert activation_names("dlg_lenet") == ("Sigmoid",) * 3
    assert activation_names("dlg_lenet", "Sigmoid") == ("Sigmoid",) * 3


def test_r_gaps_network_has_no_bias_one_logit_and_pytorchs_initialisation():
    model = build("cnn6")
    assert not [name for name, _ in model.named_parameters() if "bias" in name]
    assert model.fc.out_features == 1
    bound = 1 / model.fc.in_features**0.5
    assert model.fc.weight.abs().max() <= bound
    assert targets("cnn6", torch.tensor([3, 4, 9])).tolist() == [1, 0, 1]


def test_the_others_take_the_labels_themselves():
    assert targets("lenet_main", torch.tensor([3, 4, 9])).tolist() == [3, 4, 9]


def test_filters_of_ones_own():
    model = build("lenet_main", filters=[2, 3, 4, 5])
    assert [getattr(model, f"conv{i}").out_channels for i in range(1, 5)] == [2, 3, 4, 5]
    assert model.fc.in_features == 5 * 64


def test_default_initialisation_is_pytorchs():
    model = build("lenet_main", initialisation="default")
    assert model.conv1.weight.abs().max() <= 1 / 75**0.5
    assert model.fc.weight.abs().max() <= 1 / 192**0.5


REFUSED = [
    (dict(name="LeNet"), "unknown architecture 'LeNet': use one of lenet_main"),
    (dict(name="lenet_main", activation="GELU"), "unknown activation 'GELU': use one of ReLU"),
    (dict(name="dlg_lenet", activation="Tanh"), "dlg_lenet fixes its activation to Sigmoid"),
    (dict(name="cnn6", activation="ReLU"), "cnn6 fixes its activation to LeakyReLU"),
    (dict(name="lenet_4_relu", activation="Tanh"), "lenet_4_relu fixes its activation to ReLU"),
    (dict(name="lenet_main", filters=(1, 2, 3)), "lenet_main has 4 convolutions"),
    (dict(name="lenet_main", filters=(1, 2, 3, 0)), "positive"),
    (dict(name="lenet_main", filters=()), "lenet_main has 4 convolutions"),
    (dict(name="lenet_main", initialisation="xavier"), "unknown initialisation 'xavier'"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[str(row[0]) for row in REFUSED])
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


@pytest.mark.parametrize("function", [activation_names, architectures.build])
def test_an_unknown_architecture_is_refused_everywhere(function):
    with pytest.raises(ValueError, match="unknown architecture"):
        function("resnet")
