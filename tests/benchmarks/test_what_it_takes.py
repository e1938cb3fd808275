"""The table in the documentation is the one that its script computes, and its figures are plausible."""

from pathlib import Path

import pytest

from benchmarks.what_it_takes import MFU, table

PAGE = Path(__file__).parents[2] / "docs/training.md"
H100 = 989.4e12


@pytest.fixture(scope="module")
def computed() -> str:
    return table()


def test_the_page_has_the_table_as_it_is_computed(computed: str) -> None:
    assert computed in PAGE.read_text(), "run python -m benchmarks.what_it_takes and put its table there"
    assert f"MFU of {MFU:.0%}" in PAGE.read_text()


def test_the_figures_are_those_of_the_paper_and_of_arithmetic(computed: str) -> None:
    rows = computed.splitlines()[2:]
    cells = {tuple(row.split(" | ")[:2]): row.strip("| ").split(" | ") for row in rows}
    large = cells["| DiT-XL/2", "256"]
    assert large[2] == "675.1 M"
    flops = float(large[3]) * 1e12
    assert flops == pytest.approx(6 * 118.64e9, rel=0.01)  # the paper's GMACs, by 2 and by 3
    hours = 400_000 * 256 * flops / (MFU * H100) / 3600
    assert float(large[5].replace(",", "")) == pytest.approx(hours, rel=0.01)
    assert float(large[6].replace(",", "")) == pytest.approx(17.5 * hours, rel=0.01)
    assert float(cells["| DiT-XL/2", "512"][3]) * 1e12 == pytest.approx(6 * 524.60e9, rel=0.01)
    assert [cells[f"| DiT-{size}/2", "256"][2] for size in "SBL"] == ["33.0 M", "130.5 M", "458.1 M"]
