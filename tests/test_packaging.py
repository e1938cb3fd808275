"""What is imported is declared and pinned, and the wheel works outside the repository."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"ray_dit", "jobs", "tests", "benchmarks"}
OF_EXTRAS = {"torch_fidelity": "torch-fidelity"}
"""Imports of extras that are not installed for the tests."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required(requirements: Iterable[str]) -> set[str]:
    """Distributions by name, without extras and versions."""
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}  # type: ignore[index]


def imports(folder: Path) -> dict[str, str]:
    """Every foreign top-level module that files in ``folder`` import anywhere, and a file that does."""
    found: dict[str, str] = {}
    for path in folder.rglob("*.py"):
        if "golden" in path.parts:  # made with the imports of an older commit
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            found |= {name.split(".")[0]: str(path) for name in names}
    return {name: path for name, path in found.items() if name not in OURS | sys.stdlib_module_names}


def undeclared(folder: Path, declared: set[str]) -> Iterator[str]:
    """What is imported in ``folder`` and comes from none of the declared distributions."""
    distributions = packages_distributions() | {name: [wanted] for name, wanted in OF_EXTRAS.items()}
    for module, path in imports(folder).items():
        wanted = {normal(name) for name in distributions.get(module, [module])}
        if not wanted & declared:
            yield f"{path} imports {module}, which is of {' or '.join(sorted(wanted))}"


RUNTIME = required(PROJECT["dependencies"])
EXTRAS = {name: required(wanted) for name, wanted in PROJECT["optional-dependencies"].items()}


@pytest.mark.parametrize(
    ("folder", "declared"),
    [
        ("ray_dit", RUNTIME | EXTRAS["tensorboard"] | EXTRAS["fid"]),
        ("jobs", RUNTIME | EXTRAS["demo"] | EXTRAS["fid"]),
        ("benchmarks", RUNTIME | EXTRAS["dev"]),
        ("tests", RUNTIME | EXTRAS["dev"] | EXTRAS["demo"]),
    ],
)
def test_what_is_imported_is_declared(folder: str, declared: set[str]) -> None:
    assert list(undeclared(ROOT / folder, declared)) == []


def test_an_import_nobody_declared_is_found(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("def f():\n    import httpx, json\n    from yaml import safe_load\n")
    assert list(undeclared(tmp_path, RUNTIME)) == [f"{tmp_path}/module.py imports httpx, which is of httpx"]


def test_what_is_declared_is_imported() -> None:
    """A requirement that nothing uses any more goes."""
    distributions = packages_distributions()
    used = {normal(name) for module in imports(ROOT / "ray_dit") for name in distributions.get(module, [])}
    assert RUNTIME - used == set()


def test_every_requirement_is_pinned_and_explained() -> None:
    pinned = required((ROOT / "constraints.txt").read_text().splitlines())
    wanted = RUNTIME | set().union(*EXTRAS.values())
    # torch-fidelity brings torchvision, whose version goes with the torch in use
    assert wanted - pinned - {"ray-dit", "torch-fidelity"} == set()
    explained = normal((ROOT / "docs" / "dependencies.md").read_text())
    assert [name for name in sorted(wanted - {"ray-dit"}) if name not in explained] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools would pack what an earlier build has left in ./build."""
    copy = tmp_path_factory.mktemp("source") / "ray-dit"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    for package in ("ray_dit", "jobs", "tests"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", "dist", ".", cwd=copy
    )
    return next((copy / "dist").glob("ray_dit-*.whl"))


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Runs a command; its output. AssertionError with what it said if it fails."""
    kept = {"PATH": os.environ["PATH"], "HOME": str(cwd)}
    ran = subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    return ran.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {
        path for path in (ROOT / "ray_dit").rglob("*") if path.is_file() and path.parent.name != "__pycache__"
    }
    assert packed == {path.relative_to(ROOT).as_posix() for path in files}
    assert any(name.endswith("index.html") for name in packed)
    assert "ray_dit/py.typed" in packed


def test_the_installed_wheel_works_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path)
    where = "import ray_dit; print(ray_dit.__file__)"
    assert run(sys.executable, "-P", "-c", where, cwd=tmp_path, PYTHONPATH=str(site)).startswith(str(site))
    command = str(site / "bin" / "ray-dit")
    assert "generate" in run(command, "--help", cwd=tmp_path, PYTHONPATH=str(site))
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "_job.json").write_text(
        '{"stage": "encode", "fingerprint": "1", "format": 1, "parts": {"config": {}}}'
    )
    assert "encode" in run(command, "info", "folder", cwd=tmp_path, PYTHONPATH=str(site))
    assert not (site / "jobs").exists()
    assert not (site / "tests").exists()
