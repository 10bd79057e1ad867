"""GPTQ (Frantar et al. 2023, arXiv 2210.17323): columns are rounded in turn, each making up for those before it.

What counts is the error of the outputs, `(w - q) H (w - q)^T` with the second moment `H` of the inputs. Rounding one
column after the other, the columns that are left can take over part of the error that was made; `Factor` says which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from moesaic.errors import NotFinite
from moesaic.lanes import lanes
from moesaic.quantize import grid
from moesaic.quantize.factor import Factor, prepare
from moesaic.quantize.group_grid import GroupGrid, GroupSearch
from moesaic.quantize.mc_grid import McSearch, feed_back_between, inverse_coupling
from moesaic.records import QuantizedWeight

ROWS = 2048  # rows worked on at a time; fixed, so that the number of threads does not show
_BLOCK = 128  # columns between two lazy updates of all that are left
_STRIP = 32  # columns of a block that are updated one by one
_LARGEST_POWER = 126
_MC_FEEDBACK_ABOVE = 3  # bits; with fewer, the released code feeds errors back between blocks only


@dataclass(frozen=True)
class GPTQ:
    """Rounding with error feedback, at every width.

    The grid of a group is found when the group is reached, on weights that make up for the columns before; with
    `act_order`, where the columns of a group are not neighbours, on the weights as they were.

    Attributes:
        group_size: columns that share a scale.
        symmetric: no stored zero points.
        act_order: round the columns with the largest inputs first.
        damping: what is added to the diagonal of the second moment, as a part of its mean; ten times as much when it
            cannot be factorised, and so on.
        headroom: a row's bfloat16 is chosen before its groups are: for scales up to the largest that the row's weights
            need, times this.
        candidates: how many shrink factors the search for a group's range tries.
        smallest: the smallest shrink factor.
        refits: how many times the best grid of a group is fitted to its codes.
        compat: "mc" for the variant of the published code of MC and of the router-norm paper, for reproduction.
    """

    needs_moment: ClassVar[bool] = True

    group_size: int = 64
    symmetric: bool = False
    act_order: bool = False
    damping: float = 0.01
    headroom: float = 1.0
    candidates: int = 6
    smallest: float = 0.4
    refits: int = 1
    compat: Literal["", "mc"] = ""

    def __post_init__(self) -> None:
        if self.compat not in ("", "mc"):
            raise ValueError(f'compat must be "" or "mc", got {self.compat!r}')
        if self.compat and self.act_order:
            raise ValueError(
                "the released scripts keep the order of the columns: compat and act_order exclude each other"
            )

    def __call__(self, weight: Tensor, bits: int, second_moment: Tensor | None = None) -> QuantizedWeight:
        """Quantize `weight` `[out, in]`. See `Quantizer`.

        Without a second moment all inputs count as independent and of equal size: there is nothing to make up for, and
        what is left is rounding to nearest on the grids of the search.

        Raises:
            ValueError: a width or group size that the format does not have, or a moment of the wrong shape.
            NotFinite: NaN or infinity in the weights or the moment.
        """
        return self.quantize(weight, bits, None if second_moment is None else self.prepare(second_moment))

    def prepare(self, second_moment: Tensor) -> Factor:
        """The factor of a moment `[in, in]`, for all matrices with these inputs and for all widths. See `prepare`."""
        return prepare(second_moment, damping=self.damping, act_order=self.act_order)

    def quantize(self, weight: Tensor, bits: int, factor: Factor | None) -> QuantizedWeight:
        """Quantize `weight` `[out, in]` with a factor that `prepare` made.

        Rows do not know each other: matrices with the same inputs, stacked, give the stacked result.

        Raises:
            ValueError: as for a call, and for a factor of another number of inputs.
            NotFinite: NaN or infinity in the weights.
        """
        grid.check_width(bits, self.group_size)
        rows, columns = weight.shape
        if factor is not None and factor.columns != columns:
            raise ValueError(f"the second moment is of {factor.columns} inputs, and the weight has {columns} columns")
        pieces = [weight.detach()[start : start + ROWS] for start in range(0, rows, ROWS)]
        between = factor is not None and self.compat == "mc" and bits <= _MC_FEEDBACK_ABOVE
        with lanes() as side_by_side:
            inverse = side_by_side(inverse_coupling, [factor.coupling])[0] if factor and between else None
            return grid.join_rows(side_by_side(lambda piece: self._rows(piece, bits, factor, inverse), pieces))

    @property
    def _search(self) -> GroupSearch | McSearch:
        if self.compat == "mc":
            return McSearch(self.symmetric)
        return GroupSearch(self.symmetric, self.candidates, self.smallest, self.refits)

    def _rows(self, weight: Tensor, bits: int, factor: Factor | None, inverse: Tensor | None) -> QuantizedWeight:
        """A piece of the rows, on the thread that it is called on; `inverse` where errors pass between blocks only."""
        columns = weight.shape[1]
        work, power = _columns_first(weight)
        importance = torch.ones(columns) if factor is None else factor.in_place(factor.pivots)
        groups = [slice(at, min(at + self.group_size, columns)) for at in range(0, columns, self.group_size)]
        if factor is not None and self.compat == "mc":
            work[factor.in_place(factor.diagonal) == 0] = 0  # it clears columns whose input is always zero
        search_in = self._search
        largest = torch.stack([search_in.largest(work[each], bits) for each in groups]).amax(dim=0)
        row_scale = grid.row_scales(largest * (1.0 if factor is None else self.headroom))

        def search(weights: Tensor, group: int) -> GroupGrid:
            return search_in(weights, importance[groups[group]], row_scale, bits)

        if factor is None:
            grids = [search(work[each], number) for number, each in enumerate(groups)]
            codes = torch.cat([found.encode(work[each]) for found, each in zip(grids, groups, strict=True)])
        elif inverse is not None:
            codes, grids = feed_back_between(work, inverse, self.group_size, search)
        elif factor.order is None:
            codes, grids = feed_back(work, factor.coupling, self.group_size, search, settled=self.compat == "mc")
        else:
            static = [search(work[each], number) for number, each in enumerate(groups)]
            grids = [static[group] for group in (factor.order // self.group_size).tolist()]  # of each column
            codes, _ = feed_back(work[factor.order], factor.coupling, 1, lambda _, column: grids[column])
            codes, grids = factor.in_place(codes), static
        return _put_together(codes, grids, row_scale, power, self.group_size)


def feed_back(
    work: Tensor,
    coupling: Tensor,
    group_size: int,
    search: Callable[[Tensor, int], GroupGrid],
    *,
    settled: bool = False,
) -> tuple[Tensor, list[GroupGrid]]:
    """Round columns in turn, each from what it is plus its share of the errors so far.

    Args:
        work: `[columns, rows]` float32; holds the errors afterwards.
        coupling: `[columns, columns]` float32, see `Factor`.
        group_size: columns that have a grid together: 1, or a number of which a block is a multiple.
        search: called with the weights of a group as they are when it is reached, and its number.
        settled: find the grid of a group where the published routine finds it, on the weights that would be best if
            none of the group were rounded. Without it, each column is what it is to be rounded from if the columns of
            the group before it stayed as they were: further apart, and at 1 and 2 bits the better guess of what the
            grid has to hold (docs/methods/gptq.md).

    Returns:
        Codes `[columns, rows]` uint8 and the grids of the groups.
    """
    columns, rows = work.shape
    codes = torch.empty(columns, rows, dtype=torch.uint8)
    grids: list[GroupGrid] = []
    strip_size = min(_STRIP, group_size) if group_size > 1 else _STRIP
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        # the lazy update of the block, from all that is before it at once
        target = (
            torch.addmm(work[start:end], coupling[start:end, :start], work[:start]) if start else work[:end].clone()
        )
        rounded = torch.empty_like(target)
        for low in range(start, end, strip_size):
            high = min(low + strip_size, end)
            if group_size > 1 and low % group_size == 0:
                group = slice(low, min(low + group_size, columns))
                found = target[low - start : group.stop - start]
                grids.append(search(_settled(work, found, coupling, group) if settled else found, low // group_size))
            for column in range(low, high):
                if group_size == 1:
                    grids.append(search(target, column))
                wanted = target[column - start]
                if column > low:
                    wanted.addmv_(work[low:column].T, coupling[column, low:column])
                code = grids[-1].encode(wanted, out=rounded[column - start])
                work[column].sub_(grids[-1].decode(code))
            if high < end:
                target[high - start :].addmm_(coupling[high:end, low:high], work[low:high])
        codes[start:end] = rounded  # whole numbers that a byte holds
    return codes, grids


def _settled(work: Tensor, target: Tensor, coupling: Tensor, group: slice) -> Tensor:
    """A group as it makes up best for the columns before it, none of its own being rounded yet. `[columns, rows]`

    `target` holds for each column of the group what the errors so far add to its weight; but as a column before it in
    the group makes up for some of them, less is left to do. That is forward substitution.
    """
    added = target - work[group]
    share = torch.linalg.solve_triangular(coupling[group, group], added, upper=False, unitriangular=True)
    return work[group] + share


def _columns_first(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A copy as `[columns, rows]` float32, each row over a power of two that brings it to about 1, and the powers.

    No power of two costs precision, and none of what follows then has to think of very small or large numbers.

    Raises:
        NotFinite: NaN or infinity in the weights.
    """
    work = weight.T.to(torch.float32, copy=True).contiguous()
    peak = work.abs().amax(dim=0)
    if not bool(torch.isfinite(peak).all()):
        bad = int((~torch.isfinite(weight)).sum())
        raise NotFinite(f"weight: {bad} values are NaN or infinite; the checkpoint is damaged or was trained to NaN")
    power = torch.frexp(peak).exponent.clamp_(-_LARGEST_POWER, _LARGEST_POWER)
    one = torch.ones_like(peak)
    return work.mul_(torch.ldexp(one, -power)), torch.ldexp(one, power)


def _put_together(
    codes: Tensor, grids: list[GroupGrid], row_scale: Tensor, power: Tensor, group_size: int
) -> QuantizedWeight:
    """The record of codes `[columns, rows]`; padding columns have code 0."""
    columns, rows = codes.shape
    padded = torch.zeros(rows, len(grids) * group_size, dtype=torch.uint8)
    padded[:, :columns] = codes.T
    zeros = [each.zero_codes for each in grids if each.zero_codes is not None]
    return QuantizedWeight(
        codes=padded,
        scale_codes=torch.stack([each.scale_codes for each in grids], dim=1).to(torch.uint8),
        zero_codes=torch.stack(zeros, dim=1).to(torch.uint8) if zeros else None,
        row_scale=(row_scale.float() * power).to(torch.bfloat16),
        bits=grids[0].bits,
        group_size=group_size,
        columns=columns,
    )
