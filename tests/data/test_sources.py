"""Snapshots and torchvision's files: read, written, damaged, missing, downloaded."""

import hashlib
import os
import pickle
import socket
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from small import refusal

from rconv.data.datasets import CHANNELS, CLASSES, DatasetError, load, write_snapshot

RAW = ("MNIST", "CIFAR10", "CIFAR100")
REAL = Path(os.environ.get("RCONV_DATA") or Path(__file__).parents[2] / "../shared/data")
SHAPES = {"MNIST": (28, 28), "CIFAR10": (32, 32, 3), "CIFAR100": (32, 32, 3)}


@pytest.fixture(autouse=True)
def no_network_and_no_user_folder(monkeypatch, tmp_path):
    """Refuse every connection, and keep the user's own data out of the tests."""

    def refuse(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RCONV_DATA", raising=False)


def random_images(name, count, seed=0):
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, (count, *SHAPES[name]), dtype=np.uint8)
    return data, generator.integers(0, CLASSES[name], count)


def snapshot(folder, name, count, seed=0):
    data, targets = random_images(name, count, seed)
    np.savez(folder / f"{name}-train-first{count}.npz", data=data, targets=targets)
    return data, targets


def idx(array):
    """Return the bytes of an array in MNIST's own format."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def mnist_files(folder, count=6):
    """Write a small MNIST as torchvision keeps it."""
    data, targets = random_images("MNIST", count)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(data))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(targets))
    return data, targets


def cifar_files(monkeypatch, folder, name, count=6):
    """Write a small CIFAR as torchvision keeps it, and let torchvision expect its checksums."""
    from torchvision import datasets

    found = getattr(datasets, name)
    data, targets = random_images(name, count)
    home = folder / found.base_folder
    home.mkdir(parents=True)
    key = "fine_labels" if name == "CIFAR100" else "labels"
    batch = {"data": data.transpose(0, 3, 1, 2).reshape(count, -1), key: targets.tolist()}
    meta = {found.meta["key"]: [str(n) for n in range(CLASSES[name])]}

    def write(filename, content):
        (home / filename).write_bytes(pickle.dumps(content))
        return hashlib.md5((home / filename).read_bytes()).hexdigest()

    monkeypatch.setattr(found, "train_list", [["part", write("part", batch)]])
    monkeypatch.setattr(found, "test_list", [["test", write("test", batch)]])
    sealed = found.meta | {"md5": write(found.meta["filename"], meta)}
    monkeypatch.setattr(found, "meta", sealed)
    return data, targets


# Snapshots


@pytest.mark.parametrize(
    ("name", "labels"),
    [("MNIST", [5, 0, 4, 1, 9]), ("CIFAR10", [6, 9, 9, 4, 1]), ("CIFAR100", [19, 29, 0, 11, 1])],
)
def test_the_real_first_images(name, labels):
    if not list(REAL.glob(f"{name}-train-first*.npz")):
        pytest.skip(f"no snapshot of {name} in RCONV_DATA or ../shared/data")
    found = load(name, range(5), REAL)
    assert found.labels.tolist() == labels
    assert found.images.shape == (5, CHANNELS[name], 32, 32)
    assert 0 <= found.images.min() < 0.05
    assert 0.95 < found.images.max() <= 1


def test_the_smallest_sufficient_snapshot_is_opened(tmp_path):
    snapshot(tmp_path, "MNIST", 30, seed=1)
    _, small = snapshot(tmp_path, "MNIST", 10, seed=2)
    _, large = random_images("MNIST", 30, seed=1)
    assert load("MNIST", [9, 3], tmp_path).labels.tolist() == small[[9, 3]].tolist()
    assert load("MNIST", [9, 10], tmp_path).labels.tolist() == large[[9, 10]].tolist()


def test_the_folder_is_the_argument_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    for seed, folder in enumerate(["argument", "variable", "cache/rconv"]):
        (tmp_path / folder).mkdir(parents=True)
        data, _ = random_images("MNIST", 1)
        targets = np.array([seed])
        np.savez(tmp_path / folder / "MNIST-train-first1.npz", data=data, targets=targets)
    assert load("MNIST", [0]).labels.item() == 2
    monkeypatch.setenv("RCONV_DATA", str(tmp_path / "variable"))
    assert load("MNIST", [0]).labels.item() == 1
    assert load("MNIST", [0], tmp_path / "argument").labels.item() == 0


@pytest.mark.parametrize("name", RAW)
def test_a_written_snapshot_reads_back(name, tmp_path):
    data, targets = snapshot(tmp_path, name, 7)
    path = write_snapshot(name, 3, tmp_path, tmp_path / "new")
    assert path == tmp_path / "new" / f"{name}-train-first3.npz"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == {"data", "targets"}
        assert (file["data"].dtype, file["targets"].dtype) == (np.uint8, np.int64)
        assert np.array_equal(file["data"], data[:3])
        assert np.array_equal(file["targets"], targets[:3])
    read = load(name, range(3), tmp_path / "new").images
    assert torch.equal(read, load(name, range(3), tmp_path).images)


@pytest.mark.parametrize(
    ("name", "count", "reason"),
    [("Photos", 3, "MNIST"), ("MNIST", 0, "choose 1"), ("CIFAR10", 50_001, "1 to 50000")],
)
def test_a_snapshot_that_cannot_be_is_refused(name, count, reason, tmp_path):
    with pytest.raises(DatasetError, match=reason):
        write_snapshot(name, count, tmp_path)


def test_a_failed_write_leaves_the_old_snapshot_whole(tmp_path, monkeypatch):
    snapshot(tmp_path, "MNIST", 5)
    before = write_snapshot("MNIST", 2, tmp_path).read_bytes()

    def full_disk(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(DatasetError, match="No space left"):
        write_snapshot("MNIST", 2, tmp_path)
    assert (tmp_path / "MNIST-train-first2.npz").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def nothing_is_read(monkeypatch):
    monkeypatch.setattr("rconv.data.sources.read", lambda *a, **k: pytest.fail("read first"))


@pytest.mark.parametrize(("out", "reason"), [("file", "File exists"), ("~nosuch", "no such user")])
def test_a_snapshot_that_cannot_be_written_is_refused_before_the_data_is_read(
    out, reason, tmp_path, monkeypatch
):
    nothing_is_read(monkeypatch)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=reason):
        write_snapshot("MNIST", 2, tmp_path, out)


def test_a_pipe_in_the_place_of_a_snapshot_is_refused(tmp_path, monkeypatch):
    """Reading it would wait for a writer, and writing would replace it."""
    os.mkfifo(tmp_path / "MNIST-train-first2.npz")
    assert "no regular file" in refusal("MNIST", [0], tmp_path)
    nothing_is_read(monkeypatch)
    with pytest.raises(DatasetError, match="a pipe"):
        write_snapshot("MNIST", 2, tmp_path)


def wrong(**changes):
    data, targets = random_images("CIFAR10", 4)
    return {"data": data, "targets": targets} | changes


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 not an archive",
        {"data": random_images("CIFAR10", 4)[0]},
        wrong(data=np.zeros((4, 28, 28), np.uint8)),
        wrong(data=np.zeros((4, 32, 32, 3), np.float32)),
        wrong(targets=np.zeros(3, np.int64)),
        wrong(targets=np.zeros(4, np.float64)),
        wrong(targets=np.full(4, 10)),
        wrong(targets=np.array([None] * 4)),
        {"data": np.zeros((3, 32, 32, 3), np.uint8), "targets": np.zeros(3, np.int64)},
    ],
    ids="empty rubbish no-targets shape dtype fewer float label pickle count".split(),
)
def test_a_damaged_snapshot_is_named_with_the_remedy(content, tmp_path):
    path = tmp_path / "CIFAR10-train-first4.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    message = refusal("CIFAR10", [0], tmp_path)
    assert str(path) in message
    assert "delete it" in message


def test_a_snapshot_cut_short_is_damaged(tmp_path):
    snapshot(tmp_path, "CIFAR10", 4)
    path = tmp_path / "CIFAR10-train-first4.npz"
    path.write_bytes(path.read_bytes()[:-1000])
    assert str(path) in refusal("CIFAR10", [0], tmp_path)


# Torchvision's files


def test_torchvisions_mnist_files_are_read(tmp_path):
    data, targets = mnist_files(tmp_path)
    found = load("MNIST", range(6), tmp_path, side=28)
    assert torch.equal((found.images[:, 0] * 255).round(), torch.tensor(data).double())
    assert found.labels.tolist() == targets.tolist()


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_torchvisions_cifar_files_are_read(name, tmp_path, monkeypatch):
    data, targets = cifar_files(monkeypatch, tmp_path, name)
    found = load(name, [5, 1], tmp_path)
    assert torch.equal((found.images * 255).round(), torch.tensor(data[[5, 1]]).permute(0, 3, 1, 2))
    assert found.labels.tolist() == targets[[5, 1]].tolist()


def test_a_snapshot_can_be_written_from_torchvisions_files(tmp_path):
    data, targets = mnist_files(tmp_path)
    with np.load(write_snapshot("MNIST", 2, tmp_path)) as file:
        assert np.array_equal(file["data"], data[:2])
        assert np.array_equal(file["targets"], targets[:2])


def test_what_a_snapshot_lacks_is_read_from_torchvisions_files(tmp_path):
    _, targets = mnist_files(tmp_path)
    snapshot(tmp_path, "MNIST", 2, seed=3)
    assert load("MNIST", [4], tmp_path).labels.item() == targets[4]


@pytest.mark.parametrize("keep", [0, 3, 500, -1], ids=["empty", "header", "part", "one byte short"])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_mnist_files_cut_short_are_damaged(file, keep, tmp_path):
    mnist_files(tmp_path, count=600)
    path = tmp_path / "MNIST" / "raw" / file
    path.write_bytes(path.read_bytes()[:keep])
    message = refusal("MNIST", [0], tmp_path)
    assert str(tmp_path / "MNIST") in message
    assert "delete that folder" in message


def test_mnist_files_that_contradict_each_other_are_damaged(tmp_path):
    mnist_files(tmp_path)
    labels = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(5)))
    assert "damaged or incomplete (targets is int64 with shape (5,))" in refusal(
        "MNIST", [0], tmp_path
    )


def test_a_cifar_file_with_one_wrong_byte_is_damaged(tmp_path, monkeypatch):
    cifar_files(monkeypatch, tmp_path, "CIFAR10")
    path = tmp_path / "cifar-10-batches-py" / "part"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = refusal("CIFAR10", [0], tmp_path)
    assert "cifar-10-batches-py is damaged" in message
    assert "download=True" not in message


# What is missing


@pytest.mark.parametrize("name", RAW)
def test_missing_data_that_cannot_be_downloaded_is_one_clear_error(name, tmp_path):
    message = refusal(name, [0], tmp_path)
    for part in (name, str(tmp_path), "--data-dir", "RCONV_DATA", "Photos", "Digits"):
        assert part in message
    # torchvision 0.19 names the file of MNIST that it could not get, and not why.
    assert "no route" in message or "Error downloading" in message
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_not_to_be_downloaded_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tmp_path.__class__, "mkdir", lambda *args, **kwargs: pytest.fail("mkdir"))
    assert "not to be downloaded" in refusal("MNIST", [0], tmp_path, download=False)


def test_an_index_beyond_the_snapshot_says_both(tmp_path):
    snapshot(tmp_path, "CIFAR100", 5)
    message = refusal("CIFAR100", [2, 5], tmp_path)
    assert "CIFAR100-train-first5.npz ends at image 4" in message
    assert "cannot be downloaded" in message
    assert "RCONV_DATA" in message


def test_a_snapshot_never_passes_for_the_whole_dataset(tmp_path):
    snapshot(tmp_path, "CIFAR100", 5)
    assert "ends at image 4" in refusal("CIFAR100", None, tmp_path)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal("MNIST", [0], tmp_path / "file" / "folder")
    assert "Not a directory" in message
    assert "RCONV_DATA" in message


def test_a_read_only_folder_serves_what_it_has_and_refuses_the_rest(tmp_path, monkeypatch):
    _, targets = mnist_files(tmp_path)

    def read_only(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "mkdir", read_only)
    monkeypatch.setattr(os, "rename", read_only)
    assert load("MNIST", [3], tmp_path).labels.item() == targets[3]
    assert "Permission denied" in refusal("CIFAR10", [0], tmp_path)


def download_stub(monkeypatch, name, then=lambda: None):
    """Let torchvision's MNIST 'download' six images without a network, then do `then`."""
    from torchvision import datasets

    def download(self):
        mnist_files(Path(self.root))
        then()

    monkeypatch.setattr(getattr(datasets, name), "download", download)


