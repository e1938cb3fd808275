"""Counts of a job's images, from the markers of its shards alone."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_dit.config import ImagesConfig
from ray_dit.errors import Damaged, UserError
from ray_dit.folders.latent_counts import BadCount, check_bad_shards, check_counts, made_shards
from ray_dit.ledger.job import Job
from ray_dit.results import BadImage, LatentShardFacts
from ray_dit.storage.open import open_store
from tests.support.results import latent_facts
from tests.support.tiny import flip_bit

PLAN: Any = SimpleNamespace(count=20, uri="here")


def facts(shard: int, rows: int, *bad: BadImage, **fields: Any) -> LatentShardFacts:
    known = {"bad": bad, "seen": rows + len(bad)} | fields
    return latent_facts(shard, rows).model_copy(update=known)


def unreadable(name: str) -> BadImage:
    return BadImage(name, "cut off")


GONE = BadImage("x/gone.png", "its object is gone", "gone")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job.open(open_store(str(tmp_path)), "encode", {"config": {}})


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_too_many_are_said_as_soon_as_it_is_certain_whatever_the_order(order: tuple[int, ...]) -> None:
    shards = [
        facts(0, 7, *map(unreadable, "abc")),
        facts(1, 4),
        facts(2, 5, unreadable("d")).model_copy(update={"bad": (("d", "cut off"),)}),
    ]
    for max_bad, holds in ((0.15, False), (0.2, True)):
        count = pickle.loads(pickle.dumps(BadCount(PLAN, max_bad)))  # as it comes to the coordinator
        said = [count(shards[number].to_json()) for number in order]
        assert (said[-1] is None) == holds
        assert [why is None for why in said] == sorted((why is None for why in said), reverse=True)
    strict = BadCount(PLAN, 0.0)
    assert strict(shards[1].to_json()) is None
    assert strict(shards[0].to_json()) == (
        "at least 3 of 20 images in here cannot be read, more than images.max_bad = 0.0 allows, the first is "
        "'a' (cut off), then 'b' (cut off), 'c' (cut off): repair or remove them, or raise --images.max-bad; "
        "what is finished stays"
    )


def test_shards_that_may_come_out_better_are_made_again(job: Job) -> None:
    for number, bad in enumerate(([unreadable("a")], [GONE], [])):
        job.put(f"{number:05d}", f"latents/{number}", b"%d" % number, facts(number, 4, *bad))
    assert BadCount(PLAN, 0.1, list(made_shards(job)))(facts(3, 4).to_json()) is None
    assert BadCount(PLAN, 0.05, list(made_shards(job)))(facts(3, 4).to_json()) is not None
    images = ImagesConfig(uri="here", max_bad=0.1)
    check_bad_shards(images, PLAN, job, list(made_shards(job)))
    assert len(list(job.names())) == 3
    strict = images.model_copy(update={"max_bad": 0.05})
    with pytest.raises(UserError, match="^2 of 20 images .*: bring those back that are gone"):
        check_bad_shards(strict, PLAN, job, list(made_shards(job)))
    assert sorted(job.names()) == ["00000", "00002"]


def test_damaged_markers_do_not_count(job: Job, tmp_path: Path) -> None:
    for number in range(3):
        job.put(f"{number:05d}", f"latents/{number}", b"%d" % number, facts(number, 4))
    flip_bit(tmp_path / "_markers/00001.json")
    assert [marker.facts.shard for marker in made_shards(job)] == [0, 2]


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({}, True),
        ({"converted": 4, "conversions": {"grey": 4, "transparent": 2}}, True),
        ({"converted": 5, "conversions": {"grey": 5}}, False),
        ({"converted": 1, "conversions": {"grey": 2}}, False),
        ({"seen": 6}, False),
        ({"rows": 5}, False),
        ({"bad": ()}, False),
    ],
)
def test_each_image_of_a_shard_is_accounted_for(job: Job, fields: dict[str, Any], fits: bool) -> None:
    counted = facts(0, 4, unreadable("a")).model_copy(update=fields)
    marker = job.put("00000", "latents/0", b"0", counted)
    assert marker.facts.adds_up(5) == fits
    assert not marker.facts.adds_up(6)
    if fits:
        check_counts(job, [marker], [5])
    else:
        with pytest.raises(Damaged, match="latents/0 and its marker do not account for each of its 5 images"):
            check_counts(job, [marker], [5])
