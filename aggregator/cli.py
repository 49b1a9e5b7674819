"""The command line: ``tributary-aggregator init | serve | invite | enroll | revoke | status | extend | …``.

fire calls a function first and complains about mistyped flags afterwards; it also reads ``1e5`` as a number and cuts
texts at ``#``. So all values are quoted before fire sees them, and a command only checks them and returns a plan that
fire cannot look into. The plan runs after fire is content.

Exit codes: 0 done; 1 it could not be done; 2 the command line is wrong; 3 a setting or file of yours is wrong;
4 the home cannot be used, or is in use; 5 a port is in use; 6 the disk is full or damaged.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from functools import wraps

import fire
from fire.core import FireExit

from aggregator.commands import COMMANDS, Plan, say
from aggregator.errors import AggregatorError, ConfigError, HomeError, PortInUse, StoreCorrupt, StoreFull
from aggregator.settings import UsageError

__all__ = ["main"]

_PROGRAM = "tributary-aggregator"
_SWITCHES = ("json", "overwrite", "strict_enrolment")
_EXIT_CODES: Sequence[tuple[type[AggregatorError], int]] = (
    (UsageError, 2),
    (ConfigError, 3),
    (HomeError, 4),
    (PortInUse, 5),
    (StoreFull, 6),
    (StoreCorrupt, 6),
    (AggregatorError, 1),
)
"""The first class that fits decides."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the program's name; None: this process's.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, *flags = arguments
    if name not in COMMANDS:
        print(f"unknown command {name!r}\n{_overview()}", file=sys.stderr)
        return 2
    as_json = any(flag in ("--json", "--json=true") for flag in flags)
    try:
        plan = _planned(name, flags)
        return 2 if plan is None else _done(plan)
    except FireExit as stop:
        return int(stop.code)
    except AggregatorError as error:
        return _failed(name, error, as_json)


def _planned(name: str, flags: Sequence[str]) -> Plan | None:
    """What a command made of its flags, if fire found nothing wrong with them."""
    if {"-h", "--help"} & set(flags):
        fire.Fire(COMMANDS[name], command=["--help"], name=f"{_PROGRAM} {name}")
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            found = fire.Fire(
                _texts_only(COMMANDS[name]), command=[_as_text(flag) for flag in flags], serialize=lambda _: None
            )
    except FireExit as stop:
        raise UsageError(f"{_complaint(said.getvalue())}; see `{_PROGRAM} {name} --help`") from stop
    return found if isinstance(found, Plan) else None


def _texts_only(command: Callable[..., Plan]) -> Callable[..., Plan]:
    """The command, behind a check for what fire makes of a flag without a value: ``True``."""

    @wraps(command)
    def checked(*texts: str, **flags: str) -> Plan:
        bare = [f"--{name}" for name, value in flags.items() if not isinstance(value, str)]
        bare += ["a flag" for text in texts if not isinstance(text, str)]
        if bare:
            raise UsageError(f"{bare[0]} needs a value")
        return command(*texts, **flags)

    return checked


def _complaint(said: str) -> str:
    """The one line of fire's that says what is wrong."""
    return next((line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")), "misused")


def _as_text(argument: str) -> str:
    """Quotes a value, so that fire takes it for the text that was typed."""
    if argument.removeprefix("--") in _SWITCHES:
        return f"{argument}='true'"  # or fire would take what follows for its value
    if not argument.startswith("-"):
        return repr(argument)
    flag, equals, value = argument.partition("=")
    return f"{flag}={value!r}" if equals else argument


def _done(plan: Plan) -> int:
    logging.basicConfig(
        level=plan.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    say(plan.run(), plan.json)
    return 0


def _failed(name: str, error: AggregatorError, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}), file=sys.stderr)
    else:
        print(f"{_PROGRAM} {name}: {error}", file=sys.stderr)
    return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))


def _overview() -> str:
    lines = [f"  {name:8} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(
        [f"usage: {_PROGRAM} COMMAND … [--json]", *lines, f"flags of a command: {_PROGRAM} COMMAND --help"]
    )


if __name__ == "__main__":
    sys.exit(main())
