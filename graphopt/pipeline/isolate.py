"""Run one pass in a child process, so that a native crash is an error and not the end of graphopt.

The child reads the model from a scratch folder, runs the pass, compares fingerprints and writes the result
as a message whose large tensors still point into the file that it was given. The parent puts its own
tensors back in their places: weights that the pass did not touch come back by identity.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.api import Report
from graphopt.pipeline.options import print_options, printed
from graphopt.runtime.measurements import Measurements, as_document, as_replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import onnx_ir as oir

    from graphopt.api import Context, PassOptions, Reference
    from graphopt.ir import Model
    from graphopt.pipeline.manager import Manager
    from graphopt.pipeline.plan import PlannedStep
    from graphopt.runtime.codec import StoredFeeds

_STATISTICS = "statistics.npz"
_REFERENCE = "reference.onnx"
_REFERENCE_STATISTICS = "reference.npz"
# Tensors from this size on travel in the data file and come back by identity; smaller ones have a
# fingerprint by content, so that their identity does not matter.
_EXTERNAL_BYTES = 1024
# Protobuf ends at 2 GiB; what a pass made anew travels in a file of its own above this.
_INLINE_LIMIT_BYTES = 2**30


@dataclass(frozen=True)
class Isolation:
    """How steps are isolated.

    Attributes:
        scratch: An existing folder for models on their way. It must outlive the transformed model: a step
            that makes more than 1 GiB of new weights leaves them there, and the model points to them.
        timeout_s: Seconds that one step may take; None sets no limit.
    """

    scratch: Path
    timeout_s: float | None = None


@dataclass(frozen=True)
class Job:
    """What the child is told; plain data, because it crosses a process boundary.

    Attributes:
        folder: Holds ``model.onnx``, the model that the pass is given; ``result.onnx`` comes beside it.
        name: Name of the pass.
        options: The printed options of the pass.
        index: Place of the step in the pipeline.
        target: Name of the target.
        dims: Sizes bound to symbolic dims.
        seed: The seed.
        local_plugins: The one-file plugin to load, or None.
        measurements: Latencies that are known, as in report.json.
        scope: The step as measurements name it.
    """

    folder: Path
    name: str
    options: Mapping[str, Any]
    index: int
    target: str
    dims: Mapping[str, int]
    seed: int
    local_plugins: Path | None
    measurements: list[dict[str, Any]]
    scope: str


def run_step_isolated(
    model: Model, planned: PlannedStep, manager: Manager, isolation: Isolation, context: Context
) -> Report:
    """Run *planned* on *model* in a child process; where it reports a change, *model* holds the result.

    Statistics that the pass announces are collected here and handed over; the feeds go with them.

    Raises:
        WorkerError: The child crashed or ran out of time.
        GraphoptError: What the pass raised.
    """
    from graphopt.ir.emit import ExternalData, save
    from graphopt.ir.lower import load
    from graphopt.runtime.child import FeedStream, run_in_child

    folder = Path(tempfile.mkdtemp(prefix=f"step{planned.index + 1}-", dir=isolation.scratch)).resolve()
    keep = False
    try:
        sent = folder / "model.onnx"
        save(model, sent, external=ExternalData("one-file", _EXTERNAL_BYTES))
        job = Job(
            folder=folder,
            name=planned.name,
            options=_portable_options(planned.options),
            index=planned.index,
            target=manager.target.name,
            dims=manager.dims,
            seed=manager.seed,
            local_plugins=manager.registry.local,
            measurements=[] if manager.measurements is None else as_document(manager.measurements.known()),
            scope="" if manager.measurements is None else manager.measurements.scope,
        )
        needs = planned.pass_.needs(model, planned.options, context)
        if needs:
            context.statistics(needs).save(folder / _STATISTICS)
        if planned.pass_.info.reads_reference and context.reference is not None:
            _send_reference(context.reference, folder)
        feeds = None if context.data is None else FeedStream(context.data)
        answer = run_in_child(
            "graphopt.pipeline.isolate:run_job",
            job,
            feeds,
            timeout_s=isolation.timeout_s,
            where=planned.title,
            on_progress=manager.progress,
        )
        if manager.measurements is not None:
            manager.measurements.records += as_replay(answer["measurements"]).values()
        report = Report(
            changed=answer["changed"],
            counts=answer["counts"],
            skipped=tuple((where, reason) for where, reason in answer["skipped"]),
            extra=answer["extra"],
            warnings=tuple(answer["warnings"]),
        )
        if report.changed:
            result = load(folder / "result.onnx")
            keep = _restore_tensors(result, load(sent), model, folder)
            model.store = result.store
        return report
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def run_job(job: Job, feeds: StoredFeeds | None = None) -> dict[str, Any]:
    """Do the work of the child: run one pass on ``model.onnx`` and write ``result.onnx`` where it changed.

    Raises:
        GraphoptError: What the pass raised, or that it reported falsely.
    """
    from graphopt.calibrate.calibration import Calibration
    from graphopt.calibrate.statistics import Statistics
    from graphopt.ir.emit import ExternalData, emit, save
    from graphopt.ir.fingerprint import fingerprint
    from graphopt.ir.lower import load
    from graphopt.pipeline.contract import check_honest
    from graphopt.pipeline.manager import Manager
    from graphopt.pipeline.plan import PlannedStep, make_plan
    from graphopt.pipeline.plugins import load_plugins
    from graphopt.pipeline.text import Step
    from graphopt.runtime import worker
    from graphopt.targets import load_target

    worker.stage("loading plugins")
    registry = load_plugins(job.local_plugins)
    (first,) = make_plan([Step(job.name, job.options)], registry).steps
    planned = PlannedStep(job.index, first.name, first.pass_, first.options)
    target = load_target(job.target, registry.targets)
    statistics = job.folder / _STATISTICS
    given = Statistics.load(statistics) if statistics.exists() else None
    measurements = Measurements(
        target.provider, feeds=feeds, dims=job.dims, seed=job.seed, replay=as_replay(job.measurements)
    )
    manager = Manager(
        registry,
        target=target,
        dims=job.dims,
        seed=job.seed,
        progress=worker.progress,
        calibration=Calibration(feeds, given=given, seed=job.seed),
        measurements=measurements,
    )
    worker.stage("loading the model")
    model = load(job.folder / "model.onnx")
    before = fingerprint(model)
    worker.stage(f"running {job.name}")
    context = manager.context()
    context.bind(model)
    context.reference = _received_reference(job.folder, context)
    report = manager.perform(planned, model, context)
    worker.stage(f"examining what {job.name} left behind")
    check_honest(planned, report, before, fingerprint(model))
    if report.changed:
        result = job.folder / "result.onnx"
        new_bytes = sum(tensor.nbytes for tensor, _ in _tensors(model) if not _is_external(tensor))
        if new_bytes <= _INLINE_LIMIT_BYTES:
            result.write_bytes(emit(model).SerializeToString(deterministic=True))
        else:
            save(model, result, external=ExternalData("one-file", _EXTERNAL_BYTES))
    return {
        "changed": report.changed,
        "counts": dict(report.counts),
        "skipped": [list(item) for item in report.skipped],
        "extra": dict(report.extra),
        "warnings": list(report.warnings),
        "measurements": as_document(measurements.records),
    }


def _send_reference(reference: Reference, folder: Path) -> None:
    from graphopt.ir.emit import ExternalData, save

    save(reference.model, folder / _REFERENCE, external=ExternalData("one-file", _EXTERNAL_BYTES))
    held = None if reference.calibration is None else reference.calibration.held
    if held is not None:
        held.save(folder / _REFERENCE_STATISTICS)


def _received_reference(folder: Path, context: Context) -> Reference | None:
    from graphopt.calibrate.statistics import Statistics
    from graphopt.ir.lower import load

    if not (folder / _REFERENCE).exists():
        return None
    held = folder / _REFERENCE_STATISTICS
    return context.as_reference(
        load(folder / _REFERENCE), statistics=Statistics.load(held) if held.exists() else None
    )


def _portable_options(options: PassOptions) -> dict[str, Any]:
    """Return the printed options with absolute paths: the child works in another folder."""
    return {name: printed(_absolute(getattr(options, name))) for name in print_options(options)}


def _absolute(value: object) -> object:
    if isinstance(value, Path):
        return value.absolute()
    return [_absolute(item) for item in value] if isinstance(value, list | tuple) else value


def _restore_tensors(result: Model, sent: Model, model: Model, folder: Path) -> bool:
    """Put the tensors of *model* in the place of those of *result* that point into the file that was sent.

    Returns:
        Whether *result* still points into *folder*.
    """
    ours: dict[object, oir.TensorProtocol] = {}
    for (theirs, _), (own, _) in zip(_tensors(sent), _tensors(model), strict=True):
        if _is_external(theirs):
            ours[_place(theirs)] = own
    left = False
    for tensor, put in list(_tensors(result)):
        if not _is_external(tensor):
            continue
        known = ours.get(_place(tensor))
        if known is not None:
            put(known)
        else:
            left = left or Path(_path(tensor)).is_relative_to(folder)
    return left


def _tensors(model: Model) -> Iterator[tuple[oir.TensorProtocol, Callable[[oir.TensorProtocol], None]]]:
    """Yield every tensor of initializers and attributes in a fixed order, each with what replaces it."""
    import onnx_ir as oir

    def replace_attribute(node: oir.Node, name: str, tensor: oir.TensorProtocol) -> None:
        old = node.attributes[name]
        node.attributes[name] = oir.Attr(name, oir.AttributeType.TENSOR, tensor, doc_string=old.doc_string)
        node.attributes[name].meta.update(old.meta)

    for graph in model.graphs():
        for name in sorted(graph.initializers):
            value = graph.initializers[name]
            if value.const_value is not None:
                yield value.const_value, partial(setattr, value, "const_value")
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == oir.AttributeType.TENSOR and not attribute.is_ref():
                    yield attribute.as_tensor(), partial(replace_attribute, node, name)


def _is_external(tensor: oir.TensorProtocol) -> bool:
    import onnx_ir as oir

    return isinstance(tensor, oir.ExternalTensor)


def _path(tensor: Any) -> str:  # noqa: ANN401 - an ExternalTensor, as _is_external said
    return str(tensor.path)


def _place(tensor: Any) -> object:  # noqa: ANN401 - as _path
    return (_path(tensor), tensor.offset, tensor.length, int(tensor.dtype), tuple(tensor.shape.numpy()))
