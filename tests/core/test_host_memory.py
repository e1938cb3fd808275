"""Freed memory is used again, as the kernel counts it: without a single page that had to be mapped anew."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
import torch
from ray_dit.core.host_memory import keep_freed_memory

def faults(sizes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        tensors = [torch.ones(size << 18) for size in sizes]  # MiB
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def tell(*sizes):
    for _ in range(3):
        faults(sizes)
    print(faults(sizes))

if sys.argv[1] == "keep":
    keep_freed_memory()
thread = threading.Thread(target=tell, args=(3, 20, 25, 30, 40, 50))
thread.start()
thread.join()
tell(3, 20, 100)
"""


def faults(how: str) -> list[int]:
    """In a thread, and in the first one, of a new process."""
    told = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return [int(line) for line in told.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told")
def test_freed_memory_is_used_again_in_every_thread() -> None:
    assert max(faults("keep")) < 100
    assert min(faults("leave")) > 150, "5 times more than 100 MiB are mapped again, in whatever pages"
