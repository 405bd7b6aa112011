"""The local stack: a Ray head with dashboard, a real S3 server and MLflow, for this machine alone.

    python infra/local.py up | status | down [--purge]         (or: python -m infra.local …)
    eval "$(python infra/local.py status --export)"

Everything it makes lies in one folder, `.local/` of the checkout or INFD_LOCAL. A server that
AWS_ENDPOINT_URL, MLFLOW_TRACKING_URI, RAY_ADDRESS or RAY_API_SERVER_ADDRESS already names is used instead of
one of our own; bucket `infd` is made on it if it is missing. `down` keeps the data, `down --purge` does not.
"""

import argparse
import contextlib
import json
import logging
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from infd.errors import StackError
from infra import processes
from infra.services import SERVICES, Layout, NotReady, Service, server_env, write_s3_config
from infra.state import (
    State,
    clear_ray_temp,
    credentials,
    environment,
    locked,
    named,
    short_temp,
    stack_root,
)

logger = logging.getLogger(__name__)

START_LIMIT_S = 180.0
"""5 to 15 s are usual on two free cores; a server that has ended is noticed at once."""
FOREIGN_LIMIT_S = 10.0
KEPT = ("s3", "mlflow", "logs", "s3.json", "credentials.json", "ray_token", "state.json", ".gitignore")
"""All that a stack leaves in its folder, its lock file apart; `--purge` removes these and nothing else."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One server as it is now; `elsewhere` is one that the environment named. `since`: s since the epoch."""

    name: str
    state: Literal["up", "starting", "down", "elsewhere", "no answer"]
    url: str
    pid: int | None = None
    since: float | None = None
    log: str = ""

    @property
    def usable(self) -> bool:
        return self.state in ("up", "elsewhere")


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The stack as it is now. `env` holds the variables that lead clients, jobs and tests to it."""

    root: Path
    services: dict[str, Part]
    env: dict[str, str]

    @property
    def usable(self) -> bool:
        return all(part.usable for part in self.services.values())


# ---------------------------------------------------------------- the three verbs


def up(root: str | Path | None = None) -> Stack:
    """Start what does not run, wait until all of it serves. Law: a second call changes nothing.

    Raises StackError with the end of the log of the server that did not start; the others stay up.
    """
    folder = stack_root(root)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(folder):
        state = prepare(folder)
        state.save()
        keys = credentials(folder)
        write_s3_config(state.layout, access_key=keys["access_key"], secret_key=keys["secret_key"])
        fresh: set[str] = set()
        for service in SERVICES:
            if service.name not in state.taken and service.name not in state.started:
                state = launch(state, service)
                fresh.add(service.name)
        with ThreadPoolExecutor(len(SERVICES)) as pool:
            waits = {service.name: pool.submit(wait_ready, state, service) for service in SERVICES}
        errors = {name: error for name, wait in waits.items() if (error := wait.exception())}
        for name in fresh & errors.keys():
            processes.stop(state.started.pop(name), grace_s=0)
        state.save()
        for error in errors.values():
            raise error
    return status(folder)


def down(root: str | Path | None = None, purge: bool = False) -> None:
    """Stop what `up` started, Ray first because its jobs write to the others; keep the data unless `purge`.

    Law: afterwards none of its processes lives and none of its ports is open. What others run is left alone.
    """
    folder = stack_root(root)
    if not folder.exists():
        return
    with locked(folder):
        state = State.load(folder)
        if state is not None:
            for names in (("ray",), ("mlflow", "s3")):
                halts = [service for service in SERVICES if service.name in names and service.name in state.started]
                with ThreadPoolExecutor(len(names)) as pool:
                    list(pool.map(lambda one: processes.stop(state.started[one.name], grace_s=one.grace_s), halts))
            clear_ray_temp(state.layout)
            replace(state, started={}, taken={}).save()
        if purge:
            for name in KEPT:
                path = folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if purge:
        (folder / "lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):                           # someone keeps other files there
            folder.rmdir()


def status(root: str | Path | None = None) -> Stack:
    """What serves now, asked of the servers themselves. Starts and changes nothing."""
    folder = stack_root(root)
    state = State.load(folder)
    if state is not None and not state.started:
        state = replace(state, taken=named(state.layout))            # what `up` would take now
    env = environment(folder, state)
    with ThreadPoolExecutor(len(SERVICES)) as pool:
        parts = list(pool.map(lambda service: look(service, state, env), SERVICES))
    return Stack(root=folder, services={part.name: part for part in parts}, env=env)


def look(service: Service, state: State | None, env: Mapping[str, str]) -> Part:
    """One part as it is now."""
    url = env.get(service.taken_from[0]) or env.get(service.taken_from[-1], "")
    foreign = service.name in (state.taken if state else named(None))
    started = state.started.get(service.name) if state else None
    alive = started is not None and processes.leader(started) is not None
    answers = False
    if foreign or alive:
        with contextlib.suppress(NotReady):
            service.ready(env)
            answers = True
    if foreign:
        return Part(name=service.name, state="elsewhere" if answers else "no answer", url=url)
    if state is None or started is None or not alive:
        return Part(name=service.name, state="down", url=url)
    return Part(name=service.name, state="up" if answers else "starting", url=url, pid=started.pid,
                since=started.created, log=str(state.layout.log(service.name)))


# ---------------------------------------------------------------- steps of up


def prepare(folder: Path) -> State:
    """The state to start from: records of the living alone, left-overs of the dead removed, ports that are free.

    Ports stay what they were, so that exported variables outlive a restart. Raises StackError where the
    environment or another program stands in the way of parts that run on.
    """
    old = State.load(folder)
    taken = named(old.layout if old else None)
    if old is None:
        layout = Layout(root=folder, base=processes.free_block(), ray_temp=Path())
        return State(layout=layout, started={}, taken=taken)
    for record in old.started.values():
        if processes.leader(record) is None:
            processes.stop(record, grace_s=0)
    alive = {name: record for name, record in old.started.items() if processes.leader(record) is not None}
    if alive and taken != old.taken:
        raise StackError(f"environment: names {taken or 'no servers'}; the running stack was started with "
                         f"{old.taken or 'none'} and its jobs know those; run down, then up")
    blocked = processes.busy_ports([old.layout.base + offset for service in SERVICES
                                    if service.name not in alive | taken for offset in service.ports])
    if blocked and alive:
        raise StackError(f"ports {blocked}: another program listens there; the parts that run expect ours; "
                         "run down, then up")
    layout = replace(old.layout, base=processes.free_block()) if blocked else old.layout
    return State(layout=layout, started=alive, taken=taken)


def launch(state: State, service: Service) -> State:
    """`state` with the service started, already on disk: whatever happens next, `down` will find it."""
    layout = state.layout
    if service.name == "ray":
        clear_ray_temp(layout)
        layout = replace(layout, ray_temp=short_temp())
    command = service.command(layout)
    env = server_env(layout, environment(layout.root, state), service.name)
    started = processes.start(command, env=env, cwd=layout.root, log=layout.log(service.name),
                              marker=f"{service.name}-{secrets.token_hex(8)}")
    state = State(layout=layout, started={**state.started, service.name: started}, taken=state.taken)
    state.save()
    return state


def wait_ready(state: State, service: Service) -> None:
    """Return when the service serves. Raises StackError when it has ended, or does not within START_LIMIT_S."""
    env, begin = environment(state.layout.root, state), time.monotonic()
    started = state.started.get(service.name)
    limit_s = START_LIMIT_S if started else FOREIGN_LIMIT_S
    while True:
        try:
            service.settle(env)
            service.ready(env)
            logger.info("%s ready after %.1f s", service.name, time.monotonic() - begin)
            return
        except NotReady as seen:
            late = time.monotonic() - begin > limit_s
            if started is None and late:
                raise StackError(f"{service.name}: {' or '.join(service.taken_from)} names "
                                 f"{state.taken[service.name]}, which does not serve ({seen}); mend it, or unset "
                                 "the variable to get one of our own"
                                 ) from seen
            if started is not None and (late or processes.leader(started) is None):
                what = f"not ready within {limit_s:.0f} s ({seen})" if late else "ended while starting"
                log = state.layout.log(service.name)
                raise StackError(f"{service.name}: {what}; the end of {log} says why; then run up again\n{tail(log)}"
                                 ) from seen
        time.sleep(0.1)


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, indented."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        last = file.read().decode(errors="replace").splitlines()[-lines:]
    return "\n".join(f"  | {line}" for line in last)


# ---------------------------------------------------------------- command line


def exports(env: Mapping[str, str]) -> str:
    """Lines for a shell."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in env.items())


