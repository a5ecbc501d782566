"""Where the units of a feature map sit on the input, as arithmetic on strides and paddings. Knows no network."""

from __future__ import annotations

from dataclasses import dataclass

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
