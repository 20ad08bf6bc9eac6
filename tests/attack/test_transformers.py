"""Networks that are read in part: position embeddings, and what is refused."""

import re

import pytest
import torch
from small import observe, relative_error, uniform
from small_transformers import Pooled, TokenFirst, TokenLast
from torch import nn

from rconv.attack.attack import Attack
from rconv.attack.report import ShortRankError
from rconv.model.nodes import UnsupportedModelError
from rconv.model.read import read
from rconv.observe.noise import Noise

SHAPE = (3, 16, 16)


def seeded(make, seed=0, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "make",
    [
        TokenFirst,
        lambda: TokenFirst(side=16, patch=8, width=20, depth=2),
        lambda: TokenFirst(width=32, patch=7, stride=4, padding=3),  # windows overlap
        TokenLast,
        Pooled,  # behind a stem, with tokens in the shape of a map
    ],
    ids=["token first", "large patches", "overlapping", "token last", "stem"],
)
def test_the_images_of_several_clients(make, dtype):
    model, images = seeded(make, dtype=dtype), uniform(3, *SHAPE)
    found = Attack(model, SHAPE)(observe(model, images))
    limit = 1e-11 if dtype == torch.float64 else 1e-3
    assert relative_error(found.images, images) < limit
    assert found.unique.all() and found.labels.tolist() == [0, 1, 2]
    assert (found.revealed_noise == 0).all() and (found.gradient_residual < limit).all()
    for i, image in enumerate(images):
        assert relative_error(found.images[i], image) < 10 * found.expected_error[i]


def test_the_embedding_is_found_by_what_is_added_where():
    network = read(seeded(TokenLast), SHAPE)
    entry = network.head
    assert (entry.name, entry.embedding.name, entry.logits) == (
        "embed",
        "places.weight",
        "classify",
    )
    assert entry.embedding.index[:, 1, 2].tolist() == [6 * 24 + d for d in range(24)]
    assert read(seeded(TokenFirst), SHAPE).head.embedding.index[5, 0, 0] == 1 * 24 + 5


def test_as_many_patches_as_dimensions_are_too_many():
    """LayerNorm keeps every token's derivative orthogonal to the ones: rank 15 for width 16."""
    model, images = seeded(lambda: TokenFirst(width=16)), uniform(1, *SHAPE)
    found = Attack(model, SHAPE)(observe(model, images))
    assert found.layers[1].rank.tolist() == [15 * 48] and not found.unique.any()
    assert found.diagnostics == ("patch_embed.proj has rank 720 of 768",)
    with pytest.raises(
        ShortRankError, match=r"patch_embed\.proj: gradient constraints .*720 of 768"
    ):
        Attack(model, SHAPE)(observe(model, images), strict=True)


@pytest.mark.parametrize("make", [TokenFirst, lambda: TokenLast(patch=8, width=12)])
def test_several_images_in_one_step_and_untold_noise_are_no_unique_image(make):
    """The second model is so sensitive that a wrong image explains its gradients to 1e-5."""
    model, images = seeded(make, dtype=torch.float32), uniform(2, *SHAPE)
    sent = observe(model, images)
    mean = Attack(model, SHAPE)({name: g.mean(dim=0) for name, g in sent.items()})
    assert not mean.unique and mean.revealed_noise > 0
    for seed, level in enumerate((3e-6, 1e-3)):
        noise = {
            name: level * g.square().mean().sqrt() * torch.randn(
                g.shape, generator=torch.Generator().manual_seed(seed)
            )
            for name, g in sent.items()
        }  # fmt: skip
        found = Attack(model, SHAPE)({name: g + noise[name] for name, g in sent.items()})
        for i, image in enumerate(images):
            error = relative_error(found.images[i], image)
            assert error < 10 * found.expected_error[i] and (error < 0.02 or not found.unique[i])


def test_told_noise_of_every_entry_counts():
    model, images = seeded(TokenFirst), uniform(1, *SHAPE)
    sent = observe(model, images)
    told = {name: 1e-9 * torch.ones_like(g) for name, g in sent.items()}
    noise = Noise(std=told)
    sent = {name: g + told[name] * torch.randn_like(g) for name, g in sent.items()}
    found = Attack(model, SHAPE)(sent, noise=noise)
    error = relative_error(found.images, images)
    assert found.expected_error / 20 < error < 5 * found.expected_error


