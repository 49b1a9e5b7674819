"""Other libraries' hints stay off the terminal."""

from __future__ import annotations

import subprocess
import sys


def test_a_command_line_that_loads_bitsandbytes_prints_nothing_of_its_own():
    code = "from edge_client.model.quiet import silence_kernel_hint as f; f(); import bitsandbytes.backends.cpu.ops"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
