"""The built-in plugin: registers passes, analyses and gates through the hooks that all plugins use.

Everything is named by text and imported on first use, so that listing the passes costs nothing.
"""

from __future__ import annotations

from graphopt.hookspecs import hookimpl


@hookimpl
def graphopt_register_passes() -> dict[str, str]:
    """Return the built-in passes."""
    return {
        "canonicalize": "graphopt.passes.canonicalize:Canonicalize",
        "fold-constants": "graphopt.passes.fold_constants:FoldConstants",
        "eliminate-dead": "graphopt.passes.eliminate_dead:EliminateDead",
        "deduplicate": "graphopt.passes.deduplicate:Deduplicate",
        "fuse-batchnorm": "graphopt.passes.fuse_batchnorm:FuseBatchnorm",
        "infer-shapes": "graphopt.passes.infer_shapes:InferShapes",
        "upgrade-opset": "graphopt.passes.upgrade_opset:UpgradeOpset",
        "equalize-ranges": "graphopt.passes.equalize_ranges:EqualizeRanges",
        "insert-qdq": "graphopt.passes.insert_qdq:InsertQdq",
        "correct-bias": "graphopt.passes.correct_bias:CorrectBias",
        "decompress-weights": "graphopt.passes.decompress_weights:DecompressWeights",
        "synthesize-constants": "graphopt.passes.synthesize_constants:SynthesizeConstants",
        "share-weights": "graphopt.passes.share_weights:ShareWeights",
        "convert-float16": "graphopt.passes.convert_float16:ConvertFloat16",
        "sparsify-weights": "graphopt.passes.sparsify_weights:SparsifyWeights",
        "prune-channels": "graphopt.passes.prune_channels:PruneChannels",
        "prune-blocks": "graphopt.passes.prune_blocks:PruneBlocks",
        "quantize-weights": "graphopt.passes.quantize_weights:QuantizeWeights",
        "quantize-dynamic": "graphopt.passes.quantize_dynamic:QuantizeDynamic",
        "rewrite-residual-sum": "graphopt.passes.rewrite_residual_sum:RewriteResidualSum",
        "rewrite-masked-softmax": "graphopt.passes.rewrite_masked_softmax:RewriteMaskedSoftmax",
        "factorize-lowrank": "graphopt.passes.factorize_lowrank:FactorizeLowrank",
        "graphsurgeon-script": "graphopt.passes.graphsurgeon_script:GraphsurgeonScript",
    }


@hookimpl
def graphopt_register_analyses() -> dict[str, str]:
    """Return the analyses that passes may ask their context for."""
    return {
        "shapes": "graphopt.ir.shapes:infer_shapes",
        "cost": "graphopt.ir.cost:measure_cost",
    }


@hookimpl
def graphopt_register_gates() -> dict[str, str]:
    """Return the gates that recipes may ask for."""
    return {
        "numeric": "graphopt.pipeline.gates:NumericGate",
        "size": "graphopt.pipeline.gates:SizeGate",
        "latency": "graphopt.pipeline.gates:LatencyGate",
        "structure": "graphopt.pipeline.structure_gate:StructureGate",
    }


@hookimpl
def graphopt_register_criteria() -> dict[str, str]:
    """Return the criteria of importance that passes which prune may be asked for."""
    return {
        "l1": "graphopt.passes.pruning.criteria:L1",
        "l2": "graphopt.passes.pruning.criteria:L2",
        "product-of-norms": "graphopt.passes.pruning.criteria:ProductOfNorms",
        "energy": "graphopt.passes.pruning.activations:Energy",
        "entropy": "graphopt.passes.pruning.activations:Entropy",
        "obs": "graphopt.passes.pruning.obs:Obs",
        "random": "graphopt.passes.pruning.criteria:Random",
    }
