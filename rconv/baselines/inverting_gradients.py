"""Inverting Gradients (Geiping, Bauermeister, Dröge, Moeller, NeurIPS 2020, arXiv 2003.14053).

The direction of the gradients is matched, not their size, and the image is kept smooth.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rconv.baselines.matching import BaselineResult, Replay, Run, Watch, infer_labels
from rconv.observe.observation import Gradients, Loss

DECAY = (3 / 8, 5 / 8, 7 / 8)
"""Parts of the iterations after which the step is cut to a tenth."""


def attack(
    model: nn.Module,
    gradients: Gradients,
    input_shape: tuple[int, int, int],
    *,
    loss: Loss | None = None,
    labels: Tensor | None = None,
    iterations: int = 24_000,
    seed: int = 0,
    lr: float = 0.1,
    total_variation: float = 0.2,
    value_range: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
    watch: Watch | None = None,
    progress: bool = False,
) -> BaselineResult:
    """Reconstruct images by the cosine distance of gradients and a total variation prior.

    Minimises 1 - cos(recomputed, observed) + `total_variation` · TV (equation 4) from a Gaussian
    start by Adam on the sign of the gradient, with the step cut to a tenth after 3/8, 5/8 and 7/8
    of the iterations and the image projected onto the value range after each (section 4 and
    supplement). Returns the iterate of the smallest objective. The defaults are those of the
    authors' maintained framework, breaching; the code of the paper has 4,800 iterations and a total
    variation of 0.1, on images normalised by the mean and deviation of the dataset. `seed` is that
    of the start, the same for each image.

    Parameters
    ----------
    loss : callable or None
        The clients' loss, given logits (1, K) and the label (1,), or logits (1,) where the model
        has one. Default: cross-entropy, or the logistic loss where it has one.
    labels : Tensor or None
        Axis (N,): the labels where they are known, as the paper assumes; by default those of
        `infer_labels`.
    value_range : tuple
        Smallest and largest pixel, numbers or tensors that broadcast to (C, H, W).
    """
    replay = Replay(model, gradients, input_shape, loss)
    if labels is None:
        labels = infer_labels(replay.model, replay.named)
    if labels.shape != (len(replay.observed),):
        raise ValueError(f"{len(replay.observed)} images need as many labels, got {labels.shape}")
    labels = labels.to(replay.device)
    box = [torch.as_tensor(bound).to(**replay.like) for bound in value_range]

    def invert(n: int, bar: tqdm) -> Run:
        (image,) = replay.start((1, *replay.input_shape), seed=seed)
        observed = torch.cat([g.flatten() for g in replay.observed[n]])

        def objective() -> Tensor:
            recomputed = replay.gradients(image, labels[n : n + 1])
            distance = cosine_distance(torch.cat([g.flatten() for g in recomputed]), observed)
            return distance + total_variation * anisotropic_variation(image)

        best, lowest, history = _signed_adam(image, objective, iterations, lr, box, watch, bar)
        steps, nothing = len(history) - 1, min(history[0], 1.0)
        return Run(best, int(labels[n]), history, lowest, steps, nothing)

    return replay.attack_each(invert, iterations, "Inverting Gradients", progress)


def cosine_distance(recomputed: Tensor, observed: Tensor) -> Tensor:
    """1 - cos of the angle between two vectors, from 0 to 2."""
    return 1 - (recomputed @ observed) / (recomputed.norm() * observed.norm())


def anisotropic_variation(image: Tensor) -> Tensor:
    """Mean difference of neighbouring rows plus that of neighbouring columns, (…, H, W)."""
    rows = image[..., 1:, :] - image[..., :-1, :]
    columns = image[..., 1:] - image[..., :-1]
    return rows.abs().mean() + columns.abs().mean()


def _signed_adam(
    image: Tensor,
    objective: Callable[[], Tensor],
    iterations: int,
    lr: float,
    box: Sequence[Tensor],
    watch: Watch | None,
    bar: tqdm,
) -> tuple[Tensor, float, list[float]]:
    """Best iterate, its objective, and that of all; stops where one is not a finite number."""
    optimizer = torch.optim.Adam([image], lr=lr)
    milestones = [int(part * iterations) for part in DECAY]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    best, lowest, history = image.detach().clone(), math.inf, []
    for step in range(iterations + 1):
        optimizer.zero_grad()
        value = objective()
        history.append(float(value.detach()))
        if history[-1] < lowest:
            best, lowest = image.detach().clone(), history[-1]
        if watch is not None:
            watch(image.detach(), history[-1])
        if step == iterations or not math.isfinite(history[-1]):
            break
        value.backward(inputs=[image])
        image.grad.sign_()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            image.copy_(image.clamp(*box))
        bar.update()
    return best, lowest, history
