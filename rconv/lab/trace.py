"""PSNR against time, of an optimisation that cannot see it."""

import math
import time

from torch import Tensor

from rconv.lab.metrics import psnr

FIRST, STEP = 0.05, 2**0.5
"""CPU seconds of the first point, and their ratio from point to point: half an octave."""


class Trace:
    """Keeps, at growing times, the PSNR of the image that the attacker would hand over by then.

    That is the image of the lowest objective so far, whichever start it comes from. Called as
    the attacks call their `watch`; the truth stays here.

    Parameters
    ----------
    truth : Tensor
        The original, (1, C, H, W), in [0, 1].

    Attributes
    ----------
    points : list of list of float
        [CPU seconds since the start, PSNR in dB], in time's order.
    """

    def __init__(self, truth: Tensor):
        self.truth = truth
        self.points: list[list[float]] = []
        self.start, self.due = time.process_time(), FIRST
        self.lowest, self.best = math.inf, None

    def __call__(self, image: Tensor, objective: float) -> None:
        """Take note of an iterate and its objective."""
        if objective < self.lowest:
            self.lowest, self.best = objective, image.clone()
        if self.seconds >= self.due and self.best is not None:
            self.add(self.best)
            while self.due <= self.points[-1][0]:
                self.due *= STEP

    @property
    def seconds(self) -> float:
        """CPU seconds since the start."""
        return time.process_time() - self.start

    def add(self, image: Tensor, seconds: float | None = None) -> None:
        """Append the PSNR of an image now, or at a given time; none where it is not finite."""
        seconds = self.seconds if seconds is None else seconds
        decibels = float(psnr(image.cpu(), self.truth, data_range=1.0))
        if math.isfinite(decibels):
            self.points.append([seconds, decibels])
