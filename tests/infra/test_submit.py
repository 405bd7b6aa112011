"""Jobs run on the stack as submitted: their environment, their log, their exit code."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stack import FOREIGN

from infd.errors import StackError
from infra import local, submit
from infra.state import environ

ROOT = Path(__file__).resolve().parents[2]
REPORT = """
import json, os, shutil, sys
names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_URI", "RAY_TRAIN_V2_ENABLED", "GREETING",
         "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "RAY_TRAIN_ENABLE_PRINT_PATCH", "NO_PROXY")
print("REPORT", json.dumps({"python": os.path.realpath(sys.executable), "prefix": sys.prefix, "files": os.listdir("."),
                            "env": {name: os.environ.get(name) for name in names}}), flush=True)
for line in range(300):
    print("line", line, "é" * 40)
sys.exit(3)
"""


@pytest.mark.parametrize(("words", "start"), [
    (["python", "jobs/train_ae.py", "tiny", "--dataset", "s3://b/d"], "train_ae-tiny-"),
    (["python", "jobs/ingest.py", "--source", "s3://b/p"], "ingest-2"),
    (["python", "-c", "print(1)"], "command-2"),
])
def test_law_a_job_has_a_readable_name(words, start):
    assert submit.readable_id(words).startswith(start)
    assert submit.readable_id(words) != submit.readable_id(words)


def test_error_no_cluster(tmp_path):
    with environ({"INFD_LOCAL": str(tmp_path)}, without=FOREIGN), pytest.raises(
            StackError, match=r"ray: down at no address; run python infra/local.py up, or set RAY_API_SERVER_ADDRESS"):
        submit.submit(["true"])


@pytest.mark.parametrize("words", [[], ["--env", "GREETING=1"], ["--env", "GREETING", "--", "true"]])
def test_error_usage(words):
    with pytest.raises(SystemExit) as ended:
        submit.main(words)
    assert ended.value.code == 2


def test_law_only_servers_of_ours_are_told_to_a_cluster_that_is_not_ours():
    env = {"AWS_ENDPOINT_URL": "a", "MLFLOW_TRACKING_URI": "m", "RAY_ADDRESS": "r"}

    def stack(**states: str) -> local.Stack:
        parts = {name: local.Part(name=name, state=state, url="") for name, state in states.items()}  # pyright: ignore
        return local.Stack(root=Path(), services=parts, env=env)

    assert submit.forwarded(stack(s3="up", mlflow="up", ray="up")) == {}
    assert submit.forwarded(stack(s3="up", mlflow="elsewhere", ray="elsewhere")) == {"AWS_ENDPOINT_URL": "a"}
    assert submit.forwarded(stack(s3="elsewhere", mlflow="elsewhere", ray="elsewhere")) == {}


class Flaky:
    """A Jobs API that fails `failures` times before each of its answers about a job that has succeeded."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error, self.asked = failures, error, 0

    def answer(self, value):
        self.asked += 1
        if self.asked % (self.failures + 1):
            raise self.error
        return value

    def get_job_status(self, job: str):
        from ray.job_submission import JobStatus

        return self.answer(JobStatus.SUCCEEDED)

    def get_job_logs(self, job: str) -> str:
        return self.answer("whole log\n")

    async def tail_job_logs(self, job: str):
        raise RuntimeError("no socket")
        yield ""


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(submit, "time", clock)
    return clock


@pytest.mark.parametrize("error", [ConnectionError("refused"), RuntimeError("Request failed with status code 503: .")])
def test_law_a_short_failure_of_the_dashboard_does_not_end_the_wait(clock, capsys, error):
    client = Flaky(5, error)
    assert submit.wait(client, "one") == 0  # pyright: ignore[reportArgumentType]
    assert capsys.readouterr().out == "whole log\n" and client.asked == 12


def test_error_a_dashboard_that_stays_away_names_the_job(clock):
    with pytest.raises(StackError, match=r"^job one: .*\(refused\); it may run on: .*ray job logs one --follow"):
        submit.wait(Flaky(10**6, ConnectionError("refused")), "one")  # pyright: ignore[reportArgumentType]
    assert clock.now == submit.PATIENCE_S


