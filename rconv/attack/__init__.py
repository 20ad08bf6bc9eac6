"""From gradients back to the image, layer by layer; `attack` is read first.

Receives what an attacker has, the model and the gradients. The truth, and everything that
compares with it, is in `rconv.lab`.
"""

from rconv.lazy import TYPE_CHECKING, lazy

if TYPE_CHECKING:
    from rconv.attack import total_variation
    from rconv.attack.activation_vjp import settle_sides, through_activation
    from rconv.attack.batch_head import HeadEquations, InseparableError, disaggregate
    from rconv.attack.certificate import gradient_residual
    from rconv.attack.head import HeadInput, head_input
    from rconv.attack.map_problem import ConvData, MapProblem
    from rconv.attack.plan import make_plan

__getattr__, __dir__ = lazy(__name__)
