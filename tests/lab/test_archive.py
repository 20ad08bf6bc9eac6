"""Records that the repository keeps: what is kept of them, and that they belong to the code."""

import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rconv.data import datasets
from rconv.lab import architectures, archive
from rconv.lab.experiment import run
from rconv.lab.records import SUCCESS
from rconv.show import pages

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "workflow"))

import records as keeping  # noqa: E402

EPS = torch.finfo(torch.float64).eps
KEPT = sorted((ROOT / "book" / "records").glob("*/*.json"))
VALUES = st.one_of(st.none(), st.booleans(), st.integers(0, 9), st.floats(0, 1), st.just("a"))
RECORDS = st.lists(st.fixed_dictionaries({"x": VALUES, "y": VALUES}), max_size=12)


@given(RECORDS)
def test_what_is_packed_comes_back_with_four_digits(records):
    found = archive.unpack(json.loads(json.dumps(keeping.pack(records))))
    assert len(found) == len(records)
    for before, after in zip(records, found, strict=True):
        assert list(after) and set(after) == set(before)
        for key, value in before.items():
            assert type(after[key]) is type(value)
            close = isinstance(value, float) and abs(after[key] - value) <= 1e-3 * value
            assert close or after[key] == value


def test_long_runs_are_short():
    records = [{"kind": "a", "mse": k / 7, "residual": 1.0} for k in range(100)]
    packed = keeping.pack(records)
    assert packed["runs"] == {"kind": [["a", 100]]}
    assert list(packed["columns"]) == ["mse"]
    assert packed["columns"]["mse"][1] == 0.1429


def test_layers_are_packed_one_by_one_and_a_record_may_have_none():
    layers = [{"name": "fc", "rank": 5, "residual": 1e-9}, {"name": "conv1", "rank": 7}]
    records = [{"index": 0, "layers": layers}, {"index": 1}]
    found = archive.unpack(json.loads(json.dumps(keeping.pack(records))))
    kept = [{"name": "fc", "rank": 5}, {"name": "conv1", "rank": 7}]
    assert found == [{"index": 0, "layers": kept}, {"index": 1, "layers": None}]


def test_an_entry_that_some_records_lack_is_none_there():
    found = archive.unpack(keeping.pack([{"a": 1}, {"a": 1, "b": 2}]))
    assert found == [{"a": 1, "b": None}, {"a": 1, "b": 2}]


@pytest.fixture
def kept(tmp_path):
    """An archive of one photo, and its records as they were."""
    records = run("Photos", [1], "lenet_o").records
    source, path = tmp_path / "result.json", tmp_path / "records" / "Photos-lenet_o.json"
    source.write_text(json.dumps(records))
    keeping.write(path, source, "paper", "1.2.3", {"images": "1:2"}, "0123456789abcdef")
    return archive.read(path), records


def test_an_archive_says_when_how_and_by_which_version(kept):
    found, (before,) = kept
    assert (found.version, found.grid) == ("1.2.3", "paper") and len(found.date) == 10
    assert found.torch == torch.__version__ and found.parameters == {"images": "1:2"}
    assert found.environment == "0123456789abcdef"
    (after,) = found.records
    assert after["mse"] == pytest.approx(before["mse"], rel=1e-3)
    assert [x["rank"] for x in after["layers"]] == [x["rank"] for x in before["layers"]]


@pytest.mark.parametrize("damage", ["", "[1]", "{}", '{"records": 1}', "half"])
def test_a_damaged_archive_is_refused_by_its_name(tmp_path, damage):
    path = tmp_path / "MNIST-lenet.json"
    path.write_text(KEPT[0].read_text()[:900] if damage == "half" else damage)
    with pytest.raises(ValueError, match=r"MNIST-lenet.json .*make paper"):
        archive.read(path)


