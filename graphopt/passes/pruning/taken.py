"""What went, over all rounds of a run: by family for the report, and as a plan that repeats it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from graphopt.passes.pruning.anatomy import Anatomy

    Units = npt.NDArray[np.intp]


class Taken:
    """The cuts of a run.

    Attributes:
        removed: Units that went, by kind.
        families: What the report says of each family that was cut, by name.
    """

    def __init__(self) -> None:
        self.removed: Counter[str] = Counter()
        self.families: dict[str, dict[str, Any]] = {}
        self._free: dict[str, dict[str, Any]] | None = None
        self._kept: dict[str, Units] = {}
        self._named = True

    def begin(self, anatomy: Anatomy, chosen: Iterable[str]) -> None:
        """Take down which families may be cut; the first call counts, for plans are about the first model."""
        if self._free is None:
            families = (anatomy.family(name) for name in chosen)
            self._free = {
                each.name: {"family": each.name, "kind": each.kind, "units": each.size, "exact": each.exact}
                for each in families
            }

    def add(self, anatomy: Anatomy, kept: Mapping[str, Units]) -> None:
        """Take down one cut: the *kept* units of each family of the model as it was before it."""
        for name, units in kept.items():
            family = anatomy.family(name)
            self.removed[f"{family.kind}_removed"] += family.size - len(units)
            known = self.families.setdefault(
                name, {"name": name, "kind": family.kind, "units": family.size, "exact": family.exact}
            )
            known["kept"] = len(units)
            before = self._kept.get(name, np.arange(known["units"]))
            # A later round may know a family by the name that another one had before.
            self._named &= len(before) == family.size and name in (self._free or {})
            if self._named:
                self._kept[name] = before[units]

    def plan(self) -> list[dict[str, Any]]:
        """Return the items of a plan.toml that repeats the choice; none where names do not tell it."""
        if not self._kept or not self._named:
            return []
        free = self._free or {}
        return [
            item
            | ({"keep_units": self._kept[name].tolist()} if name in self._kept else {"keep": item["units"]})
            for name, item in free.items()
        ]
