"""How many examples: a few by default, minutes of them with RAY_DIT_FUZZ (`make faults`)."""

import os

from hypothesis import HealthCheck, Phase, settings

SHORT = 30
EXAMPLES = int(os.environ.get("RAY_DIT_FUZZ", SHORT))
"""Per reader. The short set is the same in every run."""

settings.register_profile(
    "readers",
    max_examples=EXAMPLES,
    derandomize=EXAMPLES <= SHORT,
    deadline=None,  # the sandbox has one
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
settings.load_profile("readers")
