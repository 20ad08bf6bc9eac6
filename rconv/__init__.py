"""R-CONV: images from the gradients of convolutional networks, in closed form.

The public face. What is behind it, from the bottom up: `rconv.linalg` and `rconv.model`, then
`rconv.observe` and `rconv.equations`, then `rconv.attack`, `rconv.audit` and `rconv.baselines`,
then `rconv.lab` with `rconv.data` below it, `rconv.show` and `rconv.cli`. Imports run in this
direction only.
"""

from importlib.metadata import version

from rconv.attack.attack import Attack
from rconv.attack.report import Reconstruction, ShortRankError
from rconv.audit import audit as audit_model
from rconv.model.read import UnsupportedModelError
from rconv.observe.noise import Noise
from rconv.observe.observation import per_sample_gradients
from rconv.observe.update import gradients_from_update

__version__ = version("rconv")

__all__ = [
    "Attack",
    "Noise",
    "Reconstruction",
    "ShortRankError",
    "UnsupportedModelError",
    "audit_model",
    "gradients_from_update",
    "per_sample_gradients",
]
