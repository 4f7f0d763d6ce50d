"""Names of providers, and distributions installed over each other."""

from __future__ import annotations

import onnxruntime
import pytest

from graphopt.errors import OptionError, ProviderError
from graphopt.runtime import providers


@pytest.mark.parametrize("name", ["cpu", "CPU", " cpu ", "CPUExecutionProvider", "cpuexecutionprovider"])
def test_both_names_resolve(name: str) -> None:
    assert providers.resolve(name) == providers.Provider("cpu", "CPUExecutionProvider")


def test_available_names_are_those_of_onnxruntime() -> None:
    names = [providers.lookup(name).ort_name for name in providers.available()]
    assert names == onnxruntime.get_available_providers()


def test_every_provider_that_onnxruntime_knows_and_a_person_may_ask_for_has_a_name() -> None:
    internal = {
        "JsExecutionProvider",
        "WebNNExecutionProvider",
        "RknpuExecutionProvider",
        "VSINPUExecutionProvider",
    }
    known = {providers.lookup(name).ort_name for name in providers.known()}
    assert set(onnxruntime.get_all_providers()) - internal <= known


def test_an_unknown_name_has_a_suggestion() -> None:
    with pytest.raises(
        OptionError, match=r"unknown provider 'opnvino'\. Did you mean 'openvino'\?"
    ) as caught:
        providers.resolve("opnvino")
    assert caught.value.exit_code == 2


def test_an_absent_provider_names_the_available_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match=r"lacks the provider 'cuda'. Available: cpu\."):
        providers.resolve("cuda")


def test_a_provider_newer_than_the_table_goes_by_onnxruntimes_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["NewExecutionProvider"])
    assert providers.resolve("NewExecutionProvider").ort_name == "NewExecutionProvider"
    assert providers.available() == ("NewExecutionProvider",)


@pytest.mark.parametrize(
    ("installed", "names"),
    [
        ([], None),
        ([("onnxruntime", "1.31.1"), ("onnx", "1.23.2"), ("onnxruntime-extensions", "0.14")], None),
        ([("onnxruntime", "1.31.1"), ("onnxruntime", "1.31.1")], None),
        (
            [("onnxruntime", "1.31.1"), ("onnxruntime-gpu", "1.30.0")],
            "onnxruntime 1.31.1, onnxruntime-gpu 1.30.0",
        ),
        (
            [("onnxruntime_openvino", "1.24.1"), ("ONNXRuntime", "1.31.1")],
            "onnxruntime 1.31.1, onnxruntime-openvino",
        ),
    ],
)
def test_distributions_over_each_other(installed: list[tuple[str, str]], names: str | None) -> None:
    warnings = providers.installation_warnings(installed)
    assert (len(warnings) == 1) == (names is not None)
    if names:
        assert names in warnings[0]


def test_this_environment() -> None:
    assert onnxruntime.__version__ in providers.runtime_versions().values()
    assert providers.runtime_version() == onnxruntime.__version__
