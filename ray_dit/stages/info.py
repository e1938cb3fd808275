"""`ray-dit info`: what a folder holds, how far it is, what it was made from.

Reads the job protocol's objects; of latents their labels too, and for a contact sheet a few shards.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_dit.core.units import bytes_text
from ray_dit.errors import NotFound, UserError
from ray_dit.folders.checkpoints import checkpoint_steps
from ray_dit.folders.latent_summary import LatentsSummary, sample_moments, summarize
from ray_dit.folders.model import read_model
from ray_dit.formats.worker_history import in_words
from ray_dit.ledger.description import newest_begun
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import jobs
from ray_dit.ledger.manifest import job_key, last_generation, read_manifest
from ray_dit.ledger.restore import overwrite
from ray_dit.ledger.results import Facts, Manifest
from ray_dit.ledger.stored_json import read_json
from ray_dit.results import Duplicates, LatentsResult, ModelResult, Trained
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store

LONGEST, LONGEST_NAME = 100, 40
MOST_CLASSES = 10
"""That are listed with their counts; of more, those with most images and those with fewest."""
MOST_REASONS = 5
DECODED_AT_ONCE = 8
_IN_WORDS = {
    "bad", "classes", "conversions", "duplicates", "image_size", "latent_shape", "mean", "rows",
    "scaling_factor", "std", "train_rows",
}  # fmt: skip
"""Facts of latents that have lines of their own."""


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
        latents = job.stage == LatentsResult.stage_name
        if latents:
            yield from _latents_lines(folder, read_manifest(folder, LatentsResult))
        tied = {"extends": manifest.extends} if manifest.extends else {}
        accepted = {"accepted": list(manifest.accepted)} if manifest.accepted else {}
        facts = manifest.facts.to_json() | tied | accepted
        if history := facts.pop("history", None):
            yield _line("workers", in_words(Trained.model_validate({"history": history}).history))
        for name, value in sorted(facts.items()):
            if not (latents and name in _IN_WORDS):
                yield _line(name, _short(value))
    for name, value in sorted(_flat(there["parts"])):
        yield f"    {name} = {_short(value)}"
    if job.stage == ModelResult.stage_name and manifest is not None:
        model = read_model(folder.uri)
        yield f"  classes      {_short(', '.join(model.labels.names)) or 'none'}"
        for name, value in _flat(model.config.model_dump(mode="json", exclude_none=True)):
            yield f"    {name} = {_short(value)}"


def _latents_lines(folder: Store, manifest: Manifest[LatentsResult]) -> Iterator[str]:
    """The facts of finished latents in words, and what their shards hold."""
    facts = manifest.facts
    channels, height, width = facts.latent_shape
    mirror = manifest.parts.get("config", {}).get("mirror", False)
    held_out = facts.rows - facts.train_rows
    yield _line("images", f"{facts.rows:,}: {facts.train_rows:,} to train on, {held_out:,} held out")
    yield _line("image size", f"{facts.image_size}x{facts.image_size} pixels")
    yield _line(
        "latents",
        f"{channels}x{height}x{width} per image, as mean and log-variance in float16"
        f"{', and those of its mirror image' if mirror else ''}",
    )
    yield _line("mean", f"{_numbers(facts.mean)} per channel, of the raw latents to train on")
    yield _line("std", f"{_numbers(facts.std)} per channel")
    yield _line("scaling", f"{facts.scaling_factor:.6g}, the VAE's own factor")
    try:
        summary = summarize(folder, manifest)
    except UserError as error:
        yield _line("damaged", str(error))
        return
    yield from _summary_lines(facts, summary)


def _summary_lines(facts: LatentsResult, summary: LatentsSummary) -> Iterator[str]:
    shards, size = (sum(getattr(part, name) for part in summary.generations) for name in ("shards", "bytes"))
    each = f", {bytes_text(size // facts.rows)} per image" if facts.rows else ""
    yield _line("stored", f"{bytes_text(size)} in {shards:,} shards{each}")
    if len(summary.generations) > 1:
        first, *more = (f"{part.images:,}" for part in summary.generations)
        added = ", ".join(f"{count} by extension {number}" for number, count in enumerate(more, start=1))
        yield _line("generations", _short(f"{first} images first, {added}"))
    yield _line("classes", _classes(facts.classes, summary.images))
    conversions: Any = facts.to_json().get("conversions") or {}
    if conversions:
        yield _line("conversions", _short(_counted(conversions)))
    if facts.duplicates is not None:
        yield _line("duplicates", _duplicates(facts.duplicates))
    if facts.bad:
        reasons = _counted(dict(summary.set_aside.most_common(MOST_REASONS)), longest=LONGEST)
        others = len(summary.set_aside) - MOST_REASONS
        more = f", and {others} other reasons" if others > 0 else ""
        yield _line("set aside", f"{facts.bad:,} of {facts.rows + facts.bad:,} images: {reasons}{more}")


def _duplicates(found: Duplicates) -> str:
    """How many images are exact copies of another."""
    if not found.within_classes + found.across_classes:
        return "no image is a copy of another"
    return (
        f"{found.within_classes:,} copies of an image of the same class, {found.across_classes:,} of one of "
        f"another class; {found.heldout:,} count as held out, being copies of held-out images"
    )


def _classes(names: Sequence[str], images: NDArray[np.int64]) -> str:
    """How many images the classes have: each of few, of many the largest and the smallest."""
    order = sorted(range(len(names)), key=lambda label: (-images[label], label))
    if len(names) <= MOST_CLASSES:
        return f"{len(names)}: {_counted({names[label]: images[label] for label in range(len(names))})}"
    most = {names[label]: images[label] for label in order[: MOST_CLASSES // 2]}
    fewest = {names[label]: images[label] for label in order[-(MOST_CLASSES // 2) :]}
    empty = int((images == 0).sum())
    without = f" ({empty:,} have none)" if empty else ""
    return f"{len(names):,}{without}; most images: {_counted(most)}; fewest: {_counted(fewest)}"


def _counted(counts: Any, longest: int = LONGEST_NAME) -> str:
    """Names with their counts; what a terminal would obey is not in them."""
    named = (f"{_short(name, longest)} {count:,}" for name, count in counts.items())
    return "".join(letter if letter.isprintable() else "?" for letter in ", ".join(named))


def _numbers(values: Sequence[float]) -> str:
    return _short(" ".join(f"{value:.4g}" for value in values))


def _line(name: str, value: str) -> str:
    return f"  {name:<12} {value}"


def write_sheet(uri: str, target: str) -> str:
    """Writes a PNG of some images of some classes of the latents at ``uri``, decoded by the folder's VAE.

    Which ones follows from the latents (``sample_moments``). A sheet that is there is replaced. Returns where
    it is; UserError or NotFound where ``uri`` holds no finished latents, or damaged ones.
    """
    import torch

    from ray_dit.core.contact_sheet import contact_sheet
    from ray_dit.core.latents import to_uint8
    from ray_dit.vae import VAE, check_latents_vae

    if not target.lower().endswith(".png"):
        raise UserError(f"--sheet: {target} is no name of a PNG: give one that ends in .png")
    store = open_store(uri)
    manifest = read_manifest(store, LatentsResult)
    check_latents_vae(store, manifest)
    vae, rows = VAE.load(uri), dict[str, NDArray[np.uint8]]()
    with torch.inference_mode():
        for label, moments in sample_moments(store, manifest).items():
            mean = torch.from_numpy(moments[:, : vae.latent_channels].astype(np.float32))
            images = torch.cat([to_uint8(vae.decode(part)) for part in mean.split(DECODED_AT_ONCE)])
            rows[manifest.facts.classes[label]] = images.numpy()
    if not rows:
        raise UserError(f"{store.uri} holds no images that could be shown")
    folder, _, name = target.rpartition("/")
    place = open_store(folder or "/")
    overwrite(place, name, contact_sheet(rows))
    return place.where(name)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _short(value: Any, longest: int = LONGEST) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= longest else text[: longest - 3] + "..."
