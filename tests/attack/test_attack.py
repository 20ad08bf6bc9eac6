"""Attack: gradients back to images on small networks, hard cases, and the paper's network."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import SEEDS, network, observe, snapshot_folder, uniform
from torch import nn

from rconv.attack.attack import Attack
from rconv.attack.report import ShortRankError
from rconv.data.datasets import CHANNELS, CLASSES, load
from rconv.lab.architectures import build
from rconv.lab.metrics import mse, psnr

ACTIVATIONS = [
    nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.ELU, lambda: nn.ELU(0.5), nn.Softplus,
    nn.Identity,
]  # fmt: skip
IMAGES = uniform(3, 1, 8, 8)


def attack(model, images=IMAGES, labels=None, loss=None, **options):
    """Reconstruction from the images' gradients, and its MSE."""
    gradients = observe(model, images, labels, loss)
    found = Attack(model, tuple(images.shape[1:]), **options)(gradients)
    return found, mse(found.images, images)


def solved(found, error, limit=1e-20):
    assert (error < limit).all()
    assert found.unique.all() and (found.gap == 0).all()
    assert (found.gradient_residual < 1e-8).all()
    assert found.images.dtype == torch.float64
    return True


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_every_activation_with_any_channels_and_bias(activation, channels, bias):
    model, x = network(activation, channels=channels, bias=bias), uniform(2, channels, 8, 8)
    found, error = attack(model, x)
    assert solved(found, error)
    assert found.labels.tolist() == [0, 1]


MODES = [
    # constraints → kinds used from the second convolution to the first
    ("gradient", ["gradient", "gradient"]),
    ("weight", ["weight", "weight"]),
    ("hybrid", ["hybrid", "hybrid"]),
    ("paper", ["gradient", "weight"]),
    (["weight", "hybrid"], ["hybrid", "weight"]),
    (("auto", "gradient"), ["gradient", "weight"]),
    ("auto", ["gradient", "weight"]),
]


@pytest.mark.parametrize(("constraints", "kinds"), MODES, ids=lambda v: str(v))
def test_every_choice_of_constraints(constraints, kinds):
    found, error = attack(network(nn.Tanh), constraints=constraints)
    assert solved(found, error)
    head, *layers = found.layers
    assert (head.name, head.unknowns, head.constraints) == ("5", 640, ("head",) * 3)
    assert [(own.name, own.unknowns) for own in layers] == [("2", 384), ("0", 64)]
    for own, kind, filters, channels in zip(layers, kinds, (10, 6), (6, 1), strict=True):
        assert own.constraints == (kind,) * 3
        assert own.rank.tolist() == [own.unknowns] * 3
        gradient, weight = 25 * filters * channels, 64 * filters
        assert own.gradient_rows.tolist() == [gradient * (kind != "weight")] * 3
        assert own.weight_rows.tolist() == [weight * (kind != "gradient")] * 3
        assert (own.condition >= 1).all() and (own.residual < 1e-10).all()


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
def test_a_layer_that_has_too_few_gradient_rows_is_solved_by_auto(kind):
    """2 filters of 5×5 on 8×8: 50 rows for 64 pixels; weight rows close the gap."""
    model = network(nn.Tanh, filters=(6, 2) if kind is nn.Linear else (2, 6))
    found, error = attack(model, constraints="gradient")
    assert not found.unique.any() and (found.gap > 0).all()
    assert (error > 1e-6).all()
    found, error = attack(model)
    if kind is nn.Conv2d:
        assert solved(found, error)
        assert found.layers[2].constraints == ("weight",) * 3
    else:
        assert found.layers[1].constraints == ("hybrid",) * 3


BAD = [
    ("both", "unknown constraints 'both': use one of auto, gradient, weight, hybrid, paper"),
    (["gradient", "paper"], "unknown constraints 'paper'"),
    (["gradient"], "1 constraints for 2 convolutions"),
    (["gradient"] * 3, "3 constraints for 2 convolutions"),
]


@pytest.mark.parametrize(("constraints", "message"), BAD, ids=str)
def test_constraints_that_are_none_are_refused(constraints, message):
    with pytest.raises(ValueError, match=message):
        Attack(network(), (1, 8, 8), constraints=constraints)


