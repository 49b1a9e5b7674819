"""Turns a command line into one benchmark run, and a mistyped flag into a message before anything has run.

fire calls a function first and looks at left-over arguments afterwards. So the function it is given only builds and
checks a plan, and what it returns offers fire nothing to go on with; the plan runs when fire is content.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import fire
from fire.core import FireExit

__all__ = ["BENCHMARKS", "BenchmarkError", "Planned", "UsageError", "run_command"]

BENCHMARKS: Mapping[str, str] = MappingProxyType(
    {
        "quickstart": "benchmarks.quickstart",
        "faults": "benchmarks.faults",
        "collapse": "benchmarks.collapse",
        "merge": "benchmarks.merge",
        "hlora": "benchmarks.hlora",
        "fedpetuning": "benchmarks.studies.fedpetuning",
        "fedpeft": "benchmarks.studies.fedpeft",
        "fedpeptao": "benchmarks.studies.fedpeptao",
        "attack": "benchmarks.attacks",
    }
)
"""Each benchmark's module. Its function ``plan`` returns a :class:`Planned`; its keyword-only parameters are the flags,
which arrive as text."""


class UsageError(Exception):
    """A flag's value is wrong; the message says what was expected."""


class BenchmarkError(Exception):
    """A benchmark could not run to its end; the message says why and what to do."""


class Planned:
    """A benchmark that is set up and checked, and that fire cannot look into."""

    def __init__(self, run: Callable[[], None]) -> None:
        self._run = run

    def __dir__(self) -> list[str]:
        return []  # fire takes left-over arguments for members


def run_command(arguments: Sequence[str]) -> int:
    """Runs what a command line asks for.

    Args:
        arguments: Without the program's name.

    Returns:
        0 done, 1 the benchmark failed, 2 a mistake on the command line.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, *flags = arguments
    if name not in BENCHMARKS:
        print(f"unknown benchmark {name!r}\n{_overview()}", file=sys.stderr)
        return 2
    return _plan_and_run(name, flags)


def _plan_and_run(name: str, flags: Sequence[str]) -> int:
    planned: object = None
    try:
        module = importlib.import_module(BENCHMARKS[name])
        texts = [_as_text(flag) for flag in flags]
        planned = fire.Fire(module.plan, command=texts, name=f"python -m benchmarks {name}", serialize=_print_nothing)
    except FireExit as stop:
        return int(stop.code)
    except UsageError as error:
        print(f"{error}\nsee `python -m benchmarks {name} --help`", file=sys.stderr)
        return 2
    if not isinstance(planned, Planned):  # `--help` shows help and returns what it had come to
        return 2
    try:
        planned._run()
    except BenchmarkError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return 0


def _as_text(argument: str) -> str:
    """Quotes a value, or fire would make a number, a tuple or a comment of what was typed."""
    if not argument.startswith("-"):
        return repr(argument)
    flag, equals, value = argument.partition("=")
    return f"{flag}={value!r}" if equals else argument


def _print_nothing(result: object) -> None:
    """Stands in for fire's printing of what a function returned."""


def _overview() -> str:
    names = "\n".join(f"  {name}" for name in BENCHMARKS)
    return (
        "usage: python -m benchmarks NAME [--preset quick|full|...] [--seed N] [--out FILE] [flags of NAME]\n"
        f"benchmarks:\n{names}\n"
        "flags of a benchmark: python -m benchmarks NAME --help"
    )
