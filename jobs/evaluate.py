"""Judges a generated dataset beside held-out real images.

    ray job submit --working-dir . -- python -m jobs.evaluate \\
        --images.uri s3://bucket/images --images.size 32 \\
        --dataset s3://bucket/dataset --output s3://bucket/evaluation

Hardware: CPUs do for small images. Expected: metrics.json with class accuracy, Fréchet distance and the
accuracy of a classifier trained on the generated images, each beside the figure of real ones.
"""

from jobs.entry import run

if __name__ == "__main__":
    run("evaluate")
