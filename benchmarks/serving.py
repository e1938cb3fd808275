"""Latency and throughput of the image endpoint under open-loop load, beside an ideal and `@serve.batch`.

    python -m benchmarks.serving --device simulated   # an accelerator whose step of r rows takes a + b·r
    python -m benchmarks.serving --device cpu --model dit-s2    # DiT-S/2 with random weights; hours on a CPU
    python -m benchmarks.serving --device cpu --model FOLDER    # any model folder, such as the demo's
    --quick: a few minutes, for a look;  --again: only the latencies at --loads, into existing results

Everything is measured through HTTP and Ray Serve, on this machine. Requests arrive as a Poisson process (open
loop: they do not wait for each other), each of 1-4 images in 10, 20 or 50 steps, guided. The ideal gets the
same arrivals and the step times the engine measured, gives out steps by the same rule, and has no overhead of
any kind. On a CPU, which other programs slow down, its step times are the profile's, made at the start from
the fastest calls, times how much longer steps took during that load; the figure by the profile alone stands
beside. The baseline puts the same model and the same step function behind `@serve.batch`: a batch of requests
runs until its longest is done. Throughputs are measured in turns (bulk generation, ours, the baseline, and
again), so that a machine that gets slower does so for all.

Results: OUTPUT/serving-NAME.json, a table on the screen, and OUTPUT/serving-NAME.svg, latency against load.
"""

import argparse
import asyncio
import base64
import bisect
import json
import logging
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.common import RESULTS, TRIALS, argument_parser, in_turns, machine, write_json
from ray_dit.serving.engine.policy import StepCurve, patience, row_limit
from ray_dit.serving.engine.tickets import Observer

STEPS, MOST_IMAGES = (10, 20, 50), 4
SHORT = {"n": 1, "num_inference_steps": 10}
LONG = {"n": 10, "num_inference_steps": 250}
MEAN_ROW_STEPS = float(2 * np.mean(STEPS) * np.mean(range(1, MOST_IMAGES + 1)))
"""Rows of the network a request takes over all its steps; guided, so two per image and step."""


@dataclass(frozen=True)
class Arrival:
    """A request of ``n`` images in ``steps`` steps, ``time`` seconds after the start of the load."""

    time: float
    n: int
    steps: int


