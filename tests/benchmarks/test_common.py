"""What the benchmarks share: facts that can be stored, timing that counts what it should, turns in order."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.common import argument_parser, in_turns, machine, timed, write_json


def test_facts_of_the_machine_are_json(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "facts.json", machine())
    facts = json.loads((tmp_path / "new" / "facts.json").read_text())
    assert facts["cores"] >= 1
    assert facts["cpu"]
    assert facts["torch"]
    assert facts["python"].startswith("3.")


def test_a_call_is_timed_until_the_device_is_done() -> None:
    events: list[str] = []

    def synchronize() -> None:
        events.append("wait")
        time.sleep(0.02)

    seconds = timed(lambda: events.append("call"), repeats=2, warm_up=1, synchronize=synchronize)
    assert events == ["call", *["wait", "call", "wait"] * 2]
    assert len(seconds) == 2
    assert min(seconds) >= 0.02


def test_measurements_take_turns(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def measured(name: str, turn: int) -> float:
        order.append(f"{name}{turn}")
        return turn + 0.5

    found = in_turns({"a": lambda turn: measured("a", turn), "b": lambda turn: measured("b", turn)}, 2)
    assert order == ["a0", "b0", "a1", "b1"]
    assert found == {"a": [0.5, 1.5], "b": [0.5, 1.5]}
    assert capsys.readouterr().out.count("\n") == 2


def test_it_imports_neither_torch_nor_ray() -> None:
    seen = "import sys, benchmarks.common; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", seen], cwd=Path(__file__).parents[2]).returncode == 0


def test_a_parser_says_what_one_types() -> None:
    parser = argument_parser("What it is.\n\n    kept as it is", prog="python -m benchmarks.some")
    assert parser.format_usage().startswith("usage: python -m benchmarks.some ")
    assert "    kept as it is" in parser.format_help()
