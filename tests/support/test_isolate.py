"""The plugin that runs each file of Ray tests in a process: what it shows is what pytest would show."""

import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
FILES = {
    "test_one": """
        import os, pytest
        pytestmark = pytest.mark.ray
        @pytest.fixture(scope="module")
        def shared():
            yield os.getpid()
            print("cleaned up")
        def test_first(shared): write_pid("first")
        def test_second(shared):
            write_pid("second")
            assert os.getpid() == shared
        @pytest.mark.skip(reason="not today")
        def test_skipped(): pass
    """,
    "test_two": """
        import pytest
        @pytest.mark.ray
        def test_wrong():
            print("said before it failed")
            write_pid("wrong")
            left = 1
            assert left == 2
        def test_plain(): write_pid("plain")
        @pytest.mark.ray
        def test_after(): write_pid("after")
    """,
}
WRITE_PID = """
import os
def write_pid(name):
    with open("pids", "a") as file:
        file.write(f"{name} {os.getpid()}\\n")
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with the plugin and two files of tests, which write down the process they run in."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # a dozen plugins take seconds to load
    monkeypatch.delenv("RAY_DIT_TEST_REPORTS", raising=False)
    pytester.makeini("[pytest]\nmarkers =\n    ray: starts Ray\naddopts = -p pytest_timeout\ntimeout = 60\n")
    pytester.makeconftest('pytest_plugins = ["tests.support.isolate"]')
    for name, text in FILES.items():
        pytester.makepyfile(**{name: text})
        path = pytester.path / f"{name}.py"
        path.write_text(WRITE_PID + path.read_text())
    return pytester


def pids(project: pytest.Pytester) -> dict[str, str]:
    """The process of each test that ran, in their order."""
    path = project.path / "pids"
    return dict(line.split() for line in path.read_text().splitlines()) if path.exists() else {}


def test_a_file_has_a_process_and_failures_are_shown_in_full(project: pytest.Pytester) -> None:
    result = project.runpytest_subprocess("--durations=1")
    result.assert_outcomes(passed=4, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*assert left == 2", "E*assert 1 == 2", "*said before it failed*"])
    assert "FAILED test_two.py::test_wrong - assert 1 == 2" in result.stdout.str()
    ran = pids(project)
    assert list(ran) == ["plain", "first", "second", "wrong", "after"]  # those without Ray come first
    assert ran["first"] == ran["second"]
    assert ran["wrong"] == ran["after"]
    assert len(set(ran.values())) == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-m", "not ray"], ["plain"]),
        (["-k", "second or after"], ["second", "after"]),
        (["test_two.py"], ["plain", "wrong", "after"]),
        (["test_one.py::test_second"], ["second"]),
        (["-x"], ["plain", "first", "second", "wrong"]),
    ],
)
def test_the_usual_selections_work(
    project: pytest.Pytester, arguments: list[str], expected: list[str]
) -> None:
    project.runpytest_subprocess(*arguments)
    assert list(pids(project)) == expected


def test_the_last_failures_are_run_again(project: pytest.Pytester) -> None:
    project.runpytest_subprocess()
    (project.path / "pids").unlink()
    project.runpytest_subprocess("--lf")
    assert list(pids(project)) == ["wrong"]


def test_without_isolation_all_stay_in_one_process(project: pytest.Pytester) -> None:
    project.runpytest_subprocess("--no-isolation").assert_outcomes(passed=4, failed=1, skipped=1)
    assert len(set(pids(project).values())) == 1


DYING = """
    import os, pytest, signal
    pytestmark = pytest.mark.ray
    def test_dies():
        os.write(2, b"the last words")
        os.kill(os.getpid(), signal.SIGKILL)
    def test_lives(): write_pid("lives")
"""


def test_a_process_that_dies_is_a_failure_and_the_rest_run_in_another(project: pytest.Pytester) -> None:
    path = project.makepyfile(test_dying=DYING)
    path.write_text(WRITE_PID + path.read_text())
    result = project.runpytest_subprocess(str(path), "-s")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*status -9*test_dying.py::test_dies*", "*the last words*"])
    assert list(pids(project)) == ["lives"]


def test_a_process_that_dies_while_cleaning_up_is_a_failure(project: pytest.Pytester) -> None:
    path = project.makepyfile(
        test_ending="""
        import atexit, os, pytest
        @pytest.mark.ray
        def test_leaves_something(): atexit.register(os.abort)
        """
    )
    result = project.runpytest_subprocess(str(path))
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*status -6*test_leaves_something*"])


def test_a_test_that_takes_too_long_fails_with_its_stack(project: pytest.Pytester) -> None:
    path = project.makepyfile(
        test_long="""
        import pytest, time
        @pytest.mark.ray
        @pytest.mark.timeout(1)
        def test_sleeps(): time.sleep(50)
        """
    )
    result = project.runpytest_subprocess(str(path))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*time.sleep(50)*", "*Timeout*"])


def test_with_xdist_by_files_each_file_has_a_process(project: pytest.Pytester) -> None:
    options = ("-p", "xdist", "-n2", "--dist", "loadfile")
    project.runpytest_subprocess(*options).assert_outcomes(passed=4, failed=1, skipped=1)
    ran = pids(project)
    assert ran["first"] == ran["second"]
    assert ran["wrong"] == ran["after"]
    assert len(set(ran.values())) == 3


def test_with_xdist_else_each_test_has_a_process(project: pytest.Pytester) -> None:
    project.runpytest_subprocess("-p", "xdist", "-n2").assert_outcomes(passed=4, failed=1, skipped=1)
    ran = pids(project)
    assert set(ran) == {"plain", "first", "second", "wrong", "after"}
    assert len(set(ran.values())) == 5


def test_coverage_reaches_into_the_children(project: pytest.Pytester) -> None:
    (project.path / ".coveragerc").write_text("[run]\nparallel = true\nsource = .\n")
    project.run(sys.executable, "-m", "coverage", "run", "-m", "pytest", "test_one.py")
    project.run(sys.executable, "-m", "coverage", "combine")
    shown = project.run(sys.executable, "-m", "coverage", "report", "--include=test_one.py")
    shown.stdout.fnmatch_lines(["test_one.py* 100%"])
