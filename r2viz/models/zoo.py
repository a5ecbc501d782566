"""Every network that r2viz can name, in one visible table. Reading it imports no torch; building a network does."""

from __future__ import annotations

from typing import Any

from r2viz.errors import UnknownName, nearest, one_line
from r2viz.geometry import Preprocess
from r2viz.models import elsewhere
from r2viz.models.cifar import CIFAR
from r2viz.models.row import Published, Row

# --- What rows share -------------------------------------------------------------------------------------------------

_HE = "He et al. 2016, arXiv 1512.03385"
_XIE = "Xie et al. 2017, arXiv 1611.05431"
_GAO = "Gao et al. 2021, arXiv 1904.01169"
_HU = "Hu et al. 2018, arXiv 1709.01507"
_YU = "Yu et al. 2018, arXiv 1707.06484"
_CHEN = "Chen et al. 2019, arXiv 1807.03848"

_IMAGENET: dict[str, Any] = {"preprocess": Preprocess(resize=256, crop=(224, 224)), "classes": "imagenet"}
_BICUBIC: dict[str, Any] = {**_IMAGENET, "preprocess": Preprocess(resize=256, crop=(224, 224), interpolation="bicubic")}
# torchvision's first weights: the paper's baselines. The later ones were trained by another recipe.
_RESNET: dict[str, Any] = {
    "factory": "r2viz.models.resnet:resnet",
    "citation": _HE,
    "licence": "BSD-3-Clause (torchvision)",
    **_IMAGENET,
}
_RES2NET: dict[str, Any] = {
    "factory": "r2viz.models.resnet:res2net",
    "citation": _GAO,
    "licence": "the authors' weights are for non-commercial use (CC BY-NC-SA)",
    **_IMAGENET,
}
# The published files hold 297,472 parameters more: projections of inner trees, whose output nothing uses.
_DLA: dict[str, Any] = {
    "factory": "r2viz.models.dla:dla",
    "citation": _YU,
    "licence": "BSD-3-Clause (its authors' code)",
    **_IMAGENET,
}
_RES2NET_DLA = _RES2NET | {"factory": "r2viz.models.dla:res2net_dla", "citation": f"{_GAO}; {_YU}"}
_UNTRAINED = "no weights were published"
_NONE = {"licence": _UNTRAINED}
_IBM = "Apache-2.0 (its authors' code)"
_50, _101, _152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
_V1B = {"stem": "deep", "shortcut": "avgpool"}  # the stem of three 3x3, and pooling in the shortcut

# The mini pair: for 64x64 pictures, small enough to be trained alike on two cores, 8x8 maps from layer2 on (total
# stride 8). Early stages are narrow because there memory sets the pace. With 26 channels per 64 planes and four groups
# the Res2Net has 99.4 % of the ResNet's parameters and 99.5 % of its multiply-adds, the rule by which the paper
# matches its own pairs. The first block of a stage does not cascade, so four of its eight blocks do.
_MINI = {"depths": (2, 2, 2, 2), "widths": (16, 48, 96, 160), "strides": (1, 2, 1, 1), "stem": "3x3", "stem_width": 24}
_SMALL: dict[str, Any] = {
    "preprocess": Preprocess(resize=64, crop=(64, 64)),
    "classes": "tiny-imagenet",
    "licence": "Apache-2.0, like r2viz; trained on Tiny-ImageNet, whose pictures are for research use",
}

# --- The table -------------------------------------------------------------------------------------------------------

