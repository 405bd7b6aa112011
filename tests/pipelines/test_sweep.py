"""Sweeps: what is refused before anything starts, what folders tell of trials, the searches; on Ray in a file of their own."""

import dataclasses
import io
import json
import logging
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_sweeps import STEPS, begun, config, encoded_latents, plan, save, summed, wish, wish_ldm, write_photos

from infd import checkpoint, storage
from infd.config import LatentRunConfig, ReconstructionConfig, RunConfig, SamplesConfig
from infd.data import snapshot
from infd.errors import CheckpointError, ConfigError, TrainingError, WeightsError
from infd.presets import ldm_tiny
from jobs import sweep as job
from pipelines import sweep, sweep_report, sweep_summary, sweep_trials
from pipelines.sweep_plan import Plan
from pipelines.sweep_supply import Optuna
from pipelines.sweep_table import Table


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    return write_photos(str(tmp_path_factory.mktemp("sweep") / "data"))


@pytest.fixture(scope="module")
def latents(dataset, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("latents")
    return encoded_latents(dataset, str(folder / "autoencoder"), str(folder / "made"))


# ---------------------------------------------------------------- before it starts


def judging(asked: sweep.Wish, metric: str, evaluation) -> sweep.Wish:
    """The same sweep, whose trials evaluate, ranked by that metric."""
    return dataclasses.replace(asked, config=dataclasses.replace(asked.config, evaluation=evaluation),
                               sweep=dataclasses.replace(asked.sweep, metric=metric))


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
        (wish(dataset, uri, metric="val/psnrr"), "metric=val/psnrr: no trial makes it; did you mean val/psnr"),
        (wish(dataset, uri, metric="val/lpips_r_to_256"), "metric=val/lpips_r_to_256: no trial makes it; there are|did you"),
        (wish(dataset, uri, metric="eval/psnr.256"), r"metric=eval/psnr.256: trial 0 .* makes none; .*--evaluation.every"),
        (judging(wish(dataset, uri, loop={"validate_every": 20}), "val/loss", ReconstructionConfig(every=10)),
         r"metric=val/loss: trial 0 .* evaluations, every 10 steps, and validates every 20; make evaluation.every a multiple"),
        (judging(wish(dataset, uri), "eval/lpips_vgg.256", ReconstructionConfig(every=10)),
         r"metric=eval/lpips_vgg.256: trial 0 .* needs the weights lpips-vgg, which are not at hand; run python jobs")]
    monkeypatch.setenv("INFD_WEIGHTS", str(tmp_path / "no-weights"))
    for case, message in cases:
        with pytest.raises((ConfigError, WeightsError), match=message):
            sweep.run_sweep(case)
    assert not storage.exists(f"{uri}/plan.json")


def test_a_sweep_of_stage_two_reads_pinned_latents_and_is_refused_where_they_do_not_fit(
        dataset, latents, tmp_path, monkeypatch):
    made, manifest = sweep.planned(wish_ldm(latents, "diffusion.objective=eps,flow"))
    assert made.snapshot == f"{dataset}@1" and (made.latents or {})["address"] == latents
    assert re.fullmatch(rf"{dataset}/sweeps/ldm-tiny-[0-9a-f]{{8}}", made.uri)
    sweep.check(made, LatentRunConfig(latents=latents), manifest)
    monkeypatch.setenv("INFD_WEIGHTS", str(tmp_path / "no-weights"))
    judged = SamplesConfig(every=300, side=64)
    for asked, message in ((wish_ldm(latents, "model.z_dim=4,8"), r"trial 1 \(model.z_dim=8 seed=0\): .* latents .* have 4"),
                           (judging(wish_ldm(latents), "eval/kid_256", judged),
                            "metric=eval/kid_256: no trial makes it; did you mean eval/kid_64"),
                           (judging(wish_ldm(latents), "eval/kid_64", judged), "needs the weights inception-fid"),
                           (wish_ldm(""), "latents: missing")):
        with pytest.raises((ConfigError, WeightsError), match=message):
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


