"""When another chunk may begin beside what is left of one."""

from dataclasses import dataclass

from worker import idleness
from worker.idleness import STRAGGLERS_MAX, Tail


@dataclass
class Left:
    """As many transfers as are left when none waits for its turn; 0 while one does."""

    stragglers: int


def test_another_chunk_begins_when_half_of_the_transfers_could_be_its() -> None:
    """Of the child, whatever chunk they belong to; and it is asked once in a while, not at every tick."""
    left = Left(0)
    tail = Tail(left, at_once=64)
    assert not tail.asks(running=32)
    left.stragglers = 33
    assert not tail.asks(running=33)
    left.stragglers = 32
    assert not tail.asks(running=40)
    assert not tail.half_free(running=40)
    assert tail.half_free(running=32)
    assert tail.asks(running=32)
    assert not tail.half_free(running=1)
    assert not tail.asks(running=1)


def test_stragglers_of_many_chunks_hold_up_none(monkeypatch) -> None:
    """However many transfers of other chunks run: after a while those few that are left here count for nothing."""
    tail = Tail(Left(STRAGGLERS_MAX), at_once=64)
    assert not tail.asks(running=200)
    monkeypatch.setattr(idleness, "TAIL_SECONDS", 0.0)
    assert tail.asks(running=200)
    assert Tail(Left(1), at_once=1).asks(running=1)
    many = Tail(Left(STRAGGLERS_MAX + 1), at_once=20)
    assert not many.asks(running=200)
