"""From input files to a pending job: check everything, copy the input to the store, write one row.

A request that is refused leaves nothing behind: neither an object nor a row. The input is never in memory whole.
"""

import errno
import hashlib
import json
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from models.closing import being_closed
from models.database import connection_lost, transaction
from models.job_lifecycle import JobRequest, create_job
from models.jobs import SourceKind
from models.members import Owner, find_project, find_user, own_project
from models.opt_outs import OptOut, read_opt_outs
from models.outcomes import Verification
from models.reports import account_report, find_same_request
from models.settings import Settings
from worker.address import parse_url
from worker.errors import AddressError
from worker.sources.url_list import BLOCK_BYTES, LineReader
from worker.store import open_store

STANDARD_INPUT = "-"
STANDARD_INPUT_NAME = "standard input"
DEFAULT_PROJECT = "default"
NO_PROJECT = 0
NAME_LENGTH_MAX = 100
PRIORITIES = range(11)
INTEGER_MAX = 2_147_483_647
WIDE_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")
UNREADABLE_SHARE_MAX = 0.25
"""A text in another encoding has some characters that are not UTF-8; an image or an archive has many."""

UNREADABLE = {
    errno.ENOENT: "does not exist",
    errno.EISDIR: "is a folder: give a file of URLs, one a line",
    errno.EACCES: "may not be read by you",
    errno.EPERM: "may not be read by you",
}


class RequestError(ValueError):
    """The request is refused and nothing was written. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of a request. ``existing``: the job was there before, with the same input and options."""

    job_id: int
    candidates: int
    project: str
    existing: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of a request. ``max_images`` None: all candidates."""

    name: str
    max_images: int | None
    priority: int
    folder: str | None
    verification: Verification
    ignored_opt_outs: tuple[OptOut, ...] = ()


@dataclass(frozen=True, slots=True)
class InputFile:
    """One input as it was read: the name it was given by, its size and its candidates."""

    name: str
    bytes: int
    candidates: int


@dataclass(slots=True)
class InputCopy:
    """The inputs on their way into the store, one after another in one object."""

    inputs: Sequence[str]
    name: str = field(default_factory=lambda: f"inputs/{uuid.uuid4()}.txt")
    files: list[InputFile] = field(default_factory=list)
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    @property
    def candidates(self) -> int:
        """Candidates of all files."""
        return sum(file.candidates for file in self.files)

    @property
    def source(self) -> dict[str, object]:
        """The job's source: where the input is, and how it is cut into files."""
        files = [asdict(file) for file in self.files]
        return {"object": self.name, "bytes": sum(file.bytes for file in self.files), "files": files}

    def blocks(self) -> Iterator[bytes]:
        """Yield all bytes, checking them on the way. Raises RequestError at the first file that is refused."""
        for given in self.inputs:
            yield from self._blocks_of(given)

    def _blocks_of(self, given: str) -> Iterator[bytes]:
        name = input_name(given)
        reader = LineReader()
        candidates = size = 0
        usable = False
        for block in _read(given):
            _check_text(block, name, first=size == 0)
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
            raise RequestError(f"There is no URL in {name}: give one http:// or https:// URL a line.")
        self.files.append(InputFile(name, size, candidates))
        if self.candidates > INTEGER_MAX:
            raise RequestError(f"One job takes at most {INTEGER_MAX:,} candidates.")


