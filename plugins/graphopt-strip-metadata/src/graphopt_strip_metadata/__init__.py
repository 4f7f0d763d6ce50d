"""A graphopt plugin: the pass ``strip-metadata`` and the gate ``no-source-paths``.

This module is what the entry point names; it holds the hooks and nothing else, so that listing the plugin
imports no more than it must.
"""

from __future__ import annotations

from graphopt.hookspecs import hookimpl


@hookimpl
def graphopt_register_passes() -> dict[str, str]:
    """Return the pass of this plugin."""
    return {"strip-metadata": "graphopt_strip_metadata.strip:StripMetadata"}


@hookimpl
def graphopt_register_gates() -> dict[str, str]:
    """Return the gate of this plugin."""
    return {"no-source-paths": "graphopt_strip_metadata.gate:NoSourcePaths"}
