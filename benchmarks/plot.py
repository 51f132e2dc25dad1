"""Bars as SVG, by hand: readable on light and dark pages, small enough to be read as text."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

LABEL_WIDTH, BAR_WIDTH, ROW, TOP = 290, 380, 26, 34
STYLE = """text { font: 13px system-ui, sans-serif; fill: #1f2328; } .title { font-weight: 600; }
.bar { fill: #8c959f; } .ours { fill: #0969da; } .spread { stroke: #1f2328; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .bar { fill: #6e7681; } .ours { fill: #388bfd; }
.spread { stroke: #e6edf3; } }"""


class Bar(NamedTuple):
    """One bar: its length, between the least and the most that was seen."""

    label: str
    value: float
    least: float
    most: float
    ours: bool = False


def draw(title: str, bars: Sequence[Bar]) -> str:
    """A picture of bars, one under the other, in their order."""
    scale = BAR_WIDTH / max(bar.most for bar in bars)
    width, height = LABEL_WIDTH + BAR_WIDTH + 90, TOP + ROW * len(bars) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text class="title" x="8" y="20">{escape(title)}</text>',
    ]
    for number, bar in enumerate(bars):
        top = TOP + ROW * number
        middle, end = top + ROW / 2, LABEL_WIDTH + bar.value * scale
        least, most = LABEL_WIDTH + bar.least * scale, LABEL_WIDTH + bar.most * scale
        left, kind = LABEL_WIDTH, "ours" if bar.ours else "bar"
        parts += [
            f'<text x="{left - 10}" y="{middle + 4}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect class="{kind}" x="{left}" y="{top + 4}" width="{end - left:.1f}" height="{ROW - 8}"/>',
            f'<line class="spread" x1="{least:.1f}" x2="{most:.1f}" y1="{middle}" y2="{middle}"/>',
            f'<text x="{max(end, most) + 8:.1f}" y="{middle + 4}">{bar.value:,.0f}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
