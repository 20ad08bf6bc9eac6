"""Models that are odd in one way each: every one is answered or refused, none ends in an error
that is not ours."""

import dataclasses
import re
from typing import NamedTuple

import pytest
import torch
from small import relative_error, uniform
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from rconv import UnsupportedModelError, audit_model
from rconv.attack.attack import Attack
from rconv.observe.observation import per_sample_gradients

SHAPE = (1, 8, 8)
RIGHT, OPEN, CLIENT = "right", "open", "client"
"""The image is unique and right; or it need not be, and is not called unique where it is wrong; or
a client cannot compute gradients of one image, which is said. Anything else is in the refusal."""


def body(activation=nn.Tanh, *, top=(), features=640, norm=nn.Identity, filters=8):
    """Two convolutions, then Flatten and a Linear; `top` before the Flatten."""
    layers = nn.Conv2d(1, filters, 3, 2, 1), norm(filters), activation()
    layers = *layers, nn.Conv2d(filters, 40, 3, 1, 1), activation(), *top, nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(features, 4))


class Code(nn.Module):
    """The same two convolutions, and a forward of any kind."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 40, 3, 1, 1)
        self.fc, self.step = nn.Linear(640, 4), forward
        for name, module in modules.items():
            setattr(self, name, module)

    def maps(self, x):
        return self.two(self.one(x).tanh()).tanh()

    def logits(self, x):
        return self.fc(self.maps(x).flatten(1))

    def forward(self, x):
        return self.step(self, x)


@dataclasses.dataclass
class Output:
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden: torch.Tensor | None = None


class Named(NamedTuple):
    features: torch.Tensor
    logits: torch.Tensor


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = body()

    def forward(self, x, mask):
        return self.inner(x * mask)


class Optional(TwoInputs):
    def forward(self, x, mask=None, *, scale=1.0):
        return self.inner(x if mask is None else x * mask)


class AnyInputs(TwoInputs):
    def forward(self, *inputs, **options):
        return self.inner(inputs[0])


class LoRA(nn.Module):
    """A frozen Linear and a trained product of small ones beside it."""

    def __init__(self, linear, rank=2):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)

    def forward(self, x):
        return self.linear(x) + self.up(self.down(x))


class LoRAConv(nn.Module):
    """The same of a convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, 2, 1).requires_grad_(False)
        self.down, self.up = nn.Conv2d(1, 1, 3, 2, 1, bias=False), nn.Conv2d(1, 8, 1, bias=False)

    def forward(self, x):
        return self.conv(x) + self.up(self.down(x))


class Half(nn.Module):
    """A parametrisation."""

    def forward(self, weight):
        return weight / 2


def tied():
    model = nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.Tanh(), *(nn.Conv2d(8, 8, 3, 1, 1)
                          for _ in range(2)), nn.Flatten(), nn.Linear(512, 4))  # fmt: skip
    model[3].weight = model[2].weight
    return model


def tied_head():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    model[3].weight = model[1].weight
    return model


def parametrised():
    model = body()
    parametrize.register_parametrization(model[0], "weight", Half())
    return model


def weight_normed():
    model = body()
    parametrizations.weight_norm(model[3])
    return model


def hooked():
    model = body()
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    return model


def lora_head():
    model = body()
    model[-1] = LoRA(model[-1])
    return model


def half_compiled():
    model = body()
    model[3] = nn.DataParallel(model[3])
    return model


