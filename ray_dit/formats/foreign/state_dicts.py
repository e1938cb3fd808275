"""Which tensors in a checkpoint are the DiT's weights, and what else the checkpoint says of them.

Training code puts its weights under keys of its own and prefixes before their names. The weights are known by
one parameter that every DiT has, so that any key and any prefix will do. Knows names, and no file or network.
"""

import argparse
import re
import types
from collections import deque
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ray_dit.errors import UserError

PATCHES = "x_embedder.proj.weight"
"""A parameter that every DiT has, and under this name nothing else beside it."""
WRAPPERS = ("ema", "model", "state_dict")
"""Keys under which the published code puts the weights; where several sets are there, these come first."""
MAX_DEPTH = 3
"""Keys inside keys that are looked into."""
_IN_BETWEEN = re.compile(r"(^|\.)((module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")
"""What DDP, torch.compile, FSDP and activation checkpointing put into names, at the front or for a block."""
_NOT_PLAIN = (Tensor, Mapping, argparse.Namespace, types.SimpleNamespace)
_AVERAGED = re.compile(r"(^|[^a-z])(ema|averaged?|avg|swa)", re.IGNORECASE)
_OPTIMIZER = re.compile(r"opt(im|imi[sz]ers?)?([^a-z].*)?", re.IGNORECASE)

EPS = ("eps", "epsilon", "noise")
NO = ("false", "0")
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "prediction": EPS,
    "prediction_type": EPS,
    "pred_type": EPS,
    "parameterization": EPS,
    "objective": EPS,
    "predict_xstart": NO,
    "predict_x0": NO,
    "predict_v": NO,
    "v_prediction": NO,
    "path_type": (),
    "noise_schedule": ("linear",),
    "beta_schedule": ("linear",),
}
"""Arguments that say what a network was trained to predict and on which path, and what they are for a DiT.

Any other value, and any path of flow matching (SiT's ``path_type``), means another model under the same
parameter names: sampled as a DiT it would make noise."""


@dataclass(frozen=True)
class StateDict:
    """Weights under the official names, and where in the checkpoint they lay."""

    tensors: dict[str, Tensor]
    place: str = ""
    """Keys and prefix in words, "" where there are none."""


def dit_weights(data: Any, where: str) -> StateDict | None:
    """The DiT's weights among all that a checkpoint holds; None where it has no tensors under names.

    Averaged weights (``ema`` in a key or prefix) come first, as they are what one publishes; then those under
    the published code's keys, then those under the fewest keys. Where no set has a DiT's parameter, the
    first one is returned as it is. Raises UserError where several sets are equally likely, naming them.
    """
    found = [one for keys, tensors in _sets(data) for one in _candidates(keys, tensors)]
    if not found:
        return None
    ranks = [one.rank for one in found]
    best = min(ranks)
    chosen = found[ranks.index(best)]
    same = [one for one in found if one.rank == best]
    if chosen.is_dit and len(same) > 1:
        raise UserError(
            f"{where} holds several sets of weights ({'; '.join(one.place or 'bare' for one in same)}), and "
            "nothing says which are meant: write those into a file of their own"
        )
    return StateDict(chosen.named(where), chosen.place)


@dataclass(frozen=True)
class _Candidate:
    """Tensors that may be the weights: all under some keys whose names have the prefix."""

    keys: tuple[str, ...]
    prefix: str
    tensors: Mapping[str, Tensor]
    is_dit: bool

    @property
    def rank(self) -> tuple[bool, bool, bool, int, int]:
        """Sets of less rank are preferred."""
        first = self.keys[0] if self.keys else ""
        return (
            not self.is_dit,
            not _AVERAGED.search(self.prefix),
            not any(map(_AVERAGED.search, self.keys)),
            WRAPPERS.index(first) if first in WRAPPERS else len(WRAPPERS),
            len(self.keys),
        )

    @property
    def place(self) -> str:
        keys = f"under {'.'.join(self.keys)!r}" if self.keys else ""
        names = f"names begin with {self.prefix!r}" if self.prefix else ""
        if not self.is_dit:
            starts = sorted({f"{name.partition('.')[0]}." for name in self.tensors if "." in name})
            names = f"names begin with {', '.join(map(repr, starts[:3]))}" if starts else ""
        return ", ".join(part for part in (keys, names) if part)

    def named(self, where: str) -> dict[str, Tensor]:
        """The tensors by name without prefix; UserError where two come to be called the same."""
        named: dict[str, Tensor] = {}
        origins: dict[str, str] = {}
        for name, tensor in self.tensors.items():
            plain = plain_name(name)
            if not plain.startswith(self.prefix):
                continue
            plain = plain.removeprefix(self.prefix)
            if self.is_dit and _is_counter(plain, tensor):
                continue
            if plain in named:
                raise UserError(
                    f"{where} holds {plain} twice ({origins[plain]} and {name}), and nothing says which is "
                    "meant: write the weights that are into a file of their own"
                )
            named[plain], origins[plain] = tensor, name
        return named


