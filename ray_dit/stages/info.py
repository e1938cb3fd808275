"""`ray-dit info`: what a folder holds, how far it is, what it was made from.

Reads the job protocol's objects only.
"""

import json
from collections.abc import Iterator
from typing import Any

from ray_dit.errors import NotFound
from ray_dit.folders.checkpoints import checkpoint_steps
from ray_dit.folders.model import read_model
from ray_dit.formats.model_folder import MODEL_STAGE
from ray_dit.ledger.description import newest_begun
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import jobs
from ray_dit.ledger.manifest import job_key, last_generation
from ray_dit.ledger.results import Facts
from ray_dit.ledger.stored_json import read_json
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store

LONGEST = 100


def describe(uri: str) -> str:
    """A few lines a job at and below ``uri``; NotFound if none is there."""
    store = open_store(uri)
    lines = [line for folder in jobs(store) for line in _job_lines(folder)]
    if not lines:
        raise NotFound(f"{store.uri} holds no job of ray-dit: check the path")
    return "\n".join(lines)


def _job_lines(folder: Store) -> Iterator[str]:
    generation = last_generation(folder)
    there = read_json(folder, job_key(generation))
    job = Job(folder, there["stage"], there["fingerprint"], generation)
    manifest = job.manifest(Facts)
    yield f"{folder.uri}"
    state = "finished" if manifest is not None else "unfinished: run it again to go on"
    if newest_begun(folder) > generation:
        state += f"; extension {generation + 1} is unfinished: run it again with --extend to go on"
    yield f"  stage        {job.stage}, {state}"
    if generation:
        yield f"  extensions   {generation}"
    yield f"  fingerprint  {job.fingerprint[:16]}"
    if manifest is None:
        steps = checkpoint_steps(folder, job.prefix)
        yield f"  so far       {sum(1 for _ in job.names())} objects" + (
            f", checkpoint of step {steps[-1]}" if steps else ""
        )
    else:
        tied = {"extends": manifest.extends} if manifest.extends else {}
        accepted = {"accepted": list(manifest.accepted)} if manifest.accepted else {}
        for name, value in sorted((manifest.facts.to_json() | tied | accepted).items()):
            yield f"  {name:<12} {_short(value)}"
    for name, value in sorted(_flat(there["parts"])):
        yield f"    {name} = {_short(value)}"
    if job.stage == MODEL_STAGE and manifest is not None:
        model = read_model(folder.uri)
        yield f"  classes      {_short(', '.join(model.labels.names)) or 'none'}"
        for name, value in _flat(model.config.model_dump(mode="json", exclude_none=True)):
            yield f"    {name} = {_short(value)}"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
