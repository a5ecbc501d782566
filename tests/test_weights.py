from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
import pty
import random
import select
import shutil
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, Hub, Silent
from safetensors.torch import save_file

from r2viz.errors import BadWeights, WeightsUnavailable
from r2viz.models import hub as hub_room
from r2viz.models import weights
from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.models.hub import cached, fetch
from r2viz.models.resnet import ResNet
from r2viz.models.weights import Weights, digest, file_digest, fit, head_size, read

REPO = "timm/tiny.r2viz"


def tiny(block=Res2NetBlock, classes=10, seed=0):
    torch.manual_seed(seed)
    extra = {"base_width": 26, "scale": 4} if block is Res2NetBlock else {}
    module = ResNet(block, (1, 1, 1, 1), widths=(8, 16, 32, 64), num_classes=classes, **extra).eval()
    for tensor in module.state_dict().values():  # statistics perturbed too
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor), alpha=0.1)
    return module


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def state():
    return tiny().state_dict()


@pytest.fixture
def file(tmp_path, state):
    path = tmp_path / "tiny.safetensors"
    save_file(state, path)
    return path


@pytest.fixture
def content(file):
    return file.read_bytes()


@pytest.fixture
def hub(content):
    with Hub() as server:
        server.add(REPO, content)
        yield server


@pytest.fixture
def get(tmp_path, monkeypatch):
    """`fetch` from a given endpoint into an empty cache."""
    # Whatever the machine's own settings are, and without its login.
    monkeypatch.setattr(hub_room, "_unreachable", {})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")

    def get(hub, repo_id=REPO, **options):
        return fetch(repo_id, endpoint=hub if isinstance(hub, str) else hub.address, cache_dir=get.cache, **options)

    get.cache = tmp_path / "cache"
    return get


def files(cache):
    """What lies in a cache, without lock files."""
    return sorted(
        path.relative_to(cache).as_posix()
        for path in cache.rglob("*")
        if (path.is_file() or path.is_symlink()) and path.suffix != ".lock"
    )


# --- The hub ---------------------------------------------------------------------------------------------------------


def test_fetch_brings_the_file_and_its_commit_into_the_hub_cache(hub, get, content, state):
    path, commit = get(hub)
    assert commit == COMMIT
    assert path.read_bytes() == content
    assert same(read(path), state)
    name, sha = "models--timm--tiny.r2viz", hashlib.sha256(content).hexdigest()
    assert files(get.cache) == sorted(
        [f"{name}/blobs/{sha}", f"{name}/refs/main", f"{name}/snapshots/{COMMIT}/model.safetensors"]
    )
    assert file_digest(path) == sha


def test_what_fetch_stores_is_what_the_library_finds_and_the_other_way_round(hub, get, content, tmp_path):
    from huggingface_hub import hf_hub_download, scan_cache_dir, try_to_load_from_cache

    path, _ = get(hub)
    assert try_to_load_from_cache(REPO, "model.safetensors", cache_dir=get.cache) == str(path)
    assert hf_hub_download(REPO, "model.safetensors", cache_dir=get.cache, local_files_only=True) == str(path)
    info = scan_cache_dir(get.cache)
    assert not info.warnings
    assert info.size_on_disk == len(content)

    theirs = tmp_path / "theirs"
    path = hf_hub_download(REPO, "model.safetensors", cache_dir=theirs, endpoint=hub.address)
    hub.asked.clear()
    assert fetch(REPO, endpoint=hub.address, cache_dir=theirs) == (Path(path), COMMIT)
    assert hub.asked == []


def test_a_cached_file_is_used_without_asking_the_hub(hub, get):
    assert cached(REPO, cache_dir=get.cache) is None
    first = get(hub)
    # Nothing but the file was asked for.
    assert [line.split("/")[0] for line in hub.asked] == ["HEAD ", "GET ", "GET "]
    hub.asked.clear()
    assert get(hub) == first
    assert get(hub, revision=COMMIT) == first
    assert cached(REPO, cache_dir=get.cache) == first[0]
    assert hub.asked == []


def test_a_revision_is_asked_for_and_remembered(hub, get):
    path, commit = get(hub, revision="refs/pr/1")
    assert hub.asked[0] == f"HEAD /{REPO}/resolve/refs%2Fpr%2F1/model.safetensors"
    assert hub.asked[1] == f"GET /{REPO}/resolve/{commit}/model.safetensors"
    assert get(hub, revision="refs/pr/1") == (path, commit)
    assert cached(REPO, cache_dir=get.cache) is None
    get(hub)  # the main branch has the same file
    assert len(hub.downloads) == 1


