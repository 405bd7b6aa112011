"""What a report tells of its figures: whose content they are of, every choice behind them, what they may not be taken for."""

import dataclasses
import io
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.checkpoints import autoencoder_checkpoint
from evaluation.folders import folder
from PIL import Image

from infd.checkpoint import Checkpoint
from infd.evaluation import evaluate as library
from infd.evaluation import protocols
from infd.evaluation.crops import RandomScales, WholeImages
from infd.evaluation.protocols import Consistency, Distances, Pairs
from infd.evaluation.rendered import reconstructions
from infd.evaluation.result import Metric, Result, metric
from infd.evaluation.sources import FolderSource
from pipelines import evaluation_pictures as pictures
from pipelines.published import COLUMNS, IMAGES, MODE, SAMPLING, TO_8_BITS, published
from pipelines.report import report
from pipelines.report_choices import choices_text, conditions, lines_of
from pipelines.report_departures import MARK, departures, sentences
from pipelines.report_rows import drawing, named, read_rows
from pipelines.report_tables import Row, condition_of, table_of, validation
from pipelines.report_text import asked, cautions, markdown, numbers
from pipelines.report_tracking import metrics_of, results_of, tags_of
from pipelines.report_verdict import verdict
from pipelines.runs import Facts

TRUTH = {"uri": "s3://b/data@7", "kind": "dataset", "split": "all", "images": 70_000, "fingerprint": "f" * 64,
         "decoding": "patches"}
FILES = {"uri": "s3://b/made", "kind": "files", "images": 9, "fingerprint": "a" * 64}
NETWORK = {"name": "random", "weights_sha256": "0123456789abcdef" * 4, "input": "299 x 299, bilinear", "features": 2048}
SEEDS = {"uri": "/r/checkpoints/step-00000009", "kind": "seeds", "checkpoint_sha256": "c" * 64, "fingerprint": "d" * 64,
         "seeds": "0 … 49999", "step": 9, "to_8_bits": TO_8_BITS, "mode": MODE,
         "sampling": {**SAMPLING, "sampler": "auto", "group": "", "context": ""}}


def low(name: str, *values: float) -> Metric:
    return metric(name, values, better="lower")


def result(*metrics: Metric, judged: dict[str, Any] = FILES, versions: str = "0.1.0", counts: int = 50, **choices: object
           ) -> Result:
    return Result(protocol="pfid_infd", metrics=metrics or (low("fid", 5.0),), choices={"device": "cpu", "ddof": 1, **choices},
                  sources=(TRUTH, judged), counts={"a": 70_000, "b": counts}, versions={"infd": versions})


def row(name: str, *results: Result, preset: str = "", step: int | None = None, config: dict[str, Any] | None = None) -> Row:
    record = {"preset": preset, "config": config or {}, "snapshot": "", "latents": None}
    facts = Facts(uri=name, record=record, state="finished", steps=1, checkpoints=[], last=None, best=None, preview="",
                  mlflow_run="m") if preset else None
    return Row(name=name, address=name, run=facts, results=results, step=step,
               folders=tuple(f"{name}/{k}" for k in range(len(results))))


def put(root: Path, **results: Result) -> str:
    for name, one in results.items():
        one.write(str(root / name / "result.json"))
    return str(root)


def test_law_validation_on_other_latents_is_another_condition():
    """Of one snapshot and one config: what an autoencoder makes of the photographs decides what the loss is of."""
    def judged(latents: dict[str, str] | None) -> str:
        best = Checkpoint(uri="", meta={"step": 3, "config": {}, "metrics": {"val/loss": 0.5}}, files={})
        facts = Facts(uri="r", record={"preset": "tiny", "config": {}, "snapshot": "s@1", "latents": latents}, state="finished",
                      steps=3, checkpoints=[3], last=best, best=best, preview="", mlflow_run="")
        [found] = validation(Row(name="r", address="r", run=facts, step=3))
        return condition_of(found)

    one, same, other = (judged({"address": address, "sha256": sha256}) for address, sha256 in ("a1", "b1", "a2"))
    assert one == same and len({one, other, judged(None)}) == 3


