"""`pixtrawl demo` from an empty home: it checks itself, and its word is checked here."""

import hashlib
import sys
from typing import Any

import pytest
from PIL import Image

from models.audit import Statement, StoredImage
from scheduler.commands.demo import Findings, wrong_figures
from tests.support.processes import call, environment, processes_of


def test_demo_agrees_with_what_the_site_served(tmp_path) -> None:
    """Exit code 0, both columns equal, a contact sheet; no data and no process stay."""
    home = tmp_path / "home"
    shell = environment(home, allowed_networks="", redirects_max=0, store_url="file:///never/used")
    demo = call(tmp_path / "here", shell, "demo", "--images", 20)
    assert demo.process.returncode == 0, demo.output + demo.errors
    assert "✓ Every figure agrees" in demo.output
    rows = [line.split() for line in demo.output.splitlines() if line.endswith("✓")]
    assert ["accepted", "20", "20", "✓"] in rows
    assert all(expected == found for _, expected, found, _ in rows)
    assert "Job completed: Demo" in demo.output
    with Image.open(tmp_path / "here" / "pixtrawl-demo.png") as sheet:
        sheet.load()
    assert not (home / "demo").exists()
    if sys.platform == "linux":
        assert processes_of(home) == {}


BODIES = [b"one", b"two", b"three"]


def findings(**changes: Any) -> Findings:
    """A demo of three images and one failure in which all agrees, but for the changes."""
    images = [
        StoredImage(number, f"file:///{number}", hashlib.sha256(body).digest())
        for number, body in enumerate(BODIES)
    ]
    job = {"total_images": 4, "valid_images": 3, "failures": {"dns": 1}, "status": "completed"}
    job |= {"credits": {"held": 0, "charged": 3}}
    found: dict[str, Any] = {
        "job": job | changes.pop("job", {}),
        "outcomes": dict(enumerate(["accepted"] * 3 + ["dns"])),
        "images": images,
        "files": {str(number): body for number, body in enumerate(BODIES)},
        "statement": Statement(granted=10, holds=1, held=4, charged=3, released=1, open=0, balance=7),
        "notifications": [{"title": "Job completed", "message": ""}],
    }
    return Findings(**found | changes)


WRONG: list[dict[str, Any]] = [
    {"job": {"status": "failed"}},
    {"job": {"total_images": 5}},
    {"job": {"valid_images": 4}},
    {"job": {"failures": {"tls": 1}}},
    {"job": {"credits": {"held": 0, "charged": 2}}},
    {"outcomes": {0: "accepted", 1: "accepted", 2: "accepted"}},
    {"images": []},
    {"files": {"0": b"one", "1": b"two", "2": b"other"}},
    {"files": {"0": b"one", "1": b"two", "2": b"three", "3": b"three"}},
    {"statement": Statement(10, 1, 4, 3, 1, 0, balance=6)},
    {"statement": Statement(10, 1, 4, 3, 0, 1, balance=6)},
    {"notifications": []},
]


@pytest.mark.parametrize("change", WRONG)
def test_every_figure_that_differs_is_found(change) -> None:
    """No single wrong row, file, counter or credit goes unnoticed."""
    assert list(wrong_figures(4, findings())) == []
    assert list(wrong_figures(4, findings(**change)))
