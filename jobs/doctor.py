"""One screen of what this machine has, and what to do about what it lacks.

Example: python jobs/doctor.py --bucket infd
"""

import dataclasses
import json
import os
import sys
from dataclasses import dataclass

import tyro


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """One screen of what this machine has, and what to do about what it lacks. Exit code 1: the main job cannot run."""

    bucket: str = ""
    """Bucket in which conditional writes are tried with one small object; empty: INFD_BUCKET, else the
    local stack's where that runs."""
    json: bool = False
    """Print one JSON object instead of the screen."""


def main(argv: list[str] | None = None) -> int:
    args = tyro.cli(Doctor, args=argv, description=__doc__)
    from pipelines import doctor, findings

    found = doctor.examine(args.bucket or os.environ.get("INFD_BUCKET", ""))
    good = findings.can_run(found)
    if args.json:
        print(json.dumps({"can_run": good, "findings": [dataclasses.asdict(finding) for finding in found]}))
    else:
        print(findings.screen(found, colour=sys.stdout.isatty()))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
