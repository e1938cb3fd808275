"""The pipeline on a tiny model: images follow from (seed, number, label, sampler) alone."""

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ray_dit
from ray_dit.config import DiTConfig, SamplerConfig, VAESizeConfig
from ray_dit.config.model_folder import LatentsConfig
from ray_dit.core.determinism import make_deterministic
from ray_dit.core.dit import DiT
from ray_dit.core.guidance import GuidedModel
from ray_dit.core.latents import denormalize, to_uint8
from ray_dit.errors import UserError
from ray_dit.folders.model import read_model
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import ModelConfig, model_objects
from ray_dit.pipeline import Pipeline, initial_state, meta_dit
from ray_dit.vae import VAE
from tests.support.compiling import printed_by

DIT = DiTConfig(input_size=4, patch_size=2, hidden_size=32, depth=2, num_heads=2, num_classes=3)
LATENTS = LatentsConfig(shift=(0.1, 0.2, 0.3, 0.4), scale=0.5, image_size=8)
SAMPLER = SamplerConfig(num_inference_steps=4, guidance_scale=2.0)


def random_dit(config: DiTConfig, seed: int = 0) -> DiT:
    """A model in which every path matters: fresh weights leave the output zero."""
    model = DiT(config, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def write_model(
    folder: Path, config: ModelConfig, state: Mapping[str, Tensor], names: tuple[str, ...]
) -> str:
    vae = VAE.create(VAESizeConfig(block_out_channels=(4, 8), norm_num_groups=2), seed=1)
    for key, data in model_objects(config, state, Labels(names), vae.files(), "").items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    return str(folder)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = ModelConfig(model=DIT, latents=LATENTS, sampler=SAMPLER)
    return write_model(
        tmp_path_factory.mktemp("model"), config, random_dit(DIT).state_dict(), ("cat", "dog", "4")
    )


@pytest.fixture(scope="module")
def pipe(uri: str) -> Pipeline:
    return ray_dit.load(uri, device="cpu")


def pixels(images: list) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_one_picture_a_label(pipe: Pipeline) -> None:
    images = pipe(labels=["cat", 1, "2"], seed=5)
    assert [(image.size, image.mode) for image in images] == [((8, 8), "RGB")] * 3


def test_a_picture_follows_from_seed_number_and_label(pipe: Pipeline) -> None:
    together = pixels(pipe(labels=[0, 1, 2], seed=5)).astype(int)
    by_one = pixels(pipe(labels=["cat", "dog", 2], seed=5, batch_size=1)).astype(int)
    assert np.abs(together - by_one).max() <= 1
    assert np.array_equal(together, pixels(pipe(labels=[0, 1, 2], seed=5)))
    for other in (pipe(labels=[1, 1, 2], seed=5), pipe(labels=[0, 1, 2], seed=6)):
        assert not np.array_equal(together[0], pixels(other)[0])
    assert not np.array_equal(*pixels(pipe(labels=[0, 0], seed=5))), (
        "pictures of one call have noise of their own"
    )


def test_steps_guidance_and_sampler_matter(pipe: Pipeline) -> None:
    default = pixels(pipe(labels=[0]))
    assert np.array_equal(default, pixels(pipe(labels=0, steps=4, guidance_scale=2.0, sampler="unipc")))
    for options in (
        {"steps": 5},
        {"guidance_scale": 6.0},
        {"sampler": "ddim"},
        {"sampler": SamplerConfig(name="dpmpp")},
    ):
        assert not np.array_equal(default, pixels(pipe(labels=[0], **options))), options


def test_decode_undoes_the_normalisation_of_the_model(pipe: Pipeline) -> None:
    latents = pipe.sample_latents([0, 1], sample_ids=[7, 8], seed=0, sampler=SAMPLER)
    assert latents.shape == (2, *pipe.latent_shape)
    assert latents.dtype == torch.float32
    raw = denormalize(latents, LATENTS.shift, LATENTS.scale)
    expected = to_uint8(pipe.vae.decode(raw)).numpy()
    images = pipe.decode(latents)
    assert images.dtype == np.uint8
    assert np.array_equal(images, expected)


def test_sample_ids_decide_the_noise(pipe: Pipeline) -> None:
    row = pipe.sample_latents([1], sample_ids=[8], seed=0, sampler=SAMPLER)
    rows = pipe.sample_latents([0, 1], sample_ids=[7, 8], seed=0, sampler=SAMPLER)
    torch.testing.assert_close(rows[1:], row, rtol=1e-4, atol=1e-4)


def test_guidance_channels_of_the_model_are_used(uri: str, pipe: Pipeline) -> None:
    three = Pipeline(read_model(uri), pipe.model)
    three.config = pipe.config.model_copy(update={"guidance_channels": 3})
    options = {
        "sample_ids": [0],
        "seed": 0,
        "sampler": SamplerConfig(name="ddim", num_inference_steps=1, guidance_scale=4),
    }
    ours, all_channels = three.sample_latents([0], **options), pipe.sample_latents([0], **options)
    assert torch.equal(ours[:, :3], all_channels[:, :3])
    assert not torch.equal(ours[:, 3:], all_channels[:, 3:])


def test_pictures_that_are_no_numbers_are_refused(pipe: Pipeline) -> None:
    latents = torch.zeros(2, *pipe.latent_shape)
    latents[1, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="no numbers .NaN or infinite.: its weights are damaged"):
        pipe.decode(latents)


@pytest.mark.parametrize("fields", [{"batch_size": 0}, {"seed": -1}, {"seed": 2**63}])
def test_numbers_out_of_range_are_refused(pipe: Pipeline, fields: dict[str, int]) -> None:
    with pytest.raises(UserError, match="batch_size .* must be at least 1, and seed"):
        pipe(labels=[0], **fields)


def test_labels_may_be_numpys_whole_numbers_and_nothing_else(pipe: Pipeline) -> None:
    assert np.array_equal(pixels(pipe(labels=np.arange(2))), pixels(pipe(labels=[0, 1])))
    assert np.array_equal(pixels(pipe(labels=np.int64(1))), pixels(pipe(labels=1)))
    for wrong in (1.0, None, 2.7):
        with pytest.raises(UserError, match="there is no class"):
            pipe(labels=[wrong])


def test_a_precision_there_is_not_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="no precision 'bf16': take one of float32, bfloat16"):
        ray_dit.load(uri, precision="bf16")
    with pytest.raises(UserError, match="no precision 'half': take one of float32, bfloat16"):
        ray_dit.load(uri, vae_precision="half")


