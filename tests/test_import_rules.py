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
    "storage imports core": ("storage/local.py", "import ray_dit.core.order", "imports go down only"),
    "storage imports a stage": ("storage/retry.py", "import ray_dit.stages.encode", "imports go down only"),
    "the ledger imports a format": ("ledger/job.py", "import ray_dit.formats.labels", "imports go down only"),
    "a format imports storage": ("formats/labels.py", "import ray_dit.storage.open", "the formats know no store"),
    "a format imports the ledger": ("formats/weights.py", "import ray_dit.ledger.job", "the formats know no store"),
    "a stage imports a format": (
        "stages/encode.py", "import ray_dit.formats.images.folder", "only the registry imports an image format",
    ),
    "a circle in a package": ("storage/store.py", "def f():\n    import ray_dit.storage.open", "no import circle"),
    "serving imports a stage": ("serving/engine/loop.py", "import ray_dit.stages.encode", "imports go down only"),
    "the command line imports a job": ("cli/main.py", "import jobs.demo", "imports go down only"),
    "a stage imports a sampler": ("stages/encode.py", "import ray_dit.core.samplers.ddim", "reached by their"),
    "a stage imports a figure": ("stages/evaluate.py", "import ray_dit.metrics.figures.cas", "reached by their"),
    "a figure imports another": ("metrics/figures/cas.py", "import ray_dit.metrics.figures.frechet", "reached by their"),
    "metrics import a stage": ("metrics/base.py", "import ray_dit.stages.images", "imports go down only"),
    "config imports torch": ("config/base.py", "import torch", "settings are data"),
    "encode imports train": ("stages/encode.py", "import ray_dit.stages.train", "a stage never imports another"),
    "a helper imports its stage": ("stages/fingerprint.py", "import ray_dit.stages.encode", "a stage never imports another"),
    "a route imports ray": ("serving/http/routes.py", "def f():\n    import ray", "only serving's deployments know Ray"),
    "a service imports a deployment": ("serving/service.py", "import ray_dit.serving.deployments.metrics", "serving is deployments"),
    "the engine imports HTTP": ("serving/engine/loop.py", "import ray_dit.serving.http.spec", "the engine knows no HTTP"),
    "a route imports the engine": ("serving/http/routes.py", "import ray_dit.serving.engine.policy", "the engine knows no HTTP"),
    "the policy imports torch": ("serving/engine/policy.py", "import torch", "the engine's policy is rules"),
    "tickets import asyncio": ("serving/engine/tickets.py", "import asyncio", "the engine's policy is rules"),
    "a new part of serving nobody placed": ("serving/new.py", "", "serving is deployments"),
    "the runtime imports a stage": ("runtime/training/task.py", "import ray_dit.stages.train", "imports go down only"),
    "the training loop imports "
    "ray": ("runtime/training/loop.py", "def f():\n    import ray", "only launch knows Ray"),
    "a part of training imports "
    "another": ("runtime/training/parallel.py", "import ray_dit.runtime.training.checkpointer", "put together by its worker"),
    "a stage imports ray": ("stages/encode.py", "def f():\n    import ray", "only the runtime and serving's deployments"),
    "the queue imports ray": ("runtime/shard_queue.py", "import ray", "only the runtime and serving's deployments"),
    "a new part of the runtime nobody placed": ("runtime/new.py", "", "the runtime is shards and training"),
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
