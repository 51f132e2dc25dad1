"""Which column is what: the URL, a digest, what About has a place for; all others are metadata."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from models.candidates import Row
from worker.sources.url_list import CUT, LINE_BYTES_MAX
from worker.tables.errors import UnfitTableError
from worker.tables.formats import TableOptions

URL_COLUMNS = (
    *("url", "imageurl", "imgurl", "pictureurl", "photourl", "contenturl", "originalurl", "downloadurl"),
    *("fileurl", "mediaurl", "imagelink", "imageuri", "image", "link", "src", "uri", "href"),
)
"""Names that are taken for the URL's, the best first: in small letters, without ``_``, ``-`` and spaces."""
ABOUT_COLUMNS = {
    "licence": "licence",
    "license": "licence",
    "creator": "creator",
    "author": "creator",
    "keyword": "keyword",
    "sourcepage": "source_page",
    "provider": "provider",
}
ALGORITHMS = {64: "sha256", 40: "sha1", 32: "md5"}
"""By the number of hexadecimal digits."""
HEXADECIMAL = re.compile(r"[0-9a-f]+")
NAMES_SHOWN = 20
SHOWN_CHARACTERS = 200
WEB_URL = re.compile(r"https?://", re.IGNORECASE)


class Columns:
    """What the columns of one table mean. Makes its rows; a row that gives no URL becomes one with a problem.

    ``place`` says how people find a row: ``line {line}, row {row}``, say.
    """

    def __init__(self, names: Sequence[str], options: TableOptions, place: str) -> None:
        """Raises UnfitTableError when it is not clear which column has the URLs."""
        self.place = place
        self.url = _named(options.url_column, "--url-column", names) or _url_column(names)
        self.digest = _named(options.hash_column, "--hash-column", names)
        self.about: dict[str, str] = {}
        for name in names:
            field = ABOUT_COLUMNS.get(_plain(name))
            if field is not None and field not in self.about and name not in {self.url, self.digest}:
                self.about[field] = name

    def row(self, line: int, row: int, record: dict[str, Any]) -> Row:
        """The row of ``record``, {column: value}, which is used up."""
        url = record.pop(self.url, None)
        if type(url) is not str or not (url := url.strip()):
            return self.broken(line, row, f"its {self.url} is {_described(url)}", _shown(url))
        if len(url) > LINE_BYTES_MAX:
            url = url[:LINE_BYTES_MAX] + CUT
        more: dict[str, Any] = {}
        if self.digest is not None:
            digest = record.pop(self.digest, None)
            if digest is not None and digest != "":
                known = read_digest(digest)
                if known is None:
                    return self.broken(line, row, f"its {self.digest} is no sha256, sha1 or md5", url)
                more["digest"] = known
        for field, column in self.about.items():
            value = record.pop(column, None)
            if value is not None and value != "":
                more[field] = value if type(value) is str else str(value)
        if record:
            more["metadata"] = record
        return [url, line, more] if more else [url, line]

    def broken(self, line: int, row: int, problem: str, text: str = "") -> Row:
        """A row that gives no URL; ``text`` is what stands there instead."""
        return broken(line, self.place.format(line=line, row=row), problem, text)


def broken(line: int, place: str, problem: str, text: str = "") -> Row:
    """A row that gives no URL, of a table whose columns are not known yet."""
    return [text, line, {"problem": f"{place}: {problem}"}]


def read_digest(value: Any) -> str | None:
    """``algorithm:hexadecimal`` of a cell: hexadecimal text, with or without the algorithm, or bytes."""
    text = value.hex() if isinstance(value, bytes) else str(value).strip().lower()
    named, _, digits = text.rpartition(":")
    algorithm = ALGORITHMS.get(len(digits))
    if algorithm is None or named not in {"", algorithm} or not HEXADECIMAL.fullmatch(digits):
        return None
    return f"{algorithm}:{digits}"


def headless(cells: Sequence[str]) -> list[str] | None:
    """Names for the columns of a table without a header, told by the URL in its first row; None: it has one."""
    urls = [number for number, cell in enumerate(cells, 1) if WEB_URL.match(cell.strip())]
    if len(urls) != 1:
        return None
    return ["url" if number == urls[0] else f"column {number}" for number in range(1, len(cells) + 1)]


def distinct(names: Iterable[str]) -> list[str]:
    """Names of columns, each once: a second ``a`` is ``a.1``; one without a name has its number."""
    found: dict[str, None] = {}
    for number, given in enumerate(names, 1):
        name = again = given.strip() or f"column {number}"
        count = 0
        while again in found:
            count += 1
            again = f"{name}.{count}"
        found[again] = None
    return list(found)


def _named(wanted: str | None, option: str, names: Sequence[str]) -> str | None:
    """The column that an option names: as it is written, else whatever its capitals are."""
    if wanted is None:
        return None
    alike = [name for name in names if name.lower() == wanted.lower()]
    found = wanted if wanted in names else alike[0] if len(alike) == 1 else None
    if found is None:
        raise UnfitTableError(f"has no column {wanted} ({option}): {_listed(names)}")
    return found


def _url_column(names: Sequence[str]) -> str:
    """The column with the URLs, by its name, or because there is no other."""
    plain: dict[str, str] = {}
    for name in names:
        plain.setdefault(_plain(name), name)
    for known in URL_COLUMNS:
        if known in plain:
            return plain[known]
    if len(names) == 1:
        return names[0]
    raise UnfitTableError(
        f"does not say which column has the URLs: name one with --url-column ({_listed(names)})"
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:60] for name in names[:NAMES_SHOWN])
    return f"it has {shown}, …" if len(names) > NAMES_SHOWN else f"it has {shown or 'none'}"


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _described(value: Any) -> str:
    """What stands where a URL should."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return "empty"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list) else "no text"


def _shown(value: Any) -> str:
    return "" if value is None else str(value)[:SHOWN_CHARACTERS]
