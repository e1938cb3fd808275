"""Model folders out to others' formats, and back: bit for bit, and the figures of diffusers' own model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ray_dit
from ray_dit.checkpoints.exporting import export
from ray_dit.config import (
    DiTConfig,
    ExportConfig,
    SamplerConfig,
)
from ray_dit.config.model_folder import LatentsConfig
from ray_dit.core.dit import DiT
from ray_dit.core.latents import denormalize
from ray_dit.core.sampling import TableBank, init_rows, sample
from ray_dit.errors import UserError
from ray_dit.folders.model import read_model
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import ModelConfig, model_objects
from ray_dit.vae import VAE
from tests.support.checkpoints import GOLDEN, imported, same


def test_official_ours_official_is_bitwise(official: dict[str, Tensor], model: str, tmp_path: Path) -> None:
    assert same(read_model(model).state_dict(), official)
    where = export(ExportConfig(model=model, output=str(tmp_path / "back.pt"), format="official"))
    assert same(torch.load(where, weights_only=True), official)


def test_ours_diffusers_ours_is_bitwise(trained: str, exported: Path, tmp_path: Path) -> None:
    before, after = read_model(trained), read_model(imported(exported, tmp_path / "back"))
    assert same(after.state_dict(), before.state_dict())
    assert after.labels == before.labels
    # shift and scale went into the VAE; everything else is as it was
    neutral = before.config.latents.model_copy(update={"shift": 0.0, "scale": 1.0})
    assert after.config == before.config.model_copy(update={"latents": neutral})
    pictures = [ray_dit.load(uri)(labels=["cat", 1], seed=3) for uri in (trained, str(tmp_path / "back"))]
    ours, theirs = (
        torch.stack([torch.tensor(list(image.tobytes())) for image in images]) for images in pictures
    )
    assert (ours - theirs).abs().max() <= 1
    assert ours.float().std() > 1


def test_official_through_diffusers_is_bitwise(
    model: str, official: dict[str, Tensor], tmp_path: Path
) -> None:
    export(ExportConfig(model=model, output=str(tmp_path / "pipeline")))
    back = imported(tmp_path / "pipeline", tmp_path / "back")
    assert same(read_model(back).state_dict(), official)
    assert read_model(back).config == read_model(model).config
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == Path(
        model, "model.safetensors"
    ).read_bytes()
    assert VAE.load(back).module.config.scaling_factor == 0.18215


def test_exporting_again_changes_nothing(trained: str, exported: Path) -> None:
    before = {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    export(ExportConfig(model=trained, output=str(exported)))
    assert {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()} == before
    assert {path.name for path in exported.iterdir()} == {
        "model_index.json", "ray_dit.json", "scheduler", "transformer", "vae",
    }  # fmt: skip


def test_dit_pipeline_loads_and_runs(exported: Path) -> None:
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(exported, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.get_label_ids(["hound"]) == [1]
    generator = torch.Generator().manual_seed(0)
    guided = pipe(
        [0, 1], guidance_scale=4.0, num_inference_steps=3, generator=generator, output_type="np"
    ).images
    assert guided.shape == (2, 8, 8, 3)
    plain = pipe(
        [0, 1],
        guidance_scale=1.0,
        num_inference_steps=3,
        generator=generator.manual_seed(0),
        output_type="np",
    )
    assert abs(guided - plain.images).max() > 1e-4, "guidance must find the null class"


def test_dit_pipeline_makes_our_pictures(trained: str, exported: Path) -> None:
    """With frequencies as ours, the same noise gives the same pictures.

    So names, padding, scheduler and VAE are right.
    """
    from diffusers import DiTPipeline

    theirs = DiTPipeline.from_pretrained(exported, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    with_our_frequencies(theirs.transformer)
    generator = torch.Generator().manual_seed(0)
    options = {"guidance_scale": 2.0, "num_inference_steps": 5, "output_type": "pt"}
    images = theirs([0, 2], generator=generator, **options).images
    x = torch.randn(2, 4, 4, 4, generator=generator.manual_seed(0))

    ours = ray_dit.load(trained)
    rows = init_rows(
        ours.latent_shape,
        labels=torch.tensor([0, 2]),
        sample_id=torch.arange(2),
        seed=0,
        guidance_scale=2.0,
        noise=lambda *_: x,
    )
    sampler = SamplerConfig(name="ddim", num_inference_steps=5, spacing="leading", guidance_scale=2.0)
    latents = sample(ours.guided_model, rows, TableBank([ours.table(sampler)]))
    raw = denormalize(latents, ours.config.latents.shift, ours.config.latents.scale)
    expected = (ours.vae.decode(raw) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images, expected, rtol=0, atol=5e-6)
    assert expected.std() > 0.01


def with_our_frequencies(transformer: torch.nn.Module) -> None:
    """Takes the known deviation out of diffusers' transformer: frequencies to /128 instead of /127."""
    from diffusers.models.embeddings import Timesteps

    for block in transformer.transformer_blocks:
        block.norm1.emb.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)


