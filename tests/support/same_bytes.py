"""Compares the bytes that two commits make on this machine.

``python -m tests.support.same_bytes --base COMMIT``, or `make same-bytes BASE=COMMIT`.

Runs one tiny pipeline with the code of COMMIT and with that of the working tree, on local disk and on a real
S3 server, by the command line alone, and compares the sha256 of every object outside ``_runs/``. Nothing is
stored and nothing of another machine is compared: floating-point arithmetic differs between machines, so both
sides run here and now.

Exit status 1 if objects differ, unless the ``rules`` number of their stage, or of a stage before it, was
changed too.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.local_s3 import CREDENTIALS, make_bucket, start_seaweed

ROOT = Path(__file__).resolve().parents[2]
RUNNER = Path(__file__).with_name("run_commands.py")
OUTSIDE = ("_runs", "_check")
"""Folders in which clocks and hosts may differ."""
SHOWN = 8
"""Differing keys that are named for each step."""
IMAGES = "--images.uri {root}/images --images.size 16 --images.heldout 0.2 --images.max-bad 0.1"
TRAIN = (
    "train --latents {root}/latents --model.hidden-size 16 --model.depth 2 --model.num-heads 2 --steps 20 "
    "--batch-size 8 --checkpoint-every 10 --log-every 5 --grid-per-class 1 --sampler.num-inference-steps 3 "
    "--optimizer.learning-rate 0.002 --optimizer.warmup-steps 5 --optimizer.grad-clip 1.0 "
)


@dataclass(frozen=True)
class Step:
    """One command and the folders it fills, whose objects are compared under its name."""

    name: str
    folders: tuple[str, ...]
    after: tuple[str, ...]
    """Steps whose results it reads."""
    command: str


PIPELINE = (
    Step(
        "train-vae", ("vae",), (),
        f"train-vae {IMAGES} --output {{root}}/vae --vae.block-out-channels 4 4 --vae.norm-num-groups 2 "
        "--vae.no-mid-block-add-attention --steps 10 --batch-size 4 --checkpoint-every 5 --log-every 5",
    ),
    Step(
        "encode", ("latents",), ("train-vae",),
        f"encode {IMAGES} --vae {{root}}/vae --output {{root}}/latents --shard-size 8 --batch-size 4",
    ),
    Step(
        "train (1 worker)", ("run-1", "model-1"), ("encode",),
        TRAIN + "--output {root}/run-1 --model-output {root}/model-1 --min-snr-gamma 5 "
        "--optimizer.schedule cosine",
    ),
    Step(
        "train (2 workers)", ("run-2", "model-2"), ("encode",),
        TRAIN + "--output {root}/run-2 --model-output {root}/model-2 --num-workers 2",
    ),
    Step(
        "generate (1 actor)", ("dataset-1",), ("train (1 worker)",),
        "generate --model {root}/model-1 --output {root}/dataset-1 --num-images 22 --shard-size 8 "
        "--batch-size 5 --actors 1",
    ),
    Step(
        "generate (2 actors)", ("dataset-2",), ("train (1 worker)",),
        "generate --model {root}/model-1 --output {root}/dataset-2 --num-images 22 --shard-size 8 "
        "--batch-size 5 --actors 2",
    ),
    Step(
        "generate (DDPM)", ("dataset-3",), ("train (2 workers)",),
        "generate --model {root}/model-2 --output {root}/dataset-3 --per-class 4 --shard-size 8 --batch-size "
        "4 --sampler.name ddpm --sampler.num-inference-steps 4 --sampler.guidance-scale 3 "
        "--sampler.guidance-interval 100 900",
    ),
    Step(
        "evaluate", ("evaluation",), ("generate (1 actor)",),
        f"evaluate {IMAGES} --dataset {{root}}/dataset-1 --output {{root}}/evaluation --classifier.steps 10 "
        "--classifier.batch-size 8 --classifier.width 4",
    ),
    Step(
        "export", ("diffusers",), ("train (1 worker)",),
        "export {root}/model-1 --output {root}/diffusers",
    ),
    Step(
        "export (official)", ("official",), ("train (1 worker)",),
        "export {root}/model-1 --output {root}/official/tiny.pt --format official",
    ),
    Step(
        "import", ("imported",), ("export",),
        "import-checkpoint {root}/diffusers --output {root}/imported",
    ),
    Step(
        "import (official)", ("imported-official",), ("export (official)", "train-vae"),
        "import-checkpoint {root}/official/tiny.pt --output {root}/imported-official --vae {root}/vae "
        "--num-heads 2",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One commit's code and what it made."""

    name: str
    checkout: Path
    python: str


