"""A few pictures of an evaluation, so that a report shows what its numbers mean without the models and the photographs.

    OUT/pictures/….jpg    crops of both sides at equal positions, contact sheets, worst and best pairs, renders at all sides
    OUT/pictures.json     what they are, written last
"""

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from infd import storage
from infd.data import pyramid
from infd.evaluation.crops import Cut, pixels
from infd.evaluation.protocols import Consistency, Pairs, Protocol
from infd.evaluation.rendered import RenderedSource
from infd.evaluation.result import Result, worded
from infd.evaluation.sources import FolderSource, Source, lanczos, square

CROPS = 8
SHEET, SHEET_COLUMNS, SHEET_PX = 32, 8, 112
FIELD_PX = 256
"""Fields of a contact sheet are rendered at this side, or at the judged one where it is smaller, before they are made small:
a render at SHEET_PX is another image than a user's, whose detail depends on the side."""
EXTREMES = 4
"""Worst pairs, and as many best."""
MOST_PX = 320
"""Whole images are shown at this side, or at their own where it is smaller."""
CROP_PX = 256
"""Larger crops are shown by this part of their middle."""
RANKED_BY = ("lpips_vgg", "lpips_alex", "ssim", "ssim_y", "psnr")
"""What worst and best are by: the first that a result has for each pair."""


def picture_task(out: str, cuts: tuple[Sequence[Cut], Sequence[Cut]] | None, couples: Sequence[tuple[str, tuple[int, ...]]],
                 ranked: dict[str, Any]) -> dict[str, Any]:
    """The task whose result is `out`/pictures.json. `cuts`: of distances and spectra; else pairs or fields."""
    return {"kind": "pictures", "out": storage.join(out, "pictures.json"), "folder": storage.join(out, "pictures"),
            "cuts": [[list(cut) for cut in side[:CROPS]] for side in cuts or ()],
            "couples": [(name, list(indices)) for name, indices in couples], "ranked": ranked}


