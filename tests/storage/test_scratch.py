"""The store of trials: small objects can be read again, large ones leave their size."""

import hashlib
import pickle

import pytest

from ray_dit.errors import Conflict, NotFound
from ray_dit.ledger.job import Job
from ray_dit.ledger.results import Facts
from ray_dit.results import ModelResult
from ray_dit.storage.scratch import KEPT_BYTES, ScratchStore


def test_small_objects_are_kept_and_large_ones_only_counted() -> None:
    store = ScratchStore("scratch://trial")
    child = store.child("model")
    assert child.put("small", b"x")
    assert child.put("large", b"x" * (KEPT_BYTES + 1))
    assert child.get("small") == b"x"
    with pytest.raises(NotFound):
        child.get("large")
    assert child.sha256("large") == hashlib.sha256(b"x" * (KEPT_BYTES + 1)).hexdigest()
    with pytest.raises(NotFound):
        child.sha256("none")
    assert store.sizes == {
        "scratch://trial/model/small": 1,
        "scratch://trial/model/large": KEPT_BYTES + 1,
    }
    assert [info.key for info in store.list("model/")] == ["model/small"]
    assert not child.put("small", b"x")
    with pytest.raises(Conflict):
        child.put("small", b"y")


def test_a_job_runs_to_its_end_in_it_and_in_a_copy_in_another_process() -> None:
    job = Job.open(ScratchStore("scratch://trial"), "model", {"made": "for a test"})
    copied: Job = pickle.loads(pickle.dumps(job))
    copied.put("one", "data/one", b"1", Facts())
    manifest = copied.finish(ModelResult(steps=3))
    assert (manifest.facts.steps, manifest.listings[0].count) == (3, 1)
    assert job.manifest(ModelResult) is None, "what a copy writes stays with it"
