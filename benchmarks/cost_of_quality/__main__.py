"""What a step buys: Fréchet distance against steps and row evaluations, for each sampler, with paired seeds.

    python -m benchmarks.cost_of_quality --model demo/model --images demo/images           # many hours of CPU
    python -m benchmarks.cost_of_quality --model demo/model --images demo/images --quick   # one minute
    --plan: what is still to do, and how long it takes;  --hours H: begin nothing after that time

What is measured stands in settings.yaml. A cell is one sampler with one seed: a line in
benchmarks/results/cost_of_quality.jsonl, so that a run can be stopped at any time, goes on where it was, and
can be extended; the most telling cells come first. Sample i of a seed begins with the same noise under every
sampler, hence differences are taken seed by seed. A line counts only for the model, judge and settings it was
measured with.

Each run draws what there is so far: cost_of_quality.md and .svg beside the lines. One row evaluation is one
row of a call of the network: a guided step takes two per image, a step outside the interval one.
"""

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch
import yaml

from benchmarks.common import argument_parser
from benchmarks.cost_of_quality.cells import CELLS, QUICK_CELLS, Cells
from benchmarks.cost_of_quality.judge import real_truth
from benchmarks.cost_of_quality.plan import model_sha256, tasks_of
from benchmarks.cost_of_quality.report import outlook, write_results
from benchmarks.cost_of_quality.settings import QUICK, SETTINGS, Settings
from benchmarks.cost_of_quality.workers import do_here, run, start_worker
from ray_dit.folders.model import read_model


def main() -> None:
    """Measures what is still to do, or lists it, and draws what there is."""
    parser = argument_parser(__doc__, prog="python -m benchmarks.cost_of_quality")
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--images", required=True, help="the images it was trained on")
    parser.add_argument("--workers", type=int, default=2, help="processes, each of one thread")
    parser.add_argument("--hours", type=float, default=math.inf, help="begin no cell after so long")
    parser.add_argument("--quick", action="store_true", help="few samples, seeds and steps: measures nothing")
    parser.add_argument("--plan", action="store_true", help="tell what is left, and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(**yaml.safe_load(SETTINGS.read_text()) | (QUICK if arguments.quick else {}))
    cells = Cells(QUICK_CELLS if arguments.quick else CELLS)
    truth = real_truth(arguments.images, settings)
    folder = read_model(arguments.model)
    tasks = tasks_of(settings, folder.config, model=model_sha256(folder), judge=truth.sha256)
    known = {key: one for key, one in cells.read().items() if key in {task.key for task in tasks}}
    print(outlook(tasks, known, arguments.workers), flush=True)
    if arguments.plan:
        return
    missing = [task for task in tasks if task.key not in known]
    context, of_model = multiprocessing.get_context("spawn"), (arguments.model, truth, settings)
    with ProcessPoolExecutor(arguments.workers, context, initializer=start_worker, initargs=of_model) as pool:
        for task, measured in run(missing, do_here, pool, workers=arguments.workers, hours=arguments.hours):
            cells.add(task.cell, task.key, measured)
            known[task.key] = measured
            left = outlook(tasks, known, arguments.workers)
            print(f"{task.cell}: FD {measured.frechet_distance:.4f}; {left}", flush=True)
    by_cell = {task.cell: known[task.key] for task in tasks if task.key in known}
    print(write_results(cells.path, by_cell, settings, truth))


if __name__ == "__main__":
    main()
