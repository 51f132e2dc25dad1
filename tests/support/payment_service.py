"""A payment service on loopback that charges once for each key, and answers as a test wants."""

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

SECRET = "s3cret"


class PaymentService:
    """A context manager around the server. ``answers`` are used up one by one, and the last one stays: ``paid``,
    ``declined``, ``lost`` (charged, and the connection cut), ``stuck`` (charged, and no answer until it is
    released), ``error``, ``redirect``, ``pending``, ``nonsense``.
    """

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers) or ["paid"]
        self.asked: list[dict[str, Any]] = []
        self.charged: Counter[str] = Counter()
        self.released = threading.Event()
        self.lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                service.answer(self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        """Where it is paid."""
        return f"http://127.0.0.1:{self.server.server_address[1]}/payments"

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def credits(self) -> Sequence[int]:
        """Credits of every payment that was made."""
        return [int(self._first(key)["credits"]) for key in self.charged]

    def _first(self, key: str) -> dict[str, Any]:
        return next(request for request in self.asked if request["key"] == key)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Read a request, charge for its key if that is new, and say so or not."""
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        assert request["key"] == handler.headers["Idempotency-Key"]
        with self.lock:
            kind = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            self.asked.append(
                request | {"authorization": handler.headers["Authorization"], "at": time.time()}
            )
            if kind in {"paid", "lost", "stuck"} and not self.charged[request["key"]]:
                self.charged[request["key"]] += 1
        if kind == "stuck":
            self.released.wait(60)
        if kind in {"lost", "stuck"}:
            handler.close_connection = True
            return
        status, said = {
            "paid": (200, {"status": "paid", "payment": f"pay-{request['key'][:8]}"}),
            "declined": (402, {"reason": "the card has expired"}),
            "error": (503, {"status": "down"}),
            "redirect": (307, {}),
            "pending": (202, {"status": "pending"}),
            "nonsense": (200, {"status": "fine"}),
        }[kind]
        body = json.dumps(said).encode()
        handler.send_response(status)
        handler.send_header("Location", "/elsewhere") if kind == "redirect" else None
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
