"""The attack inside the frameworks that people use: Flower, Opacus, breaching and LeakPro.

Each module translates what a framework hands over, and nothing else; it is not imported unless
asked for, and needs its framework installed. ``pip install 'rconv[adapters]'`` brings Flower and
Opacus. breaching and LeakPro pin other versions of their dependencies and want an environment of
their own; `rconv.adapters.breaching` and `rconv.adapters.leakpro` say how to make it.
"""

from rconv.lazy import TYPE_CHECKING, lazy

if TYPE_CHECKING:
    from rconv.adapters import breaching, flower, leakpro, opacus

__getattr__, __dir__ = lazy(__name__)
