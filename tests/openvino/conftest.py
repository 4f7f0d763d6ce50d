"""These tests need onnxruntime-openvino, which has an environment of its own (tox -e openvino)."""

from __future__ import annotations

import os

import pytest

from graphopt.runtime.providers import available


@pytest.fixture(autouse=True)
def _provider() -> None:
    if "openvino" in available():
        return
    reason = "the installed onnxruntime has no OpenVINO provider; see the tox environment openvino"
    if os.environ.get("GRAPHOPT_REQUIRE_OPENVINO") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
