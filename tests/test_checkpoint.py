"""Checkpoints are whole or do not exist."""

import json
from pathlib import Path

import pytest
import torch

from infd import checkpoint, storage
from infd.errors import CheckpointError

WEIGHTS = {"autoencoder.a": torch.arange(6.0).reshape(2, 3), "discriminator.b": torch.tensor(3)}
MOMENTS = {"autoencoder.a.exp_avg": torch.ones(2, 3)}


def save(run: str, step: int) -> str:
    uri = checkpoint.step_uri(run, step)
    checkpoint.save(uri, model=WEIGHTS, train_state=MOMENTS, meta={"step": step})
    return uri


def test_law_what_was_saved_is_loaded(tmp_path):
    found = checkpoint.load(save(str(tmp_path), 5))
    assert found.step == 5
    for name, tensor in found.model().items():
        torch.testing.assert_close(tensor, WEIGHTS[name], rtol=0, atol=0)
    assert list(found.model("discriminator.")) == ["b"]
    torch.testing.assert_close(found.train_state()["autoencoder.a.exp_avg"], MOMENTS["autoencoder.a.exp_avg"])


@pytest.mark.parametrize("writes", range(4))
def test_law_a_save_killed_at_any_write_leaves_nothing_to_load(tmp_path, monkeypatch, writes):
    put, done = storage.put_atomic, []

    def dies(uri: str, data: bytes) -> None:
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(uri)
        put(uri, data)

    monkeypatch.setattr(storage, "put_atomic", dies)
    with pytest.raises(KeyboardInterrupt):
        save(str(tmp_path), 5)
    monkeypatch.undo()
    assert checkpoint.steps(str(tmp_path)) == []
    with pytest.raises(CheckpointError, match="no complete.json"):
        checkpoint.load(checkpoint.step_uri(str(tmp_path), 5))


def test_pointers_and_pruning_keep_last_best_and_every_kth(tmp_path):
    run = str(tmp_path)
    assert checkpoint.newest(run) is None
    for step in (10, 20, 25, 30, 40, 50):
        save(run, step)
    checkpoint.point(run, "last", 50)
    checkpoint.point(run, "best", 10)
    checkpoint.prune(run, keep_every=20)
    assert checkpoint.steps(run) == [10, 20, 40, 50]
    assert checkpoint.load(f"{run}/checkpoints/best").step == 10
    newest = checkpoint.newest(run)
    assert newest is not None and newest.step == 50


def test_error_a_changed_file_is_named(tmp_path):
    uri = save(str(tmp_path), 5)
    path = Path(uri, checkpoint.MODEL)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="model.safetensors has .* complete.json says"):
        checkpoint.load(uri).model()


def test_error_other_format_and_missing_pointer(tmp_path):
    uri = save(str(tmp_path), 5)
    complete = Path(uri, checkpoint.COMPLETE)
    complete.write_text(json.dumps(json.loads(complete.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99; this version reads 1"):
        checkpoint.load(uri)
    with pytest.raises(CheckpointError, match=r"no .*last.json"):
        checkpoint.load(f"{tmp_path}/checkpoints/last")
