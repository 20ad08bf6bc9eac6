"""Random networks as code: blocks with additions, concatenations and BatchNorm, in any order."""

import random

import torch
from torch import nn
from torch.nn import functional

ACTIVATIONS = (torch.relu, torch.relu, torch.tanh, functional.leaky_relu)


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
    """A convolution that keeps the side, or divides it by its stride."""
    return nn.Conv2d(c, d, k, s, k // 2, bias=bias)


class Block(nn.Module):
    """Two convolutions of d filters behind c channels, put together as `kind` says."""

    def __init__(self, kind, activation, c, d, stride, normed, bias):
        super().__init__()
        self.kind, self.activation = kind, activation
        norm = nn.BatchNorm2d if normed else nn.Identity
        beside = kind in ("parallel", "split")
        self.one = conv(c, d, 3, stride, bias)
        self.two = conv(c, d, 3, stride, bias) if beside else conv(d, d, 3, 1, bias)
        self.before, self.between, self.after = norm(c), norm(d), norm(d)
        wide = kind in ("residual", "preactivated", "late") and (stride > 1 or c != d)
        self.shortcut = conv(c, d, 1, stride, bias) if wide else nn.Identity()
        self.width = {"dense": c + d, "split": 2 * d}.get(kind, d)

    def forward(self, x):
        act = self.activation
        if self.kind == "plain":
            return act(self.between(self.one(x)))
        if self.kind == "residual":
            u = act(self.between(self.one(x)))
            return act(self.after(self.two(u)) + self.shortcut(x))
        if self.kind == "late":  # the addition comes after the activation
            return act(self.two(act(self.one(x)))) + self.shortcut(x)
        if self.kind == "preactivated":
            active = act(self.before(x))
            u = self.two(act(self.between(self.one(active))))
            return u + (x if type(self.shortcut) is nn.Identity else self.shortcut(active))
        if self.kind == "dense":
            return torch.cat([x, act(self.between(self.one(x)))], dim=1)
        if self.kind == "parallel":
            return act(self.between(self.one(x)) + self.two(x))
        return torch.cat([act(self.one(x)), act(self.after(self.two(x)))], dim=1)


KINDS = ("plain", "residual", "preactivated", "dense", "parallel", "split", "late")


AFTER = tuple(kind for kind in KINDS if kind not in ("preactivated", "late"))
"""What usually stands behind an activation."""


class Random(nn.Module):
    """A stem, one to three blocks, an activation, and a Linear."""

    def __init__(self, seed, channels=1, side=8):
        super().__init__()
        draw = random.Random(seed)
        act = draw.choice(ACTIVATIONS)
        normed, bias = draw.random() < 0.6, draw.random() < 0.6
        width = draw.choice((6, 8, 12))
        self.stem = conv(channels, width, 5, draw.choice((1, 1, 2)), bias)
        side = (side - 1) // self.stem.stride[0] + 1
        self.first, self.last = act, None
        if draw.random() < 0.5:
            self.first = None
        blocks, activated = [], self.first is not None
        for _ in range(draw.randint(1, 3)):
            stride = draw.choice((1, 1, 1, 2)) if side > 3 else 1
            kind = draw.choice(KINDS if not activated or draw.random() < 0.2 else AFTER)
            activated = kind not in ("preactivated", "late", "dense")
            stride = 1 if kind == "dense" else stride
            blocks.append(
                Block(kind, act, width, draw.choice((8, 12, 16, width)), stride, normed, bias)
            )
            width, side = blocks[-1].width, (side - 1) // stride + 1
        self.blocks = nn.ModuleList(blocks)
        if not activated:
            self.last = act
        self.fc = nn.Linear(width * side * side, 5)

    def forward(self, x):
        x = self.stem(x)
        x = self.first(x) if self.first is not None else x
        for block in self.blocks:
            x = block(x)
        x = self.last(x) if self.last is not None else x
        return self.fc(x.flatten(1))
