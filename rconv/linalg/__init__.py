"""Least squares that says how good it is.

Solvers and what they return. Knows no network, no gradient and no image: whatever says which
equations are solved stands in `rconv.equations`.
"""

from rconv.lazy import TYPE_CHECKING, lazy

if TYPE_CHECKING:
    from rconv.linalg.columns import least_squares
    from rconv.linalg.dense import null_space, solve_dense
    from rconv.linalg.inequalities import forced
    from rconv.linalg.iterative import Runs, solve_iterative
    from rconv.linalg.solution import Solution, relative
    from rconv.linalg.sparse import SparseFactor
    from rconv.linalg.system import System

__getattr__, __dir__ = lazy(__name__)
