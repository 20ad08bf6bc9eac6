"""What a client does to its gradients, what it buys, and what it costs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import SEEDS, normal

from rconv.data import datasets
from rconv.lab import architectures, defences
from rconv.lab.protection import accuracies
from rconv.lab.training import learn

GRADIENTS = {"a": normal(3, 4, 5, seed=1), "b": 100 * normal(3, 2000, seed=2)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_noise_is_relative_to_each_clients_own_parameter():
    sent = defences.add_noise(GRADIENTS, 0.1, generator())
    added = (sent["b"] - GRADIENTS["b"]).std(dim=1)
    assert torch.allclose(added, 0.1 * GRADIENTS["b"].square().mean(dim=1).sqrt(), rtol=0.1)
    assert torch.equal(sent["a"], defences.add_noise(GRADIENTS, 0.1, generator())["a"])
    assert not torch.equal(sent["a"], defences.add_noise(GRADIENTS, 0.1, generator(1))["a"])


def test_clipping_keeps_the_direction_and_lengthens_nothing():
    size = defences.norms(GRADIENTS)
    bound = float(size.sort().values[1])
    clipped = defences.clip(GRADIENTS, bound)
    assert torch.allclose(defences.norms(clipped), size.clamp(max=bound))
    shortest = int(size.argmin())
    assert torch.equal(clipped["b"][shortest], GRADIENTS["b"][shortest])
    ratio = clipped["b"] / GRADIENTS["b"]
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio))


def test_noise_after_clipping_has_the_size_of_the_bound_everywhere():
    sent = defences.clip_and_noise(GRADIENTS, 0.5, 2.0, generator())
    clipped = defences.clip(GRADIENTS, 2.0)
    assert (sent["b"] - clipped["b"]).std().item() == pytest.approx(1.0, rel=0.05)
    assert (sent["a"] - clipped["a"]).std().item() == pytest.approx(1.0, rel=0.3)


@given(seed=SEEDS, share=st.floats(0, 1))
def test_pruning_keeps_the_largest_as_they_were(seed, share):
    g = {"w": normal(2, 7, 3, seed=seed)}
    kept = defences.prune(g, share)["w"].flatten(1)
    whole = g["w"].flatten(1)
    zeros = (kept == 0).sum(dim=1)
    assert (zeros == min(int(share * 21), 20)).all()
    for own, sent in zip(whole, kept, strict=True):
        assert torch.equal(sent[sent != 0], own[sent != 0])
        if (sent == 0).any():
            assert own[sent == 0].abs().max() <= own[sent != 0].abs().min()


def test_pruning_everything_leaves_one_entry_of_each_parameter():
    sent = defences.prune(GRADIENTS, 1.0)
    assert [int((g != 0).sum()) for g in sent.values()] == [3, 3]


def test_rounding_sends_the_dtype():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        sent = defences.round_to(GRADIENTS, dtype)
        error = (sent["b"].double() - GRADIENTS["b"]).abs() / GRADIENTS["b"].abs()
        assert sent["b"].dtype == dtype
        assert 0 < error.max() <= torch.finfo(dtype).eps / 2, dtype


def test_epsilon_of_one_release_satisfies_the_gaussian_mechanisms_own_equation():
    phi = lambda x: math.erfc(-x / math.sqrt(2)) / 2  # noqa: E731
    for sigma in (1.0, 4.0):
        eps, mu = defences.epsilon_of_release(sigma, 1e-5), 2 / sigma  # replace-one: 2 C apart
        delta = phi(mu / 2 - eps / mu) - math.exp(eps) * phi(-mu / 2 - eps / mu)
        assert delta == pytest.approx(1e-5, rel=1e-6)


def test_a_training_of_one_full_step_is_a_release_to_add_or_remove_neighbours():
    pytest.importorskip("dp_accounting")
    trained = defences.epsilon_of_training(2.0, 1e-5, 1.0, 1)
    # Half as far apart as replace-one neighbours: as a release with twice the noise.
    assert trained == pytest.approx(defences.epsilon_of_release(4.0, 1e-5), rel=1e-2)
    assert defences.epsilon_of_training(2.0, 1e-5, 0.05, 10) < trained
    assert trained < defences.epsilon_of_training(2.0, 1e-5, 1.0, 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: defences.epsilon_of_release(0.0, 1e-5),
        lambda: defences.epsilon_of_release(1.0, 1.0),
        lambda: defences.epsilon_of_training(1.0, 1e-5, 1.5, 1),
        lambda: defences.epsilon_of_training(1.0, 1e-5, 0.5, 0),
    ],
)
def test_numbers_that_have_no_epsilon_are_refused(call):
    pytest.importorskip("dp_accounting")
    with pytest.raises(ValueError, match=r"delta|rate"):
        call()


def test_training_learns_and_noise_drowns_it():
    pytest.importorskip("dp_accounting")
    found = accuracies("lenet_main", (4, 8, 6, 4), {"clip": (100.0,)}, steps=15)
    accuracy = {r["defence"]: r["accuracy"] for r in found}
    assert accuracy["none"] > 0.3 > accuracy["clip"]
    assert [r["epsilon"] is None for r in found] == [True, False]


def test_clients_of_a_step_are_drawn_and_their_gradients_summed():
    data = datasets.load("Digits", range(128))
    model = architectures.build("lenet_main", 1, 10, "ReLU", filters=(2, 2, 2, 2)).float()
    counts = []

    def zero(gradients, generator):
        counts.append(len(gradients["fc.bias"]))
        return {name: g * 0 for name, g in gradients.items()}

    before = model.fc.weight.clone()
    learn(model, data, zero, steps=20)
    assert torch.equal(model.fc.weight, before), "without gradients nothing moves"
    assert len(set(counts)) > 5 and 50 < sum(counts) / 20 < 78
