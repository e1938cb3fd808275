"""The step curve of a model: measured, and followed while it serves."""

import os
import random
import subprocess
import sys

import pytest

from ray_dit.config.serve import EngineConfig
from ray_dit.serving.engine import loop, profile
from ray_dit.serving.engine.policy import StepCurve
from ray_dit.serving.engine.profile import (
    Profile,
    alone,
    call_sizes,
    corrected,
    differ,
    measure,
    profile_steps,
)
from ray_dit.serving.engine.tickets import Done
from tests.serving.engine.clients import Client, work
from tests.support.fakes import FakeModel

GPU = StepCurve([1, 2, 4, 8, 16, 32], [0.020, 0.020, 0.020, 0.021, 0.022, 0.024])
CPU = StepCurve([1, 2, 4, 8], [0.011, 0.020, 0.040, 0.080])


def test_measuring_finds_the_cost_of_a_row_and_ends_in_time():
    curve = profile_steps(FakeModel(a=0.01, b=0.001), max_rows=48, seconds=5)
    assert curve.rows == [1, 2, 4, 8, 16, 32, 48]
    assert curve.seconds(48) == pytest.approx(0.058, rel=0.3)
    slow = profile_steps(FakeModel(a=0.05), max_rows=128, seconds=0.3)
    assert slow.rows[-1] < 128


def test_few_slow_steps_change_nothing():
    known = Profile(GPU, most=32)
    rng = random.Random(0)
    for step in range(2000):
        slow = 50 if step % 3 == 2 else 1
        assert not known.observe(8, slow * 0.021 * rng.uniform(0.95, 1.05))
    assert known.curve is GPU


def test_a_start_that_was_slow_throughout_is_corrected_by_the_sizes_that_are_seen():
    slow = StepCurve(GPU.rows, [3 * GPU.seconds(rows) for rows in GPU.rows])
    known = Profile(slow, most=32)
    changes = [known.observe(2, GPU.seconds(2)) for _ in range(64)]
    assert changes.count(True) == 1
    assert [known.curve.seconds(rows) for rows in GPU.rows] == pytest.approx(
        [GPU.seconds(rows) for rows in GPU.rows]
    )


def test_a_number_of_rows_tells_of_its_neighbours():
    new = corrected(GPU, {2: 2 * GPU.seconds(2), 32: 4 * GPU.seconds(32)}, GPU.rows)
    assert new.seconds(1) == pytest.approx(2 * GPU.seconds(1))
    assert new.seconds(8) == pytest.approx(8**0.5 * GPU.seconds(8))  # half-way between 2 and 4, as sizes go
    known = Profile(CPU, most=8)
    for _ in range(32):
        known.observe(3, 0.015)  # half of what lies between 2 and 4 rows
    assert known.curve.seconds(3) == pytest.approx(0.015)


def test_calls_grow_for_a_tenth_more_throughput_and_shrink_for_as_much():
    flat = StepCurve([2, 4, 8], [0.02, 0.039, 0.078])
    for seconds, rows, wanted in (
        ([0.02, 0.038, 0.075], 2, False),  # some 7 % more
        ([0.021, 0.038, 0.073], 2, True),
        ([0.0195, 0.039, 0.078], 4, True),
        ([0.0198, 0.039, 0.078], 4, False),
    ):
        assert differ(flat, StepCurve([2, 4, 8], seconds), rows, {2, 4, 8}) is wanted


def test_what_was_seen_long_ago_changes_as_its_neighbours_do(monkeypatch):
    monkeypatch.setattr(profile, "FRESH", 64)
    known = Profile(GPU, most=32)
    for _ in range(32):
        known.observe(16, 10 * GPU.seconds(16))
    assert known.curve.seconds(16) == pytest.approx(10 * GPU.seconds(16))
    for times, of_sixteen in ((1, 10), (2, 20)):
        for _ in range(96):
            known.observe(2, times * GPU.seconds(2))
        assert known.curve.seconds(2) == pytest.approx(times * GPU.seconds(2))
        assert known.curve.seconds(16) == pytest.approx(of_sixteen * GPU.seconds(16))


def test_a_size_that_was_seen_long_ago_is_tried_again(monkeypatch):
    monkeypatch.setattr(profile, "FRESH", 256)
    linear = Profile(CPU, most=8)  # calls of 2 rows are large enough
    tried = []
    for _ in range(1000):
        linear.observe(2, CPU.seconds(2))
        if (rows := linear.trial()) is not None:
            tried.append(rows)
            linear.observe(rows, CPU.seconds(rows))
    assert set(tried) == {4}  # the size next to it
    assert 2 * 9 < len(tried) < 1000 / 16


def test_padded_calls_have_figures_of_their_own():
    padded = StepCurve(GPU.rows, [GPU.seconds(rows) for rows in GPU.rows], padded=True)
    assert padded.seconds(9) == padded.seconds(16)
    known = Profile(padded, most=32)
    for _ in range(32):
        known.observe(9, 2 * GPU.seconds(16))  # the nearest size is 8, but it was a call of 16
        known.observe(8, GPU.seconds(8))
    assert known.curve.seconds(9) == pytest.approx(2 * GPU.seconds(16))
    assert known.curve.seconds(8) == pytest.approx(GPU.seconds(8))


def test_without_time_to_measure_nothing_is_learnt():
    known = measure(FakeModel(), max_rows=16, seconds=0)
    for _ in range(64):
        assert not known.observe(16, 1.0)
    assert known.trial() is None
    assert known.best_rows == 16


@pytest.mark.parametrize(
    ("start", "true", "want"),
    [
        (StepCurve([1, 2, 4], [0.02, 0.02, 0.09]), GPU, 32),  # other programs made its end too early
        (StepCurve([1, 2, 4, 8, 16, 32], [0.02, 0.04, 0.08, 0.16, 0.16, 0.16]), CPU, 2),  # ... or too good
    ],
)
def test_calls_come_to_the_size_that_pays_whatever_the_start_was(make_engine, monkeypatch, start, true, want):
    monkeypatch.setattr(loop, "measure", lambda *_, **__: Profile(start, most=32))
    monkeypatch.setattr(loop._Pacer, "wait", lambda _, rows: (rows, true.seconds(rows)))
    engine = make_engine(FakeModel(), EngineConfig(max_step_rows=32))
    before = engine.max_step_rows
    assert before != want
    clients = [Client(engine, work([1] * 10, steps=80, name="ddim")) for _ in range(8)]
    assert all(isinstance(client.last, Done) for client in clients)
    assert engine.max_step_rows == want
    assert engine.curve.seconds(want) == pytest.approx(true.seconds(want), rel=0.05)


def test_replicas_of_a_machine_measure_one_after_another(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    code = (
        "from ray_dit.serving.engine import profile; "
        "lock = profile.alone('cpu', patience=0); lock.__enter__(); "
        "print('inside', flush=True); input()"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "inside\n"
        (lock,) = tmp_path.iterdir()
        assert lock.stat().st_mode & 0o077 == 0
        with open(lock, "r+") as file:
            assert not profile._locked(file.fileno(), patience=0)
            with alone("cuda-1", patience=0):  # another device is another matter
                pass
            other.communicate("\n")
            assert profile._locked(file.fileno(), patience=0)


def test_sizes_of_calls():
    assert call_sizes(48) == [1, 2, 4, 8, 16, 32, 48]
    assert call_sizes(1) == [1, 2]  # a guided image takes two rows
