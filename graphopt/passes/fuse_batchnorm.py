"""fuse-batchnorm: fold per-channel scales and shifts into the weights in front of them.

A BatchNormalization with stored statistics is one scale and one shift a channel, and so is what exporters
make of it: Sub, Mul, Div and Add with constants of one number a channel, maybe behind casts and Expand.
All that follow a Conv, ConvTranspose, Gemm or MatMul with constant weights become part of them, computed in
float64 and rounded once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from graphopt.api import Context, Pass, PassInfo, PassOptions, Report

if TYPE_CHECKING:
    from graphopt.ir import Model


class FuseBatchnorm(Pass):
    """Fold BatchNormalization and per-channel arithmetic into Conv, ConvTranspose, Gemm and MatMul."""

    info = PassInfo(
        name="fuse-batchnorm",
        summary="Fold BatchNormalization and per-channel arithmetic into the weights in front of them.",
        preserves=frozenset({"statistics"}),
    )

    class Options(PassOptions):
        """What may be fused."""

        arithmetic: bool = Field(
            default=True,
            description="also fold Add, Sub, Mul and Div by constants of one number a channel "
            "(true or false)",
        )
        before_conv: bool = Field(
            default=False,
            description="also fold a BatchNormalization into the Conv behind it, where that pads nothing "
            "(true or false)",
        )
        copy_shared_weights: bool = Field(
            default=False,
            description="also where others read the weight, so that the file grows by a copy (true or false)",
        )

    def run(self, model: Model, options: Options, context: Context) -> Report:
        """Fuse in graph order; see the module."""
        from graphopt.ir.shapes import Shapes, infer_shapes
        from graphopt.passes.batchnorm.fusion import Fusion

        def shapes() -> Shapes:
            # A size that the user bound for one run must not decide what the model is.
            found = infer_shapes(model) if context.dims else context.analysis("shapes")
            assert isinstance(found, Shapes)
            return found

        return Fusion(
            model,
            shapes,
            arithmetic=options.arithmetic,
            before_conv=options.before_conv,
            copy_shared_weights=options.copy_shared_weights,
        ).run()
