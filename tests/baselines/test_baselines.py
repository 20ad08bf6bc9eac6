"""Gradient matching (DLG, iDLG, Inverting Gradients): convergence, labels, what is reported."""

from functools import partial

import pytest
import torch
from torch import nn

from rconv.baselines import infer_labels, inverting_gradients
from rconv.baselines.dlg import Descent
from rconv.baselines.dlg import attack as dlg
from rconv.baselines.inverting_gradients import anisotropic_variation, cosine_distance
from rconv.baselines.matching import Replay
from rconv.lab.metrics import mse
from rconv.observe.observation import per_sample_gradients

SHAPE = (1, 8, 8)
CLASSES = 4
idlg = partial(dlg, read_label=True)
SHORT = {dlg: 3, idlg: 3, inverting_gradients.attack: 5}


def small_net(outputs=CLASSES, activation=nn.Sigmoid, bias=True, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3, 2, 1),
            activation(),
            nn.Conv2d(6, 6, 3, 1, 1),
            activation(),
            nn.Flatten(),
            nn.Linear(96, outputs, bias=bias),
        ).double()
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
    return model.eval()


def smooth_images(n=1):
    """Images that total variation suits: (n, 1, 8, 8) in [0, 1]."""
    x = torch.linspace(0, 1, 8, dtype=torch.float64)
    return torch.stack([(x[:, None] * (i + 1) / n + x[None] / 2) / 1.5 for i in range(n)])[:, None]


@pytest.fixture(scope="module")
def model():
    return small_net()


@pytest.fixture(scope="module")
def gradients(model):
    return per_sample_gradients(model, smooth_images(), torch.tensor([2]))


def test_the_replayed_step_is_the_clients(model):
    images, labels = smooth_images(3), torch.tensor([0, 3, 1])
    gradients = per_sample_gradients(model, images, labels)
    replay = Replay(model, gradients, SHAPE)
    for n in range(3):
        own = replay.gradients(images[n : n + 1], labels[n : n + 1])
        for one, other in zip(own, replay.observed[n], strict=True):
            torch.testing.assert_close(one, other)
        onehot = nn.functional.one_hot(labels[n : n + 1], CLASSES).double()
        assert replay.squared_distance(images[n : n + 1], onehot, replay.observed[n]) < 1e-24


def test_one_logit_has_the_logistic_loss():
    model, target = small_net(outputs=1), torch.tensor([1])
    loss = nn.functional.binary_cross_entropy_with_logits
    gradients = per_sample_gradients(model, smooth_images(), target, loss)
    replay = Replay(model, gradients, SHAPE)
    assert replay.squared_distance(smooth_images(), target, replay.observed[0]) < 1e-24


def test_dlg_finds_image_and_label(model, gradients):
    result = dlg(model, gradients, SHAPE, iterations=60)
    assert result.objective[0] < 1e-8 * result.history[0][0]
    assert mse(result.images, smooth_images())[0] < 1e-4
    assert result.labels.tolist() == [2]
    assert not result.diverged.any()


def test_idlg_finds_the_image(model, gradients):
    result = idlg(model, gradients, SHAPE, iterations=40)
    assert result.objective[0] < 1e-8 * result.history[0][0]
    assert mse(result.images, smooth_images())[0] < 1e-4
    assert result.labels.tolist() == [2]
    assert 0 < result.iterations[0] <= 40
    assert len(result.history[0]) == result.iterations[0] + 1


def test_a_descent_that_stands_still_would_have_stayed_there(model, gradients):
    """It ends early, and ends where the published number of iterations would have."""
    ended = idlg(model, gradients, SHAPE, iterations=300)
    assert ended.iterations[0] < 300
    further = idlg(model, gradients, SHAPE, iterations=int(ended.iterations[0]) - 1)
    assert further.images.equal(ended.images)


def test_patience_ends_what_no_longer_halves(model, gradients):
    objectives = iter([8.0, 3.0, 2.0, 1.9, 1.8, 0.1])
    image = torch.zeros(1, *SHAPE, requires_grad=True)
    descent = Descent([image], lambda: image.sum() * 0 + 1, patience=2)
    descent.history = []
    for ended in (False, False, False, True, True, False):
        descent.history.append(next(objectives))
        assert descent._impatient() is ended