@dataclass(frozen=True)
class Objects:
    """What lies at a root: sha256 by key, and the small job records, which say why a folder differs."""

    sha256: Mapping[str, str]
    jobs: Mapping[str, Any]
    """The parsed ``_job.json`` by folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs both sides and prints what differs; 1 if something does that no ``rules`` number explains."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.same_bytes", description=__doc__)
    parser.add_argument("--base", required=True, help="the commit to compare the working tree with")
    parser.add_argument("--base-python", default=sys.executable, help="its interpreter, if packages differ")
    parser.add_argument("--only", choices=("local", "s3"), help="one storage instead of both")
    names = [step.name for step in PIPELINE]
    parser.add_argument("--until", choices=names, default=names[-1], help="the last step to run")
    options = parser.parse_args(argv)
    steps = PIPELINE[: names.index(options.until) + 1]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="same-bytes-") as scratch:
        folder = Path(scratch)
        sides = (
            Side("base", check_out(options.base, folder / "checkout"), options.base_python),
            Side("tree", ROOT, sys.executable),
        )
        write_images(folder / "images")
        results: dict[str, list[Objects]] = {}
        if options.only != "s3":
            results["local"] = run_local(sides, steps, folder)
        if options.only != "local":
            results["s3"] = run_on_s3(sides, steps, folder)
    bad = [line for where, (base, tree) in results.items() for line in compare(where, steps, base, tree)]
    print(f"{time.monotonic() - began:.0f} s")
    return 1 if bad else 0


def check_out(commit: str, folder: Path) -> Path:
    """The files of a commit in ``folder``; SystemExit if there is no such commit."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True)
    if archive.returncode:
        sys.exit(f"git knows no commit {commit!r}: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def write_images(folder: Path) -> None:
    """Two classes of images of several sizes, modes and formats; one file is no image."""
    random = np.random.default_rng(0)
    for label, name in enumerate(("left", "right")):
        (folder / name).mkdir(parents=True)
        for number in range(14):
            height, width = ((16, 16), (20, 16), (33, 40))[number % 3]
            pixels = random.integers(0, 100, (height, width, 3), dtype=np.uint8) + np.uint8(100 * label)
            image = Image.fromarray(pixels).convert("L" if number % 5 == 4 else "RGB")
            image.save(folder / name / f"{number:02d}.{'jpg' if number % 4 == 3 else 'png'}")
    (folder / "left" / "broken.png").write_bytes(b"no image")


def run_local(sides: Sequence[Side], steps: Sequence[Step], folder: Path) -> list[Objects]:
    """The pipeline with all its results on disk, for both sides at once.

    A stage mostly waits for processes to start.
    """
    from fsspec.implementations.local import LocalFileSystem

    def run(side: Side) -> Objects:
        root = folder / side.name
        shutil.copytree(folder / "images", root / "images")
        run_pipeline(side, steps, str(root), folder / f"home-{side.name}", {})
        return read_objects(LocalFileSystem(), str(root))

    with ThreadPoolExecutor(len(sides)) as threads:
        return list(threads.map(run, sides))


def run_on_s3(sides: Sequence[Side], steps: Sequence[Step], folder: Path) -> list[Objects]:
    """The pipeline with all it reads and makes on an S3 server of its own, a bucket for each side.

    Both sides run at once.
    """
    import s3fs

    endpoint, stop = start_seaweed(folder / "seaweed")
    environment = CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"}

    def run(side: Side) -> Objects:
        files = s3fs.S3FileSystem(
            key="local",
            secret="local",
            endpoint_url=endpoint,
            skip_instance_cache=True,
            use_listings_cache=False,
        )
        make_bucket(endpoint, side.name)
        files.put(str(folder / "images"), f"{side.name}/images", recursive=True)
        run_pipeline(side, steps, f"s3://{side.name}", folder / f"home-s3-{side.name}", environment)
        return read_objects(files, side.name)

    try:
        with ThreadPoolExecutor(len(sides)) as threads:
            return list(threads.map(run, sides))
    finally:
        stop()


def run_pipeline(side: Side, steps: Sequence[Step], root: str, home: Path, extra: Mapping[str, str]) -> None:
    """All commands in one process on one Ray; ``home`` keeps caches apart. SystemExit if a command fails."""
    home.mkdir()
    commands = home / "commands.json"
    commands.write_text(json.dumps([step.command.format(root=root).split() for step in steps]))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    environment |= {"PYTHONPATH": str(side.checkout), "HOME": str(home), "RAY_AUTH_MODE": "disabled"}
    environment |= {"OMP_NUM_THREADS": "1", "RAY_BACKEND_LOG_LEVEL": "fatal", **extra}
    # -P: the runner's own folder is this tree's, whichever side runs
    command = [side.python, "-P", str(RUNNER), str(side.checkout), str(commands)]
    ran = subprocess.run(
        command,
        cwd=side.checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if ran.returncode:
        sys.exit(f"{ran.stdout[-6000:]}\n{side.name} failed with status {ran.returncode} at {root}")
    print(
        "".join(f"   {line}\n" for line in ran.stdout.splitlines() if shows_progress(line)),
        end="",
        flush=True,
    )


def shows_progress(line: str) -> bool:
    """Whether the runner wrote it: which code ran, and how long each command took."""
    return " imports " in line or line.endswith(" s")


def read_objects(files: Any, root: str) -> Objects:
    """sha256 of every object below ``root`` of an fsspec file system, except images and ``OUTSIDE``."""
    names = {name[len(root) :].strip("/"): name for name in files.find(root)}
    kept = {key: name for key, name in names.items() if is_compared(key)}
    with ThreadPoolExecutor(8) as threads:
        data = dict(zip(kept, threads.map(files.cat_file, kept.values()), strict=True))
    jobs = {key.split("/")[0]: json.loads(data[key]) for key in kept if key.endswith("_job.json")}
    return Objects({key: hashlib.sha256(value).hexdigest() for key, value in data.items()}, jobs)


def is_compared(key: str) -> bool:
    """Whether bytes under this key are promised to be equal."""
    folders = key.split("/")
    return folders[0] != "images" and not set(OUTSIDE) & set(folders)


def compare(where: str, steps: Sequence[Step], base: Objects, tree: Objects) -> Iterator[str]:
    """Prints what differs, step by step; yields the steps whose difference no ``rules`` number explains."""
    print(f"== compared: {where}")
    changed_rules: set[str] = set()
    for step in steps:
        rules = [(rules_of(base, folder), rules_of(tree, folder)) for folder in step.folders]
        if any(old != new for old, new in rules) or changed_rules & set(step.after):
            changed_rules.add(step.name)
        ours = {key for key in base.sha256.keys() | tree.sha256.keys() if key.split("/")[0] in step.folders}
        lines = list(differences(ours, base, tree))
        excused = step.name in changed_rules
        verdict = "equal" if not lines else "differs, as its rules number says" if excused else "DIFFERS"
        print(f"{step.name:22} {len(ours):4} objects  {verdict}")
        print("".join(f"    {line}\n" for line in lines), end="")
        if not ours:
            raise AssertionError(f"{step.name} made nothing in {step.folders}")
        if lines and not excused:
            yield step.name


def differences(keys: set[str], base: Objects, tree: Objects) -> Iterator[str]:
    """The keys that differ, are missing or are new, the first few by name.

    For a job's record it also says how that differs.
    """
    found = {
        "differs": sorted(
            k for k in keys & base.sha256.keys() & tree.sha256.keys() if base.sha256[k] != tree.sha256[k]
        ),
        "missing": sorted(keys - tree.sha256.keys()),
        "extra": sorted(keys - base.sha256.keys()),
    }
    for what, names in found.items():
        yield from (f"{what}: {name}" for name in names[:SHOWN])
        if len(names) > SHOWN:
            yield f"{what}: and {len(names) - SHOWN} more"
    for folder in sorted({key.split("/")[0] for key in found["differs"] if key.endswith("_job.json")}):
        yield from (
            f"  {folder}/_job.json: {line}" for line in json_differences(base.jobs[folder], tree.jobs[folder])
        )


def json_differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Paths of two JSON values at which they differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from json_differences(
                old.get(key, "(absent)"), new.get(key, "(absent)"), f"{path}.{key}".strip(".")
            )
    elif old != new:
        yield f"{path}: {old!r} -> {new!r}"


def rules_of(objects: Objects, folder: str) -> int:
    """The number a stage raises when it makes other bytes from the same settings; 1 where a job has none."""
    return objects.jobs.get(folder, {}).get("parts", {}).get("rules", 1)


if __name__ == "__main__":
    sys.exit(main())
