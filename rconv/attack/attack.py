"""R-CONV: from a model and the gradients of one client step back to the image, layer by layer.

Prepared once per model, it receives what an attacker has, the model and gradients, and no more.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rconv.attack.attempt import attempt, within_range
from rconv.attack.averages import with_hidden_averages
from rconv.attack.batch_head import batch_size, permits_batches, required_for_batches
from rconv.attack.diagnostics import (
    with_batch_diagnostics,
    with_block_diagnostics,
    with_diagnostics,
)
from rconv.attack.discrepancy import compared_with_simulation, needs_simulation, second_look
from rconv.attack.entry_points import (
    EntryPoint,
    best_entry_point,
    entry_points,
    observed_entry_points,
)
from rconv.attack.plan import make_plan
from rconv.attack.report import Reconstruction
from rconv.model.batchnorm import without_statistics
from rconv.model.heads import ConvEntry
from rconv.model.wrappers import unwrapped
from rconv.observe.buffers import batch_statistics, running_statistics
from rconv.observe.check import check_gradients, check_value_range, declared_noise
from rconv.observe.noise import Noise, Observed
from rconv.observe.observation import Gradients

LOSSES = (None, "cross-entropy")

PATIENCE = 5.0
"""Seconds after which a terminal shows a progress bar unasked."""

FIRST, QUICK = 4, 1.0
"""Images of the first group where somebody waits for results, and seconds below which the next
group is twice as large."""


class Attack:
    """R-CONV on one model, prepared for any number of gradients.

    Parameters
    ----------
    model : Module
        Convolutions with activations, Flatten, a Linear and any head; as a Sequential, or as code.
        Average pooling, norms that depend on the data, BatchNorm in training mode and activations
        that are not monotone are solved for together with the convolution below them; so is max
        pooling, of maps of up to 4,096 pixels, with monotone activations before or behind it; below
        it, BatchNorm in training mode needs the buffers that the client returns.
        Or convolutions, of which the last has a learned position embedding added to its output;
        then anything, and a Linear. Or convolutions, the last of wide enough, and then anything.
        `DataParallel` and `torch.compile` are looked through. Of several tensors that it returns,
        `logits`, `out` or the first is taken, which alone the loss may depend on.
    input_shape : tuple of int
        (C, H, W) of one image.
    constraints : str or sequence of str
        The equations that each convolution's input is solved from: "gradient", "weight" or
        "hybrid" (both) for every layer, or a sequence of one per convolution. "paper" is weight
        constraints on the first layer and gradient constraints on the others. "auto" takes the
        cheapest of full rank, image by image, and hybrid where none has or noise would grow.
    value_range : tuple of float
        Of the pixels: chooses between twins, with "auto" bounds what is open.
    loss : str, optional
        "cross-entropy" if that is known to be the clients' loss. A head without a bias leaves the
        scale of the image to the loss: with one or two logits nothing else can confirm it.
    signs, prior, exact : bool
        With "auto": whether the range of a layer's input, silent outputs and the equations of the
        convolution below (`rconv.attack.layer_below`) close what is open;
        whether a prior chooses what still is (`rconv.attack.total_variation`, `fallback`); whether
        `interval` is exact, by linear programs that take minutes.

    Raises
    ------
    UnsupportedModelError
        A layer that the attack cannot pass, named.
    ValueError
        Unknown constraints or loss.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: nn.Module,
        input_shape: tuple[int, int, int],
        *,
        constraints: str | Sequence[str] = "auto",
        value_range: tuple[float, float] = (0.0, 1.0),
        loss: str | None = None,
        signs: bool = True,
        prior: bool = True,
        exact: bool = False,
    ):
        if loss not in LOSSES:
            raise ValueError(f"unknown loss {loss!r}: state 'cross-entropy', or nothing")
        model = unwrapped(model)
        points = entry_points(model, input_shape)
        self.network = points[0].network
        self.model = copy.deepcopy(without_statistics(model))
        self._running = running_statistics(model)
        head, self._exact = self.network.head, None  # all gradients are taken as float64
        if isinstance(head, ConvEntry) and head.embedding:  # only those that equations are made of
            self._exact = {f"{head.logits}.bias", *chain.from_iterable(self.network.parameters)}
        else:
            self.model.double()
        self.value_range, self.loss = check_value_range(value_range), loss
        options = {"signs": signs, "prior": signs and prior, "exact": exact}
        self.entry_points = [
            replace(point, plans=make_plan(point.network, constraints, self.value_range, **options))
            for point in points
        ]

    @torch.inference_mode(False)
    def __call__(
        self,
        gradients: Gradients | Sequence[Tensor],
        *,
        batch: int | None = 1,
        strict: bool = False,
        relative_std: float | None = None,
        noise: Noise | None = None,
        buffers: Gradients | None = None,
        progress: bool | None = None,
        on_result: Callable[[Reconstruction], None] | None = None,
    ) -> Reconstruction:
        """Reconstruct the images behind gradients.

        Parameters
        ----------
        gradients : dict of str to Tensor, or sequence of Tensor
            Parameter name → gradient, shaped as the parameter (one image) or with a leading axis
            N; or the gradients alone, in the order of the parameters. float64, float32, bfloat16
            or float16, on any device. Those of frozen parameters may be missing or None; the
            equations that they would give are left out.
        batch : int, optional
            B, the images of each client's step, whose gradient is their mean or their sum. None
            reads it from each client's gradient.
        strict : bool
            Raise where a layer does not determine its input, instead of reporting it.
        relative_std : float, optional
            Error of the gradients per root mean square of each parameter's; else their rounding.
        noise : Noise, optional
            What is known of their errors in more detail, in place of `relative_std`.
        buffers : dict of str to Tensor, optional
            The client's buffers after the step, or its whole `state_dict`: running statistics of
            BatchNorm in training mode, which reveal those of the batch.
        progress : bool, optional
            Show a progress bar over the clients, with the layer that is being solved; None shows
            it in a terminal, if the attack takes more than `PATIENCE` seconds.
        on_result : callable, optional
            Is called with each group of images as soon as it is finished, in their order.

        Returns
        -------
        Reconstruction
            Of N images; of a batch its B images in any order, client after client.

        Raises
        ------
        UnsupportedModelError
            With another batch than 1: a network whose first Linear is neither the last with a bias
            nor a hidden layer with a bias and ReLU or LeakyReLU. Missing gradients without which
            nothing determines a layer's input.
        ValueError
            Unknown names, wrong shapes, NaN or infinite entries, a relative_std that is
            negative or no number, a batch that is not below the number of classes where the
            first Linear is the last, buffers that are not those of the model's BatchNorms in
            training mode.
        ShortRankError
            With `strict`, the first layer of short rank and what would help.
        """
        gradients, rounding = check_gradients(self.model, gradients, self._exact, partial=True)
        if self._exact is not None:
            self._match_dtype(gradients)
        noise = declared_noise(self.model, rounding, relative_std, noise)
        points = observed_entry_points(self.entry_points, gradients)
        clients = Observed.of(gradients, noise)
        point, closed = best_entry_point(points, clients)
        if batch != 1:
            required_for_batches(point.network, batch)
        clients = self._with_statistics(point, clients, buffers)
        total, parts = len(clients), []
        hidden, delay = (None, PATIENCE) if progress is None else (not progress, 0)
        with tqdm(total=total, disable=hidden, delay=delay, unit="client") as bar:
            announce = None if bar.disable else partial(_announce, bar, delay)
            most = point.chunk if batch == 1 else 1
            for cut in _groups(total, most, watched=bool(progress) or on_result is not None):
                part = clients.select(cut)
                parts.append(self._reconstruct(point, part, batch, announce))
                if on_result is not None:
                    on_result(parts[-1])
                bar.update(len(part))
        result = Reconstruction.concatenate(parts)
        if any(closed):
            each = zip(closed, result.diagnostics, strict=True)
            result = replace(result, diagnostics=tuple(own or other for own, other in each))
        if strict:
            result.raise_if_short()
        return result

    def _with_statistics(
        self, point: EntryPoint, clients: Observed, buffers: Gradients | None
    ) -> Observed:
        """The clients with the statistics of their batches, where blocks make use of them."""
        statistics = batch_statistics(self._running, buffers, len(clients))
        if not point.network.has_blocks:
            return clients
        return replace(clients, gradients={**clients.gradients, **statistics})

    def _match_dtype(self, gradients: Gradients) -> None:
        """Bring the model to the dtype of the gradients that no equation is made of."""
        others = [g.dtype for name, g in gradients.items() if name not in self._exact]
        own = [p.dtype for p in self.model.parameters()]
        self.model.to(max(torch.float32, *others, *own, key=lambda dtype: dtype.itemsize))

    def _reconstruct(
        self,
        point: EntryPoint,
        clients: Observed,
        batch: int | None,
        announce: Callable[[str], None] | None,
    ) -> Reconstruction:
        """The answer, with another look at clients whose certificate reveals a noise."""
        head = point.network.head
        batch = batch or batch_size(head, clients)
        options = {"value_range": self.value_range, "batch": batch, "announce": announce}
        attempted = partial(attempt, self.model, point, **options)
        result = attempted(clients)
        # Where the rank is short, the image need not explain the gradients; that says no more.
        if batch > 1 and head.hidden is not None:  # its samples are certified one by one
            return result
        again = (result.full_rank & (result.revealed_noise > 0)).reshape(-1, batch).any(dim=1)
        if again.any():
            each = torch.arange(len(result.images)).reshape(-1, batch)
            parts = [result.select(own) for own in each]
            for i in again.nonzero()[:, 0].tolist():
                parts[i] = second_look(parts[i], clients.select([i]), attempted)
            result = Reconstruction.concatenate(parts)
        if batch == 1:
            result = self._simulated(result, head, clients, attempted)
            seen = self.model, clients, attempted, self.value_range
            result = with_hidden_averages(result, head, *seen)
        if any(plan.kind == "auto" and plan.prior for plan in point.plans):
            result = within_range(result, self.value_range)
        if batch > 1:
            inseparable = bool(result.diagnostics[0])
            if inseparable:
                return result
            result = with_batch_diagnostics(result, self.value_range)
            return with_block_diagnostics(result, point.network, clients.noise)
        own = point.network, self.model, clients.gradients, self.loss, self.value_range
        result = with_diagnostics(result, *own, batches=permits_batches(point.network))
        return with_block_diagnostics(result, point.network, clients.noise)

    def _simulated(
        self,
        result: Reconstruction,
        head: object,
        clients: Observed,
        attempted: Callable[..., Reconstruction],
    ) -> Reconstruction:
        """The result, its images compared with simulated clients where residuals ask for it."""
        where = needs_simulation(result, head).nonzero()[:, 0]
        if not len(where):
            return result
        some = result.select(where), head, self.model, clients.select(where)
        found = compared_with_simulation(*some, attempted)
        changed = {}
        for name in ("revealed_noise", "systematic_error"):
            changed[name] = getattr(result, name).clone()
            changed[name][where] = getattr(found, name)
        return replace(result, **changed)


def _announce(bar: tqdm, delay: float, name: str) -> None:
    """Name the layer beside the bar, which is not shown before `delay` seconds."""
    bar.set_postfix_str(name, refresh=bar.format_dict["elapsed"] >= delay)


def _groups(total: int, most: int, *, watched: bool) -> Iterator[slice]:
    """Images to attack together: as many as memory holds, or groups that take about a second."""
    start, size = 0, min(FIRST, most) if watched else most
    while start < total:
        begun = time.monotonic()
        yield slice(start, start + size)
        start += size
        if watched and time.monotonic() - begun < QUICK:
            size = min(2 * size, most)
