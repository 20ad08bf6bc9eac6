"""How a model is read.

Activations seen from their output, shapes and linear algebra of one convolution, and the reading
of a PyTorch module into them. What a client computes with a model is in `rconv.observe`.
"""

from rconv.lazy import TYPE_CHECKING, lazy

if TYPE_CHECKING:
    from rconv.model import activations
    from rconv.model.activations import input_noise
    from rconv.model.build import IDENTITY, stage_of
    from rconv.model.geometry import Geometry, Stage
    from rconv.model.read import read as read_model

__getattr__, __dir__ = lazy(__name__)
