"""The command line: `ray-dit COMMAND [--config run.yaml] [options]`.

Importing it imports neither torch nor ray.
"""

from ray_dit.cli.commands import COMMANDS, Command
from ray_dit.cli.main import main, parse

__all__ = ["COMMANDS", "Command", "main", "parse"]
