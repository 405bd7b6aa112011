"""Folders of images for tests."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
from pictures import encoded, picture
from PIL import Image


def folder(root: Path, sizes: Iterable[tuple[int, int]], *, kind: str = "png", seed: int = 0) -> Path:
    """img000.png, img001.png, … of these (width, height)."""
    root.mkdir(parents=True, exist_ok=True)
    for index, (width, height) in enumerate(sizes):
        (root / f"img{index:03}.{kind}").write_bytes(encoded(picture(width, height, seed + index), kind.upper()))
    return root


def changed(root: Path, source: Path, change) -> Path:
    """The images of a folder, each passed through change(array)."""
    root.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        (root / file.name).write_bytes(encoded(Image.fromarray(change(opened(file)))))
    return root


def opened(file: Path) -> np.ndarray:
    with Image.open(BytesIO(file.read_bytes())) as image:
        return np.asarray(image.convert("RGB"))
