"""Train networks alike: one recipe, one stream of pictures, one budget for all; cards and curves come with the weights.

`data` reads pictures and labels, `recipe` says what is done with them, `speed` makes small networks train fast on
CPUs, `loop` runs it and `card` writes what came out.
"""

from r2viz.training.loop import train

__all__ = ["train"]
