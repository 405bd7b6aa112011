"""Reports: the papers' table, what is best and why, published rows marked, pictures inside the page, in three forms."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from evaluation.checkpoints import CROP, SMALL, autoencoder_checkpoint, photographs
from evaluation.networks import random_network

from infd import checkpoint
from infd.config_form import flat
from infd.evaluation import pixels, protocols
from infd.evaluation.protocols import Consistency, Pairs
from infd.evaluation.result import Metric, Result, metric
from infd.presets import tiny
from jobs import report as job
from pipelines import evaluate as pipeline
from pipelines import report_tables as tables
from pipelines.evaluation_work import SourceSpec, engine
from pipelines.published import COLUMNS, PUBLISHED, published
from pipelines.report import report
from pipelines.report import values as report_values
from pipelines.report_choices import conditions
from pipelines.report_rows import named, read_rows, run_name
from pipelines.report_tables import Row, over_seeds, table_of, title
from pipelines.report_text import markdown, number
from pipelines.report_verdict import verdict
from pipelines.runs import Facts
from pipelines.sweep_plan import value_text

NETWORK = random_network()


class Page(HTMLParser):
    """What a browser would load, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def begun(root: Path, name: str, *, seed: int, losses: tuple[float, float], **changes: object) -> str:
    """A run with one checkpoint of random weights, validated by octave."""
    run = root / name
    metrics = {"val/loss": sum(losses) / 2, "val/loss_r_to_64": losses[0], "val/loss_r_to_128": losses[1]}
    autoencoder_checkpoint(run / "checkpoints" / "step-00000040", seed=seed, metrics=metrics, step=40, changes=changes)
    for pointer in ("last", "best"):
        checkpoint.point(str(run), pointer, 40)
    config = flat(dataclasses.replace(tiny(), model=SMALL, crop=CROP)) | changes
    (run / "run.json").write_text(json.dumps({"preset": "tiny", "config": config, "snapshot": f"{root}/data@1", "start": None}))
    return str(run)


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> tuple[str, str]:
    """Two runs of one dataset, each evaluated by four protocols."""
    root = tmp_path_factory.mktemp("runs")
    dataset = photographs(root / "data")
    runs = (begun(root, "vq <b>", seed=0, losses=(0.2, 0.5)),
            begun(root, "kl", seed=1, losses=(0.3, 0.4), **{"optimizer.lr": 0.5}))

    class Random:
        sha256 = "0" * 64

        def __init__(self, net: str, **_: object) -> None:
            pass

        def __call__(self, a: np.ndarray, b: np.ndarray) -> float:
            return float(np.square(NETWORK(a[None]) - NETWORK(b[None])).sum())

    with pytest.MonkeyPatch.context() as patch, engine(ray=False, workers=0, device="cpu") as made:
        patch.setattr(pixels, "LpipsMetric", Random)
        truth = SourceSpec(uri=dataset.uri)
        for run in runs:
            spec = SourceSpec(uri=f"{run}/checkpoints/best", side=64, of=truth)
            for protocol in (Pairs(name="reconstruction", metrics=("psnr", "lpips_alex"), sizes=(32, 64)),
                             dataclasses.replace(protocols.pfid_infd(32, 64), crops=center(32, 64)),
                             dataclasses.replace(protocols.spectra(32, 64), crops=center(32, 64))):
                network = NETWORK if protocol.name == "pfid_infd" else None
                pipeline.evaluate(protocol, [truth, spec], out=f"{run}/evaluations", engine=made, network=network)
            sides = [dataclasses.replace(spec, side=side) for side in (32, 64)]
            pipeline.evaluate(Consistency(count=3), sides, out=f"{run}/evaluations", engine=made)
    return runs


def center(p: int, r: int) -> protocols.OneCrop:
    return protocols.OneCrop(p=p, r=r, prepare="center-lanczos")


# ---------------------------------------------------------------- the whole


