"""Settings of this folder: properties are tried on the same examples everywhere, however slow the machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("graphopt", deadline=None, derandomize=True)
settings.load_profile("graphopt")
