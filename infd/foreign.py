"""Pickles made by others, read without running anything of theirs.

A pickle is a program. This reader knows three names, those that rebuild a NumPy array, and refuses all else.
"""

import io
import pickle
from typing import Any, NoReturn

import numpy as np
from numpy._core import multiarray

from infd.errors import WeightsError

ADMITTED: dict[tuple[str, str], Any] = {
    # NumPy 2 renamed numpy.core to numpy._core; files from before and after name the same function.
    ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, strings and NumPy arrays; any other name ends the reading."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return ADMITTED[module_name, global_name]
        except KeyError:
            raise WeightsError(f"pickle: asks for {module_name}.{global_name}; only NumPy arrays are admitted; "
                               "do not use this file") from None

    def persistent_load(self, pid: Any, /) -> NoReturn:
        raise WeightsError(f"pickle: refers to an outside object {pid!r}; only NumPy arrays are admitted; "
                           "do not use this file")


def load_arrays(data: bytes) -> dict[str, Any]:
    """The nested dict of numeric NumPy arrays in a pickle.

    Raises WeightsError: a name other than NumPy's arrays, a broken pickle, or leaves of another kind.
    """
    try:
        tree = ArrayUnpickler(io.BytesIO(data)).load()
    except WeightsError:
        raise
    except Exception as error:  # a crafted or cut pickle may fail in any way; none of them may pass for a file
        raise WeightsError(f"pickle of {len(data)} bytes: unreadable ({type(error).__name__}); "
                           "NumPy arrays were expected; get the file again") from error
    require_arrays(tree, "pickle")
    return tree


def require_arrays(tree: Any, place: str) -> None:
    """Raise WeightsError unless `tree` is a dict, of dicts or of numeric arrays, with str keys."""
    if isinstance(tree, dict) and all(isinstance(key, str) for key in tree):
        for key, child in tree.items():
            if isinstance(child, np.ndarray) and child.dtype.kind in "fiu":
                continue
            require_arrays(child, f"{place}/{key}")
        return
    kind = f"array of {tree.dtype}" if isinstance(tree, np.ndarray) else type(tree).__name__
    raise WeightsError(f"{place}: is a {kind}; a dict of numeric arrays was expected; do not use this file")
