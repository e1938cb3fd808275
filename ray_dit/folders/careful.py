"""Images decoded in a process of their own, for those by whose fault, perhaps, a process has ended.

What comes out of an image is what ``decode_image`` makes of it, or that it crashes; where the child is ended
from outside, or storage is out of order, that is an error. Knows no shards.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ray_dit.core.media import DecodedImage, decode_image
from ray_dit.core.to_rgb import Decoding, Seen, UnreadableImage
from ray_dit.folders.decode_child import MEMORY
from ray_dit.folders.reading import Decode

CHILD = (sys.executable, "-m", "ray_dit.folders.decode_child")
TIMES = 2
"""How often an image must end the process that decodes it before it is taken for the cause."""
FROM_OUTSIDE = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGQUIT})
"""Ways in which a process ends that no image brings about: it is told to, or the machine lacks memory."""
RAISED = 1
"""Exit status of Python where an exception ended it."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Threads take address space, and machines have other numbers of them."""
CRASH = f"decoding it ended the process that tried it, or took more than {MEMORY >> 30} GiB of memory"


class ChildDecoder:
    """Decodes one image after the other as ``decode_image`` does, in a child process.

    UnreadableImage with the code ``crash`` where an image ends it. Nothing is timed: an image that takes for
    ever is the business of whoever waits for its shard.
    """

    def __init__(self, command: Sequence[str] = CHILD) -> None:
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __call__(self, data: bytes, size: int, decoding: Decoding) -> DecodedImage:
        """As ``decode_image``; RuntimeError where the child is ended from outside."""
        with self._lock:
            for _ in range(TIMES):
                found = self._ask(data, size, decoding)
                if found is not None:
                    return found
        raise UnreadableImage(CRASH, "crash")

    def close(self) -> None:
        """Ends the child."""
        with self._lock:
            if self._child is not None:
                self._child.kill()
                self._reap(self._child)

    def _ask(self, data: bytes, size: int, decoding: Decoding) -> DecodedImage | None:
        """The image, or None where the child has died of it."""
        child = self._child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        asked = {"bytes": len(data), "size": size, "decoding": asdict(decoding)}
        try:
            child.stdin.write(json.dumps(asked).encode() + b"\n" + data)
            child.stdin.flush()
            line = child.stdout.readline()
        except OSError:  # it has died while it was written to
            line = b""
        answer: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
        if "unreadable" in answer:
            seen = Seen(**answer["seen"]) if answer["seen"] else None
            raise UnreadableImage(answer["unreadable"], answer["code"], seen)
        pixels = child.stdout.read(3 * size * size) if answer else b""
        if not answer or len(pixels) < 3 * size * size:
            self._died(child)
            return None
        image = np.frombuffer(pixels, np.uint8).reshape(size, size, 3)
        return DecodedImage(image, tuple(answer["conversions"]))

    def _start(self) -> "subprocess.Popen[bytes]":
        pipe = subprocess.PIPE
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # a cluster's job has its code there
        child = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, env=os.environ | ONE_THREAD | paths)
        assert child.stdout is not None
        if not child.stdout.readline():
            raise RuntimeError(
                f"no process to decode images could be started (exit status {self._reap(child)})"
            )
        return child

    def _died(self, child: "subprocess.Popen[bytes]") -> None:
        """RuntimeError unless it was an image that ended it."""
        status = self._reap(child)
        if status == RAISED:
            raise RuntimeError("the process that decodes images has raised an error, which is printed above")
        if status in FROM_OUTSIDE:
            raise RuntimeError(
                f"the process that decoded an image was ended by {signal.Signals(-status).name}: the machine "
                "lacks memory, or somebody has killed it"
            )

    def _reap(self, child: "subprocess.Popen[bytes]") -> int:
        for pipe in (child.stdin, child.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:  # what was not written yet
                pass
        self._child = None
        return child.wait()


class SureDecoder:
    """Decodes in this process, and in a child what finds no memory here.

    What is set aside must not depend on how much memory a machine has.
    """

    def __init__(self, decode: Decode = decode_image, child: ChildDecoder | None = None) -> None:
        self._decode, self._child = decode, child or ChildDecoder()

    def __call__(self, data: bytes, size: int, decoding: Decoding) -> DecodedImage:
        """As ``ChildDecoder``."""
        try:
            return self._decode(data, size, decoding)
        except UnreadableImage as error:
            if isinstance(error.__cause__, MemoryError):
                return self._child(data, size, decoding)
            raise
