"""Renders of a field: time, memory, seams, and nearness to photographs, of every mode and of the published way.

Published way: the whole output in memory as float32, tiles of 256 px with 8 px around them, each its own statistics, then
quantized by truncation and written by PIL. Ours: streamed into the file. Both write a PNG. Each render is made in a
process of its own, whose most memory is measured: of the process on a CPU, of torch's allocator on a GPU, less what
stood before the render. The renderer is the full one on a GPU and a narrow one on a CPU, with random weights.

    python -m benchmarks.render [--sizes 1024 2048] [--dim 16] [--checkpoint C --images photo.jpg …]

With a checkpoint: the seam figure (mean absolute jump across tile borders over that inside tiles, divided by the same of
an untiled render) and PSNR and LPIPS of reconstructions of photographs, for every mode.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import torch
from PIL import Image
from torch import Tensor

from infd.config import Mode
from infd.generation.load import load_autoencoder
from infd.generation.reconstruct import center_view, field_of, resized, to_image, to_pixels, to_tensor
from infd.generation.render import save
from infd.models.fields import Field
from infd.models.renderers.clif import CLIF

SIZES = (1024, 2048, 4096, 8192)
TILE_PX, TILE_PAD_PX = 256, 8
PATCH_PX, PHI_PX, PHI_DIM = 256, 256, 128
MODES: tuple[Mode, ...] = get_args(Mode)
PUBLISHED = "published"


# ---------------------------------------------------------------- time and memory


def random_field(dim: int, device: str) -> Field:
    """A field of the published size of phi, and a renderer of `dim` hidden channels."""
    torch.manual_seed(0)
    groups = min(32, dim // 2)
    renderer = CLIF(phi_dim=PHI_DIM, dim=dim, blocks=2, groups=groups).requires_grad_(False).to(device)
    return Field(torch.randn(1, PHI_DIM, PHI_PX, PHI_PX, device=device), renderer, patch_px=PATCH_PX)


def published(field: Field, side: int, path: str) -> None:
    """The published way; see the module."""
    rgb = field.render(side, side, statistics="tile", tile_px=TILE_PX, tile_pad_px=TILE_PAD_PX)
    pixels = ((rgb[0] * 0.5 + 0.5).clamp(0, 1) * 255).byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels).save(path)


def measured(way: str, side: int, dim: int, device: str) -> dict[str, float]:
    """{"s", "bytes"} of one render, in this process."""
    field = random_field(dim, device)
    with tempfile.TemporaryDirectory(prefix="infd-bench-") as folder:
        render_once(way, field, TILE_PX, f"{folder}/first.png")      # what is loaded and planned once does not count
        before = held_bytes(device)
        begun = time.perf_counter()
        render_once(way, field, side, f"{folder}/a.png")
        return {"s": time.perf_counter() - begun, "bytes": held_bytes(device) - before}


def render_once(way: str, field: Field, side: int, path: str) -> None:
    if way == PUBLISHED:
        published(field, side, path)
    else:
        mode: Mode = next(mode for mode in MODES if mode == way)
        save(field, path, side, side, statistics=mode, tile_px=TILE_PX)


def held_bytes(device: str) -> int:
    """The most memory held so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def in_a_process(way: str, side: int, dim: int, device: str) -> dict[str, float] | None:
    """`measured` in a fresh process; None where it failed, as for want of memory."""
    command = [sys.executable, "-m", "benchmarks.render", "--one", way, "--sizes", str(side), "--dim", str(dim),
               "--device", device]
    done = subprocess.run(command, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def costs(sizes: Sequence[int], ways: Sequence[str], dim: int, device: str) -> None:
    print(f"CLIF of {dim} channels on {device}, phi {PHI_DIM} x {PHI_PX}², tiles of {TILE_PX} px.\n")
    print("| side | " + " | ".join(f"{way}, s | MiB" for way in ways) + " |\n|" + "---|" * (1 + 2 * len(ways)))
    for side in sizes:
        cells = []
        for way in ways:
            found = in_a_process(way, side, dim, device)
            cells.append(f"{found['s']:.1f} | {found['bytes'] / 2**20:.0f}" if found else "failed | –")
        print(f"| {side} | " + " | ".join(cells) + " |", flush=True)


# ---------------------------------------------------------------- seams and photographs


def jumps(rgb: Tensor, tile_px: int) -> float:
    """Mean absolute difference of neighbours across borders of tiles, over that inside tiles; rgb (1, 3, H, W)."""
    across, inside = [], []
    for differences in (rgb.diff(dim=3), rgb.diff(dim=2).transpose(2, 3)):
        border = torch.arange(1, differences.shape[3] + 1, device=rgb.device) % tile_px == 0
        across.append(differences[..., border].abs().mean())
        inside.append(differences[..., ~border].abs().mean())
    return float(sum(across) / sum(inside))


def fields(checkpoint: str, images: Sequence[str], side: int, device: str) -> Iterator[tuple[Image.Image, Field]]:
    """(the photograph's centred view at its short side, at most `side`; its field)."""
    autoencoder = load_autoencoder(checkpoint, device=device)
    assert autoencoder.lowres_px is not None
    for path in images:
        with Image.open(path) as image:
            square = center_view(image.convert("RGB"))
        view = resized(square, min(side, square.width))
        yield view, field_of(autoencoder, view, lowres_px=autoencoder.lowres_px)


def quality(checkpoint: str, images: Sequence[str], side: int, tile_px: int, device: str) -> None:
    """Means over the photographs, for every mode."""
    lpips, problem = perceptual(device)
    rows: dict[str, list[tuple[float, float, float, float]]] = {mode: [] for mode in MODES}
    for view, field in fields(checkpoint, images, side, device):
        photo = to_tensor(view).to(device)
        untiled = jumps(field.render(view.height, view.width, statistics="whole", tile_px=view.height), tile_px)
        for mode in MODES:
            begun = time.perf_counter()
            rgb = field.render(view.height, view.width, statistics=mode, tile_px=tile_px)
            pixels = torch.from_numpy(to_pixels(rgb)).to(device)      # waits for the render
            took = time.perf_counter() - begun
            shown = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
            psnr = -10 * float(torch.log10(((shown - photo) / 2).square().mean()))
            with torch.no_grad():
                distance = float(lpips(shown, photo).mean()) if lpips is not None else float("nan")
            rows[mode].append((jumps(rgb, tile_px) / untiled, psnr, distance, took))
    print(f"\n{len(images)} photographs at {side} px or their own side, tiles of {tile_px} px, {checkpoint}.{problem}\n")
    print("| mode | seam | PSNR, dB | LPIPS (alex) | s |\n|---|---|---|---|---|")
    for mode, found in rows.items():
        seam, psnr, distance, took = (statistics.fmean(values) for values in zip(*found, strict=True))
        print(f"| {mode} | {seam:.3f} | {psnr:.2f} | {distance:.4f} | {took:.2f} |", flush=True)


def perceptual(device: str) -> tuple[torch.nn.Module | None, str]:
    """(LPIPS, ""), or (None, why there is none)."""
    from infd.errors import WeightsError
    from infd.losses.perceptual import Lpips
    from infd.weights import load_weights

    try:
        return Lpips.from_state_dict("alex", load_weights("lpips-alex")).to(device).eval(), ""
    except WeightsError as error:
        return None, f" No LPIPS: {error}."


def sheet(checkpoint: str, images: Sequence[str], side: int, tile_px: int, device: str, path: str) -> None:
    """A PNG of the middle 512 pixels of each photograph and of its render in every mode, a row a photograph."""
    rows = []
    for view, field in fields(checkpoint, images, side, device):
        renders = [to_image(field.render(view.height, view.width, statistics=mode, tile_px=tile_px)) for mode in MODES]
        first = (view.width - min(512, view.width)) // 2
        last = first + min(512, view.width)
        rows.append([picture.crop((first, first, last, last)) for picture in (view, *renders)])
    page = Image.new("RGB", (512 * (1 + len(MODES)), 512 * len(rows)))
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            page.paste(picture, (512 * column, 512 * number))
    page.save(path)


def main(argv: Sequence[str] = ()) -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="sides of the renders of the first table")
    parser.add_argument("--ways", nargs="*", default=(PUBLISHED, *MODES), choices=(PUBLISHED, *MODES))
    parser.add_argument("--dim", type=int, default=256 if cuda else 16, help="hidden channels of the renderer")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--checkpoint", default="", help="an autoencoder's")
    parser.add_argument("--images", nargs="*", default=(), help="photographs")
    parser.add_argument("--side", type=int, default=2048, help="of the reconstructions")
    parser.add_argument("--tile-px", type=int, default=TILE_PX, help="tiles of the reconstructions")
    parser.add_argument("--sheet", default="", help="a PNG to write: photographs beside renders in every mode")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        with contextlib.redirect_stdout(sys.stderr):
            found = measured(args.one, args.sizes[0], args.dim, args.device)
        print(json.dumps(found))
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    if args.sizes:
        costs(args.sizes, args.ways, args.dim, args.device)
    if args.checkpoint and args.images:
        quality(args.checkpoint, args.images, args.side, args.tile_px, args.device)
        if args.sheet:
            sheet(args.checkpoint, args.images, args.side, args.tile_px, args.device, args.sheet)


if __name__ == "__main__":
    main(sys.argv[1:])
