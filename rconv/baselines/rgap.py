"""R-GAP, "Recursive Gradient Attack on Privacy" (Zhu, Blaschko, ICLR 2021, arXiv 2010.07733).

From the loss downwards, each layer's input is solved from its weight constraints and its
gradient constraints together. The output of a layer is the activation's INVERSE of what the layer
above took in, so that every activation must be invertible.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rconv.attack.backward import BackwardState
from rconv.attack.estimate import Cotangent, Estimate
from rconv.attack.head import HeadInput, head_input
from rconv.attack.map_problem import ConvData
from rconv.attack.plan import make_plan
from rconv.baselines.matching import BaselineResult, Replay, Run, squared_norm
from rconv.equations.conv_system import conv_system
from rconv.linalg.dense import MAX_UNKNOWNS, solve_dense
from rconv.linalg.solution import Solution
from rconv.model.geometry import Stage
from rconv.model.nodes import Network, UnsupportedModelError
from rconv.model.read import read
from rconv.observe.observation import Gradients, Loss


@dataclass(frozen=True)
class RecursiveResult(BaselineResult):
    """A `BaselineResult` with what R-GAP says of each convolution, from the last `layers` to the
    first.

    `rank` (N, layer) is the numerical rank of the equations, 0 where the attack broke down above;
    `unknowns` (layer,) are the entries of each input; `condition` (N, layer) is the ratio of the
    extreme singular values that count.
    """

    layers: tuple[str, ...]
    rank: Tensor
    unknowns: Tensor
    condition: Tensor


def attack(
    model: nn.Sequential,
    gradients: Gradients,
    input_shape: tuple[int, int, int],
    *,
    loss: Loss | None = None,
    labels: Tensor | None = None,
    progress: bool = False,
) -> RecursiveResult:
    """Reconstruct images layer by layer, by joint weight and gradient constraints.

    The input of the Linear follows from its gradients; without a bias its size follows from the
    loss. For a single logit u with the label ±1, ⟨∂ℓ/∂w, w⟩ = -yu / (1 + exp(yu)) is solved for
    yu, and where it has two solutions the one nearer to 0 is taken, as the published code's
    search from 0 finds it. Everything is computed in float64, where the original has float32.

    Parameters
    ----------
    loss : callable or None
        The clients' loss, used to compare the gradients of the result with the observed ones.
        Default: cross-entropy, or the logistic loss where the model has one logit; without a bias
        in the Linear, the attack itself assumes these.
    labels : Tensor or None
        Axis (N,): labels, 0 or 1, of a single logit without a bias; the original takes them as
        known. By default the one whose image explains the gradients better; for an odd network
        (Tanh, no biases) both do, the image and its negative.

    Returns
    -------
    RecursiveResult
        Its objective is that of DLG, its images have the dtype of the gradients. An output beyond
        the range of its activation has no inverse: its image is not a number, and has `diverged`.
    """
    network = _supported(read(model, input_shape).required_chain("R-GAP", norms=False))
    replay = Replay(model, gradients, input_shape, loss)
    head = head_input(network.head, {name: g.double() for name, g in replay.named.items()})
    if labels is not None and labels.shape != (len(replay.observed),):
        raise ValueError(f"{len(replay.observed)} images need as many labels, got {labels.shape}")
    solutions: list[list[Solution]] = []

    def invert(n: int, bar: tqdm) -> Run:
        label = None if labels is None else int(labels[n])
        runs = [_run(network, head, i, replay, n) for i in _candidates(head, n, label)]
        best, layers = min(runs, key=lambda run: (run[0].diverged, run[0].objective))
        solutions.append(layers)
        bar.update(len(network.stages))
        return best

    result = replay.attack_each(invert, max(1, len(network.stages)), "R-GAP", progress)
    return _with_layers(result, network, solutions)


def _supported(network: Network) -> Network:
    """Refuse what R-GAP cannot pass, and what would not fit into memory."""
    for stage in network.stages:
        if stage.geometry.unknowns > MAX_UNKNOWNS:
            raise UnsupportedModelError(
                f"{stage.name}: {stage.geometry.unknowns} unknowns in one dense system are more "
                f"than the {MAX_UNKNOWNS} that R-GAP is allowed here"
            )
        if not stage.activation.invertible:
            raise UnsupportedModelError(
                f"{stage.name}: R-GAP needs the inverse of the activation behind it, and "
                f"{stage.activation.name} has none"
            )
    return network


def _candidates(head: HeadInput, n: int, label: int | None) -> list[int]:
    """Indices of the head's inputs to try for image n."""
    belonging = (head.image == n).nonzero()[:, 0]
    if label is None or len(belonging) == 1 or head.cotangent.shape[1] > 1:
        return belonging.tolist()
    right = belonging[(head.cotangent[belonging, 0] < 0) == (label > 0)]
    return [int(right[head.value[right].norm(dim=1).argmin()])]


