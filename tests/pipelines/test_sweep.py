"""Sweeps: what is refused before anything starts, what folders tell of trials, the searches, and whole sweeps on Ray."""

import dataclasses
import io
import json
import logging
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from pictures import encoded, picture
from stack import until

from infd import checkpoint, storage
from infd.config import IngestConfig, LatentConfig, LatentRunConfig, LossConfig, ReconstructionConfig, RunConfig, flat
from infd.data import snapshot
from infd.data.snapshot import write_dataset
from infd.errors import CheckpointError, ConfigError, TrainingError
from infd.models.autoencoder import Autoencoder
from infd.presets import ldm_tiny, tiny
from infra.services import s3_client
from jobs import sweep as job
from jobs import train_ae
from pipelines import cluster, sweep, sweep_report, sweep_summary, sweep_trials, train
from pipelines.encode_latents import encode_latents
from pipelines.sweep import Wish
from pipelines.sweep_plan import Plan, SweepConfig
from pipelines.sweep_supply import Optuna
from pipelines.sweep_table import Table

STEPS = 20


def config(**loop):
    base = tiny()
    loop = {"steps": STEPS, "log_every": 5, "checkpoint_every": 5, "validate_every": 10, "keep_every": 5, "validate_samples": 4,
            "preview_every": 1000, "preview_photos": 1, "preview_px": 128, **loop}
    return dataclasses.replace(base, crop=dataclasses.replace(base.crop, r_max=256), loss=LossConfig(lpips=0, gan=0),
                               loop=dataclasses.replace(base.loop, **loop))


def write_photos(dataset: str, *, val_fraction: float = 0.4) -> str:
    write_dataset([(f"photo-{seed}.png", encoded(picture(300, 280, seed))) for seed in range(8)], dataset,
                  IngestConfig(val_fraction=val_fraction))
    return dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    return write_photos(str(tmp_path_factory.mktemp("sweep") / "data"))


def encoded_latents(dataset: str, autoencoder: str, out: str) -> str:
    """Of an untrained `tiny`; here, without Ray."""
    made = tiny()
    weights = {f"autoencoder.{name}": value for name, value in Autoencoder(made.model).state_dict().items()}
    checkpoint.save(autoencoder, model=weights, train_state={}, meta={
        "stage": "autoencoder", "step": 1, "config": flat(made), "metrics": {}, "snapshot": "", "weights": {}})
    return encode_latents(dataset, autoencoder, config=LatentConfig(), out=out, ray=False)