def test_another_metric_ranks_a_sweep_that_is_there_and_trains_nothing(dataset, tmp_path, monkeypatch):
    asked = wish(dataset, str(tmp_path / "sweep"), "loss.quantizer=1,2", seeds=(0,))
    made = sweep.opened(sweep.planned(asked)[0])
    for trial, loss, psnr in zip(made.listed(), (0.1, 0.2), (20.0, 22.0), strict=True):
        begun(trial, **{"val/loss": loss, "val/psnr": psnr})
    monkeypatch.setattr(sweep, "run_trials", lambda *_: pytest.fail("a trial was trained"))
    by_loss = sweep.run_sweep(asked)
    by_psnr = sweep.run_sweep(wish(dataset, made.uri, "loss.quantizer=1,2", seeds=(0,), metric="val/psnr"))
    assert by_loss.best_trial.trial.number == 0 and by_psnr.best_trial.trial.number == 1
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["metric"] == "val/psnr"
    with pytest.raises(ConfigError, match="metric=train/los: none of the 2 trials .*; expected one of train/loss, val/loss"):
        sweep.run_sweep(wish(dataset, made.uri, "loss.quantizer=1,2", seeds=(0,), metric="train/los"))
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["metric"] == "val/psnr"


def test_law_the_metric_is_part_of_what_a_sweep_is_where_it_steers_it(dataset, tmp_path):
    def address(**options) -> str:
        return sweep.planned(wish(dataset, "", "loss.quantizer=1,2", **options))[0].uri

    assert address() == address(metric="val/psnr", mode="max") == address(metric="eval/psnr.256")
    assert address(scheduler="asha") != address(scheduler="asha", metric="val/psnr")
    uri = str(tmp_path / "sweep")
    sweep.opened(sweep.planned(wish(dataset, uri, scheduler="asha"))[0])
    with pytest.raises(CheckpointError, match="metric was val/loss and is val/psnr"):
        sweep.run_sweep(wish(dataset, uri, scheduler="asha", metric="val/psnr"))


# ---------------------------------------------------------------- asked to stop


