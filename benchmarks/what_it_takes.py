"""The table of docs/training.md: what training the published models takes, by arithmetic.

``python -m benchmarks.what_it_takes`` prints it. Operations are counted on the model's shapes, three times
those of the forward pass; hours follow from them at the assumed utilisation of an H100. Memory is that of one
worker with bfloat16 products (`ray_dit/runtime/training/memory.py`). A test holds the page to these numbers.
"""

from collections.abc import Iterator

from ray_dit.config import PRESET_SIZES, DiTConfig, TrainConfig
from ray_dit.config.recipes import RECIPES
from ray_dit.core.flops import peak_flops
from ray_dit.pipeline import dit_flops
from ray_dit.runtime.training.memory import dit_memory

MFU = 0.35
"""The share of an H100's dense bfloat16 peak that a training is taken to reach."""
STEPS = (400_000, 7_000_000)
BATCH_SIZE = RECIPES["dit-paper"]["batch_size"]
SAMPLES = (32, 256)
"""Samples that a worker has at once."""
HEAD = (
    "| Model | Image | Parameters | TFLOP per image | images/s | H100-hours, 400K steps | 7M steps "
    "| Memory, 32 at once | 256 at once | 256, recomputing |",
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
)


def rows() -> Iterator[str]:
    """A row per model and image size."""
    peak = peak_flops("NVIDIA H100 80GB HBM3", bfloat16=True)
    assert peak is not None
    for side in (32, 64):
        for size in PRESET_SIZES:
            shape = DiTConfig.preset(f"DiT-{size}/2", input_size=side)
            flops = 3.0 * dit_flops(shape)
            rate = MFU * peak / flops
            hours = [f"{steps * BATCH_SIZE / rate / 3600:,.0f}" for steps in STEPS]
            memory = [_gigabytes(shape, samples) for samples in SAMPLES]
            memory.append(_gigabytes(shape, SAMPLES[-1], recompute=True))
            parameters = memory_of(shape)["weights"] // 4
            cells = [f"DiT-{size}/2", str(8 * side), f"{parameters / 1e6:.1f} M", f"{flops / 1e12:.3g}"]
            yield "| " + " | ".join([*cells, f"{rate:,.0f}", *hours, *memory]) + " |"


def memory_of(shape: DiTConfig, samples: int = 1, *, recompute: bool = False) -> dict[str, int]:
    """Bytes of the parts of a worker with so many samples at once, in bfloat16."""
    config = TrainConfig(
        latents="l",
        output="o",
        batch_size=samples,
        precision="bfloat16",
        activation_checkpointing=recompute,
    )
    return dit_memory(config, shape)


def _gigabytes(shape: DiTConfig, samples: int, *, recompute: bool = False) -> str:
    return f"{sum(memory_of(shape, samples, recompute=recompute).values()) / 1e9:,.0f} GB"


def table() -> str:
    """The table as Markdown."""
    return "\n".join([*HEAD, *rows()])


if __name__ == "__main__":
    print(table())
