"""The check of build tools that runs before any environment exists."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra import build_tools

SCRIPT = Path(build_tools.__file__)


def run(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script alone, without the project's packages on its path."""
    return subprocess.run([sys.executable, "-I", "-S", str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, **environment}, check=False)


def test_job_passes_where_pillow_simd_was_built(tmp_path):
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (0, "build tools: all there\n"), done.stderr


def test_error_without_a_compiler_everything_is_named(tmp_path):
    done = run(tmp_path, PATH=str(tmp_path), CC="")
    assert done.returncode == 1
    for tool in build_tools.TOOLS:
        assert tool.name in done.stderr
    assert "libjpeg-dev zlib1g-dev libwebp-dev" in done.stderr


def test_error_the_missing_header_alone_is_named(tmp_path):
    """A compiler that knows no jpeglib.h."""
    compiler = tmp_path / "fakecc"
    compiler.write_text('#!/bin/sh\nfor last; do :; done\n! grep -q jpeglib.h "$last"\n')
    compiler.chmod(0o755)
    done = run(tmp_path, CC=str(compiler))
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("  - ")] == ["  - JPEG headers (jpeglib.h)"]
    assert "libjpeg" in done.stderr and "zlib1g-dev" not in done.stderr


def test_error_another_processor_is_named(monkeypatch, capsys):
    monkeypatch.setattr(build_tools.platform, "machine", lambda: "arm64")
    assert build_tools.main([]) == 1
    assert "this machine is arm64; pillow-simd is made of x86 instructions" in capsys.readouterr().err


@pytest.mark.parametrize(("manager", "command"), [
    ("apt-get", "apt-get update && apt-get install -y --no-install-recommends build-essential libwebp-dev"),
    ("dnf", "dnf install -y gcc libwebp-devel"),
    ("brew", "xcode-select --install && brew install webp")])
def test_law_one_command_installs_what_is_missing(monkeypatch, manager, command):
    monkeypatch.setattr(build_tools, "is_root", lambda: True)
    missing = [build_tools.TOOLS[0], build_tools.TOOLS[4]]
    assert build_tools.command_of(manager, missing) == command


def test_law_users_who_are_not_root_are_shown_sudo(monkeypatch):
    monkeypatch.setattr(build_tools, "is_root", lambda: False)
    command = build_tools.command_of("apt-get", [build_tools.TOOLS[2]])
    assert command.split(" && ") == ["sudo apt-get update",
                                     "sudo apt-get install -y --no-install-recommends libjpeg-dev"]


def test_law_the_script_parses_as_python_3_8():
    import ast

    ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
