"""Whether a snapshot is what its manifest says: bytes, rows, and the pixels of a sample of photos.

Four layers, and each names all that is wrong, not the first: the manifest alone; the listing of shards (there, and of
the right size); whole shards (sha256, rows against the manifest); photos (every tile, each level against the one below).
Nothing is written. On disk lies one shard at a time, in memory about STRIP_PIXELS and CACHED_PIXELS of a photo.
"""

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil, floor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from infd import storage
from infd.data import history, photo, pyramid, shards, snapshot
from infd.data.cache import ShardCache
from infd.data.pyramid import Level
from infd.data.shards import Shard, StoredPhoto
from infd.data.snapshot import ShardEntry
from infd.errors import DatasetError

logger = logging.getLogger(__name__)

TOLERANCE = {"jpeg": 4.0, "png": 1.0, "webp-lossless": 1.0}
"""Most grey levels (root of the mean square over a tile) between a tile and the Lanczos resize of level k - 1. Lossless
tiles differ by rounding alone; JPEG tiles of pure noise, the worst there is, stay below 2 (a test measures it)."""
LEAST_COMPARED_PIXELS = 256
"""Smaller tiles (at the right and lower border) have too few pixels for a mean; they are decoded only."""
SAMPLED_PHOTOS = 64
SHARD_PHOTOS = 8
"""A sample takes about this many photos from a shard, because each shard has to be fetched whole."""
STRIP_PIXELS, CACHED_PIXELS = 16 << 20, 32 << 20
LINE_EVERY_S = 5.0
LISTS = ("short_sides", "long_sides", "groups", "splits", "image_ids", "uris", "etags")
"""Columns of a manifest that have an entry for every row of the shard's file."""

Entry = dict[str, Any]
Rows = Mapping[int, Collection[int]]
"""Shard (index in the manifest) → rows of its file."""


class Finding(NamedTuple):
    """One thing that is wrong. `shard` is the sha256 of the shard at fault, empty where it is the manifest."""

    shard: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Content:
    """What is checked: a snapshot, committed or not yet. `name` is its address for people."""

    root: str
    name: str
    entries: list[Entry]
    info: dict[str, Any]

    @property
    def photos(self) -> int:
        return sum(entry["rows"] - len(entry["dropped"]) for entry in self.entries)


@dataclass(kw_only=True)
class Report:
    """What was looked at, and all that is wrong."""

    name: str
    photos: int
    shards: int
    hashed: int = 0
    """Shards whose every byte was read."""
    looked_at: int = 0
    """Photos whose every tile was decoded."""
    tiles: int = 0
    findings: list[Finding] = field(default_factory=list)

    def summary(self) -> str:
        """One line for people."""
        wrong = f"{len(self.findings)} things wrong" if self.findings else "nothing wrong"
        return (f"{self.name}: {wrong}; {self.hashed} of {self.shards} shards hashed, {self.looked_at} of {self.photos} "
                f"photos decoded ({self.tiles} tiles)")


# ---------------------------------------------------------------- what is looked at


def verify(uri: str, *, sample: int = SAMPLED_PHOTOS, seed: int = 0) -> Report:
    """Check the snapshot at `uri`: its manifest, the presence of all shards, and `sample` photos with their shards."""
    content = read_content(uri)
    return check(content, photos=sampled_rows(content.entries, sample, seed=seed))


def verify_full(uri: str) -> Report:
    """Check every byte and every photo of the snapshot at `uri`."""
    content = read_content(uri)
    return check(content, photos={i: alive_rows(entry) for i, entry in enumerate(content.entries)})


def read_content(uri: str) -> Content:
    """The snapshot that `uri` names, "…@7" or the newest. Raises DatasetError where there is none, or no manifest."""
    root, number = history.located(uri)
    table = snapshot.read_table(root, number)
    return Content(root=root, name=f"{root}@{number}", entries=table.to_pylist(), info=history.info_of(table.schema))


