"""Finds the tuning method that a manifest, or a person, names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edge_client.errors import ConfigError
from edge_client.methods.adapter import Adapter
from edge_client.methods.bitfit import BitFit
from edge_client.methods.full import Full
from edge_client.methods.head import Head
from edge_client.methods.interface import Method
from edge_client.methods.lora import Lora
from edge_client.methods.prefix import Prefix
from edge_client.methods.prompt import Prompt
from edge_client.methods.vpt import VPT

if TYPE_CHECKING:
    from protocol.manifest import Manifest
    from protocol.typed import Option

__all__ = ["METHODS", "method_of", "read_method"]

METHODS: Mapping[str, type[Method]] = MappingProxyType(
    {method.name: method for method in (Adapter, BitFit, Full, Head, Lora, Prefix, Prompt, VPT)}
)
"""By name."""


def read_method(name: str, options: Mapping[str, Option]) -> Method:
    """The method of this name with these settings.

    Raises:
        ConfigError: There is no such method or setting, or a setting has a value that it cannot have.
    """
    if name not in METHODS:
        raise ConfigError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
    kind: Any = METHODS[name]
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        has = f"has {', '.join(known)}" if known else "has no settings"
        raise ConfigError(f"method {name!r}: there is no setting {unknown[0]!r}; it {has}")
    method: Method = kind(**options)
    return method


def method_of(manifest: Manifest) -> Method:
    """The manifest's method.

    Raises:
        ConfigError: This version does not know it, or not with these settings.
    """
    try:
        return read_method(manifest.method, manifest.method_options)
    except ConfigError as error:
        raise ConfigError(f"the run tunes by {manifest.method!r} ({error}): upgrade tributary-fl") from error