def test_error_a_job_that_is_not_there_is_not_waited_for(clock):
    gone = RuntimeError("Request failed with status code 404: Job one does not exist.")
    with pytest.raises(StackError, match="does not exist"):
        submit.wait(Flaky(10**6, gone), "one")  # pyright: ignore[reportArgumentType]
    assert clock.now == 0


@pytest.mark.slow
def test_job_has_the_environment_the_folder_and_its_exit_code(stack, tmp_path, capsys):
    (tmp_path / "here.py").write_text(REPORT)
    (tmp_path / ".gitignore").write_text("left_out\n")
    for name in ("left_out", ".venv", ".local", "docs/pictures"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text("x")
    job, code = submit.submit(["python", "here.py"], env={"GREETING": "a b"}, working_dir=tmp_path)
    log = capsys.readouterr().out
    assert code == 3 and job.startswith("here-")
    report = json.loads(next(line for line in log.splitlines() if line.startswith("REPORT "))[len("REPORT "):])
    assert report["prefix"] == sys.prefix                            # `python` is that of this environment
    assert report["env"] == {
        "AWS_ENDPOINT_URL": stack.env["AWS_ENDPOINT_URL"], "AWS_ACCESS_KEY_ID": stack.env["AWS_ACCESS_KEY_ID"],
        "MLFLOW_TRACKING_URI": stack.env["MLFLOW_TRACKING_URI"], "GREETING": "a b", "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "NO_PROXY": stack.env["NO_PROXY"]}
    assert "here.py" in report["files"] and not {"left_out", ".venv", ".local"} & {*report["files"]}
    lines = [line for line in log.splitlines() if line.startswith("line ")]
    assert lines == [f"line {number} {'é' * 40}" for number in range(300)]
    with pytest.raises(StackError, match=rf"^job {job}: refused \(ValueError: .*already exists.*\); see that its id"):
        submit.submit(["true"], working_dir=tmp_path, submission_id=job)


@pytest.mark.slow
def test_law_the_log_is_whole_where_its_socket_breaks(stack, tmp_path, capsys, monkeypatch):
    async def broken(self: submit.Log) -> None:
        raise RuntimeError("the tunnel closed")

    monkeypatch.setattr(submit.Log, "follow", broken)
    program = "import time\nfor line in range(4): print('line', line, flush=True); time.sleep(0.3)"
    assert submit.submit([sys.executable, "-c", program], working_dir=tmp_path)[1] == 0
    log = capsys.readouterr().out.splitlines()
    assert [line for line in log if line.startswith("line ")] == [f"line {number}" for number in range(4)]


@pytest.mark.slow
def test_law_an_interrupt_leaves_the_job_running(stack, tmp_path):
    program = "import time; print('begun', flush=True); time.sleep(600)"
    words = ["--id", "long-one", "--", "python", "-c", program]
    command = subprocess.Popen([sys.executable, "-m", "infra.submit", *words], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert command.stdout is not None
    assert "begun\n" in command.stdout                               # reads until the job's own line
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=60)
    assert command.returncode == submit.INTERRUPTED
    assert "ray job logs long-one --follow" in err and "ray job stop long-one" in err
    client = submit.connect(stack)
    assert client.get_job_status("long-one") == "RUNNING"
    client.stop_job("long-one")
    assert submit.wait(client, "long-one") == 1


@pytest.mark.slow
def test_job_plain_ray_job_submit_works_with_the_exported_lines(stack):
    ray = Path(sys.executable).with_name("ray")
    program = "import os, infd; print('found', os.path.dirname(infd.__file__) == os.path.join(os.getcwd(), 'infd'))"
    done = subprocess.run([str(ray), "job", "submit", "--working-dir", ".", "--", "python", "-c", program], cwd=ROOT,
                          env={**os.environ, **stack.env}, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "found True" in done.stdout
