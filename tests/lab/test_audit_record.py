"""The audit as a tool: the record and its schema, exit codes, settings, and the report."""

import html.parser
import json
import os
import subprocess
import sys
from importlib.resources import files

import jsonschema
import pytest
import torch
from torch import nn

from rconv.cli import main
from rconv.cli.arguments import parse, read_settings
from rconv.lab.audit_record import MEANINGS, above, full_audit
from rconv.lab.scenarios import Scenario, matrix, sent
from rconv.lab.trial import LEAKS, NOT_BY_THIS_ATTACK, PARTLY, RISKS
from rconv.observe.observation import per_sample_gradients
from rconv.show.audit import MEANS_NOT, TERMS, data_url, page

SCHEMA = json.loads(files("rconv.lab").joinpath("audit.schema.json").read_text("utf-8"))

SOURCE = """
import torch
from torch import nn

def Net():
    body = nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 6, 3, padding=1), nn.Tanh()
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(216, 3))

def Partly():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))

class Vector(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(36, 3)

    def forward(self, x):
        return self.fc(torch.fft.fft2(x).abs().flatten(1))

class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(36, 3))

    def forward(self, x):
        return torch.fft.fft2(x).abs().flatten(1) @ self.weight
"""
OWN = ["--input-shape", "1,6,6", "--trials", "1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def valid(record):
    jsonschema.validate(record, SCHEMA, jsonschema.Draft202012Validator)
    return record


def leaking():
    torch.manual_seed(0)
    body = nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(216, 4))


def short(filters=4):
    """Too few equations: a picture can be made out, and does not come back."""
    torch.manual_seed(0)
    body = nn.Conv2d(3, filters, 3, 2, 1), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(filters * 64, 10))


def test_the_schema_is_a_schema_and_refuses_what_it_does_not_know():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    record = full_audit(leaking(), (1, 6, 6), trials=1).record
    valid(record)
    for wrong in ({"schema_version": "0"}, {"more": 1}, {"trial": {}}):
        with pytest.raises(jsonschema.ValidationError):
            valid({**record, **wrong})


def test_a_leaking_model_with_its_scenarios():
    audit = full_audit(leaking(), (1, 6, 6), name="<b>\u202e", trials=2, scenarios=True)
    record = valid(audit.record)
    assert record["verdict"]["risk"] == LEAKS and record["trial"]["recovered"] == 2
    assert record["layers"][-1]["kind"] == "Conv2d 1→6, 3×3"
    assert record["trial"]["unique_and_wrong"] == 0
    cells = {(own["respect"], own["value"]): own for own in record["scenarios"]}
    assert len(cells) == len(matrix(Scenario()))
    assert cells["Precision", "float64"]["risk"] == LEAKS
    assert cells["Precision", "float64"]["psnr"] > cells["Precision", "float32"]["psnr"] + 40
    # No layer of this model behaves differently in training.
    assert cells["Mode", "training mode"]["psnr"] == record["trial"]["psnr_of_recovered"]
    assert "at most 3" in cells["Sum over clients", "4 clients"]["reason"]
    assert cells["DP noise", "σ = 1"]["risk"] == NOT_BY_THIS_ATTACK
    assert "one attack: nothing was visible at σ = " in record["verdict"]["action"]
    epsilons = [own["epsilon"] for own in record["scenarios"] if own["noise"]]
    assert epsilons == sorted(epsilons, reverse=True) and 5 < epsilons[-1] < 15 < epsilons[0]
    assert record["threat_model"]["epsilon"] is None


def test_a_model_that_leaks_partly():
    """A limit that is over before it begins leaves one image, and no other scenario."""
    audit = full_audit(short(), (3, 16, 16), trials=2, scenarios=True, time_limit=1e-9)
    record = valid(audit.record)
    assert record["verdict"]["risk"] == PARTLY and record["trial"]["visible"] > 0
    assert record["trial"]["tried"] == record["features"]["exact"] == 1
    assert {own["risk"] for own in record["scenarios"]} == {PARTLY, "not run"}
    assert "did not stop" not in record["verdict"]["action"]
    assert above(LEAKS, PARTLY) and above(PARTLY, PARTLY) and not above(PARTLY, LEAKS)
    assert not above(NOT_BY_THIS_ATTACK, PARTLY)
    assert tuple(MEANINGS)[:3] == RISKS


