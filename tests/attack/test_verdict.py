"""The verdict: noise that nobody told is revealed, and what is wrong is not called unique."""

import math
from dataclasses import replace

import pytest
import torch
from small import network, normal, observe, uniform
from torch import nn

from rconv.attack.attack import Attack
from rconv.attack.report import CLEAR
from rconv.attack.systematic import cotangent_turn, second_order
from rconv.attack.verdict import image_size
from rconv.data.datasets import load
from rconv.lab.architectures import build
from rconv.lab.channels import brighter, grainy, pair, several_steps, shifted
from rconv.lab.false_positives import (
    attack_random_networks,
    random_images,
    residual_network,
    wide_network,
)
from rconv.lab.metrics import psnr
from rconv.observe.noise import Noise
from rconv.observe.observation import per_sample_gradients

IMAGES = uniform(3, 1, 8, 8)


def prepared(activation=nn.LeakyReLU, **options):
    model = network(activation, **options)
    return model, Attack(model, (1, 8, 8)), observe(model, IMAGES)


def noisy(gradients, level):
    return {
        name: g + level * g.flatten(1).square().mean().sqrt() * normal(*g.shape, seed=n)
        for n, (name, g) in enumerate(gradients.items())
    }


def honest(found):
    """An image below 40 dB is not called unique."""
    right = psnr(found.images, IMAGES, data_range=1) > 40
    return bool((right | ~found.unique).all())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh])
def test_gradients_as_they_are_reveal_nothing(activation):
    _, attack, gradients = prepared(activation)
    found = attack(gradients)
    assert found.unique.all() and found.full_rank.all()
    assert found.revealed_noise.tolist() == [0, 0, 0]
    assert found.diagnostics == ("", "", "")


@pytest.mark.parametrize("level", [1e-9, 1e-6, 1e-3])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh])
def test_noise_that_was_not_told_is_revealed_in_its_size(activation, level):
    _, attack, gradients = prepared(activation)
    found = attack(noisy(gradients, level))
    assert (found.revealed_noise > level / 10).all()
    assert (found.expected_error >= found.revealed_noise).all()
    assert all("not declared" in why or "outer product" in why for why in found.diagnostics)
    assert honest(found)


def test_noise_that_was_told_is_not_revealed_again():
    _, attack, gradients = prepared()
    found = attack(noisy(gradients, 1e-6), relative_std=1e-6)
    assert found.revealed_noise.tolist() == [0, 0, 0] and found.unique.all()
    same = attack(noisy(gradients, 1e-6), noise=Noise(relative_std=1e-6))
    assert torch.equal(same.images, found.images)


def test_noise_of_one_layer_that_was_told_is_not_revealed_where_the_image_is_free_of_it():
    """The certificate of that layer shows it; the image rests on the others, and is exact."""
    _, attack, gradients = prepared(nn.LeakyReLU)
    own = gradients["2.weight"]
    error = 1e-4 * own.flatten(1).square().mean(dim=1).sqrt().reshape(-1, 1, 1, 1, 1)
    sent = {**gradients, "2.weight": own + error * normal(*own.shape)}
    found = attack(sent, noise=Noise(std={"2.weight": error}))
    assert (found.gradient_residual > 1e-5).all()
    assert found.revealed_noise.tolist() == [0, 0, 0] and found.unique.all()
    assert (found.expected_error < 1e-6).all() and (
        psnr(found.images, IMAGES, data_range=1) > 200
    ).all()
    assert (found.growth * 1e-4 < 10 * found.expected_error).all(), "per noise of the worst layer"
    assert (attack(sent).revealed_noise > 0).all()


def test_an_error_that_was_expected_reveals_no_noise():
    """Badly conditioned layers turn float32 rounding into more, here and in the certificate."""
    data = load("Photos", range(2))
    model = build("lenet_main", activation="LeakyReLU").float()
    sent = observe(model, data.images, data.labels)
    found = Attack(model, (3, 32, 32), constraints="paper")(sent)
    assert (found.gradient_residual > 100 * 2.0**-24).all()
    assert found.revealed_noise.tolist() == [0, 0]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Sigmoid])