def plain_name(name: str) -> str:
    """The name without what DDP, torch.compile and their like put in, wherever they did."""
    return _IN_BETWEEN.sub(r"\1", name)


def _is_counter(name: str, tensor: Tensor) -> bool:
    """Whether it is a number that averaging keeps beside the weights, such as ``n_averaged``."""
    return "." not in name and (tensor.ndim == 0 or (tensor.numel() == 1 and not tensor.is_floating_point()))


def _mappings(data: Any) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Every mapping and namespace inside the data, and the keys it lies under, the outermost first."""
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), data)])
    seen = set[int]()
    while waiting:
        keys, value = waiting.popleft()
        if isinstance(value, argparse.Namespace | types.SimpleNamespace):
            value = vars(value)
        entries = cast(Mapping[Any, Any], value)
        if not isinstance(value, Mapping) or id(entries) in seen:  # a file may hold one in itself
            continue
        seen.add(id(entries))
        yield keys, entries
        if len(keys) < MAX_DEPTH:
            waiting.extend(((*keys, key), inner) for key, inner in entries.items() if isinstance(key, str))


def _sets(data: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every mapping with tensors in it, and the keys it lies under; the optimizer's left out."""
    for keys, entries in _mappings(data):
        tensors = {str(name): value for name, value in entries.items() if isinstance(value, Tensor)}
        if tensors and not any(map(_OPTIMIZER.fullmatch, keys)):
            yield keys, tensors


def _candidates(keys: tuple[str, ...], tensors: Mapping[str, Tensor]) -> Iterator[_Candidate]:
    names = [plain_name(name) for name in tensors]
    prefixes = {name.removesuffix(PATCHES) for name in names if f".{name}".endswith(f".{PATCHES}")}
    for prefix in sorted(prefixes):
        yield _Candidate(keys, prefix, tensors, is_dit=True)
    if not prefixes:
        yield _Candidate(keys, "", tensors, is_dit=False)


def check_plain(weights: Mapping[str, Tensor], where: str) -> None:
    """UserError for a tensor with more numbers than its file stores: a few bytes may stand for terabytes."""
    for name, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            continue  # check_shapes refuses it
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(
                f"{where} is no DiT checkpoint ({name} repeats a few numbers): give the file as published"
            )


def check_objective(data: Any, where: str) -> bool:
    """Whether the checkpoint's arguments say that eps is predicted; False where they say nothing of it.

    Raises UserError where they say that the network was trained for something else, naming the arguments.
    """
    told = [(name, value) for name, value in _arguments(data, OBJECTIVES) if not _says_nothing(value)]
    wrong = [f"{name} is {str(value)!r}" for name, value in told if not _is_dits(name, value)]
    models = (value for _, value in _arguments(data, ("model",)) if isinstance(value, str))
    wrong += [f"model is {name!r}" for name in models if is_sit(name)]
    if wrong:
        raise UserError(
            f"{where} was trained for something else than a DiT's prediction of eps with linear betas "
            f"({', '.join(dict.fromkeys(wrong))}), and sampled as a DiT it would make noise: give a DiT "
            "checkpoint, or if it is one, a file of its weights alone"
        )
    return any(OBJECTIVES[_plain_key(name)] == EPS for name, _ in told)


def _says_nothing(value: Any) -> bool:
    return str(value).lower() in ("", "none")


def _is_dits(name: str, value: Any) -> bool:
    text = str(value).lower().removeprefix("pred_").removeprefix("predict_")
    return text in OBJECTIVES[_plain_key(name)]


def is_sit(name: str) -> bool:
    """Whether a file or model is called as SiT's are: DiT's networks, trained for flow matching."""
    return re.match(r"sit[-_/]", name, re.IGNORECASE) is not None


def _arguments(data: Any, names: Container[str]) -> Iterator[tuple[str, Any]]:
    """The values under these names among all that a checkpoint holds, and the keys to them, dotted."""
    for keys, entries in _mappings(data):
        for key, value in entries.items():
            if isinstance(key, str) and _plain_key(key) in names and not isinstance(value, _NOT_PLAIN):
                yield ".".join((*keys, key)), value


def _plain_key(name: str) -> str:
    return name.rpartition(".")[2].replace("-", "_").lower()


def told_classes(data: Any) -> int | None:
    """The number of classes by the checkpoint's arguments, None where they don't say."""
    found = {value for _, value in _arguments(data, ("num_classes",)) if _is_number(value)}
    return found.pop() if len(found) == 1 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