def table(stack: Stack) -> str:
    """What is up, where, since when."""
    rows = [("part", "state", "since", "pid", "where", "log")]
    for part in stack.services.values():
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(part.since)) if part.since else "-"
        rows.append((part.name, part.state, since, str(part.pid or "-"), part.url or "-", part.log or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def main(argv: list[str] | None = None) -> int:
    """Exit 0; 1 where a part is not up or cannot be stopped; 2 on usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="start what does not run")
    verbs.add_parser("down", help="stop it, keep the data").add_argument(
        "--purge", action="store_true", help="remove bucket, MLflow database, logs and credentials too")
    shown = verbs.add_parser("status", help="what is up, where, since when").add_mutually_exclusive_group()
    shown.add_argument("--export", action="store_true", help="only lines for a shell to evaluate")
    shown.add_argument("--json", action="store_true", help="the parts, for a program; without credentials")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if options.verb == "down":
            down(purge=options.purge)
            return 0
        stack = up() if options.verb == "up" else status()
    except StackError as error:
        print(f"local: {error}", file=sys.stderr)
        return 1
    if options.verb == "up":
        print(table(stack))
    elif options.json:
        print(json.dumps([asdict(part) for part in stack.services.values()]))
    elif options.export:
        print(exports(stack.env) if stack.usable else "", end="\n" if stack.usable else "")
    else:
        print(f"{table(stack)}\n\n{exports(stack.env)}")
    if not stack.usable:
        print("local: not all of the stack is up; run python infra/local.py up", file=sys.stderr)
    return 0 if stack.usable else 1


if __name__ == "__main__":
    sys.exit(main())