def alive_rows(entry: Entry) -> list[int]:
    """Rows of a shard that are photos of the snapshot."""
    return sorted({*range(entry["rows"])} - {*entry["dropped"]})


def sampled_rows(
    entries: list[Entry], sample: int, *, seed: int = 0, of: Collection[int] | None = None,
) -> dict[int, list[int]]:
    """`sample` photos drawn from few shards (those in `of`, else all); fewer where there are not so many.

    Law: equal arguments draw equal photos; every shard may be drawn.
    """
    rng = np.random.default_rng(seed)
    order = [int(i) for i in rng.permutation(sorted(of) if of is not None else len(entries))]
    left = {i: [int(r) for r in rng.permutation(alive_rows(entries[i]))] for i in order}
    drawn: dict[int, list[int]] = {}
    for most in (SHARD_PHOTOS, sample):  # a second turn where the shards are few or small
        for i in order:
            take = min(most, sample - sum(map(len, drawn.values())), len(left[i]))
            if take > 0:
                drawn.setdefault(i, []).extend(left[i][:take])
                del left[i][:take]
    return {i: sorted(rows) for i, rows in sorted(drawn.items())}


def check(content: Content, *, photos: Rows, whole: Collection[int] = ()) -> Report:
    """Look at the manifest, at the presence of all shards, at every byte of the shards in `whole` and in `photos`, and
    at the pixels of `photos`. Raises StorageError where the store fails; what is missing or damaged is a finding."""
    report = Report(name=content.name, photos=content.photos, shards=len(content.entries))
    report.findings += manifest_findings(content.entries, content.info)
    report.findings += missing_shards(content)
    absent = {finding.shard for finding in report.findings if finding.shard}
    todo = [i for i in sorted({*whole, *photos}) if content.entries[i]["sha256"] not in absent]
    said = time.monotonic()
    for done, i in enumerate(todo):
        check_shard(content, content.entries[i], photos.get(i, ()), report)
        if time.monotonic() - said >= LINE_EVERY_S:
            said = time.monotonic()
            logger.info("%d/%d shards checked, %d photos decoded, %d things wrong", done + 1, len(todo),
                        report.looked_at, len(report.findings))
    return report


# ---------------------------------------------------------------- the manifest


def manifest_findings(entries: list[Entry], info: dict[str, Any]) -> list[Finding]:
    """What a manifest says that cannot be, without looking at a shard."""
    found = [text for entry in entries for text in entry_texts(entry, info.get("config", {}))]
    if not any(found):
        found += twice(entries) + count_texts(entries, info)
    return [Finding("", text) for text in found]


def entry_texts(entry: Entry, config: dict[str, Any]) -> list[str]:
    """Of one shard's row: lengths of its lists, rows that are dropped, sides, splits."""
    name, rows = f"manifest, shard {entry['sha256'][:12]}…", entry["rows"]
    if uneven := [f"{column} {len(entry[column])}" for column in LISTS if len(entry[column]) != rows]:
        return [f"{name}: {', '.join(uneven)} entries; expected {rows}, one for every row of the shard"]
    texts = []
    if list(entry["dropped"]) != sorted({*entry["dropped"]} & {*range(rows)}):
        texts.append(f"{name}: dropped rows {entry['dropped']}; expected rows of 0 to {rows - 1}, each once, in order")
    least, fraction = config.get("min_side_px", 1), config.get("val_fraction")
    for row, (short, long, split, identity) in enumerate(zip(*(entry[c] for c in (
            "short_sides", "long_sides", "splits", "image_ids")), strict=True)):
        if not least <= short <= long:
            texts.append(f"{name} row {row}: sides {short} and {long}; expected {least} ≤ short ≤ long")
        right = shards.split_of(identity, fraction) if fraction is not None else split
        if split != right:
            texts.append(f"{name} row {row}: split {split}; the hash of its image_id says {right}")
    return texts


