"""The published DiT-XL/2 at 256x256.

`python -m jobs.imagenet_xl2`: 50,000 ImageNet images and their FID beside the paper's.

    python -m jobs.imagenet_xl2 --weights DiT-XL-2-256x256.pt --folder s3://bucket/xl2 --actors 8

``--weights`` is the file published with facebookresearch/DiT (CC-BY-NC-4.0, 2.7 GB): a path or a URL; the VAE
(stabilityai/sd-vae-ft-ema) is fetched from the hub, or give its folder by --vae.

Hardware: GPUs, one per actor. 250 guided steps are 119 TFLOP per image: 50,000 of them about 4 H100-hours at
400 TFLOP/s in bf16, which is --precision bfloat16 (a bound by counting, not measured); float32 takes several
times that. Expected: FID 2.27 ± 0.1 with 50,000 images of random labels, scale 1.5, 250 DDPM steps (Peebles &
Xie 2022, table 2). These images are balanced, 50 per class, which is worth about 0.1: expect 2.17 ± 0.1.
jobs.fid measures it (`pip install -c constraints.txt -e '.[fid]'`; Inception weights and ImageNet's
statistics are fetched, or given by --inception and --reference). Killed anywhere, run it again.
"""

import argparse
import sys

from pydantic import ValidationError

from jobs import fid
from ray_dit.config import GenerateConfig, ImportConfig, SamplerConfig
from ray_dit.errors import UserError, first_message

NUM_IMAGES = 50_000
PUBLISHED_FID = 2.27
TOLERANCE = 0.1
"""Spread of FID over seeds at 50,000 samples and over Inception ports, generously."""
BALANCED_GAIN = 0.1


def main(argv: list[str] | None = None) -> None:
    """Imports the weights, makes the images, measures their FID and prints it beside the published one."""
    options = _options(argv)
    try:
        meter = fid.meter(options)  # first: what is missing for the last step is reported before the long one
        model = f"{options.folder.rstrip('/')}/model"
        config = generation(options, model)
        import_weights(options, model)
        from ray_dit.stages.generate import generate

        manifest = generate(config)
        print(
            f"{manifest.facts.rows} pictures, balanced over {len(manifest.facts.labels)} classes: "
            f"{config.output}"
        )
        print(expectation(options.num_images), flush=True)
        found = meter(config.output)
    except UserError as error:
        if options.debug:
            raise
        sys.exit(f"imagenet_xl2: error: {error}")
    print(verdict(found, options.num_images))


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.imagenet_xl2", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--weights", required=True, help="DiT-XL-2-256x256.pt: a path or URL")
    parser.add_argument(
        "--folder", default="imagenet-xl2", help="where everything goes: a path or any fsspec URI"
    )
    parser.add_argument("--vae", default=None, help="folder or hub id of sd-vae-ft-ema")
    parser.add_argument("--num-images", type=int, default=NUM_IMAGES)
    parser.add_argument("--actors", default="1", help="GPUs: a number, or a range such as 2..64")
    parser.add_argument(
        "--cpu", action="store_true", help="use no GPU: only to try the command with few images"
    )
    for name in ("--precision", "--vae-precision"):
        parser.add_argument(name, choices=("float32", "bfloat16"), default="float32")
    fid.add_options(parser)
    parser.add_argument("--address", default="local", help="Ray to run on; by default a private one")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


def import_weights(options: argparse.Namespace, model: str) -> None:
    """The model folder made of the published file."""
    from ray_dit.checkpoints.importing import import_checkpoint

    import_checkpoint(ImportConfig(source=options.weights, output=model, vae=options.vae, labels="imagenet"))


def generation(options: argparse.Namespace, model: str) -> GenerateConfig:
    """The settings of the paper's best figure, but with balanced labels.

    Guidance on 3 channels is the model's own: its import knows the published file by its name. UserError for
    an option that is out of its range.
    """
    try:
        return GenerateConfig(
            model=model,
            output=f"{options.folder.rstrip('/')}/dataset",
            num_images=options.num_images,
            sampler=SamplerConfig(
                name="ddpm", num_inference_steps=250, guidance_scale=1.5, variance="learned"
            ),
            actors=options.actors,
            precision=options.precision,
            vae_precision=options.vae_precision,
            use_gpu=not options.cpu,
            address=options.address,
        )
    except ValidationError as error:
        raise UserError(f"--{first_message(error).replace('_', '-', 1)}") from error


def expectation(num_images: int) -> str:
    """The published figure and what to expect of these images."""
    text = (
        f"published FID, random labels: {PUBLISHED_FID} (50,000 images, scale 1.5, 250 DDPM steps); "
        f"balanced labels, as here: expect {PUBLISHED_FID - BALANCED_GAIN:.2f} ± {TOLERANCE}"
    )
    return text if num_images == NUM_IMAGES else f"{text}; not with {num_images} images, which make it higher"


def verdict(found: float, num_images: int) -> str:
    """The measured FID, and whether it is what was to be expected."""
    text = f"measured FID, balanced labels, {num_images} images: {found:.2f}"
    if num_images != NUM_IMAGES:
        return f"{text} (the published figure is for 50,000)"
    low, high = (PUBLISHED_FID - BALANCED_GAIN + sign * TOLERANCE for sign in (-1, 1))
    return f"{text}, {'within' if low <= found <= high else 'outside'} {low:.2f} to {high:.2f}"


if __name__ == "__main__":
    main()
