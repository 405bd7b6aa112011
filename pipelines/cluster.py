"""One way to a Ray cluster: the one that RAY_ADDRESS names (as inside a submitted job), else a small local one.

A local cluster listens on loopback alone, asks for a token, sends no usage statistics and ends with the block.
"""

import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from infd.environment import without_secrets
from infd.errors import StackError

logger = logging.getLogger(__name__)

PASSED_ON = ("AWS_", "MLFLOW_", "INFD_", "NO_PROXY", "RAY_TRAIN_")
"""Beginnings of the names of variables that workers need. Credentials they have from their node: of the head that a
stack started with them, of an instance profile, or of the driver where the cluster is its own."""
OBJECT_STORE_BYTES = 200 << 20
"""Blocks carry keys and figures, never pictures."""
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # despite its name: every port of Ray stays on 127.0.0.1
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_V2_ENABLED": "1"}


@contextmanager
def connect(env: dict[str, str] | None = None, num_cpus: int | None = None, *, log_to_driver: bool = True) -> Iterator[None]:
    """Be connected to a cluster inside the block; what was started here is ended, what was there is left alone.

    `env`: variables for the workers (default: `passed_on`); Ray passes on none by itself. `num_cpus` counts for a
    local cluster only. `log_to_driver`: show here what workers write. Raises StackError where RAY_ADDRESS does not answer.
    """
    wanted = env if env is not None else passed_on()
    address = os.environ.get("RAY_ADDRESS", "")
    on_loopback = not address or address.split("://")[-1].startswith(("127.0.0.1", "localhost"))
    local = {} if address else {**wanted, **_token()}
    with _variables({**(LOOPBACK if on_loopback else {}), **QUIET, **local}):
        import ray
        from ray._private import ray_constants

        if ray.is_initialized():
            yield
            return
        if on_loopback:
            ray_constants.ENABLE_RAY_CLUSTER = False  # read from the variable, but when ray is imported
        try:
            if address:
                ray.init(address=address, runtime_env={"env_vars": _not_in_job(wanted)}, logging_level=logging.WARNING,
                         log_to_driver=log_to_driver)
            else:
                ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, logging_level=logging.WARNING,
                         object_store_memory=OBJECT_STORE_BYTES, log_to_driver=log_to_driver)
        except (ConnectionError, RuntimeError) as error:
            raise StackError(f"ray: no cluster at {address or 'this machine'} ({str(error).splitlines()[0]}); start "
                             "one, or unset RAY_ADDRESS to use a local one") from error
        try:
            yield
        finally:
            ray.shutdown()


def passed_on() -> dict[str, str]:
    """This process's variables that workers get: addresses and settings, no credentials."""
    return without_secrets(os.environ, prefixes=PASSED_ON)


def cpus_now() -> float:
    """CPUs of the connected cluster."""
    import ray

    return float(ray.cluster_resources().get("CPU", 0))


def autoscales() -> bool:
    """Whether the cluster can grow: then what it has now is no bound. Set by ray_cluster.yaml's head."""
    return os.environ.get("INFD_AUTOSCALING") == "1"


def require_cpus(cpus: float) -> None:
    """Raise StackError where tasks of `cpus` CPUs could never run: Ray itself would wait for ever and say nothing."""
    found = cpus_now()
    if found < cpus and not autoscales():
        raise StackError(f"ray: the cluster has {found:g} CPUs; a task needs {cpus:g}; add workers to the cluster")


def actors(*, device: str, workers: int, tasks: int) -> tuple[int, bool]:
    """(how many actors for `tasks` units, whether each takes a GPU). `workers` 0: one a GPU, or one a core.

    Raises StackError where they could never run, for which Ray would wait without end, and where a cluster that grows does
    not tell by what it has now.
    """
    import ray

    if device == "auto" and autoscales():
        raise StackError("device=auto: this cluster grows on demand, so what it has now does not tell; say --device gpu "
                         "(or cpu)")
    gpus = int(ray.cluster_resources().get("GPU", 0))
    on_gpu = device == "gpu" or (device == "auto" and gpus > 0)
    if on_gpu and not gpus and not autoscales():
        raise StackError("device=gpu: the cluster has no GPU; add workers with GPUs, or say --device cpu")
    if not on_gpu:
        require_cpus(1)
    return min(workers or (gpus if on_gpu else int(cpus_now())) or 1, tasks), on_gpu


def _token() -> dict[str, str]:
    """Authentication of a local cluster with a token of its own, unless the environment chose a mode."""
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _not_in_job(wanted: dict[str, str]) -> dict[str, str]:
    """`wanted` without what the submitted job around us sets itself: Ray refuses to be told a variable twice."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    taken = ((job.get("runtime_env") or {}).get("env_vars") or {}).keys()
    return {name: value for name, value in wanted.items() if name not in taken}


@contextmanager
def _variables(wanted: dict[str, str]) -> Iterator[None]:
    """The process's environment with `wanted` in it, and afterwards as it was."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
