"""One operator, run as it stands."""

from __future__ import annotations

import numpy as np
import onnx_ir as oir
import pytest

from graphopt.errors import GraphoptError
from graphopt.runtime.probe import run_node

RNG = np.random.default_rng(0)
OPSETS = {"": 17, "com.microsoft": 1}


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def test_a_matrix_product_is_what_numpy_says() -> None:
    a, b = random(3, 4), random(4, 5)
    (found,) = run_node("MatMul", [a, b], opsets=OPSETS)
    np.testing.assert_allclose(found, a @ b, rtol=1e-5)


def test_omitted_inputs_attributes_and_several_outputs() -> None:
    y, h, c = run_node(
        "LSTM",
        [random(5, 2, 3), random(1, 16, 3), random(1, 16, 4), None, None, random(1, 2, 4)],
        opsets=OPSETS,
        attributes={"hidden_size": 4},
        outputs=3,
    )
    assert [each.shape for each in (y, h, c)] == [(5, 1, 2, 4), (1, 2, 4), (1, 2, 4)]


def test_attributes_of_a_node_and_another_domain() -> None:
    (found,) = run_node("Softmax", [random(2, 3)], opsets=OPSETS, attributes=[oir.AttrInt64("axis", 0)])
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-5)
    (found,) = run_node("BiasGelu", [random(2, 3), random(3)], domain="com.microsoft", opsets=OPSETS)
    assert found.shape == (2, 3)


@pytest.mark.parametrize(
    ("op_type", "inputs"), [("Nothing", [random(2)]), ("MatMul", [random(2, 3), random(4, 5)])]
)
def test_a_refusal_is_one_of_our_errors(op_type: str, inputs: list[np.ndarray]) -> None:
    with pytest.raises(GraphoptError):
        run_node(op_type, [*inputs], opsets=OPSETS)
