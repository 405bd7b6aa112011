"""Hostile files of every format: each ends as a photo or as a word of REASONS; nothing crashes, hangs or takes the memory.

A seeded fuzzer makes the files. A subprocess with bounded memory decodes each twice, and says which file it is at before
it begins, so that a crash of a native decoder names its file; then the next subprocess goes on behind it.
"""

import collections
import json
import os
import resource
import select
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pictures import encoded, picture
from PIL import Image

from infd.data import photo

PHOTOS = Path(__file__).parent / "photos"
HANG_S = 10
START_S = 120
"""Importing NumPy and the codecs on a machine that does other work."""
ADDRESS_BYTES = 3 << 30
"""RLIMIT_AS of the subprocess: libraries and their threads' stacks map about 1 GiB."""
PEAK_BYTES = 700 << 20
"""Peak of resident memory over all files, of which about 150 MB are Python and its libraries."""
LIMITS = {"max_pixels": 20_000_000, "min_side_px": 16, "max_aspect": 16.0}
LEAST = 500


# ---------------------------------------------------------------- the fuzzer


def seeds() -> dict[str, bytes]:
    """Small photograph-like files of all formats; those of tests/data/photos come from other libraries."""
    image = picture(160, 120)
    exif = Image.Exif()
    exif[photo.ORIENTATION] = 6
    wide = imagecodecs.cms_profile("adobergb")
    made = {"base.jpg": encoded(image, "JPEG", quality=90, exif=exif, icc_profile=wide),
            "progressive.jpg": encoded(image, "JPEG", progressive=True),
            "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
            "rgb.png": encoded(image, "PNG", icc_profile=wide, exif=exif), "palette.png": encoded(image.quantize(50)),
            "lossy.webp": encoded(image, "WEBP", exif=exif, icc_profile=wide),
            "lossless.webp": encoded(image, "WEBP", lossless=True),
            "big.avif": imagecodecs.avif_encode(np.asarray(image), level=70, speed=9, numthreads=1)}
    for name in ("none.tif", "planar.tif", "lzw_predictor.tif", "deflate_deep.tif", "packbits.tif", "jpeg_tiled.tif", "big.tif",
                 "tiled.tif", "palette.tif", "bilevel.tif", "cmyk.tif", "p3.tif", "alpha.webp", "animated.webp", "animated.png",
                 "deep.png", "alpha.avif", "animated.avif", "turned7.avif", "p3.avif", "plain.heic", "p3.heic", "turned6.heic",
                 "zstd_predictor.tif", "webp.tif", "webp_alpha.tif", "clap_turned6.avif", "clap.heic"):
        made[name] = (PHOTOS / name).read_bytes()
    return made


def truncated(data: bytes, rng: np.random.Generator) -> bytes:
    return data[:int(rng.integers(1, len(data)))]


def flipped(data: bytes, rng: np.random.Generator, *, within: int | None = None) -> bytes:
    out = bytearray(data)
    for place in rng.integers(0, min(len(data), within or len(data)), rng.integers(1, 30)):
        out[place] ^= 1 << int(rng.integers(8))
    return bytes(out)


def head_flipped(data: bytes, rng: np.random.Generator) -> bytes:
    return flipped(data, rng, within=300)


EXTREMES = (b"\xff" * 8, b"\x7f" + b"\xff" * 7, bytes(8), b"\0\0\xff\xff" * 2, b"\x80" + bytes(7))


