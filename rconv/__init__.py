"""R-CONV: images from the gradients of convolutional networks, in closed form.

The public face. What is behind it, from the bottom up: `rconv.linalg` and `rconv.model`, then
`rconv.observe` and `rconv.equations`, then `rconv.attack`, `rconv.audit` and `rconv.baselines`,
then `rconv.lab` with `rconv.data` below it, `rconv.show` and `rconv.cli`. Imports run in this
direction only. A public name is imported, and PyTorch with it, when it is first used.
"""

from importlib import import_module

from rconv.lazy import TYPE_CHECKING, lazy

if TYPE_CHECKING:
    from rconv.attack.attack import Attack
    from rconv.attack.report import Reconstruction, ShortRankError
    from rconv.audit.layers import audit as audit_model
    from rconv.model.nodes import UnsupportedModelError
    from rconv.observe.noise import Noise
    from rconv.observe.observation import per_sample_gradients
    from rconv.observe.update import gradients_from_update

    __version__: str


def _version() -> str:
    return import_module("importlib.metadata").version("rconv")


__getattr__, __dir__ = lazy(__name__, __version__=_version)