def as_ray(*_: object) -> None:
    """What Ray does with SIGTERM when it connects."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))


@pytest.mark.parametrize(("number", "code", "said"), [
    (signal.SIGTERM, 143, "asked to stop; its trials keep their checkpoints; the same command goes on"),
    (signal.SIGINT, 130, "stopped; the same command goes on: trials that are over stay")])
@pytest.mark.parametrize("moment", ["connecting", "training", "reporting"])
def test_job_that_is_asked_to_stop_gives_its_lease_back_and_says_what_to_do(
        dataset, tmp_path, monkeypatch, capsys, number, code, said, moment):
    monkeypatch.setattr(job.logs, "to_stderr", lambda: None)
    before, cleaned = signal.getsignal(signal.SIGTERM), []

    def trials(plan, wish, fates, listen) -> None:
        assert Path(plan.uri, "driver.json").exists()
        if moment != "connecting":
            as_ray()
            listen()
        if moment == "reporting":
            return
        try:
            signal.raise_signal(number)
        finally:
            if number == signal.SIGTERM:                                # launchers send several
                signal.raise_signal(number)
            cleaned.append(moment)

    def reported(found):
        signal.raise_signal(number)

    monkeypatch.setattr(sweep, "run_trials", trials)
    monkeypatch.setattr(sweep, "reported", reported)
    uri = str(tmp_path / "sweep")
    assert job.main(["ae", "tiny", "--dataset", dataset, "--sweep", uri, "--loss.lpips", "0"]) == code
    assert said in capsys.readouterr().err and signal.getsignal(signal.SIGTERM) is before
    assert Path(uri, "plan.json").exists() and not Path(uri, "driver.json").exists()
    assert cleaned == [moment] * (moment != "reporting")


def test_job_takes_sigterm_as_ray_has_it_while_it_connects(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job.logs, "to_stderr", lambda: None)
    monkeypatch.setattr(sweep, "run_trials", lambda *_: (as_ray(), signal.raise_signal(signal.SIGTERM)))
    words = ["ae", "tiny", "--dataset", dataset, "--sweep", str(tmp_path / "sweep"), "--loss.lpips", "0"]
    assert job.main(words) == 143 and "asked to stop" in capsys.readouterr().err


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
    trials = plan(str(tmp_path), "loss.quantizer=1,2,3", seeds=(0, 1)).listed()
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


def test_the_summary_has_mean_and_spread_over_seeds_and_the_best(tmp_path):
    found = summed(plan(str(tmp_path)), [0.2, 0.4, 0.1, 0.7])
    assert [point.mean for point in found.points] == pytest.approx([0.3, 0.4])
    assert [point.spread for point in found.points] == pytest.approx([0.1 * 2**0.5, 0.3 * 2**0.5])
    assert found.best_point is found.points[0] and found.best_trial.trial.number == 2
    uri = sweep_summary.write(found)
    told = json.loads(Path(uri).read_text())
    assert told["best_point"] == 0 and told["best_trial"] == 2 and told["trials"][3]["values"] == {"loss.quantizer": 2.0}
    assert told["points"][1] | {"mean": 0, "spread": 0} == {
        "point": 1, "values": {"loss.quantizer": 2.0}, "trials": [2, 3], "counted": 2, "least": 0.1, "most": 0.7, "mean": 0,
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
    assert "- trial 001: a \\| b" in page and "| 002 | failed | 5/20 | - | - | 0 | loss.quantizer=2 |" in page


def test_the_live_table_fits_its_terminal_and_keeps_what_runs(tmp_path):
    made = plan(str(tmp_path), "loss.quantizer=1,2,3,4,5,6,7,8")
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
    assert re.match(r"000 +finished +20/20 +- +0.25 +loss.quantizer=1 seed=0", terminal.lines[2])
    assert terminal.lines[4] == "1 running, 1 finished, 2 to come"


# ---------------------------------------------------------------- the report


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
    assert sweep_report.verdict(found)[0] == (
        "quantizer=2 is best: val/loss 0.4 (1 seed), against 0.5 (1 seed) of quantizer=1; with one seed the difference may be "
        "chance.")
    sure = summed(plan(str(tmp_path)), [0.51, 0.5, 0.21, 0.2])
    assert sweep_report.verdict(sure)[0].endswith("(2 seeds) of quantizer=1.")
    found = summed(plan(str(tmp_path)), [0.5, None, 0.1, 0.1], ["finished", "failed", "stopped", "stopped"])
    assert sweep_report.verdict(found)[-2:] == ["2 of 4 trials were ended early; their figures are of fewer steps.",
                                                "Trial 001 (quantizer=1, seed 1) failed: a | b"]
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
    made = plan(str(tmp_path), "loss.quantizer=1,2,3", scheduler="asha", reduction=2)
    said = decisions(made, ROWS)
    assert said[:5] == ["CONTINUE", "CONTINUE", "CONTINUE", "CONTINUE", "STOP"]
    assert said[5:] == ["STOP", "CONTINUE", "CONTINUE"]


def test_law_asha_goes_on_with_the_rungs_it_had(tmp_path):
    made = plan(str(tmp_path), "loss.quantizer=1,2,3", scheduler="asha", reduction=2)
    whole, trials = decisions(made, ROWS), made.listed()
    for number, step, value in ROWS[:5]:
        sweep_trials.remember(trials[number], step, value)
    for number in (0, 1):
        save(trials[number], STEPS, loss=0.5)
    sweep_trials.end(trials[2], "stopped")
    assert decisions(made, ROWS, from_row=5) == whole[5:]


def test_law_asha_knows_the_rungs_of_trials_that_wait_to_go_on(tmp_path):
    """Four ran at once; the sweep goes on one by one: the first is judged among the others, as it would have been."""
    made = plan(str(tmp_path), "loss.quantizer=1,2,3", scheduler="asha", reduction=2)
    whole, trials = decisions(made, ROWS), made.listed()
    for number, step, value in ROWS[:6]:
        sweep_trials.remember(trials[number], step, value)
    again = decisions(made, ROWS, from_row=6)
    assert again == whole[6:] and again != decisions(plan(str(tmp_path / "b"), "loss.quantizer=1,2,3", scheduler="asha",
                                                          reduction=2), ROWS, from_row=6)
