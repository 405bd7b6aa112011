"""A bucket behind the proxy, small ingests without Ray, and what readers of a dataset see."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import pytest
from faults.proxy import Faults, Proxy, proxied

from infd import config_form
from pipelines import ingest_plan
from pipelines.ingest import run_unit

Through = Callable[[Faults], AbstractContextManager[Proxy]]


@pytest.fixture
def through(bucket, monkeypatch) -> Through:
    """`with through(faults) as proxy:` what goes to the stack's S3 server goes through the proxy."""
    @contextmanager
    def harmed(faults: Faults) -> Iterator[Proxy]:
        with proxied(os.environ["AWS_ENDPOINT_URL"], faults) as proxy, monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", proxy.url)
            patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
            yield proxy

    return harmed


@pytest.fixture
def here(monkeypatch) -> None:
    """Units run in four threads of this process: all of ingest but Ray."""
    def run(plan: ingest_plan.Plan, tasks: list[dict]) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda task: run_unit(task, run_uri=plan.uri(), dataset=plan.dataset,
                                                config=config_form.flat(plan.config), group=plan.group), tasks))

    monkeypatch.setattr("pipelines.ingest.run_on_ray", run)
