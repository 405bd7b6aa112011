"""The page about a dataset: its figures are those of the data, it needs nothing else, and names of files are only text."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from pictures import encoded, picture
from PIL import Image

from infd import config_form
from infd.config import IngestConfig
from infd.data import snapshot
from infd.data.photo import REASONS
from jobs import describe as job
from pipelines import describe, ingest_plan
from pipelines.ingest import ingest, run_unit

CONFIG = IngestConfig(codec="png", tile_px=128, min_side_px=64, shard_bytes=400_000)
SIDES = [(300, 200), (128, 500), (257, 256), (900, 700), (128, 90), (700, 530)]
HOSTILE = "<script>alert(1)</script> & ü.txt".replace("/", "∕")


class Page(HTMLParser):
    """Tags and their attributes, rows of tables as text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.rows and self.rows[-1] and self.get_starttag_text() is not None:
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        """The row whose first cell is this word, or begins with it as a whole word and no dash of a range."""
        (found,) = [row for row in self.rows if row and re.match(rf"{first}(?!\d| –)", row[0].strip())]
        return [cell.strip() for cell in found]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    """Two snapshots: four photos of group lr and two rejects, then two of hr."""
    folder = tmp_path_factory.mktemp("describe")
    with pytest.MonkeyPatch.context() as patch:
        def run(plan: ingest_plan.Plan, tasks: list[dict]) -> None:
            for task in tasks:
                run_unit(task, run_uri=plan.uri(), dataset=plan.dataset, config=config_form.flat(plan.config), group=plan.group)

        patch.setattr("pipelines.ingest.run_on_ray", run)
        for group, some in (("lr", range(4)), ("hr", range(4, 6))):
            (folder / group).mkdir()
            for i in some:
                (folder / group / f"p{i}.png").write_bytes(encoded(picture(*SIDES[i], i)))
            if group == "lr":
                (folder / group / HOSTILE).write_bytes(b"no photo")
                (folder / group / "small.png").write_bytes(encoded(picture(30, 30)))
            ingest(str(folder / group), str(folder / "ds"), config=CONFIG, group=group)
    return str(folder / "ds")


@pytest.fixture(scope="module")
def page(dataset, tmp_path_factory) -> Page:
    out = tmp_path_factory.mktemp("out") / "a page.html"
    assert job.main(["--dataset", dataset, "--out", str(out)]) == 0
    return Page(out.read_text())


@pytest.mark.slow
def test_law_the_page_needs_nothing_else(page):
    addresses = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href")]
    assert len(addresses) == 2 * len(SIDES) and all(value.startswith("data:image/jpeg;base64,") for value in addresses)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}


def test_law_names_of_files_are_text(page):
    assert HOSTILE in page.text  # escaped: the parser gives it back whole, and saw no such tag


def test_law_the_figures_are_those_of_the_dataset(page, dataset):
    opened = snapshot.open_dataset(dataset)
    pixels = sum(w * h for w, h in SIDES)
    for words in (f"{len(SIDES)}photos", f"{pixels / 1e6:,.0f} Mpxtheir pixels", "2files rejected", "2snapshots",
                  f"in {len(opened.manifest.shards)} shards", "hr: 2 photos", "lr: 4 photos", "Short sides from 90 to 700 px",
                  "2 photos added, 0 removed, 0 changed"):
        assert words in page.text.replace("\n", ""), words
    assert page.row("too_small")[:2] == ["too_small" + REASONS["too_small"], "1"]
    assert "small.png 30x30, short side below 64" in page.row("too_small")[3]
    assert page.row("2")[1:2] == ["1"] and page.row("2")[3:5] == ["6", "+2"] and page.row("1")[3:5] == ["4", "+4"]


