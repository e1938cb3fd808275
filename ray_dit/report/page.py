"""The HTML page, a function of what was gathered.

Knows no files. One string, with style and images inside.
"""

import base64
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from ray_dit.core.media import SMALLEST_SIDE, grid, thumbnails
from ray_dit.core.samplers import SAMPLERS
from ray_dit.ledger.results import Manifest
from ray_dit.report.curve import curve
from ray_dit.report.gather import Contents, Images, StageTime
from ray_dit.results import TrainingResult, VAEResult

THUMBNAIL = 128
"""Largest side of an image on the page; larger ones are brought down to it."""
MAX_BARS = 50


def page(contents: Contents) -> str:
    """The whole page, which refers to nothing outside itself."""
    sections = [
        _header(contents),
        _samples(contents),
        _beside_real(contents),
        _figures(contents),
        _reconstructions(contents),
        _denoising(contents),
        _curves(contents),
        _times(contents),
        _commands(contents),
    ]
    style = resources.files("ray_dit.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_title(contents)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n<footer>Made by ray-dit. Every image, label and weight behind this page is a function of the "
        "settings above: the same commands give the same bytes on the same kind of machine.</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def grids(contents: Contents) -> dict[str, bytes]:
    """The page's images as PNGs in full size, by name."""
    files = {
        "samples.png": _stacked(contents.generated),
        "real.png": _stacked(contents.real),
        "denoising.png": _stacked(contents.denoising),
    }
    if contents.originals is not None and contents.reconstructed is not None:
        pairs = np.stack([contents.originals, contents.reconstructed], axis=1)
        files["reconstructions.png"] = grid(pairs.reshape(-1, *pairs.shape[2:]), columns=8)
    return {name: data for name, data in files.items() if data}


def _stacked(rows: Mapping[str, Images]) -> bytes:
    """A row of images per class; short rows are filled with white."""
    if not rows:
        return b""
    columns = max(map(len, rows.values()))
    filled = [
        np.concatenate([images, np.full((columns - len(images), *images.shape[1:]), 255, np.uint8)])
        for images in rows.values()
    ]
    return grid(np.concatenate(filled), columns)


def _figures_of(contents: Contents) -> Mapping[str, Any]:
    """By name, as `evaluate` gave them."""
    return contents.results.evaluation.facts.figures


def _title(contents: Contents) -> str:
    count = contents.results.evaluation.facts.num_images
    classes = f"{contents.num_classes} {'class' if contents.num_classes == 1 else 'classes'}"
    return f"{count:,} generated images of {classes}"


def _header(contents: Contents) -> str:
    counts, figures, model = contents.results.evaluation.facts, _figures_of(contents), contents.model.model
    size = contents.results.latents.facts.image_size
    sampler = contents.results.dataset.facts.sampler
    solver = SAMPLERS[sampler.name].title if sampler.name in SAMPLERS else sampler.name
    real_accuracy = _percent(figures["class_accuracy_real_heldout"])
    real_distance = _number(figures["frechet_distance_real_heldout"])
    real_cas = _percent(figures["cas_accuracy_real"])
    seconds = sum(time.seconds for time in contents.times)
    tiles = [
        ("Class accuracy", _percent(figures["class_accuracy"]), f"real held-out: {real_accuracy}"),
        ("Fréchet distance", _number(figures["frechet_distance"]), f"real held-out: {real_distance}"),
        (
            "Train on generated, test on real",
            _percent(figures["cas_accuracy"]),
            f"trained on as many real ones: {real_cas}",
        ),
        ("Work in all", _duration(seconds), f"{counts.num_images:,} images of {size}×{size}"),
    ]
    cards = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{value}</b><em>{escape(note)}</em></div>'
        for name, value, note in tiles
    )
    return (
        f"<h1>{_title(contents)}</h1>\n<p>A diffusion transformer (width {model.hidden_size}, depth "
        f"{model.depth}, patch {model.patch_size}) was trained on {counts.num_train:,} labelled images and "
        f"then asked for new ones, class by class, with {solver} in {sampler.num_inference_steps} "
        f"steps and guidance {sampler.guidance_scale:g}. {counts.num_heldout:,} real images were held back "
        f'from every model; they show what perfect images would score.</p>\n<div class="tiles">{cards}</div>'
    )


def _samples(contents: Contents) -> str:
    if not contents.generated:
        return ""
    chosen = " (some of them)" if len(contents.classes) < contents.num_classes else ""
    return _section(
        "Samples by class",
        f"The first generated images of each class{chosen}, as they came: nothing was picked.",
        _rows(contents.generated),
    )


