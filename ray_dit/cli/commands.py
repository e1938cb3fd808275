"""The commands: one row each in `COMMANDS`, and what each says when its work is done.

The work itself is elsewhere.

What a command runs is imported when it runs: reading this table imports neither torch nor ray.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray_dit import config as settings


@dataclass(frozen=True)
class Command:
    """One subcommand: a line for the overview, its settings, and what to do with them."""

    summary: str
    config: type[settings.Config]
    run: Callable[[Any], None]
    positional: str | None = None
    """The setting that may be given without its name."""
    plan: Callable[..., Any] | None = None
    """Given the settings and ``begun``, what the command would make and take, for ``--plan``."""


def _said(result: str, where: str, next_command: str | None) -> None:
    print(f"{result}: {where}")
    if next_command:
        print(f"next: {next_command}")


def _skipped(bad: int, *, listed: bool = True) -> str:
    """What a stage says of images that it could not read."""
    where = ", listed in quarantine.parquet" if listed else ""
    return f" ({bad} images could not be read and were left out{where})" if bad else ""


def _converted(count: int | None, conversions: dict[str, int]) -> str:
    """What encode says of images of other kinds than RGB."""
    kinds = ", ".join(f"{number} {name}" for name, number in conversions.items())
    return f" ({count} images were converted to RGB: {kinds})" if count else ""


def _train_vae(config: settings.TrainVaeConfig) -> None:
    from ray_dit.stages.train_vae import train_vae

    result = train_vae(config).facts
    _said(
        f"VAE, {result.psnr_heldout:.1f} dB on {result.num_heldout} held-out images{_skipped(result.bad)}",
        config.output,
        f"ray-dit encode --images.uri {config.images.uri} --images.size {config.images.size} --vae "
        f"{config.output} --output latents",
    )


def _encode(config: settings.EncodeConfig) -> None:
    from ray_dit.stages.encode import encode

    result = encode(config).facts
    _said(
        f"latents of {result.rows} images in {len(result.classes)} classes{_skipped(result.bad)}"
        + _converted(result.converted, result.conversions),
        config.output,
        f"ray-dit train --latents {config.output} --output run",
    )


def _train(config: settings.TrainConfig) -> None:
    from ray_dit.stages.train import model_folder, train

    manifest = train(config)
    result, model = manifest.facts, model_folder(config, manifest.generation)
    _said(
        f"model after {result.steps} steps, loss {result.loss:.4f}",
        model,
        f"ray-dit generate --model {model} --num-images 1000 --output dataset",
    )


def _generate(config: settings.GenerateConfig) -> None:
    if config.only is not None:
        _make_single_images(config)
        return
    from ray_dit.stages.generate import generate

    result = generate(config).facts
    labelled = bool(result.classes)
    size = result.image_size or "SIZE"
    judged = (
        f"ray-dit evaluate --images.uri IMAGES --images.size {size} --dataset {config.output} "
        "--output evaluation"
    )
    _said(
        f"dataset of {result.rows} images" + (f" of {len(result.labels)} classes" if labelled else ""),
        config.output,
        judged if labelled else None,
    )


def _make_single_images(config: settings.GenerateConfig) -> None:
    from ray_dit.stages.single_images import make_single_images

    made = make_single_images(config)
    _said(f"{len(made)} images of {config.output} again", str(config.only_output), None)


def _evaluate(config: settings.EvaluateConfig) -> None:
    from ray_dit.stages.evaluate import evaluate

    result = evaluate(config).facts
    accuracy = f"class accuracy {result.figures['class_accuracy']:.1%}"
    _said(f"{accuracy}{_skipped(result.bad, listed=False)}", f"{config.output}/metrics.json", None)


def _report(config: settings.ReportConfig) -> None:
    from ray_dit.report.html import write_report

    write_report(config)
    _said("report", config.output, None)


def _import(config: settings.ImportConfig) -> None:
    from ray_dit.checkpoints.importing import import_checkpoint

    import_checkpoint(config, say=print)
    _said(
        "model", config.output, f"ray-dit generate --model {config.output} --num-images 1000 --output dataset"
    )


def _export(config: settings.ExportConfig) -> None:
    from ray_dit.checkpoints.exporting import export

    _said(f"{config.format} checkpoint", export(config), None)


def _export_model(config: settings.ExportModelConfig) -> None:
    from ray_dit.checkpoints.averaged import export_model

    folder, step = export_model(config)
    next_command = f"ray-dit generate --model {folder} --num-images 1000 --output dataset"
    _said(f"model after {step} steps", folder, next_command)


def _serve(config: settings.ServeConfig) -> None:
    from ray_dit.serving.deployments.launcher import serve

    serve(config)


def _verify(config: settings.VerifyConfig) -> None:
    from ray_dit.ledger.maintenance import verify_all
    from ray_dit.results import RESULTS

    print(verify_all(config.uri, RESULTS, tell=print))


def _gc(config: settings.GcConfig) -> None:
    from ray_dit.ledger.maintenance import gc_all

    print(gc_all(config.uri, older_than=config.older_than, tell=print))


def _info(config: settings.InfoConfig) -> None:
    from ray_dit.stages.info import describe, write_sheet

    print(describe(config.uri))
    if config.sheet is not None:
        print(f"contact sheet: {write_sheet(config.uri, config.sheet)}")


def _plan_train_vae(config: settings.TrainVaeConfig, *, begun: float) -> Any:
    from ray_dit.stages.train_vae import plan_train_vae

    return plan_train_vae(config, begun=begun)


def _plan_encode(config: settings.EncodeConfig, *, begun: float) -> Any:
    from ray_dit.stages.encode import plan_encode

    return plan_encode(config, begun=begun)


def _plan_train(config: settings.TrainConfig, *, begun: float) -> Any:
    from ray_dit.stages.train import plan_train

    return plan_train(config, begun=begun)


def _plan_generate(config: settings.GenerateConfig, *, begun: float) -> Any:
    from ray_dit.stages.generate import plan_generate

    return plan_generate(config, begun=begun)


def _plan_evaluate(config: settings.EvaluateConfig, *, begun: float) -> Any:
    from ray_dit.stages.evaluate import plan_evaluate

    return plan_evaluate(config, begun=begun)


COMMANDS = {
    "train-vae": Command(
        "train a small VAE on your images", settings.TrainVaeConfig, _train_vae, plan=_plan_train_vae
    ),
    "encode": Command("images to latents, in shards", settings.EncodeConfig, _encode, plan=_plan_encode),
    "train": Command("train a DiT on latents", settings.TrainConfig, _train, plan=_plan_train),
    "generate": Command(
        "make a labelled dataset with a model", settings.GenerateConfig, _generate, plan=_plan_generate
    ),
    "evaluate": Command(
        "judge a generated dataset beside real images",
        settings.EvaluateConfig,
        _evaluate,
        plan=_plan_evaluate,
    ),
    "report": Command("one HTML page about a pipeline run", settings.ReportConfig, _report),
    "serve": Command("an HTTP endpoint and a page for models", settings.ServeConfig, _serve),
    "import-checkpoint": Command(
        "a published DiT as a model folder", settings.ImportConfig, _import, "source"
    ),
    "export": Command(
        "a model folder for diffusers or as an official .pt", settings.ExportConfig, _export, "model"
    ),
    "export-model": Command(
        "a training's checkpoint as a model folder", settings.ExportModelConfig, _export_model, "checkpoint"
    ),
    "info": Command("what a folder holds and how far it is", settings.InfoConfig, _info, "uri"),
    "verify": Command("read every object again and compare hashes", settings.VerifyConfig, _verify, "uri"),
    "gc": Command("remove what killed processes left behind", settings.GcConfig, _gc, "uri"),
}
"""All subcommands by name, in the order one uses them."""