def test_sampler_settings(pipe: Pipeline) -> None:
    assert pipe.sampler() == SAMPLER
    assert pipe.sampler("ddim") == SamplerConfig(name="ddim", num_inference_steps=4, guidance_scale=2.0)
    assert pipe.sampler(SamplerConfig(timesteps=(900.0, 100.0)), steps=7).timesteps is None
    with pytest.raises(UserError, match="sampler settings don't work: name"):
        pipe.sampler("euler")
    with pytest.raises(UserError, match="sampler settings don't work: num_inference_steps"):
        pipe.sampler(steps=0)
    with pytest.raises(UserError, match="can't be sampled with these settings"):
        pipe(labels=[0], sampler=SamplerConfig(timesteps=(5000.0,)))
    with pytest.raises(
        UserError, match="do not fit together: dpmpp has order 1 or 2; for order 3 take unipc"
    ):
        pipe(labels=[0], sampler=SamplerConfig(name="dpmpp", order=3))


def test_label_errors(pipe: Pipeline) -> None:
    assert pipe.resolve_label("dog") == 1
    assert pipe.resolve_label("4") == 2
    with pytest.raises(UserError, match="did you mean 'dog'"):
        pipe(labels=["dogg"])
    with pytest.raises(UserError, match=r"has 3 classes: call it with labels=\[...\]"):
        pipe()
    with pytest.raises(UserError, match="has 3 classes"):
        pipe(num_images=2)


def test_a_model_without_classes(tmp_path: Path) -> None:
    model = DIT.model_copy(update={"num_classes": 0})
    config = ModelConfig(model=model, latents=LATENTS, sampler=SAMPLER)
    pipe = ray_dit.load(write_model(tmp_path, config, random_dit(model).state_dict(), ()))
    assert len(pipe(num_images=2)) == 2
    with pytest.raises(UserError, match="no classes"):
        pipe(labels=["cat"])


