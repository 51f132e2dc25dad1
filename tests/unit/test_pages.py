"""What the pages of documentation name is there: files, headings, commands with their options, rules of tables."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from models import Base
from models.settings import Settings
from scheduler.cli import pixtrawl
from tests.support.pages import FENCE, blocks, commands

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [page.name for page in PAGES]
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
CALL = re.compile(r"(?:^|[\s(\"'/])pixtrawl((?: +(?:\"[^\"]*\"|'[^']*'|[^\s|<>&;()]+))+)")
RULE = re.compile(r"`((?:ck|ix|uq|pk|fk)_\w+)`")


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub makes anchors of them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link names a file, and a heading of it where it names one."""
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def calls(page: Path) -> Iterator[list[str]]:
    """The words behind ``pixtrawl`` of every call in a shell block, or in a unit of systemd."""
    for block in blocks(page):
        if block.language in {"bash", "console", "ini"}:
            for command in commands(block):
                yield from (shlex.split(words) for words in CALL.findall(command))


def parse(words: list[str]) -> None:
    """Parse a call as the program would; nothing is run."""
    command: click.Command = pixtrawl
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, words
        command, words = found, words[1:]
    with command.make_context(command.name, list(words)):
        pass


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_are_those_of_the_program(page: Path) -> None:
    """Each call of ``pixtrawl`` in a shell block is one that the program takes; each in a sentence exists."""
    for words in calls(page):
        parse(words)
    for words in re.findall(r"`pixtrawl ([^`]+)`", FENCE.sub("", page.read_text())):
        command: click.Command = pixtrawl
        for word in shlex.split(words):
            if not isinstance(command, click.Group) or not word.islower():
                break
            found = command.get_command(click.Context(command), word)
            assert found is not None, words
            command = found


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_targets_of_make_are_in_the_makefile(page: Path) -> None:
    """Each ``make`` of a page, in a block or in a sentence, names a target."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:`|^)(?:[A-Z_]+=\S+ )*make ([a-z]+)", page.read_text(), re.MULTILINE)
    assert set(named) <= targets


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_rules_are_those_of_the_tables(page: Path) -> None:
    """Each constraint or index that a page names is declared."""
    tables = Base.metadata.tables.values()
    declared = {str(rule.name) for table in tables for rule in (*table.constraints, *table.indexes)}
    assert set(RULE.findall(page.read_text())) <= declared


def test_safety_names_real_tests():
    """Each test that docs/safety.md names exists, and each of its settings."""
    page = (ROOT / "docs" / "safety.md").read_text()
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", page))
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 20
    assert named <= written, named - written
    for variable in re.findall(r"`PIXTRAWL_([A-Z_]+)`", page):
        assert variable.lower() in Settings.model_fields
