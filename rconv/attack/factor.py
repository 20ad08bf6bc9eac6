"""The factor of a map that span constraints leave open, from the layer below.

With X' in place of X = X'/f, the derivative by everything below is that of the loss divided by f,
as long as the activations' derivatives do not depend on the size of their inputs. The gradient of
an offset below, the sum of a derivative over the positions, so tells f.
"""

from dataclasses import replace

import torch
from torch import Tensor

from rconv.attack.backward import BackwardState
from rconv.attack.estimate import Cotangent, Estimate
from rconv.model.activations import Activation
from rconv.model.nodes import Network
from rconv.observe.observation import Gradients


def factor_below(
    network: Network, node: int, estimate: Estimate, cotangent: Cotangent, gradients: Gradients
) -> tuple[Tensor, Tensor]:
    """The factor of a map and of the derivative by the network's last node.

    Parameters
    ----------
    network : Network
        The model, as far as it is read.
    node : int
        The map.
    estimate : Estimate
        X', (N, C, H, W), and its errors.
    cotangent : Cotangent
        The derivative by the last node, divided by f.
    gradients : dict of str to Tensor
        Name → (N, *parameter shape).

    Returns
    -------
    factor : Tensor
        f, (N,), with its sign.
    error : Tensor
        (N,), relative; infinite where nothing tells the factor.
    """
    does = network.nodes[node].does
    best = torch.ones_like(cotangent.relative_std)
    error = torch.full_like(best, torch.inf)
    if does is None or (isinstance(does, Activation) and not _homogeneous(does)):
        return best, error
    below = network.nodes[node].inputs[0] if isinstance(does, Activation) else node
    for sign in (1.0, -1.0):
        own = replace(estimate, value=sign * estimate.value)
        state = _passed(network, node, own, replace(cotangent, value=sign * cotangent.value))
        observed = None if state is None else state.offset_gradient(below, gradients)
        if observed is None:
            break
        factor, own_error = _ratio(observed, state.cotangent(below))
        better = own_error < error
        best = torch.where(better, sign * factor, best)
        error = torch.where(better, own_error, error)
    return best, error


def _ratio(observed: Tensor, derivative: Cotangent) -> tuple[Tensor, Tensor]:
    """Offset gradients over what they are divided by f, by least squares; the relative error."""
    sums, rows = derivative.value.sum(dim=(2, 3)), observed.shape[1]
    size = sums.square().sum(dim=1).clamp(min=1e-300)
    factor = (sums * observed).sum(dim=1) / size
    miss = (observed - factor[:, None] * sums).norm(dim=1) / max(1, rows - 1) ** 0.5
    # A sum over positions has the errors of all of them.
    size_below = derivative.value.flatten(1).norm(dim=1)
    spread = derivative.relative_std * size_below * factor.abs() / rows**0.5
    error = torch.hypot(miss, spread) / (factor.abs() * size.sqrt()).clamp(min=1e-300)
    # With the right sign, the derivatives of the activation are those of a positive multiple.
    return factor, torch.where(factor > 0, error, torch.inf)


def _passed(
    network: Network, node: int, estimate: Estimate, cotangent: Cotangent
) -> BackwardState | None:
    """The pass from the last node to behind a map; None where another map must be solved first."""
    # Gradients of offsets, which settle the sides of kinks, are not divided by f.
    state = BackwardState(network, (), None, cotangent, {})
    state.given[node] = estimate
    return None if any(True for _ in state.unsolved(node)) else state


def _homogeneous(activation: Activation) -> bool:
    """Whether a multiple of the input gives the same multiple of the output."""
    x = torch.tensor([-3.0, -1.5, 1.5, 3.0], dtype=torch.float64)
    return torch.equal(activation.function(2 * x), 2 * activation.function(x))
