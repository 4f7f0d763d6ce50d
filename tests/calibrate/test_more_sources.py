"""Sources besides .npz: .npy, lists of feeds, images prepared as a recipe says, Python functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from graphopt.calibrate.sources import SourceRequest, open_source
from graphopt.errors import DataError, GraphoptError, OptionError
from graphopt.ir.lower import lower
from graphopt.pipeline.recipe import parse_recipe, recipe_text
from graphopt.runtime.feeds import input_specs
from tests.passes.harness import parse

if TYPE_CHECKING:
    from pathlib import Path

    from graphopt.calibrate.sources import DataSource

IMAGES = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 3, h, w] image) => (float[1, 3, h, w] y) { y = Relu(image) }
"""
ROWS = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 2] x) => (float[n, 2] y) { y = Relu(x) }
"""


def source(text: str, model: str = ROWS, **about: Any) -> DataSource:
    return open_source(SourceRequest(text, input_specs(lower(parse(model))), **about))


def test_npy_files_are_one_feed_each(tmp_path: Path) -> None:
    for index in (10, 2, 1):
        np.save(tmp_path / f"{index:02}.npy", np.full((index, 2), index, np.float32))
    found = [feed["x"] for feed in source(str(tmp_path))]
    assert [len(array) for array in found] == [1, 2, 10]  # type: ignore[arg-type]
    np.save(tmp_path / "wrong.npy", np.zeros((1, 3), np.float32))
    with pytest.raises(DataError, match=r"wrong\.npy"):
        source(str(tmp_path))


def test_an_npz_may_list_feeds_of_different_shapes(tmp_path: Path) -> None:
    path = tmp_path / "feeds.npz"
    np.savez(path, **{f"{k}/x": np.full((k + 1, 2), k, np.float32) for k in range(11)})  # type: ignore[arg-type]
    found = source(str(path), samples=10)
    assert [feed["x"].shape for feed in found] == [(k + 1, 2) for k in range(10)]  # type: ignore[union-attr]
    assert len(found) == 10


def test_images_become_inputs_as_the_recipe_says(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    table = {
        "crop": [4, 6],
        "scale": 1 / 255,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "order": "bgr",
    }
    (feed,) = source(str(tmp_path), IMAGES, preprocess=table)
    cut = pixels[2:6, 3:9, ::-1].astype(np.float64) / 255
    expected = ((cut - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(feed["image"], expected, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]
    (feed,) = source(str(tmp_path), IMAGES, preprocess={"resize": 4})
    assert feed["image"].shape == (1, 3, 4, 6)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("table", "kind", "words"),
    [
        (None, DataError, "preprocess"),
        ({"crop": 100}, DataError, "does not fit"),
        ({"cropp": 4}, OptionError, "cropp"),
        ({"layout": "NHWC"}, DataError, r"a\.png"),
    ],
)
def test_bad_preprocessing_says_why(
    table: dict[str, Any] | None, kind: type[GraphoptError], words: str, tmp_path: Path
) -> None:
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(kind, match=words):
        source(str(tmp_path), IMAGES, preprocess=table)


def test_a_recipe_keeps_its_preprocess_table() -> None:
    text = '[[pass]]\nname = "canonicalize"\n\n[preprocess]\n'
    text += 'resize = 256\nmean = [0.5, 0.25, 1]\norder = "bgr"\n'
    recipe = parse_recipe(text)
    assert recipe.preprocess == {"resize": 256, "mean": [0.5, 0.25, 1], "order": "bgr"}
    assert parse_recipe(recipe_text(recipe)) == recipe


def test_a_function_yields_feeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_feeds.py").write_text(
        "import numpy as np\n"
        "def good():\n    for k in range(3):\n        yield {'x': np.full((k + 1, 2), k, np.float32)}\n"
        "def bad():\n    yield {'x': np.zeros((1, 2))}\n"
        "def broken():\n    raise RuntimeError('no camera')\n"
        "def empty():\n    return []\n"
    )
    monkeypatch.chdir(tmp_path)
    found = source("my_feeds:good")
    assert len(found) == len(list(found)) == len(list(found)) == 3
    assert source("my_feeds:good", samples=2).identity != found.identity
    for name, words in (("bad", "float"), ("broken", "no camera"), ("empty", "no feeds")):
        with pytest.raises(DataError, match=words):
            source(f"my_feeds:{name}")
    with pytest.raises(OptionError, match="no function"):
        source("my_feeds:absent")
    with pytest.raises(OptionError, match="cannot be imported"):
        source("no_such_module_here:good")
