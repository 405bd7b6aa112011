"""Every job: quick help, a mention in the README, dry runs of all presets, and reconstruction of a photograph."""

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infd import checkpoint
from infd.config_form import flat
from infd.models.autoencoder import Autoencoder
from infd.presets import AUTOENCODER, tiny
from jobs import reconstruct, train_ae

ROOT = Path(__file__).parents[2]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__")

HELP = """
import sys
from jobs import {job}
try:
    {job}.main(["--help"])
except SystemExit as end:
    assert not end.code, end.code
print("LOADED", [name for name in ("torch", "ray", "mlflow", "pyarrow", "diffusers") if name in sys.modules])
"""


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_job_help_is_whole_and_loads_nothing_heavy(job):
    done = subprocess.run([sys.executable, "-c", HELP.format(job=job)], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "usage:" in done.stdout and done.stdout.strip().endswith("LOADED []")


@pytest.mark.parametrize("job", JOBS)
def test_every_job_is_in_the_readme(job):
    text = (ROOT / "README.md").read_text()
    assert f"jobs/{job}.py" in text or f"make {job}" in text


@pytest.mark.slow
@pytest.mark.parametrize("preset", AUTOENCODER)
def test_job_dry_run_prints_config_parameters_and_memory(preset, capsys):
    assert train_ae.main([preset, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"loop.steps = {AUTOENCODER[preset]().loop.steps}" in out
    assert "encoder" in out and "parameters" in out and "activations" in out


@pytest.mark.slow
def test_job_dry_run_of_the_paper_has_its_parameters(capsys):
    train_ae.main(["ffhq_1024", "--dry-run"])
    out = capsys.readouterr().out
    assert all(count in out for count in ("22,337,423", "24,576", "32,957,068", "2,674,179", "2,765,633"))


def test_error_train_without_dataset_and_with_an_impossible_batch(capsys):
    assert train_ae.main(["tiny"]) == 2
    assert "dataset: missing; give --dataset" in capsys.readouterr().err
    assert train_ae.main(["tiny", "--crop.r-min", "10"]) == 2
    assert capsys.readouterr().err == "train_ae: crop.r_min=10: must be at least patch_px=48\n"


@pytest.mark.parametrize(("argv", "message"), [
    (["tiny", "--dry-run", "--workers", "3"], "batch"),
    (["tiny", "--dry-run", "--loop.accumulate", "3"], "loop.accumulate=3: must divide a worker's share of the batch, 4"),
    (["tiny", "--dry-run", "--workers", "2", "--loop.accumulate", "4"], "must divide a worker's share of the batch, 2")])
def test_error_a_batch_that_cannot_be_shared(argv, message, capsys):
    assert train_ae.main(argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_job_reconstruct_writes_a_render_of_each_size(tmp_path, capsys):
    config = tiny()
    torch.manual_seed(0)
    weights = {f"autoencoder.{name}": value for name, value in Autoencoder(config.model).state_dict().items()}
    uri = str(tmp_path / "checkpoint")
    checkpoint.save(uri, model=weights, train_state={}, meta={"step": 1, "config": flat(config)})
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(buffer, "PNG")
    (tmp_path / "a photo.png").write_bytes(buffer.getvalue())

    code = reconstruct.main([uri, str(tmp_path / "a photo.png"), "--sizes", "40", "72", "--out", str(tmp_path / "out")])
    assert code == 0
    written = capsys.readouterr().out.split("\n")[:-1]
    assert [Path(path).name for path in written] == ["a photo-40.png", "a photo-72.png", "sheet.png"]
    assert [Image.open(path).size for path in written[:2]] == [(40, 40), (72, 72)]


def test_error_reconstruct_names_what_is_missing(tmp_path, capsys):
    assert reconstruct.main([str(tmp_path / "none"), "photo.png"]) == 1
    assert "no complete.json" in capsys.readouterr().err


def test_config_fields_all_have_help():
    """tyro prints the line under a field; a field without one would leave a hole."""
    import ast

    tree = ast.parse((ROOT / "infd" / "config.py").read_text())
    for node in [node for node in tree.body if isinstance(node, ast.ClassDef)]:
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert documented, f"{node.name}.{ast.unparse(field.target)}"
    assert dataclasses.is_dataclass(tiny())
