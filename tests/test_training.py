"""Training alike: one stream for all networks, resumption that leaves no trace, refusals that name the fault."""

from __future__ import annotations

import copy
import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from r2viz.cli import cli
from r2viz.errors import BadData, BadWeights, ModelError, OutputError, UnknownName
from r2viz.geometry import Preprocess
from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.models.count import macs
from r2viz.models.resnet import ResNet
from r2viz.models.zoo import ZOO
from r2viz.training import loop as training
from r2viz.training import speed, train
from r2viz.training.card import logits, score
from r2viz.training.data import Pictures, read
from r2viz.training.recipe import Recipe, draw, make, normalised, order
from r2viz.training.speed import fast_bfloat16, fast_layers

tiny = partial(ResNet, depths=(1, 1, 1, 2), widths=(4, 4, 8, 8), strides=(1, 2, 1, 1), stem="3x3", stem_width=8)
TINY = {
    "resnet": lambda classes: tiny(Bottleneck, num_classes=classes),
    "res2net": lambda classes: tiny(Res2NetBlock, num_classes=classes, base_width=64, scale=2),
}
RECIPE = Recipe(phases=((16, 2), (24, 1)), batch=16, rate=0.05, group=4)
TINY_RUN = {"recipe": RECIPE, "device": "cpu", "progress": False, "checkpoint_every": 3}


def encoded(rgb: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, kind)
    return file.getvalue()


def pictures(count: int, seed: int, side: int = 24) -> tuple[list[bytes], list[int]]:
    """Three classes that differ by their strongest colour."""
    chance = np.random.default_rng(seed)
    labels = [index % 3 for index in range(count)]
    images = []
    for label in labels:
        rgb = chance.integers(0, 120, (side, side, 3), dtype=np.uint8)
        rgb[..., label] += 120
        images.append(encoded(rgb))
    return images, labels


