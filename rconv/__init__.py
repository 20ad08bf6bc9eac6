"""R-CONV: images from the gradients of convolutional networks, in closed form.

The public face. What is behind it, from the bottom up: `rconv.linalg` and `rconv.model`, then
`rconv.observe` and `rconv.equations`, then `rconv.attack`, `rconv.audit` and `rconv.baselines`,
then `rconv.lab` with `rconv.data` below it, `rconv.show` and `rconv.cli`. Imports run in this
direction only. A name is imported, and PyTorch with it, when it is first used.
"""

from importlib import import_module

TYPE_CHECKING = False  # type checkers take it for True; typing itself would be a slow import
if TYPE_CHECKING:
    from rconv.attack.attack import Attack
    from rconv.attack.report import Reconstruction, ShortRankError
    from rconv.audit import audit as audit_model
    from rconv.model.read import UnsupportedModelError
    from rconv.observe.noise import Noise
    from rconv.observe.observation import per_sample_gradients
    from rconv.observe.update import gradients_from_update

    __version__: str

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

_PLACES = {
    "Attack": ("rconv.attack.attack", "Attack"),
    "Noise": ("rconv.observe.noise", "Noise"),
    "Reconstruction": ("rconv.attack.report", "Reconstruction"),
    "ShortRankError": ("rconv.attack.report", "ShortRankError"),
    "UnsupportedModelError": ("rconv.model.read", "UnsupportedModelError"),
    "audit_model": ("rconv.audit", "audit"),
    "gradients_from_update": ("rconv.observe.update", "gradients_from_update"),
    "per_sample_gradients": ("rconv.observe.observation", "per_sample_gradients"),
}
"""Name → the module that defines it, and its name there."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        value = import_module("importlib.metadata").version("rconv")
    elif name in _PLACES:
        module, attribute = _PLACES[name]
        value = getattr(import_module(module), attribute)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