@pytest.mark.parametrize("baseline", [dlg, idlg])
def test_of_several_starts_the_lowest_objective_is_kept(model, gradients, baseline):
    starts = [baseline(model, gradients, SHAPE, iterations=6, seed=seed) for seed in (3, 4, 5)]
    best = min(starts, key=lambda result: float(result.objective[0]))
    found = baseline(model, gradients, SHAPE, iterations=6, seed=3, restarts=3, heat=6)
    assert found.objective.equal(best.objective)
    assert found.images.equal(best.images)


def test_only_the_best_start_goes_on_after_the_heat(model, gradients):
    seen = []
    found = dlg(
        model,
        gradients,
        SHAPE,
        iterations=5,
        restarts=3,
        heat=2,
        watch=lambda image, objective: seen.append(objective),
    )
    assert len(seen) == 3 * 2 + 3
    assert found.iterations.tolist() == [5]
    assert found.history[0][-1] == seen[-1] == found.objective[0]


@pytest.mark.parametrize("baseline", SHORT)
def test_who_watches_sees_every_iteration(model, gradients, baseline):
    seen = []
    result = baseline(model, gradients, SHAPE, iterations=2, watch=lambda *one: seen.append(one))
    assert [objective for _, objective in seen] == result.history[0].tolist()[-len(seen) :]
    assert all(image.shape == (1, *SHAPE) and not image.requires_grad for image, _ in seen)


def test_one_logit_is_attacked_too():
    model = small_net(outputs=1)
    loss = nn.functional.binary_cross_entropy_with_logits
    for target in (0, 1):
        gradients = per_sample_gradients(model, smooth_images(), torch.tensor([target]), loss)
        for baseline in (dlg, idlg):
            result = baseline(model, gradients, SHAPE, iterations=5)
            assert result.labels.tolist() == [target]
            assert result.objective[0] < 1e-2 * result.history[0][0]


def test_inverting_gradients_comes_close_and_stays_in_the_box(model, gradients):
    result = inverting_gradients.attack(
        model, gradients, SHAPE, iterations=500, total_variation=1e-3
    )
    assert mse(result.images, smooth_images())[0] < 1e-2
    assert result.labels.tolist() == [2]
    assert result.objective[0] == result.history[0].min() < 0.02 * result.history[0][0]
    assert 0 <= result.images.min() and result.images.max() <= 1


def test_inverting_gradients_takes_known_labels_and_a_range_per_channel(model, gradients):
    low, high = torch.full((1, 1, 1), -0.5), torch.full((1, 1, 1), 0.25)
    result = inverting_gradients.attack(
        model, gradients, SHAPE, labels=torch.tensor([1]), iterations=5, value_range=(low, high)
    )
    assert result.labels.tolist() == [1]
    assert result.images.min() >= -0.5 and result.images.max() <= 0.25


def test_the_step_of_inverting_gradients_decays_at_3_5_and_7_eighths(model, gradients):
    moves = [
        inverting_gradients.attack(
            model, gradients, SHAPE, iterations=n, total_variation=0, value_range=(-9, 9)
        ).history[0]
        for n in (8, 16)
    ]
    same = (moves[0] == moves[1][:9]).tolist()
    assert same == [True] * 4 + [False] * 5  # 3 of 8 steps are whole ones, 6 of 16


def test_cosine_distance_and_total_variation_of_known_tensors():
    x, y = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 2.0])
    assert [float(cosine_distance(x, v)) for v in (5 * x, y, -x)] == [0, 1, 2]
    stripes = torch.tensor([[0.0, 1.0], [0.0, 1.0]])[None, None]
    assert float(anisotropic_variation(stripes)) == 1
    assert float(anisotropic_variation(stripes.mT)) == 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh, lambda: nn.LeakyReLU(0.2)])
@pytest.mark.parametrize("outputs", [3, 10])
def test_the_label_is_right_for_every_class(outputs, activation, bias):
    labels = torch.arange(outputs)
    for seed in range(3):
        model = small_net(outputs, activation, bias, seed)
        gradients = per_sample_gradients(model, smooth_images(outputs), labels)
        assert infer_labels(model, gradients).equal(labels)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_label_of_two_classes_behind_a_sigmoid(outputs, bias):
    model, labels = small_net(outputs, bias=bias), torch.arange(2)
    loss = nn.functional.binary_cross_entropy_with_logits if outputs == 1 else None
    gradients = per_sample_gradients(model, smooth_images(2), labels, loss)
    assert infer_labels(model, gradients).equal(labels)


