"""Flower behind a password, on a socket that ``pixtrawl up`` has opened. Never listens by itself.

Run as ``python -P -m scheduler.monitor --listener FD --lifeline FD`` by scheduler/commands/up.py.
"""

import os
import secrets
import signal
import socket
import sys
from pathlib import Path

import click

from models.settings import Settings, read_settings
from scheduler.parts import follow_command

USER = "pixtrawl"
BACKLOG = 128


@click.command()
@click.option("--listener", type=int, required=True)
@click.option("--lifeline", type=int, required=True)
def main(listener: int, lifeline: int) -> None:
    """Serve Flower until SIGTERM, or until the command that started it is gone."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    follow_command(lifeline)
    serve(read_settings(), socket.socket(fileno=listener))


def serve(settings: Settings, listener: socket.socket) -> None:
    """Serve Flower on a listening socket.

    Not through its command line, which would open the port itself and take a password from the environment or
    from arguments that everybody on the machine can read.
    """
    import flower.options  # noqa: F401 - Flower's options register themselves.
    from flower.app import Flower
    from flower.urls import settings as web_settings
    from tornado.httpserver import HTTPServer
    from tornado.options import options

    from models.logs import configure_logs
    from worker.app import app

    app.settings = settings
    configure_logs(settings)
    options.basic_auth = [f"{USER}:{password(settings.home)}"]
    monitor = Flower(capp=app, options=options, **web_settings)
    listener.setblocking(False)
    HTTPServer(monitor).add_socket(listener)
    try:
        monitor.start()
    finally:
        monitor.stop()


def listen(port: int) -> socket.socket:
    """Open a port on 127.0.0.1, any free one for 0. Raises OSError when it is taken."""
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def password(home: Path) -> str:
    """The password of this home: made once, readable by its owner only."""
    path = home / "flower-password"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_urlsafe(12))
        new.replace(path)
    return path.read_text().strip()


if __name__ == "__main__":
    main()
