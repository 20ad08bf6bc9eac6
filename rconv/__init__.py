"""R-CONV: images reconstructed, in closed form, from the gradients of convolutional networks."""

from importlib.metadata import version

__version__ = version("rconv")
