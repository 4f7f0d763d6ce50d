"""Random small graphs of what networks are made of: the strategy behind the property tests of pruning.

A graph is drawn as a list of steps; each step takes the current value (images [N, C, H, W] or tokens
[N, T, D]) and makes another one. Earlier values stay reachable for residuals and concatenations. Every
graph ends in a Gemm or a convolution, so that there is something to prune; weights come from one drawn seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import DrawFn

WIDTHS = (4, 6, 8, 12, 16)


@dataclass
class Builder:
    """Nodes and weights so far, and the shape of every value."""

    seed: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    number: int = 0

    def name(self, hint: str) -> str:
        self.number += 1
        return f"{hint}{self.number}"

    def weight(self, *shape: int, fan_in: int = 0, positive: bool = False) -> str:
        """Add a float weight and return its name."""
        name = self.name("w")
        rng = np.random.default_rng([self.seed, self.number])
        array = rng.standard_normal(shape) / np.sqrt(fan_in or 1)
        if positive:
            array = rng.uniform(0.5, 1.5, shape)
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        self.shapes[name] = shape
        return name

    def integers(self, *items: int) -> str:
        """Add an int64 vector and return its name."""
        name = self.name("i")
        self.weights.append(numpy_helper.from_array(np.array(items, np.int64), name))
        return name

    def op(self, op_type: str, *inputs: str, shape: tuple[int, ...], **attributes: Any) -> str:
        """Add a node with one output of *shape* and return the output's name."""
        name = self.name(op_type.lower())
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=f"n_{name}", **attributes))
        self.shapes[name] = shape
        return name

    # images

    def conv(self, x: str, width: int, kernel: int = 3, group: int = 1, *, bias: bool = True) -> str:
        n, c, h, w = self.shapes[x]
        inputs = [x, self.weight(width, c // group, kernel, kernel, fan_in=c // group * kernel**2)]
        if bias:
            inputs.append(self.weight(width))
        pads = [kernel // 2] * 4
        return self.op("Conv", *inputs, shape=(n, width, h, w), group=group, pads=pads)

    def activation(self, x: str, kind: str) -> str:
        return self.op(kind, x, shape=self.shapes[x])

    def batch_norm(self, x: str) -> str:
        c = self.shapes[x][1]
        scale, shift, mean = self.weight(c, positive=True), self.weight(c), self.weight(c)
        return self.op(
            "BatchNormalization", x, scale, shift, mean, self.weight(c, positive=True), shape=self.shapes[x]
        )

    def shuffle(self, x: str, group: int) -> str:
        n, c, h, w = self.shapes[x]
        split = (n, group, c // group, h, w)
        y = self.op("Reshape", x, self.integers(*split), shape=split)
        y = self.op("Transpose", y, shape=(n, c // group, group, h, w), perm=[0, 2, 1, 3, 4])
        return self.op("Reshape", y, self.integers(n, -1, h, w), shape=(n, c, h, w))

    def squeeze_excite(self, x: str) -> str:
        n, c, _, _ = self.shapes[x]
        y = self.op("GlobalAveragePool", x, shape=(n, c, 1, 1))
        y = self.activation(self.conv(y, max(2, c // 2), 1), "Relu")
        y = self.activation(self.conv(y, c, 1), "Sigmoid")
        return self.op("Mul", x, y, shape=self.shapes[x])

    def group_norm(self, x: str, groups: int) -> str:
        """Add a GroupNormalization as exporters write it: Reshape, InstanceNormalization, Reshape."""
        n, c, h, w = self.shapes[x]
        flat = (n, groups, c // groups * h * w)
        y = self.op("Reshape", x, self.integers(0, groups, -1), shape=flat)
        scale, shift = self.weight(groups, positive=True), self.weight(groups)
        y = self.op("InstanceNormalization", y, scale, shift, shape=flat)
        y = self.op("Reshape", y, self.integers(n, c, h, w), shape=(n, c, h, w))
        y = self.op("Mul", y, self.weight(c, 1, 1), shape=(n, c, h, w))
        return self.op("Add", y, self.weight(c, 1, 1), shape=(n, c, h, w))

    def tokens(self, x: str) -> str:
        n, c, h, w = self.shapes[x]
        y = self.op("Reshape", x, self.integers(n, c, h * w), shape=(n, c, h * w))
        return self.op("Transpose", y, shape=(n, h * w, c), perm=[0, 2, 1])

    def flattened(self, x: str) -> str:
        size = int(np.prod(self.shapes[x][1:]))
        return self.op("Flatten", x, shape=(self.shapes[x][0], size), axis=1)

    # tokens

    def linear(self, x: str, width: int) -> str:
        *rest, d = self.shapes[x]
        y = self.op("MatMul", x, self.weight(d, width, fan_in=d), shape=(*rest, width))
        return self.op("Add", y, self.weight(width), shape=(*rest, width))

    def layer_norm(self, x: str) -> str:
        d = self.shapes[x][-1]
        return self.op(
            "LayerNormalization",
            x,
            self.weight(d, positive=True),
            self.weight(d),
            shape=self.shapes[x],
            axis=-1,
        )

    def attention(self, x: str, heads: int, head_dim: int) -> str:
        n, t, d = self.shapes[x]

        def split(y: str, perm: list[int]) -> str:
            y = self.op("Reshape", y, self.integers(0, 0, heads, head_dim), shape=(n, t, heads, head_dim))
            shape = (n, t, heads, head_dim)
            return self.op("Transpose", y, shape=tuple(shape[axis] for axis in perm), perm=perm)

        q = split(self.linear(x, heads * head_dim), [0, 2, 1, 3])
        k = split(self.linear(x, heads * head_dim), [0, 2, 3, 1])
        v = split(self.linear(x, heads * head_dim), [0, 2, 1, 3])
        y = self.op("MatMul", q, k, shape=(n, heads, t, t))
        y = self.op("Softmax", y, shape=(n, heads, t, t), axis=-1)
        y = self.op("MatMul", y, v, shape=(n, heads, t, head_dim))
        y = self.op("Transpose", y, shape=(n, t, heads, head_dim), perm=[0, 2, 1, 3])
        y = self.op("Reshape", y, self.integers(n, t, heads * head_dim), shape=(n, t, heads * head_dim))
        return self.linear(y, d)

    def finish(self, inputs: dict[str, tuple[int, ...]], outputs: list[str]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[name]) for name in outputs],
            self.weights,
        )
        model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
        onnx.checker.check_model(model)
        return model


def _divisors(number: int) -> list[int]:
    return [each for each in range(2, number + 1) if number % each == 0]


def image_step(draw: DrawFn, b: Builder, x: str, seen: list[str]) -> str:
    """Draw one step on an image and return its result."""
    n, c, h, w = b.shapes[x]
    same = [each for each in seen if b.shapes[each] == b.shapes[x] and each != x]
    sized = [each for each in seen if len(b.shapes[each]) == 4 and b.shapes[each][2:] == (h, w)]

    def grouped() -> str:
        group = draw(st.sampled_from(_divisors(c) or [1]))
        return b.conv(x, group * draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 3])), group)

    def concat() -> str:
        other = draw(st.sampled_from(sized))
        if c + b.shapes[other][1] > 48:
            return b.conv(x, 8, 1)
        return b.op("Concat", x, other, shape=(n, c + b.shapes[other][1], h, w), axis=1)

    def split() -> str:
        half = c // 2
        if half < 2:
            return b.conv(x, 8)
        parts = [b.name("part"), b.name("part")]
        b.nodes.append(
            helper.make_node("Split", [x, b.integers(half, c - half)], parts, name=b.name("n_split"), axis=1)
        )
        b.shapes |= {parts[0]: (n, half, h, w), parts[1]: (n, c - half, h, w)}
        changed = b.activation(b.conv(parts[0], half), "Relu")
        return b.op("Concat", parts[1], changed, shape=(n, c, h, w), axis=1)

    def pick() -> str:
        order = draw(st.permutations(range(c)))[: draw(st.integers(max(2, c // 2), c))]
        return b.op("Gather", x, b.integers(*order), shape=(n, len(order), h, w), axis=1)

    def cut_channels() -> str:
        start = draw(st.integers(0, c // 2))
        inputs = (b.integers(start), b.integers(c), b.integers(1))
        return b.op("Slice", x, *inputs, shape=(n, c - start, h, w))

    def depth_to_space() -> str:
        if c % 4 or c < 8 or h > 6:
            return b.conv(x, 8)
        mode = draw(st.sampled_from(["DCR", "CRD"]))
        return b.op("DepthToSpace", x, shape=(n, c // 4, 2 * h, 2 * w), blocksize=2, mode=mode)

    def normalized() -> str:
        scale, shift = b.weight(c, positive=True), b.weight(c)
        return b.op("InstanceNormalization", x, scale, shift, shape=b.shapes[x])

    steps: dict[str, Callable[[], str]] = {
        "conv": lambda: b.conv(x, draw(st.sampled_from(WIDTHS)), draw(st.sampled_from([1, 3]))),
        "bare": lambda: b.conv(x, draw(st.sampled_from(WIDTHS)), 1, bias=False),
        "grouped": grouped,
        "depthwise": lambda: b.conv(x, c * draw(st.sampled_from([1, 1, 2])), 3, c),
        "activation": lambda: (
            b.activation(x, draw(st.sampled_from(["Relu", "Sigmoid", "Tanh", "HardSwish", "Exp"])))
            if draw(st.booleans())
            else b.activation(x, "Relu")
        ),
        "batch norm": lambda: b.batch_norm(x),
        "instance norm": normalized,
        "group norm": lambda: b.group_norm(x, draw(st.sampled_from(_divisors(c) or [1]))),
        "residual": lambda: b.op("Add", x, b.conv(b.activation(x, "Relu"), c), shape=b.shapes[x]),
        "bottleneck": lambda: b.op(
            "Add", x, b.conv(b.activation(b.conv(x, 8, 1), "Relu"), c, 1), shape=b.shapes[x]
        ),
        "squeeze excite": lambda: b.squeeze_excite(x),
        "shuffle": lambda: b.shuffle(x, draw(st.sampled_from(_divisors(c) or [1]))),
        "concat": concat,
        "split": split,
        "pick": pick,
        "slice": cut_channels,
        "depth to space": depth_to_space,
        "scale": lambda: b.op("Mul", x, b.weight(1, c, 1, 1), shape=b.shapes[x]),
        "max pool": lambda: b.op("MaxPool", x, shape=(n, c, h, w), kernel_shape=[3, 3], pads=[1] * 4),
    }
    if same:
        steps["add"] = lambda: b.op("Add", x, draw(st.sampled_from(same)), shape=b.shapes[x])
        steps["mul"] = lambda: b.op("Mul", x, draw(st.sampled_from(same)), shape=b.shapes[x])
    return steps[draw(st.sampled_from(sorted(steps)))]()


def token_step(draw: DrawFn, b: Builder, x: str, seen: list[str]) -> str:
    """Draw one step on tokens and return its result."""
    n, t, d = b.shapes[x]
    same = [each for each in seen if b.shapes[each] == b.shapes[x] and each != x]

    def mlp() -> str:
        y = b.linear(b.layer_norm(x), draw(st.sampled_from(WIDTHS)))
        half = b.op("Erf", y, shape=b.shapes[y])
        y = b.op("Mul", y, half, shape=b.shapes[y])
        return b.op("Add", x, b.linear(y, d), shape=b.shapes[x])

    def gated() -> str:
        width = draw(st.sampled_from(WIDTHS))
        gate = b.activation(b.linear(x, width), "Sigmoid")
        y = b.op("Mul", gate, b.linear(x, width), shape=(n, t, width))
        return b.op("Add", x, b.linear(y, d), shape=b.shapes[x])

    def attend() -> str:
        heads, size = draw(st.sampled_from([2, 3, 4])), draw(st.sampled_from([2, 4, 6]))
        return b.op("Add", x, b.attention(b.layer_norm(x), heads, size), shape=b.shapes[x])

    def mix() -> str:
        y = b.op("Transpose", x, shape=(n, d, t), perm=[0, 2, 1])
        y = b.linear(b.activation(b.linear(y, 6), "Relu"), t)
        y = b.op("Transpose", y, shape=(n, t, d), perm=[0, 2, 1])
        return b.op("Add", x, y, shape=b.shapes[x])

    steps: dict[str, Callable[[], str]] = {
        "linear": lambda: b.linear(x, draw(st.sampled_from(WIDTHS))),
        "mlp": mlp,
        "gated": gated,
        "attention": attend,
        "mix": mix,
        "norm": lambda: b.layer_norm(x),
        "activation": lambda: b.activation(x, draw(st.sampled_from(["Relu", "Tanh", "Sigmoid"]))),
        "einsum": lambda: b.op(
            "Einsum", x, b.weight(d, 8, fan_in=d), shape=(n, t, 8), equation="btd,de->bte"
        ),
        "scale": lambda: b.op("Mul", x, b.weight(d), shape=b.shapes[x]),
    }
    if same:
        steps["add"] = lambda: b.op("Add", x, draw(st.sampled_from(same)), shape=b.shapes[x])
    return steps[draw(st.sampled_from(sorted(steps)))]()


@st.composite
def graphs(draw: DrawFn) -> onnx.ModelProto:
    """Draw a model of 2 to 9 steps."""
    b = Builder(draw(st.integers(0, 2**16)))
    shape = (1, 3, 6, 6)
    b.shapes["x"] = shape
    x = b.conv("x", draw(st.sampled_from(WIDTHS)))
    seen = [x]
    for _ in range(draw(st.integers(1, 6))):
        x = image_step(draw, b, x, seen)
        seen.append(x)
    if draw(st.booleans()):
        x = b.tokens(x)
        seen.append(x)
        for _ in range(draw(st.integers(1, 4))):
            x = token_step(draw, b, x, seen)
            seen.append(x)
        n, _, d = b.shapes[x]
        if draw(st.booleans()):
            x = b.op("ReduceMean", x, shape=(n, d), axes=[1], keepdims=0)
        head = b.linear(x, 5)
    elif draw(st.booleans()):
        n, c, _, _ = b.shapes[x]
        x = b.op("GlobalAveragePool", x, shape=(n, c, 1, 1))
        head = b.linear(b.flattened(x), 5)
    elif draw(st.booleans()):
        y = b.flattened(x)
        size = b.shapes[y][1]
        head = b.op(
            "Gemm", y, b.weight(5, size, fan_in=size), b.weight(5), shape=(b.shapes[y][0], 5), transB=1
        )
    else:
        head = b.conv(x, 5, 1)
    return b.finish({"x": shape}, [head])
