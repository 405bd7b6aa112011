"""Servers are found and stopped with all that belongs to them, and nothing else is touched."""

import os
import signal
import socket
import sys
from dataclasses import replace

import psutil
import pytest
from stack import until

from infd.errors import StackError
from infra import processes

SLEEPER = "import time; time.sleep(600)"
FAMILY = """
import subprocess, sys, time
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
subprocess.Popen(sleeper)
subprocess.Popen(sleeper, start_new_session=True)
time.sleep(600)
"""


@pytest.fixture
def start(tmp_path):
    made: list[processes.Started] = []

    def run(program: str) -> processes.Started:
        made.append(processes.start([sys.executable, "-c", program], env=dict(os.environ), cwd=tmp_path,
                                    log=tmp_path / "log", marker=f"test-{os.getpid()}-{len(made)}"))
        return made[-1]

    yield run
    for started in made:
        processes.stop(started, grace_s=0)


def test_law_stop_ends_children_in_other_sessions_too(start):
    family = start(FAMILY)
    until(lambda: len(processes.members(family)) == 3)
    known = processes.members(family)
    assert len({os.getsid(process.pid) for process in known}) == 2
    processes.stop(family, grace_s=5)
    assert processes.members(family) == []
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in known)


def test_law_members_are_found_after_the_leader_was_killed(start):
    family = start(FAMILY)
    until(lambda: len(processes.members(family)) == 3)
    os.kill(family.pid, signal.SIGKILL)
    until(lambda: processes.leader(family) is None)
    assert len(processes.members(family)) == 2
    processes.stop(family, grace_s=5)
    assert processes.members(family) == []


def test_law_a_later_owner_of_the_pid_is_left_alone(start):
    sleeper = start(SLEEPER)
    record = replace(sleeper, created=sleeper.created - 3600, marker="another")
    assert processes.leader(record) is None
    assert processes.members(record) == []
    processes.stop(record, grace_s=0)
    assert processes.leader(sleeper) is not None


def test_law_stop_kills_what_ignores_sigterm(start, tmp_path):
    stubborn = start("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
                     " print('deaf', flush=True); time.sleep(600)")
    until(lambda: b"deaf" in (tmp_path / "log").read_bytes())
    processes.stop(stubborn, grace_s=0.2)
    assert processes.leader(stubborn) is None


def test_law_a_free_block_is_free_and_below_the_range_of_outgoing_connections():
    base = processes.free_block()
    assert base >= 20_000 and base + processes.BLOCK_PORTS <= 32_000
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base))
        taken.listen()
        assert not processes.port_free(base) and processes.port_free(base + 1)
        assert processes.busy_ports([base, base + 1], timeout_s=0) == [base]
        assert processes.listening([psutil.Process()]).count(("127.0.0.1", base)) == 1


def test_error_a_program_that_is_not_there(tmp_path):
    with pytest.raises(StackError, match=r"/no/such/program: cannot be run .*; see that it is installed"):
        processes.start(["/no/such/program"], env={}, cwd=tmp_path, log=tmp_path / "log", marker="x")
