"""The page shows what the stages left in their folders, and refers to nothing outside itself."""

import io
import re
import shlex
import shutil
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from ray_dit import cli
from ray_dit.config import (
    DiTConfig,
    EncodeConfig,
    EvaluateConfig,
    GenerateConfig,
    ImagesConfig,
    OptimizerConfig,
    ReportConfig,
    SamplerConfig,
    TrainConfig,
    TrainVaeConfig,
    VAESizeConfig,
)
from ray_dit.config.model_folder import LatentsConfig
from ray_dit.core.dit import DiT
from ray_dit.errors import UserError
from ray_dit.folders.images import plan_images
from ray_dit.folders.stored_plans import plan_key
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import ModelConfig, model_objects
from ray_dit.formats.worker_history import Segment
from ray_dit.ledger.job import Job
from ray_dit.ledger.results import Facts
from ray_dit.ledger.stored_json import canonical
from ray_dit.report.gather import commands, gather, spaced, stage_times, training_of_model
from ray_dit.report.html import write_report
from ray_dit.results import EvaluationResult, ModelResult, UsedSampler
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store
from ray_dit.vae import VAE
from tests.support.results import dataset_result, image_facts, latents_result, training_result, vae_result
from tests.support.tiny import shard_bytes

SIZE = 16
CLASSES = ("cat & <dog>", "owl")
VAE_SIZE = VAESizeConfig(block_out_channels=(4, 8), norm_num_groups=2, latent_channels=4)
SAMPLER = SamplerConfig(num_inference_steps=5)


def picture(label: int, number: int) -> np.ndarray:
    image = np.random.default_rng((label, number)).integers(0, 100, (SIZE, SIZE, 3), dtype=np.uint8)
    image[..., label] += 150
    return image


def png(image: np.ndarray) -> bytes:
    sink = io.BytesIO()
    PIL.Image.fromarray(image).save(sink, format="PNG")
    return sink.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)  # type: ignore[arg-type]
    return sink.getvalue()


def settings(folder: Path) -> dict[str, object]:
    """The configurations of a run below ``folder``, by stage."""
    images = ImagesConfig(uri=f"{folder}/images", size=SIZE, heldout=0.5)
    return {
        "train-vae": TrainVaeConfig(
            images=images,
            output=f"{folder}/vae",
            vae=VAE_SIZE,
            steps=20,
            optimizer=OptimizerConfig(learning_rate=1e-4, schedule="cosine"),
        ),
        "encode": EncodeConfig(images=images, vae=f"{folder}/vae", output=f"{folder}/latents", mirror=False),
        "train": TrainConfig(
            latents=f"{folder}/latents",
            output=f"{folder}/run",
            model_output=f"{folder}/model",
            steps=20,
            sampler=SAMPLER,
        ),
        "generate": GenerateConfig(
            model=f"{folder}/model",
            output=f"{folder}/dataset",
            num_images=12,
            classes=("1",),
            sampler=SamplerConfig(guidance_scale=3.0, guidance_interval=(10, 900)),
        ),
        "evaluate": EvaluateConfig(images=images, dataset=f"{folder}/dataset", output=f"{folder}/evaluation"),
    }


