"""Convolutions that a model may be entered by from their own gradients, from the top down.

Nothing above such a convolution is read. It is run, to see which derivatives by the convolution's
output it can give at all.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from rconv.model.agreement import refuse_other_values
from rconv.model.batchnorm import without_statistics
from rconv.model.blocks import Fused
from rconv.model.embedding import network_below
from rconv.model.geometry import Stage
from rconv.model.graph import first_line
from rconv.model.heads import ConvEntry
from rconv.model.nodes import SUM, Network, UnsupportedModelError
from rconv.model.operations import Operation, leading_to, logits_of
from rconv.model.read import refuse_mixed
from rconv.model.wrappers import InFloat64, shapes_alone, shared_copy, tensor_of


def entry_networks(
    model: nn.Module, steps: list[Operation], shape: tuple[int, int, int], reason: str, most: int
) -> tuple[list[Network], list[UnsupportedModelError]]:
    """Networks that end at a convolution, or at a sum that its output is a term of.

    Shapes alone rule out most convolutions; the model is run for those that are left. Steps and
    shape are those of `rconv.model.read.read_steps`; `reason` says why that refuses them, `most` is
    the largest rank of a convolution's gradient that its input can be solved from. Returns the
    networks, the topmost convolution first, and the reasons against other convolutions.
    """
    joined = [step for step in steps if type(step.what) is Fused]
    if joined and not any(map(_convolution, joined)):
        return [], []
    client = without_statistics(model)
    shapes, result = _shapes(client, shape)
    entry = ConvEntry("", None, _logits(client, steps, result), reason)
    found: list[Network] = []
    refusals: list[UnsupportedModelError] = []
    made: dict[tuple[int, ...], Stage] = {}
    for i in sorted(leading_to(steps, len(steps) - 1), reverse=True):
        convolution = _convolution(steps[i])
        if convolution is None:
            continue
        try:
            if convolution.groups > 1:
                raise UnsupportedModelError(f"{steps[i].name}: its groups have a gradient each")
            _refuse_few_rows(steps[i].name, convolution, shapes[steps[i].name], most)
            found.append(_entered(client, steps, i, shape, entry, found, made))
        except UnsupportedModelError as error:
            refusals.append(error)
    if not found:
        return found, refusals
    try:
        reached = cotangent_subspace(client, [network.head.name for network in found], shape)
    except Exception as error:  # whatever the model's own code raises
        raise UnsupportedModelError(f"cannot be run on one image: {first_line(error)}") from None
    heads = (replace(network.head, subspace=reached[network.head.name]) for network in found)
    return [replace(n, head=head) for n, head in zip(found, heads, strict=True)], refusals


def _entered(
    model: nn.Module,
    steps: list[Operation],
    i: int,
    shape: tuple[int, int, int],
    entry: ConvEntry,
    confirmed: Sequence[Network],
    made: dict[tuple[int, ...], Stage],
) -> Network:
    """The network that ends at a convolution, or at a sum, and that computes what was read."""
    reasons = []
    for end in _ends(steps, i):
        try:
            own = replace(entry, name=steps[i].name)
            network = network_below(steps, shape, own, end, made)
            refuse_mixed(network)
            names = {stage.name for stage in network.stages}
            if not any(names <= {stage.name for stage in other.stages} for other in confirmed):
                refuse_other_values(model, network)
        except UnsupportedModelError as error:
            reasons.append(error)
            continue
        return network
    raise reasons[0]


def _shapes(
    model: nn.Module, shape: tuple[int, int, int]
) -> tuple[dict[str, torch.Size], torch.Size]:
    """Of each convolution's input, and of the result, for two images."""
    found: dict[str, torch.Size] = {}

    def look(name: str, args: tuple[torch.Tensor]) -> None:
        found[name] = args[0].shape

    try:
        with shapes_alone(model, 2, shape) as (own, images):
            for name, module in own.named_modules():
                if type(module) is nn.Conv2d:
                    module.register_forward_pre_hook(lambda _, args, n=name: look(n, args))
            return found, tensor_of(own(images)).shape
    except Exception as error:  # whatever the model's own code raises
        raise UnsupportedModelError(f"has no fixed shapes: {first_line(error)}") from None


def _convolution(step: Operation) -> nn.Conv2d | None:
    """The convolution of a step that the model may be entered by, alone or below a norm."""
    if type(step.what) is nn.Conv2d:
        return step.what
    if type(step.what) is Fused and [type(layer) for layer in step.what][1:] == [nn.BatchNorm2d]:
        convolution, norm = step.what
        return convolution if norm.affine and bool((norm.weight != 0).all()) else None
    return None