def twice(entries: list[Entry]) -> list[str]:
    """Shards, uris and image_ids that stand in the snapshot more than once."""
    texts = []
    alive = [(entry, row) for entry in entries for row in alive_rows(entry)]
    for column, values in (("sha256", [entry["sha256"] for entry in entries]),
                           ("uri", [entry["uris"][row] for entry, row in alive]),
                           ("image_id", [entry["image_ids"][row] for entry, row in alive])):
        texts += [f"manifest: {column} {value} stands there {times} times; expected once"
                  for value, times in Counter(values).items() if times > 1]
    return texts


def count_texts(entries: list[Entry], info: dict[str, Any]) -> list[str]:
    """Counts in the metadata that are not those of the rows."""
    said = info.get("counts", {})
    return [f"manifest: counts.{name} is {said[name]}; its rows make {found}"
            for name, found in snapshot.counts(entries).items() if name in said and said[name] != found]


# ---------------------------------------------------------------- shards


def missing_shards(content: Content) -> list[Finding]:
    """Shards that are not in the store, or have another size, by one listing of the dataset's shards."""
    folder = storage.join(content.root, "shards")
    sizes = {info.uri.rpartition("/")[2].removesuffix(shards.SUFFIX): info.size for info in storage.list_objects(folder)}
    found = []
    for entry in content.entries:
        size, uri = sizes.get(entry["sha256"]), storage.join(content.root, shards.key(entry["sha256"]))
        if size is None:
            found.append(Finding(entry["sha256"], f"shard {uri}: it is not there; expected {entry['bytes']} bytes"))
        elif size != entry["bytes"]:
            found.append(Finding(entry["sha256"], f"shard {uri}: {size} bytes; the manifest says {entry['bytes']}"))
    return found


def check_shard(content: Content, entry: Entry, rows: Collection[int], report: Report) -> None:
    """Read one shard whole: sha256, rows, and the pixels of `rows`; adds to `report`."""
    sha256 = entry["sha256"]
    report.hashed += 1
    try:
        with local_shard(content.root, entry) as path:
            texts = row_texts(path, entry, content.info.get("config", {}))
            report.findings += [Finding(sha256, text) for text in texts]
            if texts:
                return
            shard = Shard(path)
            for row in rows:
                check_photo(shard, row, report, sha256)
    except (DatasetError, storage.Unreadable) as error:
        report.findings.append(Finding(sha256, str(error)))
    except OSError as error:  # of a local file: a store's own errors are StorageErrors
        report.findings.append(Finding(sha256, f"shard {sha256[:12]}…: it cannot be read ({error.strerror})"))


@contextmanager
def local_shard(root: str, entry: Entry) -> Iterator[str]:
    """A local path of a shard while the block lasts, its bytes just read and hashed. Raises DatasetError."""
    shard = ShardEntry(entry["sha256"], entry["bytes"], entry["rows"])
    uri = storage.join(root, shards.key(shard.sha256))
    if not storage.is_remote(root):
        path = storage.local_path(uri)
        if (found := storage.file_sha256(path)) != shard.sha256:
            raise DatasetError(f"shard {uri}: sha256 {found[:16]}…; the manifest says {shard.sha256[:16]}…")
        yield path
        return
    cache = ShardCache("", max_bytes=0, uri_of=lambda _: uri)
    try:
        with cache.use(shard) as path:
            yield path
    finally:
        cache.close()


def row_texts(path: str, entry: Entry, config: dict[str, Any]) -> list[str]:
    """Where the rows of a shard's file are not those of the manifest, or its tiles of another kind."""
    shard = Shard(path)
    texts = [f"{shard.name}: {name} {here}; the snapshot's config says {config[name]}"
             for name, here in (("tile_px", shard.tile_px), ("codec", shard.codec)) if config.get(name, here) != here]
    found = snapshot.entry_of(path, entry["sha256"])
    if found["rows"] != entry["rows"]:
        return [*texts, f"{shard.name}: {found['rows']} rows; the manifest says {entry['rows']}"]
    for row in range(found["rows"]):
        other = [f"{column} {found[column][row]} (manifest: {entry[column][row]})"
                 for column in LISTS if found[column][row] != entry[column][row]]
        texts += [f"{shard.name} row {row}: {', '.join(other)}"] if other else []
    return texts


