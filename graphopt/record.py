"""The data of report.json (schema 1): what one command did, as plain records.

The manager and the commands fill these in; reporters only render them. ``to_json`` writes every field, in
declared order; numbers that are not finite become null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

StepStatus = Literal["committed", "unchanged", "rolled_back", "failed"]
RunStatus = Literal["ok", "unchanged", "gate_failed", "failed"]


class Record(BaseModel):
    """Base of all records: assignments are checked, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class ModelFacts(Record):
    """A model file and its size: bytes counts the file and its external data."""

    path: str
    sha256: str
    bytes: int
    nodes: int
    parameters: int
    macs: int | None


class StepTimes(Record):
    """Wall-clock seconds of each part of a step."""

    clone: float = 0.0
    run: float = 0.0
    verify: float = 0.0
    gate: float = 0.0


class Skip(Record):
    """Something that a pass left alone."""

    where: str
    reason: str


class GateRecord(Record):
    """One judgement of a gate."""

    name: str
    value: float | None
    limit: float
    passed: bool
    note: str = ""


class StepRecord(Record):
    """One step of the pipeline."""

    index: int
    name: str
    options: dict[str, Any]
    status: StepStatus
    changed: bool = False
    counts: dict[str, int] = Field(default_factory=dict)
    skipped: list[Skip] = Field(default_factory=list)
    times_s: StepTimes = Field(default_factory=StepTimes)
    fingerprint_before: str = ""
    fingerprint_after: str = ""
    gates: list[GateRecord] = Field(default_factory=list)
    extra: dict[str, Any] = Field(default_factory=dict)


class OutputRecord(Record):
    """How one output compares; sqnr_db is null with exact=true where the outputs are equal bit for bit."""

    name: str
    max_abs: float | None
    sqnr_db: float | None
    cosine: float | None
    max_rel: float | None = None
    top1_agreement: float | None = None
    exact: bool = False
    passed: bool = True
    evidence: bool = True
    note: str = ""


class LatencyRecord(Record):
    """Thread CPU time of one inference; ratio is after / before, noise_ratio the worst one of an A/A pair."""

    before_s: float
    after_s: float
    ratio: float
    noise_ratio: float


class LeftoverRecord(Record):
    """A DequantizeLinear in front of a float node; ``holds`` is "weight" or "activation"."""

    node: str
    before: str
    op_type: str
    holds: str


class FallbackRecord(Record):
    """A quantised node that the runtime computes in float, and why as far as the graph shows it."""

    node: str
    op_type: str
    reason: str


class StructureRecord(Record):
    """What the runtime makes of a quantised model at its highest optimization level, each by operator.

    ``quantised`` counts nodes of the model, everything else nodes of the runtime's own form of it.
    ``problem`` says why that form could not be read; the counts are then empty.
    """

    provider: str
    quantised: dict[str, int] = Field(default_factory=dict)
    kernels: dict[str, int] = Field(default_factory=dict)
    dequantize_before: dict[str, int] = Field(default_factory=dict)
    fallbacks: dict[str, int] = Field(default_factory=dict)
    off_provider: dict[str, int] = Field(default_factory=dict)
    integer_kernels: int = 0
    dequantize_before_compute: int = 0
    fallback: int = 0
    leftovers: list[LeftoverRecord] = Field(default_factory=list)
    fallen: list[FallbackRecord] = Field(default_factory=list)
    problem: str = ""


class ValidationRecord(Record):
    """Original against result on one execution provider.

    ``outputs`` holds each output at its worse level; ``levels`` all of them by level of the runtime's own
    optimizer (``all``, ``none``). ``problems`` says in sentences what did not hold. ``structure`` is null
    where nothing in the result is quantised.
    """

    outputs: list[OutputRecord] = Field(default_factory=list)
    latency: LatencyRecord | None = None
    placement: dict[str, Any] = Field(default_factory=dict)
    provider: str = ""
    feeds: int = 0
    passed: bool = True
    problems: list[str] = Field(default_factory=list)
    levels: dict[str, list[OutputRecord]] = Field(default_factory=dict)
    structure: StructureRecord | None = None


class ErrorRecord(Record):
    """The first failure."""

    type: str
    where: str
    message: str
    hint: str


class RunRecord(Record):
    """One command from start to end.

    ``extra`` holds what a run has besides: ``calibration`` lists the passes over the data, ``measurements``
    the latencies that steps asked for, from which ``--measurements`` answers.
    """

    schema_: int = Field(default=1, alias="schema")
    tool: str = "graphopt"
    versions: dict[str, str] = Field(default_factory=dict)
    command: str = ""
    status: RunStatus = "ok"
    exit_code: int = 0
    input: ModelFacts | None = None
    output: ModelFacts | None = None
    pipeline: str = ""
    target: str = ""
    providers: list[str] = Field(default_factory=list)
    seed: int = 0
    steps: list[StepRecord] = Field(default_factory=list)
    validation: ValidationRecord | None = None
    warnings: list[str] = Field(default_factory=list)
    error: ErrorRecord | None = None
    extra: dict[str, Any] = Field(default_factory=dict)

    model_config = ConfigDict(extra="forbid", validate_assignment=True, populate_by_name=True)

    def to_json(self) -> dict[str, Any]:
        """Return the document of report.json, ready for ``json.dumps(..., allow_nan=False)``."""
        document = self.model_dump(mode="python", by_alias=True)
        return {key: _finite(value) for key, value in document.items()}


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
