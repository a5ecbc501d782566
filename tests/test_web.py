"""The app's page, run by Streamlit's own test harness over a tiny pair."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import tiny

ROOT = Path(__file__).parents[1]
WEB = ROOT / "r2viz" / "web"


@pytest.fixture
def page(monkeypatch):
    """The real script `app.py`, its pair replaced by two tiny networks; `page.asked` says how often it was loaded."""
    import streamlit as st
    from streamlit.testing.v1 import AppTest

    asked = []

    def load_pair(name, **options):
        asked.append(options["weights"])
        return tiny.pair(kind="random" if options["weights"] == "random" else "file")

    monkeypatch.setattr("r2viz.web.compare.load_pair", load_pair)
    st.cache_data.clear()
    st.cache_resource.clear()
    with tiny.one_thread():
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120)
        app.run()
        app.asked = asked
        yield app
    st.cache_data.clear()
    st.cache_resource.clear()


def test_the_first_example_is_explained_at_once(page):
    assert not page.exception
    assert not page.error
    assert page.selectbox(key="example").value == "bison"
    assert "Grad-CAM" in page.code[0].value
    assert "ResNet tiny" in page.code[0].value
    assert page.asked == ["auto"]


def test_changing_the_layer_computes_anew_but_loads_nothing(page):
    page.select_slider(key="layer").set_value("layer2").run()
    assert "layer2: raw maximum" in page.code[0].value
    assert page.asked == ["auto"]


def test_random_weights_say_so(page):
    page.radio(key="weights").set_value("random").run()
    assert "RANDOM WEIGHTS" in page.code[0].value
    assert "--weights random" in page.code[1].value


def test_a_label_is_asked_for_and_a_wrong_one_is_a_sentence(page):
    page.radio(key="policy").set_value("label").run()
    assert "Name the class" in page.info[0].value
    page.text_input(key="label").set_value("cta").run()
    assert "did you mean 'cat'?" in page.error[0].value
    assert not page.exception
    page.text_input(key="label").set_value("fox").run()
    assert not page.error
    assert "'fox'" in page.code[0].value


def test_an_upload_takes_the_place_of_the_example(page):
    import cv2

    encoded = cv2.imencode(".png", tiny.photo(40, 60))[1].tobytes()
    page.file_uploader(key="upload").upload("mine.png", encoded, "image/png").run()
    assert not page.exception
    assert page.code[0].value.startswith("mine.png:")


def test_a_hostile_upload_is_one_sentence_and_the_app_goes_on(page):
    page.file_uploader(key="upload").upload("<b>x</b>.png", b"<svg onload=alert(1)>", "image/png").run()
    assert len(page.error) == 1
    assert not page.exception
    page.select_slider(key="layer").set_value("layer3").run()
    assert not page.exception


def test_every_example_is_offered():
    from r2viz.web.compare import _examples

    files = {path.name for path in _examples().values()}
    assert files == {path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".jpg", ".png")}
    assert len(files) >= 6


def test_downloads_are_those_of_the_command_line(page):
    from r2viz.explain import explain
    from r2viz.figures import figure, provenance, render
    from r2viz.store import dumps, npz
    from r2viz.web import compare

    record = explain(ROOT / "examples" / "cat.jpg", tiny.pair())
    assert compare._file(record, "png") == render(figure(record), "png", provenance=provenance(record))
    assert json.loads(dumps(record))["kind"] == "cam"
    assert npz(record)[:2] == b"PK"
    assert np.isfinite(record.views[0].maps[0].raw).all()


def test_nothing_under_web_computes():
    """Pages ask and show: they import neither numbers nor networks."""
    computing = {"torch", "torchvision", "numpy", "cv2", "scipy"}
    for path in WEB.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in names:
                assert name.split(".")[0] not in computing, f"{path.name}: {name}"


def test_the_server_runs_our_page_on_this_machine_only(monkeypatch):
    from r2viz.web import server

    seen = []
    monkeypatch.setattr(server.os, "execv", lambda program, command: seen.extend(command))
    monkeypatch.setattr(server.subprocess, "call", lambda command: 0)
    server.serve(port=8599, address="127.0.0.1", browser=False)
    assert "--server.address=127.0.0.1" in seen
    assert "--browser.gatherUsageStats=false" in seen
    assert Path(seen[4]).is_file()
