# ruff: noqa: E501 a table reads better with one file a line
"""Makes tests/data/photos: each file by one library, its expected pixels (FILE.png) by another that shares no decoder.

Run by hand, in an environment of its own, because none of these is a dependency of ours:

    python -m venv peers && peers/bin/pip install pillow==13.0.0 tifffile==2026.3.3 opencv-python-headless==5.0.0.93 \\
        av==18.1.0 pyvips-binary==8.18.7 pyvips==3.2.0 pillow-heif==1.8.1 imagecodecs==2026.3.6
    peers/bin/python tests/data/make_photo_files.py

Only colour management has one library behind all (Little CMS); test_photo.py has a NumPy reference for that.
"""

import io
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import imagecodecs
import numpy as np
import pillow_heif
import pyvips
import tifffile
from PIL import Image, ImageCms

FOLDER = Path(__file__).parent / "photos"
H, W = 72, 104


def photograph() -> np.ndarray:
    """(H, W, 3) uint8: gradients, a round edge, a little smooth noise; no two corners alike."""
    y, x = np.mgrid[0:H, 0:W] / (H, W)[0]
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 40, (H, W, 3)), (0, 0), 2)
    rgb = np.stack([60 + 120 * x, 40 + 150 * y, 200 - 90 * x * y], -1) + noise
    rgb[(x - 0.4) ** 2 + (y - 0.35) ** 2 < 0.05] += (50, 20, -60)
    return rgb.clip(0, 255).astype(np.uint8)


def one_way(profile: bytes) -> bytes:
    """A CMYK profile without its tables towards CMYK, by far the largest part."""
    count = struct.unpack_from(">I", profile, 128)[0]
    tags = [struct.unpack_from(">4sII", profile, 132 + 12 * i) for i in range(count)]
    kept = [(name, profile[at:at + size]) for name, at, size in tags if name in (b"A2B1", b"wtpt", b"desc", b"cprt")]
    at, table, body = 132 + 12 * len(kept), b"", b""
    for name, data in kept:
        table += struct.pack(">4sII", name, at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    whole = profile[4:128] + struct.pack(">I", len(kept)) + table + body
    return struct.pack(">I", len(whole) + 4) + whole


RGB = photograph()
GREY = cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY)
ALPHA = np.linspace(0, 255, W).astype(np.uint8)[None].repeat(H, 0)
RGBA = np.dstack([RGB, ALPHA])
DEEP = RGB.astype(np.uint16) * 257 - np.random.default_rng(1).integers(0, 200, RGB.shape).astype(np.uint16) * (RGB > 0)
CMYK = np.dstack([255 - RGB, np.linspace(0, 90, W).astype(np.uint8)[None].repeat(H, 0)])
P3 = pyvips.Image.new_from_array(RGB).copy(interpretation="srgb").icc_transform("p3").get("icc-profile-data")
CMYK_PROFILE = one_way(pyvips.Image.new_from_array(RGB).copy(interpretation="srgb").icc_transform("cmyk").get("icc-profile-data"))


def pil(array: np.ndarray, kind: str, mode: str | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, kind, **options)
    return buffer.getvalue()


def cv(array: np.ndarray, suffix: str, *options: int) -> bytes:
    order = {2: None, 3: cv2.COLOR_RGB2BGR}.get(array.ndim)
    order = cv2.COLOR_RGBA2BGRA if array.shape[-1] == 4 else order
    return cv2.imencode(suffix, array if order is None else cv2.cvtColor(array, order), options)[1].tobytes()