def huge_numbers(data: bytes, rng: np.random.Generator) -> bytes:
    """Numbers of the first kilobyte replaced by extreme ones, in either order of bytes."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        size = int(rng.choice([2, 4, 8]))
        place = int(rng.integers(8, max(9, min(len(data), 1000) - size)))
        out[place:place + size] = EXTREMES[rng.integers(len(EXTREMES))][:size]
    return bytes(out)


def overwritten(data: bytes, rng: np.random.Generator) -> bytes:
    """A run of bytes turned to zeros or noise."""
    start, size = int(rng.integers(0, len(data))), int(rng.integers(1, 2000))
    run = bytes(size) if rng.random() < 0.5 else rng.bytes(size)
    return (data[:start] + run + data[start + size:])[:len(data)]


def spliced(data: bytes, rng: np.random.Generator) -> bytes:
    """A part taken out, or written twice."""
    a, b = sorted(int(place) for place in rng.integers(0, len(data), 2))
    return data[:a] + data[b:] if rng.random() < 0.5 else data[:b] + data[a:]


MUTATIONS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    truncated, flipped, head_flipped, huge_numbers, overwritten, spliced)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, lines: bytes, *, before: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)) + before
            + chunk(b"IDAT", lines) + chunk(b"IEND", b""))


def tiff_file(*entries: tuple[int, int, int], tail: bytes = b"") -> bytes:
    """A TIFF of one directory of (tag, type, number); `tail` begins at byte 8 + 6 + 12 × entries."""
    body = b"".join(struct.pack("<HHII", tag, kind, 1, number) for tag, kind, number in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + tail


def bombs() -> Iterator[tuple[str, bytes]]:
    """Files that promise, or unfold to, far more than they hold."""
    zeros = zlib.compress(bytes(1 << 28), 9)
    small = encoded(picture(64, 48))
    yield "bomb_idat.png", png(64, 48, zeros)
    yield "bomb_within_limits.png", png(4400, 4400, zlib.compress(bytes(4400 * 4401 * 3), 9))
    yield "bomb_wide.png", png(0x7FFFFFFF, 0x7FFFFFFF, zeros)
    yield "bomb_strip.png", png(4_000_000, 4, zeros)
    for name in (b"iCCP", b"zTXt", b"iTXt"):
        method = b"x\0\1\0\0\0" if name == b"iTXt" else b"x\0\0"
        yield f"bomb_{name.decode()}.png", small[:33] + chunk(name, method + zeros) + small[33:]
        yield f"many_{name.decode()}.png", small[:33] + chunk(name, method + zlib.compress(bytes(900_000))) * 100 + small[33:]
    base = ((258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1), (279, 4, len(zeros)))
    at = 8 + 6 + 12 * 8
    yield "bomb_strip.tif", tiff_file((256, 4, 64), (257, 4, 48), (273, 4, at), *base, tail=zeros)
    yield "huge.tif", tiff_file((256, 4, 1 << 31), (257, 4, 1 << 31), (273, 4, at), *base, tail=zeros)
    at += 12
    tiled = ((258, 3, 8), (259, 3, 8), (262, 3, 1), (324, 4, at), (325, 4, len(zeros)))
    yield "bomb_tile.tif", tiff_file((256, 4, 64), (257, 4, 48), (322, 4, 1 << 16), (323, 4, 1 << 16), *tiled, tail=zeros)
    yield "tiny_tiles.tif", tiff_file((256, 4, 4000), (257, 4, 4000), (322, 4, 16), (323, 4, 16), *tiled, tail=zeros)
    yield from shared_blocks()
    yield "many_samples.tif", tiff_file((256, 4, 64), (257, 4, 48), (273, 4, at), (258, 3, 8), (259, 3, 1), (262, 3, 2),
                                        (277, 3, 65535), (279, 4, 1 << 30), tail=bytes(1 << 16))
    for kind, place in (("none", 0), ("self", 8)):
        yield f"loop_{kind}.tif", b"II*\0" + struct.pack("<I", place)
    yield "fields.tif", b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 1 << 62) + bytes(64)
    for head in (b"VP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff", b"VP8L\x0a\0\0\0\x2f\xff\xff\xff\x0f" + bytes(5)):
        yield f"huge_{head[:4].decode().lower()}.webp", b"RIFF" + struct.pack("<I", 4 + len(head)) + b"WEBP" + head
    jpeg = encoded(picture(640, 480), "JPEG", progressive=True)
    start, end = jpeg.rindex(b"\xff\xda"), jpeg.rindex(b"\xff\xd9")
    for times in (50, 90, 5000):
        yield f"scans_{times}.jpg", jpeg[:start] + jpeg[start:end] * times + jpeg[end:]
    frame = next(jpeg.index(bytes((0xFF, marker))) for marker in (0xC2,))
    for width, height in ((65500, 65500), (4400, 4400), (0, 480), (65500, 1)):
        yield f"declared_{width}x{height}.jpg", jpeg[:frame + 5] + struct.pack(">HH", height, width) + jpeg[frame + 9:]
    for name in ("full.avif", "plain.heic"):
        data = (PHOTOS / name).read_bytes()
        at = data.index(b"ispe") + 8
        for width, height in ((0xFFFFFFFF, 0xFFFFFFFF), (1 << 16, 1 << 16), (4400, 4400), (0, 0), (64, 48)):
            yield f"ispe_{width}x{height}_{name}", data[:at] + struct.pack(">II", width, height) + data[at + 8:]


def shared_blocks(sides: tuple[int, int] = (2200, 2200)) -> Iterator[tuple[str, bytes]]:
    """TIFFs of many 16 × 16 tiles that all are one range of 10 MB, or all read tables of 10 MB."""
    width, height = sides
    tiles = -(-width // 16) * -(-height // 16)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    scan_by_scan = encoded(Image.fromarray(noise), "JPEG", progressive=True)
    webp = imagecodecs.webp_encode(noise, lossless=True)
    comments = (b"\xff\xfe\0\2" * 2_500_000)
    for name, block, compression, tables in (
        ("jpeg", scan_by_scan[:-2] + b"\xff\0" * 5_000_000, 7, b""), ("webp", webp + bytes(10_000_000), 50001, b""),
        ("riff", webp[:4] + struct.pack("<I", 10_000_000) + webp[8:] + b"JUNK\2\0\0\0ab" * 1_000_000, 50001, b""),
        ("tables", scan_by_scan, 7, b"\xff\xd8" + comments + b"\xff\xd9"),
    ):
        at = 8 + 2 + 12 * 11 + 4
        lists = struct.pack(f"<{tiles}I", *[at] * tiles) + struct.pack(f"<{tiles}I", *[len(block)] * tiles)
        fields = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 2),
                  (277, 3, 1, 3), (322, 4, 1, 16), (323, 4, 1, 16), (324, 4, tiles, at + len(block)),
                  (325, 4, tiles, at + len(block) + 4 * tiles),
                  (347, 7, max(4, len(tables)), at + len(block) + 8 * tiles) if tables else (65000, 4, 1, 0)]
        yield f"shared_{name}.tif", (b"II*\0" + struct.pack("<IH", 8, 11) + b"".join(struct.pack("<HHII", *f) for f in fields)
                                     + bytes(4) + block + lists + tables)


def metadata(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Broken EXIF and ICC in files whose pixels are sound."""
    image = picture(96, 72)
    wide = imagecodecs.cms_profile("adobergb")
    table_based = cmyk_profile()
    for n in range(40):
        kind = ("JPEG", "PNG", "WEBP")[n % 3]
        exif = bytearray(b"Exif\0\0II*\0\x08\0\0\0\2\0\x12\1\3\0\1\0\0\0\6\0\0\0\x69\x87\4\0\1\0\0\0\x08\0\0\0" + bytes(8))
        for place in rng.integers(6, len(exif), 4):
            exif[place] = int(rng.integers(256))
        yield f"exif_{n}.{kind.lower()}", encoded(image, kind, exif=bytes(exif))
        yield f"icc_{n}.{kind.lower()}", encoded(image, kind, icc_profile=flipped(wide, rng))
        yield f"icc_cut_{n}.{kind.lower()}", encoded(image, kind, icc_profile=truncated(wide, rng))
        yield f"icc_cmyk_{n}.jpeg", encoded(image.convert("CMYK"), "JPEG", icc_profile=flipped(table_based, rng, within=400))
        yield f"icc_noise_{n}.tif", encoded_tiff(np.asarray(image), wide[:128] + rng.bytes(600))