def test_a_model_without_null_class_refuses_guidance_that_is_asked_for(tmp_path: Path) -> None:
    model = DIT.model_copy(update={"class_dropout_prob": 0.0})
    config = ModelConfig(model=model, latents=LATENTS, sampler=SAMPLER)
    pipe = ray_dit.load(write_model(tmp_path, config, random_dit(model).state_dict(), ("a", "b", "c")))
    assert np.array_equal(pixels(pipe(labels=["a"])), pixels(pipe(labels=["a"], guidance_scale=1)))
    with pytest.raises(UserError, match="can't be guided"):
        pipe(labels=["a"], guidance_scale=2)


def test_loaded_weights_are_those_of_the_file(uri: str, pipe: Pipeline) -> None:
    expected = random_dit(DIT).state_dict()
    state = pipe.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert not pipe.model.training
    assert not any(p.requires_grad for p in pipe.model.parameters())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    config = ModelConfig(model=DIT.model_copy(update={"depth": 3}), latents=LATENTS)
    uri = write_model(tmp_path, config, random_dit(DIT).state_dict(), ("a", "b", "c"))
    with pytest.raises(UserError, match=r"don't fit the model \(missing: blocks\.2\."):
        ray_dit.load(uri)


@pytest.mark.parametrize("changes", [{"num_classes": 5}, {"input_size": 8}, {"num_classes": 0}, {}])
def test_initial_state_fits_another_class_count_or_resolution(uri: str, changes: dict[str, int]) -> None:
    new = DIT.model_copy(update=changes)
    model = DiT(new)
    model.load_state_dict(initial_state(uri, new, seed=1))
    old = random_dit(DIT).state_dict()
    for name, value in model.state_dict().items():
        remade = (name.startswith("y_embedder") and "num_classes" in changes) or (
            name == "pos_embed" and "input_size" in changes
        )
        if remade:
            assert value.shape != old[name].shape
        else:
            assert torch.equal(value, old[name]), name
    grid = torch.zeros(1, 4, new.input_size, new.input_size)
    assert torch.isfinite(model(grid, torch.tensor([500]), torch.tensor([0]))).all()


def test_initial_state_follows_from_the_seed(uri: str) -> None:
    new = DIT.model_copy(update={"num_classes": 5})
    first, again, other = (initial_state(uri, new, seed=seed) for seed in (1, 1, 2))
    table = "y_embedder.embedding_table.weight"
    assert torch.equal(first[table], again[table])
    assert not torch.equal(first[table], other[table])
    assert torch.equal(
        initial_state(uri, DiTConfig(**new.model_dump() | {"input_size": 8}))["pos_embed"],
        DiT(DIT.model_copy(update={"input_size": 8})).pos_embed,
    )


def test_fresh_label_vectors_have_the_deviation_asked_for(uri: str) -> None:
    new = DIT.model_copy(update={"num_classes": 40})
    small, large = (
        initial_state(uri, new, label_std=std)["y_embedder.embedding_table.weight"] for std in (0.02, 1.0)
    )
    assert small.std() == pytest.approx(0.02, rel=0.1)
    assert torch.allclose(large, 50 * small)


def test_initial_state_refuses_another_network(uri: str) -> None:
    with pytest.raises(UserError, match="training can't start from .*depth 2 -> 3"):
        initial_state(uri, DIT.model_copy(update={"depth": 3}))


def test_meta_dit_takes_no_memory() -> None:
    assert all(parameter.is_meta for parameter in meta_dit(DiTConfig.preset("DiT-XL/2")).parameters())