def tif(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def vips(array: np.ndarray, suffix: str, interpretation: str = "srgb", **options: object) -> bytes:
    return pyvips.Image.new_from_array(array).copy(interpretation=interpretation).write_to_buffer(suffix, **options)


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = number
    return exif


# ---------------------------------------------------------------- decoders


def by_av(data: bytes) -> np.ndarray:
    """ffmpeg's own decoders; AV1 by dav1d."""
    with av.open(io.BytesIO(data)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def by_cv(data: bytes) -> np.ndarray:
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    found = (found >> 8).astype(np.uint8) if found.dtype == np.uint16 else found
    if found.ndim == 2:
        return found[..., None].repeat(3, 2)
    return over_white(cv2.cvtColor(found, cv2.COLOR_BGRA2RGBA)) if found.shape[-1] == 4 else found[..., ::-1]


def by_pil(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    return over_white(np.asarray(image.convert("RGBA"))) if image.mode in ("RGBA", "LA") else np.asarray(image.convert("RGB"))


def by_vips(data: bytes) -> np.ndarray:
    image = pyvips.Image.new_from_buffer(data, "").autorot()
    return (image.flatten(background=255) if image.hasalpha() else image).colourspace("srgb").numpy()


def by_tifffile(data: bytes) -> np.ndarray:
    found = tifffile.imread(io.BytesIO(data))
    found = (found >> 8).astype(np.uint8) if found.dtype == np.uint16 else found
    return found if found.ndim == 3 else found[..., None].repeat(3, 2)


def by_cms(decoder: Callable[[bytes], np.ndarray], profile: bytes) -> Callable[[bytes], np.ndarray]:
    def convert(data: bytes) -> np.ndarray:
        levels = decoder(data)
        return np.asarray(ImageCms.profileToProfile(
            Image.fromarray(levels, {3: "RGB", 4: "CMYK"}[levels.shape[-1]]), io.BytesIO(profile), ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION))
    return convert


def cmyk_by_vips(data: bytes) -> np.ndarray:
    return pyvips.Image.new_from_buffer(data, "").numpy()


def naive(decoder: Callable[[bytes], np.ndarray]) -> Callable[[bytes], np.ndarray]:
    def convert(data: bytes) -> np.ndarray:
        light = 255 - decoder(data).astype(float)
        return np.round(light[..., :3] * light[..., 3:] / 255).astype(np.uint8)
    return convert


def over_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(float) / 255
    return np.round(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def turned(decoder: Callable[[bytes], np.ndarray], number: int) -> Callable[[bytes], np.ndarray]:
    def convert(data: bytes) -> np.ndarray:
        found = decoder(data)
        return np.ascontiguousarray({6: np.rot90(found, -1), 5: found.transpose(1, 0, 2), 7: np.rot90(found, 2).transpose(1, 0, 2),
                                     8: np.rot90(found), 3: np.rot90(found, 2), 4: found[::-1]}[number])
    return convert


def by_av_alpha(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return over_white(next(container.decode(video=0)).to_ndarray(format="rgba"))


def planes_by_tifffile(data: bytes) -> np.ndarray:
    return by_tifffile(data).transpose(1, 2, 0)


def tifffile_cmyk(data: bytes) -> np.ndarray:
    return tifffile.imread(io.BytesIO(data))


def vips_with_profile(array: np.ndarray, suffix: str, interpretation: str, profile: bytes, **options: object) -> bytes:
    image = pyvips.Image.new_from_array(array).copy(interpretation=interpretation)
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    return image.write_to_buffer(suffix, **options)


def pil_image(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def palette_png() -> bytes:
    return pil_image(Image.fromarray(RGB).quantize(32), "PNG")


def animated(kind: str, **options: object) -> bytes:
    return pil(RGB, kind, save_all=True, append_images=[Image.fromarray(255 - RGB)], duration=100, **options)


def heic(array: np.ndarray, *, quality: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    file = pillow_heif.from_pillow(Image.fromarray(array))
    file.save(buffer, quality=quality, **options)
    return buffer.getvalue()


def with_clean_aperture(data: bytes, left: int, top: int, width: int, height: int) -> bytes:
    """An AVIF or HEIC of W by H whose picture counts in that box alone: no encoder here writes `clap`. The new `meta` stands
    at the end and `free` where it was, so that no offset changes."""
    def box(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(body), name) + body

    def parts(body: bytes) -> list[tuple[bytes, bytes]]:
        found = []
        while body:
            size, name = struct.unpack_from(">I4s", body)
            found.append((name, body[8:size]))
            body = body[size:]
        return found

    offset = (2 * left + width - W, 2 * top + height - H)  # of the centres, in half pixels
    clap = box(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, offset[0], 2, offset[1], 2))
    whole = parts(data)
    meta = dict(whole)[b"meta"]
    inner = parts(meta[4:])
    properties = parts(dict(inner)[b"iprp"])
    known = parts(dict(properties)[b"ipco"])
    owned = dict(properties)[b"ipma"]
    assert owned[:4] == bytes(4) and (primary := dict(inner)[b"pitm"][4:6]) == owned[8:10]  # the first, of 7-bit indices
    count = owned[10]
    before = sum(known[index - 1 & 0x7F][0] not in (b"irot", b"imir") for index in owned[11:11 + count])
    owned = owned[:8] + primary + bytes([count + 1]) + owned[11:11 + before] + bytes([0x80 | len(known) + 1]) + owned[11 + before:]
    ipco = b"".join(box(*part) for part in known) + clap
    new = {b"ipco": ipco, b"ipma": owned}
    iprp = b"".join(box(name, new.get(name, body)) for name, body in properties)
    moved = box(b"meta", meta[:4] + b"".join(box(name, iprp if name == b"iprp" else body) for name, body in inner))
    return b"".join(box(b"free" if name == b"meta" else name, body) for name, body in whole) + moved


def cropped(decoder: Callable[[bytes], np.ndarray], left: int, top: int, width: int, height: int) -> Callable[[bytes], np.ndarray]:
    return lambda data: decoder(data)[top:top + height, left:left + width]


FOURS = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, cv2.IMWRITE_JPEG_QUALITY, 92)
FILES: dict[str, tuple[Callable[[], bytes], Callable[[bytes], np.ndarray]]] = {
    "progressive.jpg": (lambda: cv(RGB, ".jpg", *FOURS, cv2.IMWRITE_JPEG_PROGRESSIVE, 1), by_av),
    "subsampled.jpg": (lambda: vips(RGB, ".jpg", Q=90), by_av),
    "grey.jpg": (lambda: cv(GREY, ".jpg"), by_av),
    "cmyk_adobe.jpg": (lambda: vips(CMYK, ".jpg", "cmyk", Q=95, keep="none"), naive(cmyk_by_vips)),
    "cmyk_profile.jpg": (lambda: vips_with_profile(CMYK, ".jpg", "cmyk", CMYK_PROFILE, Q=95), by_cms(cmyk_by_vips, CMYK_PROFILE)),
    "ycck.jpg": (lambda: imagecodecs.jpeg8_encode(255 - CMYK, level=95, colorspace="cmyk", outcolorspace="ycck"),
                 naive(cmyk_by_vips)),
    "p3.jpg": (lambda: pil(RGB, "JPEG", quality=95, subsampling=0, icc_profile=P3), by_cms(by_cv, P3)),
    "palette.png": (lambda: palette_png(), by_av),
    "deep.png": (lambda: vips(DEEP, ".png", "rgb16"), by_cv),
    "deep_grey.png": (lambda: vips(DEEP[..., 1], ".png", "grey16"), by_cv),
    "alpha.png": (lambda: cv(RGBA, ".png"), lambda data: over_white(imagecodecs.spng_decode(data))),
    "lossy.webp": (lambda: cv(RGB, ".webp", cv2.IMWRITE_WEBP_QUALITY, 90), by_av),
    "alpha.webp": (lambda: pil(RGBA, "WEBP", lossless=True, exact=True), by_av_alpha),
    "animated.webp": (lambda: animated("WEBP", lossless=True), lambda data: RGB),
    "animated.png": (lambda: animated("PNG"), by_cv),
    "none.tif": (lambda: tif(RGB), by_cv),
    "bigendian.tif": (lambda: tif(DEEP, byteorder=">", photometric="rgb"), by_cv),
    "big.tif": (lambda: tif(RGB, bigtiff=True, rowsperstrip=7, photometric="rgb"), by_vips),
    "planar.tif": (lambda: tif(np.ascontiguousarray(RGB.transpose(2, 0, 1)), photometric="rgb", planarconfig="separate"), by_vips),
    "lzw.tif": (lambda: cv(RGB, ".tif"), by_vips),
    "lzw_predictor.tif": (lambda: vips(RGB, ".tif", compression="lzw", predictor="horizontal"), by_cv),
    "deflate_deep.tif": (lambda: vips(DEEP, ".tif", "rgb16", compression="deflate", predictor="horizontal"), by_cv),
    "packbits.tif": (lambda: pil(RGB, "TIFF", compression="packbits"), by_cv),
    "jpeg.tif": (lambda: vips(RGB, ".tif", compression="jpeg", Q=90), by_pil),
    "jpeg_tiled.tif": (lambda: vips(RGB, ".tif", compression="jpeg", Q=90, tile=True, tile_width=64, tile_height=32), by_pil),
    "jpeg_strips.tif": (lambda: tif(RGB, compression="jpeg", rowsperstrip=16, photometric="rgb"), by_pil),
    "tiled.tif": (lambda: tif(RGB, tile=(32, 48), compression="zlib", photometric="rgb"), by_pil),
    "tiled_planar_deep.tif": (lambda: tif(np.ascontiguousarray(DEEP.transpose(2, 0, 1)), tile=(32, 16), photometric="rgb",
                                          planarconfig="separate", compression="zlib", predictor=True), planes_by_tifffile),
    "zstd.tif": (lambda: tif(RGB, compression="zstd", tile=(32, 64), photometric="rgb"), by_pil),
    "zstd_predictor.tif": (lambda: tif(DEEP, compression="zstd", predictor=True, rowsperstrip=20, photometric="rgb"), by_pil),
    "webp.tif": (lambda: vips(RGB, ".tif", compression="webp", lossless=True, tile=True, tile_width=64, tile_height=32), by_vips),
    "webp_alpha.tif": (lambda: vips(RGBA, ".tif", compression="webp", lossless=True), by_vips),
    "grey.tif": (lambda: pil(GREY, "TIFF", compression="tiff_lzw"), by_tifffile),
    "grey_deep.tif": (lambda: cv(DEEP[..., 0], ".tif"), by_tifffile),
    "bilevel.tif": (lambda: pil_image(Image.fromarray(GREY).convert("1"), "TIFF", compression="packbits"), by_cv),
    "alpha.tif": (lambda: pil(RGBA, "TIFF", compression="tiff_adobe_deflate"), by_vips),
    "palette.tif": (lambda: pil_image(Image.fromarray(RGB).quantize(64), "TIFF"), by_cv),
    "cmyk.tif": (lambda: pil(CMYK, "TIFF", "CMYK", compression="tiff_lzw"), naive(tifffile_cmyk)),
    "cmyk_profile.tif": (lambda: pil(CMYK, "TIFF", "CMYK", icc_profile=CMYK_PROFILE), by_cms(tifffile_cmyk, CMYK_PROFILE)),
    "p3.tif": (lambda: pil(RGB, "TIFF", icc_profile=P3), by_cms(by_cv, P3)),
    "turned6.tif": (lambda: pil(RGB, "TIFF", exif=orientation(6)), turned(by_tifffile, 6)),
    "full.avif": (lambda: pil(RGB, "AVIF", quality=90, subsampling="4:4:4", range="full"), by_av),
    "limited.avif": (lambda: pil(RGB, "AVIF", quality=85, subsampling="4:2:0", range="limited"), by_vips),
    "alpha.avif": (lambda: pil(RGBA, "AVIF", quality=90, subsampling="4:4:4"), by_vips),
    "deep.avif": (lambda: imagecodecs.avif_encode(DEEP >> 6, level=90, bitspersample=10, speed=8), by_av),
    "animated.avif": (lambda: animated("AVIF", quality=90, subsampling="4:4:4"), by_av),
    "p3.avif": (lambda: pil(RGB, "AVIF", quality=90, subsampling="4:4:4", icc_profile=P3), by_cms(by_av, P3)),
    **{f"turned{n}.avif": (lambda n=n: pil(RGB, "AVIF", quality=90, subsampling="4:4:4", exif=orientation(n)), by_vips)
       for n in (4, 5, 6, 7)},
    "clap.avif": (lambda: with_clean_aperture(pil(RGB, "AVIF", quality=90, subsampling="4:4:4"), 10, 20, 61, 40), by_vips),
    "clap_turned6.avif": (lambda: with_clean_aperture(pil(RGB, "AVIF", quality=90, subsampling="4:4:4", exif=orientation(6)),
                                                      10, 20, 61, 40), by_vips),
    "clap.heic": (lambda: with_clean_aperture(heic(RGB, quality=90, chroma=444), 10, 20, 61, 40),
                  cropped(by_av, 10, 20, 61, 40)),
    "plain.heic": (lambda: heic(RGB, quality=90, chroma=444), by_av),
    "subsampled.heic": (lambda: heic(RGB, quality=90), by_av),
    "turned6.heic": (lambda: heic(RGB, quality=90, chroma=444, exif=orientation(6).tobytes()), turned(by_av, 6)),
    "p3.heic": (lambda: heic(RGB, quality=90, chroma=444, icc_profile=P3), by_cms(by_av, P3)),
}


def main() -> None:
    """All files, or those named on the command line."""
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or FILES:
        make, decode = FILES[name]
        try:
            data = make()
            expected = decode(data)
        except Exception as error:
            print("FAILED", name, type(error).__name__, str(error)[:200])
            continue
        (FOLDER / name).write_bytes(data)
        Image.fromarray(np.ascontiguousarray(expected)).save(FOLDER / f"{name}.png", optimize=True)
        print(name, len(data), expected.shape)


if __name__ == "__main__":
    main()
