"""The inputs of a request on their way into the store: a list as it is, tables as frames of rows.

Everything is checked as it passes. An input is never in memory whole, and is read once.
"""

import hashlib
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from models.jobs import SourceKind
from models.settings import Settings
from worker.address import parse_url
from worker.errors import AddressError
from worker.inputs import Input, InputError
from worker.sources.url_list import LineReader
from worker.sources.url_table import FrameWriter
from worker.tables.errors import BrokenTableError, UnfitTableError
from worker.tables.foreign import BEGINNING_BYTES, begins_as_table, check_beginning
from worker.tables.formats import Format, TableOptions, format_of, is_compressed
from worker.tables.reading import read_rows
from worker.tables.text import check_text

CANDIDATES_MAX = 2_147_483_647


class RequestError(ValueError):
    """The request is refused and nothing was written. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One input as it was read: the name it was given by, its bytes (as stored) and its candidates; ``broken`` says
    where it could not be read any further.
    """

    name: str
    bytes: int
    candidates: int
    broken: str | None = None


@dataclass(slots=True)
class Copy(ABC):
    """Inputs, one after another in one object. ``blocks`` reads them; all else is known afterwards."""

    kind: ClassVar[SourceKind]
    inputs: Sequence[Input]
    options: TableOptions
    files: list[InputFile] = field(default_factory=list)
    unique_urls: bool = False
    stem: str = field(default_factory=lambda: f"inputs/{uuid.uuid4()}")

    @property
    def title(self) -> str:
        """What a job of them is called."""
        return ", ".join(one.name for one in self.inputs)

    @property
    def what(self) -> str:
        """What the job does."""
        return f"crawls {self.title}"

    @property
    def candidates(self) -> int:
        """Candidates of all files."""
        return sum(file.candidates for file in self.files)

    @property
    def max_images(self) -> int:
        """All of them, unless somebody wants fewer."""
        return self.candidates

    @property
    def detail(self) -> str | None:
        """Which files break off, for people; None: none does."""
        broken = [
            f"{file.name} breaks off after {file.candidates:,} rows: {file.broken}"
            for file in self.files
            if file.broken
        ]
        return "; ".join(broken) or None

    @property
    def source(self) -> dict[str, Any]:
        """The job's source: where the input is, and which files it has."""
        files = [
            {name: value for name, value in asdict(file).items() if value is not None} for file in self.files
        ]
        source = {"object": self.name, "bytes": sum(file.bytes for file in self.files), "files": files}
        said = {"detail": self.detail, "unique_urls": self.unique_urls or None}
        return source | {name: value for name, value in said.items() if value is not None}

    @property
    @abstractmethod
    def name(self) -> str:
        """The object's name."""

    @property
    @abstractmethod
    def content(self) -> list[object]:
        """What tells whether two copies have the same candidates: content, and where its files end."""

    def blocks(self) -> Iterator[bytes]:
        """Yield the object's bytes. Raises RequestError at the first input that is refused."""
        for given in self.inputs:
            try:
                yield from self._blocks_of(given)
            except UnfitTableError as error:
                raise RequestError(f"{given.name} {error}.") from None
            except InputError as error:
                raise RequestError(str(error)) from None
            if self.candidates > CANDIDATES_MAX:
                raise RequestError(f"One job takes at most {CANDIDATES_MAX:,} candidates.")

    @abstractmethod
    def _blocks_of(self, given: Input) -> Iterator[bytes]:
        """Yield the bytes of one input, and add to ``files`` what it was."""


@dataclass(slots=True)
class ListCopy(Copy):
    """Lists of URLs, byte for byte."""

    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    kind = SourceKind.URL_LIST

    @property
    def name(self) -> str:
        """The object's name."""
        return f"{self.stem}.txt"

    @property
    def content(self) -> list[object]:
        """What tells whether two copies have the same candidates."""
        return [self.digest.hexdigest(), [file.bytes for file in self.files]]

    def _blocks_of(self, given: Input) -> Iterator[bytes]:
        reader = LineReader()
        candidates = size = 0
        usable = False
        with given.opened() as blocks:
            for block in blocks:
                if size == 0:
                    check_beginning(block[:BEGINNING_BYTES], of_list=True)
                check_text(block, first=size == 0)
                self.digest.update(block)
                size += len(block)
                for line in reader.feed(block):
                    candidates += 1
                    usable = usable or _is_url(line.text)
                yield block
        for line in reader.finish():
            candidates += 1
            usable = usable or _is_url(line.text)
        if not usable:
            raise RequestError(f"There is no URL in {given.name}: give one http:// or https:// URL a line.")
        self.files.append(InputFile(given.name, size, candidates))


@dataclass(slots=True)
class TableCopy(Copy):
    """Tables of any format, as frames: see worker/sources/url_table.py."""

    writer: FrameWriter = field(default_factory=FrameWriter)
    kind = SourceKind.URL_TABLE

    @property
    def name(self) -> str:
        """The object's name."""
        return f"{self.stem}.rows"

    @property
    def content(self) -> list[object]:
        """What tells whether two copies have the same candidates."""
        return [self.writer.digest.hexdigest(), [file.candidates for file in self.files]]

    def _blocks_of(self, given: Input) -> Iterator[bytes]:
        rows, size = self.writer.rows, self.writer.bytes
        usable = False
        broken = None
        try:
            for batch in read_rows(given, self.options):
                usable = usable or any(_is_url(row[0]) for row in batch)
                yield from self.writer.write(batch)
        except BrokenTableError as error:
            broken = str(error)
        if last := self.writer.flush():
            yield last
        if not usable and broken:
            raise RequestError(f"{given.name} cannot be read: {broken}.")
        if not usable:
            raise RequestError(f"There is no URL in {given.name}: a row wants one http:// or https:// URL.")
        self.files.append(InputFile(given.name, self.writer.bytes - size, self.writer.rows - rows, broken))


def copy_of(
    settings: Settings, inputs: Iterable[str], options: TableOptions, *, unique_urls: bool = False
) -> ListCopy | TableCopy:
    """What copies these inputs; nothing is read yet. Raises RequestError for options that none of them has."""
    given = [Input(name, settings) for name in inputs]
    named = "--url-column" if options.url_column else "--hash-column" if options.hash_column else None
    if named and all((options.format or format_of(one.name)) is Format.TXT for one in given):
        raise RequestError(f"{named} is for tables, and a list of URLs has no columns: name its --format.")
    kind = ListCopy if all(is_list(one, options) for one in given) else TableCopy
    return kind(given, options, unique_urls=unique_urls)


def is_list(given: Input, options: TableOptions) -> bool:
    """Whether an input is a list of URLs on this machine, which is kept as it is."""
    local = given.path is not None or not given.scheme
    kind = options.format or format_of(given.name)
    if not local or kind is not Format.TXT or is_compressed(given.name):
        return False
    return not begins_as_table(given.beginning(BEGINNING_BYTES))


def _is_url(text: str) -> bool:
    try:
        parse_url(text)
    except AddressError:
        return False
    return True
