"""Snapshots as plain text: a table of all, and what changed between two."""

from collections.abc import Collection, Sequence

from infd.data import history
from infd.data.history import Difference
from pipelines.ingest_report import readable

COLUMNS = ("snapshot", "parent", "photos", "shards", "bytes", "rejected", "group")


def list_text(dataset: str) -> str:
    """A line for each snapshot, oldest first."""
    rows = [(f"{f.number}", f"{f.parent or '-'}", f"{f.photos}", f"{f.shards}", readable(f.bytes), f"{f.rejected}",
             f.info.get("group", "") or "-") for f in history.all_facts(dataset)]
    return table_text([COLUMNS, *rows])


def table_text(rows: Sequence[Sequence[str]], *, left: Collection[int] = ()) -> str:
    """Columns flush right, those whose numbers stand in `left` flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) if i in left else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows)


def difference_text(older: str, newer: str, *, limit: int) -> str:
    """Counts, and the first `limit` uris of each kind."""
    (root, a), (other, b) = history.located(older), history.located(newer)
    found = history.difference(f"{root}@{a}", f"{other}@{b}")
    return "\n".join([f"{root}@{a} → {other}@{b}", *difference_lines(found, limit=limit)])


def difference_lines(found: Difference, *, limit: int) -> list[str]:
    """What changed, in lines."""
    lines = []
    for word, uris, sign in (("added", found.added, "+"), ("removed", found.removed, "-"), ("changed", found.changed, "~")):
        lines.append(f"{word:<12}{len(uris):>9}")
        lines += [f"  {sign} {uri}" for uri in uris[:limit]]
        lines += [f"  … and {len(uris) - limit} more"] if len(uris) > limit else []
    if found.renamed:
        lines.append(f"{'renamed':<12}{len(found.renamed):>9}  (equal bytes under another uri; counted above too)")
        lines += [f"  {old} → {new}" for old, new in found.renamed[:limit]]
    return [*lines, f"{'unchanged':<12}{found.unchanged:>9}",
            f"shards shared {found.shared_shards} of {found.shards[0]}; the newer has {found.shards[1]}, "
            f"{readable(found.new_bytes)} of them new"]
