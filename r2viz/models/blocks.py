"""The two residual blocks that r2viz compares: ResNet's bottleneck and Res2Net's.

Both take the same arguments, so that either can be given to the assemblies in `r2viz.models.resnet` and
`r2viz.models.dla`: that is the paper's own point (arXiv 1904.01169, section 3: the block "can be plugged into"
existing backbones). An assembly that narrows by another factor than 4 sets `expansion` in a subclass; one that has
computed the shortcut elsewhere calls `block(x, shortcut)`; one that adds something more before the last ReLU sets
`rectified` of that block to False.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as _everywhere
from torchvision.models.resnet import Bottleneck as TorchvisionBottleneck

NormLayer = Callable[[int], nn.Module]
Attention = Callable[[int], nn.Module]


class Bottleneck(TorchvisionBottleneck):
    """ResNet's bottleneck as torchvision has it (stride in the 3x3), with a place for channel attention.

    Parameters are those of `Res2NetBlock`; `first` has no meaning here and is accepted so that both blocks fit
    one assembly. Maps `(N, inplanes, H, W)` to `(N, expansion·planes, H/stride, W/stride)`.

    Source: He et al. 2016; `attention` sits after `bn3`, before the addition (Hu et al. 2018).
    """

    rectified = True

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: NormLayer = nn.BatchNorm2d,
        *,
        first: bool = False,
        attention: Attention | None = None,
    ) -> None:
        super().__init__(inplanes, planes, stride, downsample, groups, base_width, dilation, norm_layer)
        if attention is not None:
            self.se = attention(planes * self.expansion)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        over = unwatched(self, x)
        out = self.relu(through((self.conv1, self.bn1), x, over=over))
        out = self.relu(through((self.conv2, self.bn2), out, over=over))
        return _joined(self, through((self.conv3, self.bn3), out, over=over), x, shortcut, over=over)


class Res2NetBlock(nn.Module):
    """A residual block whose features are split into `scale` groups joined by hierarchical residual connections.

    Maps `(N, inplanes, H, W)` to `(N, expansion·planes, H/stride, W/stride)`. Inside, `conv1` gives `scale` groups of
    `width = floor(planes · base_width / 64) · groups` channels, x_0 … x_{s-1} in code order, and

        y_0 = K_0(x_0),   y_i = K_i(x_i + y_{i-1})  for 0 < i < s-1,   y_{s-1} = x_{s-1}

    where each K_i is a 3x3 convolution, batch normalisation and ReLU. In the *first block of a stage* the additions
    are absent, y_i = K_i(x_i), and the last group goes through a 3x3 average pooling with the stage's stride.

    Source: arXiv 1904.01169, equation 1. The equation passes the *first* group through, the official code and this
    one the *last*: the same up to a permutation of channels. The rule for first-of-stage blocks is in no version of
    the paper; it is what the published weights were trained with. With `scale=1` there is one group, which is
    convolved: ResNet's bottleneck.

    Each y_i leaves through a parameterless `nn.Identity` named `split{i}`, a point that hooks can name (the block's
    one ReLU is called `scale + 1` times, so it cannot serve). State-dict keys are those of the published weights:
    `conv1 bn1 convs.i bns.i conv3 bn3 downsample.*`.
    """

    expansion = 4
    rectified = True

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 26,
        dilation: int = 1,
        norm_layer: NormLayer = nn.BatchNorm2d,
        *,
        scale: int = 4,
        first: bool = False,
        attention: Attention | None = None,
    ) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale is {scale}; a block needs at least one group of features")
        self.scale = scale
        self.first = first
        self.stride = stride
        self.width = width = int(planes * base_width / 64) * groups
        if width < 1:
            raise ValueError(
                f"with {planes} planes and base width {base_width} a group has no channel; widen one of them"
            )
        outplanes = planes * self.expansion
        convolved = max(1, scale - 1)

        self.conv1 = nn.Conv2d(inplanes, width * scale, 1, bias=False)
        self.bn1 = norm_layer(width * scale)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride, dilation, dilation, groups, bias=False) for _ in range(convolved)
        )
        self.bns = nn.ModuleList(norm_layer(width) for _ in range(convolved))
        if first and scale > 1:
            # Never dilated, and its padding counts: both as in the published weights.
            self.pool = nn.AvgPool2d(3, stride, padding=1)
        for index in range(scale):
            self.add_module(f"split{index}", nn.Identity())
        self.conv3 = nn.Conv2d(width * scale, outplanes, 1, bias=False)
        self.bn3 = norm_layer(outplanes)
        if attention is not None:
            self.se = attention(outplanes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        over = unwatched(self, x)
        features = self.relu(through((self.conv1, self.bn1), x, over=over))
        groups = features.split(self.width, dim=1)
        outputs: list[Tensor] = []
        for index, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            cascade = index > 0 and not self.first
            y = groups[index] + outputs[-1] if cascade else groups[index]
            outputs.append(self.get_submodule(f"split{index}")(self.relu(through((conv, bn), y, over=over))))
        if self.scale > 1:
            last = self.pool(groups[-1]) if self.first else groups[-1]
            outputs.append(self.get_submodule(f"split{self.scale - 1}")(last))
        if over and self.stride == 1:
            # Every x_i has been used: the y_i take their places, and the last one, passed through, is there already.
            for group, y in zip(groups, outputs, strict=True):
                if y is not group:
                    group.copy_(y)
        else:
            features = torch.cat(outputs, dim=1)
        return _joined(self, through((self.conv3, self.bn3), features, over=over), x, shortcut, over=over)


def _joined(block: Bottleneck | Res2NetBlock, out: Tensor, x: Tensor, shortcut: Tensor | None, *, over: bool) -> Tensor:
    """How both blocks end: attention, the addition of the shortcut, ReLU."""
    if hasattr(block, "se"):
        out = block.se(out)
    if shortcut is None:
        shortcut = x
        if over and isinstance(block.downsample, nn.Sequential):
            shortcut = through(block.downsample, x, over=over)
        elif block.downsample is not None:
            shortcut = block.downsample(x)
    out += shortcut
    return block.relu(out) if block.rectified else out


# --- Memory ----------------------------------------------------------------------------------------------------------
# On the CPU a large tensor is fresh memory from the operating system every time, and touching it for the first time
# costs several times what a normalisation computes (batch 16 at 224 px: 30 ms instead of 5). So where nobody could
# tell, results are written over what they are made of, at the same numbers to the last bit.

_LARGE = 2**20  # bytes; what is smaller comes from memory that the process already has


def unwatched(module: nn.Module, x: Tensor) -> bool:
    """Whether what `module` makes of `x` on the way may be overwritten: no gradient, hook, trace or transform sees it.

    `module` computes on the CPU, in evaluation mode, on a tensor large enough that it matters.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if type(x) is not Tensor or x.device.type != "cpu" or x.nbytes < _LARGE or module.training:
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return False
    if forward_ad.unpack_dual(x).tangent is not None:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or any(part.requires_grad for part in module.parameters())):
        return False
    if _everywhere._global_forward_hooks or _everywhere._global_forward_pre_hooks:
        return False
    return not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules() if part is not module)


def through(layers: Iterable[nn.Module], x: Tensor, *, over: bool) -> Tensor:
    """`x` through the layers in turn; with `over`, a normalisation overwrites the output of the convolution before it.

    `over` is what `unwatched` said of the module that they belong to.
    """
    fresh = False
    for layer in layers:
        if over and fresh and type(layer) is nn.BatchNorm2d and _plain(layer, x):
            nothing = x.new_empty(0)
            torch.native_batch_norm(
                x, layer.weight, layer.bias, layer.running_mean, layer.running_var, False, 0.0, layer.eps,
                out=(x, nothing, nothing),
            )  # fmt: skip
        else:
            x = layer(x)
        fresh = type(layer) is nn.Conv2d
    return x


def _plain(layer: nn.BatchNorm2d, x: Tensor) -> bool:
    return not layer.training and layer.affine and layer.running_mean is not None and x.dtype == layer.weight.dtype
