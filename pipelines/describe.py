"""A dataset on one self-contained HTML page: counts, sides, rejects, sample photos, history, where the bytes are.

Manifest and rejects are read whole; of the shards a few, one at a time, for the pictures and the bytes of each level.
"""

import base64
import io
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, select_autoescape
from PIL import Image

from infd import storage
from infd.data import history, pyramid, snapshot, verify
from infd.data.history import Facts
from infd.data.photo import REASONS
from infd.data.shards import Shard, StoredPhoto
from infd.data.snapshot import Manifest
from pipelines import ingest_plan
from pipelines.ingest_report import readable

SAMPLES = 12
"""Photos that the page shows."""
READ_SHARDS = 8
"""Shards that are fetched for them."""
LARGEST_PX = 340
"""The longest side of the largest sample on the page; all others have its scale."""
CROP_PX = 168
"""Side of the samples' centres, shown pixel by pixel."""
SHOWN_SNAPSHOTS = 30
EXAMPLES = 3
COLOURS = ("#0b5fa5", "#d9822b", "#3f8f5f", "#8a5fb0", "#b3473f", "#6b7785")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A photo of the page."""

    name: str
    uri: str
    group: str
    width: int
    height: int
    whole: Image.Image
    """At the page's scale, with two pixels for each of the page."""
    shown: tuple[int, int]
    """Width and height on the page."""
    centre: Image.Image


@dataclass(kw_only=True)
class Bytes:
    """Where the bytes of the measured photos are."""

    photos: int = 0
    source: int = 0
    lowres: int = 0
    levels: Counter[int] = field(default_factory=Counter)
    tiles: Counter[int] = field(default_factory=Counter)
    having: Counter[int] = field(default_factory=Counter)
    """Photos that have the level."""

    @property
    def stored(self) -> int:
        return self.lowres + sum(self.levels.values())


def describe(dataset: str, out: str) -> str:
    """Write the page about `dataset` (or about one snapshot, "…@7") to the local file `out`; returns its path."""
    root, number = history.located(dataset)
    table = snapshot.read_table(root, number)
    manifest, entries = snapshot.manifest_of(table), table.to_pylist()
    past = [history.facts(root, n) for n in history.numbers(root) if n <= number]
    samples, measured = look(root, entries, manifest)
    page = render(values(root, past, manifest, entries, samples, measured))
    path = os.path.abspath(os.path.expanduser(out))
    storage.put_atomic(path, page.encode())
    return path


def render(shown: dict[str, Any]) -> str:
    """The template, filled; every text is escaped, because names of files are anyone's."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), trim_blocks=True,
                              autoescape=select_autoescape(default=True, default_for_string=True))
    return environment.get_template("describe.html.j2").render(shown)


# ---------------------------------------------------------------- what the page says


def values(
    root: str, past: list[Facts], manifest: Manifest, entries: list[dict[str, Any]], samples: list[Sample], measured: Bytes,
) -> dict[str, Any]:
    """All that the template shows."""
    this = past[-1]
    pixels = int((manifest.short_side.astype(np.int64) * manifest.long_side).sum())
    rejects = read_rejects(root, this.info)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(manifest.group_names)}
    config = this.info.get("config", {})
    return {
        "root": root, "number": this.number, "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "facts": [(f"{len(manifest):,}", "photos"), (pixel_text(pixels), "their pixels"),
                  (readable(this.bytes), f"in {len(manifest.shards):,} shards"),
                  (f"{int(manifest.split.sum()):,}", "held out (val)"), (f"{this.rejected:,}", "files rejected"),
                  (f"{len(past):,}", "snapshot" if len(past) == 1 else "snapshots")],
        "groups": [{"name": name or "no group", "colour": colours[name], "photos": f"{int((manifest.group == i).sum()):,}"}
                   for i, name in enumerate(manifest.group_names)],
        "histogram": histogram_rows(manifest, colours), "sides": side_line(manifest),
        "rejects": reject_rows(rejects, ingest_plan.recorded_sources(this.info)), "rejected": this.rejected,
        "samples": [sample_row(sample) for sample in samples], "scale": scale_text(samples), "crop_px": CROP_PX,
        "lineage": lineage_rows(root, past), "older": max(0, len(past) - SHOWN_SNAPSHOTS), "change": change_line(root, past),
        "levels": level_rows(measured), "measured": measured_line(measured, len(manifest)),
        "sources": ingest_plan.recorded_sources(this.info),
        "config": [(name, config[name]) for name in ("codec", "tile_px", "min_side_px", "val_fraction") if name in config],
    }


def pixel_text(pixels: int) -> str:
    return f"{pixels / 1e6:,.0f} Mpx" if pixels < 1e10 else f"{pixels / 1e9:,.1f} Gpx"


def side_line(manifest: Manifest) -> str:
    """Short sides in words."""
    low, middle, high = (int(v) for v in np.percentile(manifest.short_side, (0, 50, 100)))
    longest = float((manifest.long_side / manifest.short_side).max())
    return (f"Short sides from {low:,} to {high:,} px, half of them above {middle:,} px; the most elongated photo is "
            f"1 : {longest:.1f}.")


def histogram_rows(manifest: Manifest, colours: dict[str, str]) -> list[dict[str, Any]]:
    """A row for each half octave of short sides, its photos by group. Law: every photo counts once."""
    steps = np.floor(2 * np.log2(np.maximum(manifest.short_side, 1))).astype(int)
    low, high = int(steps.min()), int(steps.max())
    most = int(np.bincount(steps - low).max())
    rows = []
    for step in range(low, high + 1):
        inside = manifest.group[steps == step]
        first, last = (int(np.ceil(2 ** (s / 2) - 1e-9)) for s in (step, step + 1))
        parts = [{"name": name or "no group", "colour": colours[name], "photos": int((inside == i).sum()),
                  "percent": 100 * float((inside == i).sum()) / most} for i, name in enumerate(manifest.group_names)]
        rows.append({"first": f"{first:,}", "last": f"{last - 1:,}", "photos": f"{len(inside):,}",
                     "parts": [part for part in parts if part["photos"]]})
    return rows


def read_rejects(root: str, info: dict[str, Any]) -> list[dict[str, str]]:
    """The rejects of a snapshot; none where it was not made by an ingest."""
    where = storage.join(root, "runs", info["run"], "rejects.parquet") if info.get("run") else ""
    return ingest_plan.read_rows(where) if where and storage.exists(where) else []


def reject_rows(rejects: list[dict[str, str]], sources: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each reason, the most frequent first, with the first files that it befell."""
    rows = []
    counts = ingest_plan.tally(rejects)
    for reason, count in counts.items():
        some = [row for row in rejects if row["reason"] == reason][:EXAMPLES]
        rows.append({"reason": reason, "means": REASONS.get(reason, ""), "count": f"{count:,}",
                     "percent": 100 * count / max(counts.values()),
                     "examples": [{"name": below(row["uri"], sources), "detail": row["detail"]} for row in some]})
    return rows


