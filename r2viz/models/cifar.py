"""The networks of the paper's table 4 and figure 5: ResNeXt and Res2NeXt for CIFAR-100, a table and what builds it.

Three stages after a 3x3 stem, on 32x32 pictures that no pooling shrinks. With cardinality c and width w a group of
features has c·w channels in the first stage, twice and four times as many in the second and third, and the stages give
256, 512 and 1024. A network of 29 layers has three blocks a stage; `9·n + 2` layers have n.

The paper's numbers of parameters fit no sensible layout. Those of its Res2NeXt without attention are those of ten
classes (not a hundred) with first-of-stage blocks that convolve every split (the code that the authors published for
ImageNet pools the last one); those of its networks with squeeze-and-excitation are those of no layout that we tried.
Here a network has a hundred classes, and first blocks as in the weights published for ImageNet; every row notes what
the paper prints. No code or weights for these networks were published.

Reading the table imports no torch; building a network does.

Source: arXiv 1904.01169, section 4.3; Xie et al. 2017 for the assembly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from r2viz.geometry import Preprocess
from r2viz.models.row import Published, Row

if TYPE_CHECKING:
    from r2viz.models.resnet import ResNet


def resnext(
    *,
    cardinality: int,
    width: int,
    scale: int = 1,
    depth: int = 29,
    attention: str | None = None,
    num_classes: int = 100,
) -> ResNet:
    """A ResNeXt for CIFAR, or with `scale` above 1 a Res2NeXt, with fresh weights.

    Maps `(N, 3, H, W)` to logits `(N, num_classes)`; the last stage is `(N, 1024, H/4, W/4)`.

    Args:
        cardinality: c, groups of a 3x3 convolution.
        width: w, channels of each of them in the first stage.
        scale: s, groups of features that are joined hierarchically; each has its own 3x3 convolution.
        depth: layers, 9·n + 2.
        attention: `"se"` or None.
        num_classes: outputs of the head.

    Raises:
        ValueError: the depth is not of that form.
    """
    from r2viz.models.resnet import res2net, resnet

    blocks, rest = divmod(depth - 2, 9)
    if rest or blocks < 1:
        raise ValueError(f"depth is {depth}; a network of three stages has 9·n + 2 layers, say 29 or 56")
    arguments = {
        "depths": (blocks,) * 3,
        "widths": (64, 128, 256),
        "strides": (1, 2, 2),
        "stem": "3x3",
        "stem_stride": 1,
        "pool": False,
        "groups": cardinality,
        "base_width": width,
        "attention": attention,
        "num_classes": num_classes,
    }
    return resnet(**arguments) if scale == 1 else res2net(scale=scale, **arguments)


# --- What rows share -------------------------------------------------------------------------------------------------

# Means and deviations of CIFAR-100's own training pictures.
_SMALL = Preprocess(resize=32, crop=(32, 32), mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
_XIE, _GAO, _HU = (
    "Xie et al. 2017, arXiv 1611.05431",
    "Gao et al. 2021, arXiv 1904.01169",
    "Hu et al. 2018, arXiv 1709.01507",
)
_TEN = "as ten classes would have, not a hundred"
_CONVOLVED = "as ten classes and first-of-stage blocks that convolve every split would have"
_UNEXPLAINED = "which no layout that we tried has"


def _row(
    c: int,
    w: int,
    s: int = 1,
    depth: int = 29,
    *,
    se: bool = False,
    params: int,
    macs: int,
    error: float | None = None,
    printed: tuple[float, str] | None = None,
) -> Row:
    """A row from the paper's numbers: `error` in percent, `printed` millions of parameters and why that many."""
    family = "ResNeXt" if s == 1 else "Res2NeXt"
    called = f"{family}-{depth}, {c}c x {w}w" + (f" x {s}s" if s > 1 else "") + (" - SE" if se else "")
    citations = [_XIE if s == 1 else _GAO, *([_HU] if se else [])]
    if printed:
        note = f"the paper prints {printed[0]} M parameters, {printed[1]}; "
    else:
        note = "" if error else "in figure 5 as a point without numbers; " if not se else "in no table of the paper; "
    return Row(
        title=f"{'SE-' if se else ''}{family}-{depth} {c}c-{w}w{f'-{s}s' if s > 1 else ''}",
        factory="r2viz.models.cifar:resnext",
        arguments={"cardinality": c, "width": w, "scale": s, "depth": depth, "attention": "se" if se else None},
        params=params,
        macs=macs,
        preprocess=_SMALL,
        classes="cifar100",
        published=() if error is None else (Published("T4", called, round(100 - error, 2)),),
        note=f"{note}no weights were published",
        citation="; ".join(citations),
        licence="no weights were published",
    )


