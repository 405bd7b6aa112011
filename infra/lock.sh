#!/usr/bin/env bash
# Writes constraints.txt: exact versions of everything, for all platforms, without addresses.
# Pins that still fit are kept; remove a line (or the file) to let it move.
set -euo pipefail
uv=$(command -v uv || echo .tool/bin/uv)
if [ -e constraints.txt ]; then cp constraints.txt constraints.new; fi
"$uv" pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-annotate --no-header \
    --no-emit-index-url --no-emit-find-links -q -o constraints.new
.venv/bin/python - <<'PYTHON'
"""One line for torch whatever the build; CUDA's packages only where Linux asks for them; no plain Pillow."""
lines = []
for line in open("constraints.new").read().splitlines():
    name, _, version = line.partition("==")
    if name == "torch":
        line = "torch==" + version.split(" ;")[0].split("+")[0]
    elif name == "triton" or name.startswith(("nvidia", "cuda")):
        line = line.split(" ;")[0] + " ; sys_platform == 'linux'"
    if name != "pillow" and line not in lines:
        lines.append(line)
open("constraints.txt", "w").write("\n".join(lines) + "\n")
PYTHON
rm constraints.new
