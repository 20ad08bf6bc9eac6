"""Files that are whole or absent."""

import pytest

from rconv.files import replacing


def test_the_file_appears_once_it_is_complete(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_an_interruption_keeps_the_old_file_and_leaves_no_other(interruption, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(interruption), replacing(path) as file:
        file.write(b"half")
        raise interruption
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "no" / "file"):
        pytest.fail("nothing to write to")
