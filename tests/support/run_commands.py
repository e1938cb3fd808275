"""Runs `ray-dit` commands on one private Ray: ``python -P run_commands.py CHECKOUT COMMANDS.json``.

It knows nothing of the code but its command line, so that it runs any commit's. PYTHONPATH must name the
checkout; that this process and Ray's workers really import ``ray_dit`` from there is checked before the first
command.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Exits with the status of the first command that fails."""
    checkout, commands = Path(sys.argv[1]).resolve(), json.loads(Path(sys.argv[2]).read_text())
    check("driver", imported_from(), checkout)
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    check("worker", ray.get(ray.remote(imported_from).remote()), checkout)
    from ray_dit.cli import main as ray_dit

    for command in commands:
        since = time.monotonic()
        ray_dit(command)
        print(f"{command[0]}: {time.monotonic() - since:.1f} s", flush=True)


def check(process: str, path: str, checkout: Path) -> None:
    """SystemExit if the package is imported from elsewhere: a commit would be compared with itself."""
    print(f"{process} imports {path}", flush=True)
    if not Path(path).resolve().is_relative_to(checkout):
        sys.exit(f"the {process} imports ray_dit from {path}, not from {checkout}: check PYTHONPATH")


def imported_from() -> str:
    """The file that `import ray_dit` finds in this process."""
    import ray_dit

    return str(ray_dit.__file__)


if __name__ == "__main__":
    main()
