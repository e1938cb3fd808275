"""The batch: here images of any tickets become the rows of one call of the network.

Knows no threads and no rules. A row of core.sampling has its own time step, label, guidance scale and
sampler, so any images can share a step. What does not take part in the next step is parked; what takes part
for the first time starts as noise.
"""

from collections.abc import Iterable, Sequence

import torch

from ray_dit.core.sampling import Rows, init_rows
from ray_dit.serving.engine.model import Model
from ray_dit.serving.engine.tickets import Row


class Batch:
    """The state of the images of the last step, in one ``Rows``; ``members`` are its rows in order."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.members: list[Row] = []
        self._rows: Rows | None = None

    def clear(self) -> None:
        """Forget all of it: after a failed step the state is not to be trusted."""
        self.members, self._rows = [], None

    def gather(self, chosen: Sequence[Row]) -> Rows:
        """The state of exactly these images, in some order; others of the batch are parked."""
        wanted = set(chosen)
        present = set(self.members)
        if self._rows is not None and wanted == present:
            return self._rows  # the usual case: nobody joins or leaves, so nothing is copied
        parts: list[Rows] = []
        members: list[Row] = []
        if self._rows is not None:
            self._park([p for p, row in enumerate(self.members) if row not in wanted])
            staying = [p for p, row in enumerate(self.members) if row in wanted]
            if staying:
                parts.append(self._rows.select(torch.tensor(staying)))
                members += [self.members[p] for p in staying]
        joining = [row for row in chosen if row not in present]
        for block, rows in _by_block(joining):
            parts.append(block.select(torch.tensor([row.parked[1] for row in rows])))
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
            row.ticket.begin(row)
        return self._rows

    def keep(self, rows: Rows, finished: Sequence[int]) -> None:
        """The state after a step, without the members at the places ``finished``."""
        if finished:
            gone = set(finished)
            places = [place for place in range(len(self.members)) if place not in gone]
            self.members = [self.members[place] for place in places]
            rows = rows.select(torch.tensor(places, dtype=torch.int64))
        self._rows = rows if self.members else None

    def _park(self, places: Sequence[int]) -> None:
        """Copies these members' state, so that the batch's own memory can be given up."""
        places = [place for place in places if self.members[place].ticket.reason is None]
        if not places or self._rows is None:
            return
        block = self._rows.select(torch.tensor(places))  # one block for all of them: one copy
        for position, place in enumerate(places):
            self.members[place].parked = (block, position)

    def _first_rows(self, starting: Sequence[Row]) -> Rows:
        """Noise, with everything in which a row differs from its neighbours."""
        tickets = [row.ticket for row in starting]
        return init_rows(
            self._model.latent_shape,
            labels=torch.tensor([row.ticket.work.labels[row.index] for row in starting]),
            sample_id=torch.tensor([row.index for row in starting]),
            seed=torch.tensor([ticket.work.seed for ticket in tickets]),
            guidance_scale=torch.tensor([ticket.work.sampler.guidance_scale for ticket in tickets]),
            table=torch.tensor([ticket.table for ticket in tickets]),
            device=self._model.device,
        )


def _by_block(rows: Iterable[Row]) -> list[tuple[Rows, list[Row]]]:
    """Parked images by the block they lie in."""
    blocks: dict[int, tuple[Rows, list[Row]]] = {}
    for row in rows:
        if row.parked is not None:
            blocks.setdefault(id(row.parked[0]), (row.parked[0], []))[1].append(row)
    return list(blocks.values())
