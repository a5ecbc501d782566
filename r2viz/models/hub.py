"""Weights from the hub: downloads that are bounded, resumed and verified, in Hugging Face's own cache."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from r2viz.errors import WeightsUnavailable, one_line
from r2viz.models.weights import file_digest

Answer = TypeVar("Answer")

ELSEWHERE = "fetch them elsewhere and pass --weights FILE, or use --weights random"
ADVICE = f"connect once, or {ELSEWHERE}"
# Seconds that the hub has for its first answer (an answer normally takes 0.2-0.6), and for how long it then counts
# as unreachable: the second network of a pair must not wait again. HF_HUB_ETAG_TIMEOUT overrides the former.
PATIENCE, GRUDGE = 3.0, 60.0

_unreachable: dict[str, tuple[float, str]] = {}

# huggingface_hub 2 lends its settings, session, login, lock and cache layout, but does not download: its
# `hf_hub_download` asks an unreachable hub six times with up to 60 s each, throws a partial file away (so nothing
# ever resumes in a second call) and never compares a plain download with its hash. The files end up where it puts
# them, so timm and everything else finds them, and the other way round.


def fetch(
    repo_id: str,
    *,
    filename: str = "model.safetensors",
    revision: str | None = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[Path, str]:
    """The path of a hub file in the Hugging Face cache, downloaded when it is not there, and its commit.

    A cached file is used as it is, without asking the hub: its hash was compared when it came, and only its length
    is checked again. `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_HUB_ETAG_TIMEOUT` (first answer,
    3 s) and `HF_HUB_DOWNLOAD_TIMEOUT` (longest silence while downloading, 10 s) are honoured.

    A connection that is cut is resumed for as long as bytes arrive; one that stalls is given up with the partial
    file kept, and the next call goes on from there.

    Args:
        repo_id: say `"timm/resnet50.tv_in1k"`.
        filename: path within the repository.
        revision: branch, tag or commit; the main branch by default.
        endpoint: address of the hub instead of `HF_ENDPOINT`.
        cache_dir: the cache instead of the one that `HF_HOME` and `HF_HUB_CACHE` name.

    Raises:
        WeightsUnavailable: neither cached nor to be had; nothing broken is left in the cache.
    """
    found = _find(repo_id, filename, revision, cache_dir)
    if found is not None:
        return found

    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import WeakFileLock

    if constants.HF_HUB_OFFLINE:
        raise WeightsUnavailable(f"the weights {repo_id} are not in the cache and HF_HUB_OFFLINE is set; {ADVICE}")
    about = _ask(hf_hub_url(repo_id, filename, revision=revision, endpoint=endpoint), repo_id, filename)
    folder = _folder(repo_id, cache_dir)
    blob = folder / "blobs" / about.etag
    link = folder / "snapshots" / about.commit_hash / filename
    lock = folder.parent / ".locks" / folder.name / f"{about.etag}.lock"  # the library's own, so that both wait
    try:
        for parent in (blob.parent, link.parent, lock.parent):
            parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            for stale in (link, blob):
                if stale.exists() and stale.stat().st_size != about.size:
                    stale.unlink()
            if not blob.exists():
                url = hf_hub_url(repo_id, filename, revision=about.commit_hash, endpoint=endpoint)
                partial = blob.with_name(f"{blob.name}.incomplete")
                _download(url, partial, about.size, repo_id, _headers())
                _verify(partial, about.etag, about.size, repo_id)
                partial.replace(blob)
            _link(blob, link)
            if revision != about.commit_hash:
                ref = folder / "refs" / (revision or constants.DEFAULT_REVISION)
                ref.parent.mkdir(parents=True, exist_ok=True)
                _replace(ref, lambda new: new.write_text(about.commit_hash))
    except OSError as error:
        raise WeightsUnavailable(
            f"the weights {repo_id} cannot be stored in {folder.parent} ({error.strerror or error}); "
            "make room there, or let HF_HOME name another folder"
        ) from error
    return link, about.commit_hash


def fetch_url(url: str) -> Path:
    """The path of a file that torch's hub would download, in torch's own cache; downloaded when it is not there.

    The end of its name (`-0676ba61.pth`) begins its sha256, and is compared when it comes. `TORCH_HOME` is honoured.

    Raises:
        WeightsUnavailable: neither cached nor to be had; nothing broken is left in the cache.
    """
    path, name = cached_url(url), Path(urlsplit(url).path).name
    if path is not None:
        return path
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import WeakFileLock

    if constants.HF_HUB_OFFLINE:
        raise WeightsUnavailable(f"the weights {name} are not in the cache and HF_HUB_OFFLINE is set; {ADVICE}")
    answer = _answer(
        urlsplit(url).netloc,
        f"the weights {name} are not in the cache and",
        lambda patience: get_session().head(url, timeout=patience, follow_redirects=True),
    )
    size = answer.headers.get("Content-Length", "")
    if answer.status_code != 200 or not size.isdecimal():
        raise WeightsUnavailable(
            f"the weights {name} are not in the cache and {urlsplit(url).netloc} does not serve them (it answered "
            f"{answer.status_code}); {ELSEWHERE}"
        )
    path = _torch_cache() / name
    partial = path.with_name(f"{name}.incomplete")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(path.with_name(f"{name}.lock")):
            if not path.exists():
                _download(url, partial, int(size), name, {"Accept-Encoding": "identity"})
                begins = re.search(r"-([0-9a-f]{8,})\.\w+$", name)
                _verify(partial, begins[1] if begins else "", int(size), name)
                partial.replace(path)
    except OSError as error:
        raise WeightsUnavailable(
            f"the weights {name} cannot be stored in {path.parent} ({error.strerror or error}); "
            "make room there, or let TORCH_HOME name another folder"
        ) from error
    return path


def cached_url(url: str) -> Path | None:
    """The path of such a file that is in torch's cache, or None; no network is used."""
    path = _torch_cache() / Path(urlsplit(url).path).name
    return path if path.is_file() and path.stat().st_size > 0 else None


