"""Train networks alike: same pictures in the same order, same crops, schedule, budget and seed.

Every batch is made once and given to all networks in turn, so they are equally far at every moment, and a run that
is cut short leaves a fair pair. Checkpoints are whole or absent; a resumed run gives what an undisturbed one gives.

Several GPUs or machines: start the same call under `torchrun`. Each process takes its share of every batch, gradients
are averaged (DistributedDataParallel), the first process writes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from r2viz.errors import BadWeights, ModelError, OutputError, one_line
from r2viz.models.blocks import Bottleneck, Res2NetBlock
from r2viz.models.elsewhere import plain
from r2viz.models.zoo import row as known
from r2viz.training.card import Run, logits, publish, replace, score
from r2viz.training.data import DataSet, Pictures, read
from r2viz.training.recipe import Recipe, draw, make, order
from r2viz.training.speed import fast_bfloat16, fast_layers, keep_memory

Build = Callable[[int], nn.Module]

CHECKPOINT = "checkpoint.pt"
_NOTE_EVERY = 50
"""Steps between two points of the loss curve."""
_LOOK = 2000
"""Validation pictures after each epoch; all of them at the end."""


def train(
    data: str | os.PathLike[str],
    models: Sequence[str] | Mapping[str, Build] = ("resnet26_mini", "res2net26_mini"),
    out: str | os.PathLike[str] = "trained",
    *,
    epochs: int = 13,
    size: int = 64,
    seed: int = 0,
    recipe: Recipe | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
    checkpoint_every: int = 200,
    version: int = 1,
    progress: bool | None = None,
) -> dict[str, dict[str, Any]]:
    """Train networks alike and write weights, cards and curves into a folder.

    Args:
        data: a folder that `r2viz.training.data.read` can read.
        models: names as for `r2viz.load`, or name -> function that builds a network from its number of classes.
        out: gets `NAME.safetensors`, `NAME.json`, `NAME.md`, `classes.txt`, `curves.png`, `curves.csv`, the checkpoint
            and the decoded pictures (`cache/`).
        epochs: over all picture sizes; see `Recipe.of`.
        size: side of the pictures at the end and in use.
        seed: of initial weights, order and augmentation, for every network.
        recipe: instead of the one that `epochs` and `size` give.
        resume: go on from the checkpoint in `out`, if there is one.
        overwrite: start anew although there is one.
        device: `"auto"` (CUDA, else the CPU) or a torch device.
        precision: of matrix products: `"float32"`, `"bfloat16"`, `"float16"` (CUDA only), or `"auto"`: bfloat16
            where the hardware multiplies it, float16 on other GPUs, float32 on other CPUs.
        checkpoint_every: steps; there is always one after each epoch.
        version: the number that the card shows.
        progress: a bar on stderr; None shows it on a terminal only.

    Returns:
        The cards by network, as written; empty on all but the first process.

    Raises:
        BadData: the data set cannot be used.
        UnknownName: no such network.
        OutputError: `out` holds a checkpoint and neither `resume` nor `overwrite` is on, that checkpoint is of
            another run, or something cannot be written.
        BadWeights: the checkpoint cannot be read.
        ModelError: a loss is not finite any more.
    """
    build = _builders(models)
    recipe = recipe or Recipe.of(epochs, size)
    out = Path(out)
    with ExitStack() as stack:
        keep_memory()
        place = stack.enter_context(_place(device, precision, recipe))
        state = out / CHECKPOINT
        if state.exists() and not (resume or overwrite):
            raise OutputError(f"{one_line(str(state))} exists; go on with resume, or start anew with overwrite")
        found = _read_once(data, max(side for side, _ in recipe.phases), out / "cache", place, progress)
        networks = _networks(build, len(found.classes), seed, recipe, place, stack)
        trainer = _Trainer(found, recipe, seed, networks, place, out, checkpoint_every)
        if resume and state.exists():
            trainer.load(state)
        place.wait()
        trainer.run(stack, progress)
        if not place.first:
            return {}
        run = Run(
            data=found,
            recipe=recipe,
            seed=seed,
            models=tuple(build),
            stream=trainer.stream,
            seen=trainer.step * trainer.batch,
            seconds=trainer.seconds,
            precision=str(place.dtype or torch.float32).removeprefix("torch."),
            device=place.describe(),
            version=version,
        )
        trained = {name: network.module.to("cpu") for name, network in networks.items()}
    # Outside: the exact convolutions again, all threads again.
    return publish(out, trained, build, run, trainer.history)


def _builders(models: Sequence[str] | Mapping[str, Build]) -> dict[str, Build]:
    if isinstance(models, Mapping):
        return dict(models)

    def of_table(name: str) -> Build:
        row = known(name)
        return lambda num_classes: row.build(num_classes=num_classes)

    # Files are called after the networks: no colon, no folder.
    found = {plain(name).replace(":", "-"): of_table(name) for name in models}
    if len(found) < len(models):
        raise ModelError(f"two of {', '.join(models)} would write files of the same name; train them apart")
    return found


# --- Where it runs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    device: torch.device
    dtype: torch.dtype | None
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()

    def autocast(self) -> Any:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def describe(self) -> str:
        if self.device.type != "cuda":
            return f"{self.world} x CPU" if self.world > 1 else f"CPU, {os.cpu_count()} cores"
        return f"{self.world} x {torch.cuda.get_device_name(self.device)}"


@contextmanager
def _place(device: str, precision: str, recipe: Recipe) -> Iterator[_Place]:
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if recipe.batch % world:
        raise ValueError(f"a batch of {recipe.batch} cannot be shared evenly by {world} processes")
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if kind == "cuda" and world > 1:
        kind = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    where = torch.device(kind)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    started = world > 1 and not dist.is_initialized()
    if started:
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        yield _Place(where, _dtype(precision, where), rank, world)
    finally:
        if started:
            dist.destroy_process_group()


def _dtype(precision: str, device: torch.device) -> torch.dtype | None:
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.bfloat16 if device.type == "cpu" and fast_bfloat16() else None
    kinds = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if precision not in kinds or (precision == "float16" and device.type != "cuda"):
        raise ValueError(f"precision must be auto, float32, bfloat16 or (on CUDA) float16, not {precision!r}")
    return kinds[precision]


def _read_once(data: str | os.PathLike[str], size: int, cache: Path, place: _Place, progress: bool | None) -> DataSet:
    """The first process decodes; the others map what it has written."""
    if place.first:
        found = read(data, size, cache=cache, progress=progress)
    place.wait()
    if not place.first:
        found = read(data, size, cache=cache, progress=False)
    return found


# --- Networks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Network:
    """A network in training; `shared` is the same network, averaging gradients over processes if there are several."""

    module: nn.Module
    shared: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    def state(self) -> dict[str, Any]:
        return {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def learn(self, x: Tensor, y: Tensor, rate: float, recipe: Recipe, place: _Place) -> Tensor:
        """One step; the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with place.autocast():
            values = self.shared(x)
        loss = F.cross_entropy(values.float(), y, label_smoothing=recipe.label_smoothing)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


