"""Torch files, read without running what is in them.

Only tensors and plain data are unpickled. Knows the pickled names of harmless data, and no model.
"""

import argparse
import errno
import pathlib
import pickle
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ray_dit.errors import UserError, first_message

_Global = Callable[..., Any] | tuple[Callable[..., Any], str]


def load_torch_file(path: Path) -> Any:
    """What a ``.pt`` or ``.bin`` file holds, tensors on the CPU.

    Beside tensors and plain data that is what training code leaves as arguments: namespaces, numpy's scalars
    (as Python's) and arrays (without their values), and paths (as pure ones, whatever system wrote them).
    Raises UserError for a pickle with any other code, naming it, and for a file that is no torch checkpoint.
    """
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    with torch.serialization.safe_globals(_plain_data()):
        try:
            # Mapped, so that the optimizer state beside the weights is never read; old files can't be.
            return torch.load(path, mmap=_is_zip(path), **options)
        except pickle.UnpicklingError as error:
            raise UserError(_refusal(path, error)) from error
        except Exception as error:  # whatever a damaged file makes torch stumble over
            if (
                isinstance(error, OSError) and error.errno != errno.EINVAL
            ):  # a lying offset is no place to seek
                raise
            reason = first_message(error).rstrip(".")
            raise UserError(
                f"{path} is no torch checkpoint ({reason}): give the .pt file as published"
            ) from error


def _plain_data() -> list[_Global]:
    """What may be unpickled beside torch's own, each under the names by which pickles know it."""
    arrays: list[_Global] = [
        (stand_in, f"{module}.{name}")
        for name, stand_in in (("scalar", _scalar), ("_reconstruct", _array))
        for module in ("numpy._core.multiarray", "numpy.core.multiarray")  # numpy 2, numpy 1
    ]
    paths: list[_Global] = [
        (pure, f"{module}.{prefix}{kind}Path")
        for kind, pure in (
            ("", pathlib.PurePosixPath),
            ("Posix", pathlib.PurePosixPath),
            ("Windows", pathlib.PureWindowsPath),
        )
        for prefix in ("", "Pure")
        for module in ("pathlib", "pathlib._local")  # Python 3.13 has them elsewhere
    ]
    kinds: list[_Global] = [(_Dtype, "numpy.dtype"), (_Array, "numpy.ndarray")]
    return [argparse.Namespace, types.SimpleNamespace, *kinds, *arrays, *paths]


class _Dtype:
    """In place of numpy's dtype, which a damaged or hostile pickle makes crash the process."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code, self.order = code, ()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple):
            self.order = cast(tuple[Any, ...], state)[1:2]  # (version, byte order, ...)


class _Array:
    """In place of numpy's array: nothing asks for its values."""

    def __setstate__(self, state: Any) -> None:
        pass


def _array(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: Any, data: Any = None) -> Any:
    """In place of numpy's scalars: the Python value of one of a plain kind, None of any other."""
    code, order = getattr(dtype, "code", None), getattr(dtype, "order", None)
    if not (isinstance(code, str) and re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16|U[0-9]{1,4}", code)):
        return None
    kind = np.dtype(f"{'>' if order == ('>',) else '<'}{code}")
    if not isinstance(data, bytes) or len(data) != kind.itemsize or not data:
        return None
    return np.frombuffer(data, kind)[0].item()


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _refusal(path: Path, error: Exception) -> str:
    names = sorted(set(re.findall(r"GLOBAL (\w+(?:\.\w+)*)", str(error))))
    if not names:
        return f"{path} is no torch checkpoint: give the .pt file as published"
    return (
        f"{path} holds code, not only weights ({', '.join(names)}), and none of it was run: "
        "if you trust it, write its weights as safetensors with the program that made it, and import those"
    )
