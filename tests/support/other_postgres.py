"""A PostgreSQL of any version for a test run: a data folder of its own, a socket, and an end in every case."""

import ctypes
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2

from scheduler.privileges import Identity, choose_identity
from scheduler.servers import ENVIRONMENT, give_tree
from tests.support.processes import until

PORT = 5432
INITDB_OPTIONS = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C")
SETTINGS = {"listen_addresses": "", "fsync": "off", "jit": "off", "huge_pages": "off", "timezone": "UTC"}
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def other_postgres(binaries: Path, tcp_port: int | None = None) -> Iterator[str]:
    """URL of a server that runs the programs in ``binaries``, stopped at the end, or with this process.

    It listens at a socket, or at ``tcp_port`` of the loopback.
    """
    settings = SETTINGS | ({"listen_addresses": "127.0.0.1"} if tcp_port else {})
    port = tcp_port or PORT
    identity = choose_identity([binaries / "initdb", binaries / "postgres"], [], None)
    assert identity is not None, f"no user on this machine can run the programs in {binaries}"
    # A socket's path has at most 107 bytes, which the folders of a test run may exceed.
    folder = Path(tempfile.mkdtemp(prefix="pixtrawl-test-"))
    give_tree(folder, identity)
    server: subprocess.Popen[bytes] | None = None
    try:
        _run(identity, binaries / "initdb", "-D", folder / "data", *INITDB_OPTIONS)
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [binaries / "postgres", "-D", folder / "data", "-k", folder, "-p", str(port), *options]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                command,
                cwd="/",
                env=ENVIRONMENT,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: _become(identity),  # noqa: PLW1509  A fixture of one thread.
            )
        until(lambda: _answers(server, folder, port), "the start of PostgreSQL")
        host = "127.0.0.1" if tcp_port else folder
        yield f"postgresql+psycopg2://postgres@/postgres?host={host}&port={port}"
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        shutil.rmtree(folder)


def _run(identity: Identity, *command: object) -> None:
    subprocess.run(
        [str(part) for part in command],
        cwd="/",
        env=ENVIRONMENT,
        check=True,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: _become(identity),
    )


def _become(identity: Identity) -> None:
    """Become the server's user; the kernel ends the server when this test run is killed."""
    identity.become()
    if sys.platform == "linux":
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT, 0, 0, 0)


def _answers(server: subprocess.Popen[bytes], folder: Path, port: int) -> bool:
    assert server.poll() is None, (folder / "log").read_text()
    try:
        psycopg2.connect(host=str(folder), port=port, user="postgres", dbname="postgres").close()
    except psycopg2.OperationalError:
        return False
    return True
