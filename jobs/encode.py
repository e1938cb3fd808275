"""Encodes a folder of images to latents on the cluster's actors.

    ray job submit --working-dir . -- python -m jobs.encode \\
        --images.uri s3://bucket/imagenet --images.size 256 \\
        --vae stabilityai/sd-vae-ft-ema --output s3://bucket/latents --actors 8 --use-gpu

Hardware: a GPU per actor for Stable Diffusion's VAE. Expected: a manifest with as many rows as readable
images; the unreadable ones are in quarantine.parquet. Submitting it again makes only what is missing.
"""

from jobs.entry import run

if __name__ == "__main__":
    run("encode")
