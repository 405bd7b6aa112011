"""What this machine has for the jobs of this project, one finding a line; what fails would stop the main job."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from infd.downloads import cache_folder
from infd.errors import InfdError
from pipelines import doctor_servers as servers
from pipelines.findings import Finding

DRIVER_TIMEOUT_S = 10
GIB = 1 << 30
AVX_BUILD_COUNT = 500
"""256-bit instruction prefixes in a library: an SSE4 build of Pillow shows some 40 by chance, an AVX2 one thousands."""


def examine(bucket: str = "") -> list[Finding]:
    """All findings of this machine. `bucket`: name of one in the object store, to try its conditional writes on.

    Empty: the local stack's, where the object store is on this machine and has it.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [
        software, pillow, processor, gpus, room, compiler, servers.ray_cluster, servers.dashboard,
        servers.store_program, lambda: servers.object_store(bucket), servers.mlflow_server, networks]
    return [finding for check in checks for finding in check()]


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
                              text=True, timeout=DRIVER_TIMEOUT_S, check=False)
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
