"""`jobs/weights.py`: list, get, check."""

import hashlib

import pytest
import torch

from infd import fetching, weights
from jobs import weights as job


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("INFD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("INFD_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A network whose official file lies in a folder here."""
    file = tmp_path / "toy.pth"
    torch.save({"w": torch.arange(3.0)}, file)
    source = weights.OfficialFile(url=file.as_uri(), sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
                                  convert=lambda data: fetching_tensors(data))
    result = fetching.encode({"w": torch.arange(3.0)})
    monkeypatch.setitem(weights.NETWORKS, "toy", weights.Network(
        name="toy", use="tests", licence="Toy-1.0", origin="made here", sources=(source,),
        sha256=hashlib.sha256(result).hexdigest()))


def fetching_tensors(data: bytes) -> dict[str, torch.Tensor]:
    from infd.importers.networks import torch_tensors

    return torch_tensors(data)


def test_job_list_shows_terms_and_place_of_each_network(folder, capsys):
    assert job.main(["list"]) == 0
    shown = capsys.readouterr().out
    for network in weights.NETWORKS.values():
        for text in (f"{network.name}: missing", network.licence, network.origin,
                     str(folder / f"{network.name}.safetensors")):
            assert text in shown


def test_job_get_then_check(toy, folder, capsys):
    assert job.main(["get", "toy"]) == 0
    shown = capsys.readouterr().out
    assert "Toy-1.0" in shown and "made here" in shown and str(folder / "toy.safetensors") in shown
    assert job.main(["check"]) == 0
    (folder / "toy.safetensors").write_bytes(b"damage")
    capsys.readouterr()
    assert job.main(["check"]) == 1
    assert "damaged toy" in capsys.readouterr().out


def test_error_get_of_an_unknown_network_is_one_line(capsys):
    assert job.main(["get", "nonsense"]) == 1
    shown = capsys.readouterr().err.strip()
    assert shown.startswith("error: network nonsense: unknown") and "\n" not in shown