# ---------------------------------------------------------------- whose content


@pytest.mark.parametrize("judged", [FILES, {**SEEDS, "uri": "/nowhere/step-00000009"}])
def test_law_a_row_is_of_one_content(tmp_path, judged):
    other = judged | {"fingerprint": "b" * 64} | ({"checkpoint_sha256": "e" * 64} if "checkpoint_sha256" in judged else {})
    where = put(tmp_path, old=result(low("fid", 5.0), judged=judged), new=result(low("fid", 4.0), judged=other))
    rows = named(read_rows([where]))
    last = judged["uri"].rsplit("/", 1)[-1]
    ends = [str(one.get("checkpoint_sha256", one["fingerprint"]))[:8] for one in (other, judged)]
    assert [one.name for one in rows] == [f"{last}, content {end}" for end in ends]
    assert [one.results[0]["fid"] for one in rows] == [4.0, 5.0] and cautions(rows) == []
    assert "| 4.000 |" in markdown(table_of(rows), []).replace("**", "")


def test_a_checkpoints_row_holds_results_at_all_sides_and_of_all_truths(tmp_path):
    """The fingerprint of renders depends on their side and on what they reconstruct; the weights do not."""
    smaller = {**SEEDS, "fingerprint": "x", "side": 9}
    where = put(tmp_path, one=result(judged=SEEDS), two=result(low("kid", 1.0), judged=smaller))
    [only] = read_rows([where])
    assert len(only.results) == 2 and only.content == "c" * 64


def test_how_images_were_drawn_makes_rows_and_their_names(tmp_path):
    ways = {"nearest": {"to_8_bits": "nearest"}, "down": {"to_8_bits": "down"}, "later": {"seeds": "100 … 199"},
            "group": {"sampling": {**SEEDS["sampling"], "group": "cats"}}}
    rows = {drawing(one): one for one in read_rows(
        [put(tmp_path, **{name: result(judged={**SEEDS, "to_8_bits": "nearest", **way}) for name, way in ways.items()})])}
    assert len(rows) == 4
    plain = min(rows, key=len)
    assert plain.endswith("mode tile") and set(rows) == {
        plain, f"{plain}, rounded down to 8 bits", f"{plain}, seeds from 100", plain.replace(", mode", ", group cats, mode")}
    unsaid = {name: value for name, value in SEEDS.items() if name != "to_8_bits"}
    assert len(read_rows([put(tmp_path / "two", a=result(judged=unsaid), b=result(low("kid", 1.0), judged={
        **SEEDS, "to_8_bits": "nearest"}))])) == 1