def test_a_refused_model_gives_away_its_last_features():
    """resnet18 in small: in both modes, with two images where BatchNorm takes no batch of one."""
    torch.manual_seed(0)
    norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveMaxPool2d(1)
    model = nn.Sequential(*norm, nn.Flatten(), nn.Linear(8, 4))
    deep = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 8, 6), nn.BatchNorm2d(8), *model[2:])
    for own, mode, tried in (
        (model, "evaluation", 3),
        (model, "training", 3),
        (deep, "training", 2),
    ):
        audit = full_audit(own, (3, 6, 6), scenario=Scenario(mode=mode), trials=3)
        record = valid(audit.record)
        assert record["verdict"]["risk"] == PARTLY and audit.trial is None
        assert record["features"]["exact"] == record["features"]["labels_right"] == tried
        assert max(record["features"]["error"]) < 1e-4 and record["features"]["count"] == 8
        assert "The image itself is not determined" in record["verdict"]["sentence"]
        assert ("takes two" in record["verdict"]["caveat"]) == (tried == 2)
        assert "<strong>" in page(audit)


def test_by_rank_alone_a_short_rank_is_not_called_safe():
    record = valid(full_audit(short(), (3, 16, 16), trials=0).record)
    assert record["trial"] is None and record["verdict"]["risk"] == PARTLY
    assert "directions of its input open" in record["verdict"]["sentence"]


def test_what_is_sent_in_each_scenario():
    model, images = leaking().double(), torch.rand(4, 1, 6, 6, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3])
    each = per_sample_gradients(model, images, labels)
    mean, _ = sent(model, images, labels, Scenario(batch=4, dtype=None))
    two, _ = sent(model, images, labels, Scenario(batch=2, clients=2, dtype=None))
    noised, noise = sent(model, images, labels, Scenario(noise=0.1, dtype=None))
    for name, g in each.items():
        scale = g.abs().max()
        assert (mean[name] - g.mean(0)).abs().max() < 1e-12 * scale
        assert (two[name] - g.sum(0) / 2).abs().max() < 1e-12 * scale
        assert noised[name].shape == g.shape and noise.std[name] > 0
    with pytest.raises(ValueError, match="4 images are behind one gradient, but 3 given"):
        sent(model, images[:3], labels[:3], Scenario(batch=4))
    with pytest.raises(ValueError, match="one image only"):
        sent(model, images, labels, Scenario(batch=4, steps=2))


CODES = {
    "leaks, no threshold": (["--model", "net.py:Net"], 0),
    "leaks, threshold": (["--model", "net.py:Net", "--fail-on", "leaks"], 3),
    "partly, threshold": (["--model", "net.py:Partly", "--fail-on", "partly"], 3),
    "partly, below the threshold": (["--model", "net.py:Partly", "--fail-on", "leaks"], 0),
    "not by this attack": (["--model", "net.py:Net", "--noise", "1", "--fail-on", "partly"], 0),
    "usage": (["--model", "net.py:Nope"], 2),
    "features alone": (["--model", "net.py:Vector", "--fail-on", "partly"], 3),
    "not supported": (["--model", "net.py:Opaque", "--fail-on", "leaks"], 4),
}


@pytest.mark.parametrize("arguments, code", CODES.values(), ids=CODES)
def test_exit_codes_of_the_process(arguments, code, folder):
    """Also the files that each leaves: a report of an unsupported model, none of wrong usage."""
    command = [sys.executable, "-m", "rconv", "audit", *OWN, *arguments, "--time-limit", "0.1"]
    command += ["--json", "a.json", "--html", "a.html"]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert run.returncode == code, run.stderr
    written = code != 2
    assert [(folder / name).exists() for name in ("a.json", "a.html")] == [written] * 2
    if written:
        record = valid(json.loads((folder / "a.json").read_text()))
        named = {"Opaque": "not supported", "Partly": PARTLY, "Vector": PARTLY}
        risk = named.get(arguments[1].partition(":")[2], LEAKS)
        assert record["verdict"]["risk"] == (NOT_BY_THIS_ATTACK if "--noise" in arguments else risk)
        refused = arguments[1].partition(":")[2] in ("Opaque", "Vector")
        assert (record["refusal"] is not None) == refused
        assert record["verdict"]["risk"] in run.stdout