def below(uri: str, sources: Sequence[dict[str, Any]]) -> str:
    """`uri` without the source that it lies under."""
    heads = [f"{row['source'].rstrip('/')}/" for row in sources if uri.startswith(f"{row['source'].rstrip('/')}/")]
    return uri.removeprefix(max(heads, key=len)) if heads else uri


def lineage_rows(root: str, past: list[Facts]) -> list[dict[str, Any]]:
    """A row for each snapshot, the newest first."""
    before = {facts.number: facts.photos for facts in past}
    most = max(facts.photos for facts in past) or 1
    rows = []
    for facts in reversed(past[-SHOWN_SNAPSHOTS:]):
        grown = facts.photos - before.get(facts.parent or 0, 0)
        rows.append({"number": facts.number, "parent": facts.parent or "", "made": made_when(root, facts.info),
                     "photos": f"{facts.photos:,}", "grown": f"{grown:+,}".replace("-", "−") if grown else "0",
                     "percent": 100 * facts.photos / most, "shards": f"{facts.shards:,}", "bytes": readable(facts.bytes),
                     "rejected": f"{facts.rejected:,}", "source": facts.info.get("source", ""),
                     "group": facts.info.get("group", "")})
    return rows


def made_when(root: str, info: dict[str, Any]) -> str:
    """When an ingest finished, from its record; empty where there is none."""
    where = storage.join(root, "runs", info["run"], "finished.json") if info.get("run") else ""
    if not where or not storage.exists(where):
        return ""
    return str(json.loads(storage.read_bytes(where)).get("finished", ""))[:16].replace("T", " ")


def change_line(root: str, past: list[Facts]) -> str:
    """What the newest snapshot changed, if its parent is still there."""
    this = past[-1]
    if this.parent is None or this.parent not in {facts.number for facts in past}:
        return ""
    found = history.difference(f"{root}@{this.parent}", f"{root}@{this.number}")
    return (f"Snapshot {this.number} against {this.parent}: {len(found.added):,} photos added, {len(found.removed):,} removed, "
            f"{len(found.changed):,} changed; it shares {found.shared_shards:,} of {found.shards[0]:,} shards and brought "
            f"{readable(found.new_bytes)} of new ones.")


def level_rows(measured: Bytes) -> list[dict[str, Any]]:
    """A row for each level and for the lowres."""
    most = max([*measured.levels.values(), measured.lowres, 1])
    named = [("level 0, the photo itself" if k == 0 else f"level {k}, 1 : {2**k}", measured.having[k], measured.tiles[k],
              measured.levels[k]) for k in sorted(measured.levels)]
    rows = [*named, ("lowres, the centred view", measured.photos, measured.photos, measured.lowres)]
    return [{"name": name, "photos": f"{photos:,}", "tiles": f"{tiles:,}", "bytes": readable(size),
             "share": f"{100 * size / max(1, measured.stored):.1f}%", "percent": 100 * size / most}
            for name, photos, tiles, size in rows]