def test_zero_gradients_tell_nothing():
    model = seeded(TokenFirst)
    found = Attack(model, SHAPE)(
        {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    )
    assert found.diagnostics == ("the gradients are zero: this step tells nothing",)
    assert not found.unique


class Changed(TokenFirst):
    """With something else in place of the sum."""

    def __init__(self, total, make=None):
        super().__init__()
        self.total, self.other = total, nn.LayerNorm(24)
        if make is not None:
            del self.pos_embed
            make(self)

    def forward(self, x):
        tokens = self.patch_embed(x)
        return self.head(self.blocks(self.total(self, tokens)).mean(dim=1))


def fixed(model):
    model.register_buffer("pos_embed", torch.randn(1, 16, 24))


def shared(model):
    model.pos_embed = nn.Parameter(torch.randn(1, 1, 24))


def rows_and_columns(model):
    model.rows, model.columns = (nn.Parameter(torch.randn(4, 24)) for _ in range(2))


def grid(model, x):
    return x + (model.rows[:, None] + model.columns[None]).flatten(0, 1)


def beside(model, x):
    return torch.cat([x + model.pos_embed[:, 1:], x], dim=1)


def twice(model, x):
    return (x + model.pos_embed[:, 1:]) * model.pos_embed[:, :1]


CHANGED = {
    "fixed": (lambda m, x: x + m.pos_embed, fixed, r"is fixed, so that no gradient .*\(line \d+"),
    "one for all": (lambda m, x: x + m.pos_embed, shared, r"pos_embed: is not added entry by"),
    "rows and columns": (grid, rows_and_columns, r"rows and columns: is not added entry by"),
    "scaled": (lambda m, x: x + 0.5 * m.pos_embed[:, 1:], None, r"pos_embed: is not added entry"),
    "normalised": (lambda m, x: m.other(x) + m.pos_embed[:, 1:], None, r"stands more than steps"),
    "rectified in place": (
        lambda m, x: nn.functional.leaky_relu_(x) + m.pos_embed[:, 1:], None, "more than steps"
    ),
    "cut": (lambda m, x: x[:, 1:] + m.pos_embed[:, 2:], None, r"more than steps that move"),
    "another way": (beside, None, r"patch_embed\.proj: reaches the loss by a path around"),
    "used twice": (twice, None, r"pos_embed: reaches the loss by a path around"),
    "none": (lambda m, x: x, None, "no position embedding is added"),
}  # fmt: skip


@pytest.mark.parametrize(("total", "make", "message"), CHANGED.values(), ids=CHANGED)
def test_refused_with_the_reason(total, make, message):
    model = seeded(lambda: Changed(total, make))
    with pytest.raises(UnsupportedModelError) as refusal:
        read(model, SHAPE)
    (layer, first), second = refusal.value.reasons
    assert layer == "patch_embed" and "flatten" in first
    assert re.search(message, ": ".join(filter(None, second)))


def test_a_head_of_zeros_is_refused():
    model = seeded(TokenFirst)
    model.head.weight.data.zero_()
    with pytest.raises(UnsupportedModelError, match=r"head: its weights are all zero"):
        Attack(model, SHAPE)


def test_methods_that_start_at_the_first_linear_say_so():
    network = read(seeded(TokenFirst), SHAPE)
    with pytest.raises(UnsupportedModelError, match=r"flatten.*R-GAP starts at the first Linear"):
        network.required_chain("R-GAP")
    with pytest.raises(ValueError, match=r"patch_embed\.proj: its output is unknown"):
        Attack(seeded(TokenFirst), SHAPE, constraints="paper")


def test_the_certificate_runs_in_the_dtype_of_the_gradients():
    """What no equation is made of is not copied to float64."""
    model, images = seeded(TokenFirst, dtype=torch.float32), uniform(1, *SHAPE)
    attack = Attack(model, SHAPE)
    attack(observe(model, images))
    assert {p.dtype for p in attack.model.parameters()} == {torch.float32}
    attack({name: g.double() for name, g in observe(model, images).items()})
    assert {p.dtype for p in attack.model.parameters()} == {torch.float64}