EXPERIMENTS = [path for path in KEPT if path.parent.name == "experiment"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_kept_records_are_of_the_parameters_that_they_name(path):
    kept = archive.read(path)
    own, asked = kept.records, kept.parameters
    assert {r["index"] for r in own} == set(datasets.parse_indices(asked["images"]))
    assert {r["seed"] for r in own} == set(asked["seeds"])
    assert {r["activation"] for r in own} == set(asked["activations"])
    single = {r["index"] for r in own if r["dtype"] == "float32"}
    assert single == set(datasets.parse_indices(asked["single"]))


def test_an_archive_knows_when_a_network_has_changed(kept, monkeypatch):
    found, _ = kept
    assert not keeping.stale(found)
    changed = architectures.ARCHITECTURES["lenet"]
    monkeypatch.setitem(architectures.ARCHITECTURES, "lenet_o", changed)
    assert keeping.stale(found) == ["lenet_o"]
    monkeypatch.delitem(architectures.ARCHITECTURES, "lenet_o")
    assert keeping.stale(found) == ["lenet_o"]


@pytest.mark.parametrize("what", ["SUCCESS", "filters", "initialisation"])
def test_every_fact_is_in_the_digest(what, monkeypatch):
    before = keeping.digest("lenet")
    if what == "SUCCESS":
        monkeypatch.setattr(keeping, "SUCCESS", 2 * SUCCESS)
    else:
        own = architectures.ARCHITECTURES["lenet"]
        value = {"filters": (12, 16, 12, 13), "initialisation": "default"}[what]
        changed = architectures.Architecture(**{**vars(own), what: value})
        monkeypatch.setitem(architectures.ARCHITECTURES, "lenet", changed)
    assert keeping.digest("lenet") != before


@pytest.mark.arithmetic
@pytest.mark.parametrize("initialisation", ["default", "uniform"])
def test_the_digest_does_not_depend_on_how_a_weight_is_rounded(initialisation, monkeypatch):
    """As on a processor that rounds twice where others multiply and add at once."""
    own = architectures.ARCHITECTURES["cnn6"]
    changed = architectures.Architecture(**{**vars(own), "initialisation": initialisation})
    monkeypatch.setitem(architectures.ARCHITECTURES, "cnn6", changed)
    before = keeping.digest("cnn6")
    model = architectures.build("cnn6")
    for parameter in model.parameters():
        parameter.data *= 1 + EPS
    monkeypatch.setattr(architectures, "build", lambda name: model)
    assert keeping.digest("cnn6") == before
    model.conv1.weight.data[0, 0, 0, 0] += 2 * keeping.STEP
    assert keeping.digest("cnn6") != before


def test_fresh_results_stand_before_kept_ones(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(pages, "FRESH", tmp_path / "fresh")
    for folder in ("kept", "fresh"):
        (tmp_path / folder / "experiment").mkdir(parents=True)
    for point in ("Photos-lenet_o", "Photos-lenet"):
        keeping.write(
            tmp_path / "kept" / "experiment" / f"{point}.json",
            tmp_path / "result.json",
            "paper",
            "1.2.3",
            {},
        )
    fresh = tmp_path / "fresh" / "experiment" / "Photos-lenet_o.json"
    fresh.write_text('[{"mse": 0.5}]')
    found = pages.results("experiment")
    assert list(found) == [("Photos", "lenet"), ("Photos", "lenet_o")]
    assert found["Photos", "lenet_o"] == [{"mse": 0.5}]
    assert found["Photos", "lenet"][0]["mse"] < SUCCESS
    origin = pages.origin("experiment")
    assert "built this page: Photos with `lenet_o`" in origin
    assert "version 1.2.3 with `make paper`" in origin and origin.endswith("Photos with `lenet`.")


def test_a_point_without_a_page_is_no_link(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book" / "experiment").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks")
    assert pages.link("experiment", ("Photos", "lenet")) == "Photos, lenet"
    Path("../book/experiment/Photos-lenet.ipynb").write_text("{}")
    assert 'href="../book/experiment/Photos-lenet.html"' in pages.link(
        "experiment", ("Photos", "lenet")
    )


def test_kept_records_are_small():
    assert sum(path.stat().st_size for path in KEPT) < 2e6


@pytest.mark.arithmetic
@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_kept_records_are_of_the_networks_that_the_code_has(path):
    assert not keeping.stale(archive.read(path)), (
        "run `make paper RCONV_DATA=…` and commit book/records"
    )


def sample(path):
    """One record of each setting in which the attack was run on images of this file."""
    seen = set()
    for record in archive.read(path).records:
        key = record["activation"], record["constraints"]
        if record["dtype"] == "float64" and record["seed"] is not None and key not in seen:
            seen.add(key)
            yield record


SINGLE = [path for path in KEPT if path.parent.name in ("experiment", "published")]


@pytest.mark.skipif(not os.environ.get("RCONV_DATA"), reason="needs the images of RCONV_DATA")
@pytest.mark.parametrize("path", SINGLE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_kept_records_are_what_the_code_gives_now(path):
    for record in sample(path):
        (again,) = run(
            record["dataset"],
            [record["index"]],
            record["architecture"],
            record["activation"],
            seed=record["seed"],
            constraints=record["constraints"],
            filters=record["filters"],
        ).records
        assert (again["mse"] < SUCCESS) == (record["mse"] < SUCCESS)
        assert again["unique"] == record["unique"]
        # Errors of rounding: they move by two powers of ten with the library and the batch. They
        # may be smaller by more, where `auto` takes all equations now and took fewer then.
        assert math.log10(again["mse"] / record["mse"]) < 4
