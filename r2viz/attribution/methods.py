"""Every method, in one visible table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from r2viz.attribution.decomposition import centred_eigencam, eigencam, eigengradcam, fem, kpcacam
from r2viz.attribution.fullgrad import fullgrad
from r2viz.attribution.gradient import (
    cam,
    gradcam,
    gradcam_plus_plus,
    hirescam,
    layercam,
    random,
    shapleycam,
    xgradcam,
)
from r2viz.attribution.perturbation import ablationcam, iscam, scorecam, sscam
from r2viz.attribution.pixels import (
    guided_backpropagation,
    guided_gradcam,
    integrated_gradients,
    lrp,
    occlusion,
    saliency,
    smoothgrad,
)
from r2viz.attribution.sampling import smooth_gradcam_plus_plus
from r2viz.attribution.scores import Score, Targets, finer_score, rest_score, score_of
from r2viz.errors import UnknownName, nearest


@dataclass(frozen=True)
class Method:
    """A row of the table of methods.

    Attributes:
        function: what makes the map; its arguments are what `needs` says.
        needs: `"activations"`: `(activations)`; `"gradients"`: `(activations, gradients)`, both `(N, C, h, w)`;
            `"curvature"`: `(activations, gradients, Hessian times activations)`;
            `"rerun"`: `(Rerun)`, for methods that run the network, or what follows the layer, again;
            `"pixels"`: `(Rerun)`, for attributions of input pixels, whose map is `(N, H, W)` whatever the layer.
        title: what a figure calls it.
        citation: where it is defined.
        per_class: whether the map depends on the target.
        note: how it departs from its source, or what one must know to read it.
        layered: of a method of pixels: whether its map depends on the layer, too.
        score: `(targets, output) -> Score`: the number that a target stands for; a class's logit unless the method
            explains another.
    """

    function: Callable[..., Tensor]
    title: str
    citation: str
    needs: Literal["activations", "gradients", "curvature", "rerun", "pixels"] = "gradients"
    per_class: bool = True
    note: str = ""
    layered: bool = False
    score: Callable[[Targets, Any], Score] = score_of


METHODS: dict[str, Method] = {
    "gradcam": Method(gradcam, "Grad-CAM", "Selvaraju et al. 2017, arXiv 1610.02391"),
    "cam": Method(
        cam,
        "CAM",
        "Zhou et al. 2016, arXiv 1512.04150",
        needs="rerun",
        note="only right before average pooling and one linear layer or 1x1 convolution; there Grad-CAM times the "
        "number of positions",
    ),
    "gradcam++": Method(
        gradcam_plus_plus,
        "Grad-CAM++",
        "Chattopadhay et al. 2018, arXiv 1710.11063",
        note="exact; torch-cam 0.5 leaves α out, and the constant that pytorch-grad-cam adds outweighs small gradients",
    ),
    "smoothgradcam++": Method(
        smooth_gradcam_plus_plus,
        "Smooth Grad-CAM++",
        "Omeiza et al. 2019, arXiv 1908.01224",
        needs="rerun",
        note="4 copies, noise of 0.3 in units of the preprocessed input, the same for all pictures",
    ),
    "xgradcam": Method(
        xgradcam,
        "XGrad-CAM",
        "Fu et al. 2020, arXiv 2008.02312",
        note="where average pooling and a linear layer follow, the same as Grad-CAM",
    ),
    "layercam": Method(layercam, "Layer-CAM", "Jiang et al. 2021, doi 10.1109/TIP.2021.3089943"),
    "hirescam": Method(
        hirescam,
        "HiRes-CAM",
        "Draelos & Carin 2020, arXiv 2011.08891",
        note="where average pooling and a linear layer follow, the same as Grad-CAM",
    ),
    "shapleycam": Method(
        shapleycam,
        "Shapley-CAM",
        "Cai 2025, arXiv 2501.06261",
        needs="curvature",
        score=rest_score,
        note="explains y + log softmax(y), the paper's ReST: a bare logit of a network of ReLUs has no curvature",
    ),
    "finercam": Method(
        gradcam,
        "Finer-CAM",
        "Zhang et al. 2025, arXiv 2501.11309",
        score=finer_score,
        note="Grad-CAM of the class's logit minus 0.6 times the mean logit of the three classes nearest to it",
    ),
    "eigencam": Method(
        eigencam,
        "Eigen-CAM",
        "Muhammad & Yeasin 2020, arXiv 2008.00299",
        needs="activations",
        per_class=False,
        note="features are not centred, as in the paper: away from the last layers mostly their mean",
    ),
    "eigencam-centred": Method(
        centred_eigencam,
        "Eigen-CAM (centred)",
        "after Muhammad & Yeasin 2020, arXiv 2008.00299; the centring is pytorch-grad-cam's",
        needs="activations",
        per_class=False,
        note="what pytorch-grad-cam calls Eigen-CAM; positive where the layer is more active than on average",
    ),
    "eigengradcam": Method(
        eigengradcam,
        "EigenGrad-CAM",
        "after Muhammad & Yeasin 2020, arXiv 2008.00299; the product with gradients is pytorch-grad-cam's",
        note="centred; positive where there is more evidence for the class than on average",
    ),
    "kpcacam": Method(
        kpcacam,
        "KPCA-CAM",
        "Karmani et al. 2024, arXiv 2410.00267",
        needs="activations",
        per_class=False,
        note="sigmoid kernel; its matrix has as many rows as the layer has positions",
    ),
    "fem": Method(
        fem,
        "FEM",
        "Fuad et al. 2020, doi 10.1109/IPTA50016.2020.9286629",
        needs="activations",
        per_class=False,
        note="the authors' map; pytorch-grad-cam's of this name is another",
    ),
    "fullgrad": Method(
        fullgrad,
        "FullGrad",
        "Srinivas & Fleuret 2019, arXiv 1905.00780",
        needs="pixels",
        note="of the whole network, never negative; a sum of rescaled parts, so its height means nothing",
    ),
    "ablationcam": Method(
        ablationcam,
        "Ablation-CAM",
        "Desai & Ramaswamy 2020, doi 10.1109/WACV45572.2020.9093360",
        needs="rerun",
        note="divided by the score's absolute value, so that a negative score does not turn the map inside out",
    ),
    "scorecam": Method(
        scorecam,
        "Score-CAM",
        "Wang et al. 2020, arXiv 1910.01279",
        needs="rerun",
        note="a whole pass per channel; `channels` looks only at those that vary most",
    ),
    "sscam": Method(
        sscam,
        "SS-CAM",
        "Wang et al. 2020, arXiv 2006.14255",
        needs="rerun",
        note="35 passes per channel; noise of 2 on masks from 0 to 1, the same for all channels",
    ),
    "iscam": Method(
        iscam,
        "IS-CAM",
        "Naidu et al. 2020, arXiv 2010.03023",
        needs="rerun",
        note="10 passes per channel; masks are summed up, so the last ones are brighter than the picture",
    ),
    "occlusion": Method(
        occlusion,
        "Occlusion",
        "Zeiler & Fergus 2014, arXiv 1311.2901; captum",
        needs="pixels",
        note="a grey window of an eighth of each side",
    ),
    "integratedgradients": Method(
        integrated_gradients,
        "Integrated gradients",
        "Sundararajan et al. 2017, arXiv 1703.01365; captum",
        needs="pixels",
        note="from the data set's mean colour",
    ),
    "saliency": Method(saliency, "Saliency", "Simonyan et al. 2013, arXiv 1312.6034; captum", needs="pixels"),
    "smoothgrad": Method(
        smoothgrad,
        "SmoothGrad",
        "Smilkov et al. 2017, arXiv 1706.03825",
        needs="pixels",
        note="16 noisy copies, noise of 15 % of the picture's range",
    ),
    "guidedgradcam": Method(
        guided_gradcam,
        "Guided Grad-CAM",
        "Selvaraju et al. 2017, arXiv 1610.02391; captum",
        needs="pixels",
        layered=True,
        note="guided backpropagation hardly depends on what was learnt: see the randomisation check",
    ),
    "guidedbackprop": Method(
        guided_backpropagation,
        "Guided backpropagation",
        "Springenberg et al. 2014, arXiv 1412.6806; captum",
        needs="pixels",
        note="hardly depends on the class or on what was learnt: a control",
    ),
    "lrp": Method(
        lrp,
        "LRP (epsilon)",
        "Bach et al. 2015, doi 10.1371/journal.pone.0130140; captum",
        needs="pixels",
        note="networks whose layers captum has rules for",
    ),
    "random": Method(
        random,
        "Random (control)",
        "no method: a control, see Adebayo et al. 2018, arXiv 1810.03292",
        needs="rerun",
        per_class=False,
        note="independent uniform numbers, drawn from the seed, the layer and the picture's content",
    ),
}


def method_named(name: str) -> Method:
    """The row of `METHODS`.

    Raises:
        UnknownName: there is none of that name.
    """
    if name not in METHODS:
        raise UnknownName(
            f"no method {name!r}{nearest(name, METHODS)}; there are {', '.join(METHODS)}", code="unknown_name.method"
        )
    return METHODS[name]
