"""Large bodies in files: all of them arrive at once, within what files may take, whatever becomes of the disk."""

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.outcomes import Reason
from tests.support.fetching import failure, fetch
from tests.support.hostile_server import in_loop, loopback_settings, response, serve
from worker import body as body_module
from worker import body_memory
from worker import spool as spool_module
from worker.body_memory import FIRST_BYTES, SHARED_BYTES
from worker.spool import Spool
from worker.transport import GuardedTransport

MEGABYTE = 1024 * 1024
BODY = os.urandom(FIRST_BYTES + 100_000)
MEDIUM = os.urandom(100_000)


class Door:
    """Fetches through a transport and a spool; leases stay open until they are closed."""

    def __init__(self, transport, spool, settings):
        self.memory, self.spool = transport.memory, spool
        self._transport, self._settings = transport, settings
        self.leases = []
        self.most_bytes = 0
        """Of files together, as seen when a body was whole."""

    async def get(self, url, **named):
        """Fetch; the body as whoever looks at it reads it, and whether it was in a file."""
        lease = self.memory.lease(self.spool)
        self.leases.append(lease)
        with lease:
            fetched = await fetch(self._transport, url, self._settings, lease=lease, **named)
            self.most_bytes = max(self.most_bytes, self.spool.shared.bytes_max - self.spool.shared.free_bytes)
            await lease.load()
            return (fetched.body, False) if fetched.file is None else (fetched.file.read(), True)

    async def arrived(self, size, files):
        """Wait until so many files have ``size`` bytes each."""
        deadline = time.monotonic() + 10
        while sum(lease.file is not None and lease.file.size >= size for lease in self.leases) < files:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    def all_is_free(self):
        """Whether nothing is held any more."""
        shares = (self.memory, self.memory.last, self.spool.shared)
        return all(share.free_bytes == share.bytes_max for share in shares) and not self.spool.files


@contextlib.asynccontextmanager
async def door(folder, bytes_max=100 * MEGABYTE, **overrides):
    """Open a transport and a spool."""
    settings = loopback_settings(**overrides)
    spool = Spool(folder, bytes_max)
    try:
        async with GuardedTransport(settings) as transport:
            yield Door(transport, spool, settings)
    finally:
        spool.close()


@in_loop
async def test_all_large_bodies_arrive_at_once(tmp_path):
    """Forty of half a megabyte, of which memory has room for twenty: none ends before all have begun to arrive."""
    begun, all_have = [], asyncio.Event()

    async def answer(_, write):
        head, whole = response(BODY).split(b"\r\n\r\n", 1)
        await write(head + b"\r\n\r\n" + whole[:500_000])
        begun.append(True)
        await all_have.wait()
        await write(whole[500_000:])

    async with serve(answer) as server, door(tmp_path) as opened:
        getting = asyncio.gather(*[opened.get(f"{server.origin}/") for _ in range(40)])
        await opened.arrived(400_000, 40)
        assert opened.memory.free_bytes == SHARED_BYTES
        all_have.set()
        assert await getting == [(BODY, True)] * 40
        assert opened.all_is_free()


@in_loop
async def test_files_share_what_they_may_take(tmp_path):
    """Twelve bodies where two have room are whole, and never more than two are there; no name is in the folder."""

    async def answer(_, write):
        assert not list(tmp_path.iterdir())
        await write(response(BODY))

    async with serve(answer) as server, door(tmp_path, 2 * len(BODY)) as opened:
        got = await asyncio.gather(*[opened.get(f"{server.origin}/") for _ in range(12)])
        assert got == [(BODY, True)] * 12
        assert opened.most_bytes == 2 * len(BODY)
        assert opened.all_is_free()


@in_loop
async def test_a_body_that_turns_out_large_moves_into_a_file(tmp_path):
    """It says no length, so what of it was in memory is written first; its end gives back what it did not take."""
    head = b"HTTP/1.1 200 OK\r\n\r\n"

    async def answer(_, write):
        await write(head + BODY)
        raise EOFError

    async with serve(answer) as server, door(tmp_path, image_bytes_max=4 * MEGABYTE) as opened:
        lease = opened.memory.lease(opened.spool)
        with lease:
            await fetch(opened._transport, f"{server.origin}/", opened._settings, lease=lease)
            assert opened.memory.free_bytes == SHARED_BYTES
            assert opened.spool.shared.free_bytes == opened.spool.shared.bytes_max - len(BODY)
            assert lease.file.read() == BODY
        assert opened.all_is_free()


