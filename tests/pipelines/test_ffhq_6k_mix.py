"""The files of 6K-Mix: the published sides and pixels, made once, and clear refusals."""

from io import BytesIO

import numpy as np
import pytest
from pictures import encoded, picture
from PIL import Image

from infd.errors import DatasetError
from jobs import prepare_ffhq_6k_mix as job
from pipelines.ffhq_6k_mix import Subset, prepare

FEW = Subset(photos=5, mixed=3, ramp=2)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "ffhq"
    folder.mkdir()
    for number in range(FEW.photos):
        (folder / f"{number:05d}.png").write_bytes(encoded(picture(1024, 1024, number)))
    return folder


def test_golden_sides_are_the_published_ones():
    sides = [Subset().side(index) for index in range(6_000)]
    assert (sides[0], sides[1], sides[4_998], sides[4_999], sides[5_999]) == (512, 512, 1024, 1024, 1024)
    assert sides[2_500] == 768 and sides[5] == 513 and sides == sorted(sides) and len(set(sides)) == 513


@pytest.mark.slow
def test_ref_each_file_is_the_lanczos_resize_and_is_made_once(images, tmp_path):
    out = tmp_path / "out"
    assert prepare(str(images), str(out), subset=FEW, processes=1) == 8
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert names == [*(f"hr/{n:05d}.png" for n in range(3)), *(f"lr/{n:05d}.png" for n in range(5))]
    for name, side in (("hr/00000.png", 512), ("hr/00001.png", 1024), ("hr/00002.png", 1024), ("lr/00004.png", 256)):
        source = Image.open(images / name[3:]).convert("RGB")
        with Image.open(out / name) as made:
            assert np.array_equal(made, source.resize((side, side), Image.Resampling.LANCZOS) if side < 1024 else source)
    (out / "lr" / "00003.png").unlink()
    assert prepare(str(images), str(out), subset=FEW, processes=1) == 1


@pytest.mark.slow
def test_error_other_files_than_ffhq(images, tmp_path, capsys):
    assert job.main(["--images", str(images), "--out", str(tmp_path / "out")]) == 1
    assert "5 files; expected the 70000 of FFHQ at 1024 px" in capsys.readouterr().err
    buffer = BytesIO()
    picture(1030, 1024, 1).save(buffer, "PNG")
    for data in (buffer.getvalue(), encoded(picture(300, 300, 1)), b"no photo"):
        (images / "00002.png").write_bytes(data)
        with pytest.raises(DatasetError, match="00002.png.* expected|00002.png.* was expected"):
            prepare(str(images), str(tmp_path / "out"), subset=FEW, processes=1)
    (images / "00002.png").write_bytes(encoded(picture(1024, 1024, 2)))
    assert prepare(str(images), str(tmp_path / "out"), subset=FEW, processes=1) == 4  # what came before the bad file is there
