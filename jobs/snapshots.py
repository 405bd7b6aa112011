"""The snapshots of a dataset, and what changed between two of them. Nothing is written.

Example: python jobs/snapshots.py list s3://bucket/datasets/NAME
         python jobs/snapshots.py diff s3://bucket/datasets/NAME@6 s3://bucket/datasets/NAME@7
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from infd.errors import InfdError


@dataclass(frozen=True)
class List:
    """A line for each snapshot: number, parent, photos, shards, bytes, rejected, group."""

    dataset: tyro.conf.Positional[str]
    """The dataset's address."""


@dataclass(frozen=True)
class Diff:
    """Photos that were added, removed, changed; shards that both share."""

    older: tyro.conf.Positional[str]
    """A snapshot, as DATASET@6."""
    newer: tyro.conf.Positional[str]
    """A snapshot, as DATASET@7, or DATASET for its newest."""
    limit: int = 20
    """Most uris to name of each kind."""


Command = Annotated[List, tyro.conf.subcommand("list")] | Annotated[Diff, tyro.conf.subcommand("diff")]


def main(argv: list[str] | None = None) -> int:
    command = tyro.cli(Command, args=argv, description=__doc__)  # pyright: ignore[reportArgumentType, reportCallIssue]
    from pipelines import snapshots_text

    try:
        match command:
            case Diff(older=older, newer=newer, limit=limit):
                print(snapshots_text.difference_text(older, newer, limit=limit))
            case List(dataset=dataset):
                print(snapshots_text.list_text(dataset))
    except InfdError as error:
        print(f"snapshots: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