def test_law_levels_add_up_to_the_stored_bytes(dataset):
    opened = snapshot.open_dataset(dataset)
    _, measured = describe.look(opened.uri, snapshot.read_table(opened.uri, 2).to_pylist(), opened.manifest)
    photos = [opened.photo(row) for row in range(len(opened))]
    assert measured.photos == len(SIDES) and measured.source == sum(opened[row]["bytes"] for row in range(len(opened)))
    assert measured.stored == sum(len(p.lowres) + sum(len(p.tiles[i]) for i in range(len(p.tiles))) for p in photos)
    assert measured.having[1] == sum(min(side) > 511 for side in SIDES) and measured.tiles[0] == sum(
        -(-w // 128) * -(-h // 128) for w, h in SIDES)


def test_law_samples_have_one_scale_and_show_their_photos(page, dataset):
    shown = [attrs for tag, attrs in page.tags if tag == "img" and "height" in attrs]
    sides = sorted(SIDES, key=min)
    scale = describe.LARGEST_PX / 900
    assert sorted((int(a["width"]), int(a["height"])) for a in shown) == sorted(
        (round(w * scale), round(h * scale)) for w, h in sides)
    largest = max(shown, key=lambda a: int(a["width"]))
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(largest["src"].split(",")[1]))))
    whole = picture(900, 700, 3).resize((pixels.shape[1], pixels.shape[0]), 1)
    assert pixels.shape[1] == 2 * describe.LARGEST_PX
    assert_allclose(pixels.mean((0, 1)), np.asarray(whole).mean((0, 1)), atol=2)
    assert np.abs(pixels.astype(int) - np.asarray(whole)).mean() < 4  # of the page's JPEG


@given(st.lists(st.tuples(st.integers(16, 30_000), st.integers(0, 2)), min_size=1, max_size=60))
def test_law_the_histogram_counts_each_photo_once(photos):
    side, group = (np.array(column, np.int32) for column in zip(*photos, strict=True))
    manifest = snapshot.Manifest(shards=[], first_row=np.array([0, len(side)]), short_side=side, long_side=side,
                                 split=np.zeros(len(side), np.uint8), group=group, group_names=["", "hr", "lr"])
    rows = describe.histogram_rows(manifest, dict.fromkeys(manifest.group_names, "#000"))
    for row in rows:
        low, high = (int(row[name].replace(",", "")) for name in ("first", "last"))
        inside = (side >= low) & (side <= high)
        assert int(row["photos"].replace(",", "")) == inside.sum() == sum(part["photos"] for part in row["parts"])
        for part in row["parts"]:
            code = manifest.group_names.index("" if part["name"] == "no group" else part["name"])
            assert part["photos"] == (inside & (group == code)).sum()
    assert sum(int(row["photos"].replace(",", "")) for row in rows) == len(side)
    assert max(sum(part["percent"] for part in row["parts"]) for row in rows) == pytest.approx(100)


def test_law_an_old_snapshot_and_one_without_a_run_are_described(dataset, tmp_path):
    old = Page(Path(describe.describe(f"{dataset}@1", str(tmp_path / "old.html"))).read_text())
    assert "lr: 4 photos" in old.text and "hr:" not in old.text and "1snapshot" in old.text.replace("\n", "")
    made = snapshot.write_dataset([("mem://a", encoded(picture(80, 80))), ("mem://b", b"x")], str(tmp_path / "made"), CONFIG)
    page = Page(Path(describe.describe(made.uri, str(tmp_path / "made.html"))).read_text())
    assert "Files rejected: 1. Their list is not there any more." in page.text and "no group: 1 photos" in page.text


def test_error_a_dataset_that_is_none_and_a_damaged_shard(dataset, tmp_path, capsys):
    assert job.main(["--dataset", str(tmp_path / "none"), "--out", str(tmp_path / "x.html")]) == 1
    assert "no snapshot there" in capsys.readouterr().err and not (tmp_path / "x.html").exists()
    copy = shutil.copytree(dataset, tmp_path / "copy")
    shard = next(copy.glob("shards/*/*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    assert job.main(["--dataset", str(copy), "--out", str(tmp_path / "x.html")]) == 1
    err = capsys.readouterr().err
    assert re.search(r"describe: shard .*: sha256 .*; the manifest says", err), err
