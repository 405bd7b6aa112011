"""One holder at a time: the living one is left alone, the dead one's place is taken, the robbed one is told."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from infd import lease, storage
from infd.errors import LeaseHeld
from infd.lease import held

HOLD = """
import sys
from infd.lease import held
with held(sys.argv[1], what="run", beat_s=0.2):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lease."""
    uri = str(tmp_path / "lease.json")
    process = subprocess.Popen([sys.executable, "-c", HOLD, uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process, uri
    process.kill()
    process.communicate()


def test_a_living_holder_is_left_alone(holder):
    process, uri = holder
    with pytest.raises(LeaseHeld, match=rf"run: process {process.pid} on .* works on it"), held(uri, what="run"):
        pass
    process.communicate("")
    assert not storage.exists(uri)
    with held(uri, what="run"):
        assert json.loads(storage.read_bytes(uri))["holder"].startswith(f"process {os.getpid()} ")
    assert not storage.exists(uri)


def test_a_killed_holders_place_is_taken(holder):
    process, uri = holder
    process.kill()
    process.wait()
    assert storage.exists(uri)
    with held(uri, what="run", patience_s=2):
        assert json.loads(storage.read_bytes(uri))["holder"].startswith(f"process {os.getpid()} ")


def test_a_holder_that_slept_too_long_is_told(tmp_path):
    uri = str(tmp_path / "lease.json")
    with pytest.raises(LeaseHeld, match="run: somebody has taken it over"), held(uri, what="run", beat_s=0.1):
        storage.put_atomic(uri, json.dumps({"holder": "somebody", "id": "other"}).encode())
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.05)
    assert json.loads(storage.read_bytes(uri))["holder"] == "somebody"


def test_ctrl_c_gives_the_lease_back(tmp_path):
    uri = str(tmp_path / "lease.json")
    with pytest.raises(KeyboardInterrupt), held(uri, what="run", beat_s=0.1):
        signal.raise_signal(signal.SIGINT)
    assert not storage.exists(uri)


def test_the_lease_of_a_dead_holder_is_removed_and_nobody_elses(tmp_path, caplog):
    first, second, damaged = (str(tmp_path / name) for name in "abc")
    for uri in (first, second):
        with lease.held(uri, what="run"):
            content = storage.read_bytes(uri)
        storage.put_atomic(uri, content)                                # as a holder that was killed leaves it
    lease.release(first, lease.holder())
    lease.release(second, "process 1 on another machine")
    assert [storage.exists(uri) for uri in (first, second)] == [False, True]
    lease.release(first, lease.holder())                                # nothing there
    storage.put_atomic(damaged, b"no lease")
    lease.release(damaged, lease.holder())
    assert storage.exists(damaged) and f"lease {damaged}: it stays" in caplog.text
