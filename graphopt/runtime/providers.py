"""Execution providers by name, and what is wrong with an installation of onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from graphopt.errors import OptionError, ProviderError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

# Names follow --ep; the second column is onnxruntime's own name.
_ORT_NAMES = {
    "acl": "ACLExecutionProvider",
    "armnn": "ArmNNExecutionProvider",
    "azure": "AzureExecutionProvider",
    "cann": "CANNExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    "vitisai": "VitisAIExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}

# Distributions that install into the same folder `onnxruntime`; the one installed last wins silently.
_DISTRIBUTIONS = frozenset({
    "onnxruntime",
    "onnxruntime-azure",
    "onnxruntime-cann",
    "onnxruntime-coreml",
    "onnxruntime-directml",
    "onnxruntime-gpu",
    "onnxruntime-migraphx",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-silicon",
    "onnxruntime-training",
    "onnxruntime-training-cpu",
    "onnxruntime-vitisai",
    "onnxruntime-webgpu",
    "ort-gpu-nightly",
    "ort-nightly",
    "ort-nightly-directml",
    "ort-nightly-gpu",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider.

    Attributes:
        name: graphopt's name ("cpu").
        ort_name: onnxruntime's name ("CPUExecutionProvider").
    """

    name: str
    ort_name: str


def known() -> tuple[str, ...]:
    """Return graphopt's names of all providers that onnxruntime may have, installed or not."""
    return tuple(_ORT_NAMES)


def available() -> tuple[str, ...]:
    """Return graphopt's names of the providers that the installed onnxruntime offers, best first.

    Raises:
        ProviderError: onnxruntime cannot be imported.
    """
    return tuple(short_name(name) for name in _available_ort())


def resolve(name: str) -> Provider:
    """Return the installed provider called *name*, which may be graphopt's name or onnxruntime's.

    Raises:
        OptionError: The name is unknown.
        ProviderError: The installed onnxruntime lacks the provider.
    """
    provider = lookup(name)
    offered = _available_ort()
    if provider.ort_name not in offered:
        raise ProviderError(
            f"the installed onnxruntime {runtime_version()} lacks the provider {provider.name!r}",
            where="--ep",
            hint=f"Available: {', '.join(short_name(each) for each in offered)}.",
        )
    return provider


def lookup(name: str) -> Provider:
    """Return the provider called *name* whether or not it is installed.

    Raises:
        OptionError: The name is unknown.
    """
    wanted = name.strip().lower()
    for short, ort_name in _ORT_NAMES.items():
        if wanted in {short, ort_name.lower()}:
            return Provider(short, ort_name)
    for ort_name in _available_ort():  # a plugin provider, or one newer than the table
        if wanted == ort_name.lower():
            return Provider(short_name(ort_name), ort_name)
    raise OptionError(f"unknown provider {name!r}", where="--ep", hint=nearest(wanted, _ORT_NAMES))


def runtime_version() -> str:
    """Return the version of the installed onnxruntime.

    Raises:
        ProviderError: onnxruntime cannot be imported.
    """
    ort = _onnxruntime()
    return str(ort.__version__)


def runtime_versions() -> dict[str, str]:
    """Return name and version of every installed distribution of onnxruntime, without importing it."""
    return {name: version for name, version in _installed() if name in _DISTRIBUTIONS}


def installation_warnings(installed: Iterable[tuple[str, str]] | None = None) -> tuple[str, ...]:
    """Warn where several distributions of onnxruntime are installed over each other.

    They share one folder, so the files of the one installed last are the ones that run, and providers of
    the others vanish without a word.

    Args:
        installed: (distribution name, version) pairs; None reads those of this environment.
    """
    pairs = _installed() if installed is None else installed
    found = sorted({(_normal(name), version) for name, version in pairs if _normal(name) in _DISTRIBUTIONS})
    if len({name for name, _ in found}) < 2:
        return ()
    names = ", ".join(f"{name} {version}" for name, version in found)
    warning = (
        f"several distributions of onnxruntime are installed over each other ({names}); only the files of the"
        " last one installed are used. Uninstall all of them, then install the one you need."
    )
    return (warning,)


def _installed() -> list[tuple[str, str]]:
    return [
        (_normal(name), dist.version)
        for dist in metadata.distributions()
        if (name := dist.metadata["Name"])  # a half-removed distribution has no name
    ]


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def short_name(ort_name: str) -> str:
    """Return graphopt's name of a provider, or onnxruntime's own where graphopt has none."""
    for short, each in _ORT_NAMES.items():
        if each == ort_name:
            return short
    return ort_name


def _available_ort() -> tuple[str, ...]:
    return tuple(_onnxruntime().get_available_providers())


def _onnxruntime() -> Any:  # noqa: ANN401 - a module without stubs
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(
            f"onnxruntime cannot be imported ({error})", hint="Install it with: pip install onnxruntime"
        ) from error
    return onnxruntime
