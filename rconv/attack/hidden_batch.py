"""Where a batch is entered at a hidden layer: what each of its samples has there."""

from collections.abc import Callable

import torch
from torch import Tensor

from rconv.attack.batch_head import InseparableError, head_gradient
from rconv.attack.estimate import Cotangent, Estimate, Separated, Start
from rconv.attack.head import head_report
from rconv.attack.hidden_layer import disaggregate_hidden
from rconv.attack.hidden_state import Factors, HiddenEquations, Peeled
from rconv.linalg.solution import root_mean_square
from rconv.model.heads import Head
from rconv.observe.noise import Observed, largest_entry


def from_hidden(
    head: Head,
    bias: Tensor,
    clients: Observed,
    batch: int,
    shape: tuple[int, int, int],
    announce: Callable[[str], None] | None = None,
) -> Start:
    """Start from the averaged gradient of a hidden layer.

    Takes what `rconv.attack.batch_head.from_batch` takes, for a head with `hidden`.

    Returns
    -------
    Start
        Of the samples that are found, which may be fewer than B. Where they do not explain the
        whole gradient, the other parameters' gradients are sums over unknown samples too: they are
        left out, and each sample's weight rows are all that the layers below have.
    """
    equations = hidden_equations(head, bias, clients)
    rank = equations.factors.rank
    if rank > batch:
        raise InseparableError(
            f"the gradient of {head.name} has rank {rank}, so there are more samples than {batch}, "
            "or undeclared noise"
        )

    def progress(count: int, total: int) -> None:
        if announce is not None:
            announce(f"{count} of {total} samples")

    found = disaggregate_hidden(equations, batch, on_found=progress)
    if not len(found.labels):
        raise InseparableError(
            f"no unit of {head.name} fires, or is silent, for one sample alone, and no pattern of "
            "units fits: a wider layer or fewer samples would help"
        )
    if not found.complete:
        clients = clients.only(head.parameters)
    return _at_the_layer(head, equations, found, clients, shape)


def _at_the_layer(
    head: Head,
    equations: HiddenEquations,
    found: Peeled,
    clients: Observed,
    shape: tuple[int, int, int],
) -> Start:
    """Inputs of the layer and cotangents, a sample that is there twice counted twice."""
    factors, z = equations.factors, equations.cotangents(found.q, found.labels)[0]
    features, z = found.q @ factors.right, found.count[:, None] * z
    value, back = features[:, :-1], z @ head.weight
    relative = (found.std / root_mean_square(value).clamp(min=1e-300)).clamp(max=1.0)
    residual = torch.zeros_like(relative)
    if found.complete:
        misfit = factors.rows - ((found.weight / found.count)[:, None] * z).mT @ found.q
        residual += misfit.norm() / factors.values.norm()
    # Gradients as they were sent are divided by their largest entry, and weigh a sample by 1 / B.
    largest = largest_entry(clients.gradients)
    factor = (found.count / found.weight).median()
    every = torch.ones_like(found.labels, dtype=torch.bool)
    return Start(
        clients.divided(largest / factor),
        torch.zeros(1, dtype=torch.int64, device=z.device),
        Estimate.whole(value.reshape(-1, *shape), found.std[:, None].expand(-1, shape[0])),
        Cotangent((back / largest).reshape(-1, *shape), relative),
        head_report(head.name, value, z.shape[1], residual, every),
        head.name,
        z / largest,
        labels=found.labels,
        separated=Separated(found.complete, found.count, found.certain),
    )


def hidden_equations(head: Head, bias: Tensor, clients: Observed) -> HiddenEquations:
    """The equations of a batch at the hidden layer that a network starts with."""
    second = clients.gradients.get(f"{head.hidden.name}.weight")
    if second is None:
        raise InseparableError(
            f"the gradient of {head.hidden.name}.weight is missing, which a batch is separated by"
        )
    matrix = torch.cat([head.weight, bias[:, None]], dim=1)
    last, shares = clients.gradients.get(f"{head.logits}.bias"), None
    if last is not None:  # of a mean: the mean probability of each class less its share
        shares = (1 / last.shape[1] - last[0]).clamp(min=0)
        shares = shares / shares.sum().clamp(min=1e-300)
    factors = Factors.of(*head_gradient(head, clients))
    return HiddenEquations(head.hidden, matrix, factors, second[0], shares)