def test_a_checkpoint_that_is_another_one_today_has_no_run_and_is_told_of(tmp_path):
    run = tmp_path / "vq"
    address = autoencoder_checkpoint(run / "checkpoints" / "step-00000004", seed=0, metrics={"val/loss": 0.25}, step=4)
    for pointer in ("last", "best"):
        (run / "checkpoints" / f"{pointer}.json").write_text(json.dumps({"checkpoint": "step-00000004"}))
    (run / "run.json").write_text(json.dumps({"preset": "tiny", "config": {"loop.steps": 4}, "snapshot": "s@1", "start": None}))
    photos = FolderSource(str(folder(tmp_path / "photos", [(48, 48)])))
    source = reconstructions(photos, address)
    [new] = named(read_rows([str(run)]))
    assert cautions([new]) == [
        "vq: not judged yet, so that training's own validation is all there is; python jobs/evaluate.py reconstruction s@1 "
        f"{run}/checkpoints/best --sizes 256 judges vq"]
    assert asked({"evaluation.images": 40}, drawn=True) == ("frechet", "--images 40 --side 256 --network inception-v3-compat")
    put(run / "evaluations", one=result(judged=source.describe()))
    [fresh] = named(read_rows([str(run)]))
    assert not fresh.stale and fresh.run is not None and cautions([fresh]) == []
    assert "val/loss" in [column.metric for column in table_of([fresh]).columns]

    autoencoder_checkpoint(address, seed=1, metrics={"val/loss": 0.125}, step=4)
    put(run / "evaluations", two=result(judged=reconstructions(photos, address).describe()))
    old, new = named(read_rows([str(run)]))
    assert (old.stale, old.run, old.name) == (True, None, f"vq, content {old.content[:8]}")
    assert not new.stale and new.run is not None
    [told] = cautions([old, new])
    assert told.startswith(f"{old.name}: {address} holds another checkpoint today") and f"{run}/evaluations/one" in told
    table = table_of([old, new])
    losses = next(k for k, column in enumerate(table.columns) if column.metric == "val/loss")
    assert [cell and cell.value for cell in (line[losses] for line in table.cells)] == [None, 0.125]
    page = Path(report([str(run), put(tmp_path / "other", fid=result(low("fid", 9.0)))], str(tmp_path / "out"))).read_text()
    assert "vq is best" not in page and f"{new.name} is best in 1 of the 1 figures that all have." in page
    assert page.count('<span class="tag">changed since</span>') == page.count("<h3>Distances") + page.count("<h3>Training")


# ---------------------------------------------------------------- two results of one condition


def test_of_two_results_of_one_condition_the_newer_librarys_is_shown_and_both_are_told(tmp_path):
    where = put(tmp_path, a=result(low("fid", 5.0), versions="0.9.0"), b=result(low("fid", 5.25), versions="0.10.0"))
    rows = named(read_rows([where]))
    assert [[one["fid"] for one in row.results] for row in rows] == [[5.25]] and rows[0].folders == (f"{where}/b",)
    told = (f"made: {where}/b and {where}/a are of one condition and differ (infd 0.10.0 and 0.9.0): FID 5.250 and 5.000; "
            f"shown is {where}/b, made by the newer library")
    assert cautions(rows) == [told]
    page = Path(report([where], str(tmp_path / "out"))).read_text()
    tree = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told in page and f"Mind: {told}." in (tmp_path / "out" / "report.md").read_text() and told in tree["cautions"]
    assert tree["rows"][0]["superseded"] == [{"folder": f"{where}/a", "by": f"{where}/b"}]


def test_where_the_library_is_the_same_the_first_by_name_is_shown(tmp_path):
    cpu, gpu = result(low("fid", 5.0)), dataclasses.replace(result(low("fid", 5.000001)), choices={"device": "cuda", "ddof": 1})
    where = put(tmp_path, b=cpu, a=gpu)
    [only] = read_rows([f"{where}/b", f"{where}/a"])
    assert only.folders == (f"{where}/a",)
    [told] = cautions([only])
    assert "(device cuda and cpu)" in told and "FID 5.000001 and 5.0; shown is" in told
    assert told.endswith("/a, the first by name")


def test_equal_figures_of_one_condition_need_no_caution(tmp_path):
    rows = read_rows([put(tmp_path, a=result(), b=result(), c=result(low("fid", 9.0), ddof=0))])
    assert [len(row.results) for row in rows] == [2] and len(rows[0].superseded) == 1 and cautions(rows) == []


# ---------------------------------------------------------------- every choice