def test_importing_the_package_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys, ray_dit; print([m for m in ('torch', 'ray', 'diffusers', 'numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    used = code.replace("ray_dit;", "ray_dit; ray_dit.load;")
    run = subprocess.run([sys.executable, "-c", used], capture_output=True, text=True, check=True)
    assert "'torch'" in run.stdout
    assert "'ray'" not in run.stdout
    assert "'diffusers'" not in run.stdout
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = ray_dit.lode


def peak_memory(code: str) -> int:
    """Peak resident size in bytes of a fresh process that runs ``code``."""
    code += "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.slow
def test_loading_xl2_takes_little_more_than_its_size(tmp_path: Path) -> None:
    config = ModelConfig(model=DiTConfig.preset("DiT-XL/2"))
    weights = tmp_path / "model.safetensors"
    make = f"""
import torch
from ray_dit.config import DiTConfig
from ray_dit.pipeline import meta_dit
from safetensors.torch import save_file
torch.set_num_threads(1)
state = meta_dit(DiTConfig.preset("DiT-XL/2")).state_dict()
save_file({{name: torch.full(value.shape, 0.01) for name, value in state.items()}}, {str(weights)!r})
"""
    subprocess.run([sys.executable, "-c", make], check=True)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    (tmp_path / "labels.json").write_bytes(Labels.numbered(1000).to_json())
    imports = (
        "import torch, ray_dit; from ray_dit.pipeline import load_dit; "
        "from ray_dit.folders.model import read_model"
    )
    baseline = peak_memory(imports)
    size = weights.stat().st_size
    used = peak_memory(f"{imports}\nmodel = load_dit(read_model({str(tmp_path)!r}))") - baseline
    weights.unlink()
    assert size > 2.6e9
    assert used < 1.3 * size, f"{used / size:.2f} times its size"
    print(f"DiT-XL/2: {size / 1e9:.2f} GB, peak {used / size:.3f} times that")


def test_bfloat16_is_near_float32_and_not_the_same(uri: str, pipe: Pipeline) -> None:
    low = ray_dit.load(uri, device="cpu", precision="bfloat16")
    given = {"sample_ids": range(6), "seed": 0, "sampler": SAMPLER}
    want, got = (p.sample_latents([0, 1, 2, 0, 1, 2], **given) for p in (pipe, low))
    assert got.dtype == torch.float32
    assert 0 < (want - got).abs().max() < 0.03 * want.abs().max()
    assert np.abs(low.decode(got).astype(int) - pipe.decode(want)).max() <= 8


def drawn_compiled(uri: str) -> str:
    """The hash of images of a compiled pipeline."""
    make_deterministic(1)
    pipe = ray_dit.load(uri, device="cpu", compile=True)
    images = pipe([0, 1, 2, 0], batch_size=2)
    return hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()


def test_the_vae_computes_in_what_is_asked_for(uri: str, pipe: Pipeline) -> None:
    low = ray_dit.load(uri, device="cpu", vae_precision="bfloat16")
    latents = pipe.sample_latents([0, 1], sample_ids=range(2), seed=0, sampler=SAMPLER)
    exact, rounded = pipe.decode(latents).astype(int), low.decode(latents).astype(int)
    assert 0 < np.abs(exact - rounded).max() <= 8
    again = low.sample_latents([0, 1], sample_ids=range(2), seed=0, sampler=SAMPLER)
    assert torch.equal(again, latents)


@pytest.mark.slow
def test_compiled_images_have_equal_bits_in_processes_of_empty_caches(
    uri: str, pipe: Pipeline, tmp_path: Path
) -> None:
    code = "import sys; from tests.test_pipeline import *; print(drawn_compiled(sys.argv[1]))"
    found = [printed_by(code, uri, cache=tmp_path / cache) for cache in ("a-cache", "another-cache")]
    assert found[0] == found[1]


def test_a_compiled_network_meets_few_shapes(uri: str, pipe: Pipeline) -> None:
    fast = Pipeline(pipe.folder, pipe.model, compile=True, compile_vae=False)
    shapes: list[int] = []

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        shapes.append(len(x))
        return pipe.model(x, t, y)

    fast.__dict__["guided_model"] = GuidedModel(network, 3)
    partly = SAMPLER.model_copy(update={"guidance_interval": (0.0, 500.0)})
    images = fast([0, 1, 2, 0, 1], batch_size=2, sampler=partly)
    assert set(shapes) == {2, 4}
    plain = pipe([0, 1, 2, 0, 1], batch_size=2, sampler=partly)
    for one, other in zip(images, plain, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1
