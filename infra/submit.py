"""Submit a job to the stack, show its log, and end with its exit code.

    python -m infra.submit [--env NAME=VALUE] [--no-wait] -- python jobs/train_ae.py tiny --dataset s3://…

The cluster is that of RAY_API_SERVER_ADDRESS, else the local stack's. The working folder travels with the job,
without what .gitignore, .rayignore and EXCLUDES name. Ctrl+C leaves the job running and says how to go on.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from infd.environment import without_secrets
from infd.errors import StackError
from infra import local
from infra.services import ray_headers

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

Result = TypeVar("Result")

EXCLUDES = [".git", ".venv", ".tool", ".local", ".cache", "demo", "tests/golden", "docs/pictures", "**/__pycache__"]
POLL_S = 0.5
PATIENCE_S = 60.0
"""For how long the dashboard may fail to answer before waiting for a job ends."""
INTERRUPTED = 130


def submit(
    entrypoint: Sequence[str], *, env: Mapping[str, str] | None = None, follow: bool = True,
    working_dir: str | Path | None = None, submission_id: str | None = None,
) -> tuple[str, int]:
    """Run the command `entrypoint` on the cluster; (submission id, exit code).

    The code is the command's own; 1 where it had none, as a stopped job; 0 with `follow=False`. The job's
    output goes to stdout. Raises StackError where no cluster answers or it refuses the job.
    """
    stack = local.status()
    client = connect(stack)
    job = submission_id or readable_id(entrypoint)
    folder = Path(working_dir) if working_dir else Path(__file__).resolve().parents[1]
    runtime_env = {"working_dir": str(folder), "excludes": EXCLUDES,
                   "env_vars": {**forwarded(stack), "PYTHONUNBUFFERED": "1", **(env or {})}}
    try:
        client.submit_job(entrypoint=shlex.join(entrypoint), submission_id=job, runtime_env=runtime_env)
    except (RuntimeError, ValueError) as error:
        raise StackError(f"job {job}: refused ({reason(error)}); see that its id is new and the folder below 512 MiB"
                         ) from error
    return job, wait(client, job) if follow else 0


def submit_or_follow(entrypoint: Sequence[str]) -> int:
    """The exit code of `entrypoint`: of the job that runs it just now, else of a new one."""
    client = connect(local.status())
    for job in client.list_jobs():
        if job.entrypoint == shlex.join(entrypoint) and job.submission_id and not job.status.is_terminal():
            print(f"job {job.submission_id} is at it already; following it", file=sys.stderr)
            return wait(client, job.submission_id)
    return submit(entrypoint)[1]


def connect(stack: local.Stack) -> "JobSubmissionClient":
    """A client of the stack's Jobs API. Raises StackError where there is none."""
    part = stack.services["ray"]
    if not part.usable or "RAY_API_SERVER_ADDRESS" not in stack.env:
        raise StackError(f"ray: {part.state} at {part.url or 'no address'}; run python infra/local.py up, or set "
                         "RAY_API_SERVER_ADDRESS to the dashboard of a running cluster")
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(stack.env["RAY_API_SERVER_ADDRESS"], headers=ray_headers(stack.env))
    except (ConnectionError, RuntimeError) as error:
        raise StackError(f"ray: {part.url} does not take jobs ({error}); see python infra/local.py status") from error


def wait(client: "JobSubmissionClient", job: str) -> int:
    """Show the log until the job has ended; its exit code.

    Raises StackError where the dashboard does not answer for a minute: the job may run on.
    """
    from ray.job_submission import JobStatus

    log = Log(client, job)
    while not (state := patiently(job, lambda: client.get_job_status(job))).is_terminal():
        log.show()
        time.sleep(POLL_S)
    log.finish()
    if state == JobStatus.SUCCEEDED:
        return 0
    info = patiently(job, lambda: client.get_job_info(job))
    print(f"job {job}: {state.value}: {(info.message or 'no reason given').strip().splitlines()[0]}", file=sys.stderr)
    code = info.driver_exit_code
    return code if state == JobStatus.FAILED and code is not None and 0 < code < 256 else 1