def test_a_download_appears_whole(tmp_path, monkeypatch):
    folder = tmp_path / "not" / "there"
    download_stub(monkeypatch, "MNIST", lambda: seen.extend(folder.glob("MNIST")))
    seen = []
    assert len(load("MNIST", range(6), folder)) == 6
    assert seen == []  # nothing under its final name until the download was verified
    assert [path.name for path in folder.iterdir()] == ["MNIST"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left")])
def test_an_interrupted_download_leaves_nothing_behind(interruption, tmp_path, monkeypatch):
    def interrupt():
        raise interruption

    download_stub(monkeypatch, "MNIST", interrupt)
    with pytest.raises((KeyboardInterrupt, DatasetError)):
        load("MNIST", [0], tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert socket.getdefaulttimeout() is None


def test_of_two_downloads_at_once_the_first_stays(tmp_path, monkeypatch):
    def other_process():
        mnist_files(tmp_path)
        (tmp_path / "MNIST" / "first").touch()

    download_stub(monkeypatch, "MNIST", other_process)
    assert len(load("MNIST", range(6), tmp_path)) == 6
    assert (tmp_path / "MNIST" / "first").exists()


def test_an_index_beyond_torchvisions_files_is_refused(tmp_path):
    mnist_files(tmp_path)
    assert "no image 6: it has 6" in refusal("MNIST", [6], tmp_path)