def encoded_tiff(pixels: np.ndarray, profile: bytes) -> bytes:
    return imagecodecs.tiff_encode(pixels, compression="none", iccprofile=profile)


def cmyk_profile() -> bytes:
    with Image.open(PHOTOS / "cmyk_profile.jpg") as image:
        return image.info["icc_profile"]


def strangers(rng: np.random.Generator, files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """No photographs at all, wrong extensions, and two files in one."""
    yield "empty.jpg", b""
    for size in (1, 3, 12, 1000):
        yield f"zeros_{size}.png", bytes(size)
        yield f"noise_{size}.webp", rng.bytes(size)
    for name, text in (("page.jpg", b"<html><script>"), ("pdf.png", b"%PDF-1.7\n"), ("zip.tif", b"PK\3\4"),
                       ("pickle.avif", b"\x80\4\x95")):
        yield name, text + rng.bytes(500)
    heads = {"jpg": b"\xff\xd8\xff\xe0", "png": b"\x89PNG\r\n\x1a\n", "webp": b"RIFF\x40\0\0\0WEBPVP8 ",
             "tif": b"II*\0\x08\0\0\0", "tif2": b"MM\0*\0\0\0\x08",
             "avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
             "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"}
    names = sorted(files)
    for head, start in heads.items():
        yield f"head_{head}.bin", start
        yield f"head_noise_{head}.bin", start + rng.bytes(3000)
        for other in rng.choice(names, 3, replace=False):
            yield f"wrong_head_{head}_{other}", start + files[other][len(start):]
    for n in range(20):
        first, second = rng.choice(names, 2)
        yield f"polyglot_{n}_{first}_{second}.jpg", files[first] + files[second]
        yield f"inside_out_{n}_{first}_{second}.png", files[first][:len(files[first]) // 2] + files[second]


def corpus(seed: int = 0, times: int = 3) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of all hostile files; `times` of each mutation of each seed file."""
    rng = np.random.default_rng(seed)
    files = seeds()
    for name, data in files.items():
        for mutate in MUTATIONS:
            for n in range(times):
                yield f"{mutate.__name__}_{n}_{name}", mutate(data, rng)
    yield from bombs()
    yield from metadata(rng)
    yield from strangers(rng, files)


# ---------------------------------------------------------------- the runner


def decode_all(folder: Path, names: list[str]) -> None:
    """What the subprocess does: a line with the name before a file, a line with the outcome after it."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    for name in names:
        print(json.dumps({"begin": name}), flush=True)
        data = (folder / name).read_bytes()
        outcomes = [outcome(data), outcome(data)]
        peak = peak_bytes()
        print(json.dumps({"end": name, "outcomes": outcomes, "peak": peak}), flush=True)


def peak_bytes() -> int:
    """The most memory that this process ever held; `ru_maxrss` would count its parent's too."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def outcome(data: bytes) -> str:
    try:
        image = photo.decode(data, **LIMITS)
    except photo.PhotoError as error:
        return f"{error.reason}: {error.detail}"
    except MemoryError:
        return "MemoryError"
    except Exception as error:  # not PhotoError: our bug, which the test names
        return f"raised {type(error).__name__}: {error}"
    return f"photo {image.width}x{image.height} {zlib.crc32(image.tobytes()):08x}"


def run(folder: Path, names: list[str]) -> Iterator[tuple[str, dict]]:
    """(name, {outcomes, peak} or {failure}) of every file, whatever becomes of the subprocess."""
    waiting = list(names)
    while waiting:
        at = None
        for at, result in one_run(folder, waiting):
            yield at, result
        if at is None:
            raise AssertionError("the subprocess does not start")
        waiting = waiting[waiting.index(at) + 1:]


def one_run(folder: Path, names: list[str]) -> Iterator[tuple[str, dict]]:
    (folder / "names.json").write_text(json.dumps(names))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
                   "PYTHONPATH": os.pathsep.join([*map(str, Path(__file__).parents[1:3]), *sys.path[1:]])}
    worker = subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              env=environment)
    assert worker.stdout is not None
    current, lines = None, Lines(worker.stdout.fileno())
    try:
        while True:
            line = lines.next(HANG_S * 2 if current else START_S)  # a file is decoded twice
            if line is None:
                worker.kill()
                if current:
                    yield current, {"failure": f"hangs for more than {HANG_S} s"}
                return
            if not line:
                code = worker.wait()
                if current:
                    yield current, {"failure": f"ends the process with {code}"}
                return
            message = json.loads(line)
            current = message.get("begin")
            if not current:
                yield message["end"], message
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()


class Lines:
    """Lines of a pipe, with a deadline for each."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._read = descriptor, b""

    def next(self, within_s: float) -> bytes | None:
        """The next line; b"" at the end of the pipe; None after `within_s`."""
        until = time.monotonic() + within_s
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._descriptor], [], [], max(0, until - time.monotonic()))
            if not ready:
                return None
            part = os.read(self._descriptor, 1 << 16)
            if not part:
                return b""
            self._read += part
        line, self._read = self._read.split(b"\n", 1)
        return line


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_law_hostile_files_become_photos_or_reasons(tmp_path):
    names = []
    for name, data in corpus():
        (tmp_path / name).write_bytes(data)
        names.append(name)
    assert len(names) == len(set(names)) >= LEAST
    results = dict(run(tmp_path, names))
    assert list(results) == names
    failures = {name: result["failure"] for name, result in results.items() if "failure" in result}
    counts: collections.Counter[str] = collections.Counter()
    for name, result in results.items():
        first, second = result.get("outcomes", ("", ""))
        word = first.split(" ")[0].rstrip(":")
        counts[word] += 1
        if "failure" not in result and (first != second or word not in (*photo.REASONS, "photo")):
            failures[name] = f"{first} | {second}"
    print(f"{len(names)} files: {dict(counts)}; peak {max(result.get('peak', 0) for result in results.values()) >> 20} MB")
    assert not failures
    assert {"photo", "corrupt", "truncated", "unsupported", "empty", "too_many_pixels", "bomb"} <= set(counts)
    assert counts["photo"] >= 50  # not all are refused at the door
    assert max(result["peak"] for result in results.values()) < PEAK_BYTES


@pytest.mark.slow
def test_law_the_runner_names_what_crashes_and_what_hangs(tmp_path, monkeypatch):
    """The test of the test: a file that kills the process and one that never ends are reported, and the next goes on."""
    monkeypatch.setattr(sys.modules[__name__], "HANG_S", 1)
    names = ["good.png", "crash", "hang", "again.png"]
    for name in names:
        (tmp_path / name).write_bytes(encoded(picture(32, 32)) if name.endswith("png") else name.encode())
    results = dict(run(tmp_path, names))
    assert results["crash"]["failure"].startswith("ends the process with -")
    assert results["hang"]["failure"] == "hangs for more than 1 s"
    assert all(results[name]["outcomes"][0].startswith("photo 32x32") for name in ("good.png", "again.png"))


def main() -> None:
    folder = Path(sys.argv[1])
    decode = photo.decode

    def watched(data: bytes, **limits: float):
        if data == b"crash":
            os.abort()
        while data == b"hang":
            time.sleep(1)
        return decode(data, **limits)

    photo.decode = watched
    decode_all(folder, json.loads((folder / "names.json").read_text()))


if __name__ == "__main__":
    main()