def test_job_writes_one_page_that_needs_nothing_else(judged, tmp_path, capsys):
    assert job.main([*judged, "--out", str(tmp_path / "out")]) == 0
    address = capsys.readouterr().out.strip()
    page = Page(Path(address).read_text())
    assert address == f"{tmp_path}/out/report.html"
    assert all(source.startswith("data:image/") for source in page.sources) and not {"script", "link", "b"} & set(page.tags)
    assert "vq <b>" in page.text
    for heading in ("Figures", "Settings that differ", "Crops side by side", "By scale", "Worst and best", "Spectra",
                    "Consistency across sizes",
                    "The same fields at each side", "Contact sheets", "What was judged"):
        assert heading in page.text, heading
    pictures = [source for source in page.sources if source.startswith("data:image/jpeg")]
    crops, extremes, sides, sheets = 2 * 6 * 3, 2 * 2 * 4 * 2, 2 * 3 * 2, 3
    assert len(pictures) == crops + extremes + sides + sheets and len(page.sources) - len(pictures) == 1 + 2 + 1
    assert not {"published"} & set(re.findall(r"\w+", page.text.split("Figures")[1].split("Crops")[0]))


def test_the_three_forms_agree(judged, tmp_path):
    report(judged, str(tmp_path))
    tree = json.loads((tmp_path / "report.json").read_text())
    text, page = (tmp_path / "report.md").read_text(), Page((tmp_path / "report.html").read_text()).text
    assert [row["name"] for row in tree["rows"]] == ["vq <b>", "kl"]
    assert [column["title"] for column in tree["columns"]] == [
        "Fréchet 32/64 [random]", "spectrum 32/64, dB", "PSNR at 32, dB", "PSNR at 64, dB", "LPIPS Alex at 32",
        "LPIPS Alex at 64", "training's val loss"]
    for row in tree["rows"]:
        assert len(row["values"]) == 7 and all(number(value) in text and number(value) in page for value in row["values"])
    assert all(sentence in text and sentence in page for sentence in tree["verdict"])
    assert tree["rows"][0]["validation_loss_by_r"] == {"64": 0.2, "128": 0.5}
    assert "| val/loss | r to 64 | r to 128 |" in text and "| kl | 0.3000 | 0.4000 |" in text
    assert tree["verdict"][-1] == "Settings differ: optimizer.lr 0.002 (vq <b>), 0.5 (kl)."
    assert "Validation loss of vq <b> against kl: −33% at r to 64, +25% at r to 128." in tree["verdict"]


def test_results_by_themselves_and_runs_before_their_first_evaluation(judged, tmp_path):
    [result] = Path(judged[1]).glob("evaluations/reconstruction-*/result.json")
    [row] = read_rows([str(result)])
    assert row.name == "kl" and row.step == 40 and row.run is not None and len(row.results) == 1
    [same] = read_rows([str(result), str(result.parent), judged[1]])
    assert len(same.results) == 4
    fresh = begun(tmp_path, "fresh", seed=2, losses=(0.1, 0.2))
    [row] = read_rows([fresh])
    assert row.results == () and row.step == 40
    assert "No figure was made of all rows" in Path(report([fresh, judged[0]], str(tmp_path / "out"))).read_text()


def test_a_folder_gives_its_runs_and_the_results_that_lie_in_none(tmp_path):
    fresh = begun(tmp_path / "work", "fresh", seed=2, losses=(0.1, 0.2))
    result(low("fid", 5.0)).write(str(tmp_path / "work" / "besides" / "result.json"))
    assert {row.address == fresh or row.results[0]["fid"] for row in read_rows([str(tmp_path / "work")])} == {True, 5.0}