def every_kind() -> list[Result]:
    """A result of each kind of protocol, with figures of its own name."""
    def of(protocol: Any, name: str, *, networks: tuple[dict[str, Any], ...] = (), **counts: int) -> Result:
        return Result(protocol=protocol.name, metrics=(low(name, 1.0),), sources=(TRUTH, SEEDS), counts=counts,
                      networks=networks, choices=library.choices(protocol) | {"device": "cpu"},
                      versions={"infd": "0.1.0", "torch": "2.0"})

    fid = protocols.fid()
    return [
        of(dataclasses.replace(fid, metrics=("frechet", "kid", "precision_recall"), batch=48), "fid", networks=(NETWORK,), a=1,
           b=2),
        of(Distances(name="fid", crops=WholeImages(side=299)), "fid_299", networks=(NETWORK,), a=1, b=2),
        of(protocols.pfid_infd(256, 1024, seeds=(3, 5)), "pfid_256/1024", networks=(NETWORK,), a=1, b=2),
        of(Distances(name="pfid_anyres", crops=RandomScales(p=1024, r_min=1024, count=77), ddof=0), "pfid_random", a=1, b=2),
        of(protocols.super_resolution(160), "psnr@160", networks=({**NETWORK, "name": "lpips_alex"},), pairs=8),
        of(protocols.spectra(64, 128), "spectrum_db_64/128", a=1, b=2),
        of(Consistency(count=3), "mean_shift_64", fields=3, sides=2)]


def test_law_every_choice_hash_count_and_version_is_in_all_three_forms(tmp_path):
    where = put(tmp_path, **{f"r{k}": one for k, one in enumerate(every_kind())})
    page = unescape(Path(report([where], str(tmp_path / "out"))).read_text())
    text, tree = (tmp_path / "out" / "report.md").read_text(), json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(tree["conditions"]) == len(every_kind())
    for one in every_kind():
        choices = {name: value for name, value in one.choices.items() if name not in ("device", "network.weights", "weights")}
        [found] = [made for made in tree["conditions"] if made["condition"] == condition_of(one)[:8]]
        assert found["choices"] == json.loads(json.dumps(choices)) and found["counts"] == one.counts
        assert found["networks"] == list(one.networks) and found["made"][0]["versions"] == one.versions
        for form in (page, text):
            assert choices_text(one) in form and all(network["weights_sha256"] in form for network in one.networks)
        for name, value in choices.items():
            plain = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            shown = "no" if value is False else re.escape(str(plain)) or "(none|–)"
            assert re.search(rf"\b{re.escape(name)} {shown}(;|$)", choices_text(one)), name
    for form in (page, text):
        assert "infd 0.1.0, torch 2.0" in form and TRUTH["fingerprint"] in form and "snapshot 7 of s3://b/data" in form
        for words in ("one random 256 x 256 px crop of each image at side 1024", "299 x 299, bilinear; 2,048 features",
                      "divided by N − 1 (ddof 1)", "divided by N (ddof 0)", "subset size 1000, subsets 100", "block 4096, k 3",
                      "errors averaged over 8 pairs before decibels", "160 px, centre square by bicubic", "cut to 299 px",
                      "whole images as they are", "brought to 299 px by Lanczos", "sampler auto", "3, 5", "steps 200"):
            assert words in form, words


def test_a_single_condition_lies_open_and_several_are_closed(tmp_path):
    def opened(*results: Result) -> list[str]:
        where = put(tmp_path / str(len(results)), **{f"r{k}": one for k, one in enumerate(results)})
        return re.findall(r"<details[^>]*>", Path(report([where], str(tmp_path / "out"))).read_text())

    assert opened(result()) == ["<details open>"]
    assert opened(result(), result(ddof=0)) == ["<details>"] * 2


def test_law_columns_of_different_conditions_have_different_numbers_and_words():
    table = table_of([row("a", result(), result(ddof=0)), row("b", result(ddof=0)), row("c", *every_kind()[:1])])
    made = conditions(table)
    assert [column.condition for column in table.columns] == [one.key for one in made] and len({one.text for one in made}) == 3
    assert {one.text for one in made} >= {f"against s3://b/data@7; 70,000 real, 50 judged; ddof {ddof}" for ddof in (0, 1)}
    assert [one.number for one in made] == [1, 2, 3]
    spectra, folders = every_kind()[5], result(ddof=0)
    texts = [one.text for one in conditions(table_of([row("a", folders, dataclasses.replace(
        spectra, counts=folders.counts, sources=folders.sources))]))]
    assert texts == [f"against s3://b/data@7; 70,000 real, 50 judged; protocol {name}" for name in ("pfid_infd", "spectra")]
    newer = conditions(table_of([row("a", result(), result(added_since=1))]))
    words = "against s3://b/data@7; 70,000 real, 50 judged; condition"
    assert [one.text for one in newer] == [f"{words} {one.key[:8]}" for one in newer]
    heads = re.findall(r"FID ↓ \[(\d)\]", markdown(table, []))
    assert heads == ["1", "2", "3"]


