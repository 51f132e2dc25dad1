"""A listener on every local address at one port, which nothing may reach: it counts connections and packets."""

import contextlib
import ctypes
import socket
import struct
import sys
from collections.abc import Iterator

EVERY_PROTOCOL = 3
SO_ATTACH_FILTER = 26
ETHERNET_BYTES = 14


class PrivateListener:
    """Listens for TCP on IPv4 and IPv6 and for UDP, and sees the packets to its port where the system lets it."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._accepting = stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=512))
        self.port: int = self._accepting.getsockname()[1]
        self._others = []
        for family, kind, everywhere in (
            (socket.AF_INET, socket.SOCK_DGRAM, "0.0.0.0"),
            (socket.AF_INET6, socket.SOCK_STREAM, "::"),
            (socket.AF_INET6, socket.SOCK_DGRAM, "::"),
        ):
            # A machine without IPv6 has no ::1 that could be reached.
            with contextlib.suppress(OSError):
                other = stack.enter_context(socket.socket(family, kind))
                if family == socket.AF_INET6:
                    other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                other.bind((everywhere, self.port))
                if kind == socket.SOCK_STREAM:
                    other.listen(512)
                self._others.append(other)
        self._sniffer = _sniffer(stack, self.port)
        self.sees_packets = self._sniffer is not None
        for one in [self._accepting, *self._others]:
            one.setblocking(False)

    def connections(self) -> int:
        """How many connections and datagrams came since the last call."""
        count = 0
        for one in [self._accepting, *self._others]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    if one.type == socket.SOCK_DGRAM:
                        one.recv(1)
                    else:
                        one.accept()[0].close()
                    count += 1
        return count

    def packets(self) -> int:
        """How many packets to the port the loopback interface carried since the last call."""
        count = 0
        if self._sniffer is not None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    count += _port_of(self._sniffer.recv(128)) == self.port
        return count


@contextlib.contextmanager
def listening() -> Iterator[PrivateListener]:
    """Listen at a free port while the block runs."""
    with contextlib.ExitStack() as stack:
        yield PrivateListener(stack)


def _sniffer(stack: contextlib.ExitStack, port: int) -> socket.socket | None:
    """See the loopback interface's packets, thinned out by the kernel; None without the right to."""
    if sys.platform != "linux":
        return None
    try:
        seeing = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERY_PROTOCOL))
    except PermissionError:
        return None
    stack.enter_context(seeing)
    # Load the half word where IPv4 without options has its destination port, then that of IPv6; keep either.
    program = b"".join(
        struct.pack("HBBI", *step)
        for step in (
            (0x28, 0, 0, 36),
            (0x15, 2, 0, port),
            (0x28, 0, 0, 56),
            (0x15, 0, 1, port),
            (6, 0, 0, 128),
            (6, 0, 0, 0),
        )
    )
    buffer = ctypes.create_string_buffer(program)
    seeing.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 6, ctypes.addressof(buffer)))
    seeing.bind(("lo", 0))
    seeing.setblocking(False)
    return seeing


def _port_of(frame: bytes) -> int | None:
    """The destination port of a TCP or UDP packet."""
    (kind,) = struct.unpack_from("!H", frame, 12)
    if kind == 0x0800 and frame[ETHERNET_BYTES + 9] in {6, 17}:
        start = ETHERNET_BYTES + (frame[ETHERNET_BYTES] & 15) * 4
    elif kind == 0x86DD and frame[ETHERNET_BYTES + 6] in {6, 17}:
        start = ETHERNET_BYTES + 40
    else:
        return None
    return int.from_bytes(frame[start + 2 : start + 4], "big")
