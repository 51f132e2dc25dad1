"""The server of the benchmark's pictures: nginx on loopback, or aiohttp where there is none. It serves one folder.

Run as a program it is that second server. It must never listen on anything but loopback.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

START_SECONDS_MAX = 15
STOP_SECONDS_MAX = 5
BACKLOG = 1024

CONFIGURATION = """
{user}daemon off; worker_processes 1; pid "{scratch}/nginx.pid"; error_log "{scratch}/error.log";
events {{ worker_connections 4096; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
    types {{ image/jpeg jpg; image/png png; image/webp webp; }}
    client_body_temp_path "{scratch}/body"; proxy_temp_path "{scratch}/proxy";
    fastcgi_temp_path "{scratch}/fastcgi"; uwsgi_temp_path "{scratch}/uwsgi"; scgi_temp_path "{scratch}/scgi";
    server {{ listen 127.0.0.1:{port} backlog={backlog}; root "{folder}"; }}
}}
"""


class ServerError(Exception):
    """The server did not start. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the pictures are served, and by what."""

    url: str
    program: str


@contextlib.contextmanager
def serving(folder: Path, scratch: Path) -> Iterator[Address]:
    """Serve ``folder`` while the context is open; ``scratch`` takes what the server writes.

    Raises ServerError.
    """
    nginx = shutil.which("nginx")
    port = free_port()
    log = scratch / "error.log"
    if nginx is None:
        command = [sys.executable, "-P", __file__, str(folder), str(port)]
    else:
        # Started as root, nginx would serve as an ordinary user, who may not read the cache folder.
        user = "user root; " if os.geteuid() == 0 else ""
        configuration = scratch / "nginx.conf"
        values = {"user": user, "scratch": scratch, "port": port, "backlog": BACKLOG, "folder": folder}
        configuration.write_text(CONFIGURATION.format(**values), "utf-8")
        command = [nginx, "-e", str(log), "-p", str(scratch), "-c", str(configuration)]
    with log.open("ab") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            await_answer(process, port, log)
            yield Address(f"http://127.0.0.1:{port}", describe(nginx))
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS_MAX)
            process.kill()


def await_answer(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return as soon as the server answers anything at all. Raises ServerError."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return
    words = log.read_text("utf-8", "replace").strip().rpartition("\n")[2]
    raise ServerError(f"The web server of the benchmark does not answer: {words or 'it said nothing'}.")


def describe(nginx: str | None) -> str:
    """Name and version of the server."""
    if nginx is None:
        return "aiohttp in one process (there is no nginx on the PATH: every rate is lower for it)"
    answer = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=False)
    return answer.stderr.strip().rpartition(": ")[2]


def free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def serve(folder: str, port: int) -> None:
    """Serve a folder with aiohttp until the process is ended."""
    application = web.Application()
    application.router.add_static("/", folder)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=BACKLOG).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
