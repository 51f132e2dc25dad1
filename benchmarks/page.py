"""docs/performance.md: a template, and in it what each part measured last. Who runs again replaces his own."""

import re
from pathlib import Path

from benchmarks.environment import ROOT
from benchmarks.setting import Section

PAGE = ROOT / "docs" / "performance.md"
TEMPLATE = Path(__file__).with_name("performance.template.md")
BLOCK = re.compile(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->\n", re.DOTALL)
UNMEASURED = 'Not measured yet: `make bench ARGS="--only {name} --write"`.\n'


def write(name: str, section: Section) -> None:
    """Put a section into the page, and its drawing beside it."""
    written = PAGE.read_text("utf-8") if PAGE.exists() else ""
    text = section.text + "\n"
    if section.drawing is not None:
        drawing = PAGE.with_name(f"performance-{name}.svg")
        drawing.write_text(section.drawing, "utf-8")
        text = f"![{name}]({drawing.name})\n\n{text}"
    PAGE.write_text(compose(TEMPLATE.read_text("utf-8"), written, {name: text}), "utf-8")


def compose(template: str, written: str, measured: dict[str, str]) -> str:
    """The template with each block filled: by what was ``measured`` now, or by what stood in the page before."""
    before = dict(BLOCK.findall(written))

    def fill(block: re.Match[str]) -> str:
        name = block[1]
        text = measured.get(name) or before.get(name) or UNMEASURED.format(name=name)
        return f"<!-- {name} -->\n{text}<!-- /{name} -->\n"

    return BLOCK.sub(fill, template)
