"""Several faults at once, and everything away at once."""

import random
import time

from chaos.faults import broker, database, workers
from chaos.registry import fault
from chaos.system import System

QUICK = (
    workers.kill_pool_child,
    workers.kill_worker,
    broker.lose_messages,
    broker.duplicate_messages,
    broker.redeliver_messages,
    broker.flush_all,
    broker.restart_redis,
    broker.reset_redis_connections,
    database.reset_database_connections,
    database.restart_postgres_immediate,
    database.cut_after_commit_was_sent,
    database.cut_before_commit_arrives,
)
FAULTS_OF_A_STORM = 4


@fault(full=30, deadline_seconds=150)
def storm(system: System, chance: random.Random) -> None:
    """Four faults of other kinds in a row, without a moment to recover in between."""
    for inject in chance.sample(QUICK, FAULTS_OF_A_STORM):
        inject(system, chance)


@fault(full=5, deadline_seconds=150)
def black_hole_everything(system: System, chance: random.Random) -> None:
    """PostgreSQL and Redis are silent at the same time, for everybody."""
    with system.database.black_hole(), system.broker.black_hole():
        time.sleep(chance.uniform(10, 30) if system.full else 4)
