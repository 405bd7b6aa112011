"""One profile for all property tests, and small thread counts, so that two cores are enough."""

import os
import secrets
import signal
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# One token for the whole session, the stack's too: a process keeps to the mode and token with which it first used Ray.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

if TYPE_CHECKING:
    from infra import local

settings.register_profile("infd", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("infd")
torch.set_num_threads(1)
# A shell that starts the tests in the background has them ignore Ctrl+C, and all programs that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# ---------------------------------------------------------------- two processes


STACKS = ("tests/pipelines/", "tests/infra/")
"""One of the processes runs all of these, first because they take longest; others take the rest, file by file."""


class Scheduling(LoadFileScheduling):
    """Which tests must run in one process, after another."""

    def _split_scope(self, nodeid: str) -> str:
        return "stacks" if nodeid.startswith(STACKS) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(STACKS))


# ---------------------------------------------------------------- the local stack, for tests marked slow


@pytest.fixture(scope="session")
def stack() -> "Iterator[local.Stack]":
    """One local stack for all tests that ask for it; os.environ leads to it from then on."""
    from stack import running_stack

    with running_stack() as made:
        yield made


@pytest.fixture
def bucket(stack: "local.Stack") -> Iterator[str]:
    """An empty prefix of its own in the stack's bucket, `s3://infd/test-…`; its objects are deleted afterwards.

    No test may leave a CPU of the stack's Ray taken, or a server ended: the next one that needs it would be blamed.
    """
    from stack import nothing_is_taken, servers, until

    from infra.services import BUCKET, s3_client

    client, prefix = s3_client(stack.env), f"test-{uuid.uuid4().hex[:12]}"
    yield f"s3://{BUCKET}/{prefix}"
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/"):
        keys = [{"Key": entry["Key"]} for entry in page.get("Contents", [])]
        if keys:
            client.delete_objects(Bucket=BUCKET, Delete={"Objects": keys})
    nothing_is_taken(stack)
    until(lambda: servers(stack) == "s3 up, mlflow up, ray up", what=lambda: servers(stack))