def test_a_cached_file_that_lost_its_end_is_fetched_again(hub, get, content):
    path, _ = get(hub)
    os.truncate(path.resolve(), len(content) // 2)
    assert cached(REPO, cache_dir=get.cache) is None
    get(hub)
    assert path.read_bytes() == content


def test_a_renamed_repository_is_followed(hub, get, content):
    hub.renamed = {"timm/old": REPO}
    path, _ = get(hub, "timm/old")
    assert path.read_bytes() == content
    assert hub.asked[:2] == [f"HEAD /{repo}/resolve/main/model.safetensors" for repo in ("timm/old", REPO)]


def test_a_hub_that_sends_for_ever_onward_is_left(hub, get):
    hub.renamed = {REPO: REPO}
    with pytest.raises(WeightsUnavailable, match="does not answer as a hub does"):
        get(hub)
    assert len(hub.asked) == 5


def test_the_login_goes_to_the_hub_and_no_further(hub, get, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    get(hub)
    assert [(line.split("/")[1], login) for line, login in zip(hub.asked, hub.logins, strict=True)] == [
        ("timm", "Bearer hf_secret"),
        ("timm", "Bearer hf_secret"),
        ("content", None),
    ]


def test_a_cut_connection_is_resumed_at_once(hub, get, content):
    hub.cut = [1000, 5000]
    path, _ = get(hub)
    assert path.read_bytes() == content
    assert hub.downloads == ["", "1000-", "6000-"]


def test_a_second_call_goes_on_where_the_first_was_cut(hub, get, content):
    hub.cut = [1000, 0]  # then nothing more comes
    with pytest.raises(WeightsUnavailable, match=r"the connection was cut\); 0\.0 of 0\.\d MB are kept; run again"):
        get(hub)
    assert cached(REPO, cache_dir=get.cache) is None
    path, _ = get(hub)
    assert path.read_bytes() == content
    assert hub.downloads == ["", "1000-", "1000-"]


def test_a_stalled_download_is_given_up_and_its_part_kept(hub, get, content, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1)
    hub.stall = [2000]
    start = time.monotonic()
    with pytest.raises(WeightsUnavailable, match=r"nothing came for 1 s\); .* are kept; run again to go on, or pass"):
        get(hub)
    assert time.monotonic() - start < 3
    assert [name for name in files(get.cache) if name.endswith(".incomplete")]
    path, _ = get(hub)
    assert path.read_bytes() == content
    assert hub.downloads == ["", "2000-"]
    assert not [name for name in files(get.cache) if name.endswith(".incomplete")]


def test_a_server_without_ranges_starts_anew(hub, get, content):
    hub.cut, hub.ranges = [3000, 1000], False
    with pytest.raises(WeightsUnavailable, match="was cut"):
        get(hub)
    path, _ = get(hub)
    assert path.read_bytes() == content


def test_a_part_longer_than_the_file_is_dropped(hub, get, content):
    blobs = get.cache / "models--timm--tiny.r2viz" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(content).hexdigest()}.incomplete").write_bytes(content + b"more")
    path, _ = get(hub)
    assert path.read_bytes() == content
    assert hub.downloads == [""]


@pytest.mark.parametrize("part", [b"", b"of another file"])
def test_a_wrong_hash_leaves_nothing_behind(hub, get, content, part):
    hub.etag = "f" * 64
    if part:  # a resumed download is hashed from its beginning
        hub.etag = None
        blobs = get.cache / "models--timm--tiny.r2viz" / "blobs"
        blobs.mkdir(parents=True)
        (blobs / f"{hashlib.sha256(content).hexdigest()}.incomplete").write_bytes(part)
    with pytest.raises(WeightsUnavailable, match=r"arrived damaged or altered .* thrown away; try again") as caught:
        get(hub)
    assert caught.value.code == "weights_hash"
    assert files(get.cache) == []
    hub.etag = None
    assert get(hub)[0].read_bytes() == content


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "refuses them (401: no such repository, or one that needs HF_TOKEN)"),
        (403, "refuses them (403"),
        (404, "has no model.safetensors there (404)"),
        (500, "cannot serve them now (it answered 500)"),
        (503, "cannot serve them now (it answered 503)"),
    ],
)
def test_a_refusal_is_told_at_once(hub, get, status, text):
    hub.status = status
    start = time.monotonic()
    with pytest.raises(WeightsUnavailable) as caught:
        get(hub)
    assert time.monotonic() - start < 1
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("pass --weights FILE, or use --weights random")
    assert hub.asked == [f"HEAD /{REPO}/resolve/main/model.safetensors"]
    hub.status = 200
    get(hub)  # and is not held against the hub


def test_a_repository_that_is_not_there(hub, get):
    with pytest.raises(WeightsUnavailable, match=r"timm/other are not in the cache and .* has no model.safetensors"):
        get(hub, "timm/other")
    assert not get.cache.exists()


