"""A finished job's folder as a killed run would have left it."""

from pathlib import Path

from ray_dit.ledger.manifest import generation_tag


def unfinish(folder: Path, *lost: str, marked: bool = False, generation: int = 0) -> None:
    """Takes the job's last writes away, and those of the shards ``lost``, named as their markers are.

    The run was killed before their objects, or if ``marked`` between these and their markers.
    """
    tag = generation_tag(generation)
    for key in (f"manifest{tag}.json", f"manifest/objects{tag}.jsonl", f"manifest/plain{tag}.jsonl"):
        (folder / key).unlink(missing_ok=True)
    for key in (f"quarantine{tag}.parquet", f"_plain{tag}/quarantine{tag}.parquet.json"):
        (folder / key).unlink(missing_ok=True)
    for name in lost:
        (folder / f"_markers{tag}/{name}.json").unlink()
        if not marked:
            (folder / f"latents/{tag[1:]}{'-' if tag else ''}{name}.parquet").unlink()
