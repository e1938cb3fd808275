"""`ray-dit COMMAND`: finds the command, makes its settings, runs it, reports errors in a sentence."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from ray_dit.cli import options
from ray_dit.cli.commands import COMMANDS
from ray_dit.cli.help import command_help, overview
from ray_dit.cli.near import near
from ray_dit.cli.plan import help_for, shown, take_plan
from ray_dit.config import Config
from ray_dit.errors import UserError
from ray_dit.runtime.session import Terminated, stopped_by_sigterm

BEGUN = time.monotonic()
"""When the command began: what it loads is part of what it takes."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `ray-dit` command.

    Exits with 0, 1 (a user's error, said in a sentence), 130 (Ctrl-C) or 143 (SIGTERM).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
        os.environ["RAY_DIT_DEBUG"] = "1"
    try:
        with stopped_by_sigterm():
            _dispatch(arguments)
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error), error, debug)
    except KeyboardInterrupt as stop:
        print("\nstopped; run the same command again, it goes on where it stopped", file=sys.stderr)
        sys.exit(143 if isinstance(stop, Terminated) else 130)
    except BrokenPipeError:  # `ray-dit info X | head`: who reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        _fail(f"{error.strerror or error}: {error.filename or 'no file name known'}", error, debug)


def parse(name: str, config: type[Config], arguments: Sequence[str]) -> Any:
    """The settings of a command from ``--config FILE`` and options; UserError for what is wrong with them."""
    return options.parse(name, config, arguments, COMMANDS)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview({name: command.summary for name, command in COMMANDS.items()}))
        return
    if arguments[0] == "--version":
        from ray_dit import __version__

        print(f"ray-dit {__version__}")
        return
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}{near(name, COMMANDS)}; `ray-dit --help` lists them")
    command = COMMANDS[name]
    if {"-h", "--help"} & set(rest):
        more = help_for(command.config) if command.plan else {}
        print(command_help(name, command.config, command.positional, more=more))
        return
    if command.positional and rest and not rest[0].startswith("-"):
        rest = [f"--{command.positional}", *rest]
    planned = take_plan(rest, command.config) if command.plan else None
    config = parse(name, command.config, rest)
    if command.plan is None or planned is None:
        command.run(config)
    else:
        print(shown(command.plan(config, begun=BEGUN), planned))


def _fail(message: str, error: BaseException, debug: bool) -> None:
    if debug:
        raise error
    print(f"ray-dit: error: {message}", file=sys.stderr)
    sys.exit(1)
