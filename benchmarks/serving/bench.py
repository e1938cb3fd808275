"""The run: serves ours and the baseline, and measures throughputs in turns and latencies load by load."""

import argparse
import asyncio
import json
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.common import in_turns, machine
from benchmarks.serving.ideal import ideal
from benchmarks.serving.load import (
    MEAN_ROW_STEPS,
    open_loop,
    poisson,
    saturate,
    short_meets_long,
    warm,
)
from benchmarks.serving.replicas import EngineReplica, baseline, batch_size
from benchmarks.serving.report import with_checks
from ray_dit.serving.engine.policy import StepCurve


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
        asyncio.run(warm(url))
        return serve.get_deployment_handle("model-m", app_name="bench"), url

    def _serve_baseline(self, max_rows: int, wait: float) -> Any:
        from ray import serve

        serve.run(baseline(batch_size(max_rows), wait, **self.model), name="base", route_prefix="/base")
        asyncio.run(warm(self._base_url))
        return serve.get_deployment_handle("batched", app_name="base")

    @property
    def _base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/base"

    def _throughputs(self, ours: Any, base: Any, max_rows: int) -> dict[str, list[float]]:
        """Rows per second, in turns."""
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
        short = np.array([one.short for one in arrivals])
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
        short = np.array([one.short for one in arrivals])
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