def poisson(rate: float, seconds: float, seed: int) -> list[Arrival]:
    """Arrivals of a Poisson process of so many requests per second."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, size=int(rate * seconds * 2) + 20))
    return [
        Arrival(float(t), int(rng.integers(1, MOST_IMAGES + 1)), int(rng.choice(STEPS)))
        for t in times[times < seconds]
    ]


# ---- the ideal


def ideal(arrivals: Sequence[Arrival], curve: StepCurve, max_rows: int) -> list[float]:
    """Latency of each request when steps take what the curve says, and nothing else takes any time."""
    now, coming = 0.0, 0
    active: list[tuple[float, int, list[int]]] = []  # when due, number, steps left of each image
    latency = [0.0] * len(arrivals)
    while active or coming < len(arrivals):
        if not active:
            now = max(now, arrivals[coming].time)
        while coming < len(arrivals) and arrivals[coming].time <= now:
            one = arrivals[coming]
            due = one.time + patience(2 * one.n, one.steps, curve, max_rows)
            bisect.insort(active, (due, coming, [one.steps] * one.n))
            coming += 1
        room = row_limit([2 * len(left) for _, _, left in active], curve, max_rows)
        rows = 0
        for _, _, left in active:
            for image in range(len(left)):
                if rows + 2 <= room:
                    left[image] -= 1
                    rows += 2
        now += curve.seconds(rows)
        for _, number, left in active:
            left[:] = [steps for steps in left if steps]
            if not left:
                latency[number] = now - arrivals[number].time
        active = [request for request in active if request[2]]
    return latency


# ---- the servers


class Counted:
    """A network that counts its rows and, where a and b are given, is an accelerator's.

    A call takes a + b·rows.

    As on a GPU a call is issued and runs behind the one before; the host waits until that one is done, as the
    engine does on CUDA (at most one step ahead), and the results of a call are there when it is done
    (``finish``).
    """

    def __init__(self, network: Any, a: float | None, b: float | None) -> None:
        self.network, self.a, self.b = network, a, b
        self.rows = 0
        self.free_at = 0.0
        self.ahead = True

    def __call__(self, x: Any, t: Any, y: Any) -> Any:
        import torch

        self.rows += len(x)
        if self.a is None or self.b is None:
            return self.network(x, t, y)
        before = self.free_at
        self.free_at = max(time.perf_counter(), before) + self.a + self.b * len(x)
        _sleep_until(before if self.ahead else self.free_at)
        return torch.cat((0.9 * x, torch.zeros_like(x)), dim=1)

    def finish(self) -> None:
        """Waits for all calls issued so far."""
        _sleep_until(self.free_at)


def _sleep_until(moment: float) -> None:
    left = moment - time.perf_counter()
    if left > 0:
        time.sleep(left)


def counted_pipeline(
    uri: str, a: float | None, b: float | None, threads: int, precision: Any
) -> tuple[Any, Counted]:
    """The pipeline of a model folder, and its network in it, which counts the rows it is called with."""
    import torch

    from ray_dit.core.guidance import GuidedModel
    from ray_dit.pipeline import load

    torch.set_num_threads(threads)
    pipeline = load(uri, "cpu", precision=precision)
    guided = pipeline.guided_model
    counted = Counted(guided.network, a, b)
    pipeline.__dict__["guided_model"] = GuidedModel(counted, guided.null_label, guided.guidance_channels)
    decode = pipeline.decode

    def decode_when_there(latents: Any) -> Any:
        counted.finish()
        return decode(latents)

    pipeline.decode = decode_when_there
    return pipeline, counted


def bulk_rate(pipeline: Any, counted: Counted, images: int, seconds: float) -> float:
    """Rows per second of bulk generation, decoded.

    Batches are whole and of one kind, and nobody waits; it lasts ``seconds`` at least.
    """
    sampler = pipeline.sampler("dpmpp", steps=20, guidance_scale=2.0)
    started, before, passed = time.perf_counter(), counted.rows, 0.0
    while passed < seconds:
        pipeline.decode(
            pipeline.sample_latents([0] * images, sample_ids=range(images), seed=0, sampler=sampler)
        )
        passed = time.perf_counter() - started
    return (counted.rows - before) / passed


class StepTimes(Observer):
    """Time in steps, and what the profile said they would take."""

    def __init__(self) -> None:
        self.curve: StepCurve | None = None
        """The engine's, once it has one."""
        self.took = self.foreseen = 0.0

    def stepped(self, rows: int, seconds: float) -> None:
        if self.curve is not None:
            self.took += seconds
            self.foreseen += self.curve.seconds(rows)


class EngineReplica:
    """The project's engine.

    The methods of ray_dit.serving.deployments.replica.ModelReplica, and what a benchmark asks beside them.
    """

    def __init__(self, name: str, engine: dict[str, Any], **model: Any) -> None:
        from ray_dit.config.serve import EngineConfig
        from ray_dit.serving.service import ModelService

        self.pipeline, self.counted = counted_pipeline(**model)
        self.counted.ahead = False  # the profile waits for each call
        self.times = StepTimes()
        self.service = ModelService(name, self.pipeline, EngineConfig(**engine), self.times)
        self.times.curve = self.service.engine.curve
        self.counted.ahead = True

    async def info(self) -> Any:
        return await self.service.info()

    async def ready(self) -> bool:
        return await self.service.ready()

    async def generate(self, order: Any) -> Any:
        async for message in self.service.generate(order):
            yield message

    async def rows(self) -> int:
        return self.counted.rows

    async def curve(self) -> tuple[list[int], list[float], int]:
        curve = self.service.engine.curve
        return curve.rows, [curve.seconds(rows) for rows in curve.rows], self.service.engine.max_step_rows

    async def slowdown(self) -> float:
        """How much longer steps took than in the profile, since this was asked last."""
        ratio = self.times.took / (self.times.foreseen or 1.0)
        self.times.took = self.times.foreseen = 0.0
        return ratio

    async def bulk(self, images: int, seconds: float) -> float:
        return await asyncio.to_thread(bulk_rate, self.pipeline, self.counted, images, seconds)