def mlp(n):
    return [nn.Linear(n, 30), nn.GELU(), nn.LayerNorm(30), nn.Linear(30, 12), nn.Linear(12, 10)]


HEADS = [
    (mlp, "GELU and LayerNorm, which the attack could not pass"),
    (lambda n: [nn.Linear(n, 1), nn.Linear(1, 10)], "one number is enough"),
    (lambda n: [nn.Linear(n, 20), nn.MaxPool1d(2), nn.Linear(10, 10)], "pooling after the Linear"),
    (lambda n: [nn.Linear(n, 20), nn.ReLU(), nn.BatchNorm1d(20), nn.Linear(20, 10)], "BatchNorm"),
    (lambda n: [nn.Dropout(), nn.Linear(n, 10), nn.Identity()], "Dropout in evaluation"),
    (lambda n: [nn.Linear(n, 20), nn.GELU(), nn.Linear(20, 10), nn.Identity()], "Identity last"),
]


@pytest.mark.parametrize(("head", "why"), HEADS, ids=[row[1] for row in HEADS])
def test_any_head(head, why):
    found, error = attack(network(head=head), labels=torch.tensor([7, 1, 4]))
    assert solved(found, error)
    assert found.labels.tolist() == [7, 1, 4]


@pytest.mark.parametrize(
    ("head", "loss"),
    [
        (lambda n: [nn.Linear(n, 30), nn.GELU(), nn.Linear(30, 10, bias=False)], None),
        (
            lambda n: [nn.Linear(n, 30), nn.GELU(), nn.Linear(30, 10), nn.LogSoftmax(1)],
            nn.functional.nll_loss,
        ),
    ],
    ids=["no bias in the last Linear", "LogSoftmax and NLL"],
)
def test_labels_of_heads_whose_logits_have_no_bias_gradient(head, loss):
    found, error = attack(network(head=head), labels=torch.tensor([7, 1, 4]), loss=loss)
    assert solved(found, error)
    assert found.labels.tolist() == [7, 1, 4]


@pytest.mark.parametrize("bias", [True, False])
def test_a_model_that_starts_with_its_linear(bias):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=bias)).double()
    found, error = attack(model)
    assert solved(found, error)
    assert len(found.layers) == 1 and found.labels.tolist() == [0, 1, 2]


def test_an_activation_module_that_serves_twice():
    shared = nn.Tanh()
    found, error = attack(network(lambda: shared))
    assert solved(found, error)


def test_gradients_straight_from_backward():
    model, label = network(), torch.tensor([6])
    nn.functional.cross_entropy(model(IMAGES[:1]), label).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    before = {name: g.clone() for name, g in gradients.items()}
    found = Attack(model, (1, 8, 8))(gradients)
    assert mse(found.images, IMAGES[:1]).item() < 1e-20
    assert (found.images.shape, found.labels.tolist()) == ((1, 1, 8, 8), [6])
    assert all(torch.equal(gradients[name], g) for name, g in before.items())


def test_the_model_stays_as_it_is_and_is_copied():
    model = network().float()
    before = copy.deepcopy(model.state_dict())
    prepared = Attack(model, (1, 8, 8))
    gradients = observe(model, IMAGES)
    for parameter in model.parameters():
        parameter.data.zero_()  # the client trains on
    found = prepared(gradients)
    assert (psnr(found.images, IMAGES, data_range=1) > 60).all()
    assert before["0.weight"].dtype == next(model.parameters()).dtype == torch.float32


def same(together, alone, n):
    """Image n of a batch is what it is alone, its report included."""
    torch.testing.assert_close(together.images[n], alone.images[0], rtol=1e-6, atol=1e-9)
    for name in ("labels", "twins", "unique", "gap"):
        assert getattr(together, name)[n] == getattr(alone, name)[0], name
    for own, other in zip(together.layers, alone.layers, strict=True):
        assert own.constraints[n] == other.constraints[0]
        for name in ("rank", "gradient_rows", "weight_rows"):
            assert getattr(own, name)[n] == getattr(other, name)[0], (own.name, name)


def one(gradients, n):
    return {name: g[n] for name, g in gradients.items()}


