"""A seeded fuzzer: hostile files of every format, made from synthetic pictures or from real photographs.

Truncated, bits flipped, numbers made huge, parts overwritten or spliced, wrong names, huge declared sides, broken EXIF and
ICC, two files in one, zeros, noise, and bombs of deflate, of scans and of tiles.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
from data import photographs
from pictures import encoded, picture
from PIL import Image

from infd.data import photo

PHOTOS = Path(__file__).parent / "photos"


def seeds() -> dict[str, bytes]:
    """Small photograph-like files of all formats; those of tests/data/photos come from other libraries."""
    made = in_formats(picture(160, 120))
    for name in ("none.tif", "planar.tif", "lzw_predictor.tif", "deflate_deep.tif", "packbits.tif", "jpeg_tiled.tif", "big.tif",
                 "tiled.tif", "palette.tif", "bilevel.tif", "cmyk.tif", "p3.tif", "alpha.webp", "animated.webp", "animated.png",
                 "deep.png", "alpha.avif", "animated.avif", "turned7.avif", "p3.avif", "plain.heic", "p3.heic", "turned6.heic",
                 "zstd_predictor.tif", "webp.tif", "webp_alpha.tif", "clap_turned6.avif", "clap.heic"):
        made[name] = (PHOTOS / name).read_bytes()
    return made


def photograph_seeds() -> dict[str, bytes]:
    """Real photographs as they came, and one of them in every format that can be written here."""
    files = photographs.files()
    flower = photographs.opened(files["flower.jpg"])
    pixels = np.asarray(flower)
    tiffs = {f"{kind}.tif": imagecodecs.tiff_encode(pixels, compression=kind, **options) for kind, options in (
        ("none", {"rowsperstrip": 32}), ("deflate", {"predictor": 2}), ("lzw", {}), ("zstd", {}),
        ("webp", {"tile": (128, 128)}), ("jpeg", {"tile": (64, 64), "photometric": "rgb"}))}
    return {**files, **in_formats(flower), **tiffs, **heic(flower)}


def heic(image: Image.Image) -> dict[str, bytes]:
    """A HEIC, where the extra is there that can write one."""
    try:
        import pillow_heif
    except ImportError:
        return {}
    buffer = BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=80)
    return {"photo.heic": buffer.getvalue()}


def in_formats(image: Image.Image) -> dict[str, bytes]:
    """JPEG, PNG, WebP and AVIF in several kinds, some with EXIF and a wide profile."""
    exif = Image.Exif()
    exif[photo.ORIENTATION] = 6
    wide = imagecodecs.cms_profile("adobergb")
    return {"base.jpg": encoded(image, "JPEG", quality=90, exif=exif, icc_profile=wide),
            "progressive.jpg": encoded(image, "JPEG", progressive=True),
            "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
            "rgb.png": encoded(image, "PNG", icc_profile=wide, exif=exif), "palette.png": encoded(image.quantize(50)),
            "lossy.webp": encoded(image, "WEBP", exif=exif, icc_profile=wide),
            "lossless.webp": encoded(image, "WEBP", lossless=True),
            "big.avif": imagecodecs.avif_encode(np.asarray(image), level=70, speed=9, numthreads=1)}


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


def bombs(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Files that promise, or unfold to, far more than they hold."""
    zeros = zlib.compress(bytes(1 << 28), 9)
    small = encoded(image.resize((64, 48)))
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
    jpeg = encoded(image, "JPEG", progressive=True)
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


def metadata(image: Image.Image, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Broken EXIF and ICC in files whose pixels are sound."""
    image = image.resize((96, 72))
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
    for name in names:
        yield f"wrong_name_{name}.{rng.choice(['jpg', 'png', 'tif', 'txt'])}", files[name]
    for n in range(20):
        first, second = rng.choice(names, 2)
        yield f"polyglot_{n}_{first}_{second}.jpg", files[first] + files[second]
        yield f"inside_out_{n}_{first}_{second}.png", files[first][:len(files[first]) // 2] + files[second]


def corpus(
    files: dict[str, bytes], image: Image.Image, *, seed: int = 0, times: int = 3,
) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of hostile files: `times` of each mutation of each of `files`, and others made of `image`."""
    rng = np.random.default_rng(seed)
    for name, data in files.items():
        for mutate in MUTATIONS:
            for n in range(times):
                yield f"{mutate.__name__}_{n}_{name}", mutate(data, rng)
    yield from bombs(image)
    yield from metadata(image, rng)
    yield from strangers(rng, files)
