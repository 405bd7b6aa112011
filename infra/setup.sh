#!/usr/bin/env bash
# Makes .venv from pyproject.toml and constraints.txt with uv (from PATH, else from the package index into .tool).
# torch: a build in pip's find-links is taken first; else uv picks the build that fits this machine (the CPU's, or the
# CUDA version of its driver), and where that one cannot be fetched, the index's default.
set -euo pipefail
python=${1:-python3}

if command -v uv >/dev/null; then
    uv=uv
else
    [ -x .tool/bin/uv ] || { "$python" -m venv .tool && .tool/bin/pip install -q "uv==$(sed -n 's/^uv==//p' infra/tools.txt)"; }
    uv=.tool/bin/uv
fi

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ -x .venv/bin/python ] || "$uv" venv -q .venv --python "$version"

options=(-q --python .venv/bin/python -c constraints.txt)
if ! ls "${UV_FIND_LINKS:-/nonexistent}"/torch-* >/dev/null 2>&1; then
    "$uv" pip install "${options[@]}" --torch-backend=auto "$(grep '^torch==' constraints.txt)" \
        "$(grep '^torchvision==' constraints.txt)" ||
        echo "setup: no build of torch made for this machine could be fetched; taking the index's default" >&2
fi
if [ "${AVX2:-0}" = 1 ]; then
    grep -qm1 avx2 /proc/cpuinfo || { echo "setup: AVX2=1, but this CPU has no AVX2; run without AVX2=1" >&2; exit 1; }
    CC="${CC:-cc} -mavx2" "$uv" pip install "${options[@]}" --no-cache --reinstall-package pillow-simd \
        "$(grep '^pillow-simd==' constraints.txt)"
fi
"$uv" pip install "${options[@]}" -r pyproject.toml --all-extras
# compat: a plain .pth file, so that a session in the folder above, where `infd` is the clone, still imports the package.
"$uv" pip install -q --python .venv/bin/python --no-deps --config-setting editable_mode=compat --editable .