def test_what_differs_between_rows_of_one_condition_is_told_of_each():
    gpu = dataclasses.replace(result(), choices={"device": "cuda", "ddof": 1})
    [only] = conditions(table_of([row("a", result()), row("b", gpu)]))
    lines = dict(lines_of(only))
    assert (lines["device: a"], lines["device: b"]) == ("cpu", "cuda") and lines["libraries"] == "infd 0.1.0"


def test_renders_at_several_sides_have_a_number_though_no_column(tmp_path):
    names = [f"self_ssim[lanczos]_{pair}" for pair in ("32/64", "64/32")]
    sides = tuple({**SEEDS, "side": side} for side in (32, 64))
    one = Result(protocol="consistency", metrics=tuple(low(name, 0.5) for name in names), choices={"resizes": ["lanczos"]},
                 sources=sides, counts={"fields": 3, "sides": 2})
    another = {"checkpoint_sha256": "9" * 64, "fingerprint": "z"}
    other = dataclasses.replace(one, sources=tuple({**side, **another} for side in sides))
    assert condition_of(one) == condition_of(other) != condition_of(dataclasses.replace(
        one, sources=tuple({**side, "seeds": "5 … 9"} for side in sides)))
    files = dataclasses.replace(one, sources=({**FILES, "fingerprint": "x"}, FILES))
    assert condition_of(files) != condition_of(dataclasses.replace(files, sources=({**FILES, "fingerprint": "y"}, FILES)))
    judged = {**FILES, "fingerprint": "z"}
    assert condition_of(files) == condition_of(dataclasses.replace(files, sources=(files.sources[0], judged)))
    where = put(tmp_path, fid=result(judged=SEEDS), same=one)
    report([where], str(tmp_path / "out"))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## SelfSSIM [2]: " in text and "[2] 3 fields, each rendered at 2 sides" in text
    assert "renders of the same fields: 32, 64" in text


# ---------------------------------------------------------------- beside published figures


def test_a_row_made_as_the_paper_does_has_no_departure():
    ours = result(low("pfid_256/1024", 8.0), judged=SEEDS, counts=IMAGES)
    ours = dataclasses.replace(ours, sources=({**TRUTH, "kind": "files"}, SEEDS))
    table = table_of([row("mine", ours, preset="ffhq_1024")], published({"ffhq_1024"}))
    assert sentences(table, numbers(conditions(table))) == [
        "mine, pFID 256/1K [1]: follows the published protocol, as far as the papers tell."]
    assert MARK not in markdown(table, []).split("## How")[0].split("Published figures")[0]


@pytest.mark.parametrize(("judged", "counts", "said"), [
    ({}, 5000, "5,000 images instead of 50,000"), ({"mode": "whole"}, IMAGES, "norms of mode whole instead of tile"),
    ({"to_8_bits": "nearest"}, IMAGES, "levels rounded to 8 bits where the paper cuts them off"),
    ({"sampling": {**SAMPLING, "steps": 50}}, IMAGES, "50 sampler steps instead of 200"),
    ({"sampling": {**SAMPLING, "sampler": "dpm", "eta": 0.0}}, IMAGES, "sampler dpm instead of ddim"),
    ({"sampling": {**SAMPLING, "eta": 0.0}}, IMAGES, "eta 0.0 instead of 1.0"),
    ({"kind": "reconstructions", "sampling": None}, IMAGES, "reconstructions of photographs, not generated images"),
    ({"kind": "files"}, IMAGES, "images of files, of which it is not known how they were drawn")])