def test_error_where_nothing_is(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert job.main([str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 1
    assert "neither a run nor a result.json" in capsys.readouterr().err
    (tmp_path / "result.json").write_text("{}")
    assert job.main([str(tmp_path / "result.json"), "--out", str(tmp_path / "out")]) == 1
    assert "cannot be read as a result" in capsys.readouterr().err and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the table


def result(*metrics: Metric, counts: int = 100, **choices: object) -> Result:
    return Result(protocol="pfid_infd", metrics=metrics, choices={"device": "cpu", **choices},
                  sources=({"uri": "s3://b/data@1", "fingerprint": "f"}, {"uri": "other", "fingerprint": "g"}),
                  counts={"a": counts, "b": counts})


def row(name: str, *results: Result, preset: str = "") -> Row:
    record = {"preset": preset, "config": {}, "snapshot": "", "latents": None}
    facts = Facts(uri=name, record=record, state="finished", steps=1, checkpoints=[],
                  last=None, best=None, preview="", mlflow_run="") if preset else None
    return Row(name=name, address=name, run=facts, results=results, folders=tuple("" for _ in results))


def low(name: str, *values: float, error: float | None = None) -> Metric:
    return metric(name, values, better="lower", standard_error=error)


def test_columns_stand_in_the_papers_order_and_by_its_names():
    names = ["pfid_1024/1024", "kid_256/1024", "fid", "pfid_512/1024", "pfid_256/1024", "pfid_256/256", "frechet[dino]"]
    table = table_of([row("one", result(*(low(name, 1.0) for name in names)))])
    assert [column.title for column in table.columns] == [
        "FID", "pFID 256/256", "pFID 256/1K", "pFID 512/1K", "pFID 1K/1K", "Fréchet [dino]", "KID 256/1K"]
    assert title("lpips_alex@512") == "LPIPS Alex at 512" and title("something_else") == "something_else"
    assert title("pfid_random_p256min256max1024") == "pFID random p256min256max1024"


def test_law_only_figures_of_equal_conditions_share_a_column():
    few, many = result(low("fid", 9.0), counts=50), result(low("fid", 8.0), counts=5000)
    gpu = dataclasses.replace(result(low("fid", 7.0), counts=50), choices={"device": "cuda"})
    more = dataclasses.replace(result(low("fid", 6.0), counts=50), choices={"device": "cpu", "metrics": ["frechet", "kid"],
                                                                            "count_b": 50})
    table = table_of([row("few", few), row("many", many), row("gpu", gpu), row("more", more)])
    texts = {one.key: one.text for one in conditions(table)}
    assert len(table.columns) == 2 and {texts[column.condition] for column in table.columns} == {
        "against s3://b/data@1; 50 real, 50 judged", "against s3://b/data@1; 5,000 real, 5,000 judged"}
    shared = next(k for k, column in enumerate(table.columns) if " 50 judged" in texts[column.condition])
    assert [one.value if (one := line[shared]) else None for line in table.cells] == [9.0, None, 7.0, 6.0]
    assert table.best[shared] == 3
    assert table.best[1 - shared] is None


def test_best_is_by_the_metrics_own_sense_and_nobody_where_equal():
    def of(psnr: float, fid: float) -> Result:
        return result(metric("psnr", [psnr], better="higher"), low("fid", fid), low("kid", 1.0))

    table = table_of([row("a", of(20, 5)), row("b", of(22, 4)), row("c", of(21, 6))])
    assert dict(zip([column.metric for column in table.columns], table.best, strict=True)) == {"psnr": 1, "fid": 1, "kid": None}
    said = verdict(table)
    assert said[0] == "b is best in 2 of the 3 figures that all have." and "FID: 4 of b against 5 of a (−20%)." in said
    assert "**4.000**" in markdown(table, said) and "| a | 5.000 |" in markdown(table, said)


def test_a_difference_within_the_error_is_told_as_such():
    table = table_of([row("a", result(low("kid", 0.10, error=0.02))), row("b", result(low("kid", 0.12, error=0.01)))])
    assert "which is within the error" in verdict(table)[1]
    clear = table_of([row("a", result(low("kid", 0.10, error=0.002))), row("b", result(low("kid", 0.12, error=0.001)))])
    assert "within the error" not in verdict(clear)[1]
    seeds = table_of([row("a", result(low("fid", 1.0, 1.4))), row("b", result(low("fid", 1.1, 1.5)))])
    assert "which is within the error" in verdict(seeds)[1] and "± 0.2" in markdown(seeds, [])
    assert verdict(table)[0] == ("None of the 1 figures that all have tells the rows apart; in 1 the best two differ by less "
                                 "than the error.")
    assert table.best == clear.best == [0] and (table.even, clear.even) == ([True], [False])
    assert "**" not in markdown(table, []) and "**0.1000**" in markdown(clear, [])
    assert [[cell["best"] for cell in one["cells"]] for one in report_values(table, [])["rows"]] == [["even"], [""]]


def test_the_headline_counts_what_is_beyond_the_error():
    def of(fid: float, kid: float, psnr: float) -> Result:
        return result(low("fid", fid), low("kid", kid, error=0.05), metric("psnr", [psnr], better="higher"),
                      metric("ssim", [psnr / 100], better="higher"))

    table = table_of([row("a", of(5, 0.10, 22)), row("b", of(4, 0.12, 20))])
    assert verdict(table)[0] == ("a is best in 2 of the 4 figures that all have, b in 1; in 1 the best two differ by less than "
                                 "the error.")
    tied = table_of([row("a", result(low("fid", 1), low("kid", 2))), row("b", result(low("fid", 2), low("kid", 1)))])
    assert verdict(tied)[0] == "a and b are each best in 1 of the 2 figures that all have."


def test_seeds_are_pooled_although_one_alone_was_judged():
    def of(name: str, seed: int, *results: Result) -> Row:
        made = row(name, *results, preset="tiny")
        assert made.run is not None
        return dataclasses.replace(made, run=dataclasses.replace(
            made.run, record={**made.run.record, "config": {"loop.seed": seed, "loss.l1": 1}}))

    judged, other = result(low("fid", 4.0)), dataclasses.replace(result(low("fid", 5.0)), sources=(
        {"uri": "s3://b/data@1", "fingerprint": "f"}, {"uri": "other", "fingerprint": "g", "mode": "tile"}))
    names = [one.name for one in over_seeds(table_of([of("a", 0, judged), of("b", 1)]))]
    assert names == ["mean of 2 seeds: a, b"] == [one.name for one in over_seeds(table_of([of("a", 0), of("b", 1)]))]
    assert over_seeds(table_of([of("a", 0, judged), of("b", 1, other)])) == []          # drawn in two ways


def test_a_trial_of_a_sweep_is_named_by_what_was_tried(tmp_path):
    (tmp_path / "003").mkdir()
    assert run_name(str(tmp_path / "003")) == "003"
    told = {"number": 3, "seed": 1, "values": {"optimizer.lr": 0.002, "model.widths": [16, 32]}}
    (tmp_path / "003" / "values.json").write_text(json.dumps(told))
    assert run_name(str(tmp_path / "003")) == f"003: lr=0.002 widths={value_text([16, 32])}, seed 1"


def test_figures_over_the_same_images_are_compared_image_by_image():
    def over_images(*values: float) -> Metric:
        return metric("psnr@64", values, better="higher", over="images")

    def told(one: Metric, other: Metric) -> str:
        return verdict(table_of([row("a", result(one)), row("b", result(other))]))[1]

    better = over_images(30.0, 20.0, 25.0, 22.0), over_images(29.0, 18.9, 24.1, 21.0)
    assert told(*better) == "PSNR at 64, dB: 24.25 of a against 23.25 of b (+1 dB; better in 4 of 4 images)."
    mixed = over_images(30.0, 20.0, 25.0, 22.0), over_images(29.0, 24.0, 20.0, 23.0)
    assert told(*mixed) == ("PSNR at 64, dB: 24.25 of a against 24 of b (+0.25 dB; better in 2 of 4 images), which is within "
                            "the error.")
    assert told(over_images(math.inf, math.inf), over_images(30.0, 31.0)) == "PSNR at 64, dB: ∞ of a against 30.5 of b."
    assert told(over_images(math.inf, 40.0), over_images(math.inf, 30.0)) == (
        "PSNR at 64, dB: 40 of a against 30 of b (+10 dB; better in 1 of 1 images).")
    assert told(low("fid", 0.0), low("fid", 2.0)) == "FID: 0 of a against 2 of b (−100%)."


def test_published_rows_stand_beside_ours_and_say_so():
    ours = result(*(low(name, 10.0) for name in COLUMNS[1:]))
    table = table_of([row("mine", ours, preset="ffhq_1024")], published({"ffhq_1024"}))
    text = markdown(table, [])
    assert [column.metric for column in table.columns] == list(COLUMNS)
    assert "| *published: INFD (INFD, table 1)* | *5.34* | *8.07* | *6.64* | *5.57* |" in text
    assert "| mine | – | 10.00 † | 10.00 † | 10.00 † |" in text
    assert table.best == [None] * 4                         # a published figure never counts as ours
    assert {one.preset for one in PUBLISHED if one.same} == {"ffhq_1024", "ffhq_6k_mix", "mountains_2k"}
    assert published({"tiny"}) == []


def test_names_are_told_apart():
    base = result(low("fid", 1.0))
    other = dataclasses.replace(base, sources=(base.sources[0], {**base.sources[1], "sampling": {"steps": 9}, "mode": "whole"}))
    rows = [Row(name="r", address="x/1", step=1, results=(base,)), Row(name="r", address="x/2", step=2, results=(base,)),
            Row(name="q", address="x/3", step=1, results=(base,)), Row(name="q", address="x/3", step=1, results=(other,))]
    assert [one.name for one in named(rows)] == ["r, step 1", "r, step 2", "q", "q (9 steps, mode whole)"]


def test_runs_that_differ_by_seed_alone_have_mean_and_spread(tmp_path):
    for name, seed, losses, lr in (("a", 0, (0.2, 0.4), 1), ("b", 1, (0.3, 0.5), 1), ("c", 1, (0.1, 0.1), 2)):
        begun(tmp_path, name, seed=seed, losses=losses, **{"loop.seed": seed, "optimizer.lr": lr})
    address = report([str(tmp_path)], str(tmp_path / "out"))
    text, page = (tmp_path / "out" / "report.md").read_text(), Page(Path(address).read_text()).text
    line = "| mean of 2 seeds: a, b | 0.3500 ± 0.071 |"
    assert "| optimizer.lr | 1 | 1 | 2 |" in text and "- Settings differ: loop.seed, optimizer.lr." in text
    assert line in text and "0.3500 ± 0.071" in page and "| c | **0.1000** |" in text and text.count("mean of") == 1


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (5.34, "5.340"), (1234.56, "1235"), (0.01234567, "0.01235"),
                                             (-0.5, "−0.5000"), (float("inf"), "∞"), (1e-9, "0.000000")])
def test_numbers_are_written_with_four_digits(value, text):
    assert number(value) == text


# ---------------------------------------------------------------- MLflow


@pytest.mark.slow
def test_job_figures_and_page_go_into_the_runs_of_mlflow(judged, tmp_path, monkeypatch, capsys):
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert job.main([judged[0], "--out", str(tmp_path / "none"), "--mlflow"]) == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    client = MlflowClient()
    made = client.create_run(client.create_experiment("tests"))
    where = Path(judged[0]) / "mlflow.json"
    where.write_text(json.dumps({"run_id": made.info.run_id}))
    try:
        assert job.main([*judged, "--out", str(tmp_path / "out"), "--mlflow"]) == 0
    finally:
        where.unlink()
    data = client.get_run(made.info.run_id).data
    [found] = [one for one in read_rows([judged[0]])[0].results if one.protocol == "reconstruction"]
    assert data.metrics["eval/psnr.64"] == pytest.approx(found["psnr@64"]) and "eval/frechet_32/64.random" in data.metrics
    assert client.get_metric_history(made.info.run_id, "eval/psnr.64")[0].step == 40
    assert [one.path for one in client.list_artifacts(made.info.run_id, "report")] == ["report/report.html"]
    assert "kl: no tracked run" in capsys.readouterr().err
    assert tables.CONSISTENCY[0] == "self_ssim" and any(name.startswith("eval/self_ssim.lanczos") for name in data.metrics)