def patiently(job: str, ask: Callable[[], Result]) -> Result:
    """What `ask` has of the dashboard, asked again for PATIENCE_S while it fails; then StackError. No job: at once."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except (OSError, RuntimeError) as error:                     # requests' errors are OSErrors
            if time.monotonic() >= until or "status code 404" in str(error):
                raise StackError(f"job {job}: its state cannot be read ({reason(error)}); it may run on: see python "
                                 f"infra/local.py status, then ray job logs {job} --follow") from error
        time.sleep(POLL_S)


class Log:
    """Follows a job's log on a socket, in a thread; where the socket breaks, `show` asks for the log again.

    Law: after `finish` every character of the log was written to stdout once, in order.
    """

    def __init__(self, client: "JobSubmissionClient", job: str) -> None:
        self.client, self.job, self.written = client, job, 0
        self.loop = asyncio.new_event_loop()
        self.task = self.loop.create_task(self.follow())
        self.thread = threading.Thread(target=self.run, daemon=True, name=f"log of {job}")
        self.broken = False
        self.thread.start()

    def run(self) -> None:
        with contextlib.closing(self.loop):
            try:
                self.loop.run_until_complete(self.task)
            except (asyncio.CancelledError, OSError, RuntimeError, aiohttp_error()):
                self.broken = True

    async def follow(self) -> None:
        async for lines in self.client.tail_job_logs(self.job):
            self.write(lines)

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        self.written += len(text)

    def show(self) -> None:
        """What the socket no longer brings."""
        if self.broken and not self.thread.is_alive():
            self.write_rest()

    def finish(self) -> None:
        """The rest of the log, once the job has ended; the socket itself would close some seconds later."""
        with contextlib.suppress(RuntimeError):                      # the loop is closed: the socket ended first
            self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join()
        self.write_rest()

    def write_rest(self) -> None:
        self.write(patiently(self.job, lambda: self.client.get_job_logs(self.job))[self.written:])


def aiohttp_error() -> type[Exception]:
    """What the socket raises; imported late, because `--help` needs no aiohttp."""
    import aiohttp

    return aiohttp.ClientError


def forwarded(stack: local.Stack) -> dict[str, str]:
    """Addresses of our own servers for a cluster that is not ours; no credentials, because Ray logs what travels here."""
    if stack.services["ray"].state != "elsewhere":
        return {}
    own = [prefix for name, prefix in (("s3", "AWS_"), ("mlflow", "MLFLOW_")) if stack.services[name].state == "up"]
    return without_secrets(stack.env, prefixes=tuple(own))


def reason(error: Exception) -> str:
    """The last error of the tracebacks that Ray's server sends as its answer, in one line."""
    lines = [line.strip(" .") for line in str(error).splitlines()]
    named = [line for line in lines if "Error: " in line]
    return named[-1] if named else next((line for line in reversed(lines) if line), type(error).__name__)


def readable_id(entrypoint: Sequence[str]) -> str:
    """`train_ae-tiny-20260131-235959-1f2e`: script, its first plain argument, time, four random digits."""
    words = [word for word in entrypoint[1:] if not word.startswith("-")] or list(entrypoint[:1])
    names = [Path(words[0]).stem, *(word for word in words[1:2] if word.isidentifier())]
    if "-c" in entrypoint:                                           # a program as text makes no name
        names = ["command"]
    plain = ["".join(letter for letter in word if letter.isalnum() or letter == "_")[:32] for word in names]
    return "-".join([*filter(None, plain), time.strftime("%Y%m%d-%H%M%S"), secrets.token_hex(2)])


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text}: must be NAME=VALUE")
    return name, value


def main(argv: list[str] | None = None) -> int:
    """The job's exit code; 1 where it could not be submitted; 2 on usage; 130 after Ctrl+C."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, entrypoint = (words[:words.index("--")], words[words.index("--") + 1:]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(prog="python -m infra.submit", description=__doc__,
                                     usage="%(prog)s [options] -- COMMAND …",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", action="append", default=[], type=pair, metavar="NAME=VALUE",
                        help="a variable for the job and its workers; may be given again")
    parser.add_argument("--id", help="name of the job; default: script, argument and time")
    parser.add_argument("--no-wait", action="store_true", help="return once it is submitted")
    options = parser.parse_args(own)
    if not entrypoint:
        parser.error("no command; write it behind --")
    import ray  # noqa: F401    its import sets the level of its logger

    logging.getLogger("ray").setLevel(logging.WARNING)               # else eight lines a package
    job = options.id or readable_id(entrypoint)
    print(f"job {job}", file=sys.stderr)
    try:
        return submit(entrypoint, env=dict(options.env), follow=not options.no_wait, submission_id=job)[1]
    except StackError as error:
        print(f"submit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'\njob {job} runs on. With eval "$(python infra/local.py status --export)":\n'
              f"  ray job logs {job} --follow\n  ray job stop {job}", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
    os._exit(INTERRUPTED)
