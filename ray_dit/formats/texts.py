"""Many strings in one block of memory, read by row: names, keys and objects of millions of images.

A list of as many takes five times the memory. Knows nothing of what the strings mean.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportAttributeAccessIssue=false

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, cast, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

BLOCK = 1 << 16
"""Strings that are Python's at once."""


class Texts(Sequence[str]):
    """Strings by row. Equal to any sequence of the same strings; in the order of code points.

    Strings of which few differ are kept as numbers of those (``repeated``).
    """

    __slots__ = ("_array",)
    _array: Any

    def __init__(self, array: Any) -> None:
        """``array``: of arrow's large strings, or a dictionary of them with numbers of 32 bits."""
        self._array = array

    @classmethod
    def of(cls, strings: Iterable[str]) -> "Texts":
        """UnicodeEncodeError for what is no text."""
        if isinstance(strings, Texts):
            return strings
        rest = iter(strings)
        blocks = iter(lambda: list(islice(rest, BLOCK)), [])
        return cls(_one([pa.array(block, pa.large_string()) for block in blocks]))

    @classmethod
    def repeated(cls, strings: Iterable[str]) -> "Texts":
        """As ``of``, where few differ."""
        return cls.of(strings).repeating()

    @classmethod
    def same(cls, string: str, count: int) -> "Texts":
        """One string in every row."""
        return cls.coded([string], np.zeros(count, np.int32))

    @classmethod
    def coded(cls, values: Sequence[str], numbers: NDArray[Any]) -> "Texts":
        """The values of these numbers."""
        return cls(
            pa.DictionaryArray.from_arrays(
                pa.array(numbers, pa.int32()), pa.array(list(values), pa.large_string())
            )
        )

    @classmethod
    def from_column(cls, column: Any) -> "Texts":
        """Of a table's column of strings."""
        return cls(column.cast(pa.large_string()).combine_chunks())

    @classmethod
    def joined(cls, parts: list["Texts"]) -> "Texts":
        """One after another. They are taken out of the list, so that memory holds little twice."""
        kinds = {pa.types.is_dictionary(part._array.type) for part in parts}
        arrays = [part.to_arrow() if len(kinds) > 1 else part._array for part in parts]
        parts.clear()
        return cls(_one(arrays))

    def to_arrow(self) -> Any:
        """As an array of large strings."""
        if pa.types.is_dictionary(self._array.type):
            return self._array.dictionary_decode()
        return self._array

    def repeating(self) -> "Texts":
        """The same, kept as ``repeated`` keeps them."""
        if pa.types.is_dictionary(self._array.type):
            return self
        return Texts(self._array.dictionary_encode())

    def values(self) -> tuple[list[str], NDArray[np.int32]]:
        """The strings that occur, or may, and the number of each row's."""
        array = self._array if pa.types.is_dictionary(self._array.type) else self._array.dictionary_encode()
        return cast("list[str]", array.dictionary.to_pylist()), array.indices.to_numpy()

    def blocks(self) -> Iterator[list[str]]:
        """All, a list of some at once."""
        for first in range(0, len(self), BLOCK):
            yield self._array.slice(first, BLOCK).to_pylist()

    def blocks_with(self, numbers: NDArray[Any]) -> Iterator[tuple[list[str], list[int]]]:
        """As ``blocks``, each with the numbers of its rows."""
        for at, block in enumerate(self.blocks()):
            yield block, numbers[at * BLOCK : at * BLOCK + len(block)].tolist()

    @overload
    def mapped(self, change: Callable[[list[str]], Iterable[str]]) -> "Texts": ...
    @overload
    def mapped(
        self, change: Callable[[list[str], list[int]], Iterable[str]], numbers: NDArray[Any]
    ) -> "Texts": ...
    def mapped(self, change: Callable[..., Iterable[str]], numbers: NDArray[Any] | None = None) -> "Texts":
        """What ``change`` makes of each block of them, given a number per row."""
        blocks = ((block,) for block in self.blocks()) if numbers is None else self.blocks_with(numbers)
        return Texts(_one([pa.array(list(change(*block)), pa.large_string()) for block in blocks]))

    def order(self) -> NDArray[np.int64]:
        """The rows that sort them; equal ones stay in their order."""
        if self.is_in_order():
            return np.arange(len(self))
        order = pc.sort_indices(self.to_arrow()).to_numpy().view(np.int64)
        _release()
        return order

    def is_in_order(self) -> bool:
        """Whether each is below the next."""
        array = self.to_arrow()
        return len(array) < 2 or bool(pc.all(pc.less(array[:-1], array[1:])).as_py())

    def first_twin(self, order: NDArray[np.int64]) -> int | None:
        """The first place in this order whose string is that of the next; None where there is none."""
        for first in range(0, len(self), BLOCK):
            array = self[order[first : first + BLOCK + 1]].to_arrow()
            found = pc.index(pc.equal(array[:-1], array[1:]), True).as_py() if len(array) > 1 else -1
            if found >= 0:
                return first + int(found)
        return None

    def rows_in(self, others: "Texts") -> NDArray[np.int64]:
        """The row of ``others`` that holds each, -1 where none does."""
        found = pc.index_in(self.to_arrow(), value_set=others.to_arrow())
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)

    def all_begin_with(self, start: str) -> bool:
        """Whether all begin so."""
        return bool(pc.all(pc.starts_with(self.to_arrow(), start)).as_py())

    def rows_without(self, part: str) -> NDArray[np.int64]:
        """The rows of those that do not hold ``part``."""
        found = pc.match_substring(self.to_arrow(), part).to_numpy(zero_copy_only=False)
        return np.flatnonzero(~found)

    def most_of(self, sign: str) -> int:
        """How often a sign occurs in the string that has most of it."""
        return int(pc.max(pc.count_substring(self.to_arrow(), sign)).as_py())

    def without_first(self, count: int) -> "Texts":
        """Each without so many characters at its beginning."""
        return Texts(pc.utf8_slice_codeunits(self.to_arrow(), count)) if count else self

    def are_one(self) -> bool:
        """Whether there are some, and all are equal."""
        return len(self.values()[0]) == 1 and len(self) > 0

    def are_ascii(self) -> bool:
        """Whether all are of ASCII."""
        return bool(pc.all(pc.string_is_ascii(self.to_arrow())).as_py())

    def tolist(self) -> list[str]:
        """All of them."""
        return cast("list[str]", self._array.to_pylist())

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[str]:
        for block in self.blocks():
            yield from block

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice | NDArray[Any]) -> "Texts": ...
    def __getitem__(self, index: int | slice | NDArray[Any]) -> "str | Texts":
        """A row, or the strings of some."""
        if isinstance(index, np.ndarray):
            return Texts(self._array.take(pa.array(index, pa.int64())))
        if isinstance(index, slice):
            return Texts(self._array[index])
        return cast("str", self._array[int(index)].as_py())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) or not isinstance(other, Sequence):
            return NotImplemented
        if isinstance(other, Texts):
            return bool(self.to_arrow().equals(other.to_arrow()))
        theirs = cast("Sequence[Any]", other)
        return len(self) == len(theirs) and all(
            ours == found for ours, found in zip(self, theirs, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        """A part of a block is pickled without the rest."""
        is_part = self._array.nbytes < self._array.get_total_buffer_size()
        return Texts, (self._array.take(pa.array(np.arange(len(self)))) if is_part else self._array,)

    def __repr__(self) -> str:
        return f"Texts({self[:4].tolist()}{'...' if len(self) > 4 else ''})"


def _one(arrays: list[Any]) -> Any:
    """All arrays as one; they are taken out of the list."""
    if len(arrays) < 2:
        return arrays.pop() if arrays else pa.array([], pa.large_string())
    if pa.types.is_dictionary(arrays[0].type):
        return pa.concat_arrays(arrays)
    lengths = [len(array) for array in arrays]
    offsets = np.zeros(sum(lengths) + 1, np.int64)
    first = 0
    for array, length in zip(arrays, lengths, strict=True):
        found = _offsets(array)
        offsets[first + 1 : first + length + 1] = found[1:] - found[0] + offsets[first]
        first += length
    data = np.empty(int(offsets[-1]), np.uint8)
    at = 0
    arrays.reverse()
    while arrays:
        array = arrays.pop()
        low, high = _offsets(array)[[0, -1]].tolist()
        if high > low:
            data[at : at + high - low] = np.frombuffer(array.buffers()[2], np.uint8)[low:high]
        at += high - low
        del array
    _release()
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))


def _offsets(array: Any) -> NDArray[np.int64]:
    """Where the strings of an array begin and end in its buffer."""
    if not len(array):
        return np.zeros(1, np.int64)
    offsets = np.frombuffer(array.buffers()[1], np.int64)
    return offsets[array.offset : array.offset + len(array) + 1]


def _release() -> None:
    """Gives memory that arrow no longer needs back to the system, which would else count it as taken."""
    pa.default_memory_pool().release_unused()