def test_of_noise_that_drowns_everything_nothing_is_expected(activation):
    _, attack, gradients = prepared(activation)
    found = attack(noisy(gradients, 0.15))
    assert (found.revealed_noise > 0.1).all()
    assert found.expected_error.tolist() == [1, 1, 1] and not found.unique.any()


def test_weight_decay_in_the_gradients_is_revealed():
    model, attack, gradients = prepared(nn.Sigmoid)
    parameters = dict(model.named_parameters())
    decayed = {name: g + 1e-5 * parameters[name].detach() for name, g in gradients.items()}
    found = attack(decayed)
    assert (found.revealed_noise > 0).all() and honest(found)


@pytest.mark.parametrize("name", ["0.weight", "2.weight", "0.bias"])
def test_a_zeroed_gradient_is_not_believed(name):
    _, attack, gradients = prepared(nn.ReLU)
    gradients[name] = torch.zeros_like(gradients[name])
    found = attack(gradients)
    assert honest(found) and not found.unique.any()
    assert all(found.diagnostics)


@pytest.mark.parametrize("count", [2, 3])
def test_averaged_images_are_told_by_the_head(count):
    _, attack, gradients = prepared()
    found = attack({name: g[:count].mean(dim=0) for name, g in gradients.items()})
    assert not found.unique.any()
    assert "several images" in found.diagnostics[0]


def test_two_local_steps_are_told_by_the_head():
    model, attack, _ = prepared(nn.Tanh)
    moved, image = network(nn.Tanh), IMAGES[:1]
    first = observe(model, image)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter -= 0.1 * first[name][0]
    second = observe(moved, image)
    found = attack({name: first[name] + second[name] for name in first})
    assert not found.unique.any() or honest(found)
    assert found.diagnostics[0]


def test_clipped_gradients_give_the_image_and_a_word():
    _, attack, gradients = prepared()
    found = attack({name: 0.25 * g for name, g in gradients.items()})
    assert found.unique.all()
    assert all("0.25 times those of cross-entropy" in doubt for doubt in found.diagnostics)


def test_sign_gradients_give_a_word():
    _, attack, gradients = prepared()
    found = attack({name: g.sign() for name, g in gradients.items()})
    assert not found.unique.any()
    assert all("only signs" in doubt for doubt in found.diagnostics)


def test_the_scale_of_a_head_without_a_bias_is_checked_where_it_can_be():
    """Cross-entropy of ten classes leaves nine numbers to check one scale; another loss shows."""

    def loss(logits, target):
        return (logits - nn.functional.one_hot(target, 10)).square().sum()

    model = network(nn.Tanh, head=lambda n: [nn.Linear(n, 10, bias=False)])
    attack = Attack(model, (1, 8, 8))
    assert attack(observe(model, IMAGES)).unique.all()
    found = attack(observe(model, IMAGES, loss=loss))
    assert not found.unique.any() and all(found.diagnostics)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="unknown loss 'mse'"):
        Attack(network(), (1, 8, 8), loss="mse")


def test_the_limit_of_the_verdict_is_that_of_the_expected_error():
    _, attack, gradients = prepared(nn.Sigmoid)
    for precision in (1e-6, 1e-4, 1e-2, 0.5):
        found = attack(gradients, relative_std=precision)
        small = found.expected_error.maximum(found.systematic_error) <= CLEAR
        told = found.full_rank & small
        assert torch.equal(found.unique, told)


def test_each_image_may_have_a_noise_of_its_own(monkeypatch):
    """Deviations with an axis of images go with their image, through chunks and second looks."""
    _, attack, gradients = prepared()
    sizes = torch.tensor([1e-9, 1e-6, 1e-12]).double()
    deviations = {
        name: (sizes * g.flatten(1).norm(dim=1)).reshape(-1, *[1] * (g.dim() - 1)).expand_as(g)
        for name, g in gradients.items()
    }
    noise = Noise(std=deviations)
    whole = attack(gradients, noise=noise)
    monkeypatch.setattr("rconv.attack.entry_points.CHUNK_BYTES", 1)
    parts = attack(gradients, noise=noise)
    torch.testing.assert_close(parts.expected_error, whole.expected_error, rtol=1e-6, atol=0)
    assert whole.expected_error[1] > 10 * whole.expected_error[0]
    assert whole.expected_error[0] > 5 * whole.expected_error[2]
    spoiled = attack(noisy(gradients, 1e-4), noise=noise)
    assert (spoiled.revealed_noise[[0, 2]] > 1e-5).all() and honest(spoiled)


