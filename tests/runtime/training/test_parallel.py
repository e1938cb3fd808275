"""Real processes joined by gloo, without Ray: what they agree on, and that they resume in the same bits."""

import multiprocessing
from pathlib import Path

import pytest
import torch

from ray_dit.runtime.training.parallel import Alone, DataParallel, make_parallel
from ray_dit.storage.open import open_store
from tests.runtime.training.regression import CONFIG, CPU, Regression, forget, key_of, read_step, run

THREE = CONFIG.model_copy(update={"batch_size": 6, "steps": 8})


def test_one_worker_needs_no_wrapper() -> None:
    model = Regression().setup(CPU)
    assert make_parallel(0, 1) == Alone()
    assert Alone().wrap(model) is model
    assert make_parallel(2, 4) == DataParallel(2, 4)


def work(rank: int, world_size: int, folder: Path) -> None:
    """What each process does: agree, average, train, and train on from the middle."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    parallel = DataParallel(rank, world_size)
    agree_and_average(parallel)
    for name in ("whole", "half"):
        run(folder / name, THREE, Regression(width=1000), parallel=parallel)
    if rank == 0:
        forget(open_store(str(folder / "half")), 8)
    parallel.tell("", CPU)  # waits for rank 0
    run(folder / "half", THREE, Regression(width=1000), parallel=parallel)


def agree_and_average(parallel: DataParallel) -> None:
    mine = torch.tensor(float(parallel.rank + 1), dtype=torch.float64)
    assert parallel.mean(mine) == 2.0
    assert float(mine) == parallel.rank + 1
    assert parallel.tell(f"·{parallel.rank}" * parallel.rank, CPU) == ["", "·1", "·2·2"]
    with pytest.raises(ValueError, match="longer than 512 bytes"):
        parallel.tell("x" * 513, CPU)
    model = torch.nn.Linear(1, 1, bias=False)
    wrapped = parallel.wrap(model)
    (wrapped(torch.ones(1, 1)) * (parallel.rank + 1)).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.item() == pytest.approx(2.0)


def test_three_workers_resume_in_the_same_bits_and_see_the_samples_of_one(tmp_path: Path) -> None:
    """With three the order of sums counts, and DDP settles it in its first backward pass."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, 3, tmp_path)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    whole, half = (open_store(str(tmp_path / name)) for name in ("whole", "half"))
    for step in (4, 8):
        assert whole.get(key_of(whole, step)) == half.get(key_of(whole, step))
    alone = run(tmp_path / "alone", THREE, Regression(width=1000)).log
    assert alone is not None
    assert read_step(whole, 8)[0]["log"].numpy() == pytest.approx(alone, abs=1e-5, nan_ok=True)
