"""What happens to the weights that stay, between the decision what goes and the cut.

The units that go are known, the model is still whole: this is where consumers can be refitted so that what
stays makes up for what goes. Changes are made to weights of the whole model, whose removed parts the cut then
drops; so the oracle, which masks and cuts the changed model, holds for every method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    from graphopt.api import Context
    from graphopt.ir import Model
    from graphopt.passes.pruning.anatomy import Anatomy


def compensate(
    model: Model,
    anatomy: Anatomy,
    kept: Mapping[str, npt.NDArray[np.intp]],
    context: Context,
) -> Mapping[str, object]:
    """Change the weights of *model*, in place, so that the kept units make up for the others.

    Args:
        model: The whole model, a copy of its own; weights are found by name.
        anatomy: Its families: ``anatomy.subject(name).contractions`` are the readers of each.
        kept: Units that stay, sorted, by family.
        context: Statistics and data.

    Returns:
        What to report.
    """
    del model, anatomy, kept, context
    return {}
