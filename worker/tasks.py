"""The tasks that messages name, and what a pool child opens and closes. No logic: crawl.py, discover.py have it."""

import gc

from celery.signals import worker_init, worker_process_init, worker_process_shutdown

from worker.app import CRAWL_CHUNK, DISCOVER, app
from worker.child import Child
from worker.crawl import crawl_chunk as crawl
from worker.discover import make_step
from worker.helper import leave_with_parent
from worker.presence import Heartbeat, TellChildren, heeding_pool
from worker.transport import trusted

app.steps["worker"].add(TellChildren)
app.steps["worker"].add(Heartbeat)

_child: Child | None = None


def child() -> Child:
    """What this pool child has open; opened on first use, never before the fork."""
    global _child  # noqa: PLW0603 - one a process, for its lifetime.
    if _child is None:
        leave_with_parent()
        _child = Child(app.settings)
    return _child


@worker_init.connect
def _prepare(**_: object) -> None:
    trusted()
    # What is loaded by now stays: no child need look through it for garbage, nor copy its pages for that.
    gc.freeze()


@worker_process_init.connect
def _open(**_: object) -> None:
    child()


@worker_process_shutdown.connect
def _close(**_: object) -> None:
    global _child  # noqa: PLW0603 - one a process, for its lifetime.
    if _child is not None:
        _child.close()
        _child = None


@app.task(name=CRAWL_CHUNK)
def crawl_chunk(chunk_id: int, attempt: int) -> None:
    """Crawl one attempt of one chunk, if it is still wanted."""
    opened = child()
    with heeding_pool():
        opened.run(crawl(opened, chunk_id, attempt))


@app.task(name=DISCOVER)
def discover(job_id: int, step: int) -> None:
    """Make one step of a source that asks the web, if it is still wanted."""
    opened = child()
    with heeding_pool():
        opened.run(make_step(opened, job_id, step))
