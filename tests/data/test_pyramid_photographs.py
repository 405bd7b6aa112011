"""45 dB on real photographs: stored with the default codec and read at any scale, against decode, resize at once, crop."""

import shutil
from collections.abc import Iterable

import imagecodecs
import numpy as np
import pytest
from data import photographs
from pictures import encoded, psnr
from PIL import Image
from refs import patches as reference

from infd.config import IngestConfig
from infd.data import photo, pyramid
from pipelines import demo_photos

LEAST_DB, P = 45, 256


def worst_db(data: bytes, whole: Image.Image, sides: Iterable[int], seed: int = 0) -> float:
    """Of the patches in two corners and at a random place, of the centred view and of a random one, at each r of `sides`.
    `data` is stored as an ingest stores it; `whole` are its pixels, decoded by other means."""
    stored = pyramid.build(photo.decode(data, max_pixels=10**9, min_side_px=P), IngestConfig())
    rng, found = np.random.default_rng(seed), []
    for r in sides:
        for offset in (0.5, rng.random()):
            view = pyramid.view_at(*whole.size, offset)
            expected = reference.whole_view(whole, *view, r)
            for y, x in ((0, 0), rng.integers(0, r - P + 1, 2).tolist(), (r - P, r - P)):
                patch = pyramid.read_patch(stored, r=r, y=y, x=x, h=P, w=P, view=view)
                found.append(psnr(patch, expected[y:y + P, x:x + P]))
    return min(found)


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", photographs.files())
def test_law_a_real_photograph_stays_true_at_every_scale(name, every):
    data = photographs.files()[name]
    whole = photographs.opened(data)
    worst = worst_db(data, whole, range(min(whole.size), P - 1, -every))
    print(f"\n{name} {worst:.1f} dB")
    assert worst >= LEAST_DB


@pytest.mark.slow
def test_law_a_photograph_of_several_levels_stays_true():
    whole = photographs.mosaic(1300, 1100)
    native = min(whole.size)
    sides = (P, 300, native // 3, native // 3 + 1, 440, round(native / 1.5), round(native / 1.5) + 1, native)
    assert worst_db(encoded(whole), whole, sides) >= LEAST_DB


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["webp", "avif", "png", "progressive"])
def test_law_whatever_the_source_is_stored_as(kind):
    """Lossy sources too: what counts is the loss after their own decoding."""
    original = photographs.opened(photographs.files()["china.jpg"])
    if kind == "webp":
        data = encoded(original, "WEBP", quality=80)
        whole = Image.fromarray(imagecodecs.webp_decode(data)[..., :3])
    elif kind == "avif":
        data = imagecodecs.avif_encode(np.asarray(original), level=70, speed=9, numthreads=1)
        whole = Image.fromarray(imagecodecs.avif_decode(data))
    else:
        data = encoded(original) if kind == "png" else encoded(original, "JPEG", progressive=True, quality=85)
        whole = photographs.opened(data)
    assert kind == "png" or psnr(np.asarray(whole), np.asarray(original)) < 45  # it is lossy
    assert worst_db(data, whole, range(min(whole.size), P - 1, -19)) >= LEAST_DB


@pytest.mark.slow
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.long)])
def test_law_large_photographs_stay_true(every):
    """Photographs of the demo, up to 16 Mpx: at native size, just below it, and down to 256."""
    taken = demo_photos.fetch("demo" if shutil.which("apt-get") else "interiors")
    assert len(taken) >= demo_photos.FEWEST
    found = {}
    for one in taken[::every]:
        data = one.path.read_bytes()
        whole = photographs.opened(data)
        native = min(whole.size)
        edges = {native // 3, native // 3 + 1, round(native / 1.5), round(native / 1.5) + 1}  # where the level changes
        sides = {P, 300, 400, 600, *edges, native - 1, native}
        found[one.path.name] = worst_db(data, whole, sorted(side for side in sides if P <= side <= native))
    print("\n" + ", ".join(f"{name} {db:.1f}" for name, db in found.items()))
    assert min(found.values()) >= LEAST_DB
