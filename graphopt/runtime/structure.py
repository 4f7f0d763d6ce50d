"""What onnxruntime makes of a quantised model: integer kernels, and what was left to compute in float.

Whether a quantised model is fast is decided by which of its nodes the runtime fuses with the
DequantizeLinear and QuantizeLinear around them. The runtime is asked to write the model as it will run it
(session option ``optimized_model_filepath`` at ORT_ENABLE_ALL), and that model is read back. No clock is
involved, so that the answer is the same on a loaded machine.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError
from graphopt.ir.lower import load
from graphopt.ir.quantised import (
    dequantised_weights,
    dequantizer,
    has_constant_codes,
    holds_quantisation,
    is_clamp,
    is_integer,
    is_requantised,
    wrapping,
)
from graphopt.ir.rewrite import attribute, input_at
from graphopt.runtime import worker
from graphopt.runtime.child import run_in_child
from graphopt.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as oir

    from graphopt.ir.model import Model

TIMEOUT_S = 1800.0
_LARGEST_BYTES = 4 << 30  # of files that the runtime is asked to write out again
_MOST_LISTED = 2000

# Operators whose float kernels make up the time of a model; the names behind the standard ones are those that
# the runtime's own fusions give them.
_COMPUTE = frozenset({
    "Attention", "Conv", "ConvTranspose", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul", "Gather", "Gemm",
    "GRU", "GatherND", "LSTM", "MatMul", "MultiHeadAttention", "RNN",
})  # fmt: skip


_FUSED = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul", "NhwcFusedConv": "Conv"}


@dataclass(frozen=True, slots=True)
class Leftover:
    """A DequantizeLinear that the runtime did not fuse and that feeds a node which computes in float.

    Attributes:
        node: Name of the DequantizeLinear.
        before: Name of the node that reads it, maybe through a Transpose or Reshape.
        op_type: Operator of that node.
        holds: "weight" where the codes are stored in the model, "activation" where they are computed.
    """

    node: str
    before: str
    op_type: str
    holds: str


@dataclass(frozen=True, slots=True)
class Fallback:
    """A node that the model quantised and that the runtime computes in float all the same.

    Attributes:
        node: Its name in the runtime's model.
        op_type: Its operator there.
        reason: What stands in the way, as far as the graph shows it.
    """

    node: str
    op_type: str
    reason: str


@dataclass(frozen=True, slots=True)
class Structure:
    """What a runtime makes of a quantised model.

    Attributes:
        provider: graphopt's name of the provider.
        quantised: Nodes that the model quantised, by operator.
        kernels: Nodes that compute on codes in the runtime's model, by operator.
        dequantize_before: DequantizeLinear nodes left, by the operator of the float node that reads them.
        fallbacks: Quantised nodes that run in float, by operator.
        off_provider: Nodes that run on another provider than the one asked for, by provider.
        leftovers: The first 2000 of ``dequantize_before`` one by one.
        fallen: The first 2000 of ``fallbacks`` one by one.
        problem: Why the runtime's model could not be read, or ""; the counts are then empty.
    """

    provider: str
    quantised: Mapping[str, int] = field(default_factory=dict)
    kernels: Mapping[str, int] = field(default_factory=dict)
    dequantize_before: Mapping[str, int] = field(default_factory=dict)
    fallbacks: Mapping[str, int] = field(default_factory=dict)
    off_provider: Mapping[str, int] = field(default_factory=dict)
    leftovers: tuple[Leftover, ...] = ()
    fallen: tuple[Fallback, ...] = ()
    problem: str = ""

    @property
    def integer_kernels(self) -> int:
        """Number of nodes that compute on codes."""
        return sum(self.kernels.values())

    @property
    def dequantize_before_compute(self) -> int:
        """Number of DequantizeLinear nodes left in front of float nodes that compute."""
        return sum(self.dequantize_before.values())

    @property
    def fallback(self) -> int:
        """Number of quantised nodes that run in float."""
        return sum(self.fallbacks.values())


def structure_of(
    path: Path, *, provider: str = "cpu", timeout_s: float | None = TIMEOUT_S
) -> Structure | None:
    """Return what the runtime makes of the model at *path*, or None where nothing in it is quantised.

    The runtime works in a child process. What goes wrong there is in ``problem`` of the result, because a
    model can be right although the runtime cannot write it down.

    Args:
        path: The model.
        provider: What to run it on.
        timeout_s: Seconds after which the child is ended.

    Raises:
        PathError: The model is missing.
        InvalidModelError: It breaks a rule of ONNX.
    """
    model = load(path)
    if not holds_quantisation(model):
        return None
    quantised = dict(sorted(Counter(map(_label, _quantised_nodes(model))).items()))
    sources = () if model.source is None else model.source.external_files
    size = sum(file.stat().st_size for file in (path, *sources) if file.exists())
    if problem := _too_large(size):
        return Structure(provider, quantised, problem=problem)
    try:
        found: Structure = run_in_child(
            "graphopt.runtime.structure:structure_here",
            path,
            provider,
            quantised,
            timeout_s=timeout_s,
            where=str(path),
        )
    except GraphoptError as error:
        return Structure(provider, quantised, problem=error.message)
    return found


def structure_here(path: Path, provider: str, quantised: Mapping[str, int]) -> Structure:
    """Do what :func:`structure_of` does in this process; *quantised* is passed through."""
    with tempfile.TemporaryDirectory(prefix="graphopt-structure-", ignore_cleanup_errors=True) as name:
        written = Path(name) / "optimized.onnx"
        worker.stage(f"asking the runtime for its own form of {path}")
        with open_session(
            path,
            provider=provider,
            record_placement=True,
            optimized_path=written if provider == "cpu" else None,
        ) as session:
            placed = Counter(node.provider for node in session.placement())
        off = {each: count for each, count in sorted(placed.items()) if each != provider}
        if provider != "cpu":
            reason = f"the provider {provider!r} compiles its nodes: there are no kernels to read back"
            return Structure(provider, quantised, off_provider=off, problem=reason)
        worker.stage(f"reading the runtime's own form of {path}")
        return examine(load(written), provider, quantised, off)


def examine(
    optimized: Model, provider: str, quantised: Mapping[str, int], off_provider: Mapping[str, int]
) -> Structure:
    """Count what is integer and what is float in *optimized*, a model as the runtime runs it."""
    kernels = Counter(_label(node) for node in optimized.nodes() if is_integer(node))
    leftovers: list[Leftover] = []
    fallen: list[Fallback] = []
    for node in optimized.nodes():
        if node.op_type in _COMPUTE:
            leftovers += _leftovers(node)
        if (how := wrapping(node)) is not None:
            fallen.append(Fallback(node.name or "", _label(node), _reason(node, how)))
    return Structure(
        provider,
        quantised,
        dict(sorted(kernels.items())),
        dict(sorted(Counter(each.op_type for each in leftovers).items())),
        dict(sorted(Counter(each.op_type for each in fallen).items())),
        off_provider,
        tuple(leftovers[:_MOST_LISTED]),
        tuple(fallen[:_MOST_LISTED]),
    )


def _quantised_nodes(model: Model) -> list[oir.Node]:
    return [node for node in model.nodes() if is_integer(node) or wrapping(node) is not None]


def _leftovers(node: oir.Node) -> list[Leftover]:
    """Return the DequantizeLinear nodes that *node*, a float one, reads as anything but a bias."""
    found = []
    for index in (0, 1, 2) if node.op_type in {"LSTM", "GRU", "RNN"} else (0, 1):
        source = dequantizer(input_at(node, index))
        if source is not None:
            holds = "weight" if has_constant_codes(source) else "activation"
            found.append(Leftover(source.name or "", node.name or "", _label(node), holds))
    return found


def _reason(node: oir.Node, how: str) -> str:
    if how == "weight":
        return "only its weight is quantised, and the runtime does not fuse that"
    if not any(True for _ in dequantised_weights(node)):
        return "the runtime has no integer kernel for it"
    if not is_requantised(node):
        return "what it computes is not quantised again"
    # A fused activation, or the first one that still stands behind it.
    clamps = [user.op_type for value in node.outputs for user in value.consumers() if is_clamp(user)]
    for name in (str(attribute(node, "activation", "")), *clamps):
        if name in {"Clip", "Relu"}:
            return f"{name} behind it was not absorbed, for which its lowest value must be the lowest code"
    return "the runtime has no integer kernel for these types or attributes"


def _label(node: oir.Node) -> str:
    """Return the operator of *node*; a float operator that the runtime fused keeps its ONNX name."""
    return _FUSED.get(node.op_type, node.op_type)


def _too_large(size: int) -> str:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if size > _LARGEST_BYTES:
        return f"the model has {size} bytes; above {_LARGEST_BYTES} it is not written out once more"
    if 2 * size > free:
        return f"the model has {size} bytes, and {free} are free for temporary files"
    return ""