def test_each_departure_from_the_papers_protocol_is_told_alone(judged, counts, said):
    ours = dataclasses.replace(result(low("pfid_256/1024", 8.0), counts=counts),
                               sources=({**TRUTH, "kind": "files"}, {**SEEDS, **judged}))
    found = departures(row("mine", ours, preset="ffhq_1024"), published({"ffhq_1024"}))
    assert list(found.values()) == [[said]]


def test_departures_are_one_sentence_a_row_and_mark_the_figures(tmp_path):
    some = result(low(COLUMNS[1], 8.0), judged={**SEEDS, "mode": "whole"}, counts=5000)
    many = result(low(COLUMNS[2], 8.0), low("kid", 1.0), judged={**SEEDS, "mode": "whole"}, counts=IMAGES, ddof=0)
    flow = result(low(COLUMNS[1], 9.0), judged=SEEDS, counts=5000)
    table = table_of([row("mine", some, many, preset="ffhq_1024"), row("flow", flow, preset="mountains_2k", config={
        "diffusion.objective": "flow"}), row("none", result(low("kid", 2.0)))], published({"ffhq_1024"}))
    mine, other = sentences(table, numbers(conditions(table)))
    assert mine == (
        "mine, pFID 256/1K [1], pFID 512/1K [2]: differs from the published protocol by 5,000 images instead of 50,000 (pFID "
        "256/1K [1]); norms of mode whole instead of tile; real images from a dataset's tiles instead of the files; "
        "covariances divided by N instead of N − 1 (pFID 512/1K [2]).")
    assert "the preset mountains_2k instead of ffhq_1024; sampler heun instead of ddim" in other
    lines = {line.split("|")[1].strip(): line for line in markdown(table, []).splitlines() if line.startswith("| ")}
    assert lines["mine"].count(MARK) == 2 and lines["flow"].count(MARK) == 1 and MARK not in lines["none"]
    assert f"- {mine}" in markdown(table, [])


# ---------------------------------------------------------------- contact sheets


def test_law_fields_on_a_contact_sheet_are_large_renders_brought_down(tmp_path):
    checkpoint = autoencoder_checkpoint(tmp_path / "checkpoint")
    photos = FolderSource(str(folder(tmp_path / "photos", [(300, 300), (310, 310)])))
    for side, render in ((512, 256), (160, 160), (64, 64)):
        source = reconstructions(photos, checkpoint, side=side)
        whole = source.patch(1, side=render, y=0, x=0, p=render)
        cell = min(render, 112)
        expected = np.asarray(Image.fromarray(whole).resize((cell, cell), Image.Resampling.LANCZOS)) if cell < render else whole
        np.testing.assert_array_equal(pictures.small(source, 1), expected)
        down = ", brought down to 112 px by Lanczos" if side > 112 else ""
        assert pictures.sheet_text(source) == f"rendered at {render} px{down}"
    native = reconstructions(photos, checkpoint)
    assert pictures.sheet_text(native) == "rendered at up to 256 px, brought down to 112 px by Lanczos"


def test_law_small_images_stand_side_by_side_on_a_contact_sheet(tmp_path):
    source = FolderSource(str(folder(tmp_path / "photos", [(20, 20)] * 9)))
    sheet = pictures.contact_sheet(source)
    assert sheet.shape == (20 + 4 + 20, 8 * 20 + 7 * 4, 3)
    np.testing.assert_array_equal(sheet[:20, 7 * 24:], source.read(7))
    np.testing.assert_array_equal(sheet[24:, :20], source.read(8))


def test_the_page_says_how_contact_sheets_were_drawn(tmp_path):
    def jpeg() -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "JPEG")
        return buffer.getvalue()

    where = Path(put(tmp_path, one=result(judged=SEEDS))) / "one"
    (where / "pictures").mkdir()
    for name in ("sheet-a.jpg", "sheet-b.jpg"):
        (where / "pictures" / name).write_bytes(jpeg())
    made = {"crops": [], "sheets": {"a": "sheet-a.jpg", "b": "sheet-b.jpg"},
            "sheets_made": {"a": "squares", "b": "rendered at 256 px"}}
    (where / "pictures.json").write_text(json.dumps(made))
    page = Path(report([str(where)], str(tmp_path / "out"))).read_text()
    assert "photographs of s3://b/data@7: squares</figcaption>" in page
    assert "step-00000009: rendered at 256 px</figcaption>" in page