def test_settings_come_from_pyproject_and_the_command_line_wins(folder):
    file = folder / "pyproject.toml"
    assert parse(["audit"]).model is None
    file.write_text(
        '[tool.rconv.audit]\nmodel = "net.py:Net"\ninput-shape = [1, 6, 6]\ntrials = 1\n'
        'fail-on = "leaks"\ntime-limit = 0.1\n'
    )
    own = parse(["audit"])
    assert (own.model, own.input_shape, own.trials) == ("net.py:Net", (1, 6, 6), 1)
    assert main(["audit"]) == 3 and main(["audit", "--model", "net.py:Opaque"]) == 4
    assert parse(["audit", "-m", "lenet"]).model is None  # instead of the file's
    assert parse(["audit", "-i", "3"]).trials is None
    assert not hasattr(parse(["attack"]), "trials")


def test_two_local_steps_with_their_scenarios():
    """No ε is stated for several steps."""
    options = {"scenario": Scenario(steps=2), "trials": 1, "scenarios": True}
    record = valid(full_audit(leaking(), (1, 6, 6), **options).record)
    assert {own["epsilon"] for own in record["scenarios"] if own["noise"]} == {None}
    assert "ε of a single step" not in record["verdict"]["action"]


WRONG = {
    "an unknown setting": ('modle = "net.py:Net"', "modle: unknown setting; known are activation"),
    "a value of no kind": ("trials = true", "trials: must be a text"),
    "no TOML": ("trials = ", "pyproject.toml: Invalid value"),
}


@pytest.mark.parametrize("line, hint", WRONG.values(), ids=WRONG)
def test_wrong_settings_are_refused_by_name(line, hint, folder, capsys):
    (folder / "pyproject.toml").write_text(f"[tool.rconv.audit]\n{line}\n")
    assert main(["audit"]) == 2
    error = capsys.readouterr().err
    assert hint in error and error.count("\n") == 1
    with pytest.raises(ValueError, match=r"pyproject\.toml"):
        read_settings(folder / "pyproject.toml")


def test_a_wrong_value_in_the_settings_is_refused_as_on_the_command_line(folder, capsys):
    (folder / "pyproject.toml").write_text('[tool.rconv.audit]\ntrials = "many"\n')
    with pytest.raises(SystemExit) as stop:
        parse(["audit"])
    assert stop.value.code == 2 and "--trials" in capsys.readouterr().err


class _Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def test_the_report_is_one_file_that_says_what_the_record_says():
    audit = full_audit(short(), (3, 16, 16), name="<b>\u202e", trials=2)
    source = page(audit)
    written = _Page(source)
    assert len(written.all("h1")) == 1 and written.all("html") == [{"lang": "en"}]
    assert not {"script", "link", "iframe"} & {tag for tag, _ in written.tags}
    pictures = written.all("img")
    assert len(pictures) == 4 and {own["alt"] for own in pictures} == {"original", "reconstruction"}
    assert all(own["src"].startswith("data:image/png;base64,") for own in pictures)
    assert not [own for _, own in written.tags if "href" in own]
    assert "http" not in source.replace("http-equiv", "")
    verdict = audit.record["verdict"]
    assert all(verdict[key] in written.text for key in ("sentence", "action", "meaning"))
    assert r"<b>\u202e" in written.text and all(text in written.text for text in MEANS_NOT)
    current = [own for own in written.all("li") if "aria-current" in own]
    assert current == [{"class": "state-partly", "aria-current": "true"}]
    terms = [own for own in written.all("span") if own.get("class") == "term"]
    assert {own["aria-describedby"] for own in terms} <= {
        own["id"] for own in written.all("dt") if own
    }
    assert all(own["tabindex"] == "0" and own["data-means"] in TERMS.values() for own in terms)


def test_a_picture_in_the_report_is_the_image():
    import base64
    import io

    import numpy as np
    from PIL import Image

    for channels in (1, 3):
        image = torch.rand(channels, 5, 7)
        png = base64.b64decode(data_url(image).partition(",")[2])
        found = np.asarray(Image.open(io.BytesIO(png))).reshape(5, 7, channels) / 255
        assert np.abs(found - image.permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6


def test_networks_with_blocks_are_audited_by_trial():
    torch.manual_seed(0)
    norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()
    model = nn.Sequential(*norm, nn.Flatten(), nn.Linear(432, 4))
    scenario = Scenario(mode="training", dtype="float64")
    found = full_audit(model, (1, 6, 6), scenario=scenario, trials=1)
    record = valid(found.record)
    assert record["verdict"]["risk"] == LEAKS and record["rank"] is None
    assert record["layers"][-1]["kind"] == "Conv2d 1→12, 3×3 and BatchNorm2d"
    asked = full_audit(model, (1, 6, 6), scenario=scenario, trials=0)
    assert "audit the model by trying the attack" in valid(asked.record)["refusal"]["message"]
