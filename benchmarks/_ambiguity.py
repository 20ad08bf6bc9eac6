"""Proof that equations and inequalities do not determine the input of a convolution.

The proof is another input: one that gives the same gradients and the same outputs wherever the
attack knows them, has no negative entry, and leaves the same outputs silent. It is looked for
with the true input as the starting point, so no attack can use this module; it shows whether a
failure is the attack's or whether the layer allows several answers.
"""

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from rconv.equations.conv_gradient import gradient_matrix
from rconv.linalg.inequalities import ATTEMPTS
from rconv.model.geometry import Stage

ROUNDED = 1e-9
"""Largest violation of an equation or inequality, relative to the row's norm and to the input,
that counts as rounding: programs keep to inequalities up to 1e-10, in the unit of one entry."""

DISTANT = 1e-3
"""Least distance from the true input, relative to it, of an input that counts as another one."""

REACH = 10.0
"""Other inputs are looked for within this many root mean squares per coordinate."""

OBJECTIVES, SECONDS = 3, 20.0
"""Random objectives, each minimised and maximised, and the time limit of each program. One
objective suffices with probability 1 where the inequalities leave a set of positive size."""


def another_input(stage: Stage, cotangent: Tensor, truth: Tensor) -> Tensor | None:
    """An input that a layer's equations and inequalities cannot distinguish from the true one.

    Parameters
    ----------
    stage : Stage
        A convolution behind a ReLU and followed by a ReLU.
    cotangent : Tensor
        (D, Ho, Wo), derivative of the loss by the convolution's output.
    truth : Tensor
        (C, H, W), its true input, float64, not negative.

    Returns
    -------
    Tensor or None
        (C, H, W): farther away than `DISTANT`, and verified against every equation and inequality;
        None where no such input was found, as where there is only one.
    """
    known, silent, offset = _rows(stage, cotangent, truth)
    x = truth.flatten().numpy()
    scale = np.sqrt(np.mean(x**2))
    basis = _null_space(known)
    if not basis.shape[1]:
        return None
    slopes = np.vstack([basis, -silent @ basis])
    margins = np.r_[x, -(silent @ x + offset)].clip(min=0) / scale
    size, rng = np.linalg.norm(x), np.random.default_rng(0)
    for _ in range(OBJECTIVES):
        step = _farthest(rng.standard_normal(basis.shape[1]), slopes, margins)
        other = x + scale * (basis @ step)
        gaps = np.r_[np.abs(known @ (other - x)), -other, silent @ other + offset]
        if np.linalg.norm(other - x) >= DISTANT * size and gaps.max() <= ROUNDED * size:
            return torch.from_numpy(other).reshape(truth.shape)
    return None


def _farthest(objective: np.ndarray, slopes: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """The longer of two steps that minimise and maximise an objective; zero where both fail."""
    best = np.zeros(len(objective))
    for sign in (1, -1):
        for method, options in ATTEMPTS:
            found = linprog(
                sign * objective, -slopes, margins, bounds=(-REACH, REACH), method=method,
                options={**options, "time_limit": SECONDS},
            )  # fmt: skip
            if found.x is not None:
                break
        if found.x is not None and np.linalg.norm(found.x) > np.linalg.norm(best):
            best = found.x
    return best


def _rows(
    stage: Stage, cotangent: Tensor, truth: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of unit norm: those of equations (m, n), of silent outputs (s, n), and their biases."""
    g = stage.geometry
    each = torch.eye(g.unknowns, dtype=torch.float64).reshape(-1, *g.input)
    outputs = stage.convolve(each).flatten(1).T
    bias = torch.zeros(g.output[0]) if stage.bias is None else stage.bias
    bias = bias[:, None, None].expand(g.output).flatten().double()
    active = outputs @ truth.flatten() + bias > 0
    gradients = gradient_matrix(cotangent[None].double(), g)[0]
    gradients = torch.kron(torch.eye(g.input[0], dtype=torch.float64), gradients)
    known = torch.cat([gradients, outputs[active]])
    sizes, norms = known.norm(dim=1, keepdim=True), outputs[~active].norm(dim=1, keepdim=True)
    known = (known / sizes)[sizes[:, 0] > 0]
    silent = outputs[~active] / norms
    return known.numpy(), silent.numpy(), (bias[~active] / norms[:, 0]).numpy()


def _null_space(rows: np.ndarray) -> np.ndarray:
    """(n, r), orthonormal, by singular values of the rows themselves."""
    _, values, right = np.linalg.svd(rows)
    floor = 1e-12 * values.max(initial=0.0)
    return right[int((values > floor).sum()) :].T
