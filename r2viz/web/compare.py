"""Compare: a picture, both networks' class activation maps, the difference, and the files to take away."""

from __future__ import annotations

import shlex
from pathlib import Path

import streamlit as st

from r2viz.errors import R2VizError, one_line
from r2viz.explain import explain
from r2viz.figures import figure, provenance, render
from r2viz.image import SUFFIXES, Picture, decode
from r2viz.models.model import Model, load_pair
from r2viz.records import CamRecord
from r2viz.store import dumps, npz
from r2viz.summary import lines

LAYERS = ("layer4", "layer3", "layer2", "layer1")
"""The stages of the pairs that can be chosen here, the last one, which is the default, first."""
POLICIES = {
    "shared": "one class for both, the most probable on average",
    "top1": "each network's own top-1",
    "agree": "only where both agree",
    "label": "a class that I name",
}
WEIGHTS = {
    "auto": "trained weights",
    "mini": "the mini pair that ships with r2viz",
    "random": "random weights (untrained networks)",
}


def main() -> None:
    """The page."""
    st.set_page_config(page_title="r2viz: ResNet and Res2Net, looking", layout="wide")
    st.title("What does Res2Net see that ResNet doesn't?")
    st.caption("One picture, two networks, the class activation map of each, and the difference between the two.")
    with st.sidebar:
        picture = _choose_picture()
        weights = st.radio("Weights", list(WEIGHTS), format_func=WEIGHTS.__getitem__, key="weights")
        layer = st.select_slider("Layer (early to late)", LAYERS[::-1], value=LAYERS[0], key="layer")
        policy = st.radio("Class to explain", list(POLICIES), format_func=POLICIES.__getitem__, key="policy")
        label = st.text_input("Label or index", key="label").strip() if policy == "label" else ""
    if picture is None:
        st.info("Choose an example or upload a picture.")
        return
    if policy == "label" and not label:
        st.info("Name the class: a label such as tabby, or an index.")
        return
    try:
        record = _explained((picture.sha256, picture.name), picture, weights, layer, label or policy)
    except R2VizError as error:
        st.error(one_line(str(error), 600))
        return
    _show(record, weights, layer, label or policy)


def _choose_picture() -> Picture | None:
    uploaded = st.file_uploader("Your picture", type=sorted(suffix.lstrip(".") for suffix in SUFFIXES), key="upload")
    examples = _examples()
    example = st.selectbox("or an example", list(examples), key="example", disabled=uploaded is not None)
    try:
        if uploaded is not None:
            return _decoded(uploaded.getvalue(), uploaded.name)
        return None if example is None else _decoded(examples[example].read_bytes(), examples[example].name)
    except R2VizError as error:
        st.error(one_line(str(error), 600))
        return None


def _examples() -> dict[str, Path]:
    """The shipped pictures by title: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    folder = next((place for place in (package / "examples", package.parent / "examples") if place.is_dir()), None)
    files = [] if folder is None else sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    return {path.stem.replace("_", " "): path for path in files}


@st.cache_data(max_entries=16, show_spinner=False)
def _decoded(encoded: bytes, name: str) -> Picture:
    return decode(encoded, name=name)


@st.cache_resource(max_entries=2, show_spinner="Loading both networks …")
def _pair(weights: str) -> tuple[Model, Model]:
    return load_pair("auto", weights=weights, device="auto")


@st.cache_data(max_entries=32, show_spinner="Looking …")
def _explained(identity: tuple[str, str], _picture: Picture, weights: str, layer: str, target: str) -> CamRecord:
    # Keyed by the digest: Streamlit would hash a large array by a sample of it.
    return explain(_picture, _pair(weights), layers=[layer], target=target)


@st.cache_data(max_entries=32, show_spinner="Drawing …")
def _drawn(identity: tuple[str, str, str], _record: CamRecord) -> bytes:
    return render(figure(_record), identity[2], provenance=provenance(_record))


def _file(record: CamRecord, kind: str) -> bytes:
    # Equal pictures of different names have one digest, but each its own title.
    return _drawn((record.digest, record.picture.name, kind), record)


def _show(record: CamRecord, weights: str, layer: str, target: str) -> None:
    names = " and ".join(view.title for view in record.views)
    if weights == "auto" and any(view.weights["kind"] == "embedded" for view in record.views):
        st.info(
            "The ImageNet weights are neither cached nor reachable, so this is the mini pair that ships with r2viz: "
            "200 classes, 64-pixel pictures."
        )
    st.image(
        _file(record, "png"),
        alt=f"Class activation maps of {record.picture.name} by {names}",
        width="stretch",
    )
    stem = Path(record.picture.name).stem[:60] or "picture"
    columns = st.columns(4)
    columns[0].download_button("PNG", _file(record, "png"), f"{stem}.cam.png", on_click="ignore")
    columns[1].download_button("PDF", lambda: _file(record, "pdf"), f"{stem}.cam.pdf", on_click="ignore")
    columns[2].download_button("NPZ (raw maps)", lambda: npz(record), f"{stem}.cam.npz", on_click="ignore")
    columns[3].download_button(
        "JSON (record)", lambda: dumps(record, arrays=f"{stem}.cam.npz"), f"{stem}.cam.json", on_click="ignore"
    )
    st.code("\n".join(lines(record)), language=None)
    command = ["r2viz", "cam", record.picture.name, "--weights", weights, "--layer", layer, "--target", target]
    st.caption("The same on the command line:")
    st.code(shlex.join(command), language="bash")
