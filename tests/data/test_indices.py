"""Image numbers on the command line: read as written, or refused in one line."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rconv.data import parse_indices


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("92", [92]),
        ("3,5,8", [3, 5, 8]),
        ("0:4", [0, 1, 2, 3]),
        ("0:10:4", [0, 4, 8]),
        ("0:3,7", [0, 1, 2, 7]),
        (" 5 , 2:4 ", [5, 2, 3]),
        ("7,7", [7, 7]),
    ],
)
def test_parse_indices(text, indices):
    assert parse_indices(text) == indices


@pytest.mark.parametrize(
    "text",
    "|,|3,|-1|-3:2|a|1.5|5:5|9:2|:5|5:|0:9:0|0:9:-1|1:2:3:4|1 2|²|0x1|1_0|1e3|0:9999999".split("|"),
)
def test_parse_indices_refuses(text):
    with pytest.raises(ValueError, match=re.escape(repr(text))) as caught:
        parse_indices(text)
    assert "\n" not in str(caught.value)


numbers = st.integers(0, 2000)
ranges = st.tuples(numbers, st.integers(1, 50), st.integers(1, 9))


@given(st.lists(numbers.map(lambda n: (n, 0, 0)) | ranges, min_size=1, max_size=5))
def test_parse_indices_reads_what_is_written(parts):
    text, expected = [], []
    for start, length, step in parts:
        text.append(f"{start}:{start + length}:{step}" if length else f"{start}")
        expected += range(start, start + length, step) if length else [start]
    assert parse_indices(",".join(text)) == expected


@given(st.text(alphabet="0123456789:,- \n", max_size=12))
def test_parse_indices_either_reads_or_refuses_in_one_line(text):
    try:
        indices = parse_indices(text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert indices
        assert min(indices) >= 0