def measured_line(measured: Bytes, photos: int) -> str:
    """How many photos the table stands for, and the ratio to the files that they came from."""
    part = "all photos" if measured.photos == photos else f"{measured.photos:,} of {photos:,} photos"
    ratio = f"; {measured.stored / measured.source:.2f} times the bytes of their files" if measured.source else ""
    return f"Measured on {part}: {readable(measured.stored)}{ratio}."


def sample_row(sample: Sample) -> dict[str, Any]:
    return {"name": sample.name, "uri": sample.uri, "group": sample.group, "sides": f"{sample.width:,} × {sample.height:,}",
            "src": embed(sample.whole), "width": sample.shown[0], "height": sample.shown[1], "centre": embed(sample.centre),
            "centre_width": sample.centre.width}


def scale_text(samples: Sequence[Sample]) -> str:
    largest = max((max(s.width, s.height) for s in samples), default=LARGEST_PX)
    return f"{largest / LARGEST_PX:.1f}" if largest > LARGEST_PX else "1"


def embed(image: Image.Image) -> str:
    """A picture as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


# ---------------------------------------------------------------- what is read from shards


def look(root: str, entries: list[dict[str, Any]], manifest: Manifest) -> tuple[list[Sample], Bytes]:
    """SAMPLES photos of spread sides from at most READ_SHARDS shards, and the bytes of all photos in these."""
    chosen = chosen_photos(manifest)
    largest = max(int(manifest.long_side[row]) for row in chosen)
    scale = min(1.0, LARGEST_PX / largest)
    made: dict[int, Sample] = {}
    measured = Bytes()
    for index in spread_shards(len(entries)):
        entry = entries[index]
        mine = {manifest.locate(row)[1]: row for row in chosen if manifest.locate(row)[0] == index}
        with verify.local_shard(root, entry) as path:
            shard = Shard(path)
            for inside in verify.alive_rows(entry):
                measure(shard.photo(inside), shard.facts(inside)["bytes"], measured)
            made |= {row: sample_of(shard, inside, scale) for inside, row in mine.items()}
    return [made[row] for row in chosen], measured


def spread_shards(shards: int) -> list[int]:
    """At most READ_SHARDS indices, evenly spread."""
    return sorted({int(i) for i in np.linspace(0, shards - 1, min(shards, READ_SHARDS)).round()})


def chosen_photos(manifest: Manifest) -> list[int]:
    """At most SAMPLES rows of the spread shards: the quantiles of their short sides, smallest first."""
    rows = np.concatenate([np.arange(manifest.first_row[i], manifest.first_row[i + 1])
                           for i in spread_shards(len(manifest.shards))])
    ordered = rows[np.argsort(manifest.short_side[rows], kind="stable")]
    places = np.linspace(0, len(ordered) - 1, min(SAMPLES, len(ordered))).round().astype(int)
    return [int(ordered[place]) for place in places]


def measure(stored: StoredPhoto, source_bytes: int, into: Bytes) -> None:
    """Add the bytes of a photo's levels."""
    into.photos += 1
    into.source += source_bytes
    into.lowres += len(stored.lowres)
    ends = [*(level.first_tile for level in stored.levels[1:]), len(stored.tiles)]
    for k, (level, end) in enumerate(zip(stored.levels, ends, strict=True)):
        into.levels[k] += sum(len(stored.tiles[i]) for i in range(level.first_tile, end))
        into.tiles[k] += end - level.first_tile
        into.having[k] += 1


def sample_of(shard: Shard, row: int, scale: float) -> Sample:
    """A photo at the page's scale, and its centre pixel by pixel. Raises DatasetError for a damaged shard."""
    facts, stored = shard.facts(row), shard.photo(row)
    width, height = stored.levels[0].width, stored.levels[0].height
    shown = max(1, round(width * scale)), max(1, round(height * scale))
    side = min(CROP_PX, width, height)
    view = pyramid.center_view(width, height)
    corner = (view.side - side) // 2
    centre = pyramid.read_patch(stored, r=view.side, y=corner, x=corner, h=side, w=side, view=view)
    return Sample(name=os.path.basename(facts["uri"]), uri=facts["uri"], group=facts["group"], width=width, height=height,
                  whole=whole_photo(stored, min(2 * shown[0], width), min(2 * shown[1], height)), shown=shown,
                  centre=Image.fromarray(centre))


def whole_photo(stored: StoredPhoto, width: int, height: int) -> Image.Image:
    """The whole photo at these sides, from the smallest level that has as many pixels."""
    k = max(k for k, level in enumerate(stored.levels) if k == 0 or (level.width >= width and level.height >= height))
    level, tile = stored.levels[k], verify.tile_reader(stored)
    return verify.region(stored, k, tile, 0, 0, level.width, level.height).resize((width, height), pyramid.LANCZOS)