def _run(
    network: Network, head: HeadInput, candidate: int, replay: Replay, n: int
) -> tuple[Run, list[Solution]]:
    """The recursion from one candidate for the head's input, and how well it explains image n."""
    value, cotangent = head.value[candidate], head.cotangent[candidate]
    label = int(cotangent.argmin() if len(cotangent) > 1 else cotangent[0] < 0)
    solutions, last = [], network.nodes[-1].shape
    end = _exact(value.reshape(1, *last))
    back = Cotangent((cotangent @ network.head.weight).reshape(1, *last), value.new_zeros(1))
    state = BackwardState(network, make_plan(network, "hybrid"), end, back, {})

    def data(stage: Stage) -> dict[str, Tensor]:
        gradient = replay.named[f"{stage.name}.weight"][n : n + 1].double()
        return {"gradient": gradient, "relative_std": value.new_zeros(1)}

    for node in state.unsolved():
        (layer,) = state.problem(node, data).layers
        if not layer.output.all:  # beyond the range of the activation
            state.maps[0] = _exact(value.new_full((1, *replay.input_shape), torch.nan))
            break
        solutions.append(_solve(layer))
        state.maps[node] = _exact(solutions[-1].value.reshape(1, *network.nodes[node].shape))
    image = state.maps[0].value.to(replay.dtype)
    observed = replay.observed[n]
    target = torch.tensor([label], device=replay.device)
    objective = float(replay.squared_distance(image, target, observed).detach())
    history = [float(head.residual[candidate]), *(float(s.residual[0]) for s in solutions)]
    run = Run(image, label, history, objective, len(solutions), squared_norm(observed))
    return run, solutions


def _solve(layer: ConvData) -> Solution:
    """Least squares over all rows of one convolution, as they come: none has a weight."""
    known = layer.cotangent.value, layer.gradient[0], layer.offset_free.value
    return solve_dense(conv_system(layer.stage, *known), tolerance=0.0)


def _exact(value: Tensor) -> Estimate:
    """A map without an error: R-GAP knows none."""
    return Estimate.whole(value, value.new_zeros(value.shape[:2]))


def _with_layers(
    result: BaselineResult, network: Network, solutions: list[list[Solution]]
) -> RecursiveResult:
    """The result with what the solver says of each layer."""
    stages = network.stages[::-1]
    rank = torch.zeros(len(solutions), len(stages), dtype=torch.int64)
    condition = torch.full(rank.shape, torch.inf, dtype=torch.float64)
    for n, layers in enumerate(solutions):
        for i, solution in enumerate(layers):
            rank[n, i], condition[n, i] = solution.rank[0], solution.condition[0]
    return RecursiveResult(
        **vars(result),
        layers=tuple(stage.name for stage in stages),
        rank=rank,
        unknowns=torch.tensor([stage.geometry.unknowns for stage in stages]),
        condition=condition,
    )


@dataclass(frozen=True)
class Count:
    """What R-GAP counts for one layer.

    `unknowns` are the entries of its input, `|x|`; `gradient` its gradient constraints, `|∇W|`, one
    per weight; `weight` its weight constraints, `|Z|`, one per output. `virtual` are `|V|`: a layer
    below with more outputs than inputs cannot reach every output, and the difference constrains all
    that lies above.
    """

    name: str
    unknowns: int
    gradient: int
    weight: int
    virtual: int

    @property
    def index(self) -> int:
        """RA-i = `|x|` - `|∇W|` - `|Z|` - `|V|`: negative or zero where the count suffices."""
        return self.unknowns - self.gradient - self.weight - self.virtual


def rank_analysis(model: nn.Sequential, input_shape: tuple[int, int, int]) -> tuple[Count, ...]:
    """Count the constraints of every layer as R-GAP's rank analysis does.

    The network counts as insecure where no layer's index is positive. Counting is necessary and not
    sufficient: equations that say the same thing twice count twice (the border, strides). Returns
    one count per convolution, from the image upwards, and one for the first Linear. Raises
    UnsupportedModelError for a layer that R-GAP cannot pass.

    References
    ----------
    Zhu and Blaschko, ICLR 2021, arXiv 2010.07733, "Rank analysis".
    """
    network = read(model, input_shape).required_chain("rank analysis", norms=False)
    counts, virtual = [], 0
    for stage in network.stages:
        g = stage.geometry
        counts.append(Count(stage.name, g.unknowns, g.gradient_rows, g.weight_rows, virtual))
        virtual += max(g.weight_rows - g.unknowns, 0)
    outputs, inputs = network.head.weight.shape
    counts.append(Count(network.head.name, inputs, outputs * inputs, outputs, virtual))
    return tuple(counts)
