"""State dicts as safetensors bytes, and whether one fits a model.

Knows names, shapes and values, no network.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from ray_dit.errors import UserError


def weights_bytes(state_dict: Mapping[str, Tensor]) -> bytes:
    """safetensors bytes of a state dict, floating-point weights as float32.

    They are a function of names and values alone.
    """
    return save(_plain(state_dict), metadata={"format": "pt"})


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file by name, taking their size in memory once.

    SafetensorError if it is damaged.
    """
    # pread, not a memory map: tensors then are aligned as torch's own, and outlive what happens to the file.
    return load_file(path, backend="pread")


def _plain(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, on the CPU, float32 where floating-point.

    No two share memory, which safetensors refuses.
    """
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state_dict.items():
        tensor = tensor.detach().cpu().contiguous()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(storage.data_ptr())
        plain[name] = tensor
    return plain


def check_shapes(state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Raises UserError, naming parameters, unless ``state_dict`` has the names and shapes of ``expected``.

    Numbers that are not floating-point, and tensors that are sparse or without data, are no weights either.
    """
    wrong = [
        f"{name} is {_shape(state_dict[name])} instead of {_shape(expected[name])}"
        for name in expected
        if name in state_dict and state_dict[name].shape != expected[name].shape
    ]
    problems = {
        "missing": [name for name in expected if name not in state_dict],
        "unexpected": [name for name in state_dict if name not in expected],
        "of another shape": wrong,
        "no plain floating-point numbers": [name for name in state_dict if not _is_plain(state_dict[name])],
    }
    if found := _listed(problems):
        raise UserError(f"the weights in {where} don't fit the model ({found}): give the file made for it")


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(problems: Mapping[str, Sequence[str]]) -> str:
    """Names by what is wrong with them, as an error says it; "" where there are none."""
    return "; ".join(f"{kind}: {_some_names(names)}" for kind, names in problems.items() if names)


def _some_names(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