BATCHES = [
    (a, s)
    for a in (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh)
    for s in ("none", "zero", "tiny", "huge", "wrong")
]


@pytest.mark.parametrize(("activation", "spoiled"), BATCHES)
def test_a_batch_is_its_images_one_by_one(activation, spoiled):
    """The gradients of one client, whatever they are, do not change another's image."""
    prepared = Attack(network(activation), (1, 8, 8))
    gradients = observe(network(activation), IMAGES)
    factor = {"none": 1.0, "zero": 0.0, "tiny": 1e-200, "huge": 1e200, "wrong": 1.0}[spoiled]
    for gradient in gradients.values():
        gradient[1] *= factor
    if spoiled == "wrong":
        gradients["2.weight"][1] *= -1
    together = prepared(gradients)
    for n in range(3):
        if spoiled != "wrong" or n != 1:
            same(together, prepared(one(gradients, n)), n)
    assert (mse(together.images, IMAGES)[[0, 2]] < 1e-20).all()
    assert together.unique.tolist() == [True, spoiled not in ("zero",), True] or spoiled == "wrong"


@pytest.mark.parametrize("constraints", ["auto", "weight"])
def test_a_saturated_image_does_not_change_the_kind_of_equations_of_the_others(constraints):
    """Some first-layer outputs of image 1 are saturated: weight rows alone cannot use them."""
    model = network(nn.Sigmoid)
    model[0].weight.data[0] = 0
    model[0].weight.data[0, 0, 2, 2] = 60
    images = IMAGES.clamp(max=0.3)
    images[1, 0, 4, 4] = 1.0
    prepared = Attack(model, (1, 8, 8), constraints=constraints)
    gradients = observe(model, images)
    together = prepared(gradients)
    for n in range(3):
        same(together, prepared(one(gradients, n)), n)
    assert together.layers[2].weight_rows[1] < together.layers[2].weight_rows[0]


def test_large_batches_are_cut_into_chunks(monkeypatch):
    gradients = observe(network(), uniform(5, 1, 8, 8))
    whole = Attack(network(), (1, 8, 8))(gradients)
    monkeypatch.setattr("rconv.attack.entry_points.CHUNK_BYTES", 2 * 8 * 10 * 25 * 64 * 1)
    parts = Attack(network(), (1, 8, 8))(gradients)
    torch.testing.assert_close(parts.images, whole.images, rtol=1e-9, atol=1e-12)
    assert parts.labels.tolist() == whole.labels.tolist() == [0, 1, 2, 3, 4]
    assert parts.layers[1].constraints == whole.layers[1].constraints


@pytest.mark.parametrize("factor", [1e-200, 1e-30, 7.0, 1e30, 1e200])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Sigmoid])
def test_the_scale_of_the_gradients_does_not_matter(activation, factor):
    """A learning rate, a weight on the loss, or a saturated softmax."""
    gradients = {name: g * factor for name, g in observe(network(activation), IMAGES).items()}
    found = Attack(network(activation), (1, 8, 8))(gradients)
    assert solved(found, mse(found.images, IMAGES))


@given(SEEDS)
@settings(max_examples=5, deadline=None)
def test_the_order_of_images_and_of_filters_does_not_matter(seed):
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    model = network(nn.LeakyReLU)
    gradients = observe(model, IMAGES)
    prepared = Attack(model, (1, 8, 8))
    plain = prepared(gradients)
    permuted = prepared({name: g[order] for name, g in gradients.items()})
    torch.testing.assert_close(permuted.images, plain.images[order], rtol=1e-9, atol=1e-12)
    filters = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in (model[0].weight, model[0].bias):
            parameter.copy_(parameter[filters].clone())
        model[2].weight.copy_(model[2].weight[:, filters].clone())
    found, error = attack(model)
    assert solved(found, error)


def dead(model, conv, filters):
    """Filters of a convolution whose bias keeps them below zero for every image."""
    for d in filters:
        model[conv].bias.data[d] = -100
    return model


