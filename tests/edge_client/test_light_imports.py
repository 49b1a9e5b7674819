"""Which parts of the SDK must start without torch, looked at from a fresh process."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "edge_client",
        "edge_client.exported",
        "edge_client.trainer",
        "edge_client.trainers.numpy_trainer",
        "edge_client.model.checkpoint",
        "edge_client.model.manifest_writer",
        "edge_client.data.sources",
        "edge_client.training.metrics",
    ],
)
def test_it_imports_no_tensor_library(module):
    heavy = {"torch", "transformers", "peft", "bitsandbytes", "datasets"}
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "\n", "")
