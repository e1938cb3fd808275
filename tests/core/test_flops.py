"""Counted operations beside published ones: of DiT (Peebles & Xie 2022, table 4) and SD's VAE."""

import pytest

from ray_dit.config import DiTConfig, VAESizeConfig
from ray_dit.core.flops import peak_flops
from ray_dit.pipeline import dit_flops
from ray_dit.vae import VAE


@pytest.mark.parametrize(
    ("preset", "gmac"), [("DiT-S/2", 6.06), ("DiT-B/4", 5.56), ("DiT-L/2", 80.71), ("DiT-XL/2", 118.64)]
)
def test_dit_has_the_published_operations(preset: str, gmac: float) -> None:
    config = DiTConfig.preset(preset, input_size=32, in_channels=4, num_classes=1000, learn_sigma=True)
    assert dit_flops(config) / 2e9 == pytest.approx(gmac, rel=0.002)


def test_the_encoder_of_stable_diffusions_vae() -> None:
    size = VAESizeConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32)
    assert VAE.create(size).encode_flops(256) / 2e9 == pytest.approx(136.4, rel=0.001)


@pytest.mark.parametrize(
    ("device", "bfloat16", "tf32", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", True, False, 989.4e12),
        ("NVIDIA H100 80GB HBM3", False, True, 494.7e12),
        ("NVIDIA H100 80GB HBM3", False, False, 66.9e12),
        ("NVIDIA H100 PCIe", True, True, 756e12),
        ("NVIDIA A100-SXM4-80GB", True, False, 312e12),
        ("NVIDIA L40S", True, False, 362e12),
        ("NVIDIA L4", True, False, 121e12),
        ("NVIDIA A10G", True, False, None),
        ("NVIDIA GeForce RTX 4090", True, False, None),
        ("", True, False, None),
    ],
)
def test_the_peak_of_a_device_is_that_of_its_name(
    device: str, bfloat16: bool, tf32: bool, peak: float | None
) -> None:
    assert peak_flops(device, bfloat16=bfloat16, tf32=tf32) == peak
