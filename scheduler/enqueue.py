"""From a request to a pending job: check everything, copy an input to the store, write one row.

A request that is refused leaves nothing behind: neither an object nor a row. The input is never in memory whole.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import urlsplit

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
from scheduler.copying import CANDIDATES_MAX, Copy, RequestError, copy_of
from worker.inputs import STANDARD_INPUT, storable
from worker.store import Store, open_store
from worker.tables.formats import TableOptions

DEFAULT_PROJECT = "default"
NO_PROJECT = 0
NAME_LENGTH_MAX = 100
PRIORITIES = range(11)


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of a request. ``existing``: the job was there before, with the same input and options.
    ``detail``: which of its inputs could not be read to their end.
    """

    job_id: int
    candidates: int
    project: str
    existing: bool = False
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of a request. ``max_images`` None: all candidates."""

    name: str
    max_images: int | None
    priority: int
    folder: str | None
    verification: Verification
    ignored_opt_outs: tuple[OptOut, ...] = ()


class Supply(Protocol):
    """Where the candidates of a request come from: a Copy of inputs, or what a worker will ask the web for."""

    @property
    def kind(self) -> SourceKind:
        """The job's kind of source."""
        ...

    @property
    def title(self) -> str:
        """What the job is called unless it has a name."""
        ...

    @property
    def what(self) -> str:
        """What the job does, in a few words."""
        ...

    @property
    def candidates(self) -> int:
        """So many are known now."""
        ...

    @property
    def max_images(self) -> int:
        """So many are wanted unless somebody says otherwise."""
        ...

    @property
    def source(self) -> dict[str, Any]:
        """What the job's source needs."""
        ...

    @property
    def content(self) -> list[object]:
        """What tells whether two requests are for the same."""
        ...

    @property
    def detail(self) -> str | None:
        """What could not be read of it, for people."""
        ...


def submit(
    settings: Settings,
    engine: Engine,
    given: Sequence[str] | Supply,
    *,
    name: str | None = None,
    project: str | None = None,
    user: str | None = None,
    max_images: int | None = None,
    priority: int = 5,
    folder: str | None = None,
    ignore_opt_outs: str = "",
    verification: Verification = Verification.FULL,
    tables: TableOptions = TableOptions(),  # noqa: B008 - it never changes
    unique_urls: bool = False,
    reuse: bool = False,
) -> Submission:
    """Make one job of what is ``given``: inputs in their order (paths, URLs, ``-`` for standard input) or a search.

    ``project`` is an id or a name (``default`` is made when it is missing), ``user`` the e-mail to act for,
    ``max_images`` all candidates of inputs unless given, ``folder`` the URL of a folder that gets the images,
    ``ignore_opt_outs`` a list of what is not obeyed, within what the operator allows. ``tables`` says what the
    names of files and columns do not, with ``unique_urls`` no URL is fetched twice. With ``reuse`` the newest job
    for the same input and options is returned instead of a second one.

    Raises RequestError when the request is refused, StoreError when the input cannot be stored.
    """
    supply, wanted = read_request(
        settings,
        given,
        name=name,
        max_images=max_images,
        priority=priority,
        folder=folder,
        ignore_opt_outs=ignore_opt_outs,
        verification=verification,
        tables=tables,
        unique_urls=unique_urls,
    )

    def place() -> Submission:
        with transaction(engine) as session:
            owner = find_owner(session, settings, project, user)
            if owner.project_id == NO_PROJECT:
                project_id = own_project(session, owner.user_id, owner.project_name)
                owner = replace(owner, project_id=project_id)
            return _create(session, settings, owner, wanted, supply, reuse=reuse)

    if not isinstance(supply, Copy):
        return place()
    with transaction(engine) as session:
        find_owner(session, settings, project, user)
    return _place_with(open_store(settings.store), supply, place)


def read_request(
    settings: Settings,
    given: Sequence[str] | Supply,
    *,
    name: str | None,
    max_images: int | None,
    priority: int,
    ignore_opt_outs: str,
    verification: Verification,
    tables: TableOptions,
    unique_urls: bool,
    folder: str | None = None,
) -> tuple[Supply, Wanted]:
    """Where the candidates come from, and what is wanted of them, as ``submit`` takes it. Nothing is read yet.

    Raises RequestError.
    """
    if isinstance(given, Sequence):
        _check_inputs(given)
        given = copy_of(settings, given, tables, unique_urls=unique_urls)
    wanted = Wanted(
        name=given.title[:NAME_LENGTH_MAX] if name is None else storable(name),
        max_images=max_images,
        priority=priority,
        folder=folder,
        ignored_opt_outs=check_ignored(settings, ignore_opt_outs),
        verification=verification,
    )
    _check_options(wanted)
    return given, wanted


