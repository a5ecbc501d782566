"""Networks that are not in the table: `timm:NAME`, `torchvision:NAME`, `path/to/file.py:factory`.

Telling such a name from the table's costs nothing; looking one up imports its library, and so torch.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import os
import re
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from r2viz.errors import ModelError, UnknownName, nearest, one_line
from r2viz.geometry import Preprocess
from r2viz.models.row import Row
from r2viz.models.weights import file_digest, read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

_LIBRARIES = ("timm", "torchvision")
_FILE = re.compile(r"(?P<path>.+\.py):(?P<factory>[^\W\d]\w*)")
_reading = threading.Lock()
_ran: dict[tuple[str, int], ModuleType] = {}


def is_elsewhere(name: str) -> bool:
    """Whether `name` has the form of a network that is not the table's; says nothing of whether it exists."""
    return name.partition(":")[0] in _LIBRARIES or _parts(name) is not None


def plain(name: str) -> str:
    """The name without folders, as it may stand in a record or, with `:` replaced, name a file."""
    file = _parts(name)
    return name if file is None else f"{Path(file[0]).name}:{file[1]}"


def identity(name: str) -> str:
    """The name without folders, and with the content of its file where it is one: what a result may depend on."""
    file = _parts(name)
    return plain(name) if file is None else f"{plain(name)}@{file_digest(file[0])}"


def row(name: str) -> Row:
    """What is known of the network called `name`, asked of its library or read from its file.

    Its `params` and `macs` are 0: nothing is built to count them.

    Raises:
        ModelError: its library is not installed, or its file cannot be run.
        UnknownName: there is no such network, file or factory; the message suggests the nearest.
    """
    library, _, called = name.partition(":")
    if library == "timm":
        return _timm_row(called)
    if library == "torchvision":
        return _torchvision_row(called)
    file = _parts(name)
    if file is None:
        raise UnknownName(f"no model {one_line(name)!r}", code="unknown_name.model")
    return _file_row(*file)


def _parts(name: str) -> tuple[str, str] | None:
    match = _FILE.fullmatch(name)
    return None if match is None else (match["path"], match["factory"])


def _unknown(name: str, near: str, there: str) -> UnknownName:
    return UnknownName(f"no model {one_line(name)!r}{near}; {there}", code="unknown_name.model")


# --- timm ------------------------------------------------------------------------------------------------------------


def _timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ModelError(
            "networks called timm:NAME need timm, which is not installed; run: pip install timm", code="model.timm"
        ) from None


