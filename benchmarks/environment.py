"""The contenders' own virtual environment, .venv-bench: made when missing or stale. It leaves .venv alone."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
FOLDER = ROOT / ".venv-bench"
FLOOR = ("pycurl", "pillow")
ALL = "all"


class EnvironmentMissingError(Exception):
    """Not even the floor can be installed. The message is one sentence."""


def prepare(*, others: bool) -> bool:
    """Make sure that the floor can run; return whether img2dataset and Scrapy, if wanted, can too.

    Raises EnvironmentMissingError.
    """
    stamp = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    record = FOLDER / "stamp"
    made = record.read_text("utf-8").split() if record.exists() else []
    if made[:1] == [stamp] and (not others or made[1:] == [ALL]):
        return others
    print(f"Setting up {FOLDER.name} (about a minute, once) …", file=sys.stderr, flush=True)
    create()
    if others and install(["-r", str(REQUIREMENTS)]) is None:
        record.write_text(f"{stamp} {ALL}", "utf-8")
        return True
    if others:
        print("img2dataset and Scrapy cannot be installed here and are left out.", file=sys.stderr)
    lines = REQUIREMENTS.read_text("utf-8").split("\n")
    refusal = install([line for line in lines if line.partition("==")[0] in FLOOR])
    if refusal is not None:
        raise EnvironmentMissingError(f"pycurl, for the floor, cannot be installed here: {refusal}.")
    record.write_text(stamp, "utf-8")
    return False


def create() -> None:
    """An empty environment that Git does not see."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
    (FOLDER / ".gitignore").write_text("*\n", "utf-8")


def install(arguments: list[str]) -> str | None:
    """Install with pip; None, or pip's last word when it refuses."""
    command = [program("python"), "-m", "pip", "--disable-pip-version-check", "install", "-q", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode == 0:
        return None
    return finished.stderr.strip().rpartition("\n")[2] or f"pip ended with {finished.returncode}"


def program(name: str) -> str:
    """Path of a program in the environment."""
    return str(FOLDER / "bin" / name)
