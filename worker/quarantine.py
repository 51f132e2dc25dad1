"""Quarantine: owners and hosts are asked for one candidate at a time, in a helper process that its child watches.
Who kills the helper is seen to do it; a child that is killed proves nothing. Holds the helper and is its program.

When a host may be asked is the child's to say, and so is what becomes of a candidate. The helper knows nothing of
chunks, rows and the store; what it answers is parsed as data only.
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import structlog
from multidict import CIMultiDict, CIMultiDictProxy
from pydantic import TypeAdapter

from models.logs import configure_logs
from models.opt_outs import Evidence, OptOut
from models.outcomes import Candidate, Reason
from models.settings import Settings, read_settings
from worker.address import ParsedURL, parse_url
from worker.body_memory import SHARED_BYTES
from worker.errors import CandidateError, PictureError
from worker.fetch import Fetched, admit, step
from worker.helper import (
    OUTLIVED_SECONDS,
    OWN_BYTES,
    READY,
    START_SECONDS_MAX,
    Helper,
    HelperError,
    enter,
    hear,
    limit_processor_time,
    tell,
)
from worker.opt_outs import ADMIT_SECONDS_MAX, Heed, OptOuts
from worker.shared import open_redis
from worker.transport import GuardedTransport
from worker.visit import Visit

QUARANTINE_LOSSES = 2
"""After so many lost leases in a row without an outcome, careful mode included, a chunk is run in quarantine."""
ANSWER_SECONDS_MAX = 15
"""So much longer than what it does may take does a helper have to answer: its own deadlines come first."""
THREADS_BYTES = 512 * 1024 * 1024
"""Address space of the threads that look names up."""
BODY_COPIES = 4
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
WENT = ("redirects", "tries", "wire_bytes", "seconds", "latency_seconds")
"""What a visit has been through, besides its URLs."""
KEPT = ("transient", "http_status", "final_url", "retry_after_seconds")
NOT_ITS_BUSINESS: dict[str, Any] = {
    "database_url": None,
    "store_url": None,
    "payment_url": None,
    "payment_secret": None,
    "providers": {},
}


@dataclass(frozen=True, slots=True)
class Answer:
    """Where one question has led a visit, and what it brought: a delay, a body, which is a message of its own,
    or the CandidateError that has this ``reason``.
    """

    target: str
    redirects: int
    tries: int
    wire_bytes: int
    seconds: float
    latency_seconds: float | None
    admitted: bool = True
    delay_seconds: float = 0.0
    content_type: str = ""
    http_status: int | None = None
    reason: Reason | None = None
    detail: str = ""
    transient: bool = False
    final_url: str | None = None
    retry_after_seconds: float | None = None
    evidence: Evidence | None = None
    downloaded: bool = False

    def error(self, reason: Reason) -> CandidateError:
        """What was raised."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in KEPT}
        error = (PictureError if self.downloaded else CandidateError)(reason, self.detail, **fields)
        error.evidence = self.evidence
        return error


ANSWERS = TypeAdapter(Answer)

log = structlog.get_logger()


class Quarantine:
    """One helper, started when it is needed and replaced when a candidate has killed it. One question at a time."""

    def __init__(self, settings: Settings, obeyed: Iterable[OptOut]) -> None:
        self._settings = settings
        self._environment = settings.model_copy(update=NOT_ITS_BUSINESS).environment()
        self._obeyed = json.dumps(sorted(obeyed))
        self._helper: Helper | None = None

    async def admit(self, visit: Visit, heed: Heed) -> bool:
        """Ask the owner, see ``worker.opt_outs``. Raises CandidateError, HelperError."""
        answer, _ = await self._ask("admit", visit, ADMIT_SECONDS_MAX)
        if answer.delay_seconds and heed(visit.target, answer.delay_seconds):
            return False
        return answer.admitted

    async def step(self, visit: Visit) -> Fetched | None:
        """Make one request, see ``worker.fetch.step``. Raises CandidateError, HelperError."""
        answer, body = await self._ask("step", visit, self._settings.transfer_seconds_max)
        if not body:
            return None
        return Fetched(
            url=visit.candidate.url,
            final_url=visit.target.url,
            http_status=answer.http_status or 0,
            content_type=answer.content_type,
            body=body,
            wire_bytes=visit.wire_bytes,
            redirects=visit.redirects,
            headers=CIMultiDictProxy(CIMultiDict()),
            attempts=visit.tries,
            elapsed_ms=round(1000 * visit.seconds),
        )

    def close(self) -> None:
        """End the helper, whatever it is at."""
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.end()

    async def _ask(self, what: str, visit: Visit, seconds: float) -> tuple[Answer, bytes]:
        """One question about a visit, which moves on by the answer. Who ends the helper is WORKER_LOST."""
        visit.latency_seconds = None
        try:
            helper = await self._running()
            async with asyncio.timeout(seconds + ANSWER_SECONDS_MAX):
                await tell(helper.connection, _question(what, visit))
                answer = ANSWERS.validate_json(await hear(helper.connection, MESSAGE_BYTES_MAX))
                body = await hear(helper.connection, self._settings.image_bytes_max)
        except asyncio.CancelledError:
            self.close()
            raise
        except (OSError, ValueError) as error:
            detail = f"asking for it {await self._bury(error, seconds)}"
            raise CandidateError(Reason.WORKER_LOST, detail, final_url=visit.target.url) from None
        _move(visit, answer.target, asdict(answer))
        if answer.reason is not None:
            raise answer.error(answer.reason)
        return answer, body

    async def _running(self) -> Helper:
        """The helper, or a new one: who ends it while it is asked nothing says nothing of the next candidate."""
        if self._helper is not None and self._helper.running:
            return self._helper
        self.close()
        self._helper = helper = Helper(
            "helper", "worker.quarantine", self._obeyed, environment=self._environment
        )
        helper.connection.setblocking(False)
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                await hear(helper.connection, len(READY))
        except (OSError, ValueError) as error:
            raise HelperError(f"starting it {await self._bury(error, START_SECONDS_MAX)}") from None
        return helper

    async def _bury(self, error: Exception, seconds: float) -> str:
        """End the helper if it still runs; how it ended, as the end of a sentence."""
        if isinstance(error, ConnectionError):
            await asyncio.sleep(OUTLIVED_SECONDS)
        helper, self._helper = self._helper, None
        ended = helper.end() if helper else None
        if isinstance(error, ValueError):
            return "made the helper answer what cannot be read"
        return ended or f"took longer than {seconds:g} seconds"