def test_dead_relu_filters_leave_a_gap_that_is_reported_and_raised():
    model = dead(network(nn.ReLU, filters=(6, 4)), 2, (0, 1))
    found, error = attack(model, constraints="gradient")
    short = found.layers[1]
    assert not found.unique.any()
    assert torch.equal(found.gap, short.unknowns - short.rank)
    assert (found.gap >= (64 - 50) * 6).all()  # 2 living filters of 25 offsets for 64 pixels
    assert (error > 1e-6).all()
    prepared = Attack(model, (1, 8, 8), constraints="gradient")
    rank = int(short.rank[0])
    with pytest.raises(ShortRankError, match=rf"^2: gradient .* rank {rank} of 384 unknowns"):
        prepared(observe(model, IMAGES), strict=True)


def test_a_dead_filter_that_others_make_up_for():
    found, error = attack(dead(network(nn.ReLU, filters=(6, 12)), 2, (3,)))
    assert solved(found, error)


def test_all_filters_dead_tells_nothing_above_the_bias():
    model = dead(network(nn.ReLU), 2, range(10))
    found, _ = attack(model)
    assert not found.unique.any()
    assert found.images.isfinite().all()
    assert found.layers[1].rank.tolist() == [0, 0, 0]


def test_gradients_that_are_all_zero_are_reported_not_reconstructed():
    zero = {name: g * 0 for name, g in observe(network(), IMAGES).items()}
    found = Attack(network(), (1, 8, 8))(zero)
    assert not found.unique.any()
    assert found.images.isfinite().all()
    assert (found.layers[0].rank == 0).all()
    with pytest.raises(ShortRankError, match=r"^5: head .*gradients are zero"):
        Attack(network(), (1, 8, 8))(zero, strict=True)


def test_saturated_classes_of_the_head():
    """Classes with a zero bias gradient, and a softmax so sure that 1e-130 is left."""
    model = network(nn.Tanh)
    model[5].bias.data[:] = torch.tensor([300.0, 0, 0, 0, 0, 0, 0, -500, -800, -800])
    gradients = observe(model, IMAGES)
    assert (gradients["5.bias"] == 0).any(dim=1).all()
    found = Attack(model, (1, 8, 8))(gradients)
    known = gradients["5.bias"].abs().amax(dim=1) > 0
    assert known.any()
    assert (mse(found.images, IMAGES)[known] < 1e-15).all()


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh])
@pytest.mark.parametrize("filters", [(0,), (0, 3)], ids=str)
def test_saturated_outputs_are_not_inverted(activation, filters):
    """At a filter with a bias of 50 the output is 1 to the last bit: its inverse is infinite."""
    model = network(activation)
    for conv in (0, 2):
        for d in filters:
            model[conv].bias.data[d] = 50
    found, error = attack(model)
    assert solved(found, error, 1e-15)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Sigmoid])
def test_constant_images(activation, value):
    images = torch.full((1, 1, 8, 8), value, dtype=torch.float64)
    found, error = attack(network(activation), images)
    assert solved(found, error)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU])
def test_images_with_a_constant_border(activation):
    images = torch.zeros(3, 1, 8, 8, dtype=torch.float64)
    images[:, :, 2:6, 2:6] = IMAGES[:, :, 2:6, 2:6]
    found, error = attack(network(activation), images)
    assert solved(found, error)


