"""What a process sets before it computes anything that is stored, so that equal inputs give equal bits."""

import os

import torch


def set_cublas_workspace() -> None:
    """Gives cuBLAS a workspace of fixed size, without which its sums may differ from call to call.

    cuBLAS looks at it once, when CUDA starts in the process; a value that the user has set stays.
    Source: NVIDIA, *cuBLAS*, section *Results reproducibility*.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def make_deterministic(threads: int, *, tf32: bool = False) -> None:
    """Sets up this process.

    Only deterministic kernels run, none is chosen by timing, and torch has ``threads`` threads.

    The number of threads decides the last bits on a CPU, so it is part of what a job's bytes are a function
    of. ``tf32``: float32 products on a GPU may round their factors.
    """
    set_cublas_workspace()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # It would have every new tensor written over, lest one be read before it is written; none is.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cudnn.benchmark = False
    if tf32:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
