"""What the baselines share: their results, the label, and the client's step on a dummy image.

Attacks by gradient matching never look inside the model: they only ask for the gradients that a
dummy image would have given, and move it until these are the observed ones.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rconv.attack.label_inference import inferred_labels
from rconv.observe.check import check_gradients
from rconv.observe.observation import Gradients, Loss, client_losses

RUNAWAY = 1e3
"""Pixels and the attacks' starts are of order one; no image has a pixel of this size."""

Watch = Callable[[Tensor, float], None]
"""watch(image (1, C, H, W), objective), called after each iteration of an optimisation."""


@dataclass(frozen=True)
class BaselineResult:
    """N reconstructed images and how the attack on each of them went.

    Parameters
    ----------
    images : Tensor
        Axes (N, C, H, W), in the dtype of the gradients, on the model's device. Not clipped,
        unless the attack itself projects onto the value range; not a number where it broke down.
    labels : Tensor, int64
        Axis (N,): class of each image as known to the attack or found by it.
    history : tuple of Tensor
        N tensors (T,), float64: what the attack minimises, from its start to its end. For R-GAP,
        which minimises nothing, the relative residual of each layer from the head down.
    objective : Tensor, float64
        Axis (N,): distance between the gradients of `images` and the observed ones, as the attack
        measures it: the value that `history` ends with, or its best one.
    iterations : Tensor, int64
        Axis (N,): steps taken, by the start that was kept.
    diverged : Tensor, bool
        Axis (N,): the objective is not a number, or no better than at the start, or no better
        than that of gradients which are zero or orthogonal to the observed ones; or the image has
        run away to values beyond `RUNAWAY`, where saturated activations no longer pull it back.
    """

    images: Tensor
    labels: Tensor
    history: tuple[Tensor, ...]
    objective: Tensor
    iterations: Tensor
    diverged: Tensor


@dataclass(frozen=True)
class Run:
    """The attack on one image, (1, C, H, W), and the class that it found.

    `objective` is that of the image, `history` that from the start to the end of so many
    `iterations`. `worthless` is the objective of an image that explains nothing of the gradients,
    or that of the start where it is smaller.
    """

    image: Tensor
    label: int
    history: list[float]
    objective: float
    iterations: int
    worthless: float

    @property
    def diverged(self) -> bool:
        """Whether the image explains nothing, or is none."""
        within = bool(self.image.abs().amax() < RUNAWAY)  # False where it is not a number
        return not (within and self.objective < self.worthless)


def _collect(runs: list[Run]) -> BaselineResult:
    """The result of N runs, one per image."""
    images = torch.cat([run.image for run in runs])

    def column(values: list, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=images.device)

    return BaselineResult(
        images,
        column([run.label for run in runs], torch.int64),
        tuple(torch.tensor(run.history, dtype=torch.float64) for run in runs),
        column([run.objective for run in runs], torch.float64),
        column([run.iterations for run in runs], torch.int64),
        column([run.diverged for run in runs], torch.bool),
    )