METRICS = {
    "class_accuracy": 0.9,
    "class_accuracy_real_heldout": 0.95,
    "frechet_distance": 12.345,
    "frechet_distance_real_heldout": 1.5,
    "frechet_images": 6,
    "cas_accuracy": 0.8,
    "cas_accuracy_real": 0.85,
    "cas_images": 12,
    "per_class_accuracy": {CLASSES[0]: 0.8, CLASSES[1]: 1.0},
    "per_class_accuracy_real_heldout": {CLASSES[0]: 0.9, CLASSES[1]: None},
    "num_images": 12,
    "num_train": 9,
    "num_heldout": 7,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ReportConfig:
    """Folders as the stages leave them, of a tiny untrained model."""
    folder = tmp_path_factory.mktemp("report")
    jobs = {
        stage: Job.open(open_store(config.output), stage, {"config": config.content()})  # type: ignore[attr-defined]
        for stage, config in settings(folder).items()
    }
    write_images(folder)
    vae = VAE.create(VAE_SIZE, seed=0)
    write_model(folder, vae)
    shown = np.stack([picture(0, number) for number in range(4)])
    jobs["train-vae"].put_plain(
        "reconstructions.npz", npz(original=shown, reconstructed=np.minimum(shown, 200))
    )
    jobs["train-vae"].put_plain("log.npz", npz(log=np.array([[10, 0.5], [20, 0.1]])))
    jobs["train-vae"].finish(vae_result(), objects=[])
    plan = plan_images(settings(folder)["encode"].images)  # type: ignore[attr-defined]
    jobs["encode"].put_plain(plan_key(), plan.to_bytes())
    jobs["encode"].finish(latents_result(classes=CLASSES, image_size=SIZE), objects=[])
    jobs["train"].put_plain("loss.jsonl", b'{"step": 10, "loss": 1.0}\n{"step": 20, "loss": 0.1}\n')
    jobs["train"].finish(training_result(), objects=[])
    write_dataset(jobs["generate"])
    jobs["evaluate"].finish(EvaluationResult.model_validate(METRICS), objects=[])
    record_runs(jobs["generate"].store)
    return ReportConfig(
        images=f"{folder}/images",
        vae=f"{folder}/vae",
        latents=f"{folder}/latents",
        run=f"{folder}/run",
        model=f"{folder}/model",
        dataset=f"{folder}/dataset",
        evaluation=f"{folder}/evaluation",
        output=f"{folder}/report.html",
    )


def write_images(folder: Path) -> None:
    for label, name in enumerate(CLASSES):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(8):
            (folder / "images" / name / f"{number}.png").write_bytes(png(picture(label, number)))
    (folder / "images" / CLASSES[1] / "broken.png").write_bytes(b"no picture")


def write_model(folder: Path, vae: VAE) -> None:
    shape = DiTConfig(input_size=8, in_channels=4, hidden_size=16, depth=1, num_heads=2, num_classes=2)
    config = ModelConfig(model=shape, latents=LatentsConfig(scale=1.0, image_size=SIZE), sampler=SAMPLER)
    generator = torch.Generator().manual_seed(0)
    model = DiT(shape, generator=generator)
    for weight in model.final_layer.parameters():  # zero at first, and zero predictions would never change
        torch.nn.init.normal_(weight, std=0.5, generator=generator)
    job = Job.open(open_store(f"{folder}/model"), "model", {})
    for key, data in model_objects(config, model.state_dict(), Labels(CLASSES), vae.files(), "card").items():
        job.put(key.replace("/", "-"), key, data, Facts())
    job.finish(ModelResult())


def write_dataset(job: Job) -> None:
    labels = [number % 2 for number in range(12)]
    images = [png(picture(label, 100 + number)) for number, label in enumerate(labels)]
    marker = job.put(
        "0", "data/0.parquet", shard_bytes(images, labels, list(range(12)), CLASSES), image_facts(0, 12)
    )
    sampler = SAMPLER.model_copy(update={"guidance_scale": 3.0})
    job.finish(dataset_result(rows=12, classes=CLASSES, sampler=UsedSampler.of(sampler)), objects=[marker])


def record_runs(store: Store) -> None:
    """Two finished runs, a killed one, and something else's files among them."""
    start = {"cpus": 2, "machine": "a machine", "command": ["ray-dit", "generate"], "what": "generate"}
    for number, seconds in enumerate((2.0, 4.0, None)):
        store.put(f"_runs/2026010{number}/start.json", canonical(start))
        if seconds is not None:
            end = {"seconds": seconds, "images": 6, "shards": 1}
            store.put(f"_runs/2026010{number}/end.json", canonical(end))
    store.put("_runs/ray_train/deep/start.json", b"not ours")


@pytest.fixture(scope="module")
def html(config: ReportConfig) -> str:
    write_report(config)
    return Path(config.output).read_text()


class Page(HTMLParser):
    """Tags with their attributes, and the text, of a page whose tags must all be closed."""

    VOID = {"meta", "img", "br", "line", "polyline"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_refers_to_nothing_outside_itself(html: str):
    tags = Page(html).tags
    for tag, attributes in tags:
        assert tag not in ("script", "link", "iframe")
        for name, value in attributes.items():
            if name in ("src", "href"):
                assert value is not None
                assert value.startswith("data:image/png;base64,")
    assert "url(" not in html
    assert "@import" not in html
    assert sum(tag == "img" for tag, _ in tags) >= 2 * len(CLASSES) + 4


def test_all_parts_are_there(html: str):
    text = Page(html).text
    for heading in (
        "Samples by class", "Real beside generated", "How good they are", "What the VAE keeps",
        "From noise to image", "Training", "Time and throughput", "The commands that made it",
    ):  # fmt: skip
        assert heading in text


def test_every_figure_stands_beside_its_ceiling(html: str):
    rows = re.findall(r"<tr><td>(.*?)</tr>", html, flags=re.DOTALL)
    said = [re.sub(r"<.*?>", " ", row).split() for row in rows]
    for figure, ceiling in (("90.0", "95.0"), ("12.3", "1.5"), ("80.0", "85.0")):
        assert any(figure in row and ceiling in row[row.index(figure) :] for row in said)


def test_pictures_are_those_of_their_class(config: ReportConfig):
    contents = gather(config)
    np.testing.assert_array_equal(contents.generated[CLASSES[1]][0], picture(1, 101))
    assert {len(images) for images in contents.generated.values()} == {6}
    for label, name in enumerate(CLASSES):
        real = [picture(label, number).tobytes() for number in range(8)]
        assert {image.tobytes() for image in contents.real[name]} <= set(real)
        assert 1 <= len(contents.real[name]) < 8  # only the held-out ones


def test_the_denoising_strip_ends_with_the_picture_the_pipeline_makes(config: ReportConfig):
    import ray_dit.pipeline

    contents = gather(config)
    assert contents.preview_steps == (1, 2, 3, 4, 5)
    pictures = ray_dit.pipeline.load(config.model)(labels=[0, 1], seed=0)
    for name, wanted in zip(CLASSES, pictures, strict=True):
        strip = contents.denoising[name]
        assert strip.shape == (5, SIZE, SIZE, 3)
        np.testing.assert_array_equal(strip[-1], np.asarray(wanted))
        assert not np.array_equal(strip[0], strip[-1])


def test_class_names_cannot_inject_html(html: str):
    assert "cat & <dog>" in Page(html).text
    assert "<dog>" not in html


def test_pngs_of_the_grids_lie_beside_the_page(config: ReportConfig, html: str):
    for name in ("samples", "real", "reconstructions", "denoising"):
        with PIL.Image.open(config.output.replace(".html", f"-{name}.png")) as image:
            image.load()


def test_the_same_folders_give_the_same_page_and_another_replaces_it(config: ReportConfig, html: str):
    write_report(config)
    assert Path(config.output).read_text() == html
    Path(config.output).write_text("an older report")
    write_report(config)
    assert Path(config.output).read_text() == html


def test_commands_on_the_page_parse_to_the_settings_of_each_stage(config: ReportConfig, html: str):
    listed = re.findall(r"<pre>(.*?)</pre>", html, flags=re.DOTALL)[1]
    lines = [line for line in unescape(listed).replace("\\\n", " ").splitlines() if line]
    wanted = settings(Path(config.output).parent)
    assert [shlex.split(line)[1] for line in lines] == list(wanted)
    for line in lines:
        _, stage, *options = shlex.split(line)
        assert cli.parse(stage, type(wanted[stage]), options) == wanted[stage]  # type: ignore[arg-type]


def test_what_generate_resolved_from_the_model_needs_no_option(config: ReportConfig):
    contents = gather(config)
    dataset = contents.results.dataset
    asked = {"classes": [0, 1], "per_class": 6, "sampler": SAMPLER.model_dump(mode="json")}
    asked = dataset.parts | {"config": dataset.parts["config"] | asked}
    results = replace(contents.results, dataset=dataset.model_copy(update={"parts": asked}))
    (line,) = (line for line in commands(config, results, contents.model) if "ray-dit generate" in line)
    assert line.endswith("/dataset --num-images 12")


def test_times_add_up_over_runs_and_killed_ones_are_counted(config: ReportConfig, html: str):
    (time,) = stage_times("generate", open_store(config.dataset))
    assert (time.seconds, time.count, time.unit, time.unfinished) == (6.0, 12, "images", 1)
    text = Page(html).text
    assert "2.0 images/s" in text
    assert "1 interrupted run" in text
    assert "2 CPUs, a machine" in text


def test_a_command_has_the_workers_of_the_end(config: ReportConfig):
    contents = gather(config)
    training = contents.results.training
    two = (Segment(first=0, workers=1, kind="a"), Segment(first=5, workers=2, kind="a"))
    later = training.facts.of(two)
    asked = {**training.parts["config"], "num_workers": 3, "use_gpu": False}
    for facts, settings_then, workers in (
        (later, training.parts["config"], "2"),
        (later, asked, "2"),
        (training.facts, asked, "3"),
    ):
        parts = {**training.parts, "config": settings_then}
        made = training.model_copy(update={"facts": facts, "parts": parts})
        results = replace(contents.results, training=made)
        (line,) = (line for line in commands(config, results, contents.model) if "ray-dit train " in line)
        words = shlex.split(line)
        assert words[words.index("--num-workers") + 1] == workers
        assert "--use-gpu" not in words


def test_an_evaluation_of_another_dataset_is_not_shown(config: ReportConfig, tmp_path: Path):
    job = Job.open(open_store(str(tmp_path)), "evaluate", {"inputs": {"dataset": "of another"}})
    job.finish(EvaluationResult.model_validate(METRICS))
    with pytest.raises(UserError, match=f"{tmp_path} was not made from .*dataset, but from another dataset"):
        write_report(config.model_copy(update={"evaluation": str(tmp_path)}))


def test_the_training_shown_is_the_generation_that_made_the_model(config: ReportConfig, tmp_path: Path):
    run = open_store(str(tmp_path / "run"))
    first = Job.open(run, "train", {"config": {"steps": 20}})
    first.put_plain("loss.json", b"[[20, 0.1]]")  # as earlier versions wrote it
    first.finish(training_result(), objects=[])
    longer = Job.extend(run, "train", {"config": {"steps": 30}}, may_change=["config.steps"])
    points = b'{"step": 20, "loss": 0.1}\n{"step": 30, "loss": 0.05, "gradient_norm": 2.0}\n'
    longer.put_plain("g01-loss.jsonl", points)
    longer.finish(training_result(), objects=[])
    for job, name, curve in ((first, "model", [(20, 0.1)]), (longer, "other", [(20, 0.1), (30, 0.05)])):
        store = open_store(str(tmp_path / name))
        shutil.copytree(config.model, store.uri)
        store.delete("_job.json")
        store.delete("manifest.json")
        made = Job.open(store, "model", {"train": job.fingerprint})
        made.finish(ModelResult())
        asked = config.model_copy(update={"run": run.uri, "model": store.uri})
        assert training_of_model(asked).fingerprint == job.fingerprint
        assert gather(asked).loss == curve
    assert training_of_model(config.model_copy(update={"run": run.uri})).fingerprint == longer.fingerprint


def test_an_unfinished_stage_is_named(config: ReportConfig):
    with pytest.raises(UserError, match="ray-dit evaluate"):
        write_report(config.model_copy(update={"evaluation": config.output + "-nothing"}))


def test_without_a_vae_of_its_own_the_page_leaves_reconstructions_out(config: ReportConfig):
    output = config.output.replace("report.html", "plain.html")
    write_report(config.model_copy(update={"vae": None, "output": output}))
    assert "What the VAE keeps" not in Path(output).read_text()


def test_many_items_are_thinned_at_even_distances():
    assert spaced("abc", 5) == ("a", "b", "c")
    assert spaced(range(100), 3) == (0, 50, 99)
