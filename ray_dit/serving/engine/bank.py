"""The samplers in use, as tables in one bank, by settings; knows no tickets."""

import threading
from collections.abc import Callable
from typing import NamedTuple

from ray_dit.config import SamplerConfig
from ray_dit.core.samplers import SamplerTable
from ray_dit.core.sampling import TableBank


class BankEntry(NamedTuple):
    """A sampler in the bank: the number of its table, and for each step whether guidance acts there."""

    number: int
    guided: list[bool]


class SamplerBank:
    """``tables``, which only grows, and what is in it; asked from any thread."""

    def __init__(self, make_table: Callable[[SamplerConfig], SamplerTable]) -> None:
        self.tables = TableBank()
        self._make_table = make_table
        self._entries: dict[SamplerConfig, BankEntry] = {}
        self._lock = threading.Lock()

    def entry(self, sampler: SamplerConfig) -> BankEntry:
        """The sampler's entry, made when it is first asked for; errors are those of the model's ``table``."""
        # The scale is each row's own (core.sampling): settings that differ in nothing else share a table.
        bare = sampler.model_copy(update={"guidance_scale": 1.0})
        with self._lock:
            known = self._entries.get(bare)
        if known is not None:
            return known
        table = self._make_table(bare)  # may take a while, so without the lock; the first one made is kept
        with self._lock:
            if bare not in self._entries:
                self._entries[bare] = BankEntry(self.tables.add(table), table.guided.tolist())
            return self._entries[bare]