@pytest.mark.parametrize("level", [1e-13, 1e-11, 1e-9])
def test_dead_maps_stay_dead_under_noise_that_was_not_told(level):
    """Maps that are all error are told by the error of the others: 235 dB had become 7."""
    model = network(nn.ReLU, filters=(8, 12))
    with torch.no_grad():
        model[0].bias[:3] = -100
    attack, gradients = Attack(model, (1, 8, 8)), observe(model, IMAGES)
    exact = psnr(attack(gradients).images, IMAGES, data_range=1)
    for seed in range(4):
        sent = {
            name: g + level * g.flatten(1).square().mean().sqrt() * normal(*g.shape, seed=seed + n)
            for n, (name, g) in enumerate(gradients.items())
        }
        quality = psnr(attack(sent).images, IMAGES, data_range=1)
        assert (
            quality > torch.minimum(exact - 20, torch.tensor(-20 * math.log10(level) - 80))
        ).all()


def test_an_average_that_one_logit_cannot_tell_is_not_called_unique():
    """z̄₁ v₁ + z̄₂ v₂ has rank one where there is one logit, and a linear model fits it."""
    model = nn.Sequential(
        nn.Conv2d(1, 9, 3, padding=1), nn.Flatten(), nn.Linear(9 * 64, 1)
    ).double()  # fmt: skip
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(3)).double()
    sent = per_sample_gradients(model, images, torch.tensor([0, 1]))
    found = Attack(model, (1, 8, 8))({name: g.mean(dim=0) for name, g in sent.items()})
    assert found.gradient_residual.item() < 1e-12 and found.full_rank.item()
    assert not found.unique.item() and "average of several images" in found.diagnostics[0]
    alone = Attack(model, (1, 8, 8))({name: g[0] for name, g in sent.items()})
    assert psnr(alone.images, images[:1], data_range=1) > 200
    assert not alone.unique.item() and "mean of several similar images" in alone.diagnostics[0]


def test_a_scale_that_the_loss_fits_badly_is_not_called_unique():
    """Two local steps of a network without biases: the image is right up to its scale only."""
    (record,) = attack_random_networks(range(88, 89), "two local steps")
    assert not record["unique"] and record["error"] > 0.5 and record["diagnostic"]


def test_a_wrong_scale_that_every_layer_fits_is_not_called_unique():
    """Nothing has a bias and every layer keeps a factor: the loss alone tells it, and is another.

    The certificate takes the derivative by the logits as observed, so that only the head's own
    equations show it.
    """

    def loss(logits, target):
        return (logits - nn.functional.one_hot(target, 10)).square().sum()

    head = lambda n: [nn.Linear(n, 10, bias=False)]  # noqa: E731
    model = network(nn.LeakyReLU, bias=False, head=head)
    images, labels = IMAGES[[0, 2]], torch.tensor([0, 2])
    found = Attack(model, (1, 8, 8))(observe(model, images, labels, loss))
    assert found.full_rank.all() and (found.gradient_residual < 1e-6).all()
    assert (psnr(found.images, images, data_range=1) < 40).all()
    assert (found.revealed_noise > 0).all() and not found.unique.any()


@pytest.fixture
def scripted(monkeypatch):
    """An attack on one image whose passes are played from a list of answers."""
    model = network(nn.LeakyReLU)
    attack, gradients = Attack(model, (1, 8, 8)), observe(model, IMAGES[:1])
    plain, calls = attack(gradients), []

    def answer(image=0.0, **told):
        numbers = {name: torch.tensor([value], dtype=torch.float64) for name, value in told.items()}
        return replace(plain, images=torch.full_like(plain.images, image), **numbers)

    def play(*answers):
        left = iter(answers)
        played = lambda *_, **how: calls.append(how) or next(left)  # noqa: E731
        monkeypatch.setattr("rconv.attack.attack.attempt", played)
        return attack(gradients), len(calls)

    return answer, play


NOISY = {"gradient_residual": 1e-2, "revealed_noise": 1e-2, "expected_error": 1e-5, "growth": 3}
QUIET = {"gradient_residual": 1e-2, "revealed_noise": 0, "expected_error": 1e-3, "growth": 3}


