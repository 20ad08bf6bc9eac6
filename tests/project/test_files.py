"""Files that are whole or absent, under the name that was meant."""

import os
import socket
import stat

import pytest

from rconv.files import claimed, output_file, replacing


def write(path, content=b"new"):
    with replacing(path) as file:
        file.write(content)


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


def test_a_full_disk_is_an_error_and_not_a_lost_file(tmp_path, monkeypatch):
    """Some file systems say it only when they are asked to keep what was written."""

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        write(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder does not exist"):
        write(tmp_path / "no" / "file")


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "file", tmp_path / "link"
    link.symlink_to("far/file")
    for content in (b"first, while there is nothing", b"second"):
        write(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_the_new_file_has_the_rights_of_the_old(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o600)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_name_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("x" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    write(path)
    assert path.read_bytes() == b"new"


def no_file(folder, kind):
    """A path in the folder that is none for a file."""
    path = folder / "path"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.fspath(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to("other")
        (folder / "other").symlink_to("path")
    elif kind == "link to a device":
        path.symlink_to(os.devnull)
    return {"empty": "", "device": os.devnull}.get(kind, path)


@pytest.mark.parametrize(
    "kind", ["pipe", "socket", "folder", "loop", "link to a device", "device", "empty"]
)
def test_what_is_no_file_is_refused_and_stays(kind, tmp_path):
    path = no_file(tmp_path, kind)
    before = sorted(tmp_path.iterdir())
    mode = os.lstat(path).st_mode if kind != "empty" else None
    with pytest.raises(OSError):
        output_file(path)
    with pytest.raises(OSError):
        write(path)
    assert sorted(tmp_path.iterdir()) == before
    assert mode is None or os.lstat(path).st_mode == mode


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_refused_beforehand(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written to"):
        output_file(tmp_path / "file")


def test_a_file_is_claimed_once_at_a_time(tmp_path):
    """By its folder and name; another file of the folder is free."""
    file = tmp_path / "x"
    with claimed([file]):
        with pytest.raises(OSError, match="another process is writing it"), claimed([file]):
            pytest.fail("claimed twice")
        with claimed([tmp_path / "y"]):
            pass
    with claimed([file]):
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_leaves_is_no_lock(tmp_path):
    with claimed([tmp_path / "x"]):
        (beside,) = tmp_path.iterdir()
    beside.touch()
    with claimed([tmp_path / "x"]):
        pass
    assert not list(tmp_path.iterdir())


def test_the_claims_before_one_that_fails_are_given_back(tmp_path):
    with pytest.raises(FileNotFoundError), claimed([tmp_path / "x", tmp_path / "no" / "y"]):
        pytest.fail("claimed a file without a folder")
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with claimed([tmp_path / "x"]), claimed([tmp_path / "x"]):
        pass
    assert not list(tmp_path.iterdir())
