"""Models written as code: what is read of them, what is refused, and the attack on graphs."""

import pytest
import torch
from small import network, normal, observe, relative_error, uniform
from torch import nn
from torch.nn import functional

from rconv.attack.attack import Attack
from rconv.model.nodes import UnsupportedModelError
from rconv.model.read import read


def seeded(make, seed=0):
    """A module, its parameters and statistics drawn from a seed; float64, in evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.1)
                norm.running_var.uniform_(0.5, 2)
                if norm.affine:
                    norm.weight.data.uniform_(0.5, 1.5)
                    norm.bias.data.normal_(0, 0.2)
    return model.double().eval()


def conv(c, d, k=3, s=1, bias=True):
    return nn.Conv2d(c, d, k, s, k // 2, bias=bias)


class Chain(nn.Module):
    """Its head is made first, its layers are called in another order, functions between them."""

    def __init__(self, activation=functional.relu):
        super().__init__()
        self.activation = activation
        self.head = nn.Linear(10 * 64, 5)
        self.second, self.first = conv(8, 10, 5), conv(1, 8, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = self.drop(self.activation(self.first(x)))
        x = functional.dropout(self.activation(self.second(x)), training=self.training)
        return self.head(x.view(x.size(0), -1))


class Same(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.conv, self.fc, self.step = conv(1, 4), nn.Linear(4 * 16, 2), step

    def forward(self, x):
        return self.fc(torch.flatten(self.step(self.conv(x)), 1))


SAME = {
    "F.relu": (functional.relu, "ReLU"),
    "torch.relu": (torch.relu, "ReLU"),
    "x.relu()": (lambda x: x.relu(), "ReLU"),
    "in place": (lambda x: functional.relu(x, inplace=True), "ReLU"),
    "a slope": (lambda x: functional.leaky_relu(x, 0.3), "LeakyReLU"),
    "a slope by name": (lambda x: functional.leaky_relu(x, negative_slope=0.3), "LeakyReLU"),
    "torch.sigmoid": (torch.sigmoid, "Sigmoid"),
    "x.tanh()": (lambda x: x.tanh(), "Tanh"),
    "F.elu": (functional.elu, "ELU"),
    "F.softplus": (functional.softplus, "Softplus"),
    "nothing": (lambda x: x, "Identity"),
}


@pytest.mark.parametrize("name", SAME)
def test_a_function_is_read_as_the_module_that_computes_it(name):
    step, expected = SAME[name]
    model = seeded(lambda: Same(step))
    (stage,) = read(model, (1, 4, 4)).stages
    assert stage.activation.name == expected
    o = normal(7)
    torch.testing.assert_close(stage.activation.function(o), step(o.clone()))


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: x.view(x.size(0), -1),
        lambda x: x.view(-1, 64),
        lambda x: x.reshape(x.shape[0], 64),
        lambda x: x.flatten(1),
        lambda x: torch.flatten(x, start_dim=1),
        lambda x: x.view(-1, 64).relu(),
    ],
)
def test_every_way_to_flatten_is_one(flatten):
    model = seeded(lambda: Same(flatten))
    assert read(model, (1, 4, 4)).nodes[1].shape == (4, 4, 4)


@pytest.mark.parametrize("activation", [functional.relu, torch.tanh])
def test_a_chain_as_code_gives_what_the_same_sequential_gives(activation):
    model, x = seeded(lambda: Chain(activation)), uniform(2, 1, 8, 8)
    module = {functional.relu: nn.ReLU, torch.tanh: nn.Tanh}[activation]
    layers = nn.Sequential(
        model.first, module(), model.second, module(), nn.Flatten(), model.head
    ).eval()  # fmt: skip
    own, other = Attack(model, (1, 8, 8)), Attack(layers, (1, 8, 8))
    found, expected = own(observe(model, x)), other(observe(layers, x))
    assert torch.equal(found.images, expected.images)
    assert [layer.name for layer in found.layers] == ["head", "second", "first"]
    assert found.unique.all() and expected.unique.all()
    assert relative_error(found.images, x) < 1e-9


def test_a_sequential_with_a_block_of_ones_own_is_traced():
    body = seeded(lambda: Same(functional.relu))
    body.fc = nn.Identity()
    model = nn.Sequential(body, nn.Linear(64, 2)).double().eval()
    assert [stage.name for stage in read(model, (1, 4, 4)).stages] == ["0.conv"]


# BatchNorm in evaluation


def normed(*, affine=True, bias=True, activation=nn.ReLU):
    return nn.Sequential(
        conv(1, 8, 5, bias=bias), nn.BatchNorm2d(8, affine=affine), activation(),
        conv(8, 10, 5, bias=bias), nn.BatchNorm2d(10, affine=affine), activation(),
        nn.Flatten(), nn.Linear(640, 5),
    )  # fmt: skip


def test_a_folded_convolution_computes_what_both_layers_do():
    model, x = seeded(normed), normal(2, 1, 8, 8)
    stage = read(model, (1, 8, 8)).stages[0]
    expected = model[:2](x)
    torch.testing.assert_close(stage.convolve(x) + stage.bias[:, None, None], expected)
    assert stage.parameters == ["0.weight", "0.bias", "1.weight", "1.bias"]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize(("affine", "bias"), [(True, True), (True, False), (False, True)])
def test_batch_normalisation_in_evaluation_is_passed(affine, bias, activation):
    model = seeded(lambda: normed(affine=affine, bias=bias, activation=activation))
    x = uniform(2, 1, 8, 8)
    result = Attack(model, (1, 8, 8))(observe(model, x))
    assert result.unique.all()
    assert relative_error(result.images, x) < 1e-9


def test_a_filter_that_batch_normalisation_switches_off_tells_nothing():
    model, x = seeded(normed), uniform(1, 1, 8, 8)
    model[1].weight.data[:3] = torch.tensor([0.0, -0.5, 0.0])
    result = Attack(model, (1, 8, 8))(observe(model, x))
    assert result.unique.all()
    assert relative_error(result.images, x) < 1e-8


def test_batch_normalisation_in_training_is_refused_with_the_remedy():
    with pytest.raises(UnsupportedModelError, match=r"^1: BatchNorm2d .*batch.*model\.eval\(\)"):
        read(seeded(normed).train(), (1, 8, 8))
    with pytest.raises(UnsupportedModelError, match=r"^1: .*track_running_stats"):
        read(nn.Sequential(conv(1, 4), nn.BatchNorm2d(4, track_running_stats=False)).eval(),
             (1, 8, 8))  # fmt: skip


# Refused


class Code(nn.Module):
    """A convolution, and then what `step` does."""

    def __init__(self, step):
        super().__init__()
        self.conv, self.other, self.fc = conv(1, 4), conv(4, 4), nn.Linear(64, 2)
        self.step, self.factor = step, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.step(self, self.conv(x))


def head(model, x):
    return model.fc(x.flatten(1))


def changed_in_place(model, x):
    y = model.other(x)
    x.relu_()
    return head(model, x + y)


REFUSED = {
    "pooling": (lambda m, x: head(m, functional.max_pool2d(x, 1)), "^max_pool2d: .*know"),
    "a factor": (lambda m, x: head(m, m.factor * x), "^factor: get_attr is not known"),
    "a number": (lambda m, x: head(m, x + 1), "^add: adds something other than two maps"),
    "broadcast": (lambda m, x: head(m, x + x[:, :1]), "^getitem: the attack does not know"),
    "another axis": (
        lambda m, x: m.fc(torch.cat([x, m.other(x)], 2).flatten(1)[:, :64]),
        "^cat: .*channels",
    ),
    "turned": (lambda m, x: head(m, x.permute(0, 2, 3, 1)), "^permute: .*know"),
    "reshaped": (lambda m, x: head(m, x.view(-1, 16, 2, 2)), "^view: makes the shape"),
    "twice": (lambda m, x: head(m, m.other(m.other(x))), "^other: shares a parameter"),
    "dropout": (lambda m, x: head(m, functional.dropout(x)), "^dropout: active dropout"),
    "no head": (lambda m, x: x.flatten(1), "no Linear layer"),
    "two values": (lambda m, x: (head(m, x), x), "Code returns more than one tensor"),
    "branching code": (lambda m, x: head(m, x) if x.sum() > 0 else x, "cannot be traced"),
    "around the head": (lambda m, x: head(m, x) + x.mean(), "^mean: .*know"),
    "in place": (changed_in_place, "in place after another step"),
    "behind a flatten": (lambda m, x: m.other(x.flatten(1).flatten(1)), "takes no image of the"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(name):
    step, message = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=message):
        read(seeded(lambda: Code(step)), (1, 4, 4))


def test_a_refusal_shows_the_line():
    class Pools(Chain):
        def forward(self, x):
            x = functional.avg_pool2d(self.first(x), 1)
            return self.head(self.second(x).flatten(1))

    with pytest.raises(UnsupportedModelError, match=r"line \d+ of forward: x = functional\.avg_"):
        read(seeded(Pools), (1, 8, 8))


def test_an_image_of_another_shape_is_refused():
    with pytest.raises(UnsupportedModelError, match="Chain takes no image of the shape"):
        read(seeded(Chain), (3, 8, 8))


def test_what_is_not_needed_may_be_anything():
    def step(model, x):
        x.sum(dim=1)
        return head(model, x)

    assert len(read(seeded(lambda: Code(step)), (1, 4, 4)).stages) == 1


def test_a_sequential_keeps_the_order_of_its_nodes():
    nodes = read(network(nn.ReLU), (1, 8, 8)).nodes
    assert [node.inputs for node in nodes] == [(), (0,), (1,), (2,), (3,)]
