"""What a process computes with code it compiled: ``python -m benchmarks.gpu_check.fresh DEVICE SIZES``.

Prints a JSON object with a hash of each result.
"""

import json
import sys

import torch
from torch import Tensor

from benchmarks.gpu_check.bench import FULL, QUICK, Bench, Report, in_bfloat16, inputs
from benchmarks.gpu_check.runs import trained
from ray_dit.core.compiled import compile_static
from ray_dit.formats.deterministic import array_sha256
from ray_dit.runtime.process import set_up_torch
from ray_dit.vae import VAE


def hashes(bench: Bench) -> dict[str, str]:
    """A forward pass in float32 and in bfloat16, three steps of training in bfloat16, a decoded batch."""
    config = bench.sizes.parity
    model = bench.model(config)
    arguments = inputs(config, 8, bench.device)
    with torch.no_grad():
        found = {"forward": _hash(compile_static(model)(*arguments))}
        found["forward, bfloat16"] = _hash(in_bfloat16(compile_static(model), bench.device)(*arguments))
        vae = VAE.create(bench.sizes.vae)
        vae.module.to(bench.device)
        side = bench.sizes.image_size // vae.downsample
        latents = inputs(config.model_copy(update={"input_size": side}), 2, bench.device)[0]
        found["decoded"] = _hash(vae.compiled().decode(latents))
    weights = trained(bench, precision="bfloat16", compile=True)
    found["trained, bfloat16"] = _hash(torch.cat([weights[name].flatten() for name in sorted(weights)]))
    return found


def _hash(values: Tensor) -> str:
    return array_sha256(values.float().cpu().numpy())


if __name__ == "__main__":
    set_up_torch(1)
    sizes = QUICK if sys.argv[2] == "quick" else FULL
    print(json.dumps(hashes(Bench(torch.device(sys.argv[1]), sizes, Report()))))
