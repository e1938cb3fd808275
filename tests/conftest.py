"""For all tests: a process per file that starts Ray, checked shapes and types in the core, one thread.

The import hook, which makes jaxtyping and beartype check the core's signatures, rewrites modules as they are
imported, so it must come before the first import of ray_dit.core. Processes that Ray starts don't have it:
there the annotations cost nothing.
"""

import os

from jaxtyping import install_import_hook

if "PYTEST_XDIST_WORKER" in os.environ:  # this process is measured already; those it starts shall not be
    os.environ.pop("COVERAGE_PROCESS_START", None)

install_import_hook("ray_dit.core", "beartype.beartype")

import torch  # noqa: E402

pytest_plugins = ["tests.support.isolate"]

torch.set_num_threads(1)