def submit(
    settings: Settings,
    engine: Engine,
    inputs: Sequence[str],
    *,
    name: str | None = None,
    project: str | None = None,
    user: str | None = None,
    max_images: int | None = None,
    priority: int = 5,
    folder: str | None = None,
    ignore_opt_outs: str = "",
    verification: Verification = Verification.FULL,
    reuse: bool = False,
) -> Submission:
    """Make one job of ``inputs``, in their order: paths, or ``-`` for standard input.

    ``project`` is an id or a name (``default`` is made when it is missing), ``user`` the e-mail to act for,
    ``max_images`` all candidates unless given, ``folder`` the URL of a folder that gets the images,
    ``ignore_opt_outs`` a list of what is not obeyed, within what the operator allows. With ``reuse`` the newest job
    for the same input and options is returned instead of a second one.

    Raises RequestError when the request is refused, StoreError when the input cannot be stored.
    """
    wanted = Wanted(
        name=_storable(name)
        if name is not None
        else ", ".join(input_name(given) for given in inputs)[:NAME_LENGTH_MAX],
        max_images=max_images,
        priority=priority,
        folder=folder,
        ignored_opt_outs=check_ignored(settings, ignore_opt_outs),
        verification=verification,
    )
    _check_options(inputs, wanted)
    with transaction(engine) as session:
        _find_owner(session, settings, project, user)
    store = open_store(settings.store)
    copy = InputCopy(inputs)
    store.put_stream(copy.name, copy.blocks())
    try:
        store.sync()
        with transaction(engine) as session:
            owner = _find_owner(session, settings, project, user)
            if owner.project_id == NO_PROJECT:
                project_id = own_project(session, owner.user_id, owner.project_name)
                owner = replace(owner, project_id=project_id)
            submission = _create(session, settings, owner, wanted, copy, reuse=reuse)
    except Exception as error:
        # After a lost connection nobody knows whether the job is there, and a job needs its input.
        if not connection_lost(error):
            store.delete([copy.name])
        raise
    if submission.existing:
        store.delete([copy.name])
    return submission


def input_name(given: str) -> str:
    """What an input is called in messages and job names."""
    return STANDARD_INPUT_NAME if given == STANDARD_INPUT else _storable(Path(given).name or given)


def _create(
    session: Session, settings: Settings, owner: Owner, wanted: Wanted, copy: InputCopy, *, reuse: bool
) -> Submission:
    """Write the row, unless ``reuse`` finds one for the same request."""
    max_images = wanted.max_images or copy.candidates
    options: list[object] = [owner.project_id, max_images, wanted.priority, wanted.folder]
    if wanted.ignored_opt_outs:
        options.append(wanted.ignored_opt_outs)
    if wanted.verification is not Verification.FULL:  # So that jobs from before there was a choice are found.
        options.append(wanted.verification)
    fingerprint = _fingerprint(copy, options)
    same = find_same_request(session, owner.project_id, fingerprint) if reuse else None
    if same is not None:
        return Submission(same, copy.candidates, owner.project_name, existing=True)
    request = JobRequest(
        project_id=owner.project_id,
        name=wanted.name,
        priority=wanted.priority,
        max_images=max_images,
        source_kind=SourceKind.URL_LIST,
        source=copy.source,
        candidates=copy.candidates,
        unit_price=settings.credits_per_image,
        fingerprint=fingerprint,
        ignored_opt_outs=wanted.ignored_opt_outs,
        verification=wanted.verification,
    )
    job_id = create_job(session, request, settings.store, folder=wanted.folder)
    return Submission(job_id, copy.candidates, owner.project_name)


def _fingerprint(copy: InputCopy, options: Sequence[object]) -> str:
    """Tells whether two requests ask for the same: content, where its files end, and options; not the names."""
    ends = [file.bytes for file in copy.files]
    return hashlib.sha256(json.dumps([copy.digest.hexdigest(), ends, *options]).encode()).hexdigest()


def check_ignored(settings: Settings, given: str) -> tuple[OptOut, ...]:
    """Which opt-outs a job is to ignore, of a comma-separated list. Raises RequestError for what may not be."""
    try:
        wanted = read_opt_outs(given)
    except ValueError as error:
        raise RequestError(f"--ignore-opt-outs: {error}.") from None
    forbidden = [opt_out for opt_out in wanted if opt_out not in settings.opt_outs_ignorable]
    if forbidden:
        raise RequestError(
            f"No job may ignore {' or '.join(forbidden)} here: only the operator can allow it, by naming it in "
            "PIXTRAWL_OPT_OUTS_IGNORABLE."
        )
    return wanted