def test_pixels_that_no_window_covers_are_guessed_and_counted():
    """Kernel 2, stride 3 on 8×8: rows and columns 2 and 5 are never seen."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 2, 3), nn.LeakyReLU(), nn.Flatten(), nn.Linear(72, 10)
    ).double()  # fmt: skip
    found, _ = attack(model)
    seen = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1], dtype=torch.bool)
    covered = seen[:, None] & seen[None, :]
    assert found.gap.tolist() == [64 - int(covered.sum())] * 3
    torch.testing.assert_close(found.images[..., covered], IMAGES[..., covered])
    told = found.images - found.guess
    assert told[..., ~covered].abs().max() < 1e-9
    assert found.guess[..., covered].abs().max() < 1e-9 < found.guess.abs().max()
    assert not found.unique.any()
    assert (found.gradient_residual < 1e-10).all()


@given(st.integers(0, 40), st.sampled_from([0, 1]))
@settings(max_examples=12, deadline=None)
def test_one_logit_without_a_bias_gives_the_truth_or_owns_up_to_a_twin(seed, label):
    model = network(
        nn.LeakyReLU, bias=False, head=lambda n: [nn.Linear(n, 1, bias=False)], seed=seed
    )
    images = uniform(1, 1, 8, 8, seed=seed)
    loss = nn.BCEWithLogitsLoss()
    gradients = observe(model, images, torch.tensor([label]), loss)
    found = Attack(model, (1, 8, 8), loss="cross-entropy")(gradients)
    error = mse(found.images, images)
    assert error.item() < 1e-15 or found.twins.item() > 0
    assert found.gradient_residual.item() < 1e-8
    hidden = "mean of several similar images" in found.diagnostics[0]
    assert found.unique.item() == (found.twins.item() == 0 and not hidden)


def test_twins_of_two_classes_explain_the_gradients_equally():
    """A Linear alone: v and its mirror image have the same gradients, only one has pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False)).double()
    _, error = attack(model, IMAGES[:2])
    assert (error < 1e-20).all()
    gradients = observe(model, IMAGES[:2])
    narrow = Attack(model, (1, 8, 8), loss="cross-entropy")(gradients)
    assert (narrow.twins == 0).all()  # the mirror image has no pixels in [0, 1]
    assert all("mean of several similar images" in reason for reason in narrow.diagnostics)
    silent = Attack(model, (1, 8, 8))(gradients)
    assert not silent.unique.any() and all("logistic" in doubt for doubt in silent.diagnostics)
    wide = Attack(model, (1, 8, 8), loss="cross-entropy", value_range=(-9.0, 9.0))(gradients)
    assert (wide.twins > 0).all() and not wide.unique.any()


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 90), (torch.float16, 20), (torch.bfloat16, 5)], ids=str
)
def test_coarse_gradients_are_accepted_and_their_precision_known(dtype, limit):
    model = network(nn.LeakyReLU)
    gradients = {name: g.to(dtype) for name, g in observe(model, IMAGES).items()}
    found = Attack(model, (1, 8, 8))(gradients)
    quality = psnr(found.images, IMAGES, data_range=1)
    assert (quality > limit).all(), quality
    error = (found.images - IMAGES).flatten(1).norm(dim=1) / IMAGES.flatten(1).norm(dim=1)
    assert (found.expected_error > error / 10).all()


def test_a_precision_of_ones_own_counts_as_that_of_the_dtype():
    """float32 numbers in a float64 tensor: without the hint the rounding is unknown."""
    model = network(nn.LeakyReLU)
    gradients = {name: g.float().double() for name, g in observe(model, IMAGES).items()}
    prepared = Attack(model, (1, 8, 8))
    told = prepared(gradients, relative_std=2.0**-24)
    same_dtype = prepared({name: g.float() for name, g in gradients.items()})
    torch.testing.assert_close(told.images, same_dtype.images, rtol=1e-6, atol=1e-8)


def test_refusals_come_before_any_work():
    prepared, gradients = Attack(network(), (1, 8, 8)), observe(network(), IMAGES)
    gradients["2.weight"][1, 0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"2\.weight has NaN .*image 1"):
        prepared(gradients)


# The paper's network on 32 × 32 images.


@pytest.mark.parametrize(
    ("activation", "index"), [("ReLU", 0), ("LeakyReLU", 1), ("Sigmoid", 2), ("Tanh", 3)]
)
def test_lenet_from_float32_gradients(activation, index):
    data = load("Photos", [index])
    model = build("lenet_main", activation=activation).float()
    gradients = observe(model, data.images, data.labels)
    assert gradients["fc.weight"].dtype == torch.float32
    found = Attack(model, (3, 32, 32))(gradients)
    assert (psnr(found.images, data.images, data_range=1) >= 80).all()
    assert found.unique.all()
    assert found.labels.tolist() == data.labels.tolist()


def test_the_expected_error_grows_as_the_layers_amplify():
    """Within a factor of ten of the true one, for the paper's constraints in float32."""
    data = load("Photos", range(3))
    model = build("lenet_main", activation="LeakyReLU").float()
    gradients = observe(model, data.images, data.labels)
    found = Attack(model, (3, 32, 32), constraints="paper")(gradients)
    size = data.images.flatten(1).norm(dim=1)
    error = (found.images - data.images).flatten(1).norm(dim=1) / size
    assert (found.expected_error > 1e3 * 2.0**-24).all()
    assert (found.expected_error > error / 10).all()


