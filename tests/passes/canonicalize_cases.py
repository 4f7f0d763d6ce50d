"""The models of test_canonicalize.py: one a rule, and one a case that a rule must leave alone."""

from __future__ import annotations

# name -> (model, op types that must be left, in order)
DROPPED: dict[str, tuple[str, list[str]]] = {
    "identity-inside": (
        "g (float[2,3] x) => (float[2,3] y) { a = Identity (x) b = Relu (a) c = Identity (b) y = Neg (c) }",
        ["Relu", "Neg"],
    ),
    "identity-output-takes-name": (
        "g (float[2,3] x) => (float[2,3] y) { a = Relu (x) y = Identity (a) }",
        ["Relu"],
    ),
    "identity-input-to-output": ("g (float[2,3] x) => (float[2,3] y) { y = Identity (x) }", ["Identity"]),
    "identity-two-outputs": (
        "g (float[2,3] x) => (float[2,3] y, float[2,3] z) { y = Relu (x) z = Identity (y) }",
        ["Relu", "Identity"],
    ),
    "cast-same-type": (
        "g (float[2,3] x) => (float[2,3] y) { a = Relu (x) b = Cast <to = 1> (a) y = Neg (b) }",
        ["Relu", "Neg"],
    ),
    "cast-there-and-back": (
        "g (float16[2,3] x) => (float16[2,3] y) { a = Cast <to = 1> (x) b = Cast <to = 10> (a) y = Neg (b) }",
        ["Neg"],
    ),
    "cast-lossy-stays": (
        "g (float[2,3] x) => (float[2,3] y) { a = Cast <to = 10> (x) y = Cast <to = 1> (a) }",
        ["Cast", "Cast"],
    ),
    "cast-widened-twice": (
        "g (int8[2,3] x) => (int64[2,3] y) { a = Cast <to = 6> (x) y = Cast <to = 7> (a) }",
        ["Cast"],
    ),
    "cast-like-same": (
        "g (float[2,3] x, float[1] t) => (float[2,3] y) { a = CastLike (x, t) y = Neg (a) }",
        ["Neg"],
    ),
    "cast-like-other": (
        "g (float[2,3] x, double[1] t) => (double[2,3] y) { a = CastLike (x, t) y = Neg (a) }",
        ["Cast", "Neg"],
    ),
    "dropout": (
        "g (float[2,3] x) => (float[2,3] y) { a = Relu (x) b, mask = Dropout (a) y = Neg (b) }",
        ["Relu", "Neg"],
    ),
    "reshape-same": (
        "g (float[2,3] x) => (float[2,3] y) <int64[2] s = {2, -1}> { a = Reshape (x, s) y = Neg (a) }",
        ["Neg"],
    ),
    "reshape-zeros": (
        "g (float[N,M] x) => (float[N,M] y) <int64[2] s = {0, 0}> { a = Reshape (x, s) y = Neg (a) }",
        ["Neg"],
    ),
    "reshape-other-stays": (
        "g (float[N,M] x) => (float[N,K] y) <int64[2] s = {0, 4}> { a = Reshape (x, s) y = Neg (a) }",
        ["Reshape", "Neg"],
    ),
    "reshape-twice": (
        ("g (float[N,3,4] x) => (float[N,2,6] y) <int64[2] s = {0, -1}, int64[3] t = {0, 2, 6}>"
        " { a = Reshape (x, s) y = Reshape (a, t) }"),
        ["Reshape"],
    ),
    "reshape-twice-copied-dim-differs": (
        ("g (float[N,3,4] x) => (float[K,6] y)"
        " <int64[2] s = {-1, 12}, int64[3] t = {0, 2, 6}, int64[2] u = {-1, 6}>"
        " { a = Reshape (x, s) b = Reshape (a, t) y = Reshape (b, u) }"),
        ["Reshape"],
    ),
    "flatten-matrix": (
        "g (float[N,3] x) => (float[N,3] y) { a = Flatten <axis = 1> (x) y = Neg (a) }",
        ["Neg"],
    ),
    "transpose-identity": (
        "g (float[N,3,M] x) => (float[N,3,M] y) { a = Transpose <perm = [0, 1, 2]> (x) y = Neg (a) }",
        ["Neg"],
    ),
    "transpose-there-and-back": (
        ("g (float[N,3,M] x) => (float[N,3,M] y)"
        " { a = Transpose <perm = [1, 2, 0]> (x) b = Transpose <perm = [2, 0, 1]> (a) y = Neg (b) }"),
        ["Neg"],
    ),
    "transpose-merged": (
        ("g (float[N,3,M] x) => (float[M,3,N] y)"
        " { a = Transpose <perm = [1, 0, 2]> (x) b = Transpose <perm = [2, 0, 1]> (a) y = Neg (b) }"),
        ["Transpose", "Neg"],
    ),
    "transpose-merged-inner-read": (
        ("g (float[N,3,M] x) => (float[M,N,3] y, float[3,N,M] z)"
        " { z = Transpose <perm = [1, 0, 2]> (x) y = Transpose <perm = [2, 1, 0]> (z) }"),
        ["Transpose", "Transpose"],
    ),
    "transpose-unit-dims-into-reshape": (
        ("g (float[1,8,1,4] x) => (float[4,8] y) <int64[2] s = {4, 8}>"
        " { a = Transpose <perm = [1, 0, 2, 3]> (x) y = Reshape (a, s) }"),
        ["Reshape"],
    ),
    "unsqueeze-squeeze": (
        ("g (float[N,3] x) => (float[N,3] y)"
        " <int64[1] a = {1}> { b = Unsqueeze (x, a) c = Squeeze (b, a) y = Neg (c) }"),
        ["Neg"],
    ),
    "unsqueeze-twice": (
        ("g (float[N,3] x) => (float[1,N,1,3,1] y) <int64[1] a = {1}, int64[2] b = {0, 4}>"
        " { c = Unsqueeze (x, a) y = Unsqueeze (c, b) }"),
        ["Unsqueeze"],
    ),
    "squeeze-twice": (
        ("g (float[1,N,1,3,1] x) => (float[N,3] y) <int64[2] a = {0, 4}, int64[1] b = {1}>"
        " { c = Squeeze (x, a) y = Squeeze (c, b) }"),
        ["Squeeze"],
    ),
    "expand-same": (
        "g (float[N,3] x) => (float[N,3] y) <int64[2] s = {1, 3}> { a = Expand (x, s) y = Neg (a) }",
        ["Neg"],
    ),
    "expand-unknown-stays": (
        "g (float[N,3] x) => (float[M,3] y) <int64[2] s = {4, 3}> { a = Expand (x, s) y = Neg (a) }",
        ["Expand", "Neg"],
    ),
    "pad-nothing": (
        "g (float[2,3] x) => (float[2,3] y) <int64[4] p = {0, 0, 0, 0}> { a = Pad (x, p) y = Neg (a) }",
        ["Neg"],
    ),
    "slice-all": (
        ("g (float[N,3] x) => (float[N,3] y)"
        " <int64[2] s = {0, -3}, int64[2] e = {9223372036854775807, 3}> { a = Slice (x, s, e) y = Neg (a) }"),
        ["Neg"],
    ),
    "slice-part-stays": (
        ("g (float[N,3] x) => (float[M,3] y)"
        " <int64[1] s = {0}, int64[1] e = {3}> { a = Slice (x, s, e) y = Neg (a) }"),
        ["Slice", "Neg"],
    ),
    "concat-one": ("g (float[2,3] x) => (float[2,3] y) { a = Concat <axis = 1> (x) y = Neg (a) }", ["Neg"]),
    "concat-nested": (
        ("g (float[2,3] x, float[2,1] z) => (float[2,7] y)"
        " { a = Concat <axis = 1> (x, z) y = Concat <axis = 1> (a, x) }"),
        ["Concat"],
    ),
    "split-one": (
        "g (float[2,3] x) => (float[2,3] y) { a = Split <axis = 0, num_outputs = 1> (x) y = Neg (a) }",
        ["Neg"],
    ),
    "tile-once": (
        "g (float[2,3] x) => (float[2,3] y) <int64[2] r = {1, 1}> { a = Tile (x, r) y = Neg (a) }",
        ["Neg"],
    ),
    "resize-once": (
        ("g (float[1,1,4,4] x) => (float[1,1,4,4] y) <float[4] s = {1.0, 1.0, 1.0, 1.0}>"
        ' { a = Resize <mode = "cubic"> (x, , s) y = Neg (a) }'),
        ["Neg"],
    ),
    "clip-unbounded": ("g (int32[2,3] x) => (int32[2,3] y) { a = Clip (x) y = Neg (a) }", ["Neg"]),
    "clip-unbounded-float": (
        "g (float[2,3] x) => (float[2,3] y) { a = Clip (x) y = Neg (a) }", ["Clip", "Neg"]
    ),
    "mul-one": (
        "g (float[N,3] x) => (float[N,3] y) <float[3] w = {1.0, 1.0, 1.0}> { a = Mul (w, x) y = Neg (a) }",
        ["Neg"],
    ),
    "mul-one-widens": (
        ("g (float[3] x) => (float[2,3] y)"
        " <float[2,3] w = {1.0, 1.0, 1.0, 1.0, 1.0, 1.0}> { a = Mul (w, x) y = Neg (a) }"),
        ["Mul", "Neg"],
    ),
    "add-zero": (
        "g (float[N,3] x) => (float[N,3] y) <float z = {0.0}> { a = Add (x, z) b = Sub (a, z) y = Neg (b) }",
        ["Neg"],
    ),
    "zero-minus-stays": (
        "g (float[N,3] x) => (float[N,3] y) <float z = {0.0}> { y = Sub (z, x) }",
        ["Sub"],
    ),
    "one-over-stays": ("g (float[N,3] x) => (float[N,3] y) <float z = {1.0}> { y = Div (z, x) }", ["Div"]),
    "where-always": (
        "g (float[2,3] x, float[3] z) => (float[2,3] y) <bool c = {1}> { a = Where (c, x, z) y = Neg (a) }",
        ["Neg"],
    ),
    "neg-twice": ("g (float[2,3] x) => (float[2,3] y) { a = Neg (x) b = Neg (a) y = Relu (b) }", ["Relu"]),
    "relu-twice": (
        "g (float[2,3] x) => (float[2,3] y) { a = Relu (x) b = Relu (a) y = Neg (b) }",
        ["Relu", "Neg"],
    ),
    "reduce-nothing": (
        "g (float[2,1,3] x) => (float[2,1,3] y) <int64[1] a = {1}> { b = ReduceMean (x, a) y = Neg (b) }",
        ["Neg"],
    ),
    "reduce-squeezing-stays": (
        "g (float[2,1,3] x) => (float[2,3] y) <int64[1] a = {1}> { y = ReduceMean <keepdims = 0> (x, a) }",
        ["ReduceMean"],
    ),
    "unread-indices": (
        ("g (float[1,1,4,4] x) => (float[1,1,2,2] y)"
        " { y, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) }"),
        ["MaxPool"],
    ),
    "slice-default-inputs": (
        ("g (float[4,5] x) => (float[3,5] y)"
        " <int64[1] s = {1}, int64[1] e = {4}, int64[1] a = {0}, int64[1] t = {1}>"
        " { y = Slice (x, s, e, a, t) }"),
        ["Slice"],
    ),
    "add-gathered-zeros": (
        ("g (float[N,2] x, int64[2] i) => (float[N,2] y)"
        " <float[3] t = {0.0, 0.0, 0.0}> { b = Gather (t, i) a = Add (x, b) y = Neg (a) }"),
        ["Neg"],
    ),
    "pad-into-conv": (
        ("g (float[1,1,5,5] x) => (float[1,1,5,5] y)"
        " <int64[8] p = {0, 0, 1, 0, 0, 0, 0, 1},"
        " float[1,1,3,3] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0}>"
        " { a = Pad (x, p) y = Conv <pads = [0, 1, 1, 0]> (a, w) }"),
        ["Conv"],
    ),
    "pad-with-ones-stays": (
        ("g (float[1,1,4,4] x) => (float[1,1,4,4] y)"
        " <int64[2] p = {1, 1}, float v = {1.0}, int64[1] t = {-2}, float[1,1,3,1] w = {1.0, 2.0, 3.0}>"
        " { a = Pad (x, p, v, t) y = Conv (a, w) }"),
        ["Pad", "Conv"],
    ),
    "slices-of-two-axes": (
        (
            "g (float[4,6] x) => (float[2,3] y, float[2,2] z)"
            " <int64[1] s = {0}, int64[1] e = {9}, int64[1] m = {-2},"
            " int64[1] one = {1}, int64[1] zero = {0}, int64[1] last = {-1}, int64[1] two = {2}>"
            " { a = Slice (x, s, e, zero, two) y = Slice (a, s, e, last, two) z = Slice (a, m, e, one) }"
        ),
        ["Slice", "Slice"],
    ),
    "slices-with-another-reader": (
        (
            "g (float[4,6] x) => (float[2,3] y, float[2,6] z)"
            " <int64[1] s = {0}, int64[1] e = {9}, int64[1] one = {1},"
            " int64[1] zero = {0}, int64[1] two = {2}>"
            " { a = Slice (x, s, e, zero, two) y = Slice (a, s, e, one, two) z = Neg (a) }"
        ),
        ["Slice", "Slice", "Neg"],
    ),
    "if-bodies": (
        ("g (float[2,3] x, bool c) => (float[2,3] y) {"
        " h = Identity (x)"
        " y = If (c) <then_branch = t () => (float[2,3] p)"
        " { i = Identity (h) j = Cast <to = 1> (i) p = Neg (j) },"
        " else_branch = e () => (float[2,3] q) { q = Identity (h) }> }"),
        ["If", "Neg", "Identity"],
    ),
}  # fmt: skip
