"""What came of trying a model: shares, decibels, and the verdict in words."""

import math
from dataclasses import dataclass
from statistics import median

from torch import Tensor

from rconv.attack.report import Reconstruction
from rconv.audit import NOT_UNIQUE, TOO_LARGE
from rconv.lab.hunt import BAR
from rconv.lab.intervals import rate_interval

VISIBLE = 10 * math.log10(2)
"""Decibels above a flat image from which on a picture counts as showing something: its mean
squared error is less than half the truth's variance."""

LEAKS, PARTLY, NOT_BY_THIS_ATTACK = RISKS = ("leaks", "partly", "not by this attack")
"""How much the attack shows of some image: all of it, a part of it, or nothing that is visible."""

LAYER_COLUMNS = ("layer", "unknowns", "equations leave", "signs close", "left open", "images short")


@dataclass(frozen=True)
class Trial:
    """What the attack made of N images, and the truth.

    Parameters
    ----------
    source : str
        Which images they are, in words.
    dtype : str
        Of the gradients that were sent.
    truth : Tensor
        (N, C, H, W), float64, the images.
    reconstruction : Reconstruction
        The attack's answer, which does not know them.
    psnr : Tensor
        (N,), in dB, of the reconstructions, cut to the pixels' range, whose width is the peak.
    flat : Tensor
        (N,), in dB: the PSNR of a flat image of the truth's mean grey, which shows nothing.
    false : Tensor
        (N,), bool: called unique and wrong (`rconv.lab.hunt.judge`). There must be none.
    """

    source: str
    dtype: str
    truth: Tensor
    reconstruction: Reconstruction
    psnr: Tensor
    flat: Tensor
    false: Tensor

    @property
    def unique(self) -> Tensor:
        """(N,), bool: the attack's own verdict, whether its image is the only one possible."""
        return self.reconstruction.unique

    @property
    def share(self) -> tuple[float, float, float]:
        """Share of images that are unique, and its 95 % interval for more images of their kind.

        The interval of Clopper and Pearson (`rconv.lab.intervals`), each image a draw of its own:
        the model is the one that is asked about.
        """
        unique = self.unique.int().tolist()
        low, high = rate_interval(unique, [1] * len(unique))
        return sum(unique) / len(unique), low, high

    @property
    def recovered(self) -> Tensor:
        """(N,), bool: shown at `BAR` or more, or called the only one possible and right."""
        return (self.psnr >= BAR) | (self.unique & ~self.false.to(self.psnr.device))

    @property
    def visible(self) -> Tensor:
        """(N,), bool: recovered, or at least `VISIBLE` dB above a flat image."""
        return self.recovered | (self.psnr - self.flat >= VISIBLE)

    @property
    def risk(self) -> str:
        """A value of `RISKS`, that of the image that is shown best."""
        if self.recovered.any():
            return LEAKS
        return PARTLY if self.visible.any() else NOT_BY_THIS_ATTACK

    @property
    def clear(self) -> int:
        """Images that are shown at 40 dB (`rconv.lab.hunt.BAR`) or more, unique or not."""
        return int((self.psnr >= BAR).sum())

    @property
    def layers(self) -> list[tuple[str, int, float, float, float, int]]:
        """Per layer, head first, what `LAYER_COLUMNS` name.

        Its name and unknowns; medians over the images of the directions that the equations leave
        open, that signs close of them, and that are left; and for how many images some are left.
        """
        return [
            (
                r.name,
                r.unknowns,
                *(_median(values) for values in (r.unknowns - r.rank, r.signs, r.open)),
                int((r.open > 0).sum()),
            )
            for r in self.reconstruction.layers
        ]

    @property
    def verdict(self) -> str:
        """The answer in one line, with the PSNR that is to be expected."""
        won, others = self.psnr[self.unique], ~self.unique
        text = f"{len(won)} of {len(self.psnr)} images reconstructed as the only ones possible"
        if len(won):
            text += f" ({_decibels(won)}, worst {float(won.min()):.0f})"
        if others.any():
            count = int(others.sum())
            several = f"the other {count} are" if len(won) else "all are"
            one = "the other is" if len(won) else "it is"
            text += f"; {one if count == 1 else several} shown at {self._shown(others)}"
        if self.false.any():
            text += f"; {int(self.false.sum())} CALLED UNIQUE AND WRONG, which is a fault of rconv"
        return text

    def _shown(self, which: Tensor) -> str:
        """How well the images are shown that are not unique."""
        psnr, flat = self.psnr[which], self.flat[which]
        best = f", best {float(psnr.max()):.0f}" if len(psnr) > 1 else ""
        text = f"{_decibels(psnr)}{best} (flat image: {_decibels(flat)}"
        seen = int((psnr - flat >= VISIBLE).sum())
        if not seen:
            return f"{text}; none has less than half its error): this attack shows next to nothing"
        return f"{text}; {seen} with less than half its error): not unique is not private"

    def beside(self, generic: str) -> str:
        """Which says what, where the generic verdict and the trial differ; "" where they agree.

        Parameters
        ----------
        generic : str
            `rconv.audit.overall` of the same model.
        """
        if generic == TOO_LARGE:
            return "The generic rank is too large to compute; the trial has made the attack."
        if generic == NOT_UNIQUE and self.unique.any():
            signs = any(int(r.signs[self.unique].max()) for r in self.reconstruction.layers)
            reason = "signs close the rest" if signs else "more outputs are active than assumed"
            return (
                f"The two differ. '{generic}' is said by the generic rank, of the equations of the "
                f"shapes. With these weights and images {reason}."
            )
        if generic == NOT_UNIQUE or self.unique.all():
            return ""
        first = int((~self.unique).nonzero()[0])
        return (
            f"The two differ. '{generic}' is said by the generic rank, of what the shapes allow at "
            "best. With these weights and images it is not reached: the first that is not unique, "
            f"image {first}: {self.reconstruction.doubts[first]}."
        )


def _median(values: Tensor) -> float:
    return float(median(values.tolist()))


def _decibels(values: Tensor) -> str:
    return f"{_median(values):.0f} dB" if len(values) == 1 else f"median {_median(values):.0f} dB"