# ---------------------------------------------------------------- pixels


def check_photo(shard: Shard, row: int, report: Report, sha256: str) -> None:
    """Decode every tile of a photo, and compare every level and the lowres with what they were made of."""
    stored, facts = shard.photo(row), shard.facts(row)
    report.looked_at += 1
    wrong = layout_texts(stored, facts["width"], facts["height"])
    if not wrong:
        tile = tile_reader(stored)
        wrong = tile_texts(stored, tile)
        report.tiles += len(stored.tiles)
        if not wrong:
            wrong = [text for k in range(1, len(stored.levels)) for text in level_texts(stored, k, tile)]
            wrong += lowres_texts(stored, tile)
    report.findings += [Finding(sha256, f"{stored.name}: {text}") for text in wrong]


def layout_texts(stored: StoredPhoto, width: int, height: int) -> list[str]:
    """Levels and tiles that do not follow from the photo's sides."""
    expected, first = [], 0
    for w, h in pyramid.level_sides(width, height):
        expected.append(Level(w, h, first))
        first += ceil(w / stored.tile_px) * ceil(h / stored.tile_px)
    if list(stored.levels) != expected:
        return [f"levels {[tuple(level) for level in stored.levels]} (width, height, first tile); {width}x{height} "
                f"pixels make {[tuple(level) for level in expected]}"]
    return [f"{len(stored.tiles)} tiles; its levels make {first}"] if len(stored.tiles) != first else []


class Undecodable(Exception):
    """Bytes that are no picture of the right size; the text says why."""


def decoded(data: "bytes | memoryview", codec: str, sides: tuple[int, int]) -> Image.Image:
    """The picture in `data`. Raises Undecodable unless it is one with these sides."""
    try:
        image = pyramid.decode(data, codec)
    except photo.DECODER_ERRORS as error:
        raise Undecodable(f"cannot be decoded as {codec} ({len(data)} bytes)") from error
    if image.size != sides:
        raise Undecodable(f"has {image.width}x{image.height} pixels; expected {sides[0]}x{sides[1]}")
    return image


Boxes = list[tuple[int, int, int, int]]


def tile_boxes(level: Level, t: int) -> Boxes:
    """(left, top, right, bottom) of a level's tiles, row by row."""
    return [(x, y, min(x + t, level.width), min(y + t, level.height))
            for y in range(0, level.height, t) for x in range(0, level.width, t)]