class BatchReplica:
    """The baseline: whole requests, batched; @serve.batch is put on in ``baseline``."""

    def __init__(self, **model: Any) -> None:
        self.pipeline, self.counted = counted_pipeline(**model)

    async def rows(self) -> int:
        return self.counted.rows

    def run(self, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        import torch

        from ray_dit.core.sampling import TableBank, init_rows, sample
        from ray_dit.serving.service import encode

        pipeline, owners = self.pipeline, [i for i, body in enumerate(bodies) for _ in range(body["n"])]
        tables = [
            pipeline.table(pipeline.sampler(None, steps=body["num_inference_steps"])) for body in bodies
        ]
        rows = init_rows(
            pipeline.latent_shape,
            labels=torch.zeros(len(owners), dtype=torch.int64),
            sample_id=torch.arange(len(owners)),
            seed=0,
            guidance_scale=2.0,
            table=torch.tensor(owners),
        )
        pixels = pipeline.decode(sample(pipeline.guided_model, rows, TableBank(tables)))
        answers: list[dict[str, Any]] = [{"data": []} for _ in bodies]
        for owner, image in zip(owners, pixels, strict=True):
            answers[owner]["data"].append({"b64_json": base64.b64encode(encode(image, "png")).decode()})
        return answers


def baseline(max_batch_size: int, wait: float, **arguments: Any) -> Any:
    """The deployment to compare with: whole requests, batched by `@serve.batch`."""
    from ray import serve

    from ray_dit.serving.deployments.application import QUIET

    class Batched(BatchReplica):
        @serve.batch(max_batch_size=max_batch_size, batch_wait_timeout_s=wait)
        async def batched(self, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return await asyncio.to_thread(self.run, bodies)

        async def __call__(self, request: Any) -> Any:
            return await self.batched(await request.json())

    deployment: Any = serve.deployment(
        Batched, name="batched", max_ongoing_requests=10_000, logging_config=QUIET
    )
    return deployment.bind(**arguments)


# ---- the clients


async def ask(client: httpx.AsyncClient, url: str, n: int, steps: int) -> tuple[float, int]:
    """Seconds of a request, and its status."""
    body = {"prompt": "0", "n": n, "num_inference_steps": steps, "guidance_scale": 2.0}
    started = time.perf_counter()
    answer = await client.post(url, json=body)
    return time.perf_counter() - started, answer.status_code


async def open_loop(url: str, arrivals: Sequence[Arrival]) -> list[float]:
    """Latencies; a request that is not answered 200 counts as endless."""
    async with _client() as client:
        started = time.perf_counter()

        async def one(arrival: Arrival) -> float:
            await asyncio.sleep(max(0.0, arrival.time - (time.perf_counter() - started)))
            late = (
                time.perf_counter() - started - arrival.time
            )  # of this client: its own affair, so not left out
            seconds, status = await ask(client, url, arrival.n, arrival.steps)
            return seconds + late if status == 200 else float("inf")

        return list(await asyncio.gather(*(one(arrival) for arrival in arrivals)))


async def saturate(url: str, rows: Any, seconds: float, concurrent: int, seed: int) -> float:
    """Rows per second of the network while so many requests are always there; the first third is warm-up."""
    rng = np.random.default_rng(seed)
    stop = asyncio.Event()
    async with _client() as client:

        async def keep_asking() -> None:
            while not stop.is_set():
                await ask(client, url, int(rng.integers(1, MOST_IMAGES + 1)), int(rng.choice(STEPS)))

        tasks = [asyncio.create_task(keep_asking()) for _ in range(concurrent)]
        await asyncio.sleep(seconds / 3)
        first, began = await rows(), time.perf_counter()
        await asyncio.sleep(seconds * 2 / 3)
        last, ended = await rows(), time.perf_counter()
        rate = (last - first) / (ended - began)
        stop.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    while (
        still := await rows()
    ) != last:  # a server that goes on for clients who left shall not do so in what follows
        last = still
        await asyncio.sleep(3)
    return rate


async def short_meets_long(url: str, times: int) -> tuple[float, float]:
    """Median seconds of a 1-image request alone, and while a 10-image 250-step one runs."""
    async with _client() as client:
        alone = [(await ask(client, url, 1, 20))[0] for _ in range(times)]
        long = asyncio.create_task(ask(client, url, LONG["n"], LONG["num_inference_steps"]))
        await asyncio.sleep(0.5)
        met = []
        while len(met) < times and not long.done():
            met.append((await ask(client, url, 1, 20))[0])
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
    await asyncio.sleep(1)
    return float(np.median(alone)), float(np.median(met))


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))


