"""Imports go one way: scheduler → worker → models; and only the worker talks to the outside web."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path for package in ("models", "worker", "scheduler") for path in sorted((ROOT / package).rglob("*.py"))
]
FORBIDDEN = {
    "models": {
        "worker",
        "scheduler",
        "celery",
        "kombu",
        "redis",
        "httpx",
        "aiohttp",
        "yarl",
        "PIL",
        "obstore",
    },
    "worker": {"scheduler"},
    "scheduler": {"httpx", "aiohttp"},
}
SERVERS = {"scheduler/demo_site.py", "scheduler/demo_pages.py"}
"""They answer requests, so they may use aiohttp.web."""


def imported(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    """A file imports nothing from a package above its own, and no library that is another's business."""
    place = path.relative_to(ROOT)
    names = set(imported(path))
    if str(place) in SERVERS:
        names = {name for name in names if not name.startswith("aiohttp.web")}
    assert not {name.split(".")[0] for name in names} & FORBIDDEN[place.parts[0]]


def test_a_scheduler_starts_without_what_speaks_http():
    """Only payments over HTTP need it: a scheduler of which nobody wants them is there sooner."""
    look = "import scheduler.loop, sys; print({'httpx', 'aiohttp'} & sys.modules.keys())"
    shown = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"
