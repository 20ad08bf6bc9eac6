"""Models written as code: what is read of them, what is refused, and the attack on graphs."""

import pytest
import torch
from graphs import KINDS, Block, Random, conv, seeded
from small import network, normal, observe, relative_error, uniform
from torch import nn
from torch.nn import functional

from rconv.attack.attack import Attack
from rconv.attack.estimate import Estimate
from rconv.model.nodes import UnsupportedModelError
from rconv.model.read import read


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
    "pooling": (lambda m, x: head(m, functional.max_pool2d(x, 1)), "^max_pool2d: MaxPool2d"),
    "a factor": (lambda m, x: head(m, m.factor * x), "^factor: a tensor of the model itself"),
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
    "no value": (lambda m, x: (None, 1), "Code returns no tensor"),
    "branching code": (lambda m, x: head(m, x) if x.sum() > 0 else x, "cannot be traced"),
    "around the head": (lambda m, x: head(m, x) + x.mean(), "^mean: takes conv.* around fc"),
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


# Branches


class Branched(nn.Module):
    """A stem, one block, an activation where it has none, and a Linear."""

    def __init__(self, kind, activation=torch.relu, *, stride=1, normed=True, bias=True):
        super().__init__()
        plain = kind in ("preactivated", "late")
        self.stem, self.fc = conv(1, 12, 5), nn.Linear(1024, 5)
        self.block = Block(kind, activation, 12, 12 * stride, stride, normed, bias)
        self.norm = nn.BatchNorm2d(self.block.width)
        self.begin = nn.Identity() if plain else activation
        self.end = activation if plain else nn.Identity()
        self.fc = nn.Linear(self.block.width * (8 // stride) ** 2, 5)

    def forward(self, x):
        x = self.block(self.begin(self.stem(x)))
        return self.fc(self.end(self.norm(x)).flatten(1))


@pytest.mark.parametrize("normed", [True, False], ids=["BatchNorm", "none"])
@pytest.mark.parametrize("activation", [torch.relu, torch.tanh], ids=["ReLU", "Tanh"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "late"])
def test_a_block_of_every_kind_is_passed(kind, activation, normed):
    model = seeded(lambda: Branched(kind, activation, normed=normed, bias=not normed))
    x = uniform(2, 1, 8, 8)
    result = Attack(model, (1, 8, 8))(observe(model, x))
    assert result.unique.all(), result.diagnostics
    assert relative_error(result.images, x) < 1e-9
    assert (result.gradient_residual < 1e-12).all()


@pytest.mark.parametrize("kind", ["residual", "preactivated"])
def test_a_shortcut_of_one_pixel_and_stride_two(kind):
    model = seeded(lambda: Branched(kind, stride=2))
    x = uniform(2, 1, 8, 8)
    result = Attack(model, (1, 8, 8))(observe(model, x))
    assert result.unique.all(), result.diagnostics
    assert relative_error(result.images, x) < 1e-9
    named = [layer.name for layer in result.layers]
    if kind == "residual":
        assert named == ["fc", "block.two", "block.one and block.shortcut", "stem"]


def test_gradients_in_single_precision_lose_digits_and_say_how_many():
    model = seeded(lambda: Branched("residual", stride=2)).float()
    x = uniform(2, 1, 8, 8)
    result = Attack(model, (1, 8, 8))(observe(model, x.float()))
    error = (result.images - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    assert result.unique.all()
    assert (error < 1e-4).all()
    assert (error < 30 * result.expected_error).all()


def test_an_activation_that_nothing_tells_is_refused():
    """x + ReLU(conv(x)): which part of the sum is which?"""
    model = seeded(lambda: Branched("late"))
    with pytest.raises(UnsupportedModelError, match=r"Block's relu_1: no convolution takes .*ReLU"):
        read(model, (1, 8, 8))


def test_a_path_around_the_first_linear_is_refused():
    class Around(Chain):
        def forward(self, x):
            x = self.first(x)
            return self.head(self.second(x).flatten(1)) + self.other(x.flatten(1))

    model = seeded(Around)
    model.other = nn.Linear(512, 5).double()
    with pytest.raises(UnsupportedModelError, match=r"^flatten_1: takes first.* around head"):
        read(model, (1, 8, 8))


def test_a_normalised_image_is_refused():
    class Image(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv, self.fc = nn.BatchNorm2d(1), conv(1, 4), nn.Linear(64, 2)

        def forward(self, x):
            return self.fc(self.conv(self.norm(x)).flatten(1))

    with pytest.raises(UnsupportedModelError, match=r"^norm: .* before the first convolution"):
        read(seeded(Image), (1, 4, 4))


@pytest.mark.arithmetic
@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
def test_of_random_networks_none_is_silently_wrong(single):
    """A refusal is an answer, and so is a rank gap; an image called unique must be right."""
    found = 0
    for seed in range(60 if single else 200):
        model, x = seeded(lambda s=seed: Random(s), seed), uniform(1, 1, 8, 8, seed=seed)
        try:
            attack = Attack(model, (1, 8, 8))
        except UnsupportedModelError:
            continue
        sent = observe(model.float(), x.float()) if single else observe(model, x)
        result = attack(sent)
        if result.unique:
            found += 1
            assert relative_error(result.images, x) < (1e-2 if single else 1e-6), seed
    assert found > (20 if single else 80)


# What maps say of each other


def test_of_two_accounts_the_better_one_counts_at_each_position():
    value = normal(1, 2, 3, 3)
    some = (normal(1, 2, 3, 3, seed=1) > 0).double()
    rough = Estimate(value + 1e-3, torch.ones_like(value), torch.full((1, 2), 1e-3).double())
    fine = Estimate(torch.where(some > 0, value, 7.0), some, torch.full((1, 2), 1e-9).double())
    both = rough.or_better(fine)
    assert torch.equal(both.value, torch.where(some > 0, value, value + 1e-3))
    expected = torch.where(some > 0, 1e-6, 1e-3).double()  # weighted by a thousand at most
    torch.testing.assert_close(both.entry_std(), expected, rtol=1e-6, atol=0)


def test_an_affine_map_is_undone_with_its_error():
    x, scale, shift = normal(2, 3, 4, 4), torch.tensor([2.0, -0.5, 0.0]), torch.ones(3)
    scale, shift = scale.double(), shift.double()
    y = x * scale[:, None, None] + shift[:, None, None]
    told = Estimate.whole(y, torch.full((2, 3), 1e-3).double()).undone(scale, shift)
    torch.testing.assert_close(told.value[:, :2], x[:, :2])
    assert told.entry_std()[0, :, 0, 0].tolist() == pytest.approx([5e-4, 2e-3, torch.inf])


def test_a_sum_less_one_term_is_the_other():
    x, y = normal(1, 2, 3, 3), normal(1, 2, 3, 3, seed=1)
    some = (x > 0).double()
    total = Estimate(x + y, some, torch.full((1, 2), 3e-4).double())
    told = total.without(Estimate.whole(y, torch.full((1, 2), 4e-4).double()))
    torch.testing.assert_close(told.value, x)
    assert torch.equal(told.weight, some)
    assert told.std.tolist() == [pytest.approx([5e-4, 5e-4])]


# What may stand anywhere


class Options(Chain):
    """Its forward has further arguments, with defaults."""

    def forward(self, x, negative=False, mask=None):
        x = self.activation(self.second(self.activation(self.first(x))))
        x = -x if negative else x
        return self.head((x if mask is None else mask * x).flatten(1))


def test_arguments_with_defaults_have_them():
    assert len(read(seeded(Options), (1, 8, 8)).stages) == 2

    class More(Chain):
        def forward(self, x, y):
            return super().forward(x)

    with pytest.raises(UnsupportedModelError, match="More: forward must take images and nothing"):
        read(seeded(More), (1, 8, 8))


TAILS = {
    "softmax": (lambda z: functional.log_softmax(z, dim=1), "head"),
    "any function": (lambda z: z.squeeze(1).sin() * 2 + 1, None),
    "nothing": (lambda z: z, "head"),
}


@pytest.mark.parametrize("name", TAILS)
def test_behind_the_first_linear_any_code_may_stand(name):
    tail, logits = TAILS[name]

    class Tailed(Chain):
        def forward(self, x):
            return tail(super().forward(x))

    assert read(seeded(Tailed), (1, 8, 8)).head.logits == logits


def test_a_layer_whose_gradient_is_cut_is_not_called_unique():
    """A trace does not see `torch.no_grad`; the certificate does."""

    class Cut(Chain):
        def forward(self, x):
            with torch.no_grad():
                x = self.first(x).relu()
            return self.head(self.second(x).relu().flatten(1))

    model, x = seeded(Cut), uniform(1, 1, 8, 8)
    result = Attack(model, (1, 8, 8))(observe(model, x))
    assert relative_error(result.images, x) > 0.1
    assert not result.unique


class ResNet(nn.Module):
    """A stem of stride 2 and two residual blocks, BatchNorm behind every 3×3 convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = conv(3, 32, 5, 2, bias=False), nn.BatchNorm2d(32)
        self.one = Block("residual", torch.relu, 32, 32, 1, True, False)
        self.two = Block("residual", torch.relu, 32, 64, 2, True, False)
        self.fc = nn.Linear(4096, 10)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        return self.fc(self.two(self.one(x)).flatten(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_residual_network_of_usual_width(dtype):
    model, x = seeded(ResNet).to(dtype), uniform(1, 3, 32, 32)
    result = Attack(model, (3, 32, 32))(observe(model, x.to(dtype)))
    assert result.unique.all(), result.diagnostics
    assert relative_error(result.images, x) < (1e-9 if dtype == torch.float64 else 1e-4)
