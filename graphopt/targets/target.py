"""What a target is: an execution provider and what its runtime can load, as frozen data read from TOML."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from graphopt.targets.channels import ChannelRules  # noqa: TC001 - pydantic resolves it
from graphopt.targets.dequantize import DequantizeRules  # noqa: TC001 - pydantic resolves it
from graphopt.targets.half import HalfRules  # noqa: TC001 - pydantic resolves it
from graphopt.targets.low_rank import LowRankRules  # noqa: TC001 - pydantic resolves it
from graphopt.targets.quantize import QuantizeRules  # noqa: TC001 - pydantic resolves it
from graphopt.targets.softmax import SoftmaxRules  # noqa: TC001 - pydantic resolves it
from graphopt.targets.sparse import SparseRules  # noqa: TC001 - pydantic resolves it
from graphopt.targets.weight_only import DynamicRules, WeightOnlyRules  # noqa: TC001 - pydantic resolves it


class RuntimeLimits(BaseModel):
    """Highest versions that one release of the runtime loads.

    Attributes:
        release: Major and minor version of the runtime ("1.31").
        wheel: Full version of the package that was asked.
        max_ir_version: Highest ONNX IR version.
        max_opset: Highest version of the default ONNX domain.
        max_ml_opset: Highest version of the domain ai.onnx.ml.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    release: str = Field(pattern=r"^\d+\.\d+$")
    wheel: str
    max_ir_version: int = Field(ge=3)
    max_opset: int = Field(ge=7)
    max_ml_opset: int = Field(ge=1)


class Target(BaseModel):
    """What to compile for: a provider's name and the limits of its runtime, each with its source.

    Attributes:
        name: Name on the command line.
        summary: One sentence for ``graphopt targets``.
        provider: graphopt's name of the provider that runs it ("cpu").
        sources: Where the numbers of each table come from, by table name.
        unmeasured: Tables that were taken from documentation and never held against the runtime itself.
        runtime_limits: One row a release, in ascending order.
        dequantize: Which DequantizeLinear nodes of stored weights the runtime fuses; None where that is not
            known.
        channels: What numbers of channels pay; None where that is not known.
        half: Which half-precision types it computes in; None where that is not known.
        softmax: From which share of masked elements on a Softmax is slow; None where that is not known.
        sparse: Patterns of zeros that it computes faster; None where it multiplies zeros like other numbers.
        low_rank: When a factorised weight is worth it; None where that is not known.
        weight_only: When weights stored as codes are computed with; None where that is not known.
        dynamic: Which operators pay with activations quantised as they come; None where that is not known.
        quantize: How a statically quantised graph must look; None where that is not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    summary: str = Field(min_length=1)
    provider: str = Field(min_length=1)
    sources: dict[str, str]
    unmeasured: tuple[str, ...] = ()
    runtime_limits: tuple[RuntimeLimits, ...] = Field(min_length=1)
    dequantize: DequantizeRules | None = None
    channels: ChannelRules | None = None
    low_rank: LowRankRules | None = None
    weight_only: WeightOnlyRules | None = None
    dynamic: DynamicRules | None = None
    quantize: QuantizeRules | None = None
    half: HalfRules | None = None
    softmax: SoftmaxRules | None = None
    sparse: SparseRules | None = None

    @field_validator("sources")
    @classmethod
    def _no_empty_source(cls, sources: dict[str, str]) -> dict[str, str]:
        for table, text in sources.items():
            if not text.strip():
                raise ValueError(f"the source of {table} is empty")
        return {table: " ".join(text.split()) for table, text in sources.items()}

    @model_validator(mode="after")
    def _every_limit_has_a_source(self) -> Self:
        if "runtime_limits" not in self.sources:
            raise ValueError("sources.runtime_limits must say where the limits come from")
        releases = [release_key(limits.release) for limits in self.runtime_limits]
        if releases != sorted(set(releases)):
            raise ValueError("runtime_limits must be in ascending order of release, each once")
        return self

    @model_validator(mode="after")
    def _every_rule_has_a_source(self) -> Self:
        for table in (
            "channels",
            "dequantize",
            "dynamic",
            "half",
            "low_rank",
            "quantize",
            "softmax",
            "sparse",
            "weight_only",
        ):
            if getattr(self, table) is not None and table not in self.sources:
                raise ValueError(f"sources.{table} must say where its rules come from")
        if stray := [name for name in self.unmeasured if name not in self.sources]:
            raise ValueError(f"unmeasured names {stray[0]!r}, which has no source")
        return self

    def runtime_limits_for(self, runtime_version: str) -> RuntimeLimits:
        """Return the row that holds for *runtime_version*.

        A version between two rows counts as the lower row, one behind the last row as the last (a runtime
        never loads less than its predecessors), one before the first row as the first.

        Args:
            runtime_version: For example "1.31.1" or "1.32.0.dev20260101".
        """
        key = release_key(runtime_version)
        fitting = [limits for limits in self.runtime_limits if release_key(limits.release) <= key]
        return fitting[-1] if fitting else self.runtime_limits[0]

    def limits_for(self, runtime_version: str) -> tuple[int, int]:
        """Return (highest IR version, highest opset of the default domain) for *runtime_version*."""
        limits = self.runtime_limits_for(runtime_version)
        return limits.max_ir_version, limits.max_opset


def release_key(version: str) -> tuple[int, int]:
    """Return (major, minor) of *version*; parts that are not numbers count as 0.

    >>> release_key("1.31.1")
    (1, 31)
    """
    parts = [*version.split("."), "0", "0"][:2]
    major, minor = (int(part) if part.isdigit() else 0 for part in parts)
    return major, minor
