"""Server processes that outlive the command that starts them, and are found and stopped without mistakes.

Each server leads a session of its own and carries MARKER in its environment. A pid is trusted only together
with its start time, because the system gives numbers of ended processes to new ones.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from infd.errors import StackError

MARKER = "INFD_STACK_PART"
"""Environment variable with a name unique to one start; every descendant inherits it, whatever its session."""

BLOCK_PORTS = 160
"""Ports that a stack takes: servers in the first 40, Ray's workers in the rest."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """A server: `pid` leads its session; `created` (s since the epoch) tells it from a later owner of the pid."""

    pid: int
    created: float
    marker: str


def start(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, marker: str) -> Started:
    """The process of `command`, in a session of its own; its output goes to the end of `log`.

    Raises StackError when the program cannot be run.
    """
    with open(log, "ab") as out:
        try:
            process = subprocess.Popen(command, env={**env, MARKER: marker}, cwd=cwd, stdin=subprocess.DEVNULL,
                                       stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        except OSError as error:
            raise StackError(f"{command[0]}: cannot be run ({error.strerror}); see that it is installed") from error
    return Started(pid=process.pid, created=psutil.Process(process.pid).create_time(), marker=marker)


def leader(started: Started) -> psutil.Process | None:
    """The process that `started` names, or None where it has ended, also where its pid has a new owner."""
    try:
        process = psutil.Process(started.pid)
        same = abs(process.create_time() - started.created) < 2      # s: the clock may be set while it runs
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def members(started: Started) -> list[psutil.Process]:
    """All living processes of a server: its session, their descendants, and those that carry its marker.

    The marker finds what left the session after its parent died; the session finds processes that
    overwrote their environment with a title, as Ray's workers do.
    """
    reused = leader(started) is None and psutil.pid_exists(started.pid) and not _zombie(started.pid)
    found: dict[int, psutil.Process] = {}
    parents: dict[int, int] = {}
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            parents[process.pid] = process.ppid()
            ours = not reused and os.getsid(process.pid) == started.pid
            if ours or process.environ().get(MARKER) == started.marker:
                found[process.pid] = process
        except (psutil.Error, OSError):
            continue                                                 # ended meanwhile, or another user's
    grown = True
    while grown:
        children = [pid for pid, parent in parents.items() if parent in found and pid not in found]
        for pid in children:
            try:
                found[pid] = psutil.Process(pid)
            except psutil.NoSuchProcess:
                del parents[pid]
        grown = bool(children)
    return list(found.values())


def stop(started: Started, *, grace_s: float) -> None:
    """SIGTERM to the leader, `grace_s` for it to end, then SIGKILL to all that is left of the server.

    Law: afterwards none of its processes lives and none of its ports is open. Raises StackError naming those that are.
    """
    known = members(started)
    ports = [port for _, port in listening(known)]
    head = leader(started)
    if head is not None:
        _signal(head, signal.SIGTERM)
        if _wait([head], timeout_s=grace_s):
            _wait(known, timeout_s=1.0)                              # the rest often follows by itself
    for _ in range(3):                                               # a process may fork while it is being counted
        left = [process for process in {*known, *members(started)} if _alive(process)]
        for process in left:
            _signal(process, signal.SIGKILL)
        if _wait(left, timeout_s=5.0) and not left:
            break
    living, busy = [process.pid for process in members(started)], busy_ports(ports)
    if living or busy:
        raise StackError(f"processes {living}, ports {busy}: still there after SIGKILL; end them by hand, then run "
                         "down again")


def listening(processes: Iterable[psutil.Process]) -> list[tuple[str, int]]:
    """(address, port) of every TCP socket on which one of `processes` listens, sorted."""
    found: set[tuple[str, int]] = set()
    for process in processes:
        try:
            sockets = process.net_connections(kind="tcp")
        except psutil.Error:
            continue                                                 # ended meanwhile
        found.update((entry.laddr.ip, entry.laddr.port) for entry in sockets if entry.status == psutil.CONN_LISTEN)
    return sorted(found)


def free_block() -> int:
    """First of BLOCK_PORTS free loopback ports, below the range that systems give to outgoing connections.

    Raises StackError when there is none.
    """
    first, last = 20_000, 32_000
    blocks = list(range(first, last - BLOCK_PORTS, BLOCK_PORTS))
    turn = (os.getpid() * 7 + time.monotonic_ns() // 1_000_000) % len(blocks)      # two starts at once: other places
    for base in blocks[turn:] + blocks[:turn]:
        if all(port_free(port) for port in range(base, base + BLOCK_PORTS)):
            return base
    raise StackError(f"ports {first} to {last}: no {BLOCK_PORTS} free ones in a row; end what listens there")


def busy_ports(ports: Iterable[int], *, timeout_s: float = 5.0) -> list[int]:
    """Those of `ports` that do not become free in time: a killed process closes its sockets a moment after it died."""
    end = time.monotonic() + timeout_s
    while (busy := [port for port in ports if not port_free(port)]) and time.monotonic() < end:
        time.sleep(0.05)
    return busy


def port_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: past connections do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _wait(processes: Iterable[psutil.Process], *, timeout_s: float) -> bool:
    """Whether all have ended in time. A zombie has ended, even where nobody reaps it."""
    end = time.monotonic() + timeout_s
    while any(_alive(process) for process in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)                                  # psutil checks the start time once more
    except psutil.NoSuchProcess:
        return
