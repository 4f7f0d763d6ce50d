"""Every kind of data, and every way in which it can be wrong: found before anything runs."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from graphopt.calibrate.npz import read_headers
from graphopt.calibrate.sources import BUILT_IN, DataSource, SourceRequest, open_source
from graphopt.errors import DataError, GraphoptError, OptionError, PathError
from graphopt.runtime.feeds import InputSpec
from tests.examples import examples

if TYPE_CHECKING:
    from pathlib import Path

X = InputSpec("x", "float32", ("batch", 3))
IDS = InputSpec("ids", "int64", (1,))
RNG = np.random.default_rng(0)


def request(text: object, *specs: InputSpec, **more: object) -> SourceRequest:
    return SourceRequest(str(text), specs or (X,), **more)  # type: ignore[arg-type]  # passed through


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub mixes up its flag with the arrays
    return path


def feeds_of(text: object, *specs: InputSpec, **more: object) -> list[dict[str, object]]:
    source = open_source(request(text, *specs, **more))
    feeds = list(source)
    assert len(feeds) == len(source)
    again = list(source)
    assert repr(again) == repr(feeds)  # as often as needed
    return feeds  # type: ignore[return-value]  # a wider value type


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_feed_i_is_a_slice_where_the_ranks_are_equal(tmp_path: Path, order: str, compressed: bool) -> None:
    a = np.asarray(RNG.standard_normal((5, 3)).astype(np.float32), order=order)  # type: ignore[call-overload]  # C or F
    (np.savez_compressed if compressed else np.savez)(tmp_path / "d.npz", x=a)
    feeds = feeds_of(tmp_path / "d.npz")
    assert len(feeds) == 5
    for i, feed in enumerate(feeds):
        np.testing.assert_array_equal(feed["x"], a[i : i + 1])


@pytest.mark.parametrize("order", ["C", "F"])
def test_feed_i_is_an_element_where_the_array_has_one_more_axis(tmp_path: Path, order: str) -> None:
    a = np.asarray(RNG.standard_normal((4, 2, 3)).astype(np.float32), order=order)  # type: ignore[call-overload]  # C or F
    feeds = feeds_of(save(tmp_path / "d.npz", x=a))
    assert len(feeds) == 4
    for i, feed in enumerate(feeds):
        np.testing.assert_array_equal(feed["x"], a[i])


@settings(max_examples=examples(40), deadline=None)
@given(
    st.integers(1, 6),
    st.lists(st.integers(0, 4), max_size=3),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["float32", ">f4", "int64", "bool", "uint8", "float16"]),
    st.integers(1, 8),
)
def test_streamed_samples_equal_numpy_indexing(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    shape: list[int],
    fortran: bool,
    stacked: bool,
    dtype: str,
    samples: int,
) -> None:
    a = np.asarray(RNG.integers(0, 2, (count, *shape)).astype(dtype), order="F" if fortran else "C")
    path = save(tmp_path_factory.mktemp("d") / "d.npz", x=a)
    rank = len(shape) if stacked else len(shape) + 1
    spec = InputSpec("x", np.dtype(dtype).name, (None,) * rank)
    feeds = feeds_of(path, spec, samples=samples)
    assert len(feeds) == min(count, samples)
    for i, feed in enumerate(feeds):
        np.testing.assert_array_equal(feed["x"], a[i] if stacked else a[i : i + 1])
        assert feed["x"].dtype == np.dtype(dtype).newbyteorder("=")  # type: ignore[attr-defined]  # an array


def test_a_scalar_goes_with_every_feed_and_scalars_stack(tmp_path: Path) -> None:
    sr = InputSpec("sr", "int64", ())
    x = np.zeros((2, 3), np.float32)
    feeds = feeds_of(save(tmp_path / "a.npz", x=x, sr=np.array(16000)), X, sr)
    assert [feed["sr"] for feed in feeds] == [16000, 16000]
    feeds = feeds_of(save(tmp_path / "b.npz", x=x, sr=np.array([8000, 16000])), X, sr)
    assert [feed["sr"] for feed in feeds] == [8000, 16000]


def test_strings_and_low_precision(tmp_path: Path) -> None:
    words, brain, four = (
        InputSpec(n, d, (2,)) for n, d in (("w", "string"), ("b", "bfloat16"), ("f", "int4"))
    )
    path = save(
        tmp_path / "d.npz",
        w=np.array([["a", "ü"], ["c", ""]]),
        b=np.array([[1, -2], [3, 4]]).astype(ml_dtypes.bfloat16),
        f=np.array([[1, -8], [3, 7]]).astype(ml_dtypes.int4),
    )
    feed = feeds_of(path, words, brain, four)[0]
    assert list(feed["w"]) == ["a", "ü"]  # type: ignore[call-overload]  # an array
    assert feed["b"].dtype == ml_dtypes.bfloat16  # type: ignore[attr-defined]  # an array
    np.testing.assert_array_equal(feed["b"].astype(np.float32), [1, -2])  # type: ignore[attr-defined]  # an array
    np.testing.assert_array_equal(feed["f"].astype(np.int8), [1, -8])  # type: ignore[attr-defined]  # an array


def test_inputs_with_a_default_may_be_left_out(tmp_path: Path) -> None:
    extra = InputSpec("w", "float32", (2,), has_default=True)
    path = save(tmp_path / "d.npz", x=np.zeros((1, 3), np.float32))
    assert set(feeds_of(path, X, extra)[0]) == {"x"}


def test_samples_takes_the_first_and_warns_where_there_are_fewer(tmp_path: Path) -> None:
    a = np.arange(12, dtype=np.float32).reshape(4, 3)
    path = save(tmp_path / "d.npz", x=a)
    source = open_source(request(path, samples=2))
    assert source.warnings == ()
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in source]), a[:2])
    source = open_source(request(path, samples=9))
    assert len(source) == 4
    assert source.warnings == ("9 samples were asked for, the data holds 4",)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "no array for the input 'x', the arrays are none"),
        ({"y": np.zeros((2, 3), np.float32)}, "no array for the input 'x', the arrays are 'y'"),
        (
            {"x": np.zeros((2, 3), np.float32), "xx": np.zeros(2)},
            "the model has no input 'xx'. Did you mean 'x'?",
        ),
        ({"x": np.zeros((2, 3))}, "expected float32 for the input float32[batch,3], got float64. Convert it"),
        ({"x": np.zeros((2, 3), np.int64)}, "expected float32 for the input float32[batch,3], got int64"),
        ({"x": np.zeros((2, 3), ml_dtypes.bfloat16)}, "ONNX has no element type 'void16'"),
        ({"x": np.zeros((2, 3), "datetime64[s]")}, "ONNX has no element type 'datetime64[s]'"),
        ({"x": np.zeros(3, np.float32)}, "expected rank 2 or 3 (float32[batch,3]), got rank 1 [3]"),
        ({"x": np.zeros((1, 2, 3, 4), np.float32)}, "got rank 4 [1, 2, 3, 4]"),
        ({"x": np.zeros((2, 4), np.float32)}, "expected 3 in dim 1 of a sample (float32[batch,3]), got 4"),
        ({"x": np.zeros((0, 3), np.float32)}, "the arrays hold no samples"),
        ({"x": np.array([[0, 1, np.nan]], np.float32)}, "the values hold NaN or infinity"),
        ({"x": np.array([[0, 1, -np.inf]], np.float32)}, "the values hold NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    path = save(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError) as caught:
        open_source(request(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3


def test_object_arrays_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.array([[1.0], [2.0, 3.0]], object), allow_pickle=True)
    with pytest.raises(DataError, match="holds Python objects, which are never unpickled"):
        open_source(request(path))


def test_nan_behind_the_samples_taken_does_no_harm(tmp_path: Path) -> None:
    a = np.zeros((3, 3), np.float32)
    a[2, 0] = np.nan
    path = save(tmp_path / "d.npz", x=a)
    assert len(open_source(request(path, samples=2))) == 2
    with pytest.raises(DataError):
        open_source(request(path))


def test_lengths_that_differ_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=np.zeros((2, 3), np.float32), ids=np.zeros((4, 1), np.int64))
    with pytest.raises(DataError, match="differ in their number of samples: x has 2, ids has 4"):
        open_source(request(path, X, IDS))


def test_a_fixed_batch_is_told_how_to_stack(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=np.zeros((8, 3), np.float32))
    with pytest.raises(DataError, match=r"expected 4 in dim 0.*got 1. .*stack feeds of 4"):
        open_source(request(path, InputSpec("x", "float32", (4, 3))))


def test_bound_dims_are_checked(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=np.zeros((8, 3), np.float32))
    with pytest.raises(DataError, match="expected 2 in dim 0"):
        open_source(request(path, dims={"batch": 2}))


@pytest.mark.parametrize("content", [b"", b"no zip file", b"PK\x03\x04 broken"])
def test_files_that_are_no_npz(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"not an \.npz file, or damaged"):
        open_source(request(path))


@pytest.mark.parametrize("compressed", [False, True])
def test_every_truncation_is_one_error(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "d.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=RNG.standard_normal((50, 3)).astype(np.float32))
    whole = path.read_bytes()
    for cut in range(0, len(whole), 37):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError):
            open_source(request(path))


@settings(max_examples=examples(150), deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_never_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: int
) -> None:
    path = tmp_path_factory.mktemp("d") / "d.npz"
    np.savez_compressed(path, x=np.linspace(0, 1, 60, dtype=np.float32).reshape(20, 3))
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] ^= change
    path.write_bytes(raw)
    with contextlib.suppress(GraphoptError):
        list(open_source(request(path)))


def test_samples_are_streamed(tmp_path: Path) -> None:
    spec = InputSpec("x", "float32", (1, 1024, 64))
    path = save(tmp_path / "d.npz", x=np.zeros((256, 1024, 64), np.float32))  # 64 MiB
    tracemalloc.start()
    try:
        assert sum(1 for _ in open_source(request(path, spec))) == 256
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20


def test_folder_has_one_feed_a_file_in_order(tmp_path: Path) -> None:
    spec = InputSpec("x", "float32", (None, 3))
    for name, length in (("b", 7), ("a", 5), ("c", 0)):
        save(tmp_path / f"{name}.npz", x=np.zeros((length, 3), np.float32))
    (tmp_path / "notes.txt").write_text("ignored")
    assert [feed["x"].shape[0] for feed in feeds_of(tmp_path, spec)] == [5, 7, 0]  # type: ignore[attr-defined]  # arrays
    assert len(feeds_of(tmp_path, spec, samples=2)) == 2


def test_folder_names_the_file_that_does_not_fit(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", x=np.zeros((1, 3), np.float32))
    save(tmp_path / "b.npz", x=np.zeros((1, 4), np.float32))
    with pytest.raises(DataError, match=r"b\.npz, input 'x': expected 3 in dim 1"):
        open_source(request(tmp_path))


def test_folder_feeds_sequences_and_optionals(tmp_path: Path) -> None:
    items = InputSpec("s", "float32", (None,), kind="sequence")
    maybe = InputSpec("o", "float32", (2,), kind="optional")
    arrays = {f"s[{k}]": np.full(k + 1, k, np.float32) for k in range(11)}
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]  # as in save
    feed = feeds_of(tmp_path, items, maybe)[0]
    assert [array.shape[0] for array in feed["s"]] == list(range(1, 12))  # type: ignore[attr-defined]  # a list
    assert feed["o"] is None
    with pytest.raises(DataError, match=r"its arrays are s\[0\]"):
        open_source(request(save(tmp_path / "b.npz", s=np.zeros((2, 1), np.float32)), items))


@pytest.mark.parametrize("direct", [False, True])
def test_onnx_test_data(tmp_path: Path, direct: bool) -> None:
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    x = RNG.standard_normal((2, 3)).astype(np.float32)
    items = [np.ones(2, np.float32), np.zeros(1, np.float32)]
    (folder / "input_0.pb").write_bytes(numpy_helper.from_array(x).SerializeToString())
    (folder / "input_1.pb").write_bytes(numpy_helper.from_list(items).SerializeToString())
    (folder / "input_2.pb").write_bytes(numpy_helper.from_array(np.array(["ü"], object)).SerializeToString())
    specs = (X, InputSpec("s", "float32", (None,), kind="sequence"), InputSpec("w", "string", (1,)))
    feed = feeds_of(folder if direct else tmp_path, *specs)[0]
    np.testing.assert_array_equal(feed["x"], x)
    for got, item in zip(feed["s"], items, strict=True):  # type: ignore[call-overload]  # a list
        np.testing.assert_array_equal(got, item)
    assert list(feed["w"]) == ["ü"]  # type: ignore[call-overload]  # an array
    (folder / "input_0.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(DataError, match="not a serialized float32"):
        open_source(request(tmp_path, *specs))


def test_random_feeds_are_seeded_and_warned_about() -> None:
    one = feeds_of("random:3", seed=1)
    other = feeds_of("random:3", seed=2)
    assert len(one) == 3
    assert one[0]["x"].shape == (1, 3)  # type: ignore[attr-defined]  # an array
    assert not np.array_equal(one[0]["x"], other[0]["x"])
    assert not np.array_equal(one[0]["x"], one[1]["x"])
    assert "random" in open_source(request("random:3")).warnings[0]
    assert len(open_source(request("random:8", samples=2))) == 2


@pytest.mark.parametrize("text", ["random:", "random:x", "random:0", "random:-1", "random:1.5"])
def test_malformed_random(text: str) -> None:
    with pytest.raises(OptionError, match="expected random:N"):
        open_source(request(text))


def test_random_complex_numbers_are_refused_at_once() -> None:
    with pytest.raises(DataError, match="makes up no values"):
        open_source(request("random:1", InputSpec("x", "complex64", (1,))))


def test_samples_below_one() -> None:
    with pytest.raises(OptionError, match="at least 1 sample"):
        open_source(request("random:1", samples=0))


@pytest.mark.parametrize("name", ["none.npz", "none", "d.csv"])
def test_a_missing_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(PathError) as caught:
        open_source(request(tmp_path / name))
    assert caught.value.exit_code == 2


def test_an_empty_folder_and_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither \.npz files nor"):
        open_source(request(tmp_path))
    (tmp_path / "d.csv").write_text("1,2")
    with pytest.raises(DataError, match="of no kind that can be read"):
        open_source(request(tmp_path / "d.csv"))


def test_relative_paths_start_at_the_base(tmp_path: Path) -> None:
    save(tmp_path / "d.npz", x=np.zeros((1, 3), np.float32))
    assert len(feeds_of("d.npz", base_dir=tmp_path)) == 1


def test_sources_of_plugins_come_behind_the_built_in_ones(tmp_path: Path) -> None:
    def mine(asked: SourceRequest) -> DataSource | None:
        return open_source(request("random:7")) if asked.text.startswith(("mine:", "random:")) else None

    assert len(open_source(request("mine:x"), [mine])) == 7
    assert len(open_source(request("random:2"), [mine])) == 2
    assert list(BUILT_IN) == ["random", "npz", "folder", "onnx-test", "npy", "images", "callable"]
    with pytest.raises(PathError):
        open_source(request(tmp_path / "other:x"), [mine])


def test_identity_follows_the_contents_and_not_the_place(tmp_path: Path) -> None:
    a, b = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    (tmp_path / "other").mkdir()
    first = open_source(request(save(tmp_path / "d.npz", x=a))).identity
    assert open_source(request(save(tmp_path / "other" / "d.npz", x=a))).identity == first
    assert open_source(request(tmp_path / "d.npz", samples=1)).identity != first
    assert open_source(request(save(tmp_path / "d.npz", x=b))).identity != first
    assert open_source(request("random:2")).identity != open_source(request("random:2", seed=1)).identity


def test_headers_are_read_without_the_data(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", **{"a/b": np.zeros((2, 3), np.float16)})
    header = read_headers(path)["a/b"]
    assert (header.shape, header.dtype) == ((2, 3), np.dtype(np.float16))


def test_tensor_protos_of_the_installed_onnx_round_trip(tmp_path: Path) -> None:
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    value = np.array([[1.5, np.nan]], np.float16)  # the suite feeds NaN on purpose
    (folder / "input_0.pb").write_bytes(onnx.numpy_helper.from_array(value).SerializeToString())
    feed = feeds_of(tmp_path, InputSpec("x", "float16", (1, 2)))[0]
    np.testing.assert_array_equal(feed["x"], value)
