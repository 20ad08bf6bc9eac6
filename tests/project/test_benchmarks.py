"""Every benchmark runs: its short form, with the images that come with the packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = sorted(Path(__file__).parents[2].glob("benchmarks/[!_]*.py"))


def test_there_are_benchmarks():
    assert {"speed", "accuracy", "large", "batches"} <= {file.stem for file in BENCHMARKS}


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_the_short_form_runs_without_a_dataset(file, tmp_path):
    """The record of the last full run stays as it is."""
    record = file.with_suffix(".json")
    before = record.read_bytes() if record.exists() else None
    environment = {**os.environ, "RCONV_DATA": str(tmp_path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(file), "--short"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) >= 2
    assert (record.read_bytes() if record.exists() else None) == before
    assert not list(tmp_path.iterdir())


def test_a_record_is_kept_where_it_is_asked_for(tmp_path):
    scaling = next(file for file in BENCHMARKS if file.stem == "scaling")
    target = tmp_path / "record.json"
    run = [sys.executable, str(scaling), "--short", "--write", str(target)]
    subprocess.run(run, capture_output=True, check=True)
    kept = json.loads(target.read_text())
    assert set(kept) == {"made", "date", "points"} and "--short" in kept["made"]
    assert len(kept["points"]) == 2 and float(kept["points"][0]["MSE"]) < 1e-20
