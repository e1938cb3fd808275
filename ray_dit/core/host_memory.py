"""How the C library treats the memory that tensors on the host have given back.

Knows nothing of devices: what CUDA allocates is torch's own matter.
"""

import ctypes

# From malloc.h, as glibc numbers them.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
MOST = 2**31 - 1
MORE_THAN_A_HEAP = 72 << 20
"""A thread's memory comes in heaps of 64 MiB, of which an empty one stays where it is less than this."""


def keep_freed_memory() -> None:
    """Has this process keep memory that was freed, for its next tensors; does nothing without glibc.

    glibc hands large pieces back to the kernel at once, and where they are wanted again, in the next step,
    the kernel clears and maps them page by page: 70,000 to 200,000 pages in a pass of DiT-S/2, 400,000 for
    an image that is decoded, which is a tenth to a fifth of their time on a virtual machine. Once told, the
    process has as much memory as it ever had in use. Only pieces of more than 64 MiB that a thread other than
    the first one wants still come from the kernel each time.

    Sources: mallopt(3); *The GNU C Library*, section *Malloc Tunable Parameters*.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in (
            (M_TRIM_THRESHOLD, MOST),
            (M_TOP_PAD, MORE_THAN_A_HEAP),
            (M_MMAP_MAX, 0),
        ):
            mallopt(parameter, value)
