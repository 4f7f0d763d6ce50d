"""Attention in one operator: ONNX's Attention and RotaryEmbedding, and their kin of com.microsoft.

Queries have H = KV * rep heads of D dims, keys KV heads of D, values KV heads of Dv; a query head reads the
keys of head h // rep. The scale is 1 / sqrt(D) unless it is given, and stays that of the original: it is made
explicit where head dims go.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from graphopt.ir.channels.types import ChannelRule
from graphopt.ir.semantics import MICROSOFT_DOMAIN

if TYPE_CHECKING:
    from graphopt.ir.channels.cutting import NodeCut
    from graphopt.ir.channels.slots import Array
    from graphopt.ir.channels.view import NodeView


class _Heads:
    """Heads of an attention as slots: key heads [KV], repeats [rep], query heads [KV * rep]."""

    def __init__(self, view: NodeView, query_heads: int, key_heads: int) -> None:
        self.view = view
        self.counts = (query_heads, key_heads)
        self.keys = view.fresh(key_heads)
        repeats = query_heads // max(key_heads, 1)
        self.queries = view.outer([self.keys, view.fresh(repeats)], [key_heads, repeats])

    def tie(self, axis: Array | None, dim: Array | None, size: int, *, query: bool) -> None:
        """State that *axis* lists the dims of one head behind those of another."""
        heads = self.queries if query else self.keys
        self.view.same(axis, self.view.outer([heads, dim], [self.counts[0 if query else 1], size]))


def _mark(view: NodeView, heads: _Heads, *dims: Array | None) -> None:
    view.mark(heads.queries, "heads")
    for dim in dims:
        view.mark(dim, "head_dims")


def _attention(view: NodeView) -> None:
    """Q, K, V are [B, heads, S, D] or [B, S, heads * D]; mask, past keys and values; Y, present ones, QK."""
    flat = len(view.shape(0)) == 3
    if flat:
        query_heads, key_heads = view.attribute("q_num_heads", 0), view.attribute("kv_num_heads", 0)
    else:
        query_heads, key_heads = view.shape(0)[1], view.shape(1)[1]
    if min(query_heads, key_heads) < 1 or query_heads % key_heads:
        view.lock_inputs("its numbers of heads do not fit")
        return
    heads = _Heads(view, query_heads, key_heads)
    size, value_size = view.shape(1)[-1], view.shape(2)[-1]
    if flat:
        size, value_size = size // key_heads, value_size // key_heads
    dims, value_dims = view.fresh(size), view.fresh(value_size)
    for index, dim, width in ((0, dims, size), (1, dims, size), (2, value_dims, value_size)):
        axes = view.axes(index)
        if flat:
            heads.tie(axes[2], dim, width, query=index == 0)
        else:
            view.same(axes[1], heads.queries if index == 0 else heads.keys)
            view.same(axes[3], dim)
        view.lock(axes[1 if flat else 2], "attends along it")
        view.lock(axes[0], "one of its samples")
    if view.has(3):
        _mask_at(view, 3, len(view.shape(3)) - 3, heads.queries)
    for index, dim in ((4, dims), (5, value_dims)):
        if view.has(index):
            axes = view.axes(index)
            view.same(axes[1], heads.keys, "holds a cache that is given in full")
            view.same(axes[3], dim, "holds a cache that is given in full")
    view.summed(0, 2 if flat else 3)
    _mark(view, heads, dims, value_dims)
    view.emit(
        [None, None, view.outer([heads.queries, value_dims], [query_heads, value_size])]
        if flat
        else [None, heads.queries, None, value_dims]
    )
    view.emit([None, heads.keys, None, dims], 1)
    view.emit([None, heads.keys, None, value_dims], 2)
    view.emit([None, heads.queries, None, None], 3)


def _set_attention(cut: NodeCut) -> None:
    flat = len(cut.shape(0)) == 3
    keys = cut.shape(1)[-1] // cut.attribute("kv_num_heads", 1) if flat else cut.shape(1)[-1]
    if cut.attribute("scale") is None:
        cut.set_attribute("scale", 1.0 / math.sqrt(keys))
    if flat:
        for name, index in (("q_num_heads", 0), ("kv_num_heads", 1)):
            cut.set_attribute(name, cut.groups(index, 2, cut.attribute(name)))


def _lock_rest(view: NodeView, first: int) -> None:
    view.lock_inputs("is bound to positions", range(first, len(view.node.inputs)))


def _multi_head(view: NodeView) -> None:
    """com.microsoft: Q [B, S, H * D], K and V likewise or absent in packed forms; bias [3 * H * D]."""
    count = view.attribute("num_heads", 0)
    if not all(view.has(index) and len(view.shape(index)) == 3 for index in range(3)) or not count:
        view.lock_inputs("packs queries, keys and values")
        return
    heads = _Heads(view, count, count)
    size, value_size = view.shape(0)[2] // count, view.shape(2)[2] // count
    dims, value_dims = view.fresh(size), view.fresh(value_size)
    whole, whole_value = (
        view.outer([heads.keys, dim], [count, width])
        for dim, width in ((dims, size), (value_dims, value_size))
    )
    for index in range(3):
        axes = view.axes(index)
        view.same(axes[2], whole_value if index == 2 else whole)
        for axis in axes[:2]:
            view.lock(axis, "attends along it")
    if view.has(3):
        parts = [whole, whole, whole_value]
        sizes = (count * size, count * size, count * value_size)
        view.same(view.axes(3)[0], _join(parts, sizes))
        view.recurs(3, 0)
    view.lock_inputs("masks by position", (4,))
    if view.has(5):
        _mask_at(view, 5, 1, heads.keys)
    for index, dim in ((6, dims), (7, value_dims)):
        if view.has(index):
            axes = view.axes(index)
            view.same(axes[1], heads.keys, "holds a cache that is given in full")
            view.same(axes[3], dim, "holds a cache that is given in full")
    _lock_rest(view, 8)
    view.summed(0, 2)
    _mark(view, heads, dims, value_dims)
    view.emit([None, None, whole_value])
    view.emit([None, heads.keys, None, dims], 1)
    view.emit([None, heads.keys, None, value_dims], 2)
    view.emit([None, heads.keys, None, None], 3)


def _join(parts: list[Array | None], sizes: tuple[int, ...]) -> Array | None:
    if all(part is None for part in parts):
        return None
    return np.concatenate(
        [np.zeros(size, np.int64) if part is None else part for part, size in zip(parts, sizes, strict=True)]
    )


def _mask_at(view: NodeView, index: int, position: int, heads: Array | None) -> None:
    """Tie dim *position* of a mask to the heads, unless it is one for all of them."""
    dims = view.shape(index)
    for k, axis in enumerate(view.axes(index)):
        if k == position and dims[k] != 1:
            view.same(axis, heads)
        else:
            view.lock(axis, "masks by position")


def _set_multi_head(cut: NodeCut) -> None:
    count = cut.attribute("num_heads", 1)
    if not cut.attribute("scale", 0.0):
        cut.set_attribute("scale", 1.0 / math.sqrt(cut.shape(0)[2] // count))
    cut.set_attribute("num_heads", cut.groups(0, 2, count))


def _grouped_query(view: NodeView) -> None:
    """com.microsoft: Q [B, S, H * D], or packed with keys and values; heads go, head dims stay.

    The kernel asks for head sizes that its vectors divide, and its rotation for whole pairs.
    """
    query_heads, key_heads = view.attribute("num_heads", 0), view.attribute("kv_num_heads", 0)
    if min(query_heads, key_heads) < 1 or query_heads % key_heads:
        view.lock_inputs("its numbers of heads do not fit")
        return
    heads = _Heads(view, query_heads, key_heads)
    packed = not view.has(1)
    size = view.shape(0)[2] // (query_heads + 2 * key_heads if packed else query_heads)
    queries = view.outer([heads.queries, None], [query_heads, size])
    keys = view.outer([heads.keys, None], [key_heads, size])
    if packed:
        sizes = (query_heads * size, key_heads * size, key_heads * size)
        view.same(view.axes(0)[2], _join([queries, keys, keys], sizes))
    else:
        view.same(view.axes(0)[2], queries)
        for index in (1, 2):
            view.same(view.axes(index)[2], keys)
    for index in range(1 if packed else 3):
        for axis in view.axes(index)[:2]:
            view.lock(axis, "attends along it")
    for index in (3, 4):
        if view.has(index):
            axes = view.axes(index)
            view.same(axes[1], heads.keys, "holds a cache that is given in full")
            view.lock(axes[3], "must keep its head size")
    _lock_rest(view, 5)
    view.summed(0, 2)
    _mark(view, heads)
    view.emit([None, None, queries])
    view.emit([None, heads.keys, None, None], 1)
    view.emit([None, heads.keys, None, None], 2)


def _set_grouped_query(cut: NodeCut) -> None:
    query_heads, key_heads = cut.attribute("num_heads"), cut.attribute("kv_num_heads")
    if cut.has(1):
        cut.set_attribute("num_heads", cut.groups(0, 2, query_heads))
        cut.set_attribute("kv_num_heads", cut.groups(1, 2, key_heads))
        return
    keep = cut.keep(0, 2)
    if keep is None:
        return
    rows = keep.reshape(query_heads + 2 * key_heads, -1).any(axis=1)
    cut.set_attribute("num_heads", int(rows[:query_heads].sum()))
    cut.set_attribute("kv_num_heads", int(rows[query_heads : query_heads + key_heads].sum()))


def _packed_attention(view: NodeView) -> None:
    """com.microsoft Attention: X [B, S, I] times W [I, H * D + H * D + H * Dv], then attention."""
    count = view.attribute("num_heads", 0)
    columns = view.shape(1)[1]
    sizes = tuple(view.attribute("qkv_hidden_sizes") or [columns // 3] * 3)
    if not count or any(size % count for size in sizes) or view.attribute("do_rotary", 0):
        view.lock_inputs("its sizes do not fit its heads")
        return
    heads = _Heads(view, count, count)
    size, value_size = sizes[0] // count, sizes[2] // count
    dims, value_dims = view.fresh(size), view.fresh(value_size)
    whole = view.outer([heads.keys, dims], [count, size])
    values = view.outer([heads.keys, value_dims], [count, value_size])
    view.contract(0, 2, 1, 0)
    made = view.axes(1)[1]
    view.same(made, _join([whole, whole, values], sizes))
    view.produces(1, made)
    if view.has(2):
        view.same(made, view.axes(2)[0])
    for axis in view.axes(0)[:2]:
        view.lock(axis, "attends along it")
    view.lock_inputs("masks by position", (3, 4, 6))
    if view.has(5):
        _mask_at(view, 5, 1, heads.keys)
    _mark(view, heads, dims, value_dims)
    view.emit([None, None, values])
    view.emit_nothing(1)
    view.recurs(1, 1)
    if view.has(2):
        view.recurs(2, 0)


def _set_packed_attention(cut: NodeCut) -> None:
    count = cut.attribute("num_heads", 1)
    columns = cut.shape(1)[1]
    sizes = list(cut.attribute("qkv_hidden_sizes") or [columns // 3] * 3)
    keep = cut.keep(1, 1)
    if keep is None:
        return
    if not cut.attribute("scale", 0.0):
        cut.set_attribute("scale", 1.0 / math.sqrt(sizes[0] // count))
    bounds = np.cumsum([0, *sizes])
    cut.set_attribute("num_heads", int(keep[: sizes[0]].reshape(count, -1).any(axis=1).sum()))
    cut.set_attribute("qkv_hidden_sizes", [int(keep[bounds[k] : bounds[k + 1]].sum()) for k in range(3)])


def _rotary(view: NodeView) -> None:
    """X [B, H, S, D] or [B, S, H * D]; pairs of dims turn together, by tables [positions, D / 2]."""
    microsoft = view.node.domain == MICROSOFT_DOMAIN
    cos, sin, positions = (2, 3, 1) if microsoft else (1, 2, 3)
    axes, shape = view.axes(0), view.shape(0)
    count = view.attribute("num_heads", 0)
    partial = view.attribute("rotary_embedding_dim", 0)
    size = shape[3] if len(shape) == 4 else shape[2] // count if count else 2 * view.shape(cos)[-1]
    if view.has(positions):
        view.lock_inputs("says the position", (positions,))
    for axis in (axes[0], axes[-2 if len(shape) == 4 else 1]):
        view.lock(axis, "has a position each")
    for index in (cos, sin):
        for axis in view.axes(index)[:-1]:
            view.lock(axis, "says the position")
    if partial or shape[-1] % max(size, 1):
        view.lock(axes[-1], "turns a part of it")
        view.emit([*axes[:-1], None])
        return
    dims = axes[3] if len(shape) == 4 else view.split(axes[2], (shape[2] // size, size))[1]
    if dims is not None:
        if view.attribute("interleaved", 0):
            pairs, side = view.split(dims, (size // 2, 2))
        else:
            side, pairs = view.split(dims, (2, size // 2))
        view.lock(side, "turns pairs of dims")
        for index in (cos, sin):
            view.same(pairs, view.axes(index)[-1])
    view.emit(axes)


def _set_rotary(cut: NodeCut) -> None:
    count = cut.attribute("num_heads", 0)
    if count and len(cut.shape(0)) == 3:
        cut.set_attribute("num_heads", cut.groups(0, 2, count))


RULES = [
    ChannelRule("Attention", _attention, _set_attention),
    ChannelRule("RotaryEmbedding", _rotary, _set_rotary),
    ChannelRule("RotaryEmbedding", _rotary, _set_rotary, MICROSOFT_DOMAIN),
    ChannelRule("MultiHeadAttention", _multi_head, _set_multi_head, MICROSOFT_DOMAIN),
    ChannelRule("GroupQueryAttention", _grouped_query, _set_grouped_query, MICROSOFT_DOMAIN),
    ChannelRule("Attention", _packed_attention, _set_packed_attention, MICROSOFT_DOMAIN),
]
