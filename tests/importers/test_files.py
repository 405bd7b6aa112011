"""Files of strangers: plain tensors are read, whatever else they want is refused and does not happen."""

import pickle
from pathlib import Path

import pytest
import torch

from infd.errors import CheckpointError
from infd.importers import files


class Harmful:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors", "model.bin"])
def test_error_code_in_a_file_is_refused_and_does_not_run(tmp_path, name, zipped, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker, path = tmp_path / "ran", tmp_path / name
    torch.save({"state_dict": {"w": torch.zeros(2)}, "callbacks": Harmful(marker)}, path,
               _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=f"{name}: \\d+ bytes that torch cannot load as plain tensors") as refused:
        files.read(str(path))
    assert not marker.exists() and "\n" not in str(refused.value)
    if zipped:
        assert "it wants to run pathlib.Path.touch" in str(refused.value) or "getattr" in str(refused.value)
    torch.load(path.rename(tmp_path / "x"), weights_only=False)
    assert marker.exists()


def test_error_a_bare_pickle_does_not_run(tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "x.bin"
    path.write_bytes(pickle.dumps({"w": Harmful(marker)}))
    with pytest.raises(CheckpointError):
        files.read(str(path))
    assert not marker.exists()


@pytest.mark.parametrize(("data", "message"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "git-lfs pointer"),
    (b"", "cannot load as plain tensors"),
    (b"\xff" * 8 + b"{ no safetensors", "broken safetensors file"),
    (b"\x02\0\0\0\0\0\0\0{}", "no dict of tensors, or an empty one"),
])
def test_error_a_file_that_is_no_weights(tmp_path, data, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        files.read(str(path))


@pytest.mark.parametrize("value", [[1, 2], {}, {"w": 1.5}, {"state_dict": {}}, {"state_dict": {"w": "x"}}])
def test_error_a_torch_file_without_tensors(tmp_path, value):
    path = tmp_path / "x.ckpt"
    torch.save(value, path)
    with pytest.raises(CheckpointError, match="x.ckpt: .* a state dict was expected"):
        files.read(str(path))


def test_error_a_folder_without_weights_and_a_config_that_is_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no file of weights; diffusion_pytorch_model.safetensors"):
        files.read(str(tmp_path))
    torch.save({"w": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.bin")
    for text, message in (("[1]", "a list; a JSON object"), ("{", "not JSON")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            files.read(str(tmp_path))


def test_law_tensors_outlive_their_file(tmp_path):
    path = tmp_path / "x.bin"
    torch.save({"w": torch.arange(5.0)}, path)
    tensors = files.read(str(path)).tensors
    path.unlink()
    torch.testing.assert_close(tensors["w"], torch.arange(5.0), rtol=0, atol=0)
