"""Training runs as their folders tell, without MLflow: state, step, best figure, where the checkpoints are.

Example: python jobs/runs.py list s3://bucket/datasets/NAME
         python jobs/runs.py show s3://bucket/datasets/NAME/training/tiny-44c7d227
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from infd.errors import InfdError
from pipelines import logs

WATCH_S = 12.5
WATCH = "Seconds to watch a driver for a sign of life, which comes every 5; without one its run counts as interrupted."


@dataclass(frozen=True)
class List:
    """A line for each run: name, state, step, best validation loss, preset, snapshot."""

    folder: tyro.conf.Positional[str]
    """A dataset's address, or a folder that holds runs."""
    watch_s: Annotated[float, tyro.conf.arg(help=WATCH)] = WATCH_S


@dataclass(frozen=True)
class Show:
    """All of one run, and its validation figures by side r."""

    run: tyro.conf.Positional[str]
    """The run's folder."""
    watch_s: Annotated[float, tyro.conf.arg(help=WATCH)] = WATCH_S


Command = Annotated[List, tyro.conf.subcommand("list")] | Annotated[Show, tyro.conf.subcommand("show")]


def main(argv: list[str] | None = None) -> int:
    command = tyro.cli(Command, args=argv, description=__doc__)  # pyright: ignore[reportArgumentType, reportCallIssue]
    logs.to_stderr()
    from pipelines import runs

    try:
        match command:
            case List(folder=folder, watch_s=watch_s):
                print(runs.list_text(folder, watch_s=watch_s))
            case Show(run=run, watch_s=watch_s):
                print(runs.show_text(run, watch_s=watch_s))
    except InfdError as error:
        print(f"runs: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
