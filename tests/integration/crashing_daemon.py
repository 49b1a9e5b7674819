"""Runs the aggregator's command line and kills it before its n-th step of a name: ``NAME N ARGUMENTS…``."""

import sys

from aggregator.cli import main
from tests.aggregator.crash_points import CrashPoints

if __name__ == "__main__":  # not in the merge's process, which imports this file
    name, number, *arguments = sys.argv[1:]
    with CrashPoints(at=int(number), name=name).installed():
        sys.exit(main(arguments))
