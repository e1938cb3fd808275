"""For all tests: those that start Ray get a process per file; shapes and types in the core's signatures are checked, and torch computes on one thread.

The hook rewrites modules as they are imported, so it must come before the first import of ray_dit.core. Processes that
Ray starts don't have it: there the annotations cost nothing.
"""

from jaxtyping import install_import_hook

install_import_hook("ray_dit.core", "beartype.beartype")

import torch  # noqa: E402

pytest_plugins = ["tests.support.isolate"]

torch.set_num_threads(1)