@pytest.mark.parametrize("baseline", SHORT)
def test_each_image_is_attacked_alone_and_from_the_seed(model, baseline):
    gradients = per_sample_gradients(model, smooth_images(2), torch.tensor([0, 3]))
    second = {name: g[1] for name, g in gradients.items()}
    together = baseline(model, gradients, SHAPE, iterations=SHORT[baseline])
    alone = baseline(model, second, SHAPE, iterations=SHORT[baseline])
    other = baseline(model, second, SHAPE, iterations=SHORT[baseline], seed=1)
    assert together.images.shape == (2, *SHAPE)
    assert together.images[1:].equal(alone.images)
    assert together.history[1].equal(alone.history[0])
    assert not alone.images.equal(other.images)


@pytest.mark.parametrize("baseline", SHORT)
@pytest.mark.parametrize(
    ("dtype", "computed"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_the_gradients_dtype_is_that_of_the_images(model, gradients, baseline, dtype, computed):
    rounded = {name: g.to(dtype) for name, g in gradients.items()}
    result = baseline(model, rounded, SHAPE, iterations=2)
    assert result.images.dtype == computed
    assert result.objective.dtype == torch.float64
    assert next(model.parameters()).dtype == torch.float64


@pytest.mark.parametrize("baseline", SHORT)
def test_model_and_gradients_are_left_as_they_were(model, gradients, baseline):
    parameters = [p.detach().clone() for p in model.parameters()]
    copies = {name: g.clone() for name, g in gradients.items()}
    baseline(model, gradients, SHAPE, iterations=2)
    assert all(p.equal(q) for p, q in zip(model.parameters(), parameters, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert all(gradients[name].equal(copies[name]) for name in copies)


def test_divergence_is_reported_and_not_raised(model, gradients):
    blown_up = idlg(model, gradients, SHAPE, iterations=3, lr=1e9)
    assert blown_up.diverged.tolist() == [True]

    def broken(logits, target):
        return nn.functional.cross_entropy(logits, target) * torch.nan

    for baseline in SHORT:
        result = baseline(model, gradients, SHAPE, loss=broken, iterations=3)
        assert result.diverged.tolist() == [True]
        assert result.iterations.tolist() == [0]
        assert len(result.history[0]) == 1


def test_progress_shows_the_iterations(model, gradients, capsys):
    dlg(model, gradients, SHAPE, iterations=2, progress=True)
    assert "DLG, image 1 of 1" in capsys.readouterr().err
    dlg(model, gradients, SHAPE, iterations=2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("baseline", SHORT)
def test_refusals(model, gradients, baseline):
    without = {name: g for name, g in gradients.items() if name != "2.bias"}
    with pytest.raises(ValueError, match=r"no gradient for 2\.bias"):
        baseline(model, without, SHAPE)
    with pytest.raises(ValueError, match="NaN"):
        baseline(model, gradients | {"2.bias": gradients["2.bias"] * torch.nan}, SHAPE)
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        baseline(model, gradients, (8, 8))
    with pytest.raises(ValueError, match="iterations"):
        baseline(model, gradients, SHAPE, iterations=0)


@pytest.mark.parametrize("baseline", [dlg, idlg])
@pytest.mark.parametrize("numbers", [{"restarts": 0}, {"heat": 0}])
def test_no_start_and_no_heat_are_refused(model, gradients, baseline, numbers):
    with pytest.raises(ValueError, match="must be positive"):
        baseline(model, gradients, SHAPE, **numbers)


def test_refusals_of_labels_and_models(model, gradients):
    with pytest.raises(ValueError, match="1 images need as many labels"):
        inverting_gradients.attack(model, gradients, SHAPE, labels=torch.tensor([1, 2]))
    bare = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    observed = per_sample_gradients(bare, smooth_images(), torch.tensor([1]))
    with pytest.raises(ValueError, match="no Linear"):
        idlg(bare, observed, SHAPE)
    whole = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Sigmoid())
    observed = {name: torch.zeros_like(p) for name, p in whole.named_parameters()}
    with pytest.raises(ValueError, match=r"logits \(1, K\)"):
        dlg(whole, observed, SHAPE)
