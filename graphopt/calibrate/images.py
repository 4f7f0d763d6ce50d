"""Feeds from a folder of images, prepared as the ``[preprocess]`` table of a recipe says."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from graphopt.calibrate.arrays import digest
from graphopt.errors import DataError
from graphopt.runtime import dtypes
from graphopt.runtime.feeds import check_feeds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from graphopt.runtime.feeds import Feed, InputSpec

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class Preprocess(BaseModel):
    """How an image becomes an input, in this order.

    Attributes:
        input: The input to feed; the only one that must be fed by default.
        resize: Size of the shorter side in pixels, or [height, width]; none leaves the image as it is.
        crop: Side of a square cut from the centre, or [height, width]; none cuts nothing.
        order: Order of the channels; "gray" has one.
        scale: What pixels of 0 to 255 are multiplied with.
        mean: Subtracted after scaling, one number or one a channel.
        std: What the result is divided by, one number or one a channel.
        layout: Order of the axes.
        dtype: Element type; the input's own by default. Whole numbers are rounded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str | None = None
    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    order: Literal["rgb", "bgr", "gray"] = "rgb"
    scale: float = Field(default=1.0, gt=0)
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: str | None = None


class ImageFolder:
    """One image a feed, in order of the names.

    Args:
        files: The images.
        specs: Inputs of the model.
        preprocess: How they become inputs.
        warnings: What the user should know.
    """

    def __init__(
        self,
        files: Sequence[Path],
        specs: Sequence[InputSpec],
        preprocess: Preprocess,
        warnings: tuple[str, ...],
    ) -> None:
        self.warnings = warnings
        self._files = files
        self._preprocess = preprocess
        self._spec = _input_of(specs, preprocess, files[0].parent)
        for feed, file in zip(self, files, strict=True):
            check_feeds(feed, tuple(specs), where=str(file))

    @cached_property
    def identity(self) -> str:
        """Hash of the files, and how they are prepared."""
        return f"images:{digest(self._files)} {self._preprocess.model_dump_json()}"

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Feed]:
        for file in self._files:
            yield {self._spec.name: self._read(file)}

    def _read(self, file: Path) -> np.ndarray[Any, np.dtype[Any]]:
        from PIL import Image, UnidentifiedImageError

        wanted = self._preprocess
        try:
            with Image.open(file) as opened:
                image: Any = opened.convert("L" if wanted.order == "gray" else "RGB")
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise DataError(f"the image cannot be read ({error})", where=str(file)) from error
        if wanted.resize is not None:
            height, width = _sizes(wanted.resize, image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        if wanted.crop is not None:
            crop = (wanted.crop, wanted.crop) if isinstance(wanted.crop, int) else wanted.crop
            left, top = (image.width - crop[1]) // 2, (image.height - crop[0]) // 2
            if left < 0 or top < 0:
                raise DataError(
                    f"a crop of {list(crop)} does not fit the image of [{image.height}, {image.width}]",
                    where=str(file),
                    hint="Set resize in [preprocess] so that the image is large enough",
                )
            image = image.crop((left, top, left + crop[1], top + crop[0]))
        pixels = np.asarray(image, np.float32)
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        if wanted.order == "bgr":
            pixels = pixels[:, :, ::-1]
        pixels = (pixels * np.float32(wanted.scale) - np.asarray(wanted.mean, np.float32)) / np.asarray(
            wanted.std, np.float32
        )
        if wanted.layout == "NCHW":
            pixels = pixels.transpose(2, 0, 1)
        kind = dtypes.by_name(wanted.dtype or self._spec.dtype)
        prepared = np.rint(pixels) if kind.is_integer else pixels
        return np.ascontiguousarray(prepared.astype(kind.numpy())[None])


def check_pillow(where: str) -> None:
    """Make sure that Pillow is there.

    Raises:
        DataError: It is not.
    """
    try:
        import PIL  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise DataError(
            "images need Pillow, which is not installed", where=where, hint="pip install 'graphopt[images]'"
        ) from error


def _sizes(resize: int | tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(resize, int):
        return resize
    width, height = size
    short = min(width, height)
    return max(1, round(height * resize / short)), max(1, round(width * resize / short))


def _input_of(specs: Sequence[InputSpec], preprocess: Preprocess, where: Path) -> InputSpec:
    if preprocess.input is not None:
        for spec in specs:
            if spec.name == preprocess.input:
                return spec
        raise DataError(f"the model has no input {preprocess.input!r}", where="preprocess.input")
    wanted = [spec for spec in specs if not spec.has_default and not spec.is_optional]
    if len(wanted) != 1:
        raise DataError(
            f"the model has {len(wanted)} inputs to feed, images are one",
            where=str(where),
            hint="Use a folder with one .npz a feed",
        )
    return wanted[0]
