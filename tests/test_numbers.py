"""Numbers on a page: powers of ten, and nothing else is touched."""

import pytest

from rconv.show.numbers import scientific
from rconv.show.tables import markdown


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("7e-07", "7·10⁻⁷"),
        ("1e-06", "10⁻⁶"),
        ("1.0e-06", "1.0·10⁻⁶"),
        ("-3.2e+12", "-3.2·10¹²"),
        ("3e-01", "0.3"),
        ("2.50e+01", "25.0"),
        ("1e+00", "1"),
        ("noise of 1e-9, then 2e5", "noise of 10⁻⁹, then 2·10⁵"),
    ],
)
def test_powers_of_ten(written, shown):
    assert scientific(written) == shown


@pytest.mark.parametrize("text", ["0.001", "conv3e4", "a1e-06", "1e-06b", "0x3e5", "inf", "e-06"])
def test_what_is_no_such_number_stays(text):
    assert scientific(text) == text


def test_tables_have_them():
    assert markdown(["error"], [[f"{7e-7:.0e}"]]).endswith("| 7·10⁻⁷ |")
