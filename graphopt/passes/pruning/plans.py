"""Plans of prune-channels: what each family keeps, by number or by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import OptionError, nearest
from graphopt.ir.fingerprint import fingerprint
from graphopt.planfile import PlanFile, read_plan
from graphopt.planfile import write_plan as write_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from graphopt.ir import Model

PRUNE_CHANNELS = "prune-channels"
_KEYS = frozenset({"family", "keep", "keep_units", "kind", "units", "exact"})
_COMMENT = """Lower `keep` to the number of units that a family is to keep (the most important ones stay), or
name the units with keep_units = [0, 2, ...]. Families that are not listed keep all. Then:
graphopt run MODEL -o OUT --pipeline "prune-channels{plan=THIS FILE}\""""


def write_plan(path: Path, model: Model, families: Sequence[Mapping[str, Any]]) -> None:
    """Write a plan that keeps everything, one item a family, for a person to edit.

    Raises:
        PathError: The folder cannot be written to.
        WriteError: The device failed or is full.
    """
    items = tuple(
        {
            "family": family["name"],
            "kind": family["kind"],
            "units": family["units"],
            "exact": family["exact"],
            "keep": family["units"],
        }
        for family in families
    )
    write_file(path, PlanFile(PRUNE_CHANNELS, items, fingerprint(model), _COMMENT))


def read_decisions(path: Path, sizes: Mapping[str, int]) -> tuple[dict[str, int | npt.NDArray[np.intp]], str]:
    """Return what each listed family keeps, a number of units or the units, and the plan's fingerprint.

    Args:
        path: A plan.toml.
        sizes: Units of each family of the model.

    Raises:
        PathError: There is no such file.
        OptionError: The plan is malformed, names a family that the model has not, or keeps what is not there.
    """
    plan = read_plan(path, PRUNE_CHANNELS)
    found: dict[str, int | npt.NDArray[np.intp]] = {}
    for number, item in enumerate(plan.items, 1):
        where = f"{path}, item {number}"
        name = item.get("family")
        if not isinstance(name, str):
            raise OptionError('expected family = "NAME"', where=where)
        if name not in sizes:
            raise OptionError(
                f"the model has no family {name!r}", where=where, hint=nearest(name, sizes, what="families")
            )
        if name in found:
            raise OptionError(f"the family {name!r} is listed twice", where=where)
        if unknown := sorted(item.keys() - _KEYS):
            raise OptionError(f"there is no key {unknown[0]!r} in an item", where=where)
        if "keep" not in item and "keep_units" not in item:
            raise OptionError("expected keep = NUMBER or keep_units = [UNIT, ...]", where=where)
        found[name] = _decision(item, sizes[name], where)
    return found, plan.fingerprint


def _decision(item: Mapping[str, Any], size: int, where: str) -> int | npt.NDArray[np.intp]:
    if "keep_units" in item:
        if "keep" in item:
            raise OptionError(
                "it has both keep and keep_units",
                where=where,
                hint="keep_units says which units stay; without it keep says how many.",
            )
        units = item["keep_units"]
        if (
            not isinstance(units, list)
            or not units
            or not all(isinstance(unit, int) and not isinstance(unit, bool) for unit in units)
            or len(set(units)) < len(units)
            or not all(0 <= unit < size for unit in units)
        ):
            raise OptionError(f"expected keep_units to list units from 0 to {size - 1} once", where=where)
        return np.array(sorted(units), np.intp)
    keep = item["keep"]
    if not isinstance(keep, int) or isinstance(keep, bool) or not 1 <= keep <= size:
        raise OptionError(f"expected keep to be a number from 1 to {size}, got {keep!r}", where=where)
    return keep
