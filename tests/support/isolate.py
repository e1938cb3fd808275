"""A pytest plugin: a file's tests that start Ray (mark ``ray``) run in a child process, one per file.

Ray numbers actors alike in every session of a process, and a handle left over from one session takes down the
actor of that number in the next; so two files that start Ray must not share a process. Everything else stays
as it is: the child runs the tests that the parent has selected, in their order, and sends each report as it
comes; the parent shows them as its own. So ``-k``, ``-m``, ``-x``, ``--lf``, single files and single tests
work as ever, and so does xdist: with ``--dist loadfile`` a file has its one process, else each test has its
own. These tests come last, after those that need no Ray. ``--pdb`` and ``--no-isolation`` turn it off: then
give one file.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

REPORTS = "RAY_DIT_TEST_REPORTS"
"""Environment variable: the file descriptor to which a child writes its reports, one JSON document per
line."""
GRACE_SECONDS = 60.0
"""How long after a test's own timeout, or after its last test, a child is killed that does not end by
itself."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-isolation", action="store_true", help="tests that start Ray stay in this process")


def pytest_configure(config: pytest.Config) -> None:
    if REPORTS in os.environ:
        descriptor = int(
            os.environ.pop(REPORTS)
        )  # ours alone: the parent waits until every copy of it is closed
        os.set_inheritable(descriptor, False)
        config.pluginmanager.register(Child(config, descriptor), "isolation-child")
    elif not config.getoption("no_isolation") and not config.getoption("usepdb"):
        config.pluginmanager.register(Parent(config), "isolation-parent")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tells a worker of xdist whether it is given whole files, which it can't know by itself."""
    node.workerinput["whole_files"] = node.config.getoption("dist") == "loadfile"


class Child:
    """Sends every report of this process to the parent."""

    def __init__(self, config: pytest.Config, descriptor: int) -> None:
        self.config = config
        self.pipe = os.fdopen(descriptor, "w", buffering=1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.pipe.write(json.dumps({"report": data}) + "\n")

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.pipe.write(json.dumps({"finished": nodeid}) + "\n")


class Parent:
    """Hands the tests that start Ray to children, and shows the reports of these as its own."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.child: Running | None = None
        self.whole_files = getattr(config, "workerinput", {}).get("whole_files", True)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Last, and together, since pytest tears down what its tests set up before its own next begins."""
        items.sort(key=is_isolated)

    @pytest.hookimpl(tryfirst=True, optionalhook=True)
    def pytest_timeout_set_timer(self, item: pytest.Item) -> bool | None:
        """The child has the timer: the parent's would also count how long the child takes to start."""
        return True if is_isolated(item) else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if not is_isolated(item):
            return None
        if self.child is None:
            self.child = Running.start(self.config, self.items_from(item))
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self.child.reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        is_last = nextitem is None or not self.whole_files or not same_file(nextitem, item)
        if self.child.ended or is_last:
            child, self.child = self.child, None
            for report in child.last_reports(item):
                item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def items_from(self, item: pytest.Item) -> list[pytest.Item]:
        """What a new child runs: this test and those after it; one before may have killed a child."""
        if not self.whole_files:  # the others may be another worker's
            return [item]
        rest = item.session.items[item.session.items.index(item) :]
        return [other for other in rest if same_file(other, item)]

    def pytest_unconfigure(self) -> None:
        if self.child is not None:  # after -x or Ctrl-C, which have reached it too: it is about to end
            self.child.end(seconds=GRACE_SECONDS / 6)


@dataclass
class Running:
    """A child process, its reports so far unread, and what it prints."""

    config: pytest.Config
    process: "subprocess.Popen[bytes]"
    pipe: Any
    output: Path
    ended: bool = False

    @classmethod
    def start(cls, config: pytest.Config, items: list[pytest.Item]) -> "Running":
        """Starts a child for these tests, which are of one file."""
        read, write = os.pipe()
        descriptor, output = tempfile.mkstemp(prefix="pytest-child-")
        try:
            process = subprocess.Popen(
                [
                    sys.executable, *measured(), "-m", "pytest", *child_options(config),
                    *(item.nodeid for item in items),
                ],
                cwd=config.rootpath, env=os.environ | {REPORTS: str(write)}, pass_fds=(write,),
                stdin=subprocess.DEVNULL, stdout=descriptor, stderr=subprocess.STDOUT,
            )  # fmt: skip
        finally:
            os.close(write)
            os.close(descriptor)
        return cls(config, process, os.fdopen(read), Path(output))

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """The child's reports of this test.

        If the child dies or hangs over it, they are a failure with all it has printed.
        """
        deadline = threading.Timer(timeout_of(item) + GRACE_SECONDS, self.process.kill)
        deadline.start()
        try:
            for line in self.pipe:
                message = json.loads(line)
                if message.get("finished") == item.nodeid:
                    return
                if "report" in message:
                    yield self.config.hook.pytest_report_from_serializable(
                        config=self.config, data=message["report"]
                    )
        finally:
            deadline.cancel()
        self.ended = True
        self.process.wait()
        yield self.failure(item, "call")

    def last_reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """Waits until the child has cleaned up after its last test.

        Returns a failure of that test if it dies or hangs there.
        """
        self.await_end(GRACE_SECONDS)
        if self.process.returncode < 0 and not self.ended:
            yield self.failure(item, "teardown")
        self.end()

    def failure(self, item: pytest.Item, when: Literal["call", "teardown"]) -> pytest.TestReport:
        printed = self.output.read_text(errors="replace")
        status = self.process.returncode
        text = f"the process of this file ended with status {status} in {item.nodeid}:\n{printed}"
        return pytest.TestReport(item.nodeid, item.location, {}, "failed", text, when)

    def await_end(self, seconds: float) -> None:
        """Waits until the process has ended, and kills it if it has not in so many seconds."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def end(self, seconds: float = 0.0) -> None:
        """Awaits the process's end, then removes what it has left."""
        self.await_end(seconds)
        self.pipe.close()
        self.output.unlink(missing_ok=True)


def is_isolated(item: pytest.Item) -> bool:
    """Whether it runs in a child."""
    return item.get_closest_marker("ray") is not None


def same_file(one: pytest.Item, other: pytest.Item) -> bool:
    """Whether one child runs both."""
    return is_isolated(one) and is_isolated(other) and one.path == other.path


def child_options(config: pytest.Config) -> list[str]:
    """What a child needs of the parent's options: the parent has selected, and it writes the reports."""
    named = {"tbstyle": "--tb", "capture": "--capture", "maxfail": "--maxfail"}
    given = [f"{option}={config.getoption(name)}" for name, option in named.items() if config.getoption(name)]
    place = [f"--rootdir={config.rootpath}", *(["-c", str(config.inipath)] if config.inipath else [])]
    return ["-q", "-p", "no:cacheprovider", *place, *given]


def measured() -> list[str]:
    """Runs a child under coverage where this process is.

    In its own processes, such as Ray's workers, nothing is.
    """
    if "coverage" in sys.modules and sys.modules["coverage"].Coverage.current() is not None:
        return ["-m", "coverage", "run"]
    return []


def timeout_of(item: pytest.Item) -> float:
    """Seconds this test may take by its mark, else by the configuration; a day where there is no limit."""
    marker = item.get_closest_marker("timeout")
    given = (marker.args[0] if marker.args else marker.kwargs.get("timeout")) if marker else None
    return float(given or item.config.getini("timeout") or 86400)