def test_an_answer_that_explains_the_gradients_is_not_looked_at_again(scripted):
    answer, play = scripted
    found, passes = play(answer(0.1, **QUIET))
    assert passes == 1 and found.images.max() == 0.1


def test_an_image_whose_rank_is_short_is_not_looked_at_again(scripted):
    """It need not explain the gradients, so that its residual shows no noise."""
    answer, play = scripted
    first = answer(0.1, **NOISY)
    last = replace(first.layers[-1], rank=first.layers[-1].rank - 1)
    found, passes = play(replace(first, layers=(*first.layers[:-1], last)))
    assert passes == 1 and not found.full_rank.any()


def test_other_equations_that_explain_the_gradients_are_believed(scripted):
    answer, play = scripted
    found, passes = play(answer(0.1, **NOISY), answer(0.2, **QUIET))
    assert passes == 2 and found.images.max() == 0.2
    assert found.revealed_noise.item() == 0 and found.expected_error.item() == 1e-3


def test_the_image_that_explains_the_gradients_best_is_kept(scripted):
    answer, play = scripted
    told = answer(0.3, **{**QUIET, "gradient_residual": 1e-3})
    found, passes = play(answer(0.1, **NOISY), answer(0.2, **NOISY), told)
    assert passes == 3 and found.images.max() == 0.3


@pytest.mark.parametrize(
    ("growth", "error", "expected"), [(7.0, 1e-3, 7e-2), (0.01, 0.2, 0.2), (0.01, 1e-3, 1e-2)]
)
def test_the_error_is_the_largest_that_any_answer_expects(scripted, growth, error, expected):
    """By what the noise grows to, by equations that were told of it, and no less than itself."""
    answer, play = scripted
    first = answer(0.1, **{**NOISY, "growth": growth})
    told = answer(0.3, **{**QUIET, "gradient_residual": 0.1, "expected_error": error})
    found, _ = play(first, answer(0.2, **{**NOISY, "gradient_residual": 0.1}), told)
    assert found.images.max() == 0.1
    assert found.expected_error.item() == pytest.approx(expected)


def test_where_all_is_drowned_no_further_pass_is_made(scripted):
    answer, play = scripted
    drowned = {**NOISY, "revealed_noise": 0.5, "growth": 0.1}
    found, passes = play(answer(0.1, **drowned), answer(0.2, **drowned))
    assert passes == 2 and found.expected_error.item() == 1


def test_of_a_faint_noise_the_error_is_what_it_grows_to():
    _, attack, gradients = prepared(nn.Sigmoid)
    found = attack(noisy(gradients, 1e-9))
    assert (found.revealed_noise > 1e-9).all() and (found.expected_error < 1e-3).all()


# What is no noise: similar images, several steps, and images of low contrast.


def photo(seed, side=8):
    return random_images((3, side, side), 1, seed)


@pytest.mark.parametrize("other", [shifted, brighter, grainy])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_the_mean_of_two_similar_images_is_not_called_unique(other, dtype):
    """It was, at 26 to 29 dB: the error is of first order, the head's residual of second."""
    model, shape = wide_network(1)
    sent = pair(other, dtype)(model, photo(1, shape[1]), torch.tensor([1]))
    found = Attack(model, shape)(sent.gradients)
    assert found.full_rank.all() and not found.unique.any()
    assert "several" in found.diagnostics[0] and "batch=None" in found.diagnostics[0]
    assert max(psnr(found.images, own, data_range=1) for own in sent.truths) < 40


@pytest.mark.parametrize("other", [shifted, brighter, grainy])
def test_the_head_determines_how_far_similar_images_are_from_their_mean(other):
    """Where weights are small, features and images differ by about the same share."""
    model, shape = wide_network(1)
    sent = pair(other)(model, photo(1, shape[1]), torch.tensor([1]))
    found = Attack(model, shape)(sent.gradients)
    error = min((found.images - own).norm() / own.norm() for own in sent.truths)
    assert error / 4 < found.systematic_error.item() < 4 * error


