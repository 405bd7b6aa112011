"""One page that compares runs and evaluations: a table in the papers' form, crops side by side, worst and best, scales.

Example: python jobs/report.py s3://bucket/datasets/NAME/training/vq s3://bucket/datasets/NAME/training/kl --out comparison
"""

import sys
from dataclasses import dataclass

import tyro

from infd.errors import InfdError
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write a report. stdout carries the address of the page alone."""

    addresses: tyro.conf.Positional[tuple[str, ...]]
    """Runs (with what lies in their evaluations), sweeps, result.json files, or folders of any."""
    out: str = "report"
    """Folder or prefix for report.html, report.md and report.json."""
    mlflow: bool = False
    """Also log figures and page into the MLflow runs of the training runs."""


def main(argv: list[str] | None = None) -> int:
    logs.to_stderr()
    try:
        args = tyro.cli(Report, args=argv, description=__doc__)
        from pipelines.report import report
        from pipelines.report_rows import named, read_rows
        from pipelines.report_tracking import track

        page = report(args.addresses, args.out)
        if args.mlflow:
            track(named(read_rows(args.addresses)), page)
        print(page)
    except InfdError as error:
        print(f"report: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("report: stopped; nothing half is there; run the same command again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
