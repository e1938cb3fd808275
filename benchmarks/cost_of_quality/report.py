"""The results as a table and a plot, and what is left to do in one line; measures nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.chart import Line, Panel, chart
from benchmarks.cost_of_quality.cells import Measured
from benchmarks.cost_of_quality.estimate import Estimate
from benchmarks.cost_of_quality.judge import Truth
from benchmarks.cost_of_quality.outcomes import Outcome, choice, outcomes
from benchmarks.cost_of_quality.plan import Cell, Task, control_cells, title
from benchmarks.cost_of_quality.settings import Settings
from ray_dit.core.metrics import frechet_distance


def markdown(measured: Mapping[Cell, Measured], settings: Settings, truth: Truth) -> str:
    """A table per guidance interval, the control, and the choice."""
    found = outcomes(measured, settings)
    seeds = len(settings.seeds)
    lines = [
        "# Cost of quality",
        "",
        f"Fréchet distance (FD) of {settings.num_samples} samples to the real training images, guidance "
        f"scale {settings.guidance_scale:g}, {settings.precision}; ± is half of the 95 % interval over "
        f"seeds. The difference is to the same solver at {settings.reference_steps} steps, seed by seed. "
        f"Held-out real images ({truth.heldout.count}): FD "
        f"{frechet_distance(truth.train, truth.heldout):.4g}, {truth.heldout_accuracy:.1%} read right.",
    ]
    for interval in settings.guidance_intervals:
        where = "at every step" if interval is None else f"in time steps {interval[0]:g} to {interval[1]:g}"
        lines += ["", f"## Guided {where}", ""]
        lines += ["| sampler | steps | row evaluations | FD | difference | of the reference | within goal |"]
        lines[-1] += " read right | CPU ms per image | seeds |"
        lines += ["|---|--:|--:|--:|--:|--:|---|--:|--:|--:|"]
        lines += [_line(one, settings, seeds) for one in found if one.sampler.guidance_interval == interval]
    best = choice(found, settings)
    chosen = (
        f"{title(best.sampler)}" if best else "none yet: not all seeds are measured, or no sampler meets it"
    )
    goal = f"at most {settings.goal_steps} steps, difference including 0 or below {settings.goal_loss:.0%}"
    lines += ["", f"## {settings.control.precision} beside {settings.precision}", ""]
    pairs: list[str] = []
    for cell in control_cells(settings):
        one, other = measured.get(cell), measured.get(replace(cell, precision=settings.precision))
        if one and other:
            here, there = one.frechet_distance, other.frechet_distance
            name = f"{title(cell.sampler)}, seed {cell.seed}"
            pairs.append(f"| {name} | {here:.4f} | {there:.4f} | {there / here - 1:+.2%} |")
    head = [
        f"| cell | FD in {settings.control.precision} | FD in {settings.precision} | |",
        "|---|--:|--:|--:|",
    ]
    lines += [*head, *pairs] if pairs else ["Not measured yet."]
    return "\n".join([*lines, "", f"Goal: {goal}. The least distance that meets it: **{chosen}**.", ""])


def _line(one: Outcome, settings: Settings, seeds: int) -> str:
    meets = one.meets(settings.goal_loss)
    share = "-"
    if one.difference is not None and one.reference:
        share = _plus_minus(one.difference, 100 / one.reference, "+.1f") + " %"
    cells = [
        one.sampler.name,
        str(one.sampler.num_inference_steps),
        f"{one.rows_per_image:.0f}",
        _plus_minus(one.distance, 1, ".4f"),
        _plus_minus(one.difference, 1, "+.4f") if one.difference else "-",
        share,
        "-" if meets is None else "yes" if meets else "no",
        f"{one.accuracy:.2%}",
        f"{1000 * one.seconds_per_image:.1f}",
        f"{one.num_seeds} of {seeds}",
    ]
    return f"| {' | '.join(cells)} |"


def _plus_minus(estimate: Estimate, factor: float, form: str) -> str:
    text = format(estimate.mean * factor, form)
    return text if estimate.half is None else f"{text} ± {format(estimate.half * factor, form.lstrip('+'))}"


def plot(found: Sequence[Outcome]) -> str:
    """SVG: distance against steps, and against row evaluations; dashed with a guidance interval."""
    names = list(dict.fromkeys(one.sampler.name for one in found))
    groups: dict[tuple[int, bool], list[Outcome]] = {}
    for one in sorted(found, key=lambda one: one.sampler.num_inference_steps):
        where = names.index(one.sampler.name), one.sampler.guidance_interval is not None
        groups.setdefault(where, []).append(one)

    def lines(x_of: Callable[[Outcome], float]) -> list[Line]:
        return [
            Line(
                names[name] + (", guidance interval" if dashed else ""),
                name,
                dashed,
                [(x_of(one), one.distance.mean, one.distance.half or 0.0) for one in group],
            )
            for (name, dashed), group in sorted(groups.items())
        ]

    return chart(
        [
            Panel("steps", "Fréchet distance", lines(lambda one: one.sampler.num_inference_steps)),
            Panel("row evaluations per image", "Fréchet distance", lines(lambda one: one.rows_per_image)),
        ]
    )


def write_results(path: Path, measured: Mapping[Cell, Measured], settings: Settings, truth: Truth) -> str:
    """Writes table and plot beside the cells' file at ``path``; returns the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = markdown(measured, settings, truth)
    path.with_suffix(".md").write_text(text)
    if measured:
        path.with_suffix(".svg").write_text(plot(outcomes(measured, settings)))
    return text


def outlook(tasks: Sequence[Task], known: Mapping[str, Measured], workers: int) -> str:
    """What is left, in one line."""
    left = [task for task in tasks if task.key not in known]
    rows, done = sum(task.rows for task in left), sum(one.row_evaluations for one in known.values())
    text = f"{len(left)} of {len(tasks)} cells left, {rows / 1e6:.1f} million row evaluations"
    if not done:
        return text
    cost = sum(one.cpu_seconds for one in known.values()) / done
    hours = rows * cost / 3600
    return (
        f"{text}: {hours:.1f} CPU hours at {1000 * cost:.2f} ms per row, "
        f"{hours / workers:.1f} hours on {workers} cores"
    )