def test_a_content_network_that_fails(hub, get, content):
    hub.network = f"{hub.address}/elsewhere"
    with pytest.raises(WeightsUnavailable, match=r"could not be downloaded from 127.* \(it answered 404\); run again"):
        get(hub)
    hub.network = "http://no-such-host.invalid"
    with pytest.raises(WeightsUnavailable, match=r"could not be downloaded from 127.* \(.*Errno.*\); run again"):
        get(hub)
    hub.network = None
    assert get(hub)[0].read_bytes() == content


def test_a_part_whose_range_is_refused_is_dropped(hub, get, content):
    hub.cut = [1000, 0]
    with pytest.raises(WeightsUnavailable, match="was cut"):
        get(hub)
    hub.refuse = True
    assert get(hub)[0].read_bytes() == content
    assert hub.downloads[-2:] == ["1000-", ""]


@pytest.mark.parametrize("headers", [{}, {"X-Repo-Commit": "../../../evil", "ETag": "x"}, {"X-Repo-Commit": COMMIT}])
def test_a_login_page_is_no_hub(hub, get, headers):
    hub.bare, hub.headers = True, headers
    with pytest.raises(WeightsUnavailable, match="does not answer as a hub does"):
        get(hub)
    assert files(get.cache) == []


def test_a_name_that_leaves_the_cache_is_refused(hub, get):
    hub.etag = "../../../../evil"
    with pytest.raises(WeightsUnavailable, match="does not answer as a hub does"):
        get(hub)


def pair(get, endpoint):
    """Seconds and messages of two attempts, as a pair of networks makes them."""
    start, told = time.monotonic(), []
    for repo_id in ("timm/resnet50.tv_in1k", "timm/res2net50_26w_4s.in1k"):
        with pytest.raises(WeightsUnavailable) as caught:
            get(endpoint, repo_id)
        told.append(str(caught.value))
    return time.monotonic() - start, told


def test_a_refused_connection_is_told_at_once(get):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    seconds, told = pair(get, f"http://127.0.0.1:{port}")
    assert seconds < 2
    assert told[1].startswith(
        f"the weights timm/res2net50_26w_4s.in1k are not in the cache and 127.0.0.1:{port} cannot be reached ("
    )
    assert told[1].endswith("); connect once, or fetch them elsewhere and pass --weights FILE, or use --weights random")
    assert not get.cache.exists()


def test_a_server_that_never_answers_costs_a_pair_less_than_five_seconds(get):
    with Silent() as silent:
        seconds, told = pair(get, silent.address)
    assert seconds < 5
    assert all("cannot be reached (no answer within 3 s); connect once" in text for text in told)


def test_name_resolution_that_hangs_is_bounded_too(get, monkeypatch):
    # No library timeout covers it, and a dead resolver cannot be had without rights on the machine.
    monkeypatch.setattr(hub_room, "PATIENCE", 1.0)
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(30))
    try:
        seconds, told = pair(get, "http://hub.example")
    finally:
        released.set()
    assert seconds < 3
    assert "hub.example cannot be reached (no answer within 1 s)" in told[1]


def test_an_unknown_host(get):
    seconds, told = pair(get, "http://no-such-host.invalid")
    assert seconds < 5
    assert "no-such-host.invalid cannot be reached (" in told[0]


def test_the_hub_is_tried_again_after_a_while(hub, get):
    hub_room._unreachable[hub.address.removeprefix("http://")] = (time.monotonic() - hub_room.GRUDGE, "long ago")
    get(hub)


def test_offline_mode_uses_the_cache_and_says_so_without_it(hub, get, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailable, match=r"not in the cache and HF_HUB_OFFLINE is set; connect once"):
        get(hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    path = get(hub)[0]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert get(hub)[0] == path
    assert sum(line.startswith("HEAD") for line in hub.asked) == 1


def test_a_cache_that_cannot_be_written(hub, get, tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(WeightsUnavailable, match=r"cannot be stored in .*cache \(Not a directory\); make room there"):
        get(hub)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="not run: needs /dev/full")
def test_a_full_disk(hub, get, content):
    blobs = get.cache / "models--timm--tiny.r2viz" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(content).hexdigest()}.incomplete").symlink_to("/dev/full")
    with pytest.raises(WeightsUnavailable, match=r"cannot be stored in .* \(No space left on device\); make room"):
        get(hub)