# ---- models


def random_model(folder: Path, preset: str) -> str:
    """A model folder with random weights.

    It is DiT-S/2 at 256 pixels, or the small stand-in that the simulated device needs.
    """
    from ray_dit.config import DiTConfig, SamplerConfig, VAESizeConfig
    from ray_dit.config.model_folder import LatentsConfig
    from ray_dit.core.dit import DiT
    from ray_dit.formats.labels import Labels
    from ray_dit.formats.model_folder import ModelConfig, model_objects
    from ray_dit.storage.open import open_store
    from ray_dit.vae import VAE

    if preset == "dit-s2":
        shape = DiTConfig.preset("DiT-S/2")
        size, channels = 256, (8, 8, 16, 16)
    else:  # what an accelerator does to latents is in a + b·r, so they are small here
        shape = DiTConfig(input_size=4, patch_size=2, hidden_size=16, depth=1, num_heads=1)
        size, channels = 16, (8, 8, 8)
    config = ModelConfig(
        model=shape,
        latents=LatentsConfig(image_size=size),
        sampler=SamplerConfig(name="dpmpp", guidance_scale=2.0),
    )
    vae = VAE.create(VAESizeConfig(block_out_channels=channels)).files()
    labels = Labels.numbered(shape.num_classes)
    for key, data in model_objects(config, DiT(shape).state_dict(), labels, vae, "random weights").items():
        open_store(str(folder)).put(key, data)
    return str(folder)


# ---- the run


