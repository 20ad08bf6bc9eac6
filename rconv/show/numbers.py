"""Numbers as a page writes them: 7·10⁻⁷, where Python writes 7e-07.

A file of its own, since Sphinx runs it without importing the package (`book/_ext/prose.py`).
"""

import re
from decimal import Decimal

WRITTEN = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)e([+-]?\d+)(?!\w)")
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def scientific(text: str) -> str:
    """Write the numbers in a text with powers of ten; those between 0.1 and 100 without.

    Parameters
    ----------
    text : str
        Such as ``7e-07``, alone or among words.

    Returns
    -------
    str
        Such as ``7·10⁻⁷``; as many digits as before.
    """
    return WRITTEN.sub(_raised, text)


def _raised(found: re.Match) -> str:
    mantissa, exponent = found[1], int(found[2])
    if -1 <= exponent <= 1:
        return format(Decimal(found[0]), "f")
    power = "10" + str(exponent).translate(RAISED)
    return power if mantissa == "1" else f"{mantissa}·{power}"