ZOO: dict[str, Row] = {
    "resnet50": Row(
        title="ResNet-50",
        arguments={"depths": _50},
        params=25_557_032,
        macs=4_089_184_256,
        oracle="torchvision:resnet50",
        hub="timm/resnet50.tv_in1k",
        aliases=("resnet50.tv_in1k",),
        published=(Published("T1", "ResNet-50", 76.15, 92.87), Published("T3", "ResNet-50 (64w)", 76.15, 92.87)),
        measured_top1=76.156,
        **_RESNET,
    ),
    "resnet101": Row(
        title="ResNet-101",
        arguments={"depths": _101},
        params=44_549_160,
        macs=7_801_405_440,
        oracle="torchvision:resnet101",
        hub="timm/resnet101.tv_in1k",
        aliases=("resnet101.tv_in1k",),
        published=(Published("T2", "ResNet-101", 77.37, 93.56),),
        measured_top1=77.404,
        **_RESNET,
    ),
    "resnet152": Row(
        title="ResNet-152",
        arguments={"depths": _152},
        params=60_192_808,
        macs=11_513_626_624,
        oracle="torchvision:resnet152",
        hub="timm/resnet152.tv_in1k",
        aliases=("resnet152.tv_in1k",),
        **_RESNET,
    ),
    "resnext50_32x4d": Row(
        title="ResNeXt-50 32x4d",
        arguments={"depths": _50, "groups": 32, "base_width": 4},
        params=25_028_904,
        macs=4_230_479_872,
        oracle="torchvision:resnext50_32x4d",
        hub="timm/resnext50_32x4d.tv_in1k",
        aliases=("resnext50", "resnext50_32x4d.tv_in1k"),
        published=(Published("T1", "ResNeXt-50", 77.39, 93.50),),
        measured_top1=77.632,
        **(_RESNET | {"citation": _XIE}),
    ),
    "res2net50_26w_4s": Row(
        title="Res2Net-50 26w-4s",
        arguments={"depths": _50, "base_width": 26, "scale": 4},
        params=25_699_120,
        macs=4_255_166_464,
        oracle="timm:res2net50_26w_4s",
        hub="timm/res2net50_26w_4s.in1k",
        aliases=("res2net50", "res2net50_26w_4s.in1k"),
        published=(Published("T1", "Res2Net-50", 77.99, 93.85), Published("T3", "Res2Net-50-26w-4s", 77.99, 93.85)),
        measured_top1=77.994,
        **_RES2NET,
    ),
    "res2net50_48w_2s": Row(
        title="Res2Net-50 48w-2s",
        arguments={"depths": _50, "base_width": 48, "scale": 2},
        params=25_287_304,
        macs=4_159_832_064,
        oracle="timm:res2net50_48w_2s",
        hub="timm/res2net50_48w_2s.in1k",
        aliases=("res2net50_48w_2s.in1k",),
        published=(Published("T3", "Res2Net-50-48w-2s", 77.32, 93.53),),
        measured_top1=77.528,
        **_RES2NET,
    ),
    "res2net50_14w_8s": Row(
        title="Res2Net-50 14w-8s",
        arguments={"depths": _50, "base_width": 14, "scale": 8},
        params=25_059_816,
        macs=4_178_898_944,
        oracle="timm:res2net50_14w_8s",
        hub="timm/res2net50_14w_8s.in1k",
        aliases=("res2net50_14w_8s.in1k",),
        published=(Published("T3", "Res2Net-50-14w-8s", 78.14, 93.86),),
        measured_top1=78.142,
        **_RES2NET,
    ),
    "res2net50_26w_6s": Row(
        title="Res2Net-50 26w-6s",
        arguments={"depths": _50, "base_width": 26, "scale": 6},
        params=37_051_448,
        macs=6_295_523_328,
        oracle="timm:res2net50_26w_6s",
        hub="timm/res2net50_26w_6s.in1k",
        aliases=("res2net50_26w_6s.in1k",),
        published=(Published("T3", "Res2Net-50-26w-6s", 78.58, 94.13),),
        measured_top1=78.586,
        **_RES2NET,
    ),
    "res2net50_26w_8s": Row(
        title="Res2Net-50 26w-8s",
        arguments={"depths": _50, "base_width": 26, "scale": 8},
        params=48_403_776,
        macs=8_335_880_192,
        oracle="timm:res2net50_26w_8s",
        hub="timm/res2net50_26w_8s.in1k",
        aliases=("res2net50_26w_8s.in1k",),
        published=(Published("T3", "Res2Net-50-26w-8s", 79.20, 94.37),),
        measured_top1=78.950,
        note="the published weights measure 78.95, a quarter of a percent below the paper's table",
        **_RES2NET,
    ),
    "res2net50_18w_4s": Row(
        title="Res2Net-50 18w-4s",
        arguments={"depths": _50, "base_width": 18, "scale": 4},
        params=18_095_104,
        macs=2_898_407_424,
        published=(Published("T3", "Res2Net-50-18w-4s", 77.08, 93.33),),
        note=_UNTRAINED,
        **_RES2NET,
    ),
    "res2net50_18w_6s": Row(
        title="Res2Net-50 18w-6s",
        arguments={"depths": _50, "base_width": 18, "scale": 6},
        params=25_158_664,
        macs=4_180_905_984,
        note=f"in the paper's tables of segmentation only; {_UNTRAINED}",
        **_RES2NET,
    ),
    "res2net101_26w_4s": Row(
        title="Res2Net-101 26w-4s",
        arguments={"depths": _101, "base_width": 26, "scale": 4},
        params=45_206_688,
        macs=8_066_974_464,
        oracle="timm:res2net101_26w_4s",
        hub="timm/res2net101_26w_4s.in1k",
        aliases=("res2net101", "res2net101_26w_4s.in1k"),
        published=(Published("T2", "Res2Net-101", 79.19, 94.43),),
        measured_top1=79.192,
        **_RES2NET,
    ),
    "res2net152_26w_4s": Row(
        title="Res2Net-152 26w-4s",
        arguments={"depths": _152, "base_width": 26, "scale": 4},
        params=61_275_248,
        macs=11_878_782_464,
        aliases=("res2net152",),
        note=f"in the authors' code, in no table of the paper; {_UNTRAINED}",
        **_RES2NET,
    ),
    "res2next50": Row(
        title="Res2NeXt-50 4w-4s-8c",
        arguments={"depths": _50, "base_width": 4, "scale": 4, "groups": 8},
        params=24_671_464,
        macs=4_172_677_120,
        oracle="timm:res2next50",
        hub="timm/res2next50.in1k",
        aliases=("res2next50_4s", "res2next50.in1k"),
        published=(Published("T1", "Res2NeXt-50", 78.24, 93.91),),
        measured_top1=78.238,
        **_RES2NET,
    ),
    "res2net50_v1b_26w_4s": Row(
        title="Res2Net-50 v1b",
        arguments={"depths": _50, "base_width": 26, "scale": 4, **_V1B},
        params=25_718_352,
        macs=4_494_807_040,
        oracle="timm:res2net50d",
        hub="timm/res2net50d.in1k",
        aliases=("res2net50_v1b", "res2net50d", "res2net50d.in1k"),
        published=(Published("T1", "Res2Net-v1b-50", 80.27, 95.04),),
        measured_top1=80.280,
        **_RES2NET,
    ),
    "res2net101_v1b_26w_4s": Row(
        title="Res2Net-101 v1b",
        arguments={"depths": _101, "base_width": 26, "scale": 4, **_V1B},
        params=45_225_920,
        macs=8_306_615_040,
        oracle="timm:res2net101d",
        hub="timm/res2net101d.in1k",
        aliases=("res2net101_v1b", "res2net101d", "res2net101d.in1k"),
        published=(Published("T1", "Res2Net-v1b-101", 81.23, 95.36),),
        measured_top1=81.236,
        **_RES2NET,
    ),
    "dla60": Row(
        title="DLA-60",
        arguments={},
        params=22_036_632,
        macs=4_235_878_400,
        oracle="timm:dla60",
        hub="timm/dla60.in1k",
        aliases=("dla60.in1k",),
        published=(Published("T1", "DLA-60", 76.68, 93.40),),
        **_DLA,
    ),
    "dla60x": Row(
        title="DLA-X-60",
        arguments={"groups": 32, "base_width": 4},
        params=17_352_344,
        macs=3_516_555_264,
        oracle="timm:dla60x",
        hub="timm/dla60x.in1k",
        aliases=("dla_x_60", "dla60x.in1k"),
        published=(Published("T1", "DLA-X-60", 77.81, 93.87),),
        **_DLA,
    ),
    "res2net_dla60": Row(
        title="Res2Net-DLA-60 28w-4s",
        arguments={"base_width": 28, "scale": 4},
        params=20_848_072,
        macs=4_122_681_344,
        oracle="timm:dla60_res2net",
        hub="timm/dla60_res2net.in1k",
        aliases=("dla60_res2net", "dla60_res2net.in1k"),
        published=(Published("T1", "Res2Net-DLA-60", 78.47, 94.20),),
        measured_top1=78.480,
        **_RES2NET_DLA,
    ),
    "res2next_dla60": Row(
        title="Res2NeXt-DLA-60 4w-4s-8c",
        arguments={"base_width": 4, "scale": 4, "groups": 8},
        params=17_032_984,
        macs=3_458_752_512,
        oracle="timm:dla60_res2next",
        hub="timm/dla60_res2next.in1k",
        aliases=("dla60_res2next", "dla60_res2next.in1k"),
        published=(Published("T1", "Res2NeXt-DLA-60", 78.45, 94.14),),
        measured_top1=78.488,
        **_RES2NET_DLA,
    ),
    "resnet26_mini": Row(
        title="ResNet-26 mini",
        factory="r2viz.models.resnet:resnet",
        arguments={**_MINI, "num_classes": 200},
        params=1_677_056,
        macs=101_651_456,
        embedded="resnet26_mini.safetensors",
        citation=_HE,
        **_SMALL,
    ),
    "res2net26_mini": Row(
        title="Res2Net-26 mini",
        factory="r2viz.models.resnet:res2net",
        arguments={**_MINI, "num_classes": 200, "base_width": 26, "scale": 4},
        params=1_667_750,
        macs=101_152_896,
        embedded="res2net26_mini.safetensors",
        citation=_GAO,
        **_SMALL,
    ),
    "se_resnet50": Row(
        title="SE-ResNet-50",
        arguments={"depths": _50, "attention": "se"},
        params=28_088_024,
        macs=4_091_699_200,
        oracle="timm:seresnet50",
        hub="timm/seresnet50.ra2_in1k",
        aliases=("seresnet50", "seresnet50.ra2_in1k"),
        published=(Published("T1", "SENet-50", 76.76, 93.31),),
        note="its public weights were trained by another recipe than the paper's, and are no baseline to Res2Net's",
        **(_RESNET | _BICUBIC | {"citation": f"{_HE}; {_HU}", "licence": "Apache-2.0 (timm)"}),
    ),
    "se_res2net50_26w_4s": Row(
        title="SE-Res2Net-50 26w-4s",
        arguments={"depths": _50, "base_width": 26, "scale": 4, "attention": "se"},
        params=28_230_112,
        macs=4_257_681_408,
        aliases=("se_res2net50",),
        published=(Published("T1", "SE-Res2Net-50", 78.44, 94.06),),
        note=f"26w-4s is our reading, after the paper's Res2Net-50; {_UNTRAINED}",
        **(_RES2NET | {"citation": f"{_GAO}; {_HU}"} | _NONE),
    ),
    "bl_resnet50": Row(
        title="bLResNet-50",
        arguments={"depths": _50, "alpha": 2, "beta": 4},
        params=26_694_568,
        macs=2_856_058_880,
        aliases=("blresnet50", "blresnet50_a2_b4"),
        published=(Published("T1", "bLResNet-50", 77.59),),
        note="its authors' weights are on no hub; key names are theirs, so their checkpoint can be given as a file",
        **(_RESNET | {"factory": "r2viz.models.biglittle:bl_resnet", "citation": _CHEN, "licence": _IBM}),
    ),
    "bl_res2net50_26w_4s": Row(
        title="bLRes2Net-50 26w-4s",
        arguments={"depths": _50, "alpha": 2, "beta": 4, "base_width": 26, "scale": 4},
        params=26_845_561,
        macs=2_993_782_592,
        aliases=("bl_res2net50", "blres2net50"),
        published=(Published("T1", "bLRes2Net-50", 78.32, 94.00),),
        note=f"26w-4s and which blocks cascade are our reading; {_UNTRAINED}",
        **(_RES2NET | {"factory": "r2viz.models.biglittle:bl_res2net", "citation": f"{_GAO}; {_CHEN}"} | _NONE),
    ),
    "res2net50_26w_4s_299": Row(
        title="Res2Net-50 26w-4s, 299 px",
        arguments={"depths": _50, "base_width": 26, "scale": 4},
        params=25_699_120,
        macs=7_927_708_484,
        oracle="timm:res2net50_26w_4s",
        hub="timm/res2net50_26w_4s.in1k",
        aliases=("res2net50_299",),
        published=(Published("T1", "Res2Net-50-299", 78.59, 94.12),),
        note="Res2Net-50 26w-4s fed larger pictures than its public weights were trained on (224 px)",
        **(_RES2NET | {"preprocess": Preprocess(resize=341, crop=(299, 299))}),
    ),
    "densenet161": Row(
        title="DenseNet-161",
        factory="torchvision.models:densenet161",
        params=28_681_000,
        macs=7_727_907_072,
        oracle="torchvision:densenet161",
        hub="timm/densenet161.tv_in1k",
        aliases=("densenet161.tv_in1k",),
        published=(Published("T2", "DenseNet-161", 77.65, 93.80),),
        # From another edition of timm's list than the other rows' (as Inception's); editions differ by up to 0.06.
        measured_top1=77.358,
        citation="Huang et al. 2017, arXiv 1608.06993",
        licence="BSD-3-Clause (torchvision)",
        **_BICUBIC,
    ),
    "inception_v3": Row(
        title="Inception-v3",
        factory="torchvision.models:inception_v3",
        # The weights want channels of -1 … 1, which their preprocessing gives already. Without torchvision's own
        # initialisation a fresh network answers every picture alike (logits differ by 4e-9).
        arguments={"aux_logits": True, "transform_input": False, "init_weights": True},
        params=27_161_264,
        macs=5_713_216_096,
        oracle="torchvision:inception_v3",
        hub="timm/inception_v3.tv_in1k",
        aliases=("inception_v3.tv_in1k",),
        published=(Published("T1", "InceptionV3", 77.45, 93.56),),
        measured_top1=77.434,
        note="3,326,696 of its parameters are an auxiliary head's, used in training only and not counted in macs",
        preprocess=Preprocess(
            resize=341, crop=(299, 299), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic"
        ),
        classes="imagenet",
        citation="Szegedy et al. 2016, arXiv 1512.00567",
        licence="BSD-3-Clause (torchvision)",
    ),
    **CIFAR,
}

# --- Names -----------------------------------------------------------------------------------------------------------

_NAMES = {name: key for key, known in ZOO.items() for name in (key, *known.aliases)}


def canonical(name: str) -> str:
    """The table's name for `name` or one of its aliases; the name of a network elsewhere stays as it is.

    Raises:
        UnknownName: no such network in the table; the message suggests the nearest.
    """
    if name in _NAMES:
        return _NAMES[name]
    if elsewhere.is_elsewhere(name):
        return name
    raise UnknownName(
        f"no model {one_line(name)!r}{nearest(name, _NAMES)}; `r2viz models` lists all {len(ZOO)}, and there are "
        "timm:NAME, torchvision:NAME and path/to/file.py:factory",
        code="unknown_name.model",
    )


def row(name: str) -> Row:
    """What is known of the network called `name`: a name of the table, an alias, or a name elsewhere.

    Imports no torch for names of the table.

    Raises:
        UnknownName: no such network; the message suggests the nearest.
        ModelError: its library is not installed, or its file cannot be run.
    """
    name = canonical(name)
    return ZOO[name] if name in ZOO else elsewhere.row(name)
