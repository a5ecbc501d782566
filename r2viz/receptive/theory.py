"""Where the units of a feature map sit on the input, and what they can see: arithmetic that knows no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

Pair = tuple[float, float]


@dataclass(frozen=True)
class Grid:
    """The lattice of receptive-field centres of a feature map, in input pixels, (y, x).

    Unit (i, j) is centred at `(start_y + i·jump_y, start_x + j·jump_x)`; 0 is the centre of the first input pixel.
    `aligned` is False where paths with different centres meet (then the main path's centre stands here).
    """

    jump: Pair = (1.0, 1.0)
    start: Pair = (0.0, 0.0)
    aligned: bool = True

    def through(self, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> Grid:
        """The grid after a window operation.

        `start' = start + ((kernel − 1)/2 · dilation − padding) · jump` and `jump' = jump · stride`
        (Araujo et al., Distill 2019, equations for r, j and start; per axis).
        """
        start = tuple(
            self.start[axis] + ((kernel[axis] - 1) / 2 * dilation[axis] - padding[axis]) * self.jump[axis]
            for axis in (0, 1)
        )
        return Grid((self.jump[0] * stride[0], self.jump[1] * stride[1]), (start[0], start[1]), self.aligned)

    def meet(self, other: Grid) -> Grid:
        """The grid where two paths are added or concatenated: this one, flagged when the other's centres differ.

        Raises:
            ValueError: when the strides differ, since then no unit-by-unit correspondence exists.
        """
        if self.jump != other.jump:
            raise ValueError(f"paths with strides {self.jump} and {other.jump} meet")
        return Grid(self.jump, self.start, self.aligned and other.aligned and self.start == other.start)

    @classmethod
    def resized(cls, input_size: tuple[int, int], map_size: tuple[int, int]) -> Grid:
        """The grid that half-pixel resizing of the map to the input assumes: the peers' way of laying maps."""
        jump = (input_size[0] / map_size[0], input_size[1] / map_size[1])
        return cls(jump, ((jump[0] - 1) / 2, (jump[1] - 1) / 2))


Extent = tuple[float, float]
"""First and last input pixel that a path reaches from unit 0, both inclusive; may lie outside the picture."""

_ITSELF: Mapping[Extent, int] = MappingProxyType({(0.0, 0.0): 1})


@dataclass(frozen=True)
class Axis:
    """The paths from the input to a unit of a feature map, along rows or along columns.

    A path goes through one branch at every addition and concatenation. Those of equal extent are counted, not kept
    apart: adding branches adds counts, a window moves all extents by the same amount, so a network costs as much as it
    has operations, whatever the number of its paths (8 per block of Res2Net with scale 4).

    Attributes:
        jump: input pixels between neighbouring units.
        paths: number of paths by extent, of unit 0; unit i's are `i · jump` further.
    """

    jump: float = 1.0
    paths: Mapping[Extent, int] = field(default_factory=lambda: _ITSELF)

    def through(self, kernel: float, stride: float, padding: float, dilation: float = 1) -> Axis:
        """After a window operation: `r' = r + (kernel - 1) · dilation · jump` (Araujo et al., Distill 2019)."""
        first = -padding * self.jump
        last = first + (kernel - 1) * dilation * self.jump
        if first == last == 0:
            return self if stride == 1 else Axis(self.jump * stride, self.paths)
        return Axis(
            self.jump * stride, {(left + first, right + last): count for (left, right), count in self.paths.items()}
        )

    def enlarged(self, factor: float) -> Axis:
        """After nearest-neighbour enlargement: extents hold for every unit, and are too long for all but one of them.

        The `factor` units made from one see the same pixels from different places.
        """
        jump = self.jump / factor
        spread = (factor - 1) * jump
        return Axis(jump, {(left - spread, right): count for (left, right), count in self.paths.items()})

    def meet(self, other: Axis) -> Axis:
        """Where two branches are added or concatenated.

        Raises:
            ValueError: when the strides differ, since then no unit-by-unit correspondence exists.
        """
        if self.jump != other.jump:
            raise ValueError(f"paths with strides {self.jump} and {other.jump} meet")
        paths = dict(self.paths)
        for extent, count in other.paths.items():
            paths[extent] = paths.get(extent, 0) + count
        return Axis(self.jump, paths)

    @cached_property
    def reach(self) -> Extent:
        """From the first to the last input pixel that any path reaches."""
        return min(left for left, _ in self.paths), max(right for _, right in self.paths)

    @property
    def aligned(self) -> bool:
        """Whether all paths have one centre."""
        return len({left + right for left, right in self.paths}) == 1

    @cached_property
    def sizes(self) -> dict[int, int]:
        """Number of paths by size in input pixels, in order of size."""
        found: dict[int, int] = {}
        for (left, right), count in self.paths.items():
            size = round(right - left) + 1
            found[size] = found.get(size, 0) + count
        return dict(sorted(found.items()))


@dataclass(frozen=True)
class Field:
    """The theoretical receptive field of the units of a feature map, as the set of all paths to them.

    Sizes are in input pixels and count what lies beyond the picture's border. Theory says what *can* matter; what does
    is measured (`r2viz.receptive.measured`).

    Attributes:
        y: along rows; `x` along columns (the same object where every operation is square).
        unbounded: whether some path sees the whole picture (a gate made by global pooling): then `max` holds for the
            other paths only, and nothing may be cropped to it.
    """

    y: Axis = field(default_factory=Axis)
    x: Axis | None = None
    unbounded: bool = False

    @property
    def columns(self) -> Axis:
        """The axis along columns."""
        return self.y if self.x is None else self.x

    def through(self, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> Field:
        """After a window operation; see `Axis.through`."""
        y = self.y.through(kernel[0], stride[0], padding[0], dilation[0])
        square = all(value[0] == value[1] for value in (kernel, stride, padding, dilation))
        if self.x is None and square:
            return Field(y, None, self.unbounded)
        return Field(y, self.columns.through(kernel[1], stride[1], padding[1], dilation[1]), self.unbounded)

    def enlarged(self, factor: Pair) -> Field:
        """After nearest-neighbour enlargement; see `Axis.enlarged`."""
        y = self.y.enlarged(factor[0])
        if self.x is None and factor[0] == factor[1]:
            return Field(y, None, self.unbounded)
        return Field(y, self.columns.enlarged(factor[1]), self.unbounded)

    def meet(self, other: Field) -> Field:
        """Where two branches are added or concatenated; see `Axis.meet`."""
        x = None if self.x is None and other.x is None else self.columns.meet(other.columns)
        return Field(self.y.meet(other.y), x, self.unbounded or other.unbounded)

    def gated(self) -> Field:
        """Where it meets something that was made from the whole picture."""
        return Field(self.y, self.x, True)

    @property
    def jump(self) -> Pair:
        """Input pixels between neighbouring units, (y, x)."""
        return (self.y.jump, self.columns.jump)

    @property
    def aligned(self) -> bool:
        """Whether all paths to a unit have one centre."""
        return self.y.aligned and self.columns.aligned

    @property
    def centre(self) -> Pair:
        """The middle of everything that unit (0, 0) can see, in input pixels, (y, x)."""
        return (sum(self.y.reach) / 2, sum(self.columns.reach) / 2)

    @property
    def sizes(self) -> dict[int, int]:
        """Number of paths by size, along rows."""
        return self.y.sizes

    @property
    def min(self) -> int:
        """Size of the smallest path, along rows: mostly the one through all shortcuts."""
        return next(iter(self.y.sizes))

    @property
    def max(self) -> int:
        """From the first to the last pixel of any path, along rows."""
        left, right = self.y.reach
        return round(right - left) + 1

    @property
    def paths(self) -> int:
        """Number of paths."""
        return sum(self.y.paths.values())

    def box(self, unit: tuple[int, int]) -> tuple[float, float, float, float]:
        """What unit (row, column) can see: (y0, x0, y1, x1) in input pixels, the last ones exclusive."""
        (top, bottom), (left, right) = self.y.reach, self.columns.reach
        y, x = unit[0] * self.jump[0], unit[1] * self.jump[1]
        return (top + y, left + x, bottom + y + 1, right + x + 1)

    def as_dict(self) -> dict[str, object]:
        """JSON-able; path counts stay whole numbers, however long."""
        return {
            "min": self.min,
            "max": self.max,
            "jump": list(self.jump),
            "centre": list(self.centre),
            "paths": self.paths,
            "sizes": {str(size): count for size, count in self.sizes.items()},
            "aligned": self.aligned,
            "unbounded": self.unbounded,
        }
