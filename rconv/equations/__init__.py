"""What is linear in a convolution's input.

Gradient constraints, weight constraints, and both stacked. How they are solved is in
`rconv.linalg`, when they are used in `rconv.attack`.
"""

from rconv.lazy import TYPE_CHECKING, lazy

if TYPE_CHECKING:
    from rconv.equations.conv_gradient import gradient_matrix, gradient_rhs
    from rconv.equations.conv_output import weight_matrix
    from rconv.equations.conv_system import conv_system as constraint_system
    from rconv.equations.routing import PooledMap, Windows
    from rconv.equations.routing import search as search_routings
    from rconv.equations.spans import Spans
    from rconv.equations.windows import window_index

__getattr__, __dir__ = lazy(__name__)
