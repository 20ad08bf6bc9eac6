"""What a client computes and sends.

Gradients of one step, or the weights after it; what is known of their errors, the checks before
they are used, and the files in which they travel. Nothing here reconstructs.
"""

from rconv.lazy import TYPE_CHECKING, lazy

if TYPE_CHECKING:
    from rconv.observe.noise import largest_entry
    from rconv.observe.observation import features

__getattr__, __dir__ = lazy(__name__)