@dataclass
class Bench:
    """One run of the benchmark: its arguments, the model folder and the port it serves on."""

    arguments: argparse.Namespace
    uri: str
    port: int

    @property
    def model(self) -> dict[str, Any]:
        """What a replica is made of."""
        asked = self.arguments
        simulated = asked.device == "simulated"
        return {
            "uri": self.uri,
            "a": asked.a if simulated else None,
            "b": asked.b if simulated else None,
            "threads": asked.threads,
            "precision": asked.precision,
        }

    def run(self) -> dict[str, Any]:
        from ray import serve

        before = machine()
        handle, url = self._serve_ours()
        points, seconds, max_rows = handle.curve.remote().result()
        print(f"up to {max_rows} rows per step", flush=True)
        base = self._serve_baseline(max_rows, wait=0.5)
        rates = self._throughputs(handle, base, max_rows)
        serve.delete("base")
        saturation = float(np.median(rates["saturation"]))
        curve = StepCurve(points, seconds)
        loads = [self._load(handle, url, load, saturation, curve, max_rows) for load in self.arguments.loads]
        alone, beside = asyncio.run(short_meets_long(url, 3 if self.arguments.quick else 10))
        serve.delete("bench")
        tried = [self._half_load(wait, max_rows, saturation) for wait in self.arguments.waits]
        return with_checks(
            {
                "machine": before,
                "settings": {name: value for name, value in vars(self.arguments).items() if name != "output"},
                "max_step_rows": max_rows,
                "step_seconds": dict(zip(points, seconds, strict=True)),
                "rows_per_second": rates,
                "loads": loads,
                "short_alone": alone,
                "short_beside_long": beside,
                "baseline": {"max_batch_size": batch_size(max_rows), "tried": tried},
            }
        )

    def again(self, known: dict[str, Any]) -> dict[str, Any]:
        """``known`` with the loads asked for measured once more, by its saturation."""
        handle, url = self._serve_ours()
        points, seconds, max_rows = handle.curve.remote().result()
        saturation = float(np.median(known["rows_per_second"]["saturation"]))
        curve = StepCurve(points, seconds)
        asked = self.arguments.loads
        new = [self._load(handle, url, load, saturation, curve, max_rows) for load in asked]
        kept = [row for row in known["loads"] if row["load"] not in asked]
        loads = sorted([*kept, *new], key=lambda row: row["load"])
        return with_checks(known | {"loads": loads})

    def _serve_ours(self) -> tuple[Any, str]:
        from ray import serve

        from ray_dit.config.serve import ApiConfig, EngineConfig, LimitsConfig, ServeConfig
        from ray_dit.serving.deployments.application import application, deployment

        engine = EngineConfig(max_queued=10_000)
        limits = LimitsConfig(requests_per_minute=10**6, max_concurrent=10**6, request_seconds=36_000)
        config = ServeConfig(
            model=(f"m={self.uri}",), engine=engine, api=ApiConfig(limits=limits), log_level="warning"
        )
        replica = deployment("m", config, EngineReplica).bind("m", engine.model_dump(), **self.model)
        serve.run(application(config, {"m": replica}), name="bench", route_prefix="/")
        url = f"http://127.0.0.1:{self.port}/v1/images/generations"
        asyncio.run(_warm(url))
        return serve.get_deployment_handle("model-m", app_name="bench"), url

    def _serve_baseline(self, max_rows: int, wait: float) -> Any:
        from ray import serve

        serve.run(baseline(batch_size(max_rows), wait, **self.model), name="base", route_prefix="/base")
        asyncio.run(_warm(self._base_url))
        return serve.get_deployment_handle("batched", app_name="base")

    @property
    def _base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/base"

    def _throughputs(self, ours: Any, base: Any, max_rows: int) -> dict[str, list[float]]:
        """Rows a second, in turns."""
        seconds, concurrent = self.arguments.seconds, 3 * max_rows
        url = f"http://127.0.0.1:{self.port}/v1/images/generations"

        def saturated(url: str, replica: Any) -> Callable[[int], float]:
            return lambda turn: asyncio.run(saturate(url, replica.rows.remote, seconds, concurrent, turn))

        return in_turns(
            {
                "bulk": lambda turn: ours.bulk.remote(max_rows // 2, seconds / 2).result(),
                "saturation": saturated(url, ours),
                "baseline": saturated(self._base_url, base),
            },
            self.arguments.turns,
        )

    def _load(
        self, ours: Any, url: str, load: float, saturation: float, curve: Any, max_rows: int
    ) -> dict[str, Any]:
        rate = load * saturation / MEAN_ROW_STEPS
        arrivals = poisson(rate, self._seconds(rate), seed=int(load * 100))
        ours.slowdown.remote().result()
        got = np.array(asyncio.run(open_loop(url, arrivals)))
        slowdown = ours.slowdown.remote().result()
        by_profile = np.array(ideal(arrivals, curve, max_rows))
        seconds = [curve.seconds(rows) * slowdown for rows in curve.rows]
        simulated = self.arguments.device == "simulated"  # whose step times are known
        best = (
            by_profile if simulated else np.array(ideal(arrivals, StepCurve(curve.rows, seconds), max_rows))
        )
        short = np.array([one.n == 1 and one.steps == min(STEPS) for one in arrivals])
        row = {
            "load": load,
            "requests": len(arrivals),
            "rate": rate,
            "failed": int(np.isinf(got).sum()),
            "p50": float(np.percentile(got, 50)),
            "p95": float(np.percentile(got, 95)),
            "ideal_p50": float(np.percentile(best, 50)),
            "ideal_p95": float(np.percentile(best, 95)),
            "p95_over_ideal": float(np.percentile(got, 95) / np.percentile(best, 95)),
            "p95_over_ideal_by_profile": float(np.percentile(got, 95) / np.percentile(by_profile, 95)),
            "steps_over_profile": slowdown,
            "added_ms_median": float(np.median(got - best) * 1000),
            "short_p95": float(np.percentile(got[short], 95)) if short.any() else float("nan"),
        }
        print(json.dumps(row), flush=True)
        return row

    def _seconds(self, rate: float) -> float:
        return max(self.arguments.seconds, self.arguments.requests / rate)

    def _half_load(self, wait: float, max_rows: int, saturation: float) -> dict[str, Any]:
        """The baseline at half of our saturation.

        @serve.batch closes a batch after ``wait`` even while another runs.
        """
        from ray import serve

        self._serve_baseline(max_rows, wait)
        rate = 0.5 * saturation / MEAN_ROW_STEPS
        arrivals = poisson(rate, self._seconds(rate), seed=50)
        got = np.array(asyncio.run(open_loop(self._base_url, arrivals)))
        short = np.array([one.n == 1 and one.steps == min(STEPS) for one in arrivals])
        serve.delete("base")
        row = {
            "wait": wait,
            "p50": float(np.percentile(got, 50)),
            "p95": float(np.percentile(got, 95)),
            "short_p95": float(np.percentile(got[short], 95)),
            "failed": int(np.isinf(got).sum()),
        }
        print(json.dumps(row), flush=True)
        return row


def with_checks(result: dict[str, Any]) -> dict[str, Any]:
    """The result with the figures there are goals for, in ``checks``."""
    bulk, saturation, base_saturation = (
        float(np.median(result["rows_per_second"][name])) for name in ("bulk", "saturation", "baseline")
    )
    base_short = min(row["short_p95"] for row in result["baseline"]["tried"])
    half, most = _at(result["loads"], 0.5), _at(result["loads"], 0.8)
    checks = {
        "p95 at 80 % of saturation over the ideal's (wanted: at most 1.15)": most["p95_over_ideal"],
        "saturation throughput over bulk (wanted: at least 0.95)": saturation / bulk,
        "saturation throughput over @serve.batch's (wanted: above 1)": saturation / base_saturation,
        "@serve.batch's p95 of short requests at half load over ours (wanted: at least 5)": base_short
        / half["short_p95"],
        "1 image beside 10 of 250 steps over alone (wanted: at most 3)": result["short_beside_long"]
        / result["short_alone"],
    }
    return result | {"checks": checks}


def batch_size(max_rows: int) -> int:
    """Requests in a batch of the baseline.

    They are as many as fill a call of the network if each asks for the most images.
    """
    return max(1, max_rows // (2 * MOST_IMAGES))


async def _warm(url: str) -> None:
    async with _client() as client:
        for steps in STEPS:
            _, status = await ask(client, url, 1, steps)
            assert status == 200, status


def _at(loads: Sequence[dict[str, Any]], load: float) -> dict[str, Any]:
    return min(loads, key=lambda row: abs(row["load"] - load))


def table(result: dict[str, Any]) -> str:
    """The results as Markdown: a row per load."""
    lines = [
        "| load | requests | p50 s | p95 s | ideal p95 s | p95 / ideal | ... by the profile | added ms "
        "(median) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["loads"]:
        lines.append(
            f"| {row['load']:.0%} | {row['requests']} | {row['p50']:.3f} | {row['p95']:.3f} | "
            f"{row['ideal_p95']:.3f} | {row['p95_over_ideal']:.2f} | {row['p95_over_ideal_by_profile']:.2f} "
            f"| {row['added_ms_median']:.0f} |"
        )
    lines += ["", "| check | measured |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in result["checks"].items()]
    return "\n".join(lines)


def drawing(result: dict[str, Any]) -> str:
    """Latency against load, as SVG."""
    loads, width, height = result["loads"], 640, 380
    left, right, top, bottom = 60, width - 20, 50, height - 50
    most = max(row[key] for row in loads for key in ("p95", "ideal_p95"))
    tick = next(
        unit * power
        for power in (10.0**k for k in range(-3, 6))
        for unit in (1, 2, 5)
        if unit * power * 5 >= most
    )

    def place(load: float, seconds: float) -> tuple[float, float]:
        return left + load * (right - left), bottom - seconds / (5 * tick) * (bottom - top)

    def line(key: str, colour: str, dash: str = "") -> str:
        points = " ".join("{:.1f},{:.1f}".format(*place(row["load"], row[key])) for row in loads)
        stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        return f'<polyline points="{points}" fill="none" {stroke}/>'

    def text(x: float, y: float, said: str, colour: str = "#444", anchor: str = "middle") -> str:
        place = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"'
        return f'<text {place} fill="{colour}" font-family="sans-serif" font-size="12">{said}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"><rect width="100%" '
        'height="100%" fill="#fff"/>'
    ]
    for k in range(6):
        x, y = place(k / 5, k * tick)
        parts += [
            f'<path d="M{left} {y:.1f}H{right}" stroke="#e5e5e5"/>',
            text(left - 6, y + 4, f"{k * tick:g} s", anchor="end"),
            text(x, bottom + 18, f"{k * 20} %"),
        ]
    for key, colour in (("p95", "#2f5bd0"), ("p50", "#2a9d6f")):
        parts += [line(key, colour), line(f"ideal_{key}", colour, "5 4")]
    parts += [
        text(left, 24, "95th percentile of latency", "#2f5bd0", "start"),
        text(left + 180, 24, "median", "#2a9d6f", "start"),
        text(left + 250, 24, "dashed: the ideal, which has no overhead", anchor="start"),
        text((left + right) / 2, height - 10, "load, of saturation"),
        "</svg>",
    ]
    return "".join(parts)


def main() -> None:
    """Measures what the arguments ask for and writes the results."""
    parser = argument_parser(__doc__)
    parser.add_argument("--device", choices=("simulated", "cpu"), default="simulated")
    parser.add_argument("--model", default="dit-s2", help="with --device cpu: dit-s2, or a model folder")
    parser.add_argument("--a", type=float, default=0.020, help="seconds of a step")
    parser.add_argument("--b", type=float, default=0.0004, help="seconds more a row")
    parser.add_argument("--seconds", type=float, default=60.0, help="least time of each measurement")
    parser.add_argument("--requests", type=int, default=400, help="least requests of each measurement")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.8, 0.9])
    parser.add_argument("--waits", type=float, nargs="+", default=[0.05, 0.5, 1.5], help="of @serve.batch")
    parser.add_argument("--turns", type=int, default=3, help="times each throughput is measured")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of a replica")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.requests = min(arguments.seconds, 15.0), 40
        arguments.loads, arguments.waits, arguments.turns, arguments.output = [0.5, 0.8], [0.5], 1, TRIALS
    if arguments.device == "simulated":
        arguments.model = "small"
    name = "simulated" if arguments.device == "simulated" else f"cpu-{Path(arguments.model).name}"
    folder = arguments.output
    with tempfile.TemporaryDirectory() as scratch, ray_here() as port:
        preset = arguments.model
        uri = preset if preset not in ("small", "dit-s2") else random_model(Path(scratch) / "model", preset)
        bench = Bench(arguments, uri, port)
        there = folder / f"serving-{name}.json"
        result = bench.again(json.loads(there.read_text())) if arguments.again else bench.run()
    write_json(there, result)
    (folder / f"serving-{name}.svg").write_text(drawing(result))
    print(table(result))


class ray_here:
    """A private Ray with Serve on a free port."""

    def __enter__(self) -> int:
        import ray
        from ray import serve

        from ray_dit.serving.deployments.application import QUIET

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ray.init(address="local", num_cpus=8, include_dashboard=False, logging_level=logging.ERROR)
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=QUIET)
        return port

    def __exit__(self, *_: object) -> None:
        import ray
        from ray import serve

        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
