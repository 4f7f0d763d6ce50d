"""Keys by which equal tensors and equal attributes are found, in bounded memory."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as oir

from graphopt.ir import tensors

if TYPE_CHECKING:
    from collections.abc import Hashable

# Read through one buffer of this size, so that weights of any size are hashed in the same memory.
_CHUNK_BYTES = 1 << 20
# A tensor attribute larger than this is told apart by identity; nobody writes weights of nodes that way.
_ATTRIBUTE_BYTES = 1 << 20


def group_key(tensor: oir.TensorProtocol) -> Hashable:
    """Return what equal tensors have in common for sure and costs nothing to know: type, shape, bytes."""
    return (int(tensor.dtype), tuple(tensor.shape.numpy()), _size(tensor))


def _size(tensor: oir.TensorProtocol) -> int:
    # The size of strings is that of their bytes, which are in memory anyway.
    return tensors.nbytes(tensor)


def location_key(tensor: oir.TensorProtocol) -> Hashable:
    """Return the same key for tensors that share their storage: the object, or the range in a file."""
    if isinstance(tensor, oir.ExternalTensor):
        return (str(tensor.path), tensor.offset or 0, tensor.length)
    return id(tensor)


def digest(tensor: oir.TensorProtocol) -> bytes:
    """Return a hash of the bytes of *tensor*; NaN payloads and the sign of zero count.

    The 32 bytes of BLAKE2b make a collision less likely than a fault of the memory.
    """
    state = hashlib.blake2b(digest_size=32)
    if tensor.dtype == oir.DataType.STRING:
        for item in tensors.to_array(tensor).reshape(-1):
            data = item if isinstance(item, bytes) else str(item).encode()
            state.update(struct.pack("<q", len(data)))
            state.update(data)
        return state.digest()
    if isinstance(tensor, oir.ExternalTensor):
        _hash_file(state, tensor)
        return state.digest()
    array = tensors.to_array(tensor)
    if tensor.dtype.bitwidth % 8 or not array.flags.c_contiguous or not np.little_endian:
        # Packed types are kept one element a byte in memory; their bytes in a file are what counts.
        state.update(tensor.tobytes())
    else:
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _CHUNK_BYTES):
            state.update(memoryview(flat[start : start + _CHUNK_BYTES]))
    return state.digest()


def _hash_file(state: hashlib.blake2b, tensor: oir.ExternalTensor) -> None:
    left = tensors.nbytes(tensor)
    buffer = bytearray(min(left, _CHUNK_BYTES))
    with open(tensor.path, "rb") as file:  # noqa: PTH123 - the path is whatever onnx-ir made of it
        file.seek(tensor.offset or 0)
        while left:
            window = memoryview(buffer)[: min(left, len(buffer))]
            count = file.readinto(window)
            if not count:
                break
            state.update(window[:count])
            left -= count


def attribute_key(attribute: oir.Attr) -> Hashable | None:
    """Return a key that equal attributes share, or None where there is none (subgraphs).

    Floats count by their bits: 0.0 and -0.0 differ, NaN equals itself.
    """
    if attribute.is_ref():
        return (attribute.name, "ref", attribute.ref_attr_name, int(attribute.type))
    kinds = oir.AttributeType
    kind, value = attribute.type, attribute.value
    content: Hashable
    if kind == kinds.FLOAT:
        content = struct.pack("<d", value)
    elif kind == kinds.FLOATS:
        content = struct.pack(f"<{len(value)}d", *value)
    elif kind in {kinds.INT, kinds.STRING}:
        content = value
    elif kind in {kinds.INTS, kinds.STRINGS}:
        content = tuple(value)
    elif kind == kinds.TENSOR:
        small = tensors.is_small(value, _ATTRIBUTE_BYTES)
        content = (group_key(value), digest(value) if small else location_key(value))
    else:
        return None
    return (attribute.name, int(kind), content)