def _torch_cache() -> Path:
    # As torch.hub.get_dir() says, which would import torch.
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def cached(
    repo_id: str,
    filename: str = "model.safetensors",
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path | None:
    """The path of a hub file that is in the cache and whole, or None; no network is used."""
    found = _find(repo_id, filename, revision, cache_dir)
    return found[0] if found else None


def _folder(repo_id: str, cache_dir: str | os.PathLike[str] | None) -> Path:
    # The layout is a documented part of the hub's cache. The library's own look-up costs 0.3 s of imports, which
    # every start with cached weights would pay.
    from huggingface_hub import constants

    return Path(cache_dir or constants.HF_HUB_CACHE) / ("models--" + repo_id.replace("/", "--"))


def _find(
    repo_id: str, filename: str, revision: str | None, cache_dir: str | os.PathLike[str] | None
) -> tuple[Path, str] | None:
    folder = _folder(repo_id, cache_dir)
    commit = revision or "main"
    with contextlib.suppress(OSError):  # a commit has no ref
        commit = (folder / "refs" / commit).read_text().strip()
    path = folder / "snapshots" / commit / filename
    return (path, commit) if _whole(path) else None


def _whole(path: Path) -> bool:
    """Whether a file is there and, for safetensors, as long as its header says: a look at a few kilobytes."""
    try:
        if path.suffix != ".safetensors":
            return path.stat().st_size > 0
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy"):
                return True
        except SafetensorError:
            return False
    except OSError:
        return False


@dataclass(frozen=True)
class _About:
    commit_hash: str
    etag: str
    size: int


def _answer(host: str, missing: str, ask: Callable[[float], Any]) -> Any:
    """What `ask(patience)` returns, if it does so within its patience and the host did not fail a moment ago."""
    from huggingface_hub import constants

    patience = float(constants.HF_HUB_ETAG_TIMEOUT) if os.environ.get("HF_HUB_ETAG_TIMEOUT") else PATIENCE
    since, reason = _unreachable.get(host, (-GRUDGE, ""))
    if time.monotonic() - since < GRUDGE:
        raise WeightsUnavailable(f"{missing} {host} cannot be reached ({reason}); {ADVICE}")
    try:
        # The client's own timeout bounds each address and each read, and name resolution not at all.
        return _within(patience, lambda: ask(patience))
    except Exception as error:  # whatever the network, a proxy or a mistyped HF_ENDPOINT can do
        reason = f"no answer within {patience:g} s" if _is(error, "Timeout") else one_line(str(error) or repr(error))
        _unreachable[host] = time.monotonic(), reason
        raise WeightsUnavailable(f"{missing} {host} cannot be reached ({reason}); {ADVICE}") from error


def _ask(url: str, repo_id: str, filename: str) -> _About:
    """What the hub says of a file, within `PATIENCE` seconds."""
    host = urlsplit(url).netloc
    missing = f"the weights {repo_id} are not in the cache and"
    answer = _answer(host, missing, lambda patience: _head(url, patience))
    status, headers = answer.status_code, answer.headers
    if status >= 400:
        if status in (401, 403):
            what = f"{host} refuses them ({status}: no such repository, or one that needs HF_TOKEN); check the name"
        elif status == 404:
            what = f"{host} has no {filename} there (404); check the name"
        else:
            what = f"{host} cannot serve them now (it answered {status}); try later"
        raise WeightsUnavailable(f"{missing} {what}, or {ELSEWHERE}")
    commit = headers.get("X-Repo-Commit", "")
    etag = (headers.get("X-Linked-ETag") or headers.get("ETag", "")).removeprefix("W/").strip('"')
    size = headers.get("X-Linked-Size") or ("" if answer.is_redirect else headers.get("Content-Length", ""))
    # Commit and ETag become names of files.
    if not (re.fullmatch(r"[0-9a-f]{40}", commit) and re.fullmatch(r"\w[\w.-]*", etag) and size.isdecimal()):
        raise WeightsUnavailable(f"{missing} {host} does not answer as a hub does (a proxy or login page?); {ADVICE}")
    return _About(commit, etag, int(size))


def _head(url: str, patience: float) -> Any:
    # Not the library's `get_hf_file_metadata`: to fill in a User-Agent it first asks the hub something else, in the
    # same time, and it logs the hub's remarks ("you are not logged in …") to the terminal.
    from huggingface_hub import get_session

    home = urlsplit(url).netloc
    for _ in range(5):
        headers = _headers()
        if urlsplit(url).netloc != home:
            headers.pop("Authorization", None)
        answer = get_session().head(url, headers=headers, timeout=patience, follow_redirects=False)
        # A large file's hash stands on the hub's redirect to the content network, which need not be asked.
        if "X-Linked-ETag" in answer.headers or "Location" not in answer.headers:
            break
        url = urljoin(url, answer.headers["Location"])
    return answer


def _headers() -> dict[str, str]:
    from huggingface_hub import constants, get_token

    from r2viz.version import __version__

    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    login = {"Authorization": f"Bearer {token}"} if token else {}
    return {"User-Agent": f"r2viz/{__version__}", "Accept-Encoding": "identity"} | login


def _within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """The result of `call`, or TimeoutError after `seconds`; the call is then left to itself."""
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer.result(timeout=seconds)


def _is(error: BaseException, kind: str) -> bool:
    # By name, since huggingface_hub 1 speaks through httpx and 2 through httpx2, whose classes are the same.
    return any(kind in base.__name__ for base in type(error).__mro__)


def _download(url: str, partial: Path, size: int, repo_id: str, headers: dict[str, str]) -> None:
    """Bring `partial` to `size` bytes, going on from what it has; several requests if the connection is cut."""
    from huggingface_hub import constants, get_session
    from tqdm import tqdm

    host = urlsplit(url).netloc
    stall = constants.HF_HUB_DOWNLOAD_TIMEOUT
    best = have = partial.stat().st_size if partial.exists() else 0
    while have != size:
        if have > size:
            partial.unlink()
            best = have = 0
        reason, stalled, refused = "the connection was cut", False, False
        resume = {"Range": f"bytes={have}-"} if have else {}
        try:
            with get_session().stream(
                "GET", url, headers=headers | resume, timeout=stall, follow_redirects=True
            ) as response:
                if response.status_code == 416:  # the part is not of this file
                    partial.unlink(missing_ok=True)
                    refused = have > 0
                elif response.status_code not in (200, 206):
                    reason = f"it answered {response.status_code}"
                else:
                    restart = response.status_code == 200
                    with (
                        partial.open("wb" if restart else "ab") as file,
                        tqdm(
                            desc=repo_id,
                            total=size,
                            initial=0 if restart else have,
                            unit="B",
                            unit_scale=True,
                            leave=False,
                            disable=None,  # silent where standard error is no terminal
                        ) as bar,
                    ):
                        for chunk in response.iter_bytes():
                            file.write(chunk)
                            bar.update(len(chunk))
                            if file.tell() > size:
                                break  # `_verify` refuses it
        except Exception as error:
            if not _is(error, "RequestError"):
                raise
            stalled = _is(error, "Timeout")
            if stalled:
                reason = f"nothing came for {stall:g} s"
            elif not _is(error, "ProtocolError") and not _is(error, "ReadError"):
                reason = one_line(str(error) or repr(error))
        have = partial.stat().st_size if partial.exists() else 0
        if have > size:
            return
        # Going on makes sense while the file grows; after a refused range it starts anew.
        if have < size and (stalled or have <= best) and not refused:
            kept = f"; {have / 1e6:.1f} of {size / 1e6:.1f} MB are kept" if have else ""
            raise WeightsUnavailable(
                f"the weights {repo_id} could not be downloaded from {host} ({reason}){kept}; run again to go on, "
                "or pass --weights FILE, or use --weights random"
            )
        best = max(best, have)


def _verify(partial: Path, etag: str, size: int, repo_id: str) -> None:
    # Large files have their sha256 as ETag (or its beginning in their name); that of a small one is git's hash, and
    # the length has to do.
    known = re.fullmatch(r"[0-9a-f]{8,16}|[0-9a-f]{64}", etag) is not None
    wrong = partial.stat().st_size != size or (known and not file_digest(partial).startswith(etag))
    if wrong:
        partial.unlink()
        raise WeightsUnavailable(
            f"the weights {repo_id} arrived damaged or altered (not the file whose sha256 begins {etag[:12]}) and were "
            "thrown away; try again, or pass --weights FILE",
            code="weights_hash",
        )


def _link(blob: Path, link: Path) -> None:
    if link.exists():
        return
    try:
        _replace(link, lambda new: new.symlink_to(os.path.relpath(blob, link.parent)))
    except (OSError, NotImplementedError):  # no symlinks here: the file itself moves, as the library does it
        blob.replace(link)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        write(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
