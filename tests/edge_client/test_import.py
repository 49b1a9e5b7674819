"""What ``import edge_client`` costs."""

from __future__ import annotations

import subprocess
import sys

import edge_client


def test_importing_the_sdk_imports_no_tensor_library():
    code = (
        "import sys, edge_client; from edge_client.cli import main; "
        "print([n for n in ('torch', 'transformers', 'peft', 'bitsandbytes', 'datasets', 'tqdm') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    assert all(hasattr(edge_client, name) for name in edge_client.__all__)
    assert list(edge_client.__all__) == sorted(edge_client.__all__)