def _networks(
    build: Mapping[str, Build], classes: int, seed: int, recipe: Recipe, place: _Place, stack: ExitStack
) -> dict[str, _Network]:
    networks = {}
    for name, function in build.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = function(classes)
        if recipe.quiet_start:
            for block in module.modules():
                if isinstance(block, (Bottleneck, Res2NetBlock)):
                    nn.init.zeros_(block.get_parameter("bn3.weight"))
        module.to(place.device).to(memory_format=torch.channels_last)
        if place.device.type == "cpu" and place.dtype == torch.bfloat16 and fast_bfloat16():
            stack.enter_context(fast_layers(module))
        decayed = [parameter for parameter in module.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in module.parameters() if parameter.ndim <= 1]
        optimizer = torch.optim.SGD(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=recipe.rate,
            momentum=recipe.momentum,
            nesterov=True,
            # One pass over the parameters instead of five; on CUDA a scaler may stand between, so there as ever.
            foreach=place.device.type != "cpu",
            fused=place.device.type == "cpu",
        )
        shared = DistributedDataParallel(module) if place.world > 1 else module
        scaler = torch.amp.GradScaler(place.device.type, enabled=place.dtype == torch.float16)
        networks[name] = _Network(module, shared, optimizer, scaler)
    return networks


# --- The loop --------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Trainer:
    """The state of a run: what a checkpoint holds is what `load` and `save` name."""

    data: DataSet
    recipe: Recipe
    seed: int
    networks: dict[str, _Network]
    place: _Place
    out: Path
    checkpoint_every: int
    step: int = 0
    stream: str = ""
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batch = min(self.recipe.batch, len(self.data.training.labels))
        self.per_epoch = len(self.data.training.labels) // self.batch
        self.total = self.per_epoch * self.recipe.epochs
        self.losses = self.losses or {name: [] for name in self.networks}

    def run(self, stack: ExitStack, progress: bool | None) -> None:
        """Train to the end of the recipe, or on from where the checkpoint was."""
        pixels, labels = torch.from_numpy(self.data.training.pixels), torch.from_numpy(self.data.training.labels)
        rows = _share(self.batch, self.place)
        workers = stack.enter_context(_workers(len(self.networks), self.place))
        bar = stack.enter_context(
            tqdm(
                total=self.total,
                initial=self.step,
                desc="training",
                unit="step",
                disable=(None if progress is None else not progress) if self.place.first else True,
            )
        )
        started, before, indices = time.monotonic(), self.seconds, None
        while self.step < self.total:
            epoch, index = divmod(self.step, self.per_epoch)
            if indices is None or index == 0:
                indices = order(self.seed, epoch, len(labels))
            side = self.recipe.size_at(epoch)
            drawn = draw(
                self.recipe,
                self.seed,
                epoch,
                index,
                indices[index * self.batch : (index + 1) * self.batch],
                pixels.shape[1],
            )
            x = make(drawn, pixels, side, rows).to(self.place.device)
            y = labels[torch.from_numpy(drawn.indices[rows[0] : rows[-1] + 1])].to(self.place.device)
            rate = self.recipe.rate_at(self.step / self.total)

            def learn(name: str, x: Tensor = x, y: Tensor = y, rate: float = rate) -> float:
                return float(self.networks[name].learn(x, y, rate, self.recipe, self.place))

            results = workers.map(learn, self.networks) if workers else map(learn, self.networks)
            for name, loss in zip(self.networks, results, strict=True):
                self.losses[name].append(loss)
            self.step += 1
            self.stream = drawn.chain(self.stream)
            self.seconds = before + time.monotonic() - started
            at_end = self.step % self.per_epoch == 0
            if at_end or self.step % _NOTE_EVERY == 0:
                self._note(side, rate, bar)
            if at_end:
                self._look(side)
            if self.place.first and (at_end or self.step % self.checkpoint_every == 0):
                self.save(self.out / CHECKPOINT)
            bar.update()

    def _note(self, side: int, rate: float, bar: Any) -> None:
        means = {name: sum(losses) / len(losses) for name, losses in self.losses.items()}
        for name, mean in means.items():
            if not mean < float("inf"):  # nan compares false as well
                raise ModelError(
                    f"{name}: the loss is {mean} at step {self.step} (learning rate {rate:.3g}); "
                    "train with a smaller rate, or in float32"
                )
            self.history.append(self._row(name, side) | {"rate": rate, "loss": mean})
        bar.set_postfix_str(", ".join(f"{name} {mean:.3f}" for name, mean in means.items()))
        self.losses = {name: [] for name in self.networks}

    def _look(self, side: int) -> None:
        if not self.place.first:
            return
        some = Pictures(self.data.validation.pixels[:_LOOK], self.data.validation.labels[:_LOOK])
        for name, network in self.networks.items():
            network.module.eval()
            with self.place.autocast():
                found = score(logits(network.module, some, side), some.labels)
            network.module.train()
            self.history.append(self._row(name, side) | {"top1": found.top1, "top5": found.top5})

    def _row(self, name: str, side: int) -> dict[str, Any]:
        return {"network": name, "step": self.step, "epoch": self.step / self.per_epoch, "size": side}

    # What makes two runs the same run.
    def _identity(self) -> dict[str, Any]:
        return {
            "models": list(self.networks),
            "seed": self.seed,
            "data": self.data.digest,
            "precision": str(self.place.dtype),
            "recipe": self.recipe.as_dict(),
        }

    def save(self, path: Path) -> None:
        """Write the checkpoint; the one before stays until this one is whole and on the disk."""
        state = {
            "identity": json.dumps(self._identity()),
            "step": self.step,
            "stream": self.stream,
            "seconds": self.seconds,
            "history": json.dumps(self.history),
            "losses": self.losses,
            "networks": {name: network.state() for name, network in self.networks.items()},
        }
        replace(path, lambda new: torch.save(state, new), what="checkpoint")

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            BadWeights: it cannot be read.
            OutputError: it is of another run.
        """
        shown = one_line(str(path))
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            identity = json.loads(state["identity"])
        except Exception as error:  # torch.load raises nearly anything on damaged files
            reason = one_line(" ".join(str(error).split()), 100)
            raise BadWeights(f"{shown}: no whole checkpoint ({reason}); start anew with overwrite") from error
        own = json.loads(json.dumps(self._identity()))
        for key, value in own.items():
            if identity.get(key) != value:
                raise OutputError(
                    f"{shown} is of another run: its {_difference(key, identity.get(key), value)}; "
                    "resume with the same settings, or start anew with overwrite"
                )
        self.step, self.stream, self.seconds = state["step"], state["stream"], state["seconds"]
        self.history, self.losses = json.loads(state["history"]), state["losses"]
        for name, network in self.networks.items():
            network.load(state["networks"][name])


def _difference(key: str, theirs: Any, ours: Any) -> str:
    """Words for the first difference between two values, one level into dictionaries."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for inner in ours:
            if theirs.get(inner) != ours[inner]:
                return _difference(inner, theirs.get(inner), ours[inner])
    return one_line(f"{key} is {theirs}, not {ours}", 160)


def _share(batch: int, place: _Place) -> range:
    """This process's rows of every batch."""
    if batch % place.world:
        raise ValueError(f"a batch of {batch} cannot be shared evenly by {place.world} processes")
    size = batch // place.world
    return range(place.rank * size, (place.rank + 1) * size)


@contextmanager
def _workers(networks: int, place: _Place) -> Iterator[Executor | None]:
    """On one CPU, a thread for each network, with its share of the cores; else None: one after the other.

    A network per core does more than a network over all cores: there is nothing to wait for within a layer. With
    several processes the order of the reductions must be the same everywhere, so there threads will not do.
    """
    if place.device.type != "cpu" or place.world > 1 or networks < 2:
        yield None
        return
    before = torch.get_num_threads()
    each = max(1, before // networks)
    with ThreadPoolExecutor(networks, initializer=torch.set_num_threads, initargs=(each,)) as pool:
        try:
            yield pool
        finally:
            pool.shutdown()
            torch.set_num_threads(before)