def _beside_real(contents: Contents) -> str:
    both = [name for name in contents.generated if name in contents.real]
    if not both:
        return ""
    left = _mixed(contents.real, both)
    right = _mixed(contents.generated, both)
    return _section(
        "Real beside generated",
        "Held-out real images and generated ones, a column per class.",
        f'<div class="pair">{_figure(left, len(both[:10]), "Real", "real images, a column per class")}'
        f"{_figure(right, len(both[:10]), 'Generated', 'generated images, a column per class')}</div>",
    )


def _mixed(images: Mapping[str, Images], names: Sequence[str], rows: int = 8) -> Images:
    """Row by row the i-th image of the first ten classes, from the end, to differ from the samples above."""
    names = names[:10]
    rows = min(rows, *(len(images[name]) for name in names))
    return np.stack([images[name][-1 - row] for row in range(rows) for name in names])


@dataclass(frozen=True)
class _Measure:
    name: str
    key: str
    ceiling: str
    explained: str
    percent: bool = True


MEASURES = (
    _Measure(
        "Class accuracy", "class_accuracy", "class_accuracy_real_heldout",
        "Part that is read as the class asked for, by a classifier trained on the real training images "
        "only.",
    ),
    _Measure(
        "Fréchet distance", "frechet_distance", "frechet_distance_real_heldout",
        "Of that classifier's features to those of the real training images, over equally many of both; "
        "less is better.",
        percent=False,
    ),
    _Measure(
        "Train on generated, test on real", "cas_accuracy", "cas_accuracy_real",
        "Accuracy on real held-out images of a classifier that saw generated ones only, beside one that "
        "saw as many real ones.",
    ),
)  # fmt: skip


def _figures(contents: Contents) -> str:
    result, figures = contents.results.evaluation.facts, _figures_of(contents)
    lines = [
        f"<tr><td>{escape(measure.name)}<small>{escape(measure.explained)}</small></td>"
        f'<td class="number">{_value(figures[measure.key], measure.percent)}</td>'
        f'<td class="number">{_value(figures[measure.ceiling], measure.percent)}</td></tr>'
        for measure in MEASURES
    ]
    table = _table([("", False), ("Generated", True), ("Real, the ceiling", True)], lines)
    counts = (
        f"{result.num_images:,} generated, {result.num_train:,} training and {result.num_heldout:,} held-out "
        f"images; Fréchet distances over {figures['frechet_images']:,} each, both scores of the last row "
        f"after training on {figures['cas_images']:,}."
    )
    return _section("How good they are", counts, table + _bars(contents))


def _bars(contents: Contents) -> str:
    """Accuracy of each class as a bar, a line where real images are."""
    by_class: dict[str, float | None] = _figures_of(contents)["per_class_accuracy"]
    ceiling: dict[str, float | None] = _figures_of(contents)["per_class_accuracy_real_heldout"]
    names = [name for name, value in by_class.items() if value is not None]
    title = "Class accuracy, class by class; the mark is where real held-out images are."
    if len(names) > MAX_BARS:
        names = sorted(names, key=lambda name: by_class[name] or 0.0)[:MAX_BARS]
        title = f"The {MAX_BARS} classes read worst; the mark is where real held-out images are."
    cells = "".join(_bar(name, by_class[name] or 0.0, ceiling.get(name)) for name in names)
    return f'<p class="soft" style="margin:1.6rem 0 .6rem">{title}</p><div class="bars">{cells}</div>'


def _bar(name: str, value: float, ceiling: float | None) -> str:
    mark = f'<u style="left:calc({100 * ceiling:.1f}% - 1px)"></u>' if ceiling is not None else ""
    return (
        f'<span>{escape(name)}</span><div class="bar"><i style="width:{100 * value:.1f}%"></i>{mark}</div>'
        f"<span>{_percent(value)}</span>"
    )


def _reconstructions(contents: Contents) -> str:
    vae = contents.results.vae
    if contents.originals is None or contents.reconstructed is None or contents.psnr is None or vae is None:
        return ""
    finite = contents.psnr[np.isfinite(contents.psnr)]
    shown = f"{finite.min():.1f} to {finite.max():.1f} dB on those shown, " if len(finite) else ""
    columns = 8
    return _section(
        "What the VAE keeps",
        f"Held-out images and what is left of them after encoding and decoding: {shown}"
        f"{vae.facts.psnr_heldout:.1f} dB (PSNR) over all {vae.facts.num_heldout:,}. No generated "
        "image can be sharper than this.",
        f'<div class="pair">{_figure(contents.originals, columns, "Original", "held-out images")}'
        f"{_figure(contents.reconstructed, columns, 'Reconstruction', 'their reconstructions')}</div>",
    )