@pytest.mark.parametrize(("classes", "deep"), [(4, False), (4, True), (1, True)])
def test_the_turn_of_the_cotangent_is_its_derivative(classes, deep):
    """Of one Linear, and of a head of two; by differences of the gradients themselves."""
    head = lambda n: (  # noqa: E731
        [nn.Linear(n, 6), nn.Tanh(), nn.Linear(6, classes)] if deep else [nn.Linear(n, classes)]
    )
    model = network(nn.Tanh, head=head)
    attack, labels = Attack(model, (1, 8, 8)), torch.tensor([0, 1, max(1, classes - 1)])
    linear = attack.network.head
    index = int(linear.name)

    def cotangent(features):
        z = model[index](features).detach().requires_grad_()
        logits = model[index + 1 :](z)
        if classes == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)  # the logistic loss
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        return torch.autograd.grad(loss, z)[0]

    with torch.no_grad():
        features = model[:index](IMAGES)
    step, size = uniform(*features.shape) - 0.5, 1e-6
    known = IMAGES, features, cotangent(features), labels
    found = cotangent_turn(attack.model, linear, *known)(step)
    ends = cotangent(features + size * step), cotangent(features - size * step)
    expected = (ends[0] - ends[1]) / (2 * size)
    assert (found - expected).norm() < 1e-6 * expected.norm()


def test_batch_none_separates_two_similar_images():
    model, shape = wide_network(1)
    sent = pair(shifted)(model, photo(1, shape[1]), torch.tensor([1]))
    found = Attack(model, shape)(sent.gradients, batch=None)
    assert len(found.images) == 2
    for own in sent.truths:
        assert psnr(found.images, own.expand_as(found.images), data_range=1).max() > 60


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_single_image_stays_unique_whatever_its_dtype(dtype):
    model, shape = wide_network(1)
    gradients = per_sample_gradients(model, photo(1, shape[1]), torch.tensor([1]))
    found = Attack(model, shape)({name: g.to(dtype) for name, g in gradients.items()})
    assert found.unique.all() and psnr(found.images, photo(1, shape[1]), data_range=1) > 60


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_that_hides_similar_images_forbids_the_verdict(dtype):
    """Three digits, as bfloat16 has, hide images that differ by a tenth; float16 some per cent."""
    model, shape = wide_network(1)
    gradients = per_sample_gradients(model, photo(1, shape[1]), torch.tensor([1]))
    found = Attack(model, shape)({name: g.to(dtype) for name, g in gradients.items()})
    assert found.expected_error.item() < CLEAR < found.systematic_error.item()
    assert not found.unique.any() and "similar images" in found.diagnostics[0]


@pytest.mark.parametrize("batch", [1, None])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_similar_images_of_low_contrast_are_not_called_unique(dtype, batch):
    """They differ by little of their brightness: 79 of 100 means of two were called unique."""
    case = f"shifted, same label, {dtype}"
    records = attack_random_networks(range(3), case, "wide", batch=batch, low_contrast=True)
    assert len(records) >= 3 and not any(r["false"] for r in records)
    if batch == 1:
        assert not any(r["unique"] for r in records)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("rate", [1e-3, 1e-2])
def test_several_steps_sent_as_new_weights_are_not_called_unique(seed, count, rate):
    """The rounding of the weights had absorbed the drift, the more the more steps there were."""
    model, shape = residual_network(seed)
    send = several_steps(count, rate, weights=True)
    sent = send(model, photo(seed), torch.tensor([seed]))
    found = Attack(model.float(), shape)(sent.gradients, noise=sent.noise)
    assert not found.unique.any()


@pytest.mark.parametrize("make", [residual_network, wide_network])
def test_one_step_sent_as_new_weights_stays_unique(make):
    """Residuals of the size that a simulated client has reveal nothing."""
    model, shape = make(2)
    image = photo(2, shape[1])
    sent = several_steps(1, 1e-3, weights=True)(model, image, torch.tensor([2]))
    found = Attack(model.float(), shape)(sent.gradients, noise=sent.noise)
    assert found.unique.all() and found.revealed_noise.item() == 0
    assert psnr(found.images, image, data_range=1) > 60


