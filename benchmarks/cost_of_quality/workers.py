"""Measures one cell, and many in processes of one thread each; knows no file of cells."""

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait

import numpy as np
import torch
import torch._inductor.config as inductor
from torch import Tensor

from benchmarks.common import machine
from benchmarks.cost_of_quality.cells import Measured
from benchmarks.cost_of_quality.judge import Truth, classifier_of
from benchmarks.cost_of_quality.plan import Cell, Task
from benchmarks.cost_of_quality.settings import Settings
from ray_dit.config import Precision
from ray_dit.core.classifier import predict
from ray_dit.core.metrics import FeatureStatistics, accuracy, class_counts, frechet_distance
from ray_dit.pipeline import Pipeline, load

Paint = Callable[[list[int], range, Cell], np.ndarray]
"""(labels, sample ids, cell) → images uint8 [N, S, S, 3]."""
Judge = Callable[[np.ndarray], tuple[Tensor, Tensor]]
"""images → logits [N, K], features [N, D]."""


def measure(
    task: Task,
    settings: Settings,
    num_classes: int,
    train: FeatureStatistics,
    paint: Paint,
    judge: Judge,
) -> Measured:
    """Paints and judges a cell's samples: label i mod K and noise of (seed, i), whatever the sampler."""
    begin = time.process_time()
    images: list[np.ndarray] = []
    for first in range(0, settings.num_samples, settings.batch_size):
        ids = range(first, min(first + settings.batch_size, settings.num_samples))
        images.append(paint([i % num_classes for i in ids], ids, task.cell))
    seconds = time.process_time() - begin
    logits, features = judge(np.concatenate(images))
    labels = torch.arange(settings.num_samples) % num_classes
    return Measured(
        frechet_distance=frechet_distance(train, FeatureStatistics.of(features)),
        accuracy=accuracy(class_counts(labels, logits.argmax(dim=1), num_classes)),
        images=settings.num_samples,
        row_evaluations=task.rows,
        cpu_seconds=seconds,
        machine=machine(),
    )


class Worker:
    """The model, in the precisions asked for, and the judge in one process.

    The network is compiled where it can be.
    """

    def __init__(self, model: str, truth: Truth, settings: Settings) -> None:
        torch.set_num_threads(1)
        self._model, self._pipelines = model, dict[Precision, Pipeline]()
        self._judge = classifier_of(truth.judge, truth.num_classes, settings)
        self._settings, self._truth = settings, truth

    def do(self, task: Task) -> Measured:
        """Measures a cell."""
        pipeline = self._pipeline(task.cell.precision)

        def paint(labels: list[int], ids: range, cell: Cell) -> np.ndarray:
            latents = pipeline.sample_latents(labels, sample_ids=ids, seed=cell.seed, sampler=cell.sampler)
            return pipeline.decode(latents)

        for sampler in (task.cell.sampler, pipeline.sampler("ddim", steps=1, guidance_scale=1.0)):
            # what is compiled and set up once shall not count for the first cell
            paint(
                [0] * self._settings.batch_size, range(self._settings.batch_size), Cell(sampler, 0, "float32")
            )
        return measure(task, self._settings, self._truth.num_classes, self._truth.train, paint, self._look)

    def _pipeline(self, precision: Precision) -> Pipeline:
        if precision not in self._pipelines:
            pipeline = load(self._model, device="cpu", precision=precision)
            if shutil.which("g++"):
                pipeline.model.compile(dynamic=False)
            self._pipelines[precision] = pipeline
        return self._pipelines[precision]

    def _look(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        return predict(self._judge, images)


_worker: list[Worker] = []
"""A worker process's only worker."""


def start_worker(model: str, truth: Truth, settings: Settings) -> None:
    """Sets up a process of the pool, once; the process ends with its parent."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    inductor.freezing = True
    inductor.cpp.use_decompose_tanh = True  # by exp: GELU takes a quarter of the time otherwise
    _worker.append(Worker(model, truth, settings))


def _follow_parent() -> None:
    """A worker whose parent was killed would wait for its next task forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def do_here(task: Task) -> Measured:
    """Measures a cell in a process that ``start_worker`` has set up."""
    return _worker[0].do(task)


def run(
    tasks: Iterable[Task],
    do: Callable[[Task], Measured],
    pool: Executor,
    *,
    workers: int,
    hours: float,
) -> Iterator[tuple[Task, Measured]]:
    """Does the tasks in order, so many at a time, and yields each when it is done.

    It begins none after ``hours``.
    """
    deadline = time.monotonic() + hours * 3600
    waiting, running = iter(tasks), dict[Future[Measured], Task]()
    while True:
        # No more is submitted than can run: what waits in the pool could not be held back at the end of the
        # time.
        while len(running) < workers and time.monotonic() < deadline:
            task = next(waiting, None)
            if task is None:
                break
            running[pool.submit(do, task)] = task
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()
