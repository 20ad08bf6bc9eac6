"""The recursion: activation, equations and propagation, map by map down to the image."""

from collections.abc import Callable, Sequence

from torch import Tensor

from rconv.attack.backward import Passed
from rconv.attack.joint import solve_map
from rconv.attack.plan import LayerPlan
from rconv.attack.report import LayerReport
from rconv.attack.signal import Told
from rconv.attack.solve import Known
from rconv.attack.start import Start, channel_errors
from rconv.attack.walk import Walk
from rconv.linalg.solution import Solution, root_mean_square
from rconv.model.geometry import Stage
from rconv.model.nodes import Network, UnsupportedModelError
from rconv.model.told import backward_order
from rconv.observe.noise import Noise
from rconv.observe.observation import Gradients


def recursion(
    network: Network,
    plans: Sequence[LayerPlan],
    start: Start,
    gradients: Gradients,
    noise: Noise,
    unit: Tensor,
    *,
    solve: Callable[..., tuple[Solution, LayerReport]] = solve_map,
    offsets: Gradients | None = None,
) -> tuple[Tensor, tuple[LayerReport, ...], Tensor]:
    """From where the network ends down to the image.

    Parameters
    ----------
    network : Network
        The model.
    plans : sequence of LayerPlan
        One per convolution, in the order of the forward pass.
    start : Start
        Where the network ends: candidates, one or more for each image.
    gradients : dict of str to Tensor
        Name → (M, *parameter shape), one per candidate, divided by `unit`.
    noise : Noise
        What is known of their errors.
    unit : Tensor
        (M,).
    solve : callable
        What solves for a map, as `solve_map` does.
    offsets : dict of str to Tensor, optional
        Those gradients that tell the sides of kinks, where not all of them may.

    Returns
    -------
    images : Tensor
        (M, C, H, W).
    reports : tuple of LayerReport
        From where the network ends down to the first convolution.
    error : Tensor
        (M,), standard deviation of the images, in the unit of the pixels, from the noise alone.

    Raises
    ------
    UnsupportedModelError
        Where missing gradients leave no equation of a map.
    """
    walk = Walk(network, start.told, start.cotangent)
    reports = [start.report]
    error = None if start.told is None else start.told.error
    by_name = {plan.stage.name: plan for plan in plans}
    for node in backward_order(network):
        taken = list(network.fed_by(node))
        if start.solved is not None and start.solved[0] == node:
            _, told, report = start.solved
            walk.solved(node, told)
            reports.append(report)
            error = told.error
        elif taken:
            own = [by_name[stage.name] for _, stage in taken]
            known = [_known(stage, walk.passed[i], gradients, noise, unit) for i, stage in taken]
            told = walk.told(node)
            _refuse_without_equations(known, told, gradients)
            solved, report = solve(own, known, told)
            reports.append(report.under(reports, own[0].bounds))
            value = solved.value.reshape(-1, *network.nodes[node].shape)
            error = channel_errors(value, solved.error, report.constraints, noise)
            walk.solved(node, Told.whole(value, error))
        walk.pass_on(node, gradients if offsets is None else offsets)
    return walk.whole[0].value, tuple(reports), root_mean_square(error)


def _known(stage: Stage, passed: Passed, gradients: Gradients, noise: Noise, unit: Tensor) -> Known:
    """What is known of one convolution before its input is."""
    name = f"{stage.name}.weight"
    gradient = gradients.get(name)
    if gradient is None:  # its plan has no equation that takes it
        gradient = stage.weight.new_zeros(len(unit), *stage.weight.shape)
        return Known(stage, passed, gradient, noise.level(name, gradient, unit))
    precision = noise.level(name, gradient, unit)
    return Known(stage, passed, gradient, precision, noise.rows(name, gradient, unit))


def _refuse_without_equations(
    known: Sequence[Known], told: Told | None, gradients: Gradients
) -> None:
    """Refuse a map of which missing gradients leave no equation."""
    missing = [own.stage.name for own in known if f"{own.stage.name}.weight" not in gradients]
    if len(missing) < len(known) or told is not None:
        return
    if not any(bool(own.some.any()) for own in known):
        raise UnsupportedModelError(
            f"no gradient for {missing[0]}.weight: the output of {missing[0]} is not known either, "
            "so that nothing determines its input; its gradient must be sent"
        )