@pytest.fixture(scope="module")
def latents(dataset, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("latents")
    return encoded_latents(dataset, str(folder / "autoencoder"), str(folder / "made"))


def wish_ldm(latents: str, *vary: str, uri: str = "", seeds=(0,), concurrent=0, **loop) -> Wish:
    base = ldm_tiny()
    return Wish(stage="ldm", preset="tiny", config=dataclasses.replace(base, loop=dataclasses.replace(base.loop, **loop)),
                where=LatentRunConfig(latents=latents, device="cpu"), vary=vary, seeds=seeds, uri=uri, concurrent=concurrent)


def wish(dataset: str, uri: str = "", *vary: str, seeds=(0, 1), concurrent=0, where=None, loop=None, **sweep_options) -> Wish:
    return Wish(stage="ae", preset="tiny", config=config(**loop or {}), where=where or RunConfig(dataset=dataset, device="cpu"),
                vary=vary or ("loss.quantizer=1e-6,1e-4",), seeds=seeds, uri=uri, concurrent=concurrent,
                sweep=SweepConfig(**sweep_options))


def plan(uri: str, *vary: str, seeds=(0, 1), **sweep_options) -> Plan:
    return Plan(uri=uri, stage="ae", preset="tiny", config=config(), vary=vary or ("loss.l1=1,2",), seeds=seeds,
                sweep=SweepConfig(**sweep_options), snapshot="s3://b/data@1")


def save(trial, *steps: int, loss: float, best: int | None = None) -> None:
    """Checkpoints as training leaves them; validation gets better with every step."""
    for step in steps:
        meta = {"step": step, "config": flat(trial.config), "metrics": {"val/loss": loss - step / 1000, "train/loss": 1.0}}
        checkpoint.save(checkpoint.step_uri(trial.run, step), model={}, train_state={}, meta=meta)
        checkpoint.point(trial.run, "last", step)
    checkpoint.point(trial.run, "best", best or steps[-1])


# ---------------------------------------------------------------- before it starts


def test_error_nothing_starts_where_a_trial_could_not(dataset, tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr(sweep, "connect", never)
    uri = str(tmp_path / "sweep")
    shared = RunConfig(dataset=dataset, workers=2)
    cases = [
        (wish(dataset, uri, where=RunConfig()), "dataset: missing"),
        (wish(dataset, uri, where=RunConfig(dataset=dataset, run="x")), "run=x: each trial has a run of its own"),
        (wish(dataset, uri, where=RunConfig(dataset=dataset, ray=False)), "a sweep runs on Ray"),
        (wish(dataset, uri, "loop.batch=4,5", where=shared), r"trial 2 \(loop.batch=5 seed=0\): "),
        (wish(dataset, uri, "freeze=[],[\"encoder\"]"), r"trial 2 .*freeze=encoder: they would keep random weights"),
        (wish(dataset, uri, loop={"validate_every": 20}, scheduler="asha"),
         "scheduler=asha: trials of 20 steps are first judged at step 20; .*--loop.validate-every"),
        (wish(dataset, uri, scheduler="asha", grace_steps=30), "first judged at step 30"),
        (wish(dataset, uri, metric="eval/psnr.256"), r"metric=eval/psnr.256: trial 0 .* makes none; .*--evaluation.every")]
    for case, message in cases:
        with pytest.raises(ConfigError, match=message):
            sweep.run_sweep(case)
    assert not storage.exists(f"{uri}/plan.json")


def test_a_sweep_of_stage_two_reads_pinned_latents_and_is_refused_where_they_do_not_fit(dataset, latents):
    made, manifest = sweep.planned(wish_ldm(latents, "diffusion.objective=eps,flow"))
    assert made.snapshot == f"{dataset}@1" and (made.latents or {})["address"] == latents
    assert re.fullmatch(rf"{dataset}/sweeps/ldm-tiny-[0-9a-f]{{8}}", made.uri)
    sweep.check(made, LatentRunConfig(latents=latents), manifest)
    for asked, message in ((wish_ldm(latents, "model.z_dim=4,8"), r"trial 1 \(model.z_dim=8 seed=0\): .* latents .* have 4"),
                           (wish_ldm(""), "latents: missing")):
        with pytest.raises(ConfigError, match=message):
            sweep.run_sweep(asked)
    words = ["ldm", "tiny", "--latents", latents, "--vary", "diffusion.objective=eps,flow"]
    stage, args = job.parsed(words)
    assert stage == "ldm" and args.config == ldm_tiny() and args.vary == made.vary


def test_error_a_sweep_without_photos_to_judge_by(tmp_path):
    bare = write_photos(str(tmp_path / "bare"), val_fraction=0)
    with pytest.raises(ConfigError, match="metric=val/loss: .*bare@1 has no photo in its val split"):
        sweep.run_sweep(wish(bare))


def test_error_another_command_at_the_same_address_is_refused_naming_what_differs(dataset, tmp_path):
    uri = str(tmp_path / "sweep")
    made, _ = sweep.planned(wish(dataset, uri))
    sweep.opened(made)
    assert sweep.show(wish(dataset, uri, concurrent=2), 0)         # how many at once is no part of it
    with pytest.raises(CheckpointError, match=r"it is another \(seeds was \[0, 1\] and is \[0, 2\]\).*another --sweep"):
        sweep.run_sweep(wish(dataset, uri, seeds=(0, 2)))
    with pytest.raises(CheckpointError, match="loop.steps was 20 and is 30"):
        sweep.show(wish(dataset, uri, loop={"steps": 30, "validate_every": 15}), 0)


def test_a_sweep_keeps_its_snapshot_and_its_default_address(tmp_path):
    grown = write_photos(str(tmp_path / "grown"))
    first, _ = sweep.planned(wish(grown))
    sweep.opened(first)
    assert first.snapshot == f"{grown}@1" and re.fullmatch(rf"{grown}/sweeps/tiny-[0-9a-f]{{8}}", first.uri)
    snapshot.commit(grown, 2, storage.read_bytes(snapshot.manifest_uri(grown, 1)))
    again, _ = sweep.planned(wish(grown))
    other, _ = sweep.planned(wish(grown, seeds=(0,)))
    assert again == first and other.snapshot == f"{grown}@2" and other.uri != first.uri


def test_show_prints_the_command_of_a_trial_and_names_those_there_are(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(job.logs, "to_stderr", lambda: None)
    uri = str(tmp_path / "sweep")
    words = ["ae", "tiny", "--dataset", dataset, "--sweep", uri, "--vary", "loss.gan=0,0.5", "--seeds", "0", "1",
             "--loss.lpips", "0"]
    assert job.main([*words, "--show", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"python jobs/train_ae.py tiny --dataset {dataset}@1 --run {uri}/trials/003 ")
    assert "--loss.gan 0.5" in out and "--loop.seed 1" in out and "--loss.lpips 0" in out
    assert job.main([*words, "--show", "4"]) == 2
    assert "show=4: no such trial" in capsys.readouterr().err


@pytest.mark.parametrize(("workers", "cpus", "wished", "expected"), [
    (1, 2.0, 0, 2), (1, 8.0, 3, 3), (2, 7.0, 0, 3), (4, 4.0, 1, 1)])
def test_as_many_trials_run_at_once_as_have_room(workers, cpus, wished, expected):
    where = RunConfig(workers=workers, device="cpu")
    assert sweep.room(where, {"CPU": cpus}, wished) == expected
    with pytest.raises(ConfigError, match=rf"concurrent=99: the cluster has room for {int(cpus // workers)} trials"):
        sweep.room(where, {"CPU": cpus}, 99)
    with pytest.raises(ConfigError, match="workers=9: they need 9 CPU"):
        sweep.room(RunConfig(workers=9, device="cpu"), {"CPU": cpus}, 0)


def test_gpus_bound_how_many_trials_run_at_once(monkeypatch):
    assert sweep.room(RunConfig(workers=2, device="gpu"), {"CPU": 64, "GPU": 5}, 0) == 2
    monkeypatch.setenv("INFD_AUTOSCALING", "1")
    assert sweep.room(RunConfig(workers=2, device="gpu"), {"CPU": 1}, 6) == 6


# ---------------------------------------------------------------- what folders tell


def test_the_folder_of_a_trial_tells_its_fate(tmp_path):
    trials = plan(str(tmp_path), "loss.l1=1,2,3", seeds=(0, 1)).listed()
    save(trials[0], 10, STEPS, loss=0.5, best=10)
    save(trials[1], 10, loss=0.5)
    sweep_trials.end(trials[1], "stopped")
    save(trials[2], 5, loss=0.5)
    sweep_trials.end(trials[3], "failed", error="step 7: not finite")
    save(trials[4], 10, STEPS, loss=0.4)
    sweep_trials.end(trials[4], "failed", error="its process died")  # trained to its end by hand since
    fates = sweep_trials.fates(trials, "val/loss")
    assert [fate.state for fate in fates] == ["finished", "stopped", "unfinished", "failed", "finished", "unfinished"]
    assert [fate.step for fate in fates] == [20, 10, 5, 0, 20, 0]
    assert fates[0].figure == pytest.approx(0.49) and fates[0].last == pytest.approx(0.48)
    assert fates[3].error == "step 7: not finite" and not fates[4].error and fates[5].figure is None
    assert [fate.over for fate in fates] == [True, True, False, False, True, False]
    sweep_trials.begin(trials[3])
    assert sweep_trials.fate(trials[3], "val/loss").state == "unfinished"


def test_history_is_kept_by_step(tmp_path):
    (trial, *_) = plan(str(tmp_path)).listed()
    for step, value in ((10, 0.5), (20, 0.4), (10, 0.45)):
        sweep_trials.remember(trial, step, value)
    assert sweep_trials.history(trial) == [(10, 0.45), (20, 0.4)]


def test_a_figure_counts_at_the_steps_at_which_it_is_made():
    made = config()
    told = {"val/loss": 0.1, "train/loss": 0.2}
    assert [sweep_trials.judged(step, told, "val/loss", made) for step in (5, 10, 15, 20)] == [False, True, False, True]
    assert sweep_trials.judged(5, told, "train/loss", made) and not sweep_trials.judged(10, told, "val/psnr", made)
    evaluated = dataclasses.replace(made, evaluation=ReconstructionConfig(every=15, metrics=("psnr",)))
    found = [sweep_trials.judged(step, {"eval/psnr.256": 20.0}, "eval/psnr.256", evaluated) for step in (5, 10, 15, 20)]
    assert found == [False, False, True, True]


def test_error_a_metric_that_is_never_made_ends_its_trial_at_the_first_chance():
    from pipelines.sweep_tune import row_of

    made = dataclasses.replace(config(), evaluation=ReconstructionConfig(every=5, metrics=("psnr",)))
    told = {"val/loss": 0.1, "train/loss": 0.2}
    assert row_of(10, told, "val/loss", made) == {"step": 10, "val/loss": 0.1} and row_of(5, told, "val/loss", made) is None
    assert row_of(5, told, "val/psn", made) is None
    with pytest.raises(TrainingError, match="metric=val/psn: not among the figures of step 10 .train/loss, val/loss"):
        row_of(10, told, "val/psn", made)
    assert row_of(10, told, "eval/psnr.256", made) is None         # an evaluation that failed is no reason to end
    with pytest.raises(TrainingError, match="metric=eval/psnr.256: not among the figures of step 20"):
        row_of(20, told, "eval/psnr.256", made)


# ---------------------------------------------------------------- the summary


def summed(made: Plan, figures: list[float | None], states: list[str] | None = None) -> sweep_summary.Summary:
    fates = [sweep_trials.Fate(trial=trial, state=state, step=STEPS if state == "finished" else 5, figure=figure, last=figure,
                               checkpoint=f"{trial.run}/checkpoints/step-1", error="a | b" if state == "failed" else "")
             for trial, figure, state in zip(made.listed(), figures, states or ["finished"] * len(figures), strict=True)]
    return sweep_summary.summary(made, fates)


def test_the_summary_has_mean_and_spread_over_seeds_and_the_best(tmp_path):
    found = summed(plan(str(tmp_path)), [0.2, 0.4, 0.1, 0.7])
    assert [point.mean for point in found.points] == pytest.approx([0.3, 0.4])
    assert [point.spread for point in found.points] == pytest.approx([0.1 * 2**0.5, 0.3 * 2**0.5])
    assert found.best_point is found.points[0] and found.best_trial.trial.number == 2
    uri = sweep_summary.write(found)
    told = json.loads(Path(uri).read_text())
    assert told["best_point"] == 0 and told["best_trial"] == 2 and told["trials"][3]["values"] == {"loss.l1": 2.0}
    assert told["points"][1] | {"mean": 0, "spread": 0} == {
        "point": 1, "values": {"loss.l1": 2.0}, "trials": [2, 3], "counted": 2, "least": 0.1, "most": 0.7, "mean": 0,
        "spread": 0}
    assert all(told["trials"][number]["run"].endswith(f"trials/00{number}") for number in range(4))
    text = sweep_summary.text(found)
    assert re.search(r"^1 +2/2 +0.3 +0.1414 +0.2 +0.4 +best$", text, re.M) and re.search(r"^002 +finished +20/20", text, re.M)


def test_more_is_better_where_the_metric_says_so(tmp_path):
    found = summed(plan(str(tmp_path), metric="val/psnr"), [20, 22, 25, 21])
    assert found.best_point is found.points[1] and found.best_trial.trial.number == 2


def test_trials_that_were_ended_early_do_not_win_against_whole_ones(tmp_path):
    found = summed(plan(str(tmp_path)), [0.5, 0.6, 0.1, 0.1], ["finished", "finished", "stopped", "stopped"])
    assert found.best_point is found.points[0] and found.best_trial.trial.number == 0
    failed = summed(plan(str(tmp_path)), [0.5, None, None, None], ["finished", "failed", "failed", "unfinished"])
    assert [point.counted for point in failed.points] == [1, 0] and failed.points[0].spread is None
    assert [fate.trial.number for fate in failed.failed] == [1, 2] and [f.trial.number for f in failed.unfinished] == [3]
    page = sweep_summary.markdown(failed)
    assert "- trial 001: a \\| b" in page and "| 002 | failed | 5/20 | - | - | 0 | loss.l1=2 |" in page


def test_the_live_table_fits_its_terminal_and_keeps_what_runs(tmp_path):
    made = plan(str(tmp_path), "loss.l1=1,2,3,4,5,6,7,8")
    trials = made.listed()
    table = Table([], metric="val/loss", total=made.count)
    for trial in trials[:12]:
        table.starts(trial)
        if trial.number not in (3, 11):
            table.ends(sweep_trials.Fate(trial=trial, state="finished", step=STEPS, figure=0.25))
    table.show({3: (15, {"train/loss": 0.5}), 11: (5, {})})
    lines = table.text(60, 8).split("\n")
    assert len(lines) == 7 and all(len(line) < 60 for line in lines)
    assert any(re.match(r"003 +running +15/20 +0.5 +-", line) for line in lines)
    assert any(line.startswith("011") for line in lines)
    assert lines[-1] == "2 running, 10 finished, 4 to come; 7 not shown"
    assert [line[:3] for line in table.text(60, 5).split("\n")[1:3]] == ["003", "011"]


class Terminal(io.StringIO):
    """What a terminal shows of what is written: cursor up and to the line's start, clear to the end, lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = [""]

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for up, line, end in re.findall(r"\x1b\[(\d+)F\x1b\[J|([^\n\x1b]+)|(\n)", text):
            if up:
                self.lines = [*self.lines[:len(self.lines) - 1 - int(up)], ""]
            elif end:
                self.lines.append("")
            else:
                self.lines[-1] += line
        return len(text)


def test_the_live_table_is_drawn_over_itself_and_leaves_lines_of_the_log_above(tmp_path):
    made = plan(str(tmp_path))
    trials, terminal = made.listed(), Terminal()
    table = Table([], metric="val/loss", total=made.count, stream=terminal)
    log = logging.Logger("of its own")
    log.addHandler(logging.StreamHandler(terminal))
    with table.below_the_log(log):
        table.starts(trials[0])
        table.show({})
        table.starts(trials[1])
        table.show({0: (5, {"train/loss": 0.5})})
        log.warning("a server fails")
        table.ends(sweep_trials.Fate(trial=trials[0], state="finished", step=STEPS, figure=0.25))
        table.show({})
    assert terminal.lines[0] == "a server fails" and len(terminal.lines) == 6 and not terminal.lines[-1]
    assert re.match(r"000 +finished +20/20 +- +0.25 +loss.l1=1 seed=0", terminal.lines[2])
    assert terminal.lines[4] == "1 running, 1 finished, 2 to come"


# ---------------------------------------------------------------- the report


def begun(trial, **figures: float) -> None:
    """A trial that has ended, with the figures of its last step."""
    metrics = {"val/loss": 1.0, "train/loss": 1.0, **figures}
    checkpoint.save(checkpoint.step_uri(trial.run, trial.steps), model={}, train_state={}, meta={
        "step": trial.steps, "config": flat(trial.config), "metrics": metrics})
    for pointer in checkpoint.POINTERS:
        checkpoint.point(trial.run, pointer, trial.steps)
    record = {"preset": "tiny", "config": flat(trial.config), "snapshot": "s3://b/data@1"}
    storage.put_atomic(f"{trial.run}/run.json", json.dumps(record).encode())


def test_the_report_shows_the_trials_side_by_side_with_mean_and_spread(tmp_path):
    made = plan(str(tmp_path), "loss.gan=0,0.5")
    trials = made.listed()
    nothing = sweep.reported(sweep_summary.summary(made, sweep_trials.fates(trials, "val/loss")))
    assert not nothing.page and not (tmp_path / "report").exists()
    for trial, loss in zip(trials, (0.5, 0.6, 0.4, 0.9), strict=True):
        begun(trial, **{"val/loss": loss})
    found = sweep.reported(sweep_summary.summary(made, sweep_trials.fates(trials, "val/loss")))
    assert sweep_summary.text(found).endswith(f"report {tmp_path}/report/report.html")
    page, tree = Path(found.page).read_text(), json.loads((tmp_path / "report" / "report.json").read_text())
    assert [row["address"] for row in tree["rows"]] == [trial.run for trial in trials]
    assert [row["name"] for row in tree["rows"]] == ["000: gan=0, seed 0", "001: gan=0, seed 1", "002: gan=0.5, seed 0",
                                                     "003: gan=0.5, seed 1"]
    assert "gan=0: mean ± standard deviation of 2 seeds" in page and "0.5500 ± 0.071" in page
    assert "gan=0.5: mean ± standard deviation of 2 seeds" in page and "0.6500 ± 0.35" in page
    assert tree["verdict"] == [
        "gan=0 is best: val/loss 0.55 ± 0.071 (2 seeds), against 0.65 ± 0.35 (2 seeds) of gan=0.5, which is within twice the "
        "spread over seeds.", f"Of the trials 002 is best, with 0.4: {checkpoint.step_uri(trials[2].run, STEPS)}."]


def test_the_report_says_what_did_not_come_to_its_end_and_how_sure_it_is(tmp_path):
    found = summed(plan(str(tmp_path), seeds=(0,)), [0.5, 0.4])
    assert sweep_report.verdict(found)[0] == ("l1=2 is best: val/loss 0.4 (1 seed), against 0.5 (1 seed) of l1=1; with one "
                                              "seed the difference may be chance.")
    sure = summed(plan(str(tmp_path)), [0.51, 0.5, 0.21, 0.2])
    assert sweep_report.verdict(sure)[0].endswith("(2 seeds) of l1=1.")
    found = summed(plan(str(tmp_path)), [0.5, None, 0.1, 0.1], ["finished", "failed", "stopped", "stopped"])
    assert sweep_report.verdict(found)[-2:] == ["2 of 4 trials were ended early; their figures are of fewer steps.",
                                                "Trial 001 (l1=1, seed 1) failed: a | b"]
    made = plan(str(tmp_path), "model.quantizer=kl", "loss.quantizer=1e-6,1e-5", "loss.gan=0")
    assert sweep_report.short(made.listed()[2].values, made) == "model.quantizer=kl loss.quantizer=1e-05 gan=0"


# ---------------------------------------------------------------- searches


def optuna_run(made: Plan, figure, *, past=(), limit: int = 1000) -> list:
    """Trials in the order in which they were chosen, each over at once."""
    supply, fates = Optuna(made, past), []
    while len(fates) < limit and (trial := supply.next()) is not None:
        fates.append(sweep_trials.Fate(trial=trial, state="finished", step=STEPS, figure=figure(trial)))
        supply.over(fates[-1])
    return fates


def bowl(trial) -> float:
    kind = {"kl": 0.0, "fsq": 1.0}[trial.values["model.quantizer"]]
    return (trial.values["loss.gan"] - 0.3) ** 2 + kind + 0.01 * trial.seed


OPTUNA = ("loss.gan=0..1", "model.quantizer=kl,fsq")


def test_optuna_learns_and_gives_each_point_to_every_seed(tmp_path):
    made = plan(str(tmp_path), *OPTUNA, search="optuna", samples=30)
    fates = optuna_run(made, bowl)
    assert [fate.trial.number for fate in fates] == list(range(60))
    assert [fate.trial.seed for fate in fates[:4]] == [0, 1, 0, 1] and fates[0].trial.values == fates[1].trial.values
    late = [fate.figure for fate in fates[40:]]
    assert sum(late) / len(late) < sum(fate.figure for fate in fates[:20]) / 20 / 2


def test_law_optuna_goes_on_as_if_it_had_not_been_interrupted(tmp_path):
    made = plan(str(tmp_path), *OPTUNA, search="optuna", samples=16)
    whole = optuna_run(made, bowl)
    for cut in (8, 20, 30):
        rest = optuna_run(made, bowl, past=whole[:cut])
        assert [fate.trial for fate in rest] == [fate.trial for fate in whole[cut:]]
    half = [*whole[:9], dataclasses.replace(whole[9], state="unfinished")]
    assert Optuna(made, half).next() == whole[9].trial              # what had begun goes on before anything new


def test_optuna_counts_a_point_whose_trials_failed_and_passes_over_what_does_not_go_together(tmp_path):
    made = plan(str(tmp_path), "model.z_dim=3,4", "model.quantizer=kl,fsq", seeds=(0,), search="optuna", samples=12)
    supply = Optuna(made, [])
    for _ in range(12):
        trial = supply.next()
        assert (trial.values["model.z_dim"], trial.values["model.quantizer"]) != (3, "fsq")
        supply.over(sweep_trials.Fate(trial=trial, state="failed"))
    assert supply.next() is None


def decisions(made: Plan, rows: list[tuple[int, int, float]], *, from_row: int = 0, scheduler=None) -> list[str]:
    """What the scheduler says of (trial, step, figure) rows from `from_row` on."""
    from pipelines.sweep_tune import scheduler_of

    chosen = scheduler or scheduler_of(made)
    added, said = set(), []
    for number, step, value in rows[from_row:]:
        tune_trial = SimpleNamespace(trial_id=f"t{number}", config={"number": number})
        if number not in added:
            chosen.on_trial_add(None, tune_trial)
            added.add(number)
        said.append(chosen.on_trial_result(None, tune_trial, {"step": step, made.sweep.metric: value}))
    return said


ROWS = [(0, 10, 0.5), (1, 10, 0.4), (0, 20, 0.3), (1, 20, 0.2), (2, 10, 0.6), (3, 10, 0.55), (4, 10, 0.1), (5, 10, 0.45)]


def test_asha_ends_what_is_worse_than_most_and_nothing_at_its_last_step(tmp_path):
    made = plan(str(tmp_path), "loss.l1=1,2,3", scheduler="asha", reduction=2)
    said = decisions(made, ROWS)
    assert said[:5] == ["CONTINUE", "CONTINUE", "CONTINUE", "CONTINUE", "STOP"]
    assert said[5:] == ["STOP", "CONTINUE", "CONTINUE"]


def test_law_asha_goes_on_with_the_rungs_it_had(tmp_path):
    made = plan(str(tmp_path), "loss.l1=1,2,3", scheduler="asha", reduction=2)
    whole, trials = decisions(made, ROWS), made.listed()
    for number, step, value in ROWS[:5]:
        sweep_trials.remember(trials[number], step, value)
    for number in (0, 1):
        save(trials[number], STEPS, loss=0.5)
    sweep_trials.end(trials[2], "stopped")
    assert decisions(made, ROWS, from_row=5) == whole[5:]


# ---------------------------------------------------------------- on Ray


def processes(stack, *names: str) -> list[psutil.Process]:
    """Those of this stack's Ray whose title has one of `names`."""
    from infra.processes import MARKER

    mark = psutil.Process(stack.services["ray"].pid).environ()[MARKER]
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if any(name in " ".join(process.info["cmdline"] or []) for name in names) and process.environ().get(MARKER) == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


TRAINING = ("ray::RayTrainWorker", "ray::TrainController", "ray::ImplicitFunc", "ray::trial_function", "ray::Board")


def command(dataset: str, uri: str, values: str) -> list[str]:
    loop = {"steps": STEPS, "log-every": 5, "checkpoint-every": 5, "validate-every": 10, "keep-every": 5, "validate-samples": 4,
            "preview-every": 1000, "preview-photos": 1, "preview-px": 128}
    return ["python", "jobs/sweep.py", "ae", "tiny", "--dataset", dataset, "--sweep", uri, "--device", "cpu",
            "--seeds", "0", "1", "--vary", f"loss.quantizer={values}", "--loss.lpips", "0", "--loss.gan", "0",
            "--crop.r-max", "256",
            *(word for name, value in loop.items() for word in (f"--loop.{name}", str(value)))]


def written(stack, uri: str) -> dict[str, object]:
    """Time of the last write of every object below `uri`, but for leases and what Ray keeps."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    pages = s3_client(stack.env).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    entries = [entry for page in pages for entry in page.get("Contents", [])]
    return {entry["Key"].removeprefix(f"{prefix}/"): entry["LastModified"] for entry in entries
            if "/ray/" not in entry["Key"] and not entry["Key"].endswith("driver.json")}


def last(uri: str, number: int) -> int:
    """The newest step of a trial."""
    return checkpoint.pointed(f"{uri}/trials/{number:03d}", "last") or 0


@pytest.mark.long
@pytest.mark.parametrize(("values", "concurrent", "count"), [("1e-6", "1", 2), ("1e-6,1e-4", "0", 4)])
def test_job_a_killed_sweep_goes_on_and_ends_in_a_table(stack, bucket, capfd, caplog, monkeypatch, values, concurrent, count):
    """Two seeds. The driver alone is killed, when a trial is over and another is on its way: all ends with it."""
    monkeypatch.setattr(job.logs, "to_stderr", lambda: caplog.set_level(logging.INFO))
    dataset, uri = write_photos(f"{bucket}/data"), f"{bucket}/sweep"
    words = [*command(dataset, uri, values), "--concurrent", concurrent]
    driver = subprocess.Popen([sys.executable, "-m", "jobs.sweep", *words[2:]])

    def midway() -> bool:
        time.sleep(0.5)                                              # the cores are for the trials
        steps = [last(uri, number) for number in range(count)]
        assert driver.poll() is None, "it has ended"
        return STEPS in steps and any(0 < step <= STEPS // 2 for step in steps)

    until(midway, limit_s=400)
    driver.kill()
    driver.wait()
    until(lambda: not processes(stack, *TRAINING))
    for lease in [info.uri for info in storage.list_objects(uri) if info.uri.endswith("/driver.json")]:
        storage.delete(lease)                                        # stale; to wait for that is tested with leases
    before = written(stack, uri)
    steps = {number: last(uri, number) for number in range(count)}
    assert not storage.exists(f"{uri}/sweep.json") and any(0 < step < STEPS for step in steps.values())

    capfd.readouterr()
    assert job.main(words[2:]) == 0
    out, log = capfd.readouterr().out, caplog.text
    assert re.search(r"loss.quantizer +seeds +mean val/loss +spread", out) and "best trial" in out
    assert f"report {uri}/report/report.html" in out and " ± " in storage.read_bytes(f"{uri}/report/report.html").decode()
    told = json.loads(storage.read_bytes(f"{uri}/sweep.json"))
    assert [trial["state"] for trial in told["trials"]] == ["finished"] * count
    assert [point["counted"] for point in told["points"]] == [2] * (count // 2)
    assert all(point["spread"] > 0 for point in told["points"])
    after = written(stack, uri)
    for number, step in steps.items():
        kept = [key for key in before if re.match(rf"trials/{number:03d}/checkpoints/step-", key)
                and key.endswith("complete.json") and int(re.findall(r"step-(\d+)", key)[0]) <= step]
        assert len(kept) == step // 5 and all(after[key] == before[key] for key in kept)        # none was trained again
        if step == STEPS:
            assert not re.search(rf"trial {number:03d} .*: started", log)
        elif step:
            assert re.search(rf"trial {number:03d} .*: started, going on from step {step}", log)
    assert_nested(uri, count)
    assert_nothing_is_left_to_do(uri, words, capfd)


def assert_nested(uri: str, count: int) -> None:
    """One MLflow run of the sweep, finished, and below it one of each trial."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    parent = client.get_run(json.loads(storage.read_bytes(f"{uri}/mlflow.json"))["run_id"])
    children = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {"report.html", "sweep.md"}
    assert parent.data.tags["best_point"].startswith("loss.quantizer=") and parent.data.metrics["val/loss.spread"] > 0
    assert parent.info.status == "FINISHED" and {child.info.status for child in children} == {"FINISHED"}
    assert sorted(child.info.run_name for child in children) == [f"sweep-00{number}" for number in range(count)]
    assert {child.data.params["loop.seed"] for child in children} == {"0", "1"}


def assert_nothing_is_left_to_do(uri: str, words: list[str], capfd) -> None:
    """The same command once more needs no cluster; the command of a trial, run as printed, finds its run finished."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "connect", lambda *_, **__: pytest.fail("a cluster was asked for"))
        patch.setattr(sweep, "connect", lambda *_, **__: pytest.fail("a cluster was asked for"))
        patch.setattr(train_ae.logs, "to_stderr", lambda: None)
        assert job.main(words[2:]) == 0
        capfd.readouterr()
        assert job.main([*words[2:], "--show", "1"]) == 0
        by_hand = shlex.split(capfd.readouterr().out)
        assert by_hand[:2] == ["python", "jobs/train_ae.py"] and train_ae.main(by_hand[2:]) == 0
    assert capfd.readouterr().out.strip() == checkpoint.step_uri(f"{uri}/trials/001", STEPS)


@pytest.mark.slow
def test_a_trial_that_fails_and_one_that_is_ended_early_leave_nothing(stack, bucket):
    """One has ended well before; a rate at which nothing is learned, which ASHA ends; one that is not finite."""
    import ray

    dataset, uri = write_photos(f"{bucket}/data"), f"{bucket}/sweep"
    asked = wish(dataset, uri, "optimizer.lr=2e-3,1e-12,1e30", seeds=(0,), scheduler="asha", reduction=2,
                 loop={"steps": 40, "checkpoint_every": 10})
    good = sweep.planned(asked)[0].listed()[0]
    begun(good, **{"val/loss": 0.01})
    sweep_trials.remember(good, 10, 0.02)
    with cluster.connect(env=train.worker_env()):
        found = sweep.run_sweep(asked)
        until(lambda: not processes(stack, *TRAINING))
        until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])
    assert [fate.state for fate in found.fates] == ["finished", "stopped", "failed"]
    assert 10 <= found.fates[1].step < 40 and "a loss or a weight is not finite" in found.fates[2].error
    assert "a loss or a weight is not finite" in sweep_summary.text(found) and found.best_trial.trial.number == 0
    assert sweep_trials.history(found.fates[1].trial)[0][0] == 10
    assert not [info.uri for info in storage.list_objects(f"{uri}/ray")]


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_of_stage_two_on_ray(stack, bucket):
    dataset, uri = write_photos(f"{bucket}/data"), f"{bucket}/sweep"
    latents = encoded_latents(dataset, f"{bucket}/autoencoder", f"{bucket}/latents")
    asked = wish_ldm(latents, "diffusion.objective=eps,flow", uri=uri, seeds=(0, 1), steps=8, log_every=2, checkpoint_every=4,
                     validate_every=4, validate_samples=4, preview_every=1000)
    with cluster.connect(env=train.worker_env()):
        found = sweep.run_sweep(asked)
    assert [fate.state for fate in found.fates] == ["finished"] * 4 and all(point.spread for point in found.points)
    trained = checkpoint.load(found.fates[3].checkpoint)
    assert trained.meta["config"]["diffusion.objective"] == "flow" and trained.meta["latents"]["address"] == latents
    page = storage.read_bytes(found.page).decode()
    assert "diffusion.objective" in page