def test_a_file_system_without_symlinks(hub, get, content, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no symlinks here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    path, _ = get(hub)
    assert not path.is_symlink()
    assert path.read_bytes() == content
    assert get(hub)[0] == path


def test_threads_that_want_the_same_file_download_it_once(hub, get, content):
    results = []
    threads = [threading.Thread(target=lambda: results.append(get(hub)[0].read_bytes())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [content] * 6
    assert len(hub.downloads) == 1


PROGRAM = """
import sys
from r2viz.errors import R2VizError
from r2viz.models.hub import cached, fetch
try:
    path, commit = fetch("timm/tiny.r2viz")
    assert cached("timm/tiny.r2viz") == path
    print(commit, path)
except R2VizError as error:
    print(error)
"""


def environment(hub, tmp_path, **more):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    ours = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1,localhost"}
    return kept | ours | more


def test_hf_endpoint_and_hf_home_are_honoured_and_nothing_is_printed(hub, tmp_path):
    hub.headers = {"X-HF-Warning": "login; You are sending unauthenticated requests, please set HF_TOKEN"}
    environ = environment(hub, tmp_path)
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.split() == [
        COMMIT,
        str(tmp_path / f"home/hub/models--timm--tiny.r2viz/snapshots/{COMMIT}/model.safetensors"),
    ]


def test_hf_timeouts_are_honoured_and_failures_print_one_line(hub, tmp_path):
    hub.stall = [500]
    environ = environment(hub, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="1")
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "nothing came for 1 s" in done.stdout
    with Silent() as silent:
        environ = environment(silent, tmp_path, HF_HUB_ETAG_TIMEOUT="1")
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "cannot be reached (no answer within 1 s)" in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_terminal_sees_progress(hub, tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment(hub, tmp_path), stderr=theirs, check=True)
    assert select.select([ours], [], [], 0)[0], "nothing was shown"
    assert b"timm/tiny.r2viz:" in os.read(ours, 100_000)
    os.close(ours)
    os.close(theirs)


# --- Files -----------------------------------------------------------------------------------------------------------


def test_read_gives_what_was_saved(tmp_path, file, state):
    assert same(read(file), state)
    assert same(read(str(file)), state)
    torch.save(state, tmp_path / "new.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)  # as the official files are
    assert same(read(tmp_path / "new.pth"), state)
    assert same(read(tmp_path / "old.pth"), state)
    renamed = shutil.copy(file, tmp_path / "weights.bin")  # told by content
    assert same(read(renamed), state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}},
        lambda state: {"model": state},
        lambda state: {"epoch": 1, "state_dict_ema": state},
        lambda state: {"model_ema": state},
        lambda state: {"ema": {f"module.{key}": value for key, value in state.items()}, "updates": 9},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}},
        lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
        lambda state: {"n_averaged": torch.tensor(5)} | {f"module.{key}": value for key, value in state.items()},
    ],
)
def test_read_takes_off_what_checkpoints_wrap_around(tmp_path, state, wrap):
    torch.save(wrap(state), tmp_path / "checkpoint.pth")
    assert same(read(tmp_path / "checkpoint.pth"), state)


def test_the_weights_proper_come_before_their_moving_average(tmp_path, state):
    torch.save({"state_dict_ema": tiny(seed=1).state_dict(), "state_dict": state}, tmp_path / "both.pth")
    assert same(read(tmp_path / "both.pth"), state)


def test_a_checkpoint_that_holds_itself_is_no_endless_search(tmp_path, state):
    checkpoint = {"epoch": 3}
    checkpoint["state_dict"] = checkpoint
    torch.save(checkpoint, tmp_path / "round.pth")
    with pytest.raises(BadWeights, match=r"holds no weights \(it holds epoch, state_dict\)"):
        read(tmp_path / "round.pth")
    checkpoint["model"] = {"state_dict": state, "self": checkpoint}
    torch.save({"model": checkpoint["model"]}, tmp_path / "round.pth")
    assert same(read(tmp_path / "round.pth"), state)


