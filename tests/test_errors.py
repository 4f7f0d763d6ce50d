"""How the parts of an error become its text."""

from __future__ import annotations

import pytest

from graphopt.errors import GraphoptError


@pytest.mark.parametrize(
    ("message", "hint", "text"),
    [
        ("it is wrong", "", "m.onnx: it is wrong"),
        ("it is wrong", "Repair it.", "m.onnx: it is wrong. Repair it."),
        ("did you mean 'a'?", "Repair it.", "m.onnx: did you mean 'a'? Repair it."),
    ],
)
def test_sentences_end_once(message: str, hint: str, text: str) -> None:
    assert str(GraphoptError(message, where="m.onnx", hint=hint)) == text
