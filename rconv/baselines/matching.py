"""Gradient matching: the client's step replayed on a dummy image, and compared.

What DLG, iDLG and Inverting Gradients share. They never look inside the model: they only ask
for the gradients that a dummy image would have given, and move it until these are the observed
ones.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rconv.baselines.result import BaselineResult, Run, collect
from rconv.observe.check import check_gradients
from rconv.observe.observation import Gradients, Loss, client_losses


class Replay:
    """A client's step, to be repeated on dummy images.

    Parameters
    ----------
    model : Module
        The shared model, any twice differentiable module; it is copied.
    gradients : mapping of str to Tensor
        Parameter name → gradient, shaped as the parameter or with a leading axis N.
    input_shape : tuple of int
        (C, H, W) of one image.
    loss : callable or None
        The client's loss, given logits (1, K) and a target, or logits (1,) where the model has
        one logit. By default cross-entropy, or the logistic loss where it has one.

    Attributes
    ----------
    named : dict of str to Tensor
        The gradients by name, `(N, *parameter shape)`, in the coarsest dtype that occurs among
        them, and at least float32.
    observed : list of tuple of Tensor
        The same as N tuples, the gradients of one image each, in the order of the parameters.
    classes : int
        Logits K of the model.

    Raises
    ------
    ValueError
        If the gradients are not the model's, or the input shape is not (C, H, W).
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
        """Sum of ‖own - observed‖² over the parameters (DLG)."""
        own = self.gradients(image, target)
        return sum((a - b).square().sum() for a, b in zip(own, observed, strict=True))

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
        return collect(runs)


def squared_norm(gradients: Sequence[Tensor]) -> float:
    """‖g‖², the squared distance from an image whose gradients are zero."""
    return float(sum(g.double().square().sum() for g in gradients))
