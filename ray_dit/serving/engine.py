"""The step-level batching engine: many requests share each call of the network; it knows nothing of HTTP or Ray.

An image is a row of core.sampling, with its own time step, label, guidance scale and sampler, so any images can share a
denoising step. Between two steps requests join, leave, are cancelled or meet their deadline. Two threads work: one
denoises; the other decodes finished latents and previews, so that the VAE never holds up denoising.

Who takes part: a request's work is known when it comes, and so is when it is due: ``PATIENCE`` times what it would take alone
later. The images of those due first come first, and others have what room they leave. So a short request passes
long ones, a long one is passed by no more than its patience allows, equal ones are served in turn; and images are done
sooner on average than if all advanced together. A call grows only as far as no request comes below the 1/N of its own speed
that each of N may expect; see ``row_limit``. Counts called rows are of the network: a guided image takes two.
"""

import bisect
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ray_dit.config import SamplerConfig
from ray_dit.config.serve import EngineConfig
from ray_dit.core.sampling import Rows, TableBank, denoise_step, init_rows
from ray_dit.serving.profile import StepCurve, Steppable, profile_steps

logger = logging.getLogger(__name__)

PATIENCE = 32
"""A request is due after so many times the time it would take alone. With 0 it would be first come, first served; with ever
more, the shortest first and the longest perhaps never."""
MAX_FAILURES = 3
"""Failed calls of the network, or of the VAE, in a row after which the engine calls itself unhealthy."""


class Model(Steppable, Protocol):
    """What the engine needs of a model; ``ray_dit.pipeline.Pipeline`` is one."""

    def decode(self, latents: Tensor) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a request asks: one image a label; image i is a function of (seed, i, its label, sampler)."""

    labels: tuple[int, ...]
    sampler: SamplerConfig
    seed: int
    previews: int = 0
    """Previews an image, spread over its steps; one that is out of date before it is decoded is left out."""
    seconds: float | None = None
    """Deadline, from submission."""


@dataclass(frozen=True)
class Preview:
    """The image as predicted after ``step`` of its steps: pixels uint8 [height, width, 3]."""

    index: int
    step: int
    pixels: np.ndarray


@dataclass(frozen=True)
class Picture:
    """A finished image: pixels uint8 [height, width, 3]."""

    index: int
    pixels: np.ndarray


Reason = Literal["deadline", "cancelled", "closed", "internal"]


@dataclass(frozen=True)
class Failed:
    """The request ends without its remaining images."""

    reason: Reason


@dataclass(frozen=True)
class Done:
    """All images of the request are out; seconds since its submission, and of these before its first step."""

    seconds: float
    queued_seconds: float


Event = Preview | Picture | Failed | Done


class QueueFull(Exception):
    """No place for one more request; ``retry_after`` is the estimated time, in seconds, until there is one."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class Closed(Exception):
    """The engine takes no more requests: it is shutting down."""


class Observer:
    """What happens, for metrics: override what you count. Called on the engine's threads; must not block."""

    def stepped(self, rows: int, seconds: float) -> None:
        """A call of the network with so many rows took so long."""

    def decoded(self, images: int, seconds: float) -> None:
        """So many images were decoded at once."""

    def previewed(self, seconds: float) -> None:
        """A request's first preview, or image, was out so long after its submission."""

    def ended(self, outcome: str, seconds: float) -> None:
        """A request ended: ``done`` or the reason of its failure."""


@dataclass(frozen=True)
class Load:
    """How busy an engine is: images waiting or on their way, requests, and the most rows a call may have."""

    images: int
    running: int
    queued: int
    max_step_rows: int


def patience(demand: int, num_steps: int, curve: StepCurve, max_step_rows: int) -> float:
    """Seconds after which a request of so many rows a step is due."""
    rows = min(demand, max_step_rows)
    return PATIENCE * num_steps * curve.seconds(rows) * demand / rows