@pytest.mark.parametrize("size", [1e-39, 1e-40])
def test_subnormal_gradients_are_known_to_be_coarse(size):
    """A nearly saturated softmax in float32: the absolute rounding near 0 is the larger one."""
    data = load("Digits", [0])
    model = build("lenet_main", 1, activation="Tanh")
    gradients = observe(model, data.images, data.labels)
    largest = max(float(g.abs().max()) for g in gradients.values())
    sent = {name: (g * (size / largest)).float() for name, g in gradients.items()}
    found = Attack(model, (1, 32, 32))(sent)
    error = float((found.images - data.images).norm() / data.images.norm())
    assert error < 1e6 * 1e-45 / size
    assert found.expected_error.item() > max(error / 20, 1e2 * 2.0**-24)
    assert any(layer.constraints == ("hybrid",) for layer in found.layers[1:])
    plain = Attack(model, (1, 32, 32), constraints="paper")(sent)
    assert (plain.images - data.images).norm() > 2 * (found.images - data.images).norm()


def test_gradients_that_underflowed_say_that_nothing_is_known():
    data = load("Digits", [0])
    model = build("lenet_main", 1)
    gradients = {name: 0 * g for name, g in observe(model, data.images, data.labels).items()}
    found = Attack(model, (1, 32, 32))({name: g.float() for name, g in gradients.items()})
    assert found.images.isfinite().all()
    assert not found.unique.any() and found.expected_error.item() == 1


def snapshot(name, indices):
    folder = snapshot_folder(name)
    if folder is None:
        pytest.skip(f"no snapshot of {name} in RCONV_DATA or ../shared/data")
    return load(name, indices, folder, download=False)


@pytest.mark.parametrize("activation", ["ReLU", "LeakyReLU", "Sigmoid", "Tanh"])
@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "CIFAR100"])
def test_lenet_on_the_first_image_of_every_dataset(name, activation):
    data = snapshot(name, [0])
    model = build("lenet_main", CHANNELS[name], CLASSES[name], activation)
    gradients = observe(model, data.images, data.labels)
    found = Attack(model, tuple(data.images.shape[1:]))(gradients)
    assert mse(found.images, data.images).item() < 1e-15
    assert found.unique.all()
    assert found.labels.tolist() == data.labels.tolist()
    assert found.gradient_residual.item() < 1e-7


def test_mnist_46_is_short_by_the_papers_constraints_and_solved_by_auto():
    data = snapshot("MNIST", [46])
    model = build("lenet_main", 1, 10, "ReLU")
    gradients = observe(model, data.images, data.labels)
    paper = Attack(model, (1, 32, 32), constraints="paper")
    found = paper(gradients)
    short = found.layers[1]
    assert (short.name, short.unknowns, short.rank.item()) == ("conv4", 768, 708)
    assert (found.unique.item(), found.gap.item()) == (False, 60)
    with pytest.raises(ShortRankError, match="conv4: gradient constraints give rank 708 of 768"):
        paper(gradients, strict=True)
    better = Attack(model, (1, 32, 32))(gradients, strict=True)
    assert better.layers[1].constraints == ("hybrid",)
    assert better.unique.item()
    assert mse(better.images, data.images).item() < 1e-20


@pytest.mark.parametrize("progress", [True, None])
def test_the_progress_bar_names_the_layer_that_is_being_solved(progress, capsys, monkeypatch):
    """Unasked it is shown in a terminal only, which the tests have not."""
    monkeypatch.setattr("rconv.attack.attack.PATIENCE", 0.0)
    model = build("cnn6")
    images = uniform(1, 1, 28, 28) if model[0].in_channels == 1 else uniform(1, 3, 32, 32)
    Attack(model.double(), images.shape[1:], prior=False)(
        observe(model.double(), images), progress=progress
    )
    said = capsys.readouterr().err
    layers = [name for name, own in model.named_children() if isinstance(own, nn.Conv2d)]
    if progress is None:
        assert said == ""
    else:
        assert "1/1" in said and all(f", {name}]" in said for name in layers)
