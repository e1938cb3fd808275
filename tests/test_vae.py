"""The VAE: diffusers' layout in and out, bit for bit, and clear errors for what is no VAE."""

import json
import os
from pathlib import Path

import pytest
import torch

from ray_dit.config import VAESizeConfig
from ray_dit.core.latents import normalize, sample_moments
from ray_dit.errors import Damaged, NotFound, UserError
from ray_dit.storage.open import open_store
from ray_dit.vae import PIECES, VAE, check_latents_vae, files_sha256, pieces_of
from tests.support.graphs import compiled_graphs
from tests.support.results import latents_result, manifest_of

SIZE = VAESizeConfig(block_out_channels=(4, 8), norm_num_groups=2)


@pytest.fixture(scope="module")
def vae() -> VAE:
    return VAE.create(SIZE, seed=3)


@pytest.fixture
def folder(vae: VAE, tmp_path: Path) -> Path:
    return write(vae, tmp_path / "made")


def write(vae: VAE, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, data in vae.files().items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def images() -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def test_shapes(vae: VAE, images: torch.Tensor) -> None:
    assert (vae.latent_channels, vae.downsample) == (4, 2)
    moments = vae.encode(images)
    assert moments.shape == (2, 8, 4, 4)
    assert vae.decode(moments[:, :4]).shape == images.shape


def test_encode_gives_mean_then_log_variance(vae: VAE, images: torch.Tensor) -> None:
    posterior = vae.module.encode(images).latent_dist
    mean, log_variance = vae.encode(images).chunk(2, dim=1)
    assert torch.equal(mean, posterior.mean)
    assert torch.equal(log_variance.clamp(-30, 20), posterior.logvar)


def test_decode_applies_no_scaling(vae: VAE) -> None:
    latents = torch.ones(1, 4, 4, 4)
    plain = vae.module.decoder(vae.module.post_quant_conv(latents))
    assert torch.equal(vae.decode(latents), plain)


@pytest.mark.parametrize("count", [1, 7, 8, 50])
def test_any_number_is_a_sum_of_few_pieces(count: int) -> None:
    found = pieces_of(count)
    assert sum(found) == count
    assert set(found) <= set(PIECES)
    assert len(found) <= count // 8 + 3


@pytest.mark.slow
def test_compiled_decoding_is_near_and_makes_one_graph_per_piece(vae: VAE) -> None:
    fast, before = vae.compiled(), compiled_graphs()
    latents = torch.linspace(-2, 2, 11 * 4 * 4 * 4).reshape(11, 4, 4, 4)
    with torch.inference_mode():
        for count in (11, 3, 8, 2, 1):  # 8 + 2 + 1, 2 + 1, ...
            given = latents[-count:]
            torch.testing.assert_close(fast.decode(given), vae.decode(given), rtol=1e-4, atol=1e-5)
        of_inference = 1.0 * latents.to(memory_format=torch.channels_last)[:8]
        torch.testing.assert_close(fast.decode(of_inference), vae.decode(of_inference), rtol=1e-4, atol=1e-5)
    fast.decode(latents)
    assert compiled_graphs() - before == 3
    assert fast.module is vae.module  # the weights are there once


def test_a_rounded_vae_takes_and_gives_float32(vae: VAE) -> None:
    latents = torch.linspace(-2, 2, 2 * 4 * 4 * 4).reshape(2, 4, 4, 4)
    rounded, exact = vae.to_precision("bfloat16").decode(latents), vae.decode(latents)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def test_initial_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = VAE.create(SIZE, seed=3).files()
    assert torch.equal(torch.rand(1), expected), "the global generator was used"
    assert VAE.create(SIZE, seed=3).files() == first
    assert VAE.create(SIZE, seed=4).files() != first


def test_diffusers_reads_our_folder_and_we_read_diffusers(
    vae: VAE, folder: Path, tmp_path: Path, images: torch.Tensor
) -> None:
    from diffusers import AutoencoderKL

    theirs = AutoencoderKL.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    assert theirs.state_dict().keys() == vae.module.state_dict().keys()
    assert all(
        torch.equal(a, b)
        for a, b in zip(theirs.state_dict().values(), vae.module.state_dict().values(), strict=True)
    )
    theirs.save_pretrained(tmp_path / "theirs")
    ours = VAE.load(str(tmp_path / "theirs"))
    assert ours.files() == vae.files(), "bytes must not depend on the way the weights went"
    with torch.no_grad():
        assert torch.equal(ours.encode(images), vae.encode(images))
        assert torch.equal(ours.decode(torch.ones(1, 4, 4, 4)), vae.decode(torch.ones(1, 4, 4, 4)))


def test_files_name_no_path(folder: Path) -> None:
    assert VAE.load(str(folder)).files()["config.json"].find(str(folder).encode()) == -1


def test_created_and_loaded_are_for_inference(vae: VAE, folder: Path) -> None:
    """torch may sum in another order for weights that require gradients, so last bits may differ."""
    for module in (vae.module, VAE.load(str(folder)).module):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_load_finds_the_vae_of_a_model_folder(vae: VAE, tmp_path: Path) -> None:
    write(vae, tmp_path / "model" / "vae")
    (tmp_path / "model" / "config.json").write_text('{"format": "something"}')
    assert VAE.load(str(tmp_path / "model")).files() == vae.files()


def test_load_through_fsspec(vae: VAE) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, data in vae.files().items():
        memory.pipe_file(f"/vaes/small/{name}", data)
    assert VAE.load("memory://vaes/small").files() == vae.files()


class Payload:
    """Code in a pickle: makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_old_bin_weights_are_read_without_unpickling_code(vae: VAE, folder: Path) -> None:
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(vae.module.state_dict(), folder / "diffusion_pytorch_model.bin")
    assert VAE.load(str(folder)).files() == vae.files()
    torch.save(
        {**vae.module.state_dict(), "more": Payload(folder / "trap")}, folder / "diffusion_pytorch_model.bin"
    )
    with pytest.raises(UserError, match="can't be read"):
        VAE.load(str(folder))
    assert not (folder / "trap").exists()


def test_errors_say_what_is_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no VAE at .*nowhere"):
        VAE.load(str(tmp_path / "nowhere"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    with pytest.raises(UserError, match="holds UNet2DModel, not an AutoencoderKL"):
        VAE.load(str(folder))
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="can't be read"):
        VAE.load(str(folder))
    weights.unlink()
    with pytest.raises(UserError, match="can't be read"):
        VAE.load(str(folder))


def test_fold_normalisation(vae: VAE, folder: Path, images: torch.Tensor) -> None:
    shift, scale = (0.5, -1.0, 0.0, 2.0), (0.5, 2.0, 1.0, 0.18215)
    folded = VAE.load(str(folder))
    folded.fold_normalisation(shift, scale)
    noise = torch.linspace(-2, 2, 2 * 4 * 4 * 4).reshape(2, 4, 4, 4)
    with torch.no_grad():
        before, after = (sample_moments(v.encode(images), noise) for v in (vae, folded))
        torch.testing.assert_close(after, normalize(before, shift, scale))
        torch.testing.assert_close(folded.decode(after), vae.decode(before))
    module = folded.module
    module.quant_conv = None
    with pytest.raises(UserError, match="no 1x1 convolutions"):
        VAE(module).fold_normalisation(0.0, 2.0)


def test_the_vae_of_latents_is_the_one_the_job_was_begun_with(tmp_path: Path) -> None:
    """Also in a folder of an earlier version, which listed no plain objects."""
    store = open_store(str(tmp_path))
    files = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"weights"}
    for name, data in files.items():
        store.put(f"vae/{name}", data)
    manifest = manifest_of(latents_result()).model_copy(
        update={"parts": {"inputs": {"vae": files_sha256(files)}}}
    )
    check_latents_vae(store, manifest)
    (tmp_path / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"Weights")
    with pytest.raises(Damaged, match="vae does not hold what was written there"):
        check_latents_vae(store, manifest)
    store.delete("vae/config.json")
    with pytest.raises(Damaged):
        check_latents_vae(store, manifest)
