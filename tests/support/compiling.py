"""Code that compiles a network, in a process of its own whose compile cache is given."""

import os
import subprocess
import sys
from pathlib import Path


def printed_by(code: str, *arguments: str, cache: Path) -> str:
    """The last word that the code prints; fails where nothing was compiled into ``cache``."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)},
    )
    assert list(cache.rglob("*.so")), "nothing was compiled"
    return done.stdout.split()[-1]