def _denoising(contents: Contents) -> str:
    steps = ", ".join(map(str, contents.preview_steps))
    return _section(
        "From noise to image",
        f"What the model takes the image to be after steps {steps}; the last is the result.",
        _rows(contents.denoising),
    )


def _curves(contents: Contents) -> str:
    figures = [_curve_figure(contents.loss, "Diffusion transformer", contents.results.training)]
    if contents.vae_loss and contents.results.vae is not None:
        figures.append(_curve_figure(contents.vae_loss, "VAE", contents.results.vae))
    return _section("Training", "", f'<div class="pair">{"".join(figures)}</div>')


def _curve_figure(
    points: Sequence[tuple[float, float]],
    what: str,
    manifest: Manifest[VAEResult] | Manifest[TrainingResult],
) -> str:
    batch = manifest.parts["config"]["batch_size"]
    said = f"{what}: mean loss, {manifest.facts.steps:,} steps of {batch}; {points[-1][1]:.4g} at the end"
    drawn = curve([(x, y) for x, y in points], "step", "loss")
    return f"<figure>{drawn}<figcaption>{said}</figcaption></figure>"


def _times(contents: Contents) -> str:
    lines = [_time_line(time) for time in contents.times]
    machines = sorted({machine for time in contents.times for machine in time.machines})
    heads = [("Stage", False), ("Time", True), ("Done", True), ("Rate", True)]
    return _section(
        "Time and throughput",
        "On " + "; ".join(map(escape, machines)) + "." if machines else "",
        _table(heads, lines),
    )


def _time_line(time: StageTime) -> str:
    notes = [time.what] if time.what != time.stage else []
    if time.unfinished:
        notes.append(f"and {time.unfinished} interrupted {'run' if time.unfinished == 1 else 'runs'}")
    note = f"<small>{escape(', '.join(notes))}</small>" if notes else ""
    rate = f"{time.count / time.seconds:,.1f} {escape(time.unit)}/s" if time.count and time.seconds else ""
    done = f"{time.count:,} {escape(time.unit)}" if time.unit else ""
    cells = "".join(f'<td class="number">{cell}</td>' for cell in (_duration(time.seconds), done, rate))
    return f"<tr><td>{escape(time.stage)}{note}</td>{cells}</tr>"


def _commands(contents: Contents) -> str:
    typed = "\n".join(escape(line) for line in contents.started_as)
    alone = "\n\n".join(escape(_wrapped(line)) for line in contents.commands)
    return _section(
        "The commands that made it",
        "",
        f'<p class="soft">As it was started:</p><pre>{typed}</pre>'
        f'<p class="soft">The same, stage by stage:</p><pre>{alone}</pre>',
    )


def _wrapped(command: str, width: int = 92) -> str:
    """A long command over several lines, an option never parted from its values."""
    groups: list[list[str]] = [[]]
    for word in map(shlex.quote, shlex.split(command)):
        if word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    lines = [" ".join(groups[0])]
    for group in map(" ".join, groups[1:]):
        if len(lines[-1]) + len(group) >= width:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {group}"
    return "\n".join(lines)


def _section(title: str, lead: str, body: str) -> str:
    return (
        f"<section>\n<h2>{escape(title)}</h2>\n"
        + (f'<p class="soft">{lead}</p>\n' if lead else "")
        + body
        + "\n</section>"
    )


def _rows(strips: Mapping[str, Images]) -> str:
    cells = "".join(
        f"<span>{escape(name)}</span>{_img(images, len(images), f'images of {name}')}"
        for name, images in strips.items()
    )
    return f'<div class="rows">{cells}</div>'


def _figure(images: Images, columns: int, caption: str, alt: str) -> str:
    return f"<figure>{_img(images, columns, alt)}<figcaption>{escape(caption)}</figcaption></figure>"


def _img(images: Images, columns: int, alt: str) -> str:
    small = thumbnails(images, THUMBNAIL)
    pixels = ' class="pixels"' if min(images.shape[1:3]) < SMALLEST_SIDE else ""
    data = base64.b64encode(grid(small, columns)).decode()
    return f'<img{pixels} alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def _table(heads: Iterable[tuple[str, bool]], lines: Iterable[str]) -> str:
    cells = "".join(f"<th{' class=number' if number else ''}>{escape(head)}</th>" for head, number in heads)
    head, body = f"<thead><tr>{cells}</tr></thead>", f"<tbody>{''.join(lines)}</tbody>"
    return f'<div class="wide"><table>{head}{body}</table></div>'


def _value(value: float, percent: bool) -> str:
    return _percent(value) if percent else _number(value)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