def test_the_size_of_an_image_is_its_contrast_where_that_is_low():
    bright = 0.5 + 0.05 * (IMAGES - 0.5)
    expected = 4 * bright.std(dim=(1, 2, 3), correction=0)
    torch.testing.assert_close(image_size(bright, (0.0, 1.0)), expected)
    full = IMAGES.square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(image_size(IMAGES, (0.0, 1.0)), full)
    flat = torch.full_like(IMAGES, 0.5)
    for high in (1.0, 255.0):
        assert image_size(flat, (0.0, high)).tolist() == pytest.approx([high / 100] * 3)


def test_the_error_of_an_image_of_low_contrast_is_measured_by_its_contrast():
    """24 dB of a range of 0.05 are 50 dB of all values: it was called unique."""
    model, attack, _ = prepared(nn.Sigmoid)
    sizes = []
    for images in (IMAGES, 0.5 + 0.05 * (IMAGES - 0.5)):
        found = attack(observe(model, images), relative_std=1e-4)
        errors = (found.images - images).square().mean(dim=(1, 2, 3)).sqrt()
        contrast = images.std(dim=(1, 2, 3), correction=0)
        assert ((errors < 0.05 * contrast) | ~found.unique).all()
        sizes.append(found.expected_error)
    assert (sizes[1] > 3 * sizes[0]).all()


def test_undeclared_noise_stays_unique_where_its_square_root_is_small():
    _, attack, gradients = prepared()
    found = attack(noisy(gradients, 1e-9))
    assert (found.revealed_noise > 0).all() and found.unique.all()
    assert second_order(torch.tensor([1e-8, 1.0])).tolist() == pytest.approx([3e-4, 1.0])


def test_an_unknown_client_or_network_is_refused():
    with pytest.raises(ValueError, match="unknown 'three steps'"):
        attack_random_networks(range(1), "three steps")
    with pytest.raises(ValueError, match="unknown 'narrow'"):
        attack_random_networks(range(1), "float64", "narrow")


@pytest.mark.parametrize("network", ["wide", "random"])
@pytest.mark.parametrize(
    "case", ["grainy, same label, float32", "5 steps, rate 0.001, weights, float32", "float16"]
)
def test_no_verdict_of_a_short_hunt_is_false(network, case):
    records = attack_random_networks(range(40, 46), case, network)
    assert records and not any(r["false"] for r in records)


@pytest.mark.parametrize(("classes", "unique"), [(1, False), (2, False), (3, True)])
def test_two_classes_do_not_show_how_many_images_a_linear_network_had(classes, unique):
    """The mean of any two images has the mean of their gradients, an outer product."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, 1, 1), nn.Flatten(), nn.Linear(8 * 64, classes)
    ).double()  # fmt: skip
    images = torch.stack([random_images((1, 8, 8), 1, seed)[0] for seed in (1, 2)]).double()
    gradients = per_sample_gradients(model, images, torch.tensor([0, 0]))
    mean = Attack(model, (1, 8, 8))({name: g.mean(dim=0) for name, g in gradients.items()})
    assert not mean.unique.any()
    one = Attack(model, (1, 8, 8))({name: g[:1] for name, g in gradients.items()})
    assert bool(one.unique.all()) == unique
    if not unique:
        assert "mean of several similar images" in one.diagnostics[0]


def test_a_mean_that_almost_linear_layers_hide_is_not_called_unique():
    """One output, and a Sigmoid of small inputs: 10 % from the image, residual 5e-6, called unique.

    A network shows it where the inputs of its activation are large: there an image is unique.
    """
    (record,) = attack_random_networks(range(940003, 940004), "brighter, same label, float32")
    assert record["error"] > CLEAR and not record["unique"]
    images = uniform(1, 1, 8, 8)
    for scale, unique in ((1e-2, False), (5.0, True)):
        model = network(nn.Tanh, filters=(12,), head=lambda n: [nn.Linear(n, 1)])
        with torch.no_grad():
            model[0].weight *= scale
        sent = {name: g.float() for name, g in observe(model, images).items()}
        assert Attack(model, (1, 8, 8))(sent).unique.item() == unique


@pytest.mark.parametrize("seed", [910000, 910135, 910239])
def test_two_images_of_different_brightness_are_not_called_unique_without_a_bias(seed):
    """The head's own equations and what rounding hides in them count there; nothing else does."""
    (record,) = attack_random_networks(range(seed, seed + 1), "brighter, same label, float32")
    assert not record["unique"]
