"""Says so at import when a foreign package named ``protocol`` stands where ours should.

The four packages are installed side by side under plain names, so a folder or another distribution may shadow one.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

__all__ = ["check_protocol"]


def check_protocol() -> None:
    """Compares where ``protocol`` would be imported from with where this package lies; imports nothing.

    Raises:
        ImportError: It is missing, or another package of that name comes first on the import path.
    """
    expected = Path(__file__).resolve().parents[1] / "protocol" / "__init__.py"
    found = find_spec("protocol")
    where = found.origin if found else None
    if where is None or Path(where).resolve() != expected:
        raise ImportError(
            f"expected tributary-fl's package 'protocol' at {expected}, but Python finds {where or found}; "
            "uninstall or rename the other one, or take its folder off PYTHONPATH",
            name="protocol",
        )


check_protocol()
