"""The thread that turns latents into pixels, so that the VAE never holds up denoising. Knows no schedule."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ray_dit.serving.engine.model import Model
from ray_dit.serving.engine.tickets import Event, FinalImage, Observer, Preview, Row, Ticket

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Latents:
    """What is to be decoded: latents [C, H, W] of an image after as many steps as its row has done now."""

    row: Row
    latents: Tensor
    final: bool
    step: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", self.row.step)  # the row goes on while this waits

    def event(self, pixels: np.ndarray) -> Event:
        """What its ticket gets."""
        if self.final:
            return FinalImage(self.row.index, pixels)
        return Preview(self.row.index, self.step, pixels)


class Decoder:
    """Finished images first; of previews only each image's newest.

    ``delivered`` gets a ticket and its events, ``failed`` the tickets whose images are lost and how many
    times in a row decoding has failed; both on this thread.
    """

    def __init__(
        self,
        model: Model,
        most: int,
        *,
        delivered: Callable[[Ticket, Sequence[Event]], None],
        failed: Callable[[Iterable[Ticket], int], None],
        observer: Observer,
    ) -> None:
        self._model, self._most = model, most
        self._delivered, self._failed, self._observer = delivered, failed, observer
        # A stream of its own: on the steps' stream the VAE would come between two steps.
        self._stream = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None
        self._wake = threading.Condition()
        self._finals: deque[Latents] = deque()
        self._previews: dict[Row, Latents] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def put(self, images: Iterable[Latents]) -> None:
        """Take these in; an older preview of the same image is dropped."""
        with self._wake:
            for image in images:
                if image.final:
                    self._previews.pop(image.row, None)
                    self._finals.append(image)
                else:
                    self._previews[image.row] = image
            self._wake.notify()

    def close(self, timeout: float | None) -> None:
        """Stop when all that is here is decoded."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        failures = 0
        while (taken := self._take()) is not None:
            if not taken:  # their tickets have ended meanwhile
                continue
            started = time.perf_counter()
            try:
                pixels = self._decode([image.latents for image in taken])
            except Exception:
                logger.exception("decoding %d images failed", len(taken))
                failures += 1
                self._failed({image.row.ticket for image in taken}, failures)
                continue
            failures = 0
            self._observer.decoded(len(taken), time.perf_counter() - started)
            # All events of a ticket at once: the engine takes its lock once per ticket, not once per image.
            by_ticket: dict[Ticket, list[Event]] = {}
            for image, its_pixels in zip(taken, pixels, strict=True):
                by_ticket.setdefault(image.row.ticket, []).append(image.event(its_pixels))
            for ticket, events in by_ticket.items():
                self._delivered(ticket, events)

    def _take(self) -> list[Latents] | None:
        """What to decode next, once there is something; None at the end."""
        with self._wake:
            while not (self._finals or self._previews):
                if self._closing:
                    return None
                self._wake.wait()
            taken = [self._finals.popleft() for _ in range(min(self._most, len(self._finals)))]
            for row in list(self._previews)[: self._most - len(taken)]:
                taken.append(self._previews.pop(row))
        return [image for image in taken if image.row.ticket.reason is None]

    def _decode(self, latents: list[Tensor]) -> np.ndarray:
        if self._stream is None:
            return self._model.decode(torch.stack(latents))
        # The latents were written on the steps' stream, perhaps not yet.
        self._stream.wait_stream(torch.cuda.default_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            return self._model.decode(torch.stack(latents))
