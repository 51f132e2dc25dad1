"""Which user the embedded servers run as, and how a child process becomes that user.

PostgreSQL refuses to run as root. This module never creates a user and never opens a folder to others:
where root's folders are closed (a checkout under /root), the child keeps one capability that lets it
through, or sees itself under another number in a user namespace of its own.
"""

import ctypes
import os
import pwd
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

ACCOUNTS = ("postgres", "nobody", "daemon")
PROBE_SECONDS_MAX = 30

# Numbers of the Linux interface: linux/prctl.h, linux/securebits.h, linux/capability.h, linux/sched.h.
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
SECBIT_NO_SETUID_FIXUP = 4
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAPABILITY_VERSION_3 = 0x20080522
CLONE_NEWUSER = 0x10000000


class Way(StrEnum):
    """How a child process becomes an unprivileged one, the plainest first."""

    SELF = "self"
    """We are not root: the child is whoever we are."""
    USER = "user"
    """An unprivileged user, without anything of root's."""
    USER_READS = "user-reads"
    """That user, with the capability to enter and read any folder."""
    USER_OVERRIDES = "user-overrides"
    """That user, with the capability that containers leave to root, past all file permissions."""
    NAMESPACE = "namespace"
    """Root without capabilities, which sees itself as that user. The files stay root's."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The user of a child process and the way to become it."""

    way: Way
    uid: int
    gid: int

    @property
    def owner(self) -> tuple[int, int]:
        """User and group that the files of such a child must have."""
        return (os.geteuid(), os.getegid()) if self.way is Way.NAMESPACE else (self.uid, self.gid)

    def become(self) -> None:
        """Turn this process into the user: for ``preexec_fn`` of a process with one thread.

        Raises OSError where the kernel, a container or a missing capability forbids it.
        """
        if self.way is Way.SELF:
            return
        os.setgroups([])
        if self.way is Way.NAMESPACE:
            _enter_namespace(self.uid, self.gid)
            return
        if self.way is not Way.USER:
            # The capabilities outlive setuid, and access(2), which PostgreSQL asks, counts them.
            _call("prctl", PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
        os.setgid(self.gid)
        os.setuid(self.uid)
        if self.way is not Way.USER:
            _keep(CAP_DAC_READ_SEARCH if self.way is Way.USER_READS else CAP_DAC_OVERRIDE)


def choose_identity(
    executables: Sequence[Path], folders: Sequence[Path], data_owner: tuple[int, int] | None
) -> Identity | None:
    """Find a user that can enter every folder and run every executable; None when there is none.

    As root, existing data keeps its owner (user, group); else the first existing account of ACCOUNTS serves.
    Anybody on the machine who runs programs as that same account could reach the servers' sockets.
    """
    if os.geteuid() != 0:
        myself = Identity(Way.SELF, os.geteuid(), os.getegid())
        return myself if _works(myself, executables, folders) else None
    owner = data_owner if data_owner and data_owner[0] != 0 else find_account()
    if owner is None:
        return None
    ways = [Way.USER]
    if sys.platform == "linux":
        ways += [Way.USER_READS, Way.USER_OVERRIDES, Way.NAMESPACE]
    identities = (Identity(way, *owner) for way in ways)
    return next((identity for identity in identities if _works(identity, executables, folders)), None)


def find_account() -> tuple[int, int] | None:
    """Return user and group of the first existing account of ACCOUNTS that is not root by another name."""
    for name in ACCOUNTS:
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        if account.pw_uid != 0:
            return account.pw_uid, account.pw_gid
    return None


def _works(identity: Identity, executables: Sequence[Path], folders: Sequence[Path]) -> bool:
    """Try it: rights come from owners, modes, access lists and mounts, and only the kernel adds them up."""

    def enter() -> None:
        identity.become()
        for folder in folders:
            os.chdir(folder)

    for executable in executables:
        try:
            subprocess.run(
                [executable, "--version"],
                preexec_fn=enter,
                cwd="/",
                check=True,
                timeout=PROBE_SECONDS_MAX,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except (OSError, subprocess.SubprocessError):
            return False
    return True


def _keep(capability: int) -> None:
    """Keep exactly one capability, in this process and across exec (capabilities(7), ambient set)."""
    mask = 1 << capability
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    # Effective, permitted and inheritable, first of the low 32 capabilities, then of the high.
    sets = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    _call("capset", header, sets)
    _call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0)


def _enter_namespace(uid: int, gid: int) -> None:
    """Enter a new user namespace, in which we have another number and no capability outside."""
    owner, group = os.geteuid(), os.getegid()
    _call("unshare", CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {owner} 1"),
        ("gid_map", f"{gid} {group} 1"),
    ):
        (Path("/proc/self") / name).write_text(text, "ascii")


def _call(name: str, *arguments: Any) -> None:
    """Call the C library; raise OSError as Python's own wrappers do."""
    if getattr(_libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


# Loaded before any fork: a child between fork and exec must not search for libraries.
_libc = ctypes.CDLL(None, use_errno=True)
