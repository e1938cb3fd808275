"""Makes a labelled dataset with a model on the cluster's actors.

    ray job submit --working-dir . -- python -m jobs.generate --model s3://bucket/model --num-images 50000 \\
        --output s3://bucket/dataset --actors 8 --use-gpu

Hardware: a GPU per actor. Expected: shards of 1,000 images that `datasets.load_dataset("parquet", ...)`
opens; the same images, whatever the number of actors. Submitting it again makes only what is missing.
"""

from jobs.entry import run

if __name__ == "__main__":
    run("generate")