def row_limit(demands: Sequence[int], curve: StepCurve, max_step_rows: int) -> int:
    """Most rows of a call: what pays, and what leaves each of N requests 1/N of the speed it would have alone.

    Alone, a request's step takes ``curve.seconds(its rows)``; among N its step may take N times that. ``demands`` are the
    rows each would take, of one request at least.
    """
    smallest = min(*demands, max_step_rows)
    fair = curve.rows_within(len(demands) * curve.seconds(smallest))
    return min(max_step_rows, max(fair, smallest, 2))


class Engine:
    """Makes images of many requests at once; ``submit`` from any thread, ``close`` at the end.

    The profile of the step time runs in the constructor, so an engine that exists is ready.
    """

    def __init__(
        self, model: Model, config: EngineConfig | None = None, observer: Observer | None = None
    ) -> None:
        self.model = model
        self.config = config = config or EngineConfig()
        self.observer = observer or Observer()
        self.curve = profile_steps(model, max_rows=config.max_step_rows, seconds=config.profile_seconds)
        self.max_step_rows = self.curve.best_rows()
        self.healthy = True
        self._wake = threading.Condition()
        self._waiting: list[Request] = []
        """Those due first in front, as in ``_running``."""
        self._running: list[Request] = []
        self._closing = False
        self._changed = True
        self._bank = TableBank()
        self._tables: dict[SamplerConfig, _Plan] = {}
        """By the settings without their scale, which is the row's own."""
        self._batch = _Batch(model)
        self._chosen: list[_Row] = []
        self._chosen_rows = 0
        self._failures = 0
        self._decoder = _Decoder(self)
        self._pacer = _Pacer(model.device)
        self._thread = threading.Thread(target=self._run, name="denoise", daemon=True)
        self._thread.start()

    def submit(self, job: Job, on_event: Callable[[Event], None]) -> "Request":
        """Take in a request; its events, the last of them Done or Failed, go to ``on_event`` on the engine's threads.

        Raises QueueFull, Closed, and whatever the model's ``table`` raises for settings it can't follow.
        """
        plan = self.plan(job.sampler)
        with self._wake:
            if self._closing:
                raise Closed("the server is shutting down")
            request = Request(self, job, plan, on_event)
            # Those for whom there are slots wait for the end of a step only.
            if len(self._waiting) >= self.config.max_queued + max(self._free_slots(), 0):
                raise QueueFull(self._seconds_of_work())
            bisect.insort(self._waiting, request, key=_turn)
            self._changed = True
            self._wake.notify_all()
        return request

    def plan(self, sampler: SamplerConfig) -> "_Plan":
        """The sampler's table, made when it is first asked for; errors are those of the model's ``table``."""
        bare = sampler.model_copy(update={"guidance_scale": 1.0})
        with self._wake:
            known = self._tables.get(bare)
        if known is not None:
            return known
        table = self.model.table(bare)
        with self._wake:
            plan = self._tables.get(bare) or _Plan(self._bank.add(table), table.guided.tolist())
            self._tables[bare] = plan
        return plan

    def load(self) -> Load:
        """How busy it is now."""
        with self._wake:
            images = sum(r.undelivered for r in self._running) + sum(r.undelivered for r in self._waiting)
            return Load(images, len(self._running), len(self._waiting), self.max_step_rows)

    def close(self, *, drain: bool = False, timeout: float | None = None) -> None:
        """Take no more requests and stop: at once, failing what is there, or when all is done (``drain``)."""
        with self._wake:
            self._closing = True
            if not drain:
                for request in [*self._waiting, *self._running]:
                    request.reason = request.reason or "closed"
            self._changed = True
            self._wake.notify_all()
        self._thread.join(timeout)
        self._decoder.close(timeout)

    def _run(self) -> None:
        try:
            self._denoise()
        except Exception:
            logger.exception("the engine stopped")
            self.healthy = False
            with self._wake:
                self._closing = True
                for request in [*self._waiting, *self._running]:
                    request.finish(Failed("internal"))

    def _denoise(self) -> None:
        while True:
            with self._wake:
                if not (self._waiting or self._steppable() or self._closing or self._changed):
                    self._wake.wait(timeout=self._next_deadline())
                self._changed = self._end_overdue() or self._changed
                self._changed = self._admit() or self._changed
                if self._closing and not (self._running or self._waiting):
                    return
                chosen = self._choose()
                if not chosen:
                    self._changed = False
                    if self._running or self._waiting:
                        self._wake.wait(timeout=0.05)  # all that is here waits for the decoder
                    continue
            self._step(chosen)

    def _steppable(self) -> bool:
        return any(request.rows for request in self._running)

    def _next_deadline(self) -> float | None:
        deadlines = [r.deadline for r in self._running if r.deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _end_overdue(self) -> bool:
        """Takes out who was cancelled or is too late; whether there was anyone."""
        now = time.monotonic()
        ending: list[Request] = []
        for request in [*self._running, *self._waiting]:
            if request.deadline is not None and now >= request.deadline:
                request.reason = request.reason or "deadline"
            if request.reason is not None:
                ending.append(request)
        for request in ending:
            self._take_out(request)
            request.finish(Failed(request.reason or "internal"))
        return bool(ending)

    def _take_out(self, request: "Request") -> None:
        request.rows.clear()
        if request in self._running:
            self._running.remove(request)
        elif request in self._waiting:
            self._waiting.remove(request)
        self._changed = True

    def _free_slots(self) -> int:
        """Places for images; a running request none of whose images has begun keeps one for itself."""
        return self.config.slots - sum(max(request.resident, 1) for request in self._running)

    def _admit(self) -> bool:
        """Lets waiting requests in, those due first, while there are slots; whether it let any in."""
        if not self._waiting:
            return False
        free = self._free_slots()
        for _ in range(min(free, len(self._waiting))):
            bisect.insort(self._running, self._waiting.pop(0), key=_turn)
        return free > 0

    def _choose(self) -> list["_Row"]:
        """The images of the next step, in whole or as many as ``row_limit`` allows; see the module's first lines.

        A choice stands until something changes, or guidance sets in or ends for one of them: choosing anew costs copies.
        """
        if not self._changed and _num_rows(self._chosen) == self._chosen_rows:
            return self._chosen
        active = [request for request in self._running if request.rows]
        demands = [request.demand for request in active]
        room = row_limit(demands, self.curve, self.max_step_rows) if active else 0
        self._chosen = self._those_due(active, room)
        self._chosen_rows = _num_rows(self._chosen)
        self._changed = False
        return self._chosen

    def _those_due(self, active: Sequence["Request"], room: int) -> list["_Row"]:
        """The images of the next call, of no more than so many rows."""
        slots = max(self._free_slots(), 0)
        kept_back = self.config.slots // 4  # for first images: else few long requests could hold every slot
        chosen: list[_Row] = []
        for request in active:
            for place, row in enumerate(request.rows):
                if row.cost > room:
                    break
                if not row.begun:
                    first = request.resident == 0 and place == 0  # it has a slot kept for it
                    if not first and slots <= kept_back:
                        break
                    slots -= 0 if first else 1
                chosen.append(row)
                room -= row.cost
        return chosen

    def _step(self, chosen: list["_Row"]) -> None:
        num_rows = _num_rows(chosen)
        started = time.perf_counter()
        try:
            rows = self._batch.gather(chosen)
            rows, x_start = denoise_step(self.model.guided_model, rows, self._bank)
            self._pacer.wait()
        except torch.OutOfMemoryError:
            self._shrink(chosen, num_rows)
            return
        except Exception:
            logger.exception("a denoising step of %d rows failed", num_rows)
            self._fail(chosen)
            return
        self._failures = 0
        self.observer.stepped(num_rows, time.perf_counter() - started)
        try:
            self._after(rows, x_start)
        except Exception:
            logger.exception("the results of a step of %d rows could not be kept", num_rows)
            self._fail(chosen)

    def _after(self, rows: Rows, x_start: Tensor) -> None:
        """Sends finished rows and previews to the decoder and keeps the others."""
        finished: list[int] = []
        with self._wake:
            for place, row in enumerate(self._batch.members):
                row.step += 1
                if row.request.reason is not None:
                    self._changed = True
                elif row.step == row.request.plan.num_steps:
                    finished.append(place)
                    row.request.rows.remove(row)
                    self._changed = True
        members = self._batch.members
        # A cloned row: a view would keep the whole batch's memory as long as it waits for the decoder.
        pictures = [_Latents(members[place], rows.x[place].clone(), final=True) for place in finished]
        for place, row in enumerate(members):
            if row.step in row.request.preview_steps and row.request.reason is None:
                pictures.append(_Latents(row, x_start[place].clone(), final=False))
        self._batch.keep(rows, finished)
        if pictures:
            self._decoder.put(pictures)

    def _shrink(self, chosen: list["_Row"], num_rows: int) -> None:
        logger.warning("a step of %d rows ran out of memory; smaller ones from now on", num_rows)
        if num_rows <= 2:
            self._fail(chosen)
        with self._wake:
            self.max_step_rows = max(2, num_rows // 2)
            self._changed = True

    def _fail(self, chosen: Iterable["_Row"]) -> None:
        lost = {row.request for row in [*chosen, *self._batch.members]}
        self._batch.clear()
        self._failures += 1
        self.healthy = self.healthy and self._failures < MAX_FAILURES
        with self._wake:
            for request in lost:
                request.reason = request.reason or "internal"
            self._changed = True

    def cancel(self, request: "Request") -> None:
        """See ``Request.cancel``."""
        with self._wake:
            if request in self._running or request in self._waiting:
                request.reason = request.reason or "cancelled"
                self._changed = True
                self._wake.notify_all()

    def delivered(self, request: "Request", events: Sequence[Event]) -> None:
        """The decoder's report: images and previews of a request are out."""
        for event in events:
            request.tell(event)
        with self._wake:
            request.undelivered -= sum(isinstance(event, Picture) for event in events)
            self._changed = True  # slots are free
            self._wake.notify_all()
            if request.undelivered or request not in self._running:
                return
            self._take_out(request)
        request.finish(Done(request.age(), request.queued_seconds or 0.0))

    def decode_failed(self, requests: Iterable["Request"], failures: int) -> None:
        """The decoder's other report; ``failures`` in a row."""
        self.healthy = self.healthy and failures < MAX_FAILURES
        with self._wake:
            for request in requests:
                request.reason = request.reason or "internal"
            self._changed = True
            self._wake.notify_all()

    def _seconds_of_work(self) -> float:
        """How long the network needs for a request's share of what is waiting, about."""
        everyone = [*self._running, *self._waiting]
        row_steps = sum(request.demand * request.plan.num_steps for request in everyone)
        rows = self.max_step_rows
        seconds = row_steps / rows * self.curve.seconds(rows)
        return min(max(seconds / max(len(everyone), 1) * 2, 1.0), 60.0)


@dataclass(frozen=True)
class _Plan:
    """A sampler in the engine's bank: its number, and at which steps guidance acts."""

    number: int
    guided: list[bool]

    @property
    def num_steps(self) -> int:
        return len(self.guided)


def _turn(request: "Request") -> tuple[float, int]:
    return request.due, request.number


def _num_rows(chosen: Sequence["_Row"]) -> int:
    return sum(row.cost for row in chosen)


class Request:
    """A request in an engine: what submit gives back."""

    _numbers = iter(range(2**62))

    def __init__(self, engine: Engine, job: Job, plan: _Plan, on_event: Callable[[Event], None]) -> None:
        self.job, self.plan = job, plan
        self.number = next(Request._numbers)
        self.submitted = time.monotonic()
        self.deadline = None if job.seconds is None else self.submitted + job.seconds
        self.preview_steps = preview_steps(plan.num_steps, job.previews)
        self.twin = job.sampler.guidance_scale != 1 and engine.model.guided_model.null_label is not None
        self.rows = [_Row(self, index) for index in range(len(job.labels))]
        self.undelivered = len(self.rows)
        self.begun = 0
        self.due = self.submitted + patience(self.demand, plan.num_steps, engine.curve, engine.max_step_rows)
        self.reason: Reason | None = None
        """Why it is to end before its time."""
        self.queued_seconds: float | None = None
        self.ended = False
        self._engine, self._on_event = engine, on_event
        self._first_out = False

    def cancel(self) -> None:
        """End it with the step that runs now; nothing happens if it has ended."""
        self._engine.cancel(self)

    def age(self) -> float:
        """Seconds since its submission."""
        return time.monotonic() - self.submitted

    @property
    def resident(self) -> int:
        """Its images that hold a slot: begun, and not out yet."""
        return self.begun - (len(self.job.labels) - self.undelivered)

    @property
    def demand(self) -> int:
        """Rows of the network all its images would take at once."""
        return max(len(self.rows), 1) * (2 if self.twin else 1)

    def begin(self, row: "_Row") -> None:
        """An image of it takes part in its first step."""
        row.begun = True
        self.begun += 1
        if self.queued_seconds is None:
            self.queued_seconds = self.age()

    def tell(self, event: Event) -> None:
        """Hand an event on."""
        if self.ended:
            return
        if not self._first_out and isinstance(event, Preview | Picture):
            self._first_out = True
            self._engine.observer.previewed(self.age())
        try:
            self._on_event(event)
        except Exception:
            logger.exception("the receiver of an event failed")

    def finish(self, event: Done | Failed) -> None:
        """Hand the last event on, once."""
        if self.ended:
            return
        self.tell(event)
        self.ended = True
        self._engine.observer.ended("done" if isinstance(event, Done) else event.reason, self.age())


def preview_steps(num_steps: int, previews: int) -> frozenset[int]:
    """After which steps, counted from 1, previews are made: evenly spread, none after the last."""
    wanted = (round(num_steps * k / (previews + 1)) for k in range(1, previews + 1))
    return frozenset(step for step in wanted if 0 < step < num_steps)


@dataclass(eq=False, slots=True)
class _Row:
    """One image on its way; ``parked`` is its state while it is not in the batch, as (rows, place)."""

    request: Request
    index: int
    step: int = 0
    begun: bool = False
    parked: tuple[Rows, int] | None = None

    @property
    def cost(self) -> int:
        """Rows its next step takes."""
        request = self.request
        return 2 if request.twin and request.plan.guided[self.step] else 1


class _Batch:
    """The state of the images of the last step, in one ``Rows``; ``members`` are its rows in order."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.members: list[_Row] = []
        self._rows: Rows | None = None

    def clear(self) -> None:
        self.members, self._rows = [], None

    def gather(self, chosen: list[_Row]) -> Rows:
        """The state of exactly these images, in some order; others of the batch are parked."""
        wanted = set(chosen)
        present = set(self.members)
        if self._rows is not None and wanted == present:
            return self._rows
        parts: list[Rows] = []
        members: list[_Row] = []
        if self._rows is not None:
            self._park([p for p, row in enumerate(self.members) if row not in wanted])
            staying = [p for p, row in enumerate(self.members) if row in wanted]
            if staying:
                parts.append(self._rows.select(torch.tensor(staying)))
                members += [self.members[p] for p in staying]
        joining = [row for row in chosen if row not in present]
        for block, rows in _by_block(joining):
            places = torch.tensor([row.parked[1] for row in rows if row.parked is not None])
            parts.append(block.select(places))
            members += rows
        starting = [row for row in joining if not row.begun]
        if starting:
            parts.append(self._first_rows(starting))
            members += starting
        # Only now, when there was memory for all of it, does any image count as moved.
        self._rows = Rows.cat(parts) if len(parts) > 1 else parts[0]
        self.members = members
        for row in joining:
            row.parked = None
        for row in starting:
            row.request.begin(row)
        return self._rows

    def keep(self, rows: Rows, finished: Sequence[int]) -> None:
        """The state after a step, without the finished ones."""
        if finished:
            gone = set(finished)
            places = [place for place in range(len(self.members)) if place not in gone]
            self.members = [self.members[place] for place in places]
            rows = rows.select(torch.tensor(places, dtype=torch.int64))
        self._rows = rows if self.members else None

    def _park(self, places: Sequence[int]) -> None:
        places = [place for place in places if self.members[place].request.reason is None]
        if not places or self._rows is None:
            return
        block = self._rows.select(torch.tensor(places))
        for position, place in enumerate(places):
            self.members[place].parked = (block, position)

    def _first_rows(self, starting: Sequence[_Row]) -> Rows:
        requests = [row.request for row in starting]
        return init_rows(
            self._model.latent_shape,
            labels=torch.tensor([row.request.job.labels[row.index] for row in starting]),
            sample_id=torch.tensor([row.index for row in starting]),
            seed=torch.tensor([request.job.seed for request in requests]),
            guidance_scale=torch.tensor([request.job.sampler.guidance_scale for request in requests]),
            table=torch.tensor([request.plan.number for request in requests]),
            device=self._model.device,
        )


def _by_block(rows: Iterable[_Row]) -> list[tuple[Rows, list[_Row]]]:
    """Parked images by the block they lie in."""
    blocks: dict[int, tuple[Rows, list[_Row]]] = {}
    for row in rows:
        if row.parked is not None:
            blocks.setdefault(id(row.parked[0]), (row.parked[0], []))[1].append(row)
    return list(blocks.values())


@dataclass(frozen=True)
class _Latents:
    row: _Row
    latents: Tensor
    final: bool
    step: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", self.row.step)  # the row goes on while this waits


class _Decoder:
    """The thread that turns latents into pixels: finished images first, of previews only each image's newest."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        device = engine.model.device
        # A stream of its own: on the steps' stream the VAE would come between two steps.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._wake = threading.Condition()
        self._finals: deque[_Latents] = deque()
        self._previews: dict[_Row, _Latents] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def put(self, pictures: Iterable[_Latents]) -> None:
        with self._wake:
            for picture in pictures:
                if picture.final:
                    self._previews.pop(picture.row, None)
                    self._finals.append(picture)
                else:
                    self._previews[picture.row] = picture
            self._wake.notify()

    def close(self, timeout: float | None) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout)

    def _take(self) -> list[_Latents] | None:
        """What to decode next, once there is something; None at the end."""
        most = self._engine.config.decode_batch
        with self._wake:
            while not (self._finals or self._previews):
                if self._closing:
                    return None
                self._wake.wait()
            taken = [self._finals.popleft() for _ in range(min(most, len(self._finals)))]
            for row in list(self._previews)[: most - len(taken)]:
                taken.append(self._previews.pop(row))
        return [picture for picture in taken if picture.row.request.reason is None]

    def _decode(self, latents: list[Tensor]) -> np.ndarray:
        if self._stream is None:
            return self._engine.model.decode(torch.stack(latents))
        self._stream.wait_stream(torch.cuda.default_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            return self._engine.model.decode(torch.stack(latents))

    def _run(self) -> None:
        failures = 0
        while (taken := self._take()) is not None:
            if not taken:
                continue
            started = time.perf_counter()
            try:
                pixels = self._decode([picture.latents for picture in taken])
            except Exception:
                logger.exception("decoding %d images failed", len(taken))
                failures += 1
                self._engine.decode_failed({picture.row.request for picture in taken}, failures)
                continue
            failures = 0
            self._engine.observer.decoded(len(taken), time.perf_counter() - started)
            by_request: dict[Request, list[Event]] = {}
            for picture, image in zip(taken, pixels, strict=True):
                event = (
                    Picture(picture.row.index, image)
                    if picture.final
                    else Preview(picture.row.index, picture.step, image)
                )
                by_request.setdefault(picture.row.request, []).append(event)
            for request, events in by_request.items():
                self._engine.delivered(request, events)


class _Pacer:
    """Lets the host run at most one step ahead of a GPU: none idle between steps, yet joins take effect at once."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._last: torch.cuda.Event | None = None

    def wait(self) -> None:
        """After a step is issued: until the one before it is done."""
        if not self._cuda:
            return
        event = torch.cuda.Event()
        event.record()
        if self._last is not None:
            self._last.synchronize()
        self._last = event


__all__ = [
    "Closed",
    "Done",
    "Engine",
    "Event",
    "Failed",
    "Job",
    "Load",
    "Model",
    "Observer",
    "Picture",
    "Preview",
    "QueueFull",
    "Request",
    "StepCurve",
]
