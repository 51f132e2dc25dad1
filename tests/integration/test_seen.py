"""What a job has seen of its source, on real PostgreSQL."""

import threading

from models.database import transaction
from models.seen import delete_seen, digest_key, forget_seen, mark_seen, url_key
from tests.support.crawling import change, new_job, query, wait_for_blocked

A, B, C = (url_key(f"http://images.test/{name}") for name in "abc")


def test_a_key_is_new_once(engine):
    """Those that were there, or twice in a call, come back with the position at which each was first."""
    job, other = new_job(engine), new_job(engine)
    with transaction(engine) as session:
        assert mark_seen(session, job.id, []) == {}
        assert mark_seen(session, job.id, [(A, 0), (B, 1), (A, 2)]) == {A: 0}
        assert mark_seen(session, job.id, [(C, 3), (B, 4), (C, 5), (A, 6)]) == {A: 0, B: 1, C: 3}
        assert mark_seen(session, other.id, [(A, 0)]) == {}


def test_what_is_sent_alike_has_one_key():
    """Capitals of scheme and host and a fragment do not count; everything else does."""
    same = ["http://images.test/A", "HTTP://Images.Test/A", "http://images.test/A#top"]
    assert len({url_key(url) for url in same}) == 1
    others = [
        *same,
        "http://images.test/a",
        "https://images.test/A",
        "http://images.test/A?",
        "no URL",
        "\ud800",
    ]
    assert len({url_key(url) for url in others}) == 6
    assert digest_key("sha1:00") != url_key("sha1:00")


def test_two_steps_of_one_job_wait_for_each_other(engine):
    """One finds what the other has committed, in whichever order they name it."""
    job = new_job(engine)
    found = []

    def second() -> None:
        with transaction(engine) as session:
            found.append(mark_seen(session, job.id, [(C, 0), (B, 1), (A, 2)]))

    thread = threading.Thread(target=second)
    with transaction(engine) as session:
        assert mark_seen(session, job.id, [(B, 7), (A, 8)]) == {}
        thread.start()
        wait_for_blocked(engine)
    thread.join(30)
    assert found == [{A: 8, B: 7}]


def test_keys_go_when_the_source_has_ended(engine):
    """Some at a time, and not while a cancelled job might go on from where it was; all with the job."""
    states = {
        "splitting": "source_state = 'splitting'",
        "cancelled": """source_state = 'exhausted', cancelled_at = now(), source = '{"object": "inputs/1"}'""",
        "done": "source_state = 'exhausted'",
        "met": "source_state = 'satisfied'",
    }
    jobs = {name: new_job(engine).id for name in states}
    for name, job_id in jobs.items():
        with transaction(engine) as session:
            mark_seen(session, job_id, [(A, 0), (B, 1), (C, 2)])
        change(engine, f"UPDATE crawl_jobs SET {states[name]} WHERE id = {job_id}")
    with transaction(engine) as session:
        assert [forget_seen(session, 2) for _ in range(5)] == [2, 1, 2, 1, 0]
    left = "SELECT DISTINCT job_id FROM seen_keys ORDER BY 1"
    assert query(engine, left) == [(jobs["splitting"],), (jobs["cancelled"],)]
    with transaction(engine) as session:
        assert delete_seen(session, jobs["splitting"], 100) == 3
    change(engine, "DELETE FROM crawl_jobs WHERE id = :id", id=jobs["cancelled"])
    assert query(engine, left) == []