def _timm_row(called: str) -> Row:
    timm = _timm()
    architecture, _, tag = called.partition(".")
    if not timm.is_model(architecture):
        raise _unknown(
            f"timm:{called}", _near("timm", architecture, timm.list_models()), f"timm {timm.__version__} has no such"
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        there = f"weights of timm:{architecture} are called {', '.join(tags)}" if tags else "it has no weights in timm"
        raise _unknown(f"timm:{called}", nearest(tag, tags), there)
    config = timm.get_pretrained_cfg(called)
    if config.input_size[0] != 3:
        raise ModelError(f"timm:{called} takes {config.input_size[0]} channels; r2viz looks at RGB pictures")
    size = config.input_size[1:]
    tag = tag or (config.tag or "" if config.hf_hub_id else "")
    return Row(
        title=f"{architecture} (timm{f' {tag}' if tag else ''})",
        factory=f"{__name__}:timm_network",
        arguments={"name": f"{architecture}.{tag}" if tag else architecture},
        hub=config.hf_hub_id,
        preprocess=Preprocess(
            resize=math.floor(min(size) / config.crop_pct),
            crop=size,
            mean=config.mean,
            std=config.std,
            mode="squash" if config.crop_mode == "squash" else "crop",
            interpolation=config.interpolation,
        ),
        classes="imagenet" if config.num_classes == 1000 else "",
        citation=str(config.paper_ids or config.origin_url or "timm"),
        licence=f"{config.license or 'unknown'} (timm)",
        params=0,
        macs=0,
        oracle=f"timm:{architecture}",
        note="" if config.hf_hub_id else "timm has none for it on the hub",
    )


def _near(library: str, name: str, known: list[str]) -> str:
    return nearest(name, known).replace("'", f"'{library}:", 1)


def timm_network(name: str, *, file: Path | None = None, **more: Any) -> nn.Module:
    """A network of timm's; its public weights come from `file`, taken in as timm would, which renames old keys."""
    timm = _timm()
    if file is None:
        return timm.create_model(name, pretrained=False, **more)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": read(file)}, **more)


# --- torchvision -----------------------------------------------------------------------------------------------------


def _torchvision_row(called: str) -> Row:
    from torchvision import models

    architecture, _, tag = called.partition(".")
    known = models.list_models(module=models)
    if architecture not in known:
        raise _unknown(
            f"torchvision:{called}",
            _near("torchvision", architecture, known),
            "torchvision has no such classification network",
        )
    versions = {version.name: version for version in models.get_model_weights(architecture)}
    if tag and tag not in versions:
        there = f"weights of torchvision:{architecture} are called {', '.join(versions)}"
        raise _unknown(f"torchvision:{called}", nearest(tag, versions), there)
    # The first weights, of the plain recipe, and not the library's default of the day: what papers compare with.
    version = versions[tag or next(iter(versions))]
    about = version.transforms()
    categories = version.meta.get("categories", ())
    return Row(
        title=f"{architecture} (torchvision{'' if len(versions) == 1 else f' {version.name}'})",
        factory=f"{__name__}:torchvision_network",
        arguments={"name": f"{architecture}.{version.name}"},
        url=version.url,
        preprocess=Preprocess(
            resize=about.resize_size[0],
            crop=(about.crop_size[0], about.crop_size[0]),
            mean=tuple(about.mean),
            std=tuple(about.std),
            interpolation=about.interpolation.value,
        ),
        classes="imagenet" if len(categories) == 1000 else "",
        citation=version.meta.get("recipe", "torchvision"),
        licence="BSD-3-Clause (torchvision)",
        params=0,
        macs=0,
        oracle=f"torchvision:{architecture}",
    )


def torchvision_network(name: str, *, file: Path | None = None, **more: Any) -> nn.Module:
    """A network of torchvision's; its public weights, `file`, are in torch's own cache and taken in from there."""
    from torchvision import models

    architecture, _, version = name.partition(".")
    if file is None:
        fresh = {"init_weights": True} if architecture in ("googlenet", "inception_v3") else {}
        return models.get_model(architecture, weights=None, **fresh, **more)
    with _tensors_only():
        return models.get_model(architecture, weights=models.get_model_weights(architecture)[version], **more)


@contextmanager
def _tensors_only() -> Iterator[None]:
    """torch.load reads no pickle that would run code, whoever calls it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    with _reading:
        before = os.environ.get(name)
        os.environ[name] = "1"
        try:
            yield
        finally:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


# --- A file of the user's ---------------------------------------------------------------------------------------------


def _file_row(path: str, factory: str) -> Row:
    called = plain(f"{path}:{factory}")
    content = _executed(path)
    preprocess = getattr(content, "PREPROCESS", Preprocess())
    _factory(content, path, factory)
    if not isinstance(preprocess, Preprocess):
        raise ModelError(
            f"PREPROCESS in {one_line(path)} is a {type(preprocess).__name__}; expected r2viz's Preprocess"
        )
    return Row(
        title=factory,
        factory=f"{__name__}:file_network",
        arguments={"path": os.path.abspath(path), "factory": factory},
        preprocess=preprocess,
        classes="imagenet",
        citation=called,
        licence="the file's own",
        params=0,
        macs=0,
        note="it is a file of yours",
    )


def file_network(path: str, factory: str, **more: Any) -> nn.Module:
    """What `factory` in the Python file at `path` returns; `num_classes` is passed on if it takes it.

    Raises:
        UnknownName: there is no such file, or no such factory in it.
        ModelError: the file or the factory fails, or what it returns is no network.
    """
    from torch import nn

    make = _factory(_executed(path), path, factory)
    called = f"{one_line(Path(path).name)}:{factory}"
    if more.get("num_classes") is not None and not _takes_classes(make):
        raise ModelError(
            f"{called} does not take num_classes, and a network of {more['num_classes']} classes was asked for; "
            f"write def {factory}(num_classes=1000)"
        )
    with _beside(path):
        try:
            network = make(**more)
        except Exception as error:  # a user's code
            raise ModelError(f"{called} fails: {_told(error, path)}") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"{called} returns {_a(network)}; expected a torch.nn.Module")
    return network


def _takes_classes(make: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):  # a class written in C, say
        return False
    return "num_classes" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def _executed(path: str) -> ModuleType:
    """The file as a module of a name of its own."""
    shown = one_line(path)
    if not os.path.isfile(path):
        folder = Path(path).parent
        siblings = [other.name for other in folder.glob("*.py")] if folder.is_dir() else []
        raise UnknownName(
            f"no file {shown!r}{nearest(Path(path).name, siblings)}; a network is named path/to/file.py:factory",
            code="unknown_name.model",
        )
    now = os.path.abspath(path), os.stat(path).st_mtime_ns
    if now in _ran:
        return _ran[now]
    name = f"r2viz_network_{hashlib.sha256(now[0].encode()).hexdigest()[:12]}"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    content = module_from_spec(spec)
    sys.modules[name] = content  # dataclasses and pickle look their module up
    with _beside(path):
        try:
            spec.loader.exec_module(content)
        except (Exception, SystemExit) as error:  # a user's code
            sys.modules.pop(name, None)
            raise ModelError(f"{shown} cannot be run: {_told(error, path)}") from error
    _ran[now] = content
    return content


@contextmanager
def _beside(path: str) -> Iterator[None]:
    """Let the file import what lies beside it, as if it had been started itself."""
    folder = os.path.dirname(os.path.abspath(path))
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _factory(content: ModuleType, path: str, factory: str) -> Callable[..., Any]:
    shown = one_line(path)
    if not hasattr(content, factory):
        known = [
            name
            for name, value in vars(content).items()
            if inspect.isfunction(value) and value.__module__ == content.__name__ and not name.startswith("_")
        ]
        there = f"it defines {', '.join(known[:8])}" if known else "it defines no function"
        raise UnknownName(
            f"no {factory!r} in {shown}{nearest(factory, known)}; {there}", code="unknown_name.model"
        ) from None
    make = getattr(content, factory)
    if not callable(make):
        raise ModelError(f"{factory} in {shown} is {_a(make)}; expected a function that returns a torch.nn.Module")
    return make


def _a(value: object) -> str:
    return f"an object of type {type(value).__name__}" if value is not None else "nothing (None)"


def _told(error: BaseException, path: str) -> str:
    """An exception of a user's file in one line, with the last place in that file."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if os.path.abspath(trace.tb_frame.f_code.co_filename) == os.path.abspath(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    text = one_line((str(error).splitlines() or [""])[0], 120)
    return f"{type(error).__name__}{f': {text}' if text else ''}{'' if line is None else f' (line {line})'}"
