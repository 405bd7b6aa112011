"""The PIL of this environment is pillow-simd, with the codecs that ingest needs."""

import importlib.metadata
import io

import numpy as np
import PIL
import pytest
from PIL import Image, features


@pytest.mark.slow
def test_pil_is_the_simd_one():
    assert PIL.__version__ == importlib.metadata.version("pillow-simd")
    names = {name.lower() for name in importlib.metadata.packages_distributions()["PIL"]}
    assert names == {"pillow-simd"}, "plain Pillow is installed too, over the same folder"


@pytest.mark.parametrize("feature", ["jpg", "zlib", "webp", "libjpeg_turbo"])
def test_pil_has_the_feature(feature):
    assert features.check(feature)


@pytest.mark.parametrize(("codec", "tolerance"), [("JPEG", 4), ("PNG", 0), ("WEBP", 12)])
def test_pil_writes_and_reads(codec, tolerance):
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    image = Image.fromarray(np.stack([np.tile(ramp, (64, 1))] * 3, axis=-1))
    file = io.BytesIO()
    image.save(file, codec, quality=95)
    with Image.open(io.BytesIO(file.getvalue())) as again:
        assert again.format == codec
        difference = np.asarray(again.convert("RGB")).astype(int) - np.asarray(image)
    assert np.abs(difference).max() <= tolerance