# --- The table -------------------------------------------------------------------------------------------------------

CIFAR: dict[str, Row] = {
    "resnext29_8c_64w": _row(8, 64, params=34_518_948, macs=5_387_358_208, error=17.90, printed=(34.4, _TEN)),
    "resnext29_16c_64w": _row(16, 64, params=68_247_460, macs=10_688_958_464, error=17.31, printed=(68.1, _TEN)),
    "res2next29_6c_24w_4s": _row(
        6, 24, 4, params=23_705_732, macs=3_852_374_016, error=16.98, printed=(24.3, _CONVOLVED)
    ),
    "res2next29_8c_25w_4s": _row(
        8, 25, 4, params=32_957_436, macs=5_366_935_552, error=16.93, printed=(33.8, _CONVOLVED)
    ),
    "res2next29_6c_24w_6s": _row(
        6, 24, 6, params=36_146_180, macs=5_879_009_280, error=16.79, printed=(36.7, _CONVOLVED)
    ),
    "se_resnext29_8c_64w": _row(
        8, 64, se=True, params=35_040_756, macs=5_387_874_304, error=16.77, printed=(35.1, _UNEXPLAINED)
    ),
    "se_resnext29_16c_64w": _row(16, 64, se=True, params=68_769_268, macs=10_689_474_560),
    "se_res2next29_6c_24w_4s": _row(
        6, 24, 4, se=True, params=24_227_540, macs=3_852_890_112, error=16.68, printed=(26.0, _UNEXPLAINED)
    ),
    "se_res2next29_8c_25w_4s": _row(
        8, 25, 4, se=True, params=33_479_244, macs=5_367_451_648, error=16.64, printed=(34.0, _UNEXPLAINED)
    ),
    "se_res2next29_6c_24w_6s": _row(
        6, 24, 6, se=True, params=36_667_988, macs=5_879_525_376, error=16.56, printed=(36.9, _UNEXPLAINED)
    ),
    # Figure 5: from one base, each of three dimensions twice to six times.
    "resnext29_6c_24w": _row(6, 24, params=7_010_660, macs=1_099_075_584),
    "resnext29_12c_24w": _row(12, 24, params=13_230_884, macs=2_112_393_216),
    "resnext29_18c_24w": _row(18, 24, params=19_451_108, macs=3_125_710_848),
    "resnext29_24c_24w": _row(24, 24, params=25_671_332, macs=4_139_028_480),
    "resnext29_30c_24w": _row(30, 24, params=31_891_556, macs=5_152_346_112),
    "resnext29_36c_24w": _row(36, 24, params=38_111_780, macs=6_165_663_744),
    "resnext56_6c_24w": _row(6, 24, depth=56, params=13_637_924, macs=2_065_207_296),
    "resnext83_6c_24w": _row(6, 24, depth=83, params=20_265_188, macs=3_031_339_008),
    "resnext110_6c_24w": _row(6, 24, depth=110, params=26_892_452, macs=3_997_470_720),
    "resnext137_6c_24w": _row(6, 24, depth=137, params=33_519_716, macs=4_963_602_432),
    "resnext164_6c_24w": _row(6, 24, depth=164, params=40_146_980, macs=5_929_734_144),
    "res2next29_6c_24w_2s": _row(6, 24, 2, params=11_265_284, macs=1_825_738_752),
    "res2next29_6c_24w_3s": _row(6, 24, 3, params=17_485_508, macs=2_839_056_384),
    "res2next29_6c_24w_5s": _row(6, 24, 5, params=29_925_956, macs=4_865_691_648),
}

# The three curves of figure 5, each from the base on. The figure's ranges are 12-36 in cardinality, 56-164 layers and
# scales 2-6, all six-fold at the end; its width is our reading: 24 is what its axis of 5 to 45 million parameters fits.
SWEEP: dict[str, tuple[str, ...]] = {
    "cardinality": ("resnext29_6c_24w", *(f"resnext29_{c}c_24w" for c in (12, 18, 24, 30, 36))),
    "depth": ("resnext29_6c_24w", *(f"resnext{depth}_6c_24w" for depth in (56, 83, 110, 137, 164))),
    "scale": ("resnext29_6c_24w", *(f"res2next29_6c_24w_{s}s" for s in (2, 3, 4, 5, 6))),
}
