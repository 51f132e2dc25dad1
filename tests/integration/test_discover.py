"""Sources that ask the web, step by step in a pool child's own process: nothing is missing or double."""

import pytest

from models.candidates import unpack_candidates
from models.database import transaction
from models.discovery import ask_for_steps, give_up_step, postpone_source, renew_step
from models.job_lifecycle import block_job, cancel_job, close_job, pause_job, resume_job
from models.jobs import BlockedReason, SourceKind
from models.settings import read_settings
from models.splitting import abandon_source, satisfy_source, splittable_jobs
from tests.support.crawling import (
    change,
    check_books,
    query,
    queue_ready,
    read_chunk,
    read_job,
    refused,
    settle_run,
)
from tests.support.crawling import start as start_message
from tests.support.sources import Shelf, found, job_of_shelf, meanwhile, start_at
from worker import discover
from worker.child import Child
from worker.discover import ATTEMPTS_MAX, BROKEN_ATTEMPTS_MAX, LostStepError, StepRun, make_step
from worker.sources.source import SourceError, SourceWait, Step


@pytest.fixture
def child(services, database_url, tmp_path):
    """What a pool child has open."""
    opened = Child(read_settings(home=tmp_path, database_url=database_url, redis_url=services.redis_url))
    yield opened
    opened.close()


@pytest.fixture
def shelve(monkeypatch):
    """Registers a shelf as the source of every job."""

    def register(*arguments, **options) -> Shelf:
        shelf = Shelf(*arguments, **options)
        monkeypatch.setitem(discover.SOURCES, SourceKind.KEYWORDS, lambda: shelf)
        return shelf

    return register


def go(child: Child, engine, job) -> dict:
    """Make the next step of a job; its row afterwards."""
    child.run(make_step(child, job.id, read_job(engine, job.id)["source_step"]))
    return read_job(engine, job.id)


def ask(engine, seconds: float = 30) -> list[tuple[int, int]]:
    """Which steps of which jobs workers are asked for."""
    with transaction(engine) as session:
        return [(message.job_id, message.step) for message in ask_for_steps(session, seconds=seconds)]


def candidates_of(engine, job) -> list:
    """Every candidate that stands in a chunk of a job, in order."""
    rows = query(
        engine,
        "SELECT candidates, CAST(image_range->>'start' AS int) FROM job_chunks WHERE job_id = :id ORDER BY 2",
        id=job.id,
    )
    return [candidate for packed, start in rows for candidate in unpack_candidates(bytes(packed), start)]


def at_rest(row: dict) -> bool:
    """Whether nobody has the next step, and nobody was asked for it."""
    return not any(row[f"source_{name}"] for name in ("worker", "lease_until", "asked_at", "available_at"))