def _refuse_few_rows(name: str, layer: nn.Conv2d, shape: torch.Size, most: int) -> None:
    """Refuse a convolution whose gradient cannot have the rank that its input needs.

    The rank is that of the filters at most, and every unit of it gives one equation for each
    kernel offset in the pixels of a channel.
    """
    kernel, filters = layer.kernel_size, layer.out_channels
    rank, pixels = min(filters, most), shape[-2] * shape[-1]
    rows = rank * kernel[0] * kernel[-1]
    if rows < pixels:
        raise UnsupportedModelError(
            f"{name}: its {filters} filters give its gradient {rows} usable rows for the "
            f"{pixels} pixels of a channel of its input"
        )


def _logits(model: nn.Module, steps: list[Operation], result: torch.Size) -> str | None:
    """Name of the Linear that the model ends in, if its bias's gradient is that of the logits."""
    name = logits_of(steps)
    if name is None or model.get_submodule(name).bias is None or len(result) != 2:
        return None
    return name


def _ends(steps: list[Operation], convolution: int) -> list[int]:
    """Steps whose derivative is that of the convolution's output, but for a BatchNorm's scale.

    First itself, or the BatchNorm in evaluation that alone takes it; then sums of it.
    """
    last, ends = convolution, [convolution]
    while True:
        takers = [i for i, step in enumerate(steps) if last in step.inputs]
        if len(takers) != 1:
            return ends
        (last,) = takers
        what = steps[last].what
        if what == SUM:
            ends.append(last)
        elif type(what) is nn.BatchNorm2d and not what.training and len(ends) == 1:
            ends = [last]
        else:
            return ends


SCALES = (0.3, 1.0, 3.0)
"""Root mean squares of the maps, so that activations that saturate are met on either side."""

ENOUGH = 4
"""Derivatives that are drawn per position, at least: a position that is passed on to the loss one
time in three is missed by all of 16 filters and 12 draws with a chance of 1e-34."""

PASSES = 12
"""Passes, at least."""

NONE = 1e-9
"""Share of the largest singular value below which a combination is never reached."""


def cotangent_subspace(
    model: nn.Module, names: Sequence[str], images: tuple[int, int, int]
) -> dict[str, Tensor]:
    """Combinations of positions that ∂ℓ/∂O of convolutions can be made of.

    The model comes from `without_statistics`; one image has the shape (C, H, W). Returns name → Q,
    (L, m), orthonormal columns; every filter's row of Ō, (D, L), is a combination of them. No
    columns where nothing of the output reaches the result; not all columns where there are more
    than filters.
    """
    model, generator = shared_copy(model), torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    wanted, drawn = list(names), 0
    while wanted:
        scale = SCALES[drawn % len(SCALES)]
        for name, rows in _derivatives(model, wanted, images, scale, generator).items():
            found[name] = torch.cat([found[name], rows]) if name in found else rows
        drawn += 1
        if drawn >= PASSES:
            wanted = [
                name
                for name in wanted
                if len(rows := found[name]) < ENOUGH * rows.shape[1]
                and _basis(rows).shape[1] <= len(rows) // drawn  # the filters
            ]
    return {name: _basis(rows) for name, rows in found.items()}


def _basis(rows: Tensor) -> Tensor:
    _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis[sizes > NONE * sizes[0]].mT.contiguous()


def _derivatives(
    model: nn.Module,
    names: Sequence[str],
    images: tuple[int, int, int],
    scale: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Name → (D, L), of a random result by random outputs of the convolutions; of norm 1."""
    outputs: dict[str, Tensor] = {}

    def random(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)

    def replaced(name: str, output: Tensor) -> Tensor:
        # Another value, and the same derivative.
        outputs[name] = output + (scale * random(output) - output).detach()
        return outputs[name]

    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, o, n=name: replaced(n, o))
        for name in names
    ]
    device = next(model.parameters(), torch.empty(0)).device
    image = torch.rand((1, *images), generator=generator, dtype=torch.float64).to(device)
    try:
        with torch.enable_grad(), InFloat64():
            result = tensor_of(model(image.requires_grad_()))
            wanted = list(outputs.values())
            found = torch.autograd.grad(result, wanted, random(result), materialize_grads=True)
    finally:
        for handle in handles:
            handle.remove()
    rows = (each[0].flatten(1) for each in found)
    each = zip(outputs, rows, strict=True)
    return {name: row / row.norm().clamp(min=1e-300) for name, row in each}
