"""The fenced blocks of a page of documentation, run as a reader would run them, and what they print compared.

A ```text block right after another is that block's output; ``…`` in it stands for anything. The words after the
language say how a block is meant: ``fails``, when it is refused.
"""

import contextlib
import io
import re
import subprocess
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANYTHING = "…"
SECONDS_MAX = 60


@dataclass(frozen=True)
class Block:
    """One fenced block: where it begins, its language, the words beside it, and the output shown below it."""

    page: str
    line: int
    language: str
    marks: frozenset[str]
    code: str
    output: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """Every block of a page that is not the output of another."""
    text = path.read_text()
    found: list[Block] = []
    end = 0
    for fence in FENCE.finditer(text):
        language, marks, code = fence.groups()
        line = text.count("\n", 0, fence.start()) + 1
        follows = found and not text[end : fence.start()].strip()
        if language == "text" and follows:
            found[-1] = Block(**vars(found[-1]) | {"output": code})
        else:
            found.append(Block(path.name, line, language, frozenset(marks.split()), code))
        end = fence.end()
    return found


class Reader:
    """Somebody who types the blocks of one page: one Python session, one shell, one database."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.environment = folder, dict(environment)
        self.namespace: dict[str, Any] = {}

    def run(self, block: Block) -> None:
        """Run a block and compare what it shows."""
        run = {"python": self.python, "sql": self.sql, "console": self.shell, "bash": self.shell}[
            block.language
        ]
        printed = run(block)
        if block.output is not None:
            assert matches(block.output, printed), f"{block} shows\n{block.output}\nand prints\n{printed}"

    def leave(self) -> None:
        """Close the sessions and engines that the page's Python left open."""
        kept = list(self.namespace.values())
        for session in (value for value in kept if isinstance(value, Session)):
            session.close()
        for engine in (value for value in kept if isinstance(value, Engine)):
            engine.dispose()

    def python(self, block: Block) -> str:
        """Run in the page's namespace."""
        printed = io.StringIO()
        code = compile("\n" * block.line + block.code, block.page, "exec")
        try:
            with contextlib.redirect_stdout(printed):
                exec(code, self.namespace)  # noqa: S102 - a reader's Python runs what the page says
        except Exception as error:  # noqa: BLE001 - whatever a page raises is this test's failure
            # pytest would look for the source of these frames, and a page is not Python.
            raise AssertionError(f"{block}: {''.join(traceback.format_exception(error))}") from None
        return printed.getvalue()

    def sql(self, block: Block) -> str:
        """Run by psql; it stops at the first error."""
        stop = "ON_ERROR_STOP=on"
        return self._call(
            block, ["psql", "-X", "--set", stop, "--set", "VERBOSITY=default", "-f", "-"], block.code
        )

    def shell(self, block: Block) -> str:
        """Run by a shell; it stops at the first command that fails."""
        return self._call(block, ["bash", "-e", "-o", "pipefail", "-s"], block.code)

    def _call(self, block: Block, command: list[str], given: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
        assert bool(done.returncode) == ("fails" in block.marks), f"{block}: {done.returncode}\n{done.stdout}"
        return re.sub(r"^psql:<stdin>:\d+: ", "", done.stdout, flags=re.MULTILINE)


def matches(shown: str, printed: str) -> bool:
    """Whether ``printed`` is what a page shows; white space at the ends of lines does not count."""
    pattern = re.escape(_tidy(shown)).replace(ANYTHING, ".*?")
    return re.fullmatch(pattern, _tidy(printed), re.DOTALL) is not None


def _tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def commands(block: Block) -> Iterator[str]:
    """The lines of a shell block, continued ones joined, without comments."""
    for line in block.code.replace("\\\n", " ").splitlines():
        if command := re.sub(r"(^|\s)#.*", "", line).strip():
            yield command
