"""What ``graphopt calibrate`` does: collect statistics of a model's own values, for a pipeline or for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.calibrate.needs import Needs
from graphopt.errors import DataError, GraphoptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from graphopt.calibrate.statistics import Statistics
    from graphopt.ir import Model
    from graphopt.pipeline.plugins import Registry
    from graphopt.pipeline.text import Step
    from graphopt.runtime.session import Feeds
    from graphopt.targets import Target


@dataclass(frozen=True)
class Wanted:
    """What to collect about a model, and what a pipeline wanted of values that the model has not.

    Attributes:
        needs: What to collect.
        absent: Values that only exist behind some step of the pipeline.
    """

    needs: Needs
    absent: tuple[str, ...] = ()


def everything(model: Model) -> Wanted:
    """Return the ranges of all float activations: what quantisation needs, whatever its options."""
    from graphopt.ir.shapes import infer_shapes
    from graphopt.ir.tensors import constant_of

    shapes = infer_shapes(model)
    functions = {
        id(graph)
        for function in model.functions.values()
        for graph in (function.graph, *function.graph.subgraphs())
    }
    names: dict[str, None] = {}
    for graph in model.graphs():
        if id(graph) in functions:
            continue
        values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
        for value in values:
            dtype = shapes.dtype(value)
            if value.name and dtype is not None and dtype.is_floating_point() and constant_of(value) is None:
                names[value.name] = None
    return Wanted(Needs(ranges=frozenset(names)))


def for_pipeline(
    model: Model,
    pipeline: str | Sequence[Step],
    registry: Registry,
    target: Target,
    *,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Wanted:
    """Return what the first steps of a pipeline want that need statistics, as far as *model* has the values.

    Steps in front of them run on a copy, as long as they promise that values keep their meaning: what they
    leave has names of *model* for values of *model*.

    Raises:
        GraphoptError: The plan is bad, or a step in front fails.
    """
    from graphopt.pipeline.manager import Manager
    from graphopt.pipeline.plan import make_plan
    from graphopt.pipeline.text import parse

    steps = parse(pipeline) if isinstance(pipeline, str) else pipeline
    plan = make_plan(steps, registry, model.opset)
    manager = Manager(registry, target=target, dims=dims, seed=seed)
    working = model.clone()
    context = manager.context()
    context.bind(working)
    needs = Needs()
    for index, step in enumerate(plan.steps):
        wanted = step.pass_.needs(working, step.options, context)
        needs |= wanted
        if step.pass_.info.lossy:
            # What later steps compare with is the model as it is here.
            for later in plan.steps[index + 1 :]:
                needs |= later.pass_.reference_needs(working, later.options, context)
        if "statistics" not in step.pass_.info.preserves:
            break
        if not wanted:
            manager.perform(step, working, context)
            context.invalidate()
    names = {
        value.name
        for graph in model.graphs()
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs))
    }
    absent = tuple(name for name in needs.values if name not in names)
    return Wanted(needs.of_values({name for name in needs.values if name in names}), absent)


def calibrate(
    model: Model,
    feeds: Iterable[Feeds],
    wanted: Wanted,
    out: Path,
    *,
    merge: Sequence[Path] = (),
    seed: int = 0,
    provider: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Collect statistics, add those of other shards, and write them to *out*, whole or not at all.

    Raises:
        DataError: Nothing is to be collected, or a file to merge is of another model.
        GraphoptError: The model cannot be run, or the file not be written.
    """
    from graphopt.calibrate.collection import collect
    from graphopt.calibrate.statistics import Statistics
    from graphopt.ir.fingerprint import content_hash

    if not wanted.needs:
        raise DataError(
            "the pipeline asks for no statistics of this model",
            where="calibrate",
            hint="Leave --pipeline or the passes of the recipe out to collect the ranges of all activations.",
        )
    digest = content_hash(model)
    earlier = [Statistics.load(path) for path in merge]
    for path, each in zip(merge, earlier, strict=True):
        if each.model != digest:
            raise DataError(
                "the statistics are of another model: their content hash differs", where=str(path)
            )
    found = collect(model, feeds, wanted.needs, seed=seed, provider=provider, progress=progress)
    found.model = digest
    found.data = str(getattr(feeds, "identity", ""))
    for path, each in zip(merge, earlier, strict=True):
        try:
            found = found.merge(each)
        except GraphoptError as error:
            error.where = error.where or str(path)
            raise
    found.save(out)
    return found
