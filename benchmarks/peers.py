"""Other projects' packages for comparison: never dependencies of this one, installed under ~/.cache/infd/bench."""

import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent


def folder(name: str) -> Path:
    """Where the benchmarks keep an environment from one run to the next."""
    cache = Path(os.environ.get("INFD_CACHE") or Path.home() / ".cache" / "infd")
    return cache / "bench" / f"{name}-py{sys.version_info.major}.{sys.version_info.minor}"


def beside_ours(name: str, requirements: tuple[str, ...]) -> str:
    """Make packages importable in this interpreter, behind ours, so that they work with our Pillow, NumPy and torch.

    The answer is why it did not work, or "".
    """
    target = folder(name)
    if not target.is_dir():
        problem = _run([*_uv(), "pip", "install", "--quiet", "--python", sys.executable, "--target", str(target), "--no-deps",
                        *requirements])
        if problem:
            return problem
    if str(target) not in sys.path:
        sys.path.append(str(target))
    return ""


def environment(name: str, requirements: tuple[str, ...]) -> tuple[Path | None, str]:
    """(its interpreter, "") of an environment of its own, or (None, why there is none)."""
    root = folder(name)
    python = root / "bin" / "python"
    if not (root / "ready").is_file():
        problem = _run([*_uv(), "venv", "--quiet", "--clear", "--python", sys.executable, str(root)])
        problem = problem or _run([*_uv(), "pip", "install", "--quiet", "--python", str(python), *requirements])
        if problem:
            return None, problem
        (root / "ready").touch()
    return python, ""


def versions(name: str, packages: tuple[str, ...]) -> str:
    """`webdataset 1.0.2, litdata 0.2.76`, as installed in that folder."""
    places = [str(folder(name)), *map(str, folder(name).glob("lib/python*/site-packages"))]
    known = {found.name.lower(): found.version for found in distributions(path=places)}
    return ", ".join(f"{package} {known.get(package.lower(), '?')}" for package in packages)


def _uv() -> list[str]:
    local = ROOT / ".tool" / "bin" / "uv"
    return [str(local)] if local.is_file() else ["uv"]


def _run(command: list[str]) -> str:
    """Run it away from our pyproject, which lets no plain Pillow in; the last line of its errors, "" without any."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT.anchor)
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or ["it failed"])[-1].strip()[:200]
