"""Says so at import when a foreign package stands where one of ours should.

The four packages are installed side by side under plain names, so a folder or another distribution may shadow one.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

__all__ = ["check_siblings"]


def check_siblings() -> None:
    """Compares where the other three would be imported from with where this package lies; imports nothing.

    Raises:
        ImportError: One is missing, or another package of that name comes first on the import path.
    """
    for name in ("protocol", "edge_client", "aggregator"):
        expected = Path(__file__).resolve().parents[1] / name / "__init__.py"
        found = find_spec(name)
        where = found.origin if found else None
        if where is None or Path(where).resolve() != expected:
            raise ImportError(
                f"expected tributary-fl's package {name!r} at {expected}, but Python finds {where or found}; "
                "uninstall or rename the other one, or take its folder off PYTHONPATH",
                name=name,
            )


check_siblings()
