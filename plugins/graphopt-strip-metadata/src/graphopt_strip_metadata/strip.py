"""Remove what a model says about itself and does not need to run."""

from __future__ import annotations

import itertools
from collections import Counter
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import onnx_ir as oir
from pydantic import Field

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report
from graphopt.ir.meta import EXPORTER_TRACES, peek_props
from graphopt_strip_metadata.paths import machine_paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from graphopt.ir import Model


class StripMetadata(Pass):
    """Removes doc strings, metadata entries and exporter traces; keys that match a pattern stay."""

    info = PassInfo(
        name="strip-metadata",
        summary="Remove doc strings, metadata and the exporter's traces.",
        preserves=frozenset({"shapes", "cost"}),
    )

    class Options(PassOptions):
        """What goes and what stays."""

        keep: list[str] = Field(
            default_factory=list, description="patterns of metadata keys to keep (* and ?)"
        )
        doc_strings: bool = Field(default=True, description="whether doc strings are removed too")
        only_traces: bool = Field(
            default=False,
            description="remove only what tells of the exporter's source: traces, scopes, docs with paths",
        )

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Strip the model, its graphs, functions, nodes, values, attributes and tensors.

        Args:
            model: The model to strip, in place; tensors are replaced, never edited, for clones share them.
            options: What goes and what stays.
            context: Not used.

        Returns:
            Counts of ``doc_strings`` and ``metadata_entries``; every key that was kept, with its pattern.
        """
        del context
        stripper = _Stripper(options)
        stripper.text(model.store)
        for graph in model.graphs():
            stripper.graph(graph)
        return stripper.report()


class _Stripper:
    """One run over a model; remembers what was done."""

    def __init__(self, options: StripMetadata.Options) -> None:
        self.options = options
        self.counts: Counter[str] = Counter()
        self.kept: Counter[tuple[str, str]] = Counter()

    def graph(self, graph: oir.Graph) -> None:
        self.text(graph)
        initializers = graph.initializers.values()
        nodes = list(graph)
        outputs = (value for node in nodes for value in node.outputs)
        for value in {id(v): v for v in itertools.chain(graph.inputs, initializers, outputs)}.values():
            self.text(value)
        for value in initializers:
            if value.const_value is not None:
                value.const_value = self.tensor(value.const_value)
        for node in nodes:
            self.text(node)
            for attribute in list(node.attributes.values()):
                self.attribute(node, attribute)

    def attribute(self, node: oir.Node, attribute: oir.Attr) -> None:
        drop_doc = self.drops_doc(attribute.doc_string)
        content = attribute.value
        if attribute.type == oir.AttributeType.TENSOR and content is not None:
            content = self.tensor(content)
        elif attribute.type == oir.AttributeType.TENSORS and content is not None:
            content = [self.tensor(tensor) for tensor in content]
            content = attribute.value if all(map(_is, content, attribute.value)) else content
        if not drop_doc and content is attribute.value:
            return
        doc = None if drop_doc else attribute.doc_string
        self.counts["doc_strings"] += drop_doc
        if attribute.is_ref():
            reference = attribute.ref_attr_name or ""
            node.attributes[attribute.name] = oir.RefAttr(
                attribute.name, reference, attribute.type, doc_string=doc
            )
            return
        fresh = oir.Attr(attribute.name, attribute.type, content, doc_string=doc)
        fresh.meta.update(attribute.meta)
        node.attributes[attribute.name] = fresh

    def text(self, thing: oir.Model | oir.Graph | oir.Node | oir.Value) -> None:
        if self.drops_doc(thing.doc_string):
            thing.doc_string = None
            self.counts["doc_strings"] += 1
        for key in self.dropped(peek_props(thing)):
            del thing.metadata_props[key]
            self.counts["metadata_entries"] += 1

    def tensor(self, tensor: oir.TensorProtocol) -> oir.TensorProtocol:
        """Return *tensor*, or one that shares its data where something has to go."""
        props = peek_props(tensor)
        keys = self.dropped(props)
        drop_doc = self.drops_doc(tensor.doc_string)
        if not keys and not drop_doc:
            return tensor
        bare = _bare(tensor)
        if bare is None:
            self.kept[f"tensor {tensor.name!r}", "its kind of tensor cannot be rebuilt"] += 1
            return tensor
        bare.doc_string = None if drop_doc else tensor.doc_string
        bare.metadata_props.update({k: v for k, v in props.items() if k not in keys})
        self.counts["doc_strings"] += drop_doc
        self.counts["metadata_entries"] += len(keys)
        return bare

    def drops_doc(self, doc: str | None) -> bool:
        if not doc or not self.options.doc_strings:
            return False
        return not self.options.only_traces or bool(machine_paths(doc))

    def dropped(self, props: Mapping[str, str]) -> Sequence[str]:
        """Return the keys of *props* that go; note those that a pattern keeps."""
        gone = []
        for key, text in props.items():
            if self.options.only_traces and not _matches(key, EXPORTER_TRACES) and not machine_paths(text):
                continue
            pattern = next((p for p in self.options.keep if fnmatchcase(key, p)), None)
            if pattern is None:
                gone.append(key)
            else:
                self.kept[f"metadata {key!r}", f"kept by the pattern {pattern!r}"] += 1
        return gone

    def report(self) -> Report:
        counts = {key: count for key, count in self.counts.items() if count}
        return Report(changed=bool(counts), counts=counts, skipped=tuple(self.skips()))

    def skips(self) -> Iterator[tuple[str, str]]:
        for (where, reason), places in self.kept.items():
            yield where, reason if places == 1 else f"{reason}, in {places} places"


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _is(first: object, second: object) -> bool:
    return first is second


def _bare(tensor: oir.TensorProtocol) -> oir.TensorProtocol | None:
    """Return a tensor with the same data and name and nothing else; None where that is impossible."""
    if isinstance(tensor, oir.ExternalTensor):
        return oir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name or "",
            base_dir=tensor.base_dir,
        )
    if isinstance(tensor, oir.StringTensor):
        return oir.StringTensor(tensor.string_data(), shape=tensor.shape, name=tensor.name)
    if hasattr(tensor, "indices"):  # sparse; graphopt writes it back sparse, a dense copy would inflate it
        return None
    return oir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
