"""One run of prune-blocks: find, choose, fit, remove, prove, report."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from graphopt.api import Report
from graphopt.errors import DataError, GateFailed, OptionError, PassFailed, ProviderError
from graphopt.ir.cost import measure_cost
from graphopt.ir.shapes import infer_shapes
from graphopt.passes.depth.blocks import find_blocks, remove
from graphopt.passes.depth.errors import measure_errors
from graphopt.passes.depth.fit import Recovery, fit_without
from graphopt.passes.depth.savings import CostSavings, kinds_of, time_savings, without
from graphopt.passes.depth.search import Search
from graphopt.passes.pruning.allocation import amount_of
from graphopt.passes.pruning.inputs import add_way_out, oracle_feeds
from graphopt.passes.pruning.oracle import Claim, judge
from graphopt.passes.pruning.timing import Timer
from graphopt.recover.solve import RIDGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from graphopt.api import Context
    from graphopt.ir import Model
    from graphopt.ir.cost import Cost
    from graphopt.passes.depth.blocks import Block
    from graphopt.passes.depth.savings import Saved
    from graphopt.passes.prune_blocks import PruneBlocks
    from graphopt.passes.pruning.allocation import Budget
    from graphopt.runtime.session import Feeds

_FEEDS = 2  # that the oracle runs
_MOST_REASONS = 20  # named in an error; the report has all


class Run:
    """The state of one run.

    Args:
        model: The pass's own copy; changed in place.
        options: Options of the pass.
        context: What the manager gives.
    """

    def __init__(self, model: Model, options: PruneBlocks.Options, context: Context) -> None:
        self.model = model
        self.options = options
        self.context = context
        self.skipped: list[tuple[str, str]] = []
        self.free: list[Block] = []  # in graph order, as are all choices
        self.search: Search | None = None
        self.extra: dict[str, object] = {}
        self.warnings: tuple[str, ...] = ()

    def run(self) -> Report:
        """Do everything.

        Raises:
            GateFailed: The budget cannot be reached, or nothing can be fitted.
            OptionError: A name fits no block.
            DataError: There are no data to measure errors on, or to fit to.
            PassFailed: The oracle found a difference.
        """
        before = measure_cost(self.model, self.context.dims)
        shapes = infer_shapes(self.model)
        blocks, self.skipped = find_blocks(self.model, shapes)
        self.free = self._allowed(blocks)
        if self.options.blocks:
            chosen = self._named(blocks)
        else:
            chosen = self._searched(kinds_of(self.free, shapes), before)
        counts = {"blocks_removed": len(chosen)}
        if chosen:
            counts |= self._leave_out(chosen)
        after = measure_cost(self.model, self.context.dims)
        extra: dict[str, object] = {
            "macs_ratio": _ratio(after.known_macs, before.known_macs),
            "params_ratio": _ratio(after.parameters, before.parameters),
            "blocks": [{"name": block.name} for block in chosen],
            "replay": f"blocks={json.dumps([block.name for block in chosen], ensure_ascii=False)}",
            "blocks_found": len(blocks),
            **self.extra,
        }
        if self.search is not None:
            extra["blocks"] = [{"name": step.block.name, "error": step.error} for step in self.search.steps]
            extra["errors_measured"] = self.search.trials
        counts = {key: count for key, count in counts.items() if count}
        return Report(bool(chosen), counts, tuple(dict.fromkeys(self.skipped)), extra, self.warnings)

    def _allowed(self, blocks: Sequence[Block]) -> list[Block]:
        free = []
        for block in blocks:
            pattern = next((each for each in self.options.protect if block.holds(each)), None)
            if pattern is None:
                free.append(block)
            else:
                self.skipped.append((f"block {block.name!r}", f"protected by {pattern!r}"))
        return free

    def _named(self, blocks: Sequence[Block]) -> list[Block]:
        """Return the free blocks that the option ``blocks`` names."""
        for pattern in self.options.blocks:
            if not any(block.is_named_by(pattern) for block in blocks):
                known = ", ".join(repr(block.name) for block in blocks[:_MOST_REASONS])
                raise OptionError(
                    f"no residual block has a name of the form {pattern!r}",
                    where="option 'blocks'",
                    hint=f"There are {known}." if blocks else "The model has no residual blocks.",
                )
        return [block for block in self.free if any(map(block.is_named_by, self.options.blocks))]

    def _searched(self, kinds: Sequence[Sequence[Block]], before: Cost) -> list[Block]:
        """Return the blocks that a search under the budget lets go."""
        if not kinds:
            self._fall_short("no residual block can be left out")
            return []
        if self.options.time_ratio is not None:
            return self._timed(kinds, self.options.time_ratio)
        if self.options.count is not None:
            return self._counted(self.options.count)
        return self._costed(kinds, before)

    def _counted(self, count: int) -> list[Block]:
        search = self._search(lambda _block, _gone: 1.0)
        while len(search.steps) < count and search.step():
            pass
        if len(search.steps) < count:
            self._fall_short(f"count={count}: {len(search.steps)} blocks can be left out")
        return search.chosen

    def _costed(self, kinds: Sequence[Sequence[Block]], before: Cost) -> list[Block]:
        """Return the blocks without which no more than the ratio of the MACs or parameters is left."""
        budget: Budget = "parameters" if self.options.macs_ratio is None else "macs"
        name = "params_ratio" if self.options.macs_ratio is None else "macs_ratio"
        limit: float = getattr(self.options, name)
        whole = got = amount_of(before, budget)
        search = self._search(CostSavings(self.model, kinds, budget, self.context.dims))
        while got > limit * whole and search.step():
            got = amount_of(measure_cost(without(self.model, search.chosen), self.context.dims), budget)
        if got > limit * whole:
            self._fall_short(f"{name}={limit:g}: {_ratio(got, whole):.4f} is what can be had")
        return search.chosen

    def _timed(self, kinds: Sequence[Sequence[Block]], limit: float) -> list[Block]:
        """Return the blocks without which the model takes no more than *limit* of the original's time."""
        timer = Timer(self.model, self.context, self.options.timed_as)
        known = time_savings(self.model, kinds, timer)
        search = self._search(known)
        tried: list[dict[str, float]] = []
        expected = got = known.uncut
        wanted, timed = limit, 0
        while got > limit:
            if search.step():
                *gone, last = (step.block for step in search.steps)
                expected -= known(last, gone)
                if expected > wanted:
                    continue
            elif timed == len(search.steps):
                break
            timed = len(search.steps)
            label = f"attempt {len(tried) + 1}"
            got = timer.times({label: without(self.model, search.chosen)}, whole=True)[label].ratio
            tried.append({"expected": round(expected, 4), "measured": round(got, 4)})
            wanted = expected - (got - limit)
        self.extra["time"] = {
            "limit": limit,
            "timed_as": self.options.timed_as,
            "uncut": round(known.uncut, 4),
            "table": known.table,
            "tried": tried,
            "measured": round(got, 4),
        }
        if got > limit:
            self._fall_short(f"time_ratio={limit:g}: {got:.3f} at best, {known.uncut:.3f} with all blocks")
        return search.chosen

    def _search(self, saved: Saved) -> Search:
        worth = [block for block in self.free if saved(block, ()) > 0]
        self.skipped += [
            (f"block {block.name!r}", "leaving it out saves nothing")
            for block in self.free
            if block not in worth
        ]
        data = self._data("the error of leaving out a block is measured")
        search = Search(worth, saved, measure_errors(self.model, data, self._recovery()))
        self.search = search
        return search

    def _recovery(self) -> Recovery | None:
        options = self.options
        if options.recover == "none":
            return None
        return Recovery(
            options.recover,
            RIDGE if options.ridge == "auto" else options.ridge,
            options.ridge == "auto",
            options.rows_per_sample,
            self.context.seed,
            tuple(options.protect),
        )

    def _data(self, purpose: str) -> Iterable[Feeds]:
        """Return the feeds to use, which can be iterated again and again.

        Raises:
            DataError: There are none.
        """
        data, samples = self.context.data, self.options.samples
        if data is None:
            raise DataError(
                f"{purpose} on data, and there are none",
                where="prune-blocks",
                hint="Give unlabelled inputs with --data, or name the blocks that are to go with blocks=[...]"
                " and recover=none.",
            )
        return data if samples is None else list(islice(data, samples))

    def _fall_short(self, message: str) -> None:
        """Fail with the reasons why no more blocks go, unless as far as possible is what was asked for."""
        reasons = self.skipped or [("model", "it has no other additions of what varies")]
        self._fail("budget", message, reasons, "Ask for less, prune before what quantises, or set")

    def _fail(self, what: str, message: str, reasons: Sequence[tuple[str, str]], hint: str) -> None:
        """Fail with *reasons*, unless going as far as possible is what was asked for."""
        if self.options.best_effort:
            self.skipped.append((what, message))
            return
        shown = "; ".join(f"{where}: {reason}" for where, reason in reasons[:_MOST_REASONS])
        raise GateFailed(
            f"{message} ({shown})" if shown else message,
            where="prune-blocks",
            hint=f"{hint} best_effort=true.",
        )

    def _leave_out(self, chosen: Sequence[Block]) -> dict[str, int]:
        """Fit the rest, remove the blocks, and prove it; return what to count."""
        counts = {}
        recovery = self._recovery()
        if recovery is not None:
            fit = fit_without(self.model, chosen, self._data(f"recover={recovery.method} fits"), recovery)
            if not fit.solved:
                self._fail(
                    "recovery",
                    f"recover={recovery.method}: nothing stays that has a float weight to fit",
                    fit.skipped,
                    "Let other blocks go, prune before what quantises, set recover=none or",
                )
            fit.write(self.model)
            self.extra["recovery"] = fit.report
            self.warnings = fit.warnings
            self.skipped += fit.skipped
            # Of one without a bias, recover=bias tells the residual and moves nothing.
            moved = [one for one, _ in fit.solved if one.has_bias or recovery.method != "bias"]
            counts["operators_refitted"] = len(moved)
        whole = self.model.clone() if self.options.oracle else None
        counts["nodes_removed"] = remove(self.model, chosen)
        self.context.invalidate()
        self.extra["oracle"] = "switched off" if whole is None else self._prove(whole, chosen)
        return counts

    def _prove(self, whole: Model, chosen: Sequence[Block]) -> dict[str, object]:
        """Hold the result against the whole model with the branches multiplied by zero.

        Raises:
            PassFailed: They differ.
        """
        types = {block.branch: block.dtype for block in chosen}

        def cut(clone: Model) -> None:
            remove(clone, chosen)

        # One zero, which broadcasts to any rank.
        masks = [(block.branch, 0, np.zeros(1)) for block in chosen]
        claim = Claim(cut, masks, compressed={}, describe=lambda name: (1, types[name]))
        try:
            feeds = self._oracle_feeds(whole)
            verdict = judge(whole, claim, feeds, seed=self.context.seed, pruned=self.model)
        except (ProviderError, DataError) as error:
            add_way_out(error)
            raise
        if not verdict.passed:
            raise PassFailed(
                f"the result differs from the original with its branches set to zero: relative error"
                f" {verdict.error:.3g} of output {verdict.output!r}, allowed {verdict.tolerance:g}",
                where="oracle",
                hint="This is a fault of the analysis: report it with the reproducer, and protect the blocks"
                " concerned to go on.",
            )
        return verdict.record()

    def _oracle_feeds(self, model: Model) -> Sequence[Feeds]:
        data = self.context.data
        found = [] if data is None else list(islice(iter(data), _FEEDS))
        return found or oracle_feeds(model, self.context.dims, self.context.seed, _FEEDS)


def _ratio(after: int, before: int) -> float:
    return after / before if before else 1.0