def shard(path: Path, images: list, labels: list, **columns: list) -> None:
    pq.write_table(pa.table({"image": images, "label": labels, **columns}), path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    images, labels = pictures(90, 0)
    shard(folder / "train-0.parquet", images[:40], labels[:40])
    shard(folder / "train-1.parquet", images[40:], labels[40:])
    shard(folder / "val.parquet", *pictures(30, 1))
    (folder / "classes.csv").write_text('label,name\n0,"red, scarlet"\n1,green\n2,blue\n')
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    train(data, TINY, out, **TINY_RUN)
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    return {f"{name}.{key}": v for name, network in state["networks"].items() for key, v in network["model"].items()}


# --- The run ---------------------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_everything(undisturbed: Path) -> None:
    assert sorted(path.name for path in undisturbed.iterdir() if path.is_file()) == [
        "checkpoint.pt",
        "classes.txt",
        "curves.csv",
        "curves.png",
        *(f"res2net.{kind}" for kind in ("json", "md", "safetensors")),
        *(f"resnet.{kind}" for kind in ("json", "md", "safetensors")),
    ]
    assert (undisturbed / "classes.txt").read_text() == "red\ngreen\nblue\n"
    card = json.loads((undisturbed / "res2net.json").read_text())
    assert card["score"]["top1"] > 0.6, "three colours are easy"
    assert card["score"]["top5"] == 1.0
    assert card["score"]["pictures"] == 30
    assert card["training"]["pictures_seen"] == 3 * 5 * 16
    assert card["training"]["recipe"]["phases"] == [[16, 2], [24, 1]]
    assert card["pair"].keys() == {"resnet"}
    assert card["float16"]["same_top1"] >= 0.96
    text = (undisturbed / "res2net.md").read_text()
    for value in (card["weights"]["sha256"], card["training"]["stream_sha256"], card["data"]["sha256"], "ECE"):
        assert value in text


def test_shipped_weights_fit_and_score_as_the_card_says(undisturbed: Path, data: Path) -> None:
    from safetensors.torch import load_file

    found = read(data, 24)
    for name, build in TINY.items():
        card = json.loads((undisturbed / f"{name}.json").read_text())
        state = load_file(undisturbed / f"{name}.safetensors")
        assert state["conv1.weight"].dtype == torch.float16
        assert state["bn1.running_var"].dtype == torch.float32
        module = build(3).eval()
        module.load_state_dict(state)
        assert score(logits(module, found.validation, 24), found.validation.labels).top1 == card["score"]["top1"]
        assert card["parameters"] == sum(parameter.numel() for parameter in module.parameters())


def test_the_pair_has_one_stream_and_equal_treatment(undisturbed: Path) -> None:
    one, other = (json.loads((undisturbed / f"{name}.json").read_text()) for name in TINY)
    assert one["training"] == other["training"]
    # The slow way to the same digest: every batch of the recipe, one after the other.
    digest = ""
    for epoch in range(3):
        indices = order(0, epoch, 90)
        for batch in range(5):
            digest = draw(RECIPE, 0, epoch, batch, indices[batch * 16 : batch * 16 + 16], 24).chain(digest)
    assert one["training"]["stream_sha256"] == digest
    with (undisturbed / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    points = {name: [(r["step"], r["size"], r["rate"]) for r in rows if r["network"] == name] for name in TINY}
    assert points["resnet"] == points["res2net"]
    assert len([row for row in rows if row["top1"]]) == 2 * 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_equals_undisturbed_bitwise(
    data: Path, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TINY_RUN | {"precision": precision}
    train(data, TINY, tmp_path / "whole", **settings)

    steps = 0
    learn = training._Network.learn

    def cut(*args: object, **options: object) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps > 2 * 8:  # in the second epoch, two steps after a checkpoint
            raise KeyboardInterrupt
        return learn(*args, **options)

    monkeypatch.setattr(training._Network, "learn", cut)
    with pytest.raises(KeyboardInterrupt):
        train(data, TINY, tmp_path / "cut", **settings)
    monkeypatch.undo()
    assert torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["step"] == 6
    train(data, TINY, tmp_path / "cut", resume=True, **settings)

    whole, cut_off = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut_off.keys()
    for key, value in whole.items():
        assert torch.equal(value, cut_off[key]), key
    for file in ("curves.csv", "resnet.safetensors", "res2net.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes(), file


def test_training_leaves_the_process_as_it_was(data: Path, tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    train(data, TINY, tmp_path, **TINY_RUN | {"recipe": Recipe(phases=((16, 1),), batch=16)})
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_finished_run_resumes_to_itself(data: Path, undisturbed: Path) -> None:
    before = (undisturbed / "resnet.json").read_bytes()
    train(data, TINY, undisturbed, resume=True, **TINY_RUN)
    assert (undisturbed / "resnet.json").read_bytes() == before


@pytest.mark.slow
def test_two_processes_share_each_batch(data: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from r2viz.training import train\n"
        "from r2viz.training.recipe import Recipe\n"
        "recipe = Recipe(phases=((64, 1),), batch=16)\n"
        "train(sys.argv[1], out=sys.argv[2], recipe=recipe, device='cpu', precision='float32', progress=False)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [*command, str(data), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    card = json.loads((tmp_path / "out" / "resnet26_mini.json").read_text())
    assert card["training"]["device"] == "2 x CPU"
    assert card["training"]["pictures_seen"] == 80


# --- Checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_not_overwritten_unasked(data: Path, undisturbed: Path) -> None:
    with pytest.raises(OutputError, match=r"checkpoint.pt exists; go on with resume, or start anew with overwrite"):
        train(data, TINY, undisturbed, **TINY_RUN)


def test_a_checkpoint_of_another_run_is_refused(data: Path, undisturbed: Path) -> None:
    with pytest.raises(OutputError, match=r"of another run: its seed is 0, not 1"):
        train(data, TINY, undisturbed, resume=True, seed=1, **TINY_RUN)
    other = TINY_RUN | {"recipe": Recipe(phases=((16, 2), (24, 1)), batch=16, rate=0.1, group=4)}
    with pytest.raises(OutputError, match=r"of another run: its rate is 0.05, not 0.1"):
        train(data, TINY, undisturbed, resume=True, **other)


def test_a_damaged_checkpoint_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(BadWeights, match=r"checkpoint.pt: no whole checkpoint"):
        train(data, TINY, tmp_path, resume=True, **TINY_RUN)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_keeps_the_previous_checkpoint(
    data: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = (undisturbed / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(kept)
    (tmp_path / ".checkpoint.pt.part").symlink_to("/dev/full")
    recipe = Recipe(phases=((16, 1),), batch=16)
    with pytest.raises(OutputError, match=r"the checkpoint cannot be written .*the previous checkpoint is intact"):
        train(data, TINY, tmp_path, overwrite=True, **TINY_RUN | {"recipe": recipe})
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept


def test_sigkill_while_writing_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """A process that does nothing but write checkpoints is killed at odd moments."""
    script = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from r2viz.training.card import replace\n"
        "for step in range(10**6):\n"
        "    state = {'step': step, 'values': torch.full((300_000,), float(step))}\n"
        "    replace(Path(sys.argv[1]), lambda new: torch.save(state, new), what='checkpoint')\n"
        "    step == 0 and print('ready', flush=True)\n"
    )
    file = tmp_path / "checkpoint.pt"
    process = subprocess.Popen([sys.executable, "-c", script, str(file)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    seen = -1
    try:
        for wait in (0.03, 0.011, 0.007, 0.019):
            time.sleep(wait)
            os.kill(process.pid, signal.SIGSTOP)  # what a reader finds at this instant is what a kill would leave
            state = torch.load(file, weights_only=True)
            assert state["step"] >= seen
            assert (state["values"] == state["step"]).all()
            seen = state["step"]
            os.kill(process.pid, signal.SIGCONT)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert (lambda state: (state["values"] == state["step"]).all())(torch.load(file, weights_only=True))


@pytest.mark.slow
def test_a_killed_training_resumes_to_what_it_would_have_been(data: Path, tmp_path: Path) -> None:
    """The command itself, killed for good once it has written a checkpoint, and once more later."""

    def command(out: Path, *more: str) -> list[str]:
        settings = ["--epochs", "6", "--size", "32", "--precision", "float32", "--device", "cpu"]
        return [sys.executable, "-m", "r2viz", "train", str(data), *settings, "--out", str(out), *more]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    killed = tmp_path / "killed"
    begun, more = 0, []
    for _ in range(2):
        process = subprocess.Popen(command(killed, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        file = killed / "checkpoint.pt"
        while process.poll() is None and not (file.exists() and file.stat().st_mtime_ns > begun):
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        begun, more = file.stat().st_mtime_ns, ["--resume"]
    subprocess.run(command(killed, "--resume"), check=True, capture_output=True)
    for name in ("curves.csv", "resnet26_mini.safetensors", "res2net26_mini.safetensors"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_loss_that_is_no_number_stops_the_run(data: Path, tmp_path: Path, precision: str) -> None:
    recipe = Recipe(phases=((16, 1),), batch=16, rate=1e30)
    with pytest.raises(ModelError, match=r"resnet: the loss is (nan|inf) at step 5 .*train with a smaller rate"):
        train(data, TINY, tmp_path, **TINY_RUN | {"recipe": recipe, "precision": precision})


def test_an_unknown_network_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="no model 'res2net9000'"):
        train(data, ["res2net9000"], tmp_path, **TINY_RUN)


# --- Recipe and stream -----------------------------------------------------------------------------------------------


def test_epochs_are_divided_among_growing_pictures() -> None:
    assert Recipe.of(13, 64).phases == ((32, 9), (48, 2), (64, 2))
    assert Recipe.of(40, 64).phases == ((32, 28), (48, 6), (64, 6))
    assert Recipe.of(2, 64).phases == ((64, 2),)
    assert Recipe.of(13, 64).epochs == 13
    recipe = Recipe.of(13, 64)
    rates = [recipe.rate_at(step / 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(recipe.rate, rel=0.01)
    assert rates.index(max(rates)) == 150
    assert rates[-1] < 0.01 * recipe.rate


def test_nonsense_recipes_are_refused() -> None:
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        Recipe.of(0, 64)
    with pytest.raises(ValueError, match="phases need"):
        Recipe(phases=((4, 1),))


def test_shares_of_a_batch_make_up_the_batch() -> None:
    pixels = torch.randint(0, 256, (40, 24, 24, 3), dtype=torch.uint8)
    drawn = draw(RECIPE, 3, 0, 0, order(3, 0, 40)[:18], 24)
    whole = make(drawn, pixels, 16)
    assert whole.shape == (18, 3, 16, 16)
    assert torch.equal(whole, torch.cat([make(drawn, pixels, 16, range(start, start + 6)) for start in (0, 6, 12)]))


def test_a_batch_is_what_its_draw_says() -> None:
    pixels = torch.randint(0, 256, (20, 24, 24, 3), dtype=torch.uint8)
    drawn = draw(RECIPE, 0, 0, 0, order(0, 0, 20)[:8], 24)
    batch = make(drawn, pixels, 16)
    for row, (index, flip) in enumerate(zip(drawn.indices, drawn.flips, strict=True)):
        y0, x0, y1, x1 = drawn.boxes[row // 4]
        crop = np.asarray(pixels[index, y0:y1, x0:x1])
        wanted = torch.from_numpy(np.asarray(Image.fromarray(crop).resize((16, 16), Image.Resampling.BILINEAR)).copy())
        wanted = wanted.flip(1) if flip else wanted
        # The library rounds the two passes of a resize otherwise than Pillow: one of 256 levels.
        assert (batch[row] - normalised(wanted.permute(2, 0, 1)[None])[0]).abs().max() < 1.1 / 255 / 0.224


# --- Data ------------------------------------------------------------------------------------------------------------


def test_pictures_are_stored_as_the_preprocessing_has_them(tmp_path: Path) -> None:
    images, labels = pictures(6, 0)
    wide = encoded(np.random.default_rng(0).integers(0, 256, (50, 91, 3), dtype=np.uint8))
    shard(tmp_path / "train.parquet", [*images, wide], [*labels, 0])
    shard(tmp_path / "val.parquet", images, labels)
    stored = read(tmp_path, 32).training.pixels[-1]
    x, _ = Preprocess(resize=32, crop=(32, 32))(np.asarray(Image.open(io.BytesIO(wide))))
    assert torch.allclose(normalised(torch.from_numpy(stored.copy()).permute(2, 0, 1)[None]), x, atol=1e-5)


def test_an_image_folder_reads_like_shards(data: Path, tmp_path: Path) -> None:
    for half, count, seed in (("train", 90, 0), ("val", 30, 1)):
        for index, (image, label) in enumerate(zip(*pictures(count, seed), strict=True)):
            file = tmp_path / half / "abc"[label] / f"{index:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image)
    found, shards = read(tmp_path, 24), read(data, 24)
    assert found.classes == ("a", "b", "c")
    assert np.array_equal(np.sort(found.training.labels), np.sort(shards.training.labels))
    assert found.training.pixels.sum() == shards.training.pixels.sum()


def test_the_cache_gives_the_same_and_notices_changes(tmp_path: Path) -> None:
    shard(tmp_path / "train.parquet", *pictures(12, 0))
    shard(tmp_path / "val.parquet", *pictures(6, 1))
    fresh = read(tmp_path, 16)
    for _ in range(2):
        cached = read(tmp_path, 16, cache=tmp_path / "cache")
        assert cached.digest == fresh.digest
        assert np.array_equal(cached.training.pixels, fresh.training.pixels)
    shard(tmp_path / "train.parquet", *pictures(15, 0))
    assert len(read(tmp_path, 16, cache=tmp_path / "cache").training.labels) == 15


def test_a_cache_that_cannot_be_written_says_how_much_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(tmp_path / "train.parquet", *pictures(12, 0))
    shard(tmp_path / "val.parquet", *pictures(6, 1))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\); they need 0.0 GB"):
        read(tmp_path, 16, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_fault_in_the_data_leaves_no_half_cache(tmp_path: Path) -> None:
    images, labels = pictures(12, 0)
    shard(tmp_path / "train.parquet", [*images[:11], b"no picture"], labels)
    shard(tmp_path / "val.parquet", images, labels)
    with pytest.raises(BadData, match=r"train\.parquet row 11"):
        read(tmp_path, 16, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def broken(tmp_path: Path, change: str) -> str:
    """The message about a data set with one fault."""
    images, labels = pictures(12, 0)
    train_file, val_file = tmp_path / "train.parquet", tmp_path / "val.parquet"
    shard(train_file, images, labels)
    shard(val_file, images, labels)
    if change == "column":
        pq.write_table(pa.table({"img": images, "label": labels}), train_file)
    elif change == "label kind":
        shard(train_file, images, [str(label) for label in labels])
    elif change == "label range":
        shard(val_file, images, [label + 5 for label in labels])
    elif change == "negative":
        shard(val_file, images, [label - 1 for label in labels])
    elif change == "from one":
        shard(train_file, images, [label + 1 for label in labels])
    elif change == "no label":
        shard(train_file, images, [*labels[:4], None, *labels[5:]])
    elif change == "one class":
        shard(train_file, images, [0] * 12)
        shard(val_file, images, [0] * 12)
    elif change == "picture":
        shard(train_file, [*images[:7], images[7][:200], *images[8:]], labels)
    elif change == "no picture":
        shard(train_file, [*images[:7], None, *images[8:]], labels)
    elif change == "shard":
        train_file.write_bytes(train_file.read_bytes()[:500])
    elif change == "no val":
        val_file.unlink()
    elif change == "empty":
        shard(val_file, pa.array([], pa.binary()), pa.array([], pa.int64()))
    elif change == "classes.csv":
        (tmp_path / "classes.csv").write_text("label,name\n1,a\n2,b\n3,c\n")
    with pytest.raises(BadData) as caught:
        read(tmp_path, 16)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("column", ["train.parquet: no column 'image'", "img, label"]),
        ("label kind", ["train.parquet: the column 'label' holds string, not integers"]),
        ("label range", ["the validation labels go from 5 to 7", "expected 0..2"]),
        ("negative", ["the validation labels go from -1 to 1", "expected 0..2"]),
        ("from one", ["no training picture has label 0, of 0..3", "number the classes from 0"]),
        ("no label", ["train.parquet row 4: has no label"]),
        ("one class", ["all 12 training pictures have label 0; two classes are needed"]),
        ("picture", ["train.parquet row 7"]),
        ("no picture", ["train.parquet row 7: the image is NoneType, not encoded bytes"]),
        ("shard", ["train.parquet: no whole Parquet file"]),
        ("no val", ["has 1 shards but no validation shard; name it val*.parquet"]),
        ("empty", ["there are no validation pictures"]),
        ("classes.csv", ["classes.csv: 3 rows must have the labels 0..2, each once"]),
    ],
)
def test_faults_of_a_data_set_are_named(tmp_path: Path, change: str, words: list[str]) -> None:
    message = broken(tmp_path, change)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_faults_of_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no such folder"):
        read(tmp_path / "absent", 16)
    with pytest.raises(BadData, match=r"there is no train/; expected train/CLASS/\* and val/CLASS/\*"):
        read(tmp_path, 16)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "val" / "cot").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "1.png").write_bytes(b"")
    with pytest.raises(BadData, match="val has the class 'cot' that train has not; did you mean 'cat'"):
        read(tmp_path, 16)


# --- Networks, scores, speed -----------------------------------------------------------------------------------------


def test_the_mini_pair_is_a_pair() -> None:
    res, res2 = (ZOO[name].build() for name in ("resnet26_mini", "res2net26_mini"))
    parameters = [sum(parameter.numel() for parameter in module.parameters()) for module in (res, res2)]
    work = [macs(module, (64, 64)) for module in (res, res2)]
    assert all(1.5e6 <= count <= 2.5e6 for count in parameters)
    assert all(count <= 140e6 for count in work)
    assert parameters[1] == pytest.approx(parameters[0], rel=0.04)
    assert work[1] == pytest.approx(work[0], rel=0.04)
    for module in (res, res2):
        shapes: list[torch.Size] = []
        module.layer4.register_forward_hook(lambda _, __, out, shapes=shapes: shapes.append(out.shape))
        x, _ = ZOO["resnet26_mini"].preprocess(np.zeros((100, 80, 3), np.uint8))
        assert module.eval()(x).shape == (1, 200)
        assert shapes == [(1, 640, 8, 8)]


def test_multiply_adds_against_arithmetic() -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.Flatten(), nn.Linear(5 * 16, 7))
    assert macs(module, (8, 8)) == 3 * 9 * 5 * 16 + 5 * 16 * 7


def test_score_against_a_slow_reference() -> None:
    values = torch.randn(200, 9, generator=torch.Generator().manual_seed(0)) * 2
    labels = np.random.default_rng(0).integers(0, 9, 200)
    found = score(values, labels)
    probabilities = values.double().softmax(1).numpy()
    ranked = np.argsort(-probabilities, axis=1)
    assert found.top1 == pytest.approx(np.mean(ranked[:, 0] == labels))
    assert found.top5 == pytest.approx(np.mean([label in row[:5] for label, row in zip(labels, ranked, strict=True)]))
    ece = 0.0
    for low in range(15):
        chosen = [i for i in range(200) if low / 15 <= probabilities[i].max() < (low + 1) / 15]
        if chosen:
            right = np.mean([ranked[i, 0] == labels[i] for i in chosen])
            ece += abs(right - np.mean([probabilities[i].max() for i in chosen])) * len(chosen) / 200
    assert found.ece == pytest.approx(ece)


def test_logits_resize_when_asked() -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = Pictures(np.full((3, 20, 20, 3), 128, np.uint8), np.zeros(3, np.int64))
    assert torch.allclose(logits(module.append(nn.Linear(3, 2)), found, 10, batch=2), logits(module, found, 20))


@pytest.mark.parametrize("name", list(TINY))
@pytest.mark.parametrize("side", [16, 64])
def test_fast_layers_give_the_gradients_of_plain_ones(name: str, side: int) -> None:
    """In bfloat16 both ways round; neither may be farther from float32 than the other by much."""
    torch.manual_seed(0)
    module = TINY[name](3).to(memory_format=torch.channels_last)
    x = torch.randn(8, 3, side, side).contiguous(memory_format=torch.channels_last)

    def gradients(*, bfloat16: bool) -> torch.Tensor:
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            values = module(x)
        nn.functional.cross_entropy(values.float(), torch.arange(8) % 3).backward()
        return torch.cat([parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None])

    exact, library = gradients(bfloat16=False), gradients(bfloat16=True)
    with fast_layers(module):
        ours = gradients(bfloat16=True)
    assert ours.dtype == torch.float32
    assert (ours - exact).norm() < 1.5 * (library - exact).norm() + 1e-6
    assert torch.equal(gradients(bfloat16=False), exact), "outside, everything is as before"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "channels"), [(1, 5), (3, 5), (3, 3)])
def test_one_matrix_convolution_against_autograd(kernel: int, channels: int, stride: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 6, kernel, stride, kernel // 2, bias=False)
    x = torch.randn(2, channels, 7, 8, requires_grad=True)
    weight = torch.randn_like(conv(x))
    wanted = torch.autograd.grad((conv(x) * weight).sum(), [x, conv.weight])
    with fast_layers(conv):
        ours = torch.autograd.grad((conv(x).float() * weight).sum(), [x, conv.weight])
    for mine, theirs in zip(ours, wanted, strict=True):
        assert mine.shape == theirs.shape
        assert (mine - theirs).abs().max() < 0.02 * theirs.abs().max()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("count", [1, 70])
def test_the_gradient_of_unfolded_neighbours_in_float64(count: int, stride: int) -> None:
    """70 pictures are more than one portion, and no whole number of them."""
    torch.manual_seed(0)
    x = torch.randn(count, 5, 8, 6, dtype=torch.float64)
    weight = torch.randn(7, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    out = nn.functional.conv2d(x, weight, None, stride, 1)
    grad = torch.randn_like(out)
    (wanted,) = torch.autograd.grad(out, weight, grad)
    for layout in (torch.contiguous_format, torch.channels_last):
        ours = speed._unfolded(grad.contiguous(memory_format=layout), x.contiguous(memory_format=layout), stride)
        assert torch.allclose(ours, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["channels-last", "channels-first", "broadcast"])
def test_relu_by_bits_is_relu(layout: str) -> None:
    """All 65536 numbers of bfloat16, infinities, both zeros and NaNs of both signs among them."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).view(4, 64, 16, 16)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn(4, 64, 16, 16).bfloat16()
    if layout == "broadcast":
        grad = grad[:, :, :1, :1].expand(-1, -1, 16, 16)
    elif layout == "channels-last":
        grad = grad.contiguous(memory_format=torch.channels_last)
    wanted = nn.functional.relu(x)
    for module in (nn.ReLU(), nn.ReLU(inplace=True)):
        with fast_layers(module):
            ours = module(x * 1)
        number = ~wanted.isnan()
        assert torch.equal(ours.isnan(), wanted.isnan()), "what went wrong must stay visible"
        assert torch.equal(ours[number], wanted[number])
        mine, theirs = (torch.autograd.grad(out, x, grad, retain_graph=True)[0] for out in (ours, wanted))
        assert torch.equal(mine[number], theirs[number])


def test_relu_of_float32_and_of_views_is_left_alone() -> None:
    module = nn.ReLU(inplace=True)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 6, 3, 3, dtype=dtype, requires_grad=True)
        parts = (x * 1).split(3, dim=1)
        with fast_layers(module):
            if dtype == torch.bfloat16:
                assert torch.equal(module(parts[0]), nn.functional.relu(x[:, :3]))
            else:
                assert torch.equal(module(x * 1), nn.functional.relu(x))
    assert "forward" not in vars(module)


def test_the_mean_over_a_map_in_float64() -> None:
    module = nn.AdaptiveAvgPool2d(1)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    with fast_layers(module):
        assert torch.equal(module(x), nn.functional.adaptive_avg_pool2d(x, 1))
        assert torch.autograd.gradcheck(module, x)


def test_running_statistics_are_those_of_what_came() -> None:
    torch.manual_seed(0)
    module = TINY["res2net"](3).to(memory_format=torch.channels_last)
    came: dict[nn.Module, torch.Tensor] = {}
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_hook(lambda norm, args, _: came.update({norm: args[0].detach().double()}))
    with fast_layers(module), torch.autocast("cpu", torch.bfloat16):
        module(torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    assert len(came) == len(norms)
    for norm, x in came.items():
        variance, mean = torch.var_mean(x, (0, 2, 3))
        assert torch.allclose(norm.running_mean.double(), 0.1 * mean, rtol=1e-4, atol=1e-6)
        assert torch.allclose(norm.running_var.double(), 0.9 + 0.1 * variance, rtol=1e-5)


def _networks(precision: str) -> tuple[training._Place, dict[str, training._Network], ExitStack]:
    place = training._Place(torch.device("cpu"), training._dtype(precision, torch.device("cpu")))
    stack = ExitStack()
    return place, training._networks(TINY, 3, 0, RECIPE, place, stack), stack


def _losses(data: Path, precision: str) -> dict[str, list[float]]:
    """Of 30 steps on the colours."""
    place, networks, stack = _networks(precision)
    fast = precision == "bfloat16" and training.fast_bfloat16()
    for network in networks.values():
        assert any("forward" in vars(part) for part in network.module.modules()) == fast
    found = read(data, 24)
    pixels, labels = torch.from_numpy(found.training.pixels), torch.from_numpy(found.training.labels)
    losses: dict[str, list[float]] = {name: [] for name in networks}
    with stack:
        for epoch in range(6):
            indices = order(0, epoch, 90)
            for batch in range(5):
                drawn = draw(RECIPE, 0, epoch, batch, indices[batch * 16 : batch * 16 + 16], 24)
                x, y = make(drawn, pixels, 16), labels[torch.from_numpy(drawn.indices)]
                for name, network in networks.items():
                    losses[name].append(float(network.learn(x, y, 0.05, RECIPE, place)))
    return losses


def test_fast_layers_learn_like_plain_ones(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = _losses(data, "float32")
    monkeypatch.setattr(training, "fast_bfloat16", lambda: True)
    fast = _losses(data, "bfloat16")
    monkeypatch.setattr(training, "fast_bfloat16", lambda: False)
    plain = _losses(data, "bfloat16")
    for name in TINY:
        assert exact[name][-1] < 0.7 * exact[name][0]
        ours, library = (np.abs(np.subtract(found[name], exact[name])) for found in (fast, plain))
        assert ours.mean() < 2 * library.mean() + 0.01
        assert fast[name][-5:] == pytest.approx(exact[name][-5:], abs=0.1)


@pytest.mark.parametrize(("precision", "amx"), [("float32", True), ("bfloat16", False)])
def test_elsewhere_the_layers_are_pytorchs_own(precision: str, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "fast_bfloat16", lambda: amx)
    _, networks, stack = _networks(precision)
    with stack:
        for network in networks.values():
            assert not any("forward" in vars(part) for part in network.module.modules())


def test_the_update_is_nesterovs_by_hand() -> None:
    place, networks, stack = _networks("float32")
    network = networks["resnet"]
    x = torch.randn(16, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    y = torch.arange(16) % 3
    momenta: dict[str, torch.Tensor] = {}
    with stack:
        for rate in (0.05, 0.1, 0.02):
            before = {name: value.detach().clone() for name, value in network.module.named_parameters()}
            network.learn(x, y, rate, RECIPE, place)
            for name, value in network.module.named_parameters():
                assert value.grad is not None
                slope = value.grad + (5e-4 * before[name] if value.ndim > 1 else 0)
                momenta[name] = 0.9 * momenta[name] + slope if name in momenta else slope
                wanted = before[name] - rate * (slope + 0.9 * momenta[name])
                assert torch.allclose(value, wanted, rtol=1e-5, atol=1e-6), name


def test_a_checkpoint_of_another_update_is_gone_on_with() -> None:
    """Runs that were started before the update was one pass hold `foreach` in their checkpoints."""
    place, networks, stack = _networks("float32")
    x, y = torch.randn(16, 3, 16, 16), torch.arange(16) % 3
    with stack:
        network = networks["resnet"]
        network.learn(x, y, 0.05, RECIPE, place)
        state = copy.deepcopy(network.state())
        for group in state["optimizer"]["param_groups"]:
            group.update(foreach=True, fused=None)
        first = float(network.learn(x, y, 0.05, RECIPE, place))
        after = {key: value.clone() for key, value in network.module.state_dict().items()}
        network.load(state)
        assert float(network.learn(x, y, 0.05, RECIPE, place)) == first
        for key, value in network.module.state_dict().items():
            assert torch.allclose(value, after[key], rtol=1e-5, atol=1e-6), key


def test_the_command_writes_its_version_number_on_the_cards(data: Path, tmp_path: Path) -> None:
    options = ["--epochs", "1", "--size", "16", "--device", "cpu", "--models", "resnet26_mini"]
    done = CliRunner().invoke(cli, ["train", str(data), "--out", str(tmp_path), *options, "--version-number", "7"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "resnet26_mini.json").read_text())["version"] == 7
    assert "version 7" in (tmp_path / "resnet26_mini.md").read_text().splitlines()[0]
    done = CliRunner().invoke(cli, ["train", str(data), "--version-number", "0"])
    assert done.exit_code == 2
    assert "0 is not in the range x>=1" in done.output


def test_whether_the_cpu_is_fast_is_answered() -> None:
    assert fast_bfloat16() in (True, False)
