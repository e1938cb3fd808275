"""The engine: one thread that makes one call of the network after another.

Knows no asyncio. Between two steps tickets join, leave, are cancelled or meet their deadline; `policy` says
who takes part in the next one, `batch` holds their state, and finished latents and previews go to the
`decoder`'s thread.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_dit.config import SamplerConfig
from ray_dit.config.serve import EngineConfig
from ray_dit.core.sampling import Rows, denoise_step
from ray_dit.serving.engine.bank import BankEntry, SamplerBank
from ray_dit.serving.engine.batch import Batch
from ray_dit.serving.engine.decoder import Decoder, Latents
from ray_dit.serving.engine.model import Model
from ray_dit.serving.engine.policy import Load, Schedule, StepCurve, count_rows
from ray_dit.serving.engine.profile import measure
from ray_dit.serving.engine.tickets import (
    Closed,
    Done,
    Event,
    Failed,
    FinalImage,
    Observer,
    Reason,
    Row,
    Ticket,
    Work,
)

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Failed calls of the network, or of the VAE, in a row after which the engine calls itself unhealthy."""


class Engine:
    """Makes images of many tickets at once; ``submit`` from any thread, ``close`` at the end.

    The profile of the step time runs in the constructor, so an engine that exists is ready.
    """

    def __init__(
        self, model: Model, config: EngineConfig | None = None, observer: Observer | None = None
    ) -> None:
        self.model = model
        self.config = config = config or EngineConfig()
        self.observer = observer or Observer()
        self._profile = measure(
            model, max_rows=config.max_step_rows, seconds=config.profile_seconds, padded=config.pad_calls
        )
        self._pad_to = self._profile.sizes if config.pad_calls else None
        self.healthy = True
        self._wake = threading.Condition()
        """Held for every look at the schedule and its tickets; never during a call of the network."""
        self._schedule = Schedule(
            self.curve,
            max_step_rows=self._profile.best_rows,
            slots=config.slots,
            max_queued=config.max_queued,
        )
        self._closing = False
        self._bank = SamplerBank(model.table)
        self._batch = Batch(model)
        self._failures = 0
        self._decoder = Decoder(
            model,
            config.decode_batch,
            delivered=self._deliver,
            failed=self._lose,
            observer=self.observer,
        )
        self._pacer = _Pacer(model.device)
        self._thread = threading.Thread(target=self._run, name="denoise", daemon=True)
        self._thread.start()

    @property
    def curve(self) -> StepCurve:
        """How long steps take now, by the profile."""
        return self._profile.curve

    @property
    def max_step_rows(self) -> int:
        """Most rows of a call now: what the profile says, or less once memory was short."""
        return self._schedule.max_step_rows

    def submit(self, work: Work, on_event: Callable[[Event], None]) -> Ticket:
        """Take work in; its events, Done or Failed as the last, go to ``on_event`` on the engine's threads.

        Raises QueueFull, Closed, and whatever the model's ``table`` raises for settings it can't follow.
        """
        sampler = self.prepare(work.sampler)
        twins = work.sampler.guidance_scale != 1 and self.model.guided_model.null_label is not None
        with self._wake:
            if self._closing:
                raise Closed("the server is shutting down")
            ticket = Ticket(
                work,
                table=sampler.number,
                guided=sampler.guided if twins else [False] * len(sampler.guided),
                on_event=on_event,
                on_cancel=self._cancel,
                observer=self.observer,
            )
            self._schedule.enter(ticket)
            self._wake.notify_all()
        return ticket

    def prepare(self, sampler: SamplerConfig) -> BankEntry:
        """Make the sampler's table, once; it may take a while. Errors are those of the model's ``table``."""
        return self._bank.entry(sampler)

    def load(self) -> Load:
        """How busy it is now."""
        with self._wake:
            return self._schedule.load()

    def close(self, *, drain: bool = False, timeout: float | None = None) -> None:
        """Take no more work and stop: at once, failing what is there, or when all is done (``drain``)."""
        with self._wake:
            self._closing = True
            if not drain:
                self._end(self._schedule.tickets, "closed")
            self._schedule.changed = True
            self._wake.notify_all()
        self._thread.join(timeout)
        self._decoder.close(timeout)

    # ---- the loop, on the thread that denoises

    def _run(self) -> None:
        try:
            while (chosen := self._next_rows()) is not None:
                self._step(chosen)
        except Exception:  # a defect of the engine's own: nothing else ends the loop
            logger.exception("the engine stopped")
            self.healthy = False
            with self._wake:
                self._closing = True
                for ticket in self._schedule.tickets:
                    ticket.finish(Failed("internal"))

    def _next_rows(self) -> list[Row] | None:
        """The images of the next step, once there are any; None when the engine is closed and empty."""
        schedule = self._schedule
        while True:
            with self._wake:
                if not (self._steppable() or schedule.waiting or schedule.changed or self._closing):
                    self._wake.wait(timeout=self._until_deadline())
                # In this order: who ends frees slots, free slots let others in, all who are in share a step.
                for ticket in schedule.take_ending(time.monotonic()):
                    ticket.finish(Failed(ticket.reason or "internal"))
                schedule.admit()
                if self._closing and not schedule.tickets:
                    return None
                if chosen := schedule.choose():
                    return chosen
                if schedule.tickets:
                    # All that is here waits for the decoder, which wakes us; deadlines would not.
                    self._wake.wait(timeout=0.05)

    def _steppable(self) -> bool:
        return any(ticket.rows for ticket in self._schedule.running)

    def _until_deadline(self) -> float | None:
        deadline = self._schedule.next_deadline()
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def _step(self, chosen: list[Row]) -> None:
        num_rows = count_rows(chosen)
        started = time.perf_counter()
        try:
            rows = self._batch.gather(chosen)
            self._pacer.begin()
            rows, x_start = denoise_step(
                self.model.guided_model, rows, self._bank.tables, pad_to=self._pad_to
            )
            done = self._pacer.wait(num_rows)
        except torch.OutOfMemoryError:
            # The batch is as it was, or holds its rows before this step: a smaller one can go on from there.
            self._shrink(chosen, num_rows)
            return
        except Exception:
            logger.exception("a denoising step of %d rows failed", num_rows)
            self._fail(chosen)
            return
        self._failures = 0
        self.observer.stepped(num_rows, time.perf_counter() - started)
        if done is not None:
            self._learn(*done)
        try:
            self._after(rows, x_start)
        except Exception:
            logger.exception("the results of a step of %d rows could not be kept", num_rows)
            self._fail(chosen)

    def _after(self, rows: Rows, x_start: Tensor) -> None:
        """Sends finished images and previews to the decoder and keeps the others."""
        members = self._batch.members
        finished: list[int] = []
        with self._wake:
            for place, row in enumerate(members):
                row.step += 1
                if row.ticket.reason is not None:
                    self._schedule.changed = True
                elif row.step == row.ticket.num_steps:
                    finished.append(place)
                    row.ticket.rows.remove(row)
                    self._schedule.changed = True
        # A cloned row: a view would keep the whole batch's memory as long as it waits for the decoder.
        images = [Latents(members[place], rows.x[place].clone(), final=True) for place in finished]
        for place, row in enumerate(members):
            if row.step in row.ticket.preview_steps and row.ticket.reason is None:
                images.append(Latents(row, x_start[place].clone(), final=False))
        self._batch.keep(rows, finished)
        if images:
            self._decoder.put(images)

    def _learn(self, num_rows: int, seconds: float) -> None:
        """A call took so long: the profile follows, and what the schedule goes by."""
        changed = self._profile.observe(num_rows, seconds)
        trial = self._profile.trial()
        if not (changed or trial):
            return
        with self._wake:
            if changed:
                self._schedule.follow(self._profile.curve, self._profile.best_rows)
            if trial:
                self._schedule.try_rows(trial)

    def _shrink(self, chosen: Iterable[Row], num_rows: int) -> None:
        logger.warning("a step of %d rows ran out of memory; smaller ones from now on", num_rows)
        if num_rows <= 2:  # no call is smaller than a guided image
            self._fail(chosen)
        self._profile.most = max(2, num_rows // 2)
        with self._wake:
            self._schedule.follow(self._profile.curve, self._profile.best_rows)

    def _fail(self, chosen: Iterable[Row]) -> None:
        """A step's state is lost, and with it the tickets that had a part in it."""
        lost = {row.ticket for row in [*chosen, *self._batch.members]}
        self._batch.clear()
        self._failures += 1
        self._lose(lost, self._failures)

    # ---- what other threads report

    def _cancel(self, ticket: Ticket) -> None:
        with self._wake:
            if ticket in self._schedule:
                self._end([ticket], "cancelled")

    def _deliver(self, ticket: Ticket, events: Sequence[Event]) -> None:
        """From the decoder: images and previews of a ticket are out."""
        for event in events:
            ticket.tell(event)
        with self._wake:
            ticket.undelivered -= sum(isinstance(event, FinalImage) for event in events)
            self._schedule.changed = True  # slots are free
            self._wake.notify_all()
            if ticket.undelivered or ticket not in self._schedule.running:
                return
            self._schedule.take_out(ticket)
        ticket.finish(Done(ticket.age(), ticket.queued_seconds or 0.0))

    def _lose(self, tickets: Iterable[Ticket], failures: int) -> None:
        """Images of these tickets are lost, as the ``failures``-th in a row of their kind."""
        self.healthy = self.healthy and failures < MAX_FAILURES
        with self._wake:
            self._end(tickets, "internal")

    def _end(self, tickets: Iterable[Ticket], reason: Reason) -> None:
        """These end before the next step; the lock is held."""
        for ticket in tickets:
            ticket.reason = ticket.reason or reason
        self._schedule.changed = True
        self._wake.notify_all()


@dataclass(frozen=True)
class _Issued:
    """A step on its way on a GPU: the rows of its call, and the moments between which it runs."""

    rows: int
    begin: torch.cuda.Event
    end: torch.cuda.Event


class _Pacer:
    """Lets the host run at most one step ahead of a GPU: it never idles, yet joins take effect at once.

    And says how long steps took, on a GPU by its own clock: the host's would tell when a step was issued.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._began = 0.0
        self._begin: torch.cuda.Event | None = None
        self._last: _Issued | None = None

    def begin(self) -> None:
        """Before a step is issued."""
        self._began = time.perf_counter()
        if self._cuda:
            self._begin = torch.cuda.Event(enable_timing=True)
            self._begin.record()

    def wait(self, rows: int) -> tuple[int, float] | None:
        """After a step is issued: until the one before it is done. Gives rows and seconds of one that is."""
        if self._begin is None:
            return rows, time.perf_counter() - self._began
        issued = _Issued(rows, self._begin, torch.cuda.Event(enable_timing=True))
        issued.end.record()
        last, self._last = self._last, issued
        if last is None:
            return None
        last.end.synchronize()
        return last.rows, last.begin.elapsed_time(last.end) / 1000