# ---------------------------------------------------------------- trackers, and pools


def test_law_no_two_figures_of_a_run_have_one_name_at_one_step():
    bicubic, lanczos = (result(low("psnr@256", value), low(f"ssim@{value:g}", 1.0), judged=SEEDS, resample=how)
                        for value, how in ((20.0, "bicubic"), (21.0, "lanczos")))
    down = result(low("psnr@256", 22.0), judged={**SEEDS, "mode": "whole"}, resample="lanczos")
    rows = [row("r", bicubic, lanczos, step=4), row("r, mode whole", down, step=4), row("r later", bicubic, step=8)]
    found = results_of(rows)
    sent = metrics_of(found)
    assert len({(name, step) for name, _, step in sent}) == len(sent) == 7
    names = {value: name for name, value, _ in sent}
    assert all(re.fullmatch(r"eval/psnr\.256\.[0-9a-f]{8}", names[value]) for value in (20.0, 21.0, 22.0))
    assert {"eval/ssim.20", "eval/ssim.21"} <= {name for name, _, _ in sent}
    assert [name for name, value, _ in sent if value == 20.0] == [names[20.0]] * 2         # one name at all steps
    tags = {name: json.loads(text) for name, text in tags_of(found).items()}
    assert set(tags) == {f"eval.pfid_infd.{names[value].rsplit('.', 1)[1]}" for value in (20.0, 21.0, 22.0)}
    of_bicubic = tags[f"eval.pfid_infd.{names[20.0].rsplit('.', 1)[1]}"]
    assert of_bicubic["choices"]["resample"] == "bicubic" and of_bicubic["folders"] == {"4": "r/0", "8": "r later/0"}
    assert of_bicubic["conditions"].startswith("against s3://b/data@7")


def test_single_figures_keep_their_names_in_trackers():
    found = results_of([row("r", result(low("psnr@256", 20.0), judged=SEEDS), step=4)])
    assert metrics_of(found) == [("eval/psnr.256", 20.0, 4)] and list(tags_of(found)) == ["eval.pfid_infd"]
    long = results_of([row("r", result(judged=SEEDS, note="x" * 9000), step=4)])
    assert "see the result" in tags_of(long)["eval.pfid_infd"] and len(tags_of(long)["eval.pfid_infd"]) < 5000


def test_pools_of_pairs_are_told_as_pools(tmp_path):
    protocol = Pairs(name="super_resolution", metrics=("psnr",), psnr_pool=2)

    def of(name: str, *errors: float) -> Row:
        one = library.pair_metric("psnr", list(errors), protocol)
        assert one.over == "pools"
        items = tuple(map(str, range(len(errors))))
        return row(name, Result(protocol=protocol.name, metrics=(one,), choices=library.choices(protocol),
                                sources=(TRUTH, FILES), counts={"pairs": len(errors)}, items=items))

    table = table_of([of("a", 10, 10, 20, 20, 9, 9), of("b", 11, 12, 19, 19, 14, 14)])
    said = verdict(table)
    assert "; better in 2 of 3 pools)" in said[1] and "images" not in " ".join(said)
    assert "±" not in markdown(table, []).split("## How")[0]
    assert "6 pairs; PSNR of errors averaged over 2 pairs" in markdown(table, [])
    [single] = [dataclasses.replace(one, over="images") for one in table.rows[1].results[0].metrics]
    mixed = dataclasses.replace(table.rows[1], results=(dataclasses.replace(table.rows[1].results[0], metrics=(single,)),))
    assert "better in" not in verdict(table_of([table.rows[0], mixed]))[1]