def _place_with(store: Store, copy: Copy, place: Callable[[], Submission]) -> Submission:
    """Store the inputs, and the job after: whatever happens, no copy is left without one."""
    store.put_stream(copy.name, copy.blocks())
    try:
        store.sync()
        submission = place()
    except Exception as error:
        # After a lost connection nobody knows whether the job is there, and a job needs its input.
        if not connection_lost(error):
            store.delete([copy.name])
        raise
    if submission.existing:
        store.delete([copy.name])
    return submission


def _create(
    session: Session, settings: Settings, owner: Owner, wanted: Wanted, supply: Supply, *, reuse: bool
) -> Submission:
    """Write the row, unless ``reuse`` finds one for the same request."""
    max_images = wanted.max_images or supply.max_images
    options: list[object] = [owner.project_id, max_images, wanted.priority, wanted.folder]
    if wanted.ignored_opt_outs:
        options.append(wanted.ignored_opt_outs)
    if wanted.verification is not Verification.FULL:  # So that jobs from before there was a choice are found.
        options.append(wanted.verification)
    if supply.source.get("unique_urls"):
        options.append("unique_urls")
    fingerprint = _fingerprint(supply, options)
    same = find_same_request(session, owner.project_id, fingerprint) if reuse else None
    if same is not None:
        return Submission(same, supply.candidates, owner.project_name, existing=True, detail=supply.detail)
    request = JobRequest(
        project_id=owner.project_id,
        name=wanted.name,
        priority=wanted.priority,
        max_images=max_images,
        source_kind=supply.kind,
        source=supply.source,
        candidates=supply.candidates,
        unit_price=settings.credits_per_image,
        fingerprint=fingerprint,
        ignored_opt_outs=wanted.ignored_opt_outs,
        verification=wanted.verification,
    )
    job_id = create_job(session, request, settings.store, folder=wanted.folder)
    return Submission(job_id, supply.candidates, owner.project_name, detail=supply.detail)


def _fingerprint(supply: Supply, options: Sequence[object]) -> str:
    """Tells whether two requests ask for the same: content, where its files end, and options; not the names."""
    return hashlib.sha256(json.dumps([*supply.content, *options]).encode()).hexdigest()


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


def _check_inputs(inputs: Sequence[str]) -> None:
    if not inputs:
        raise RequestError("There is no input: give a file of URLs, one a line, or - for standard input.")
    if list(inputs).count(STANDARD_INPUT) > 1:
        raise RequestError("Standard input (-) can be given only once.")
    for one in inputs:
        try:
            urlsplit(one if "://" in one else "")
        except ValueError as error:
            raise RequestError(f"{one} cannot be read: {error}.") from None


def _check_options(wanted: Wanted) -> None:
    """Refuse what needs neither the database nor the input to be seen."""
    if not wanted.name.strip() or len(wanted.name) > NAME_LENGTH_MAX or "\0" in wanted.name:
        raise RequestError(
            f"A job's name has 1 to {NAME_LENGTH_MAX} characters; this one has {len(wanted.name)}."
        )
    if wanted.priority not in PRIORITIES:
        raise RequestError(f"The priority is 0 to 10 (10 most urgent), not {wanted.priority}.")
    check_max_images(wanted.max_images)


def check_max_images(number: int | None) -> None:
    """Raises RequestError for what is no number of images."""
    if number is not None and not 1 <= number <= CANDIDATES_MAX:
        raise RequestError(f"The number of images is 1 to {CANDIDATES_MAX:,}, not {number:,}.")


def find_owner(
    session: Session, settings: Settings, project: str | None, user: str | None, *, paying: bool = True
) -> Owner:
    """Whose project it is, able to pay for one image at least if ``paying``; its id is NO_PROJECT when it has to be
    made.
    """
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
    if paying and owner.balance < settings.credits_per_image:
        raise RequestError(
            f"{owner.email} has {owner.balance:,} credits and one image costs {settings.credits_per_image:,}: "
            f"add some with `pixtrawl credits grant AMOUNT --user {owner.email}`."
        )
    return owner
