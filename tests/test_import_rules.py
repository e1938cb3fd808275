"""The import rules of pyproject.toml are kept, and a forbidden import anywhere breaks them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"

FORBIDDEN = {
    "core imports fsspec": ("core/order.py", "import fsspec", "the core knows neither Ray nor files"),
    "core imports ray in a function": ("core/rng.py", "def f():\n    import ray", "the core knows neither Ray"),
    "core imports storage": ("core/loss.py", "import ray_dit.storage.store", "imports go down only"),
    "storage imports core": ("storage/job.py", "import ray_dit.core.order", "imports go down only"),
    "storage imports a stage": ("storage/runs.py", "import ray_dit.stages.encode", "imports go down only"),
    "serving imports a stage": ("serving/engine.py", "import ray_dit.stages.encode", "imports go down only"),
    "the command line imports a job": ("cli/main.py", "import jobs.demo", "imports go down only"),
    "config imports torch": ("config/base.py", "import torch", "settings are data"),
    "encode imports train": ("stages/encode.py", "import ray_dit.stages.train", "a stage never imports another"),
    "a helper imports its stage": ("stages/images.py", "import ray_dit.stages.encode", "a stage never imports another"),
    "a new stage nobody placed": ("stages/new.py", "", "a stage never imports another"),
}  # fmt: skip


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", LINT], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages and their rules, to be spoilt."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("ray_dit", "jobs"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_rules_are_kept(copied: Path) -> None:
    ran = lint(copied)
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert "0 broken" in ran.stdout


@pytest.mark.parametrize("case", FORBIDDEN)
def test_a_forbidden_import_breaks_them(case: str, copied: Path) -> None:
    name, line, rule = FORBIDDEN[case]
    path = copied / "ray_dit" / name
    before = path.read_text() if path.exists() else None
    try:
        path.write_text(f"{before or ''}\n{line}\n")
        ran = lint(copied)
    finally:
        path.write_text(before) if before is not None else path.unlink()
    assert ran.returncode != 0
    broken = [text for text in ran.stdout.splitlines() if "BROKEN" in text]
    assert any(rule in text for text in broken), ran.stdout[-1500:] + ran.stderr