def test_a_checkpoint_of_a_training_gives_its_weights_and_an_optimizer_alone_none(tmp_path):
    module = tiny().train()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    module(torch.rand(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 30)
    parts = {"optimizer": optimizer.state_dict(), "scheduler": schedule.state_dict(), "epoch": 1, "best": 76.1}
    torch.save({"model": module.state_dict(), **parts}, tmp_path / "last.pth")
    assert same(read(tmp_path / "last.pth"), module.state_dict())
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pth")
    with pytest.raises(BadWeights, match=r"holds no weights \(it holds state, param_groups\); expected a state dict"):
        read(tmp_path / "optimizer.pth")


def test_read_casts_on_demand(tmp_path, state):
    torch.save(
        {key: value.half() if value.is_floating_point() else value for key, value in state.items()}, tmp_path / "h.pth"
    )
    assert read(tmp_path / "h.pth")["fc.weight"].dtype == torch.float16
    cast = read(tmp_path / "h.pth", dtype=torch.float32)
    assert cast["fc.weight"].dtype == torch.float32
    assert torch.equal(cast["fc.weight"], state["fc.weight"].half().float())
    assert cast["bn1.num_batches_tracked"].dtype == torch.int64


def test_read_survives_the_file_being_overwritten(file, state):
    loaded = read(file)
    file.write_bytes(b"")
    assert same(loaded, state)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", ["pth", "bin"])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, state, zipped, suffix):
    path = tmp_path / f"evil.{suffix}"
    torch.save({"state_dict": state, "x": Payload(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BadWeights, match=r"is refused: it is a pickle that would run code \(posix.mkdir\); save the"):
        read(path)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()  # the payload is a real one


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(tiny(), tmp_path / "module.pth")
    with pytest.raises(BadWeights, match=r"would run code \(r2viz.models.resnet.ResNet\); save the weights alone"):
        read(tmp_path / "module.pth")


def bad(tmp_path, content, name="bad.safetensors"):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadWeights) as caught:
        read(tmp_path / name)
    text = str(caught.value)
    assert "\n" not in text
    assert name in text
    return text.partition(name)[2].strip()


@pytest.mark.parametrize("name", ["bad.safetensors", "bad.pth"])
def test_files_that_are_no_weights(tmp_path, name):
    assert bad(tmp_path, b"", name) == "is empty; fetch it again"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    assert bad(tmp_path, pointer, name).startswith("is a Git LFS pointer, not the weights; run `git lfs pull`")


def test_damaged_safetensors(tmp_path, content):
    whole = "is no whole safetensors file ("
    assert bad(tmp_path, content[:-100]).startswith(whole)
    assert bad(tmp_path, content[:300]).startswith(whole)
    assert bad(tmp_path, content[:4]).startswith(whole)
    assert bad(tmp_path, content + b"more").startswith(whole)
    assert bad(tmp_path, b"just a text\n" * 9).startswith(whole)
    assert bad(tmp_path, (2**62).to_bytes(8, "little") + content[8:]).startswith(whole)
    assert bad(tmp_path, (2**63 + 5).to_bytes(8, "little") + b"{}").startswith(whole)
    header = b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}'
    assert bad(tmp_path, len(header).to_bytes(8, "little") + header + bytes(16)).startswith(whole)
    header = b"{}"
    assert bad(tmp_path, len(header).to_bytes(8, "little") + header).startswith("holds no weights (it holds nothing)")


def test_damaged_pytorch_files(tmp_path, state):
    torch.save(state, tmp_path / "new.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("new.pth", "old.pth"):
        content = (tmp_path / name).read_bytes()
        for length in (20, 1000, len(content) // 2, len(content) - 40):
            assert bad(tmp_path, content[:length], "cut.pth").startswith("is no whole PyTorch file ("), (name, length)
    assert bad(tmp_path, b"hello world, this is text", "notes.pth").startswith(
        "is no weights file: it begins with b'hello world, thi'; expected .safetensors or"
    )
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert bad(tmp_path, (tmp_path / "other.zip").read_bytes(), "zip.pth").startswith("is no whole PyTorch file (")


def forms(tmp_path, state):
    """The state dict in every kind of file that is read, as bytes."""
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    torch.save(state, tmp_path / "a_old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps({key: value.numpy() for key, value in state.items()}, 4))
    return {path.name: path.read_bytes() for path in sorted(tmp_path.iterdir())}


def test_a_file_cut_anywhere_is_refused(tmp_path, state):
    for name, content in forms(tmp_path, state).items():
        # Where heads, the pickle and the archive's list lie, and all through the values.
        ends = {1, 2, 3, 7, 8, 9, 15, 63, 64, 65, len(content) - 1, len(content) - 2, len(content) - 22}
        ends |= {len(content) * part // 40 for part in range(1, 40)}
        for end in sorted(ends):
            assert "fetch it again" in bad(tmp_path, content[:end], f"cut_{name}") or end < 9, (name, end)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_with_wrong_bytes_in_it_is_read_or_refused_and_nothing_else(tmp_path, state):
    chance, module, told = random.Random(0), tiny(), []
    for name, content in forms(tmp_path, state).items():
        for place in [chance.randrange(3000) for _ in range(20)] + [-chance.randrange(1, 3000) for _ in range(20)]:
            damaged = bytearray(content)
            damaged[place] ^= 1 << chance.randrange(8)
            (tmp_path / f"damaged_{name}").write_bytes(damaged)
            try:
                fit(module, read(tmp_path / f"damaged_{name}"), name="tiny", source=name)
            except BadWeights as error:
                told.append(str(error))
    assert len(told) > 20
    assert not any("\n" in text for text in told)


def test_an_archive_that_would_swell_is_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(64, 2**20)}, tmp_path / "big.pth")  # 256 MB of zeros
    with (
        zipfile.ZipFile(tmp_path / "big.pth") as whole,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb,
    ):
        for entry in whole.infolist():
            bomb.writestr(entry.filename, whole.read(entry))
    (tmp_path / "big.pth").unlink()
    size = (tmp_path / "bomb.pth").stat().st_size
    assert size < 3e6
    with pytest.raises(
        BadWeights, match=rf"is refused: its {size:,} bytes would become 268,\d\d\d,\d\d\d, and torch.save"
    ):
        read(tmp_path / "bomb.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_that_claims_more_values_than_it_brings_is_refused(tmp_path, state, zipped):
    terabyte, windows, nothing = (
        torch.ones(1).expand(10**6, 10**6),
        torch.ones(99).as_strided((10**4, 90), (0, 1)),
        torch.empty(10, 10, device="meta"),
    )
    for tensor in (terabyte, windows, nothing):
        torch.save(state | {"fc.weight": tensor}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            BadWeights, match=r"is damaged: fc.weight has the shape .* and fewer values; fetch it again"
        ):
            read(tmp_path / "x.pth", dtype=torch.float16)


def test_headers_that_promise_gigabytes(tmp_path, content):
    for promised in (10**8, 10**9, 2**40):  # a header of that length, and nothing behind it
        assert bad(tmp_path, promised.to_bytes(8, "little") + b"{" * 1000).startswith("is no whole safetensors file (")
    header = b'{"a":{"dtype":"F32","shape":[1000000000,1000],"data_offsets":[0,4000000000000]}}'
    whole = bad(tmp_path, len(header).to_bytes(8, "little") + header + bytes(64))
    assert whole.startswith("is no whole safetensors file (")
    nested = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    assert bad(tmp_path, len(nested).to_bytes(8, "little") + nested).startswith("is no whole safetensors file (")


def test_a_file_with_a_control_character_in_its_name_stays_one_line(tmp_path):
    (tmp_path / "a\nb.pth").write_bytes(b"")
    with pytest.raises(BadWeights, match=r"a\\nb.pth is empty"):
        read(tmp_path / "a\nb.pth")


def test_checkpoints_without_weights(tmp_path, state):
    for holds, text in [
        ({"epoch": 3, "loss": 0.5}, r"holds no weights \(it holds epoch, loss\)"),
        ([1, 2], "holds a list; expected a state dict"),
        (torch.ones(3), "holds a Tensor; expected a state dict"),
        ({}, r"holds no weights \(it holds nothing\)"),
    ]:
        torch.save(holds, tmp_path / "x.pth")
        with pytest.raises(BadWeights, match=text):
            read(tmp_path / "x.pth")


def test_paths_that_are_no_files(tmp_path, file):
    with pytest.raises(BadWeights, match=r"no weights file .*tiny.safetensor; did you mean 'tiny.safetensors'\?"):
        read(tmp_path / "tiny.safetensor")
    with pytest.raises(BadWeights, match=r"no weights file .*; check the path"):
        read(tmp_path / "nowhere" / "x.pth")
    with pytest.raises(BadWeights, match=r"is a folder; pass the .safetensors or .pth file in it"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(BadWeights, match="is no regular file"):
        read(tmp_path / "pipe")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="not run: root may read everything")
def test_a_file_without_permission(file):
    file.chmod(0)
    with pytest.raises(BadWeights, match=r"cannot be read \(Permission denied\); check its permissions"):
        read(file)


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="not run: needs Linux")
def test_a_file_whose_reading_fails():
    with pytest.raises(BadWeights, match=r"/proc/self/mem cannot be read \(Input/output error\)"):
        read("/proc/self/mem")


# --- Into a module ---------------------------------------------------------------------------------------------------


def test_fit_loads_in_place_and_shares_nothing(state):
    module = tiny(seed=1)
    parameter = module.conv1.weight
    fit(module, state, name="tiny", source="x.pth")
    assert same(module.state_dict(), state)
    assert module.conv1.weight is parameter
    picture = torch.rand(2, 3, 64, 64)
    assert torch.equal(module(picture), tiny()(picture))
    with torch.no_grad():
        parameter.zero_()
    assert state["conv1.weight"].any()


def test_a_meta_module_takes_the_tensors_themselves(file):
    with torch.device("meta"):
        module = ResNet(Res2NetBlock, (1, 1, 1, 1), widths=(8, 16, 32, 64), base_width=26, scale=4, num_classes=10)
    loaded = {key: value for key, value in read(file).items() if not key.endswith("num_batches_tracked")}
    fit(module.eval(), loaded, name="tiny", source="x.pth")
    assert module.conv1.weight.data_ptr() == loaded["conv1.weight"].data_ptr()
    assert isinstance(module.conv1.weight, torch.nn.Parameter)
    assert module.conv1.weight.requires_grad
    assert not any(tensor.is_meta for tensor in module.state_dict().values())
    picture = torch.rand(2, 3, 64, 64)
    assert torch.equal(module(picture), tiny()(picture))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_precisions_are_cast(state, dtype, device):
    with torch.device(device):
        module = ResNet(Res2NetBlock, (1, 1, 1, 1), widths=(8, 16, 32, 64), base_width=26, scale=4, num_classes=10)
    other = {key: value.to(dtype) for key, value in state.items()}  # the counters too
    fit(module, other, name="tiny", source="x.pth")
    assert module.fc.weight.dtype == torch.float32
    assert module.bn1.num_batches_tracked.dtype == torch.int64
    assert torch.equal(module.fc.weight, other["fc.weight"].float())


def test_only_batch_counters_may_be_missing(state):
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    module = tiny(seed=1)
    fit(module, {key: state[key] for key in state if key not in counters}, name="tiny", source="x.pth")
    assert all(torch.equal(module.state_dict()[key], state[key]) for key in state if key not in counters)
    assert all(module.state_dict()[key] == 0 for key in counters)


def misfit(state, module=None):
    module = module or tiny(seed=1)
    before = digest(module.state_dict())
    with pytest.raises(BadWeights) as caught:
        fit(module, state, name="tiny", source="x.pth")
    assert digest(module.state_dict()) == before
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_misfits_name_the_first_few_keys_and_count_them(state):
    changed = dict(state)
    for key in ("bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"):
        changed.pop(key)
    changed["extra"] = torch.ones(1)
    changed["conv1.weight"] = torch.ones(64, 3, 3, 3)
    assert misfit(changed) == (
        "x.pth does not fit tiny: keys 4 missing (bn1.weight; bn1.bias; bn1.running_mean, …), 1 unexpected (extra), "
        "1 of another shape (conv1.weight (64, 3, 3, 3), expected (64, 3, 7, 7)); "
        "choose the network that the file was made for"
    )


def test_misfits_say_what_is_probably_wrong(state):
    assert misfit(tiny(classes=37).state_dict()).endswith(
        "fc.bias (37,), expected (10,)); only the head differs: build the network with the file's number of classes"
    )
    assert misfit(tiny(Bottleneck).state_dict()).endswith("these are a ResNet's weights, and Res2Net's were expected")
    assert misfit(state, tiny(Bottleneck)).endswith("these are a Res2Net's weights, and ResNet's were expected")
    assert misfit({"features.0.weight": torch.ones(3)}).endswith(
        "nothing matches, it is another architecture's; no key fits any layout that is read (features.0.weight)"
    )


def test_values_that_are_no_finite_floats_are_refused(state):
    holed = state | {"fc.bias": state["fc.bias"].clone()}
    holed["fc.bias"][3] = float("nan")
    assert "holds 1 values that are not finite numbers in fc.bias (torch.float32, 10 values)" in misfit(holed)
    holed["fc.bias"] = torch.full((10,), 3e38)  # the sum overflows, the values do not
    fit(tiny(), holed, name="tiny", source="x.pth")
    holed["fc.bias"] = torch.full((10,), 1e300, dtype=torch.float64)
    assert "holds 10 values that are not finite" in misfit(holed)
    assert "fc.bias is torch.int8, expected torch.float32" in misfit(
        state | {"fc.bias": torch.ones(10, dtype=torch.int8)}
    )


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_kinds_that_are_no_plain_floats_are_refused(state):
    for tensor, text in [
        (torch.ones(10, dtype=torch.int8), "torch.int8"),
        (torch.ones(10, dtype=torch.uint8), "torch.uint8"),
        (torch.ones(10, dtype=torch.int64), "torch.int64"),
        (torch.ones(10, dtype=torch.bool), "torch.bool"),
        (torch.ones(10, dtype=torch.complex64), "torch.complex64"),
        (torch.ones(10).to_sparse(), "torch.float32"),
        (torch.ones(10, device="meta"), "torch.float32"),
        (torch.quantize_per_tensor(torch.ones(10), 0.1, 0, torch.qint8), "torch.qint8"),
    ]:
        assert f"fc.bias is {text}, expected torch.float32" in misfit(state | {"fc.bias": tensor})


def test_head_size():
    assert head_size(tiny(classes=37).state_dict()) == 37
    assert head_size({"classifier.weight": torch.ones(5, 8, 1, 1)}, "classifier") == 5
    assert head_size({"conv1.weight": torch.ones(5, 8, 1, 1)}) is None
    assert head_size({"fc.weight": torch.ones(5)}) is None


MEMORY = """
import ctypes, sys, torch
# Large blocks go back to the system when freed: what is measured is what is held, not the allocator's habits.
ctypes.CDLL(None).mallopt(-3, 1 << 17)
from r2viz.models.blocks import Res2NetBlock
from r2viz.models.resnet import ResNet
from r2viz.models.layouts import remap
from r2viz.models.weights import fit, read

def build(depths, widths):
    with torch.device("meta"):
        return ResNet(Res2NetBlock, depths, widths=widths, base_width=26, scale=4, num_classes=100)

def load(module, path):
    ctypes.CDLL(None).malloc_trim(0)  # what the one before left free
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = peak()
    fit(module, remap(read(path, dtype=torch.float32), source="")[0], name="", source="")
    return (peak() - before) / sum(tensor.nbytes for tensor in module.state_dict().values())

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

for kind in sys.argv[3:]:
    load(build((1, 1, 1, 1), (8, 8, 8, 8)), sys.argv[1] + kind)  # imports at first use
    print(load(build((2, 2, 2, 2), (64, 128, 256, 512)), sys.argv[2] + kind))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="not run: needs Linux")
def test_loading_needs_the_memory_of_one_model(tmp_path):
    kinds = (".safetensors", ".pth", ".old.pth", ".half.safetensors", ".half.pth", ".pdparams")
    for name, depths, widths in (("small", (1, 1, 1, 1), (8, 8, 8, 8)), ("big", (2, 2, 2, 2), (64, 128, 256, 512))):
        with torch.device("meta"):
            shapes = ResNet(Res2NetBlock, depths, widths=widths, base_width=26, scale=4, num_classes=100).state_dict()
        zeros = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in shapes.items()}
        halves = {key: value.half() if value.is_floating_point() else value for key, value in zeros.items()}
        save_file(zeros, tmp_path / f"{name}.safetensors")
        torch.save(zeros, tmp_path / f"{name}.pth")
        torch.save({"state_dict": zeros}, tmp_path / f"{name}.old.pth", _use_new_zipfile_serialization=False)
        save_file(halves, tmp_path / f"{name}.half.safetensors")
        torch.save({"state_dict": halves}, tmp_path / f"{name}.half.pth")
        with (tmp_path / f"{name}.pdparams").open("wb") as file:
            pickle.dump({key: value.numpy() for key, value in zeros.items()}, file, 4)
    command = [sys.executable, "-c", MEMORY, tmp_path / "small", tmp_path / "big", *kinds]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks = dict(zip(kinds, map(float, done.stdout.split()), strict=True))
    assert not {kind: peak for kind, peak in peaks.items() if not 0.9 < peak <= 1.3}


# --- Digests and provenance ------------------------------------------------------------------------------------------


def test_digest_is_of_the_content(state):
    reference = hashlib.sha256()
    for key in sorted(state):
        kind = str(state[key].dtype).removeprefix("torch.")
        reference.update(f"{key}\0{kind}\0{tuple(state[key].shape)}\0".encode() + state[key].numpy().tobytes())
    assert digest(state) == reference.hexdigest()
    assert digest(dict(reversed(state.items()))) == digest(state)
    assert digest(tiny().to(memory_format=torch.channels_last).state_dict()) == digest(state)
    assert digest(tiny(seed=1).state_dict()) != digest(state)
    assert digest({"a": torch.zeros(2, 3)}) != digest({"a": torch.zeros(3, 2)})
    assert digest({"a": torch.zeros(2)}) != digest({"a": torch.zeros(2, dtype=torch.int32)})
    assert digest({"a": torch.zeros(2)}) != digest({"b": torch.zeros(2)})
    assert digest({"a": torch.ones(3, dtype=torch.bfloat16)}) != digest({"a": torch.zeros(3, dtype=torch.bfloat16)})
    assert digest({}) == hashlib.sha256().hexdigest()


def test_file_digest(file, content):
    assert file_digest(file) == file_digest(str(file)) == hashlib.sha256(content).hexdigest()


def test_weights_say_whether_they_are_random():
    assert Weights("random", "random weights, seed 0", "00").random
    assert not Weights("hub", "timm/x@0", "00", note="head of 37 classes").random


def test_importing_weights_imports_neither_torch_nor_the_hub():
    program = (
        "import sys, importlib.util as u; s = u.spec_from_file_location('w', sys.argv[1]); m = u.module_from_spec(s)"
    )
    program += "; sys.modules['w'] = m; s.loader.exec_module(m); print({'torch', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program, weights.__file__], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
