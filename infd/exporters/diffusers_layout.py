"""A checkpoint of ours → a folder that diffusers loads, with a model card.

Stage one: see `exporters.autoencoder`. Stage two: a pipeline's folder, see `exporters.pipeline`. The file without which
the folder does not load is written last.
"""

import logging
import os
import shutil
import uuid
from collections.abc import Mapping

from infd import checkpoint, storage
from infd.errors import StorageError
from infd.exporters import autoencoder, pipeline
from infd.generation.registry import resolve
from infd.importers.mapping import some

logger = logging.getLogger(__name__)


def export(
    uri: str, out: str, *, licence: str = "", scaling_factor: float | None = None, replicate_padding: bool = False,
) -> str:
    """Write the checkpoint at `uri`, of either stage, in diffusers' layout as the folder `out`; returns `out`.

    `scaling_factor`: see `autoencoder.latent_notes`; stage two has its own. `replicate_padding` allows a model of that
    padding, which diffusers cannot say. Raises CheckpointError: no such checkpoint, or one that has no place in that
    layout; ConfigError: an option that does not go with it; StorageError: `out` is taken.
    """
    require_free(out)
    found = checkpoint.load(resolve(uri))
    stage = pipeline if found.meta.get("stage") == "latent_diffusion" else autoencoder
    contents = stage.contents(found, licence=licence, scaling_factor=scaling_factor, replicate_padding=replicate_padding)
    write_folder(out, contents)
    logger.info("%s: %s of checkpoint %s", out, "pipeline" if stage is pipeline else "autoencoder", found.uri)
    return out


def require_free(out: str) -> None:
    """Raise StorageError unless the folder `out` is new or empty."""
    names = sorted(info.uri.rsplit("/", 1)[-1] for info in storage.list_objects(storage.absolute(out)))
    if names:
        raise StorageError(f"{out}: it holds files ({some('found', names)}); a new or empty folder was expected; name another "
                           f"--out, or delete it if a killed export left it without {autoencoder.CONFIG} or {pipeline.INDEX}")


def write_folder(out: str, contents: Mapping[str, bytes]) -> None:
    """The folder `out` with these files, the last of them last. A local folder appears whole, by a rename."""
    if storage.is_remote(out):
        *first, last = contents
        for name in first:
            storage.put_atomic(storage.join(out, name), contents[name])
        return storage.put_if_absent(storage.join(out, last), contents[last])
    path = storage.local_path(storage.absolute(out))
    partial = os.path.join(os.path.dirname(path), f".{os.path.basename(path)[:100]}.{uuid.uuid4().hex}{storage.PARTIAL}")
    try:
        for name, data in contents.items():
            storage.put_atomic(os.path.join(partial, name), data)
        os.rename(partial, path)
    except OSError as error:
        raise StorageError(f"{out}: {error.strerror}; a new or empty folder was expected; name another --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