class Attention(nn.Module):
    """One token for each position."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 2, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)
        return self.fc(self.attention(x, x, x)[0].mean(1))


class Recurrent(nn.Module):
    """Rows one after the other."""

    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.lstm(x.flatten(1, 2))[0][:, -1])


class Trap(nn.Module):
    """Raises an error of its own."""

    def __init__(self, error):
        super().__init__()
        self.inner, self.error = body(), error

    def forward(self, x):
        if x.shape[0] != 1:
            raise self.error
        return self.inner(x)


def counted(m, x):
    m.calls = getattr(m, "calls", 0) + 1
    return m.logits(x)


def checkpointed(m, x):
    return m.fc(checkpoint(m.maps, x, use_reentrant=False).flatten(1))


def in_place(m, x):
    y = m.one(x)
    y.tanh_()
    return m.fc(m.two(y).tanh_().flatten(1))


def conv1d():
    layers = nn.Flatten(2), nn.Conv1d(1, 8, 3, 1, 1), nn.Tanh(), nn.Flatten(), nn.Linear(512, 4)
    return nn.Sequential(*layers)


def batch_norm(model):
    """In training mode."""
    return lambda: model().train()


def flat_norm():
    layers = nn.Conv2d(1, 8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)
    return nn.Sequential(*layers).train()


def pooled_norm():
    layers = nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(40), nn.ReLU()
    return body(top=layers, features=40).train()


def linear_norm():
    layers = nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)
    return nn.Sequential(*layers).train()


def sparse():
    model = body()
    model[0].weight = nn.Parameter(torch.zeros(8, 1, 3, 3).to_sparse())
    return model


def double_head():
    return nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.Flatten(), nn.Linear(512, 4).double())


def complex_weights():
    layers = nn.Conv2d(1, 8, 3, 1, 1, dtype=torch.complex64), nn.Flatten(), nn.Linear(512, 4)
    return nn.Sequential(*layers)


MODELS = [
    # what is odd, the model, what is said
    ("an activation in place", lambda: body(lambda: nn.ReLU(inplace=True)), OPEN),
    ("ELU in place", lambda: body(lambda: nn.ELU(inplace=True)), RIGHT),
    ("LeakyReLU in place", lambda: body(lambda: nn.LeakyReLU(0.1, inplace=True)), RIGHT),
    ("in place as methods", lambda: Code(in_place), "in place"),
    ("an activation that is not monotone", lambda: body(nn.GELU), OPEN),
    ("an activation that saturates twice", lambda: body(nn.Hardtanh), OPEN),
    ("PReLU, which is trained", lambda: body(nn.PReLU), OPEN),
    ("BatchNorm in training", lambda: body(norm=nn.BatchNorm2d).train(), OPEN),
    ("BatchNorm of one position", flat_norm, CLIENT),
    ("BatchNorm behind global pooling", pooled_norm, CLIENT),
    ("BatchNorm of features", linear_norm, CLIENT),
    ("BatchNorm in evaluation", lambda: body(norm=nn.BatchNorm2d).eval(), RIGHT),
    ("GroupNorm", lambda: body(norm=lambda n: nn.GroupNorm(2, n)), OPEN),
    ("InstanceNorm in training", lambda: body(norm=nn.InstanceNorm2d).train(), OPEN),
    ("Dropout in training", lambda: body(top=[nn.Dropout()]).train(), "Dropout"),
    ("a convolution of one axis", conv1d, "Flatten|Conv1d"),
    ("a convolution of three axes", lambda: nn.Sequential(nn.Unflatten(1, (1, 1)),
     nn.Conv3d(1, 4, 3, 1, 1), nn.Flatten(), nn.Linear(256, 4)), "Unflatten"),
    ("a transposed convolution", lambda: body(top=[nn.ConvTranspose2d(40, 2, 2)], features=50),
     OPEN),
    ("groups", lambda: body(top=[nn.Conv2d(40, 40, 3, groups=40)], features=160), OPEN),
    ("padding by reflection", lambda: body(top=[nn.Conv2d(40, 40, 3, 1, 1,
     padding_mode="reflect")]), OPEN),
    ("max pooling", lambda: body(nn.ReLU, top=[nn.MaxPool2d(2)], features=160), OPEN),
    ("max pooling of few filters", lambda: body(top=[nn.Conv2d(40, 4, 1), nn.MaxPool2d(2)],
     features=16, filters=2), OPEN),
    ("max pooling above a wide map", lambda: nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1),
     nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 4)), OPEN),
    ("pooling that returns indices", lambda: body(top=[nn.MaxPool2d(2, return_indices=True)]),
     "MaxPool2d|cannot"),
    ("upsampling", lambda: body(top=[nn.Upsample(scale_factor=2)], features=2560), OPEN),
    ("pixels shuffled", lambda: body(top=[nn.PixelShuffle(2)]), OPEN),
    ("a dictionary", lambda: Code(lambda m, x: {"out": m.logits(x)}), RIGHT),
    ("a dictionary of several", lambda: Code(lambda m, x: {"aux": m.one(x), "logits":
     m.logits(x)}), RIGHT),
    ("a tuple of one", lambda: Code(lambda m, x: (m.logits(x),)), RIGHT),
    ("a tuple of two", lambda: Code(lambda m, x: (m.logits(x), m.one(x))), RIGHT),
    ("a list", lambda: Code(lambda m, x: [m.logits(x)]), RIGHT),
    ("a dataclass", lambda: Code(lambda m, x: Output(logits=m.logits(x))), RIGHT),
    ("a named tuple", lambda: Code(lambda m, x: Named(m.one(x), m.logits(x))), RIGHT),
    ("nothing", lambda: Code(lambda m, x: None), "returns no tensor"),
    ("a number", lambda: Code(lambda m, x: 3.0), "returns no tensor"),
    ("an empty tuple", lambda: Code(lambda m, x: ()), "returns no tensor"),
    ("an output that sees no image", lambda: Code(lambda m, x: m.fc.bias[None]), "Linear"),
    ("two inputs", TwoInputs, "images and nothing else"),
    ("an optional input", Optional, RIGHT),
    ("any inputs", AnyInputs, "images and nothing else"),
    ("no parameters", lambda: nn.Sequential(nn.Flatten()), "Linear"),
    ("no layers", nn.Sequential, "Linear"),
    ("a weight tied to another", tied, "shares a parameter"),
    ("a head tied to another", tied_head, "shares a parameter"),
    ("a layer twice", lambda: Code(lambda m, x: m.fc(m.two(m.two(x)).flatten(1))), "shape"),
    ("DataParallel", lambda: nn.DataParallel(body()), RIGHT),
    ("DataParallel inside", half_compiled, RIGHT),
    ("torch.compile", lambda: torch.compile(body()), RIGHT),
    ("torch.compile of DataParallel", lambda: torch.compile(nn.DataParallel(body())), RIGHT),
    ("TorchScript", lambda: torch.jit.trace(body(), torch.zeros(1, *SHAPE)),
     "TorchScript"),
    ("parametrised", parametrised, "parametrized"),
    ("weight normalisation", weight_normed, "parametrized"),
    ("spectral normalisation", lambda: parametrizations.spectral_norm(nn.Linear(64, 4)),
     "parametrized"),
    ("a hook", hooked, "hook"),
    ("LoRA in the head", lora_head, OPEN),
    ("LoRA in a convolution", lambda: nn.Sequential(LoRAConv(), nn.Tanh(), nn.Flatten(),
     nn.Linear(128, 4)), OPEN),
    ("attention", Attention, "MultiheadAttention|flatten|transpose"),
    ("a recurrent layer", Recurrent, "LSTM|flatten"),
    ("a bilinear layer", lambda: Code(lambda m, x: m.b(x.flatten(1), x.flatten(1)),
     b=nn.Bilinear(64, 64, 4)), "Linear"),
    ("an embedding of numbers", lambda: Code(lambda m, x: m.e(x.flatten(1).long()).mean(1),
     e=nn.Embedding(10, 4)), "Linear"),
    ("a branch by values", lambda: Code(lambda m, x: m.logits(x if x.sum() > 0 else -x)),
     "cannot be traced"),
    ("a branch by shape", lambda: Code(lambda m, x: m.logits(x) if x.shape[1] == 1 else x), ""),
    ("a loop over images", lambda: Code(lambda m, x: torch.cat([m.logits(i[None]) for i in x])),
     "cannot be traced"),
    ("a call of NumPy", lambda: Code(lambda m, x: torch.from_numpy(x.numpy())),
     "cannot be traced|know"),
    ("a check of the batch", lambda: Trap(AssertionError("one at a time")), "cannot be traced"),
    ("an error with a strange name", lambda: Trap(KeyError("image")), "cannot be traced"),
    ("a state that changes", lambda: Code(counted), RIGHT),
    ("random noise", lambda: Code(lambda m, x: m.logits(x + torch.randn(1))), "know|adds"),
    ("another size of image", lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(),
     nn.Linear(288, 4)), "channels"),
    ("a head of another size", lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(),
     nn.Linear(7, 4)), "features"),
    ("an image smaller than the kernel", lambda: nn.Sequential(nn.Conv2d(1, 8, 11),
     nn.Flatten(), nn.Linear(8, 4)), "kernel"),
    ("weights on no device", lambda: body().to("meta"), "meta"),
    ("weights that are not initialised", lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)),
     "not initialised"),
    ("sparse weights", sparse, "sparse"),
    ("complex weights", complex_weights, "real"),
    ("weights of zero", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), RIGHT),
    ("NaN", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), "NaN"),
    ("two dtypes", double_head, CLIENT),
    ("half precision", lambda: body().half(), OPEN),
    ("segments", lambda: Code(lambda m, x: {"out": m.maps(x)}), CLIENT),
    ("a single logit", lambda: nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.Flatten(),
     nn.Linear(512, 1)), OPEN),
    ("a checkpointed layer", lambda: Code(checkpointed), RIGHT),
    ("no module", lambda: (lambda x: x), "Module"),
    ("a class in place of a model", lambda: nn.Linear, "Module"),
]  # fmt: skip


def made(what, make):
    """The model."""
    torch.manual_seed(0)
    model = make()
    if what == "weights of zero":
        model[1].weight.data.zero_()
    if what == "NaN":
        model[1].weight.data[0, 0] = torch.nan
    return model


def answered(model):
    """The image from the model's own gradients, and the image."""
    attack = Attack(model, SHAPE, signs=False)
    if all(stage.linear for stage in attack.network.stages):
        audit_model(model, SHAPE)
    image = uniform(1, *SHAPE)
    sent = per_sample_gradients(model, image, torch.tensor([0]))
    return attack(sent), image


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("what", "make", "said"), MODELS, ids=[row[0] for row in MODELS])
def test_it_is_answered_or_refused(what, make, said):
    model = made(what, make)
    try:
        result, image = answered(model)
    except UnsupportedModelError as error:
        message = str(error)
        assert said not in (RIGHT, OPEN) or "LoRA" in what, message
        if said == CLIENT:
            return
        assert message.endswith("Not supported does not mean private."), message
        assert re.search(said, message), message
        assert error.reasons and all(reason for _, reason in error.reasons)
        return
    except ValueError as error:
        assert said == CLIENT, error
        assert re.search("the model takes no image of the shape|not that of logits", str(error))
        return
    assert said in (RIGHT, OPEN, ""), "it is answered"
    error = relative_error(result.images, image)
    assert error < 1e-2 or not result.unique.any()
    if said == RIGHT:
        assert error < 1e-2 and result.unique.all()


def test_gradients_may_carry_the_names_of_wrappers():
    inner = made("", body)
    image = uniform(1, *SHAPE).float()
    for wrap, prefix in ((nn.DataParallel, "module."), (torch.compile, "_orig_mod.")):
        model = wrap(inner)
        loss = functional.cross_entropy(inner(image), torch.tensor([1]))
        gradients = torch.autograd.grad(loss, list(inner.parameters()))
        names = [name for name, _ in model.named_parameters()]
        assert all(name.startswith(prefix) for name in names)
        sent = dict(zip(names, gradients, strict=True))
        for known in (model, inner):
            result = Attack(known, SHAPE)(sent)
            assert relative_error(result.images, image.double()) < 1e-2