def deviation(transformer: torch.nn.Module, ours: DiT, x: Tensor, t: Tensor, y: Tensor) -> float:
    """Largest difference of diffusers' output from ours, relative to our largest value."""
    with torch.no_grad():
        expected, output = ours(x, t, y), transformer(x, t, y).sample
    return float((output - expected).abs().max() / expected.abs().max())


def test_known_deviation_of_diffusers_model(model: str, tmp_path: Path) -> None:
    """What docs/checkpoints.md says of it: time frequencies to /127, and the norm's eps unless we set it."""
    from diffusers import DiTTransformer2DModel

    where = Path(export(ExportConfig(model=model, output=str(tmp_path / "p")))) / "transformer"
    theirs = DiTTransformer2DModel.from_pretrained(where, local_files_only=True, low_cpu_mem_usage=False)
    as_published = DiTTransformer2DModel.from_pretrained(
        where, local_files_only=True, low_cpu_mem_usage=False, norm_eps=1e-5
    )
    ours = ray_dit.load(model).model
    with np.load(GOLDEN / "cases.npz") as cases:
        x, t, y = (torch.from_numpy(cases[key]) for key in ("x", "t", "y"))
    from_frequencies = deviation(theirs, ours, x, t, y)
    with_our_frequencies(theirs)
    with_our_frequencies(as_published)
    none, from_eps = deviation(theirs, ours, x, t, y), deviation(as_published, ours, x, t, y)
    print(f"deviation: frequencies {from_frequencies:.3g}, norm eps {from_eps:.3g}, neither {none:.3g}")
    assert none <= 2e-6, "with /128 and our eps it is the same network"
    assert none < from_eps < 1e-5
    assert 0.01 < from_frequencies < 0.2


def test_models_without_classes_or_null_class_go_through_diffusers(vae: Path, tmp_path: Path) -> None:
    for name, fields in {
        "unlabelled": {"num_classes": 0},
        "undropped": {"num_classes": 3, "class_dropout_prob": 0.0},
    }.items():
        config = ModelConfig(
            model=DiTConfig(input_size=4, hidden_size=32, depth=1, num_heads=2, **fields),
            latents=LatentsConfig(image_size=8),
        )
        state = DiT(config.model, generator=torch.Generator().manual_seed(0)).state_dict()
        objects = model_objects(
            config, state, Labels.numbered(config.model.num_classes), VAE.load(str(vae)).files(), ""
        )
        for key, data in objects.items():
            (tmp_path / name / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / key).write_bytes(data)
        where = export(ExportConfig(model=str(tmp_path / name), output=str(tmp_path / f"{name}-pipeline")))
        back = read_model(imported(Path(where), tmp_path / f"{name}-back"))
        assert back.config == config
        assert same(back.state_dict(), state)


def test_what_diffusers_can_not_hold_is_refused(vae: Path, tmp_path: Path) -> None:
    for number, (fields, message) in enumerate(
        [({"mlp_ratio": 2.0}, "mlp_ratio 4, not 2"), ({"num_classes": 1001}, "1001 classes")]
    ):
        config = ModelConfig(model=DiTConfig(input_size=4, hidden_size=32, depth=1, num_heads=2, **fields))
        objects = model_objects(
            config,
            DiT(config.model).state_dict(),
            Labels.numbered(config.model.num_classes),
            VAE.load(str(vae)).files(),
            "",
        )
        for key, data in objects.items():
            (tmp_path / str(number) / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / str(number) / key).write_bytes(data)
        with pytest.raises(UserError, match=message):
            export(ExportConfig(model=str(tmp_path / str(number)), output=str(tmp_path / "out")))
    with pytest.raises(UserError, match=r"does not end in \.pt"):
        export(ExportConfig(model=str(tmp_path / "0"), output=str(tmp_path / "out"), format="official"))
