"""How long a wrong setting takes to be said: ``python -m tests.faults.wrong_settings`` prints the table.

Each case is a command that a user runs with one thing wrong, against a real S3 server that knows one key.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from jobs.local_s3 import free_ports, make_bucket, start_seaweed

SECONDS = 15.0
"""Longest that any of them may take."""
KEY, SECRET, BUCKET = "known", "shared-secret", "bucket"
ENCODE = ("encode", "--images.uri", "images", "--images.size", "16", "--vae", "vae", "--output")


@dataclass(frozen=True)
class Case:
    """One thing that is wrong, and what must be said of it."""

    what: str
    said: str
    """A regular expression."""
    output: str = f"s3://{BUCKET}/out"
    images: str = "images"
    environment: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    """Over that of a user who has everything right; None takes a variable away."""

    @property
    def command(self) -> list[str]:
        """The words after `ray-dit`."""
        return [self.images if word == "images" else word for word in ENCODE] + [self.output]


@dataclass(frozen=True)
class Places:
    """Endpoints that are there."""

    s3: str
    silent: str
    """Takes connections and never answers."""
    web: str
    """Answers, and is no S3."""
    closed: str
    """Nobody listens."""


def cases(places: Places) -> list[Case]:
    """All of them."""

    def endpoint(url: str) -> dict[str, str | None]:
        return {"AWS_ENDPOINT_URL": url}

    no_keys = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
    return [
        Case(
            "endpoint whose name is not known", "no S3 service answers at http://s3.nowhere.invalid .*AWS_ENDPOINT_URL",
            environment=endpoint("http://s3.nowhere.invalid"),
        ),
        Case(
            "endpoint where nobody listens", f"answers at {places.closed} .*AWS_ENDPOINT_URL",
            environment=endpoint(places.closed),
        ),
        Case(
            "endpoint that never answers", f"answers at {places.silent} .*AWS_ENDPOINT_URL",
            environment=endpoint(places.silent),
        ),
        Case(
            "endpoint that is no S3", f"answers at {places.web} .*AWS_ENDPOINT_URL", environment=endpoint(places.web)
        ),
        Case("endpoint without http://", "check AWS_ENDPOINT_URL", environment=endpoint("localhost:8333")),
        Case("unknown key", "does not know this access key: .*AWS_ACCESS_KEY_ID",
             environment={"AWS_ACCESS_KEY_ID": "nobody"}),
        Case("wrong secret", "refuses the secret key: check AWS_SECRET_ACCESS_KEY",
             environment={"AWS_SECRET_ACCESS_KEY": "wrong"}),
        Case("no credentials", "needs credentials: set AWS_ACCESS_KEY_ID", environment=no_keys),
        Case("unknown profile", "needs the profile 'nobody', .*check AWS_PROFILE",
             environment=no_keys | {"AWS_PROFILE": "nobody"}),
        Case("region that is no name", "cannot be in the region 'eu west': check AWS_DEFAULT_REGION",
             environment={"AWS_DEFAULT_REGION": "eu west"}),
        Case("bucket that does not exist", "in a bucket that does not exist: create it", output="s3://nobodys/out"),
        Case("bucket name that is not valid", "bucket.* not valid.*check the URI", output="s3://no bucket/out"),
        Case("no bucket", "'s3://' names no bucket", output="s3://"),
        Case("one slash", "'s3:/bucket/out' is neither a path nor a URI: give s3://", output="s3:/bucket/out"),
        Case("output on the web", "can be read but not written", output="https://s3.nowhere.invalid/out"),
        Case("scheme that is not known", "give a path, s3://", output="foo://bucket/out"),
        Case("output by a link to itself", "symbolic links that end nowhere", output="loop"),
        Case("output below a file", "cannot be made", output="file/out"),
        Case("output among the images", "lies in the image folder", output="images/out"),
        Case("a FIFO for the images", "wanted", images="fifo", output="out"),
        Case("images in a circle of links", "a folder it lies in", images="endless", output="out"),
    ]  # fmt: skip


def environment_of(case: Case, places: Places, home: Path) -> dict[str, str]:
    """Of a process that runs the case."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    mine |= {"HOME": str(home), "AWS_ENDPOINT_URL": places.s3, "AWS_EC2_METADATA_DISABLED": "true"}
    mine |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    for name, value in case.environment.items():
        mine.pop(name, None)
        mine |= {} if value is None else {name: value}
    return mine


def write_inputs(folder: Path) -> None:
    """Images, a VAE, and what is odd."""
    from tests.support.tiny import write_pictures, write_vae

    for name in ("images", "endless"):
        write_pictures(folder / name, {"left": 2, "right": 2})
    write_vae(folder / "vae")
    (folder / "endless/left/again").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    (folder / "file").write_text("x")
    os.mkfifo(folder / "fifo")


@contextmanager
def started_places(folder: Path) -> Iterator[Places]:
    """A real S3 server that knows one key, one that never answers, and a web server."""
    known = {"name": "user", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
    known |= {"actions": ["Read", "Write", "List"]}  # an Admin's requests make the buckets they name
    admin = {"name": "anonymous", "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [known, admin]}))
    s3, stop = start_seaweed(folder / "s3", options=[f"-s3.config={folder / 's3.json'}"])
    with ExitStack() as stack:
        stack.callback(stop)
        make_bucket(s3, BUCKET)
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        web = stack.enter_context(HTTPServer(("127.0.0.1", 0), NotThere))
        threading.Thread(target=web.serve_forever, daemon=True).start()
        stack.callback(web.shutdown)
        numbers = [silent.getsockname()[1], web.server_port, *free_ports(1)]
        yield Places(s3, *(f"http://127.0.0.1:{number}" for number in numbers))


class NotThere(BaseHTTPRequestHandler):
    """A web server that has nothing."""

    def do_GET(self) -> None:
        self.send_error(404)

    do_HEAD = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> int:
    """Runs each case as a process of its own; the table, and 1 if one is late or says something else."""
    failed = 0
    with tempfile.TemporaryDirectory() as scratch, started_places(Path(scratch)) as places:
        write_inputs(Path(scratch))
        print("| Wrong | Seconds | What is said |\n|---|---|---|")
        for case in cases(places):
            begun = time.monotonic()
            ran = subprocess.run(
                [sys.executable, "-m", "ray_dit.cli", *case.command],
                cwd=scratch,
                env=environment_of(case, places, Path(scratch)) | {"PYTHONPATH": str(Path(__file__).parents[2])},
                capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            seconds = time.monotonic() - begun
            line = ran.stderr.strip().removeprefix("ray-dit: error: ").replace(scratch, "...")
            failed += (
                ran.returncode != 1 or "\n" in line or seconds > SECONDS or not re.search(case.said, line)
            )
            print(f"| {case.what} | {seconds:.1f} | {line} |", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
