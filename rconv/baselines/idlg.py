"""iDLG, "Improved Deep Leakage from Gradients" (Zhao, Mopuri, Bilen 2020, arXiv 2001.02610).

The label is read off the last layer's gradient; only the image is optimised.
"""

from torch import Tensor, nn
from tqdm import tqdm

from rconv.baselines.labels import infer_labels
from rconv.baselines.matching import Replay, lbfgs, squared_norm
from rconv.baselines.result import BaselineResult, Run
from rconv.observe.observation import Gradients, Loss


def attack(
    model: nn.Module,
    gradients: Gradients,
    input_shape: tuple[int, int, int],
    *,
    loss: Loss | None = None,
    iterations: int = 300,
    seed: int = 0,
    lr: float = 1.0,
    progress: bool = False,
) -> BaselineResult:
    """Reconstruct images by matching gradients, with the label that the gradients tell.

    Minimises the sum of squared differences of the gradients over the image alone, from a
    Gaussian start, with the label of `infer_labels` (algorithm 1), by L-BFGS as in DLG: steps of
    length 1, 300 iterations (the published code). That code also stops where the objective is
    below 1e-6; here the iterations go on, as those of DLG do.

    Parameters
    ----------
    model : the shared model, twice differentiable and ending in a Linear; its device is used.
    gradients : parameter name → gradient, shaped as the parameter or with a leading axis N; the
        dtype is that of the computation, float32 in the original.
    input_shape : (C, H, W) of one image.
    loss : the clients' loss, given logits (1, K) and the label (1,), or logits (1,) where the
        model has one. Default: cross-entropy, or the logistic loss where it has one.
    iterations : of L-BFGS.
    seed : seeds the start, the same for each image.
    lr : length of a step.
    progress : show a progress bar.

    Returns
    -------
    BaselineResult; its images are not confined to any range of values.

    Raises
    ------
    ValueError : gradients that are not the model's, a bad input shape, no iterations, or a model
        without a Linear.
    """
    replay = Replay(model, gradients, input_shape, loss)
    labels = infer_labels(replay.model, replay.named)

    def invert(n: int, bar: tqdm) -> Run:
        observed = replay.observed[n]
        (image,) = replay.start((1, *replay.input_shape), seed=seed)

        def objective() -> Tensor:
            return replay.squared_distance(image, labels[n : n + 1], observed)

        history = lbfgs([image], objective, iterations, lr, bar)
        steps, nothing = len(history) - 1, min(history[0], squared_norm(observed))
        return Run(image.detach(), int(labels[n]), history, history[-1], steps, nothing)

    return replay.attack_each(invert, iterations, "iDLG", progress)