def ranking(result: Result, protocol: Protocol) -> dict[str, Any]:
    """Places of the worst and the best pairs in a result's items, at the largest size; {} where it has no such."""
    if not isinstance(protocol, Pairs):
        return {}
    suffix = f"@{max(protocol.sizes)}" if protocol.sizes else ""
    for name in RANKED_BY:
        found = next((one for one in result.metrics if one.name == name + suffix), None)
        if found is None or len(found.values) != len(result.items):
            continue
        sign = 1 if found.better == "higher" else -1
        order = sorted(range(len(found.values)), key=lambda index: sign * found.values[index])
        few = min(EXTREMES, max(1, len(order) // 2))
        rows = {place: [{"place": index, "value": found.values[index]} for index in indices]
                for place, indices in (("worst", order[:few]), ("best", order[::-1][:few]))}
        return {"metric": found.name, **rows}
    return {}


def take_pictures(task: dict[str, Any], sources: Sequence[Source], protocol: Protocol) -> None:
    """Write the pictures, and what they are last. Law: the same task gives the same bytes."""
    folder = task["folder"]
    made: dict[str, Any] = {"crops": [], "sheets": {}, "sheets_made": {}, "sizes": [], "worst": [], "best": []}
    if task["cuts"]:
        made["crops"] = [cut_row(folder, k, sources, Cut(*one), Cut(*other))
                         for k, (one, other) in enumerate(zip(*task["cuts"], strict=False))]
        for letter, source in zip("ab", sources, strict=True):
            made["sheets"][letter] = put(folder, f"sheet-{letter}", contact_sheet(source))
            made["sheets_made"][letter] = sheet_text(source)
    elif isinstance(protocol, Consistency):
        made["sizes"] = [sizes_row(folder, k, sources, name, indices)
                         for k, (name, indices) in enumerate(task["couples"][:EXTREMES])]
    elif isinstance(protocol, Pairs):
        made["crops"] = [pair_crop(folder, k, sources, name, indices, protocol)
                         for k, (name, indices) in enumerate(task["couples"][:CROPS])]
        for which in ("worst", "best"):
            for row in task["ranked"].get(which, ()):
                name, indices = task["couples"][row["place"]]
                made[which].append(pair_row(folder, which, len(made[which]), sources, name, indices, protocol)
                                   | {"metric": task["ranked"]["metric"], "value": row["value"]})
    storage.put_atomic(task["out"], json.dumps(worded(made), indent=1, sort_keys=True).encode())


def cut_row(folder: str, k: int, sources: Sequence[Source], one: Cut, other: Cut) -> dict[str, str]:
    """The same crop of both sides."""
    files = {letter: put(folder, f"crop-{k:02d}-{letter}", middle(pixels(source, cut)))
             for letter, source, cut in zip("ab", sources, (one, other), strict=True)}
    place = f"{one.p} px at ({one.y}, {one.x}) of {one.side}" if one.side else "as it is"
    return {"name": sources[0].name(one.item), "of_b": sources[1].name(other.item), "caption": place, **files}


def pair_crop(folder: str, k: int, sources: Sequence[Source], name: str, indices: Sequence[int], protocol: Pairs
              ) -> dict[str, str]:
    """The middle of a pair, pixel by pixel."""
    files = {letter: put(folder, f"crop-{k:02d}-{letter}", middle(whole(source, index, protocol)))
             for letter, source, index in zip("ab", sources, indices, strict=True)}
    size = max(protocol.sizes, default=0)
    return {"name": name, "of_b": name, "caption": f"middle of {size}" if size else "middle", **files}


def pair_row(folder: str, which: str, k: int, sources: Sequence[Source], name: str, indices: Sequence[int],
             protocol: Pairs) -> dict[str, Any]:
    """Both images of a pair, whole."""
    files = {letter: put(folder, f"{which}-{k}-{letter}", reduced(whole(source, index, protocol)))
             for letter, source, index in zip("ab", sources, indices, strict=True)}
    return {"name": name, **files}


def sizes_row(folder: str, k: int, sources: Sequence[Source], name: str, indices: Sequence[int]) -> dict[str, Any]:
    """The renders of one field at every side, whole."""
    files, captions = [], []
    for source, index in zip(sources, indices, strict=True):
        image = source.read(index)
        files.append(put(folder, f"sizes-{k}-{len(image):05d}", reduced(image)))
        captions.append(f"{len(image)} px")
    return {"name": name, "files": files, "captions": captions}


def contact_sheet(source: Source) -> np.ndarray:
    """The first images, small, in rows: uint8 (H, W, 3), white between them."""
    count, gap = min(SHEET, len(source)), 4
    images = [small(source, index) for index in range(count)]
    columns, step = min(SHEET_COLUMNS, count), max(map(len, images)) + gap
    page = np.full((-(-count // columns) * step - gap, columns * step - gap, 3), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = (place * step for place in divmod(index, columns))
        page[y:y + len(image), x:x + len(image)] = image
    return page


def small(source: Source, index: int) -> np.ndarray:
    """The centre square at SHEET_PX, or smaller where the image is. Of files no other is looked at, as `sides` would.

    Law: of a field it is its render at FIELD_PX, or at its own side if that is smaller, brought down by Lanczos.
    """
    if isinstance(source, RenderedSource):
        side = min(FIELD_PX, source.sides(index).short)
        return lanczos(source.patch(index, side=side, y=0, x=0, p=side), min(SHEET_PX, side))
    if isinstance(source, FolderSource):
        image = source.read(index)
        view = pyramid.center_view(image.shape[1], image.shape[0])
        return lanczos(image[view.y:view.y + view.side, view.x:view.x + view.side], min(SHEET_PX, view.side))
    side = min(SHEET_PX, source.sides(index).short)
    return source.patch(index, side=side, y=0, x=0, p=side)


def sheet_text(source: Source) -> str:
    """How the images of a contact sheet were drawn."""
    if isinstance(source, RenderedSource):
        side = source.side or max(source.sides(index).short for index in range(min(SHEET, len(source))))
        most = "" if source.side else "up to "
        small = f", brought down to {SHEET_PX} px by Lanczos" if side > SHEET_PX else ""
        return f"rendered at {most}{min(FIELD_PX, side)} px{small}"
    return f"centre squares, brought down to {SHEET_PX} px by Lanczos"


def whole(source: Source, index: int, protocol: Pairs) -> np.ndarray:
    """An image as pairs were compared, at the largest size."""
    size = max(protocol.sizes, default=0)
    return square(source, index, size, resample=protocol.resample) if size else source.read(index)


def middle(image: np.ndarray) -> np.ndarray:
    """At most CROP_PX a side."""
    height, width = (min(CROP_PX, side) for side in image.shape[:2])
    y, x = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[y:y + height, x:x + width]


def reduced(image: np.ndarray) -> np.ndarray:
    """At most MOST_PX a side, by Lanczos."""
    shown = Image.fromarray(image)
    shown.thumbnail((MOST_PX, MOST_PX), Image.Resampling.LANCZOS)
    return np.asarray(shown)


def put(folder: str, name: str, image: np.ndarray) -> str:
    """Write a JPEG without colour subsampling; its name in the folder."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)
    storage.put_atomic(storage.join(folder, f"{name}.jpg"), buffer.getvalue())
    return f"{name}.jpg"