@in_loop
async def test_a_body_without_memory_goes_on_in_a_file_unless_the_decoder_is_behind(tmp_path, monkeypatch):
    """It waits for a moment; while most memory is of bodies that wait for the decoder, it goes on waiting."""
    monkeypatch.setattr(body_memory, "PATIENCE_SECONDS", 0.02)

    async def answer(request, write):
        await write(response(BODY if request.target == "/large" else MEDIUM))

    async with serve(answer) as server, door(tmp_path) as opened:
        with opened.memory.lease() as arriving:
            await arriving.reserve(SHARED_BYTES)
            assert await opened.get(f"{server.origin}/") == (MEDIUM, True)
            arriving.complete(SHARED_BYTES)
            waiting = asyncio.gather(*[opened.get(f"{server.origin}/{name}") for name in ("", "large")])
            await asyncio.wait([waiting], timeout=0.2)
            assert not waiting.done()
        assert await waiting == [(MEDIUM, False), (BODY, False)]
        assert opened.all_is_free()


@pytest.mark.parametrize(
    ("folder", "bound"), [("none", None), ("", "DISK_BYTES_MIN"), ("", "DESCRIPTORS_MIN")]
)
@in_loop
async def test_without_a_file_all_wait_for_memory(tmp_path, monkeypatch, folder, bound):
    """A folder that is not there, or too little left of a disk or of descriptors, costs nothing but time."""
    if bound:
        monkeypatch.setattr(spool_module, bound, 1 << 60)

    async def answer(_, write):
        await write(response(BODY))

    async with serve(answer) as server, door(tmp_path / folder) as opened:
        got = await asyncio.gather(*[opened.get(f"{server.origin}/") for _ in range(30)])
        assert got == [(BODY, False)] * 30
        assert opened.all_is_free()


@in_loop
async def test_a_disk_that_fills_up_loses_no_body(tmp_path):
    """What was written is read back, and the body goes on in memory; a limit of the kernel is the disk's end."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    body = BODY * 4

    async def answer(_, write):
        await write(response(body))

    async with serve(answer) as server, door(tmp_path) as opened:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MEGABYTE, limits[1]))
        try:
            got = await asyncio.gather(*[opened.get(f"{server.origin}/") for _ in range(10)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert got == [(body, False)] * 10
        assert opened.all_is_free()


@in_loop
async def test_who_keeps_others_from_a_file_must_not_fall_silent(tmp_path, monkeypatch):
    """While another waits for room, a body in a file that stops arriving is given up."""
    monkeypatch.setattr(body_module, "LAST_SILENCE_SECONDS", 0.2)
    wanted = asyncio.Event()

    async def answer(request, write):
        if request.target == "/whole":
            await write(response(BODY))
            return
        await write(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + BODY)
        while not wanted.is_set():
            await write(bytes(1000))
            await asyncio.sleep(0.01)
        await write(bytes(1000))
        await asyncio.Event().wait()

    async with serve(answer) as server, door(tmp_path, 3_000_000) as opened:
        silent = asyncio.ensure_future(failure(opened.get(f"{server.origin}/silent")))
        await opened.arrived(FIRST_BYTES, 1)
        whole = asyncio.ensure_future(opened.get(f"{server.origin}/whole"))
        deadline = time.monotonic() + 10
        while not opened.spool.shared.wanted:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        wanted.set()
        assert (await silent).reason is Reason.TOO_SLOW
        assert await whole == (BODY, True)
        assert opened.all_is_free()


KILLED = """
import asyncio, pathlib, sys
from worker.spool import Spool

async def main():
    file = await Spool(pathlib.Path(sys.argv[1]), 1 << 30).open()
    file.adds_at_once(bytes(100_000))
    await file.write()
    print(file.size, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_killed_child_leaves_nothing_in_the_folder(tmp_path):
    """Its files have no names, so the kernel removes them with it."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"100000\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert not list(tmp_path.iterdir())
