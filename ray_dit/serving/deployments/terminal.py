"""What replicas write to standard error, as the terminal of `ray-dit serve` shows it.

Ray puts the name of the process in front of every line, and leaves out lines that are like others'. A line of
JSON is for a program, which wants each of them, and nothing else on it.
"""

import functools
import json
import sys
from collections.abc import Callable
from typing import Any

Handler = Callable[[dict[str, Any]], None]


def show_json_bare() -> None:
    """From now on, until this process leaves its Ray, lines of JSON are shown as they were written."""
    # Of Ray's own: it has no setting for either (ray 2.60, `_private/worker.py`).
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    for name, handler in list(dispatcher.handlers):
        if name == "ray_print_logs":
            dispatcher.remove_handler(name)
            dispatcher.add_handler(name, functools.partial(show, handler=handler))


def show(data: dict[str, Any], handler: Handler) -> None:
    """Lines of JSON go to standard error as they are, all others to Ray's handler of such messages."""
    lines: list[str] = data.get("lines", [])
    bare = [line for line in lines if is_json(line)]
    for line in bare:
        print(line, file=sys.stderr, flush=True)
    if len(bare) < len(lines):
        handler({**data, "lines": [line for line in lines if not is_json(line)]})


def is_json(line: str) -> bool:
    """Whether the line is a JSON object."""
    if not line.startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