def test_steps_become_chunks(engine, child, shelve) -> None:
    """What is found stands in chunks at consecutive positions, once; the source says why it ended."""
    digests = [b"%16d" % (number // 2) for number in range(20)]
    items = [*(found(number) for number in range(90)), found(3), found(4, url="HTTP://IMAGES.test/4.jpg#top")]
    items += [found(90 + number, digest) for number, digest in enumerate(digests)]
    shelf = shelve(items, 60)
    job = job_of_shelf(engine)
    assert at_rest(go(child, engine, job))
    row = go(child, engine, job)
    numbers = [*range(90), *range(90, 110, 2)]
    expected = [
        (position, f"http://images.test/{number}.jpg", number + 1) for position, number in enumerate(numbers)
    ]
    found_now = candidates_of(engine, job)
    assert [(each.position, each.url, each.line) for each in found_now] == expected
    assert {each.about.keyword for each in found_now} == {"owl"}
    assert (row["source_state"], row["source_detail"]) == ("exhausted", "nothing is left on the shelf")
    assert (row["source_position"], row["total_images"], row["source_step"]) == (100, 100, 2)
    assert (row["source_cursor"], shelf.asked) == ({"at": 112}, [1000, 940])
    child.run(make_step(child, job.id, 2))
    assert len(shelf.asked) == 2
    check_books(engine)


def test_no_more_is_handed_out_than_wanted_and_failures_are_topped_up(engine, child, shelve) -> None:
    """The source is open once enough is out, and yields again for what failed, until max_images are accepted."""
    shelve([found(number) for number in range(500)])
    job = job_of_shelf(engine, max_images=80)
    row = go(child, engine, job)
    assert (row["source_state"], row["source_position"]) == ("open", 80)
    assert ask(engine) == []
    for message in queue_ready(engine):
        chunk = start_message(engine, message)
        assert chunk is not None
        settle_run(engine, chunk, [refused(candidate.position) for candidate in chunk.candidates])
    assert ask(engine) == [(job.id, 1)]
    row = go(child, engine, job)
    assert (row["source_state"], row["source_position"]) == ("open", 160)
    change(engine, "UPDATE crawl_jobs SET valid_images = 80")
    assert start_at(engine, job, 2, "late") is None
    with transaction(engine) as session:
        assert satisfy_source(session) == job.id
    assert read_job(engine, job.id)["source_detail"] == "max_images is met"


def test_workers_are_asked_once(engine, child, shelve) -> None:
    """For each step once in 30 seconds, not while somebody makes it, it has to wait, or its job stands still."""
    shelve([found(number) for number in range(500)])
    job = job_of_shelf(engine)
    job_of_shelf(engine, source_kind=SourceKind.URL_LIST)
    with transaction(engine) as session:
        assert [each.source_kind for each in splittable_jobs(session)] == [SourceKind.URL_LIST]
    assert ask(engine) == [(job.id, 0)]
    assert ask(engine) == []
    assert ask(engine, seconds=0) == [(job.id, 0)]
    started = start_at(engine, job, 0, "worker")
    assert started is not None
    assert ask(engine, seconds=0) == []
    with transaction(engine) as session:
        assert postpone_source(session, started.fence, 60, "the shelf is dusted")
    assert ask(engine) == []
    change(engine, "UPDATE crawl_jobs SET source_available_at = now() WHERE source_wait IS NOT NULL")
    with transaction(engine) as session:
        assert pause_job(session, job.id)
    assert ask(engine) == []
    assert start_at(engine, job, 0, "worker") is None
    with transaction(engine) as session:
        assert resume_job(session, job.id)
        assert block_job(session, job.id, BlockedReason.OUT_OF_CREDITS)
    assert ask(engine) == []
    change(engine, "UPDATE crawl_jobs SET blocked_reason = NULL")
    assert ask(engine) == [(job.id, 0)]
    go(child, engine, job)
    assert ask(engine) == [(job.id, 1)]
    with transaction(engine) as session:
        assert cancel_job(session, job.id)
    assert ask(engine, seconds=0) == []
    assert start_at(engine, job, 1, "worker") is None


def test_a_lost_worker_costs_a_repeat_of_its_step(engine, child, shelve) -> None:
    """While its lease lasts nobody else makes the step; later somebody does, and the first writes nothing more."""
    shelve([found(number) for number in range(150)])
    job = job_of_shelf(engine)
    lost = start_at(engine, job, 0, "lost")
    assert lost is not None
    assert start_at(engine, job, 0, "second") is None
    with transaction(engine) as session:
        assert renew_step(session, lost.fence, 0)  # Its lease ends now.
    assert ask(engine) == [(job.id, 0)]
    second = start_at(engine, job, 0, "second")
    assert second is not None
    with pytest.raises(LostStepError):
        child.run(StepRun(child, lost).advance(Step([found(777)], {"at": 1})))
    with transaction(engine) as session:
        assert give_up_step(session, second.fence)
    row = go(child, engine, job)
    assert (row["source_step"], row["source_attempts"]) == (1, 0)
    with transaction(engine) as session:
        assert not renew_step(session, lost.fence, 30)
        assert not give_up_step(session, lost.fence)
    run = StepRun(child, lost)
    with pytest.raises(LostStepError):
        child.run(run.advance(Step([found(777)], {"at": 1})))
    assert read_job(engine, job.id) == row
    assert query(engine, "SELECT count(*) FROM seen_keys") == [(100,)]
    go(child, engine, job)
    assert [each.line for each in candidates_of(engine, job)] == [*range(1, 151)]


def test_a_step_under_way_gives_way(engine, child, shelve, monkeypatch) -> None:
    """To a pause, to a cancellation, to the worker's own leaving: nothing is written and no attempt counts."""
    job = job_of_shelf(engine)

    def write(arrow) -> None:
        with transaction(engine) as session:
            assert arrow(session, job.id)

    shelve([found(0)], script=[meanwhile(lambda: write(pause_job))])
    row = go(child, engine, job)
    assert (row["source_step"], row["source_attempts"], at_rest(row)) == (0, 0, True)
    write(resume_job)

    monkeypatch.setattr(discover, "leaving", lambda: True)
    shelve([found(0)], script=[meanwhile(lambda: None)])
    row = go(child, engine, job)
    assert (row["source_step"], row["source_attempts"], at_rest(row)) == (0, 0, True)
    monkeypatch.undo()

    shelve([found(0)], script=[meanwhile(lambda: write(cancel_job))])
    row = go(child, engine, job)
    assert (row["source_step"], at_rest(row), row["source_state"]) == (0, True, "splitting")
    with transaction(engine) as session:
        assert abandon_source(session) == job.id
        assert close_job(session) == job.id
    assert read_job(engine, job.id)["status"] == "cancelled"


def test_a_source_ended_under_its_worker_stays_ended(engine, child, shelve) -> None:
    """The scheduler ends the source of a cancelled job at once; a worker that has a step of it writes nothing."""
    job = job_of_shelf(engine)

    def end() -> None:
        with transaction(engine) as session:
            assert cancel_job(session, job.id)
            assert abandon_source(session) == job.id

    async def and_go_on(child) -> None:
        await child.aside(end)

    shelve([found(0), found(1)], 1, script=[and_go_on])
    row = go(child, engine, job)
    assert (row["source_state"], row["source_position"], row["source_step"]) == ("exhausted", 0, 0)
    assert row["source_detail"] == "the job was cancelled"
    assert query(engine, "SELECT count(*) FROM seen_keys") == [(0,)]

    satisfied = job_of_shelf(engine, max_images=1)
    started = start_at(engine, satisfied, 0, child.name)
    assert started is not None
    change(
        engine,
        "UPDATE crawl_jobs SET valid_images = 1, total_images = 1, source_position = 1 WHERE id = :id",
        id=satisfied.id,
    )
    with transaction(engine) as session:
        assert satisfy_source(session) == satisfied.id
    with pytest.raises(LostStepError):
        child.run(StepRun(child, started).advance(Step([], {"at": 1})))
    assert read_job(engine, satisfied.id)["source_state"] == "satisfied"


def test_a_job_deleted_under_a_step_is_no_error(engine, child, shelve, caplog) -> None:
    """The worker writes nothing, says so in a line, and takes the next message."""
    job = job_of_shelf(engine)

    async def delete(child) -> None:
        change(engine, "DELETE FROM crawl_jobs")

    shelf = shelve([found(0)], script=[delete])
    child.run(make_step(child, job.id, 0))
    child.run(make_step(child, job.id, 0))
    assert len(shelf.asked) == 1
    assert query(engine, "SELECT count(*) FROM seen_keys") == [(0,)]


def test_whoever_is_asked_may_want_to_wait(engine, child, shelve) -> None:
    """The step waits as long as was asked for, longer each time in a row, and no attempt counts of our own pace."""
    waits = [SourceWait(7, "the shelf is dusted"), SourceWait(0.5, "our own pace", ours=True)]
    shelve([found(0)], script=waits)
    job = job_of_shelf(engine)
    seconds = "SELECT CAST(round(extract(epoch FROM source_available_at - now())) AS int) FROM crawl_jobs"
    row = go(child, engine, job)
    assert query(engine, seconds) == [(7,)]
    assert (row["source_wait"], row["source_attempts"], row["source_worker"]) == (
        "the shelf is dusted",
        1,
        None,
    )
    go(child, engine, job)
    assert read_job(engine, job.id) == row
    change(engine, "UPDATE crawl_jobs SET source_available_at = now()")
    row = go(child, engine, job)
    assert (row["source_wait"], row["source_attempts"]) == ("our own pace", 1)
    change(engine, "UPDATE crawl_jobs SET source_available_at = now(), source_attempts = 9")
    shelve([found(0)], script=[SourceWait(1, "dusted again")])
    go(child, engine, job)
    assert query(engine, seconds) == [(512,)]
    change(engine, f"UPDATE crawl_jobs SET source_available_at = now(), source_attempts = {ATTEMPTS_MAX}")
    row = go(child, engine, job)
    assert (row["source_state"], row["source_detail"], at_rest(row)) == (
        "exhausted",
        f"{ATTEMPTS_MAX} attempts at one step came to nothing, the last of them: dusted again",
        True,
    )


def test_an_error_that_will_not_pass_ends_the_source(engine, child, shelve) -> None:
    """What was handed out goes on, the job says why there is no more, and a bug costs a few tries only."""
    shelve(
        [found(number) for number in range(500)], 60, script=[None, SourceError("the shelf has burnt down")]
    )
    job = job_of_shelf(engine)
    go(child, engine, job)
    row = go(child, engine, job)
    assert (row["source_state"], row["source_detail"]) == ("exhausted", "the shelf has burnt down")
    assert read_chunk(engine, queue_ready(engine)[0].chunk_id)["size"] == 50

    shelve([], script=[ZeroDivisionError("by zero")] * 2)
    other = job_of_shelf(engine)
    row = go(child, engine, other)
    assert (row["source_attempts"], row["source_wait"]) == (1, "it broke off: unexpected ZeroDivisionError")
    change(
        engine,
        f"UPDATE crawl_jobs SET source_available_at = now(), source_attempts = {BROKEN_ATTEMPTS_MAX - 1} "
        "WHERE source_wait IS NOT NULL",
    )
    assert go(child, engine, other)["source_detail"] == "unexpected ZeroDivisionError: by zero"