def _question(what: str, visit: Visit) -> bytes:
    urls = {"start": visit.start.url, "target": visit.target.url, "seen": list(visit.seen)}
    return json.dumps({"what": what} | urls | _went(visit)).encode()


def _went(visit: Visit) -> dict[str, Any]:
    return {name: getattr(visit, name) for name in WENT}


def _move(visit: Visit, target: str, went: dict[str, Any]) -> None:
    """Let a visit be where it is at the other side. Raises AddressError."""
    if target != visit.target.url:
        visit.target = parse_url(target)
        visit.seen.add(visit.target.url)
    for name in WENT:
        setattr(visit, name, went[name])


def main() -> None:
    """The helper: a question in, an answer and a body out, until the connection is closed."""
    settings, obeyed = read_settings(), frozenset(OptOut(word) for word in json.loads(sys.argv[1]))
    body_bytes = max(SHARED_BYTES, BODY_COPIES * settings.image_bytes_max)
    connection = enter(OWN_BYTES + THREADS_BYTES + body_bytes)
    connection.setblocking(False)
    configure_logs(settings)
    try:
        asyncio.run(_serve(connection, settings, obeyed))
    except OSError:
        code = 0  # The owner is gone.
    except Exception:
        log.exception("helper_broke_off")
        code = 1
    os._exit(code)  # Without waiting for what a thread may still be at.


async def _serve(connection: socket.socket, settings: Settings, obeyed: frozenset[OptOut]) -> None:
    transport = GuardedTransport(settings)
    redis = open_redis(settings) if settings.redis_url else None
    opt_outs = OptOuts(transport, settings, redis)
    while True:
        question = json.loads(await hear(connection, MESSAGE_BYTES_MAX))
        limit_processor_time(ADMIT_SECONDS_MAX + settings.transfer_seconds_max)
        answer, body = await _answer(question, transport, settings, opt_outs, obeyed)
        # A server may send any bytes, of which some become lone surrogates: no UTF-8, and nothing that is stored.
        text = json.dumps(asdict(answer), default=datetime.isoformat, ensure_ascii=False)
        await tell(connection, text.encode("utf-8", "replace"))
        await tell(connection, body)


async def _answer(
    question: dict[str, Any],
    transport: GuardedTransport,
    settings: Settings,
    opt_outs: OptOuts,
    obeyed: frozenset[OptOut],
) -> tuple[Answer, bytes]:
    visit = Visit(Candidate(0, question["start"], 0), transport.memory.lease())
    _move(visit, question["target"], question)
    visit.seen.update(question["seen"])
    fetched: Fetched | None = None
    brought: dict[str, Any] = {}

    def note_delay(_: ParsedURL, seconds: float) -> bool:
        brought["delay_seconds"] = seconds
        return False  # What it means is the owner's to say.

    try:
        if question["what"] == "admit":
            brought["admitted"] = await admit(visit, opt_outs.hooks(obeyed, note_delay))
        elif fetched := await step(transport, visit, settings, hooks=opt_outs.hooks(obeyed)):
            brought = {"http_status": fetched.http_status, "content_type": fetched.content_type}
    except CandidateError as error:
        brought = {name: getattr(error, name) for name in ("reason", "detail", "evidence", *KEPT)}
        brought["downloaded"] = isinstance(error, PictureError)
    finally:
        visit.lease.release()
    return Answer(visit.target.url, **_went(visit), **brought), fetched.body if fetched else b""


if __name__ == "__main__":
    main()