def _check_options(inputs: Sequence[str], wanted: Wanted) -> None:
    """Refuse what needs neither the database nor the input to be seen."""
    if not inputs:
        raise RequestError("There is no input: give a file of URLs, one a line, or - for standard input.")
    if list(inputs).count(STANDARD_INPUT) > 1:
        raise RequestError("Standard input (-) can be given only once.")
    if not wanted.name.strip() or len(wanted.name) > NAME_LENGTH_MAX or "\0" in wanted.name:
        raise RequestError(
            f"A job's name has 1 to {NAME_LENGTH_MAX} characters; this one has {len(wanted.name)}."
        )
    if wanted.priority not in PRIORITIES:
        raise RequestError(f"The priority is 0 to 10 (10 most urgent), not {wanted.priority}.")
    if wanted.max_images is not None and not 1 <= wanted.max_images <= INTEGER_MAX:
        raise RequestError(f"The number of images is 1 to {INTEGER_MAX:,}, not {wanted.max_images:,}.")


def _find_owner(session: Session, settings: Settings, project: str | None, user: str | None) -> Owner:
    """Whose project it is, able to pay for one image at least; its id is NO_PROJECT when it has to be made."""
    email = user or settings.user
    user_id = find_user(session, email)
    if user_id is None and (user or project is None):
        raise RequestError(f"There is no user {email}: make one with `pixtrawl users create {email}`.")
    owner = find_project(session, project or DEFAULT_PROJECT, email)
    if user_id and project in {None, DEFAULT_PROJECT} and (owner is None or owner.email != email):
        account = account_report(session, email)
        owner = Owner(NO_PROJECT, DEFAULT_PROJECT, user_id, email, account["balance"] if account else None)
    if owner is None:
        raise RequestError(f"There is no project {project}: `pixtrawl projects list` shows those there are.")
    if user and owner.email != user:
        raise RequestError(f"The project {owner.project_name} belongs to {owner.email}, not to {user}.")
    if being_closed(session, owner.user_id):
        raise RequestError(
            f"{owner.email} is being deleted: `pixtrawl users delete {owner.email}` completes that."
        )
    if owner.balance is None:
        raise RequestError(f"{owner.email} has no credit account, so nothing can be paid for.")
    if owner.balance < settings.credits_per_image:
        raise RequestError(
            f"{owner.email} has {owner.balance:,} credits and one image costs {settings.credits_per_image:,}: "
            f"add some with `pixtrawl credits grant AMOUNT --user {owner.email}`."
        )
    return owner


def _read(given: str) -> Iterator[bytes]:
    """The bytes of one input in blocks. Raises RequestError when it cannot be read."""
    try:
        with _open(given) as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except OSError as error:
        reason = UNREADABLE.get(error.errno or 0) or f"cannot be read ({error.strerror or error})"
        raise RequestError(f"{given} {reason}.") from None


def _open(given: str) -> AbstractContextManager[BinaryIO]:
    if given == STANDARD_INPUT:
        if sys.stdin is None:
            raise RequestError("Standard input (-) is closed.")
        return nullcontext(sys.stdin.buffer)
    return Path(given).open("rb")


def _check_text(block: bytes, name: str, *, first: bool) -> None:
    """Refuse what is not text in UTF-8, as soon as it shows."""
    if first and block.startswith(WIDE_BYTE_ORDER_MARKS):
        raise RequestError(f"{name} is UTF-16 text: save it as UTF-8.")
    if b"\0" in block:
        raise RequestError(f"{name} is not text: give a file of URLs, one a line.")
    if first:
        characters = block.decode("utf-8", "replace")
        if characters.count("\ufffd") > UNREADABLE_SHARE_MAX * len(characters):
            raise RequestError(f"{name} is not text in UTF-8: save it as UTF-8, one URL a line.")


def _storable(name: str) -> str:
    """A file name need not be UTF-8, and a text in the database must be."""
    return name.encode("utf-8", "replace").decode()


def _is_url(text: str) -> bool:
    try:
        parse_url(text)
    except AddressError:
        return False
    return True
