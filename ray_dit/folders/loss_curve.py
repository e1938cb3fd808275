"""The loss curve in the folder of a finished training: written and read, also as earlier versions had it."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_dit.errors import NotFound
from ray_dit.folders.checkpoints import earlier_loss_key, leave_only_result, loss_key
from ray_dit.formats.loss_curve import curve_lines, earlier_lines, read_curve
from ray_dit.formats.worker_history import History
from ray_dit.ledger.job import Job
from ray_dit.storage.store import Store

EARLIER_VAE_KEY = "log.npz"
"""Where earlier versions of train-vae put steps and losses."""


def put_curve(
    job: Job, log: NDArray[np.float64], t_ranges: Sequence[str] = (), history: History = ()
) -> None:
    """Writes the points [N, columns] of a training; see ``formats/loss_curve.py``.

    A folder that an earlier version finished keeps its own form: its listing has that one's hash. What a run
    of another worker history has left goes.
    """
    points = log.tolist()
    earlier = {
        earlier_loss_key(job.generation): lambda: earlier_lines(points),
        EARLIER_VAE_KEY: lambda: _npz(log[:, :2]),
    }
    for key, data in earlier.items() if not history else ():
        if job.store.head(job.plain.place(key)) is not None:
            return job.put_plain(key, data(), computed=True)
    job.put_plain(loss_key(job.generation, history), curve_lines(points, t_ranges), computed=True)
    for key in (loss_key(job.generation), *earlier):
        leave_only_result(job, key, history)
    return None


def read_loss_curve(store: Store, generation: int = 0, history: History = ()) -> list[dict[str, Any]]:
    """The points by name, whichever version wrote them; NotFound where there are none.

    ``history``: that of the training.
    """
    for key in (loss_key(generation, history), earlier_loss_key(generation)):
        try:
            return read_curve(store.get(key))
        except NotFound:
            continue
    with np.load(io.BytesIO(store.get(EARLIER_VAE_KEY)), allow_pickle=False) as arrays:
        return [{"step": int(row[0]), "loss": float(row[1])} for row in arrays["log"]]


def _npz(log: NDArray[np.float64]) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, allow_pickle=False, log=np.ascontiguousarray(log))
    return sink.getvalue()