class Replay:
    """A client's step, to be repeated on dummy images; all that depends on one model and its
    gradients.

    Parameters
    ----------
    model : Module
        The shared model, any twice differentiable module; it is copied.
    loss : callable or None
        The client's loss, given logits (1, K) and a target, or logits (1,) where the model has one
        logit. By default cross-entropy, or the logistic loss where it has one.

    Attributes
    ----------
    named : dict of str to Tensor
        The gradients by name, `(N, *parameter shape)`, in the coarsest dtype that occurs among
        them, and at least float32.
    observed : list of tuple of Tensor
        The same as N tuples, the gradients of one image each, in the order of the parameters.
    classes : int
        Logits K of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        gradients: Gradients,
        input_shape: tuple[int, int, int],
        loss: Loss | None = None,
    ):
        checked, _ = check_gradients(model, gradients)
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise ValueError(f"the input shape must be (C, H, W), got {tuple(input_shape)}")
        coarsest = min((gradients[n].dtype for n in checked), key=lambda t: torch.finfo(t).bits)
        self.dtype = torch.promote_types(coarsest, torch.float32)
        self.model = copy.deepcopy(model).to(self.dtype).requires_grad_(True)
        self.input_shape = tuple(input_shape)
        self.device = next(self.model.parameters()).device
        self.named = {name: g.to(self.dtype) for name, g in checked.items()}
        self.observed = list(zip(*self.named.values(), strict=True))
        self.classes = self._classes()
        self._loss = loss

    def _classes(self) -> int:
        """Logits K of the model."""
        with torch.no_grad():
            logits = self.model(torch.zeros(1, *self.input_shape, **self.like))
        if logits.dim() != 2 or len(logits) != 1:
            raise ValueError(f"the model must give logits (1, K), not shape {tuple(logits.shape)}")
        return logits.shape[1]

    @property
    def like(self) -> dict:
        """dtype and device of everything that is computed."""
        return {"dtype": self.dtype, "device": self.device}

    def start(self, *shapes: tuple[int, ...], seed: int) -> list[Tensor]:
        """Standard Gaussian tensors to optimise, the same for every dtype and device."""
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        return [tensor.to(**self.like).requires_grad_(True) for tensor in drawn]

    def gradients(self, image: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the loss of one image (1, C, H, W), themselves differentiable."""
        loss = client_losses(self.model(image), target, self._loss)
        return torch.autograd.grad(loss.sum(), tuple(self.model.parameters()), create_graph=True)

    def squared_distance(self, image: Tensor, target: Tensor, observed: Sequence[Tensor]) -> Tensor:
        """Sum of ‖recomputed - observed‖² over the parameters (DLG)."""
        recomputed = self.gradients(image, target)
        return sum((a - b).square().sum() for a, b in zip(recomputed, observed, strict=True))

    def attack_each(
        self, invert: Callable[[int, tqdm], Run], iterations: int, title: str, progress: bool
    ) -> BaselineResult:
        """One image after the other: invert(n, bar) → Run, with a bar over the iterations."""
        if iterations < 1:
            raise ValueError(f"the number of iterations must be positive, got {iterations}")
        runs = []
        for n in range(len(self.observed)):
            name = f"{title}, image {n + 1} of {len(self.observed)}"
            with tqdm(total=iterations, disable=not progress, desc=name) as bar:
                runs.append(invert(n, bar))
        return _collect(runs)


def squared_norm(gradients: Sequence[Tensor]) -> float:
    """‖g‖², the squared distance from an image whose gradients are zero."""
    return float(sum(g.double().square().sum() for g in gradients))


def infer_labels(model: nn.Module, gradients: Gradients) -> Tensor:
    """Class of each image, from the gradients of the last Linear.

    For cross-entropy the derivative by the logits, softmax minus one-hot, is negative at the label
    and nowhere else. The bias' gradient is that derivative. Without a bias, each row of the
    weight's gradient is the layer's input times it, so that the label's row is the one that has no
    positive product with any other (Zhao, Mopuri, Bilen 2020, arXiv 2001.02610). One or two logits
    leave the input's sign open there, and it is taken to be positive in sum, as behind a ReLU or a
    Sigmoid. The gradients map names to `(N, *parameter shape)`. Returns labels (N,), int64; with a
    single logit, 0 or 1. The model's last Linear must be its last layer.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ValueError("the model has no Linear layer to read the label from: give the labels")
    prefix = f"{linears[-1]}." if linears[-1] else ""
    logit_gradient = gradients.get(f"{prefix}bias")
    if logit_gradient is None:
        logit_gradient = _up_to_size(gradients[f"{prefix}weight"])
    return inferred_labels(logit_gradient)


def _up_to_size(weight_gradient: Tensor) -> Tensor:
    """(N, K, n) → (N, K), smallest at the label."""
    k = weight_gradient.shape[1]
    if k <= 2:
        return weight_gradient.sum(dim=2)
    products = weight_gradient @ weight_gradient.mT
    others = ~torch.eye(k, dtype=torch.bool, device=products.device)
    return torch.where(others, products, -torch.inf).amax(dim=2)
