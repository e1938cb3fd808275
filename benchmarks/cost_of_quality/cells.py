"""The figures of measured cells, and the file of lines they are kept in."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, TRIALS
from benchmarks.cost_of_quality.plan import Cell

CELLS = RESULTS / "cost_of_quality.jsonl"
QUICK_CELLS = TRIALS / "cost_of_quality_quick.jsonl"


@dataclass(frozen=True)
class Measured:
    """What is kept of a cell."""

    frechet_distance: float
    accuracy: float
    """Part of the samples that the judge reads as what was asked for."""
    images: int
    row_evaluations: int
    cpu_seconds: float
    """Of sampling and decoding, one thread."""
    machine: dict[str, Any]


@dataclass(frozen=True)
class Cells:
    """The cells measured so far: a file of JSON lines, each a cell in words, its key and its figures."""

    path: Path

    def read(self) -> dict[str, Measured]:
        """Figures by key; of two lines with one key the later counts."""
        names = [field.name for field in fields(Measured)]
        text = self.path.read_text() if self.path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        return {line["key"]: Measured(**{name: line[name] for name in names}) for line in lines}

    def add(self, cell: Cell, key: str, measured: Measured) -> None:
        """One more line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(json.dumps({"cell": str(cell), "key": key} | asdict(measured)) + "\n")
