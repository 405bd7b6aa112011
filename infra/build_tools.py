"""Says whether this machine can build pillow-simd, and if not, the command that installs what is missing.

Standard library alone, Python 3.8 or newer: it runs before the project's environment exists.
Usage: python3 infra/build_tools.py [--install]   (--install: as root with apt-get, install what is missing)
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from typing import Dict, List, NamedTuple, Optional, Sequence  # noqa: UP035  (Python 3.8)


class Tool(NamedTuple):
    """Something the build needs: the lines a C compiler must accept, and its package on each system."""

    name: str
    includes: Sequence[str]
    packages: Dict[str, str]  # noqa: UP006


TOOLS = (
    Tool("C compiler", ("stdio.h",), {"apt-get": "build-essential", "dnf": "gcc", "brew": ""}),
    Tool("Python headers (Python.h)", ("Python.h",),
         {"apt-get": "python3-dev", "dnf": "python3-devel", "brew": "python@3.11"}),
    Tool("JPEG headers (jpeglib.h)", ("stdio.h", "jpeglib.h"),
         {"apt-get": "libjpeg-dev", "dnf": "libjpeg-turbo-devel", "brew": "jpeg-turbo"}),
    Tool("zlib headers (zlib.h)", ("zlib.h",), {"apt-get": "zlib1g-dev", "dnf": "zlib-devel", "brew": "zlib"}),
    Tool("WebP headers (webp/decode.h)", ("webp/decode.h", "webp/encode.h", "webp/mux.h", "webp/demux.h"),
         {"apt-get": "libwebp-dev", "dnf": "libwebp-devel", "brew": "webp"}),
)
VENV = Tool("venv module (ensurepip), or uv", (),
            {"apt-get": "python3-venv", "dnf": "python3-pip", "brew": "uv"})
EXTRA_FOLDERS = ("/opt/homebrew/include", "/opt/homebrew/opt/jpeg-turbo/include", "/opt/homebrew/opt/zlib/include",
                 "/usr/local/include", "/usr/local/opt/jpeg-turbo/include", "/usr/local/opt/zlib/include")


def compiler() -> Optional[List[str]]:  # noqa: UP006, UP045
    """The command of the C compiler; None where there is none."""
    for command in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        words = command.split()
        if words and shutil.which(words[0]):
            return words
    return None


def accepts(command: Sequence[str], includes: Sequence[str]) -> bool:
    """Whether the compiler finds these headers, where it looks by itself and where the build of Pillow looks."""
    folders = [sysconfig.get_paths()["include"]] + [folder for folder in EXTRA_FOLDERS if os.path.isdir(folder)]
    with tempfile.TemporaryDirectory() as scratch:
        source = os.path.join(scratch, "probe.c")
        with open(source, "w") as file:
            file.write("".join("#include <%s>\n" % name for name in includes) + "int probe;\n")  # noqa: UP031
        done = subprocess.run(list(command) + ["-fsyntax-only"] + ["-I" + folder for folder in folders] + [source],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return done.returncode == 0


def can_make_environment() -> bool:
    """Whether a virtual environment can be made: uv is there, or this Python has its own pip to put into one."""
    if shutil.which("uv"):
        return True
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        return False
    return True


def missing_tools() -> List[Tool]:  # noqa: UP006
    """What the build needs and this machine lacks, in the order of the table."""
    command = compiler()
    missing = [tool for tool in TOOLS if command is None or not accepts(command, tool.includes)]
    return missing if can_make_environment() else missing + [VENV]


def install_command(missing: "Sequence[Tool]") -> str:
    """The shell command that installs the missing things with this machine's package manager."""
    for manager in ("apt-get", "dnf", "brew"):
        if shutil.which(manager):
            return command_of(manager, missing)
    return ("with your system's package manager, what Debian calls: "
            + " ".join(tool.packages["apt-get"] for tool in missing))


def command_of(manager: str, missing: "Sequence[Tool]") -> str:
    """The command for one package manager."""
    packages = " ".join(tool.packages[manager] for tool in missing if tool.packages[manager])
    sudo = "" if is_root() else "sudo "
    if manager == "apt-get":
        return sudo + "apt-get update && " + sudo + "apt-get install -y --no-install-recommends " + packages
    if manager == "dnf":
        return sudo + "dnf install -y " + packages
    needs_compiler = any(tool is TOOLS[0] for tool in missing)
    commands = ["xcode-select --install"] if needs_compiler else []
    return " && ".join(commands + (["brew install " + packages] if packages else []))


def is_root() -> bool:
    """Whether this process may install packages."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def install(missing: "Sequence[Tool]") -> None:
    """Run apt-get as root for what is missing; raises CalledProcessError where it fails."""
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    subprocess.run(command_of("apt-get", missing), shell=True, check=True, env=environment, stdout=sys.stderr)


def main(argv: Optional[Sequence[str]] = None) -> int:  # noqa: UP045
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--install", action="store_true", help="as root with apt-get: install what is missing")
    args = parser.parse_args(argv)
    if sys.version_info < (3, 11):  # noqa: UP036  (this file runs before the environment, on any Python)
        print("%s is Python %d.%d; 3.11 or newer is needed: make BASE_PYTHON=/path/to/python3.11 ..."  # noqa: UP031
              % ((sys.executable,) + tuple(sys.version_info[:2])), file=sys.stderr)
        return 1
    if platform.machine().lower() not in ("x86_64", "amd64"):
        print("this machine is %s; pillow-simd is made of x86 instructions; use an x86-64 machine"  # noqa: UP031
              % platform.machine(), file=sys.stderr)
        return 1
    missing = missing_tools()
    if missing and args.install and is_root() and shutil.which("apt-get"):
        try:
            install(missing)
        except subprocess.CalledProcessError as error:
            print("apt-get ended with %d" % error.returncode, file=sys.stderr)  # noqa: UP031
        missing = missing_tools()
    if not missing:
        print("build tools: all there")
        return 0
    print("pillow-simd is compiled on this machine, and these are missing:", file=sys.stderr)
    for tool in missing:
        print("  - " + tool.name, file=sys.stderr)
    print("Install them:\n  " + install_command(missing), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
