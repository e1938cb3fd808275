"""Lists of images to be made: what each row may say, in three kinds of files, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from ray_dit.errors import NotFound, UserError
from ray_dit.folders.requests import ImageRequests, read_requests
from ray_dit.formats.labels import Labels

LABELS = Labels(("cat", "dog, domestic dog", "7"), ("n00000001", "n00000002", "n00000003"))
ROWS: list[dict[str, Any]] = [
    {"label": "dog", "seed": 7, "guidance_scale": 1.5, "num_inference_steps": 4, "sampler": "ddim"},
    {"label": 0},
    {"label": "n00000003", "sampler": "ddim", "num_inference_steps": 4},
    {"label": "7", "seed": 2**63 - 1, "guidance_scale": 0},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif path.suffix == ".csv":
        pandas.DataFrame([{key: str(value) for key, value in row.items()} for row in rows]).to_csv(
            path, index=False
        )
    else:
        frame = pandas.DataFrame(rows)
        frame["label"] = frame["label"].astype(str)
        frame["seed"] = frame["seed"].astype("Int64") if "seed" in frame else None
        frame.to_parquet(path)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_each_kind_of_file_says_the_same(tmp_path: Path, suffix: str) -> None:
    rows = [row if row.get("seed", 0) < 2**62 else row | {"seed": 2**62} for row in ROWS]
    found = read_requests(write(tmp_path / f"list{suffix}", rows), LABELS)
    assert found.labels.tolist() == [1, 0, 2, 2]
    assert found.seeds.tolist() == [7, -1, -1, 2**62]
    assert np.nan_to_num(found.scales, nan=-1.0).tolist() == [1.5, -1.0, -1.0, 0.0]
    assert found.samplers == ((None, None), ("ddim", 4))
    assert found.sampler.tolist() == [1, 0, 1, 0]
    assert found.sha256 == read_requests(write(tmp_path / "other.jsonl", rows), LABELS).sha256


def test_another_list_has_another_hash(tmp_path: Path) -> None:
    seen = {read_requests(write(tmp_path / f"{at}.jsonl", ROWS[at:]), LABELS).sha256 for at in range(3)}
    changed = [ROWS[0] | {"guidance_scale": 1.25}, *ROWS[1:]]
    seen.add(read_requests(write(tmp_path / "changed.jsonl", changed), LABELS).sha256)
    assert len(seen) == 4


def test_rows_are_taken_by_number(tmp_path: Path) -> None:
    found = read_requests(write(tmp_path / "list.jsonl", ROWS), LABELS)
    part = found.take(np.array([2, 0]))
    assert isinstance(part, ImageRequests)
    assert (part.labels.tolist(), part.sampler.tolist()) == ([2, 1], [1, 1])


def test_a_number_is_a_number_and_text_a_name_first(tmp_path: Path) -> None:
    digits = Labels(("2", "0", "1"))
    found = read_requests(write(tmp_path / "list.jsonl", [{"label": 0}, {"label": "0"}]), digits)
    assert found.labels.tolist() == [0, 1]


def test_a_model_without_classes_needs_no_label(tmp_path: Path) -> None:
    found = read_requests(write(tmp_path / "list.jsonl", [{"seed": 1}, {}]), Labels(()))
    assert (found.labels.tolist(), found.seeds.tolist()) == ([0, 0], [1, -1])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "dgo"}, "row 2 of .*: there is no class 'dgo'; did you mean"),
        ({"label": 3}, "there is no class number 3"),
        ({"label": 1.5}, "it gives no class"),
        ({"label": True}, "it gives no class"),
        ({"seed": 1}, "it gives no class"),
        ({"label": 0, "class": 1}, "it gives no class"),
        ({"label": 0, "seed": -1}, "seed is -1, and is to be a whole number from 0 to"),
        ({"label": 0, "seed": "x"}, "seed is x, and"),
        ({"label": 0, "seed": 2**63}, "seed is"),
        (
            {"label": 0, "num_inference_steps": 0},
            "num_inference_steps is 0, and is to be a whole number from 1 to 1000",
        ),
        ({"label": 0, "num_inference_steps": 1001}, "num_inference_steps is 1001"),
        ({"label": 0, "guidance_scale": 101}, "guidance_scale is 101, and is to be a number from 0 to 100"),
        ({"label": 0, "guidance_scale": "much"}, "guidance_scale is much, and"),
        ({"label": 0, "sampler": "dimm"}, "there is no sampler 'dimm': take one of ddpm, ddim, dpmpp, unipc"),
        ({"label": 0, "scale": 2}, "there is no setting 'scale'; the columns are label, seed"),
    ],
)
def test_what_cannot_be_made_is_refused_by_its_row(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(f"{json.dumps({'label': 0})}\n{json.dumps(row)}\n")
    with pytest.raises(UserError, match=message):
        read_requests(str(path), LABELS)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("list.jsonl", b"", "is empty: give a row for each image"),
        ("list.jsonl", b"[1]\n", "can't be read .*is no object"),
        ("list.jsonl", b"{", "can't be read"),
        ("list.csv", b"\xff\xfe", "can't be read"),
        ("list.parquet", b"no parquet", "can't be read"),
        ("list.txt", b"cat", "its name ends in .txt"),
    ],
)
def test_files_of_other_kinds_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_requests(str(tmp_path / name), LABELS)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist: check --requests"):
        read_requests(str(tmp_path / "none.csv"), LABELS)