def tile_reader(stored: StoredPhoto) -> Callable[[int, int], Image.Image]:
    """(level, number in it) → the tile; the last ones of CACHED_PIXELS stay decoded. Raises Undecodable."""
    boxes = [tile_boxes(level, stored.tile_px) for level in stored.levels]

    @functools.lru_cache(maxsize=max(4, CACHED_PIXELS // stored.tile_px**2))
    def tile(k: int, number: int) -> Image.Image:
        left, top, right, bottom = boxes[k][number]
        return decoded(stored.tiles[stored.levels[k].first_tile + number], stored.codec, (right - left, bottom - top))

    return tile


def tile_texts(stored: StoredPhoto, tile: Callable[[int, int], Image.Image]) -> list[str]:
    """Tiles that cannot be decoded or have wrong sides: the first of each level, and how many."""
    texts = []
    for k, level in enumerate(stored.levels):
        bad: list[str] = []
        boxes = tile_boxes(level, stored.tile_px)
        for number in range(len(boxes)):
            try:
                tile(k, number)
            except Undecodable as error:
                bad.append(f"tile {number} {error}")
        texts += [f"level {k} {bad[0]}; in all {len(bad)} of its {len(boxes)} tiles"] if bad else []
    return texts


def level_texts(stored: StoredPhoto, k: int, tile: Callable[[int, int], Image.Image]) -> list[str]:
    """Tiles of level k that are not the resize of level k - 1: the worst of them, and how many."""
    level, t, limit = stored.levels[k], stored.tile_px, TOLERANCE[stored.codec]
    above = stored.levels[k - 1]
    across, far = ceil(level.width / t), {}
    whole = (0.0, 0.0, float(above.width), float(above.height))
    read = functools.partial(region, stored, k - 1, tile)
    for y, strip in resized(read, above, box=whole, size=(level.width, level.height), rows_of=t):
        for number, (left, top, right, bottom) in enumerate(tile_boxes(level, t)):
            if y <= top < y + len(strip) and (right - left) * (bottom - top) >= LEAST_COMPARED_PIXELS:
                far[number] = rms(np.asarray(tile(k, number)), strip[top - y:bottom - y, left:right])
    bad = {number: value for number, value in far.items() if value > limit}
    if not bad:
        return []
    worst = max(bad, key=lambda number: bad[number])
    return [f"level {k} tile {worst} (row {worst // across}, column {worst % across}) is {bad[worst]:.1f} grey levels from "
            f"level {k - 1} resized; expected at most {limit:g}; in all {len(bad)} of its {len(far)} tiles"]


def lowres_texts(stored: StoredPhoto, tile: Callable[[int, int], Image.Image]) -> list[str]:
    """Whether the lowres is the centred view of level 0 resized."""
    native, limit = stored.levels[0], TOLERANCE[stored.codec]
    view = pyramid.center_view(native.width, native.height)
    side = min(pyramid.LOWRES_PX, view.side)
    try:
        lowres = np.asarray(decoded(stored.lowres, stored.lowres_codec, (side, side)))
    except Undecodable as error:
        return [f"lowres {error}"]
    box = (float(view.x), float(view.y), float(view.x + view.side), float(view.y + view.side))
    read = functools.partial(region, stored, 0, tile)
    made = np.concatenate([strip for _, strip in resized(read, native, box=box, size=(side, side), rows_of=1)])
    far = rms(lowres, made)
    return [f"lowres is {far:.1f} grey levels from level 0 resized; expected at most {limit:g}"] if far > limit else []


def rms(a: np.ndarray, b: np.ndarray) -> float:
    """Root of the mean square of the difference, in grey levels."""
    return float(np.sqrt(((a.astype(np.float32) - b) ** 2).mean()))


def region(
    stored: StoredPhoto, k: int, tile: Callable[[int, int], Image.Image], left: int, top: int, right: int, bottom: int,
) -> Image.Image:
    """Pixels [top, bottom) × [left, right) of level k."""
    picture, t = Image.new("RGB", (right - left, bottom - top)), stored.tile_px
    across = ceil(stored.levels[k].width / t)
    for row in range(top // t, ceil(bottom / t)):
        for column in range(left // t, ceil(right / t)):
            picture.paste(tile(k, row * across + column), (column * t - left, row * t - top))
    return picture


def resized(
    read: Callable[[int, int, int, int], Image.Image], sides: Level, *, box: tuple[float, float, float, float],
    size: tuple[int, int], rows_of: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, uint8 rows) of the Lanczos resize of `box` to `size`, in strips of about STRIP_PIXELS that begin at
    multiples of `rows_of`. Law: together they are the resize of the whole, to one grey level."""
    sx, sy = (box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]
    mx, my = (pyramid.SUPPORT * max(1.0, scale) + 1 for scale in (sx, sy))
    left, right = max(0, floor(box[0] - mx)), min(sides.width, ceil(box[2] + mx))
    rows = max(1, int(STRIP_PIXELS / ((right - left) * sy)) // rows_of) * rows_of
    for y in range(0, size[1], rows):
        high = min(rows, size[1] - y)
        y0, y1 = box[1] + y * sy, box[1] + (y + high) * sy
        top, bottom = max(0, floor(y0 - my)), min(sides.height, ceil(y1 + my))
        part = read(left, top, right, bottom)
        inner = (box[0] - left, y0 - top, min(box[2] - left, part.width), min(y1 - top, part.height))
        yield y, np.asarray(part.resize((size[0], high), pyramid.LANCZOS, box=inner))
