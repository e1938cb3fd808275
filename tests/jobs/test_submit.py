"""A Ray cluster that is there, with token authentication.

Stages join it by --address, and jobs are submitted to it.
"""

import os
import secrets
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from jobs.local_s3 import free_ports
from tests.support.tiny import contents, write_model, write_vae

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Cluster:
    address: str
    dashboard: str
    environment: dict[str, str]

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = self.environment | environment
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def token_environment(home: Path) -> dict[str, str]:
    """A home of its own with a token in it."""
    home.mkdir()
    (home / "token").write_text(secrets.token_hex(32))
    (home / "token").chmod(0o600)
    own = {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home / "token")}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return inherited | own | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    environment = token_environment(folder / "home")
    port, dashboard, client, agent = free_ports(4)
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=4", "--node-ip-address=127.0.0.1",
        f"--port={port}", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        try:
            await_dashboard(f"http://127.0.0.1:{dashboard}", head, folder / "log")
            yield Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment)
        finally:
            head.terminate()  # with --block it takes its own processes along, and no other cluster's
            head.wait(60)


def await_dashboard(url: str, head: "subprocess.Popen[bytes]", log: Path) -> None:
    """Waits until jobs can be submitted; without the token that is answered 401."""
    end = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{url}/api/jobs/", timeout=5).close()
            raise AssertionError("the dashboard asks for no token")
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                return
        except OSError:
            pass
        assert head.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.5)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("submit")
    for name in ("left", "right"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(4):
            picture = np.full((16, 16, 3), 30 * number, np.uint8)
            Image.fromarray(picture).save(folder / "images" / name / f"{number}.png")
    write_vae(folder / "vae")
    return folder


def options(place: Path, output: str) -> list[str]:
    pictures = ["--images.uri", str(place / "images"), "--images.size", "16", "--images.heldout", "0"]
    return [*pictures, "--vae", str(place / "vae"), "--output", str(place / output), "--shard-size", "4"]


def test_a_stage_joins_by_address_and_a_submitted_job_makes_the_same(cluster: Cluster, place: Path) -> None:
    encode = ["ray-dit", "encode", "--address", cluster.address, *options(place, "joined")]
    joined = cluster.run(*encode)
    assert joined.returncode == 0, joined.stderr[-3000:]
    assert "latents of 8 images in 2 classes" in joined.stdout
    submit = ["ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--"]
    submitted = cluster.run(*submit, "python", "-m", "jobs.encode", *options(place, "submitted"))
    assert submitted.returncode == 0, submitted.stdout[-3000:] + submitted.stderr[-3000:]
    assert "latents of 8 images in 2 classes" in submitted.stdout
    assert contents(place / "submitted") == contents(place / "joined") != {}


def test_the_config_file_is_deployed_and_changed_without_dropping_a_request(
    cluster: Cluster, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    document = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())
    document["http_options"]["port"] = port
    arguments = document["applications"][0]["args"]
    write_model(tmp_path / "model", ("left", "right"))
    arguments |= {"model": [f"tiny={tmp_path / 'model'}"], "engine": {"profile_seconds": 0}}
    body = {"prompt": "left", "seed": 1, "num_inference_steps": 20}
    url, answers = f"http://127.0.0.1:{port}", []

    def deploy() -> None:
        (tmp_path / "serve.yaml").write_text(yaml.safe_dump(document))
        deployed = cluster.run("serve", "deploy", "-a", cluster.dashboard, str(tmp_path / "serve.yaml"))
        assert deployed.returncode == 0, deployed.stderr[-3000:]

    def await_deployment(after: float = 0.0) -> float:
        end = time.monotonic() + 120
        while True:
            status = yaml.safe_load(cluster.run("serve", "status", "-a", cluster.dashboard).stdout)
            application = status["applications"]["ray-dit"]
            if application["status"] == "RUNNING" and application["last_deployed_time_s"] > after:
                return application["last_deployed_time_s"]
            assert application["status"] != "DEPLOY_FAILED", status
            assert time.monotonic() < end, status
            time.sleep(1)

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(httpx.post(f"{url}/v1/images/generations", json=body, timeout=60))

    deploy()
    first = await_deployment()
    assert httpx.get(f"{url}/ready").json() == {"status": "ok"}
    stop, asking = threading.Event(), threading.Thread(target=keep_asking)
    asking.start()
    try:
        arguments["engine"]["decode_batch"] = 4  # new replicas
        deploy()
        await_deployment(first)
    finally:
        stop.set()
        asking.join(60)
    assert len(answers) > 3
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["data"][0]["b64_json"] for answer in answers}) == 1
    cluster.run("serve", "shutdown", "-y", "-a", cluster.dashboard)


def test_a_submitted_job_that_is_refused_fails_with_the_sentence(cluster: Cluster, place: Path) -> None:
    submit = ["ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--"]
    wrong = [*options(place, "none"), "--images.uri", str(place / "missing")]
    refused = cluster.run(*submit, "python", "-m", "jobs.encode", *wrong)
    said = refused.stdout + refused.stderr
    assert refused.returncode != 0
    assert "ray-dit: error: the image folder" in said
    assert "does not exist" in said
    assert 'File "' not in refused.stdout


def test_a_wrong_token_is_one_sentence(cluster: Cluster, place: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(secrets.token_hex(32))
    encode = ["ray-dit", "encode", "--address", cluster.address, *options(place, "stranger")]
    refused = cluster.run(*encode, RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert refused.returncode == 1, refused.stderr[-2000:]
    assert refused.stderr.count("\n") == 1
    assert f"the Ray cluster at '{cluster.address}' wants a token" in refused.stderr
    assert "RAY_AUTH_MODE" in refused.stderr
    assert not list((place / "stranger").glob("_markers/*"))
