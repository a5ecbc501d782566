"""A network cut in two gives exactly what it gives whole; what is run again equals a whole pass with a hook."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import perturb
from torch import Tensor, nn

from r2viz.attribution import cam_maps, forward_pass
from r2viz.attribution.rerun import Rerun
from r2viz.attribution.scores import score_of
from r2viz.folding import Folded, folded
from r2viz.graph import cut, trace
from r2viz.models.zoo import ZOO
from r2viz.taps import frozen, point

# One of each kind: blocks, stems, shortcuts, groups, attention, trees.
KINDS = [
    name
    for name in (
        "resnet26_mini",
        "res2net26_mini",
        "res2net50_v1b_26w_4s",
        "res2next50",
        "res2net_dla60",
        "se_res2net50",
    )
    if name in ZOO
]


def noise(count: int, size: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def rerun(module: nn.Module, layer: str, batch: Tensor, **options: Any) -> Rerun:
    """As `Pass.maps` makes it, of class 0."""
    seen = forward_pass(module, batch, [layer])
    where, whole = seen.points[layer], seen.activations[layer].detach()
    rows = torch.arange(len(batch))
    with torch.inference_mode():
        score = score_of(0, seen.output)
        base = score(seen.output, rows)
    return Rerun(module, layer, where, seen.batch, where.part(whole), base, score, _whole=whole, **options)


def brute_force(module: nn.Module, batch: Tensor, layer: str, activations: Tensor) -> Tensor:
    """The whole network's logits with these features at the tap, by a hook that puts them there."""
    where = point(module, layer)

    def put(whole: Tensor) -> Tensor:
        if where.split is None:
            return activations.clone()
        width = whole.shape[1] // where.splits
        changed = whole.clone()
        changed[:, where.split * width : (where.split + 1) * width] = activations
        return changed

    part = module.get_submodule(where.path)
    if where.into:
        handle = part.register_forward_pre_hook(lambda _, args: (put(args[0]), *args[1:]))
    else:
        handle = part.register_forward_hook(lambda _, args, output: put(output))
    try:
        with torch.no_grad():
            return module(batch)
    finally:
        handle.remove()


def taps_of(module: nn.Module) -> list[str]:
    """Every kind of point that the network has: a few of each."""
    seen: dict[str, str] = {}
    for name, part in module.named_modules():
        if name and not isinstance(part, (nn.ReLU, nn.Linear, nn.Flatten, nn.ModuleList, nn.AdaptiveAvgPool2d)):
            last = "".join(character for character in name if not character.isdigit())
            seen[f"{type(part).__name__} {last}"] = name
    names = list(seen.values())
    for name, _ in module.named_modules():
        if name.endswith(("conv3", "conv2")):
            names.append(f"{name}_in")
        if name.endswith("conv3") and isinstance(getattr(module.get_submodule(name[:-6]), "scale", None), int):
            names += [f"{name}_in[1]"]
    return names[:: len(names) // 10 + 1] + [name for name in names if "split" in name or "[" in name][:4]


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


# Cutting


@pytest.mark.parametrize("name", KINDS)
def test_the_halves_make_the_whole(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ZOO[name].build().eval()
    batch = noise(2, 32)
    tried = 0
    with torch.inference_mode():
        whole = module(batch)
        for layer in taps_of(module):
            if not layer.endswith(("_in", "]")) and layer not in trace(module).outputs:
                continue  # a module that the forward pass leaves out
            halves = cut(module, point(module, layer))
            assert halves is not None, layer
            crossing = halves.prefix(batch)
            tapped = crossing[0].clone()
            assert torch.equal(halves.suffix(*crossing), whole), layer
            assert torch.equal(halves.suffix(*halves.prefix(batch)), whole), layer
            assert torch.equal(tapped, forward_pass(module, batch, [layer]).activations[layer].detach()), layer
            tried += 1
    assert tried >= 8
    assert hooks(module) == 0


@pytest.mark.parametrize("name", ["densenet121", "googlenet", "inception_v3", "mobilenet_v3_small", "vgg11_bn"])
def test_other_peoples_networks(name: str) -> None:
    import torchvision

    more = {"init_weights": False, "aux_logits": True} if name in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = getattr(torchvision.models, name)(weights=None, **more)
    layers = {
        "densenet121": ["features.denseblock2.denselayer3", "features.denseblock3.denselayer2.conv1", "features"],
        "googlenet": ["inception4b.branch2", "inception4c", "inception5a.branch3_in"],
        "inception_v3": ["Mixed_5c.branch3x3dbl_2", "Mixed_6b", "Mixed_7b.branch_pool"],
        "mobilenet_v3_small": ["features.5.block.1", "features.8"],
        "vgg11_bn": ["features.10", "features"],
    }[name]
    # Followed while in training mode: the graph must be that of evaluation all the same.
    module.train()
    trace(module)
    module.eval()
    batch = noise(1, 96 if name != "inception_v3" else 128)
    with torch.inference_mode():
        whole = module(batch)
        for layer in layers:
            halves = cut(module, point(module, layer))
            assert halves is not None, layer
            assert torch.equal(halves.suffix(*halves.prefix(batch)), whole), layer


class Twice(nn.Module):
    """In-place operations on what crosses a cut, and a shortcut round the tap."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.body(x)
        y += x
        y = self.relu(y)
        return self.fc(y.mean(dim=(2, 3)))


@pytest.mark.parametrize("layer", ["stem", "body", "body_in", "relu_in", "stem_in"])
def test_in_place_operations_spoil_nothing(layer: str) -> None:
    module = Twice().eval()
    batch = noise(2, 12)
    with torch.no_grad():
        expected = module(batch)
    found = rerun(module, layer, batch)
    kept = found.activations.clone()
    rows = torch.tensor([1, 0, 1])
    for _ in range(2):
        torch.testing.assert_close(found.after(kept[rows], rows), expected[rows, 0])
    assert torch.equal(found.activations, kept)


@pytest.mark.parametrize("layer", ["relu", "fc"])
def test_what_leads_nowhere_cannot_be_cut(layer: str) -> None:
    class Apart(Twice):
        def forward(self, x: Tensor) -> Tensor:
            self.relu(self.stem(x))
            return x.mean(dim=(2, 3))

    assert cut(Apart(), point(Apart(), layer)) is None


def test_the_mode_while_a_network_is_followed_leaves_no_trace_in_its_graph() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.dropout(self.conv(x), 0.5, training=self.training)
            return x.mean(dim=(2, 3))

    module = Dropping().train()
    halves = cut(module, point(module, "conv"))
    assert halves is not None
    assert module.training
    batch = noise(2, 8)
    assert torch.equal(halves.suffix(*halves.prefix(batch)), module.eval()(batch))


# Running again


LAYERS = ["layer1", "layer2.0", "layer2.1.bn3", "layer2.1.split1", "layer2.0.split3", "layer2.1.conv3_in", "layer4"]
LAYERS += ["layer2.1.conv3_in[1]", "layer2.0.downsample", "layer2.1.conv1_in", "layer2_in", "layer2.1.convs.1_in"]


@pytest.mark.parametrize("layer", LAYERS)
def test_after_equals_a_whole_pass_with_a_replacing_hook(net: Callable[..., Any], layer: str) -> None:
    module, batch = net(), noise(3)
    found = rerun(module, layer, batch)
    rows = torch.tensor([2, 0, 0, 1, 2])
    changed = found.activations[rows] * torch.linspace(0, 1.5, 5)[:, None, None, None]
    kept = changed.clone()
    expected = brute_force(module, batch[rows], layer, changed)[:, 0]
    for _ in range(2):
        torch.testing.assert_close(found.after(changed, rows), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(changed, kept)
    assert found._halves()[0] is not None
    assert hooks(module) == 0


class Moody(Twice):
    """What comes next depends on values: no graph can hold it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.mean() > 1000:
            return self.fc(x.mean(dim=(2, 3)))
        return self.fc(torch.relu(x + self.body(x)).mean(dim=(2, 3)))


class Counting(Twice):
    """A number of the first batch crosses every cut."""

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        x = self.stem(x)
        return self.fc(torch.relu(x + self.body(x)).reshape(count, 8, -1).mean(dim=2))


@pytest.mark.parametrize("kind", [Moody, Counting])
@pytest.mark.parametrize("layer", ["stem", "body", "body_in"])
def test_networks_that_cannot_be_cut_are_run_whole(kind: type[Twice], layer: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = kind().eval()
    batch = noise(2, 12)
    found = rerun(module, layer, batch)
    rows = torch.tensor([1, 0, 1])
    changed = found.activations[rows] * 0.5
    torch.testing.assert_close(found.after(changed, rows), brute_force(module, batch[rows], layer, changed)[:, 0])
    assert found._halves()[0] is None
    assert hooks(module) == 0


def test_a_hook_that_changes_values_is_not_left_out(net: Callable[..., Any]) -> None:
    module, batch = net(), noise(2)
    handle = module.layer3.register_forward_hook(lambda _module, _args, output: output * 2)
    found = rerun(module, "layer2", batch)
    rows = torch.tensor([0, 1])
    torch.testing.assert_close(found.after(found.activations, rows), found.base, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(found.again(batch, rows), module(batch)[:, 0], rtol=1e-5, atol=1e-5)
    handle.remove()


def test_flags_modes_and_gradients_are_as_before(net: Callable[..., Any]) -> None:
    module = net().train()
    found = rerun(module, "layer2", noise(2))
    with pytest.raises((RuntimeError, IndexError)):
        found.after(found.activations[:, :-1], torch.tensor([0, 1]))
    assert all(part.training for part in module.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert hooks(module) == 0


def test_eight_threads_at_one_network(net: Callable[..., Any]) -> None:
    module = net()
    work = [(noise(2, seed=seed), LAYERS[seed % len(LAYERS)]) for seed in range(8)]
    expected = [brute_force(net(), batch, layer, rerun(net(), layer, batch).activations * 0.5) for batch, layer in work]
    failures: list[object] = []
    start = threading.Barrier(8)

    def run(index: int) -> None:
        batch, layer = work[index]
        start.wait()
        try:
            for _ in range(3):
                found = rerun(module, layer, batch)
                scores = found.after(found.activations * 0.5, torch.tensor([0, 1]))
                torch.testing.assert_close(scores, expected[index][:, 0], rtol=1e-4, atol=1e-4)
        except BaseException as error:  # what happens in a thread must reach the test
            failures.append((index, error))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert hooks(module) == 0


def test_another_thread_sees_no_replaced_features() -> None:
    """The hook of a network that cannot be cut acts in the thread that placed it."""
    module = Moody().eval()
    batch = noise(1, 12)
    with torch.no_grad():
        expected = module(batch)
    found = rerun(module, "stem", batch)
    rows = torch.tensor([0])
    wrong: list[Tensor] = []
    done = threading.Event()

    def look() -> None:
        with torch.no_grad():
            while not done.is_set():
                output = module(batch)
                if not torch.equal(output, expected):
                    wrong.append(output)

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(50):
        found.after(found.activations * 0, rows)
    done.set()
    thread.join()
    assert not wrong


# Folding


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("name", KINDS)
def test_a_folded_network_is_the_same_network(name: str, last: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = perturb(ZOO[name].build()).eval()
    batch = noise(3, 32)
    if last:
        module, batch = (thing.to(memory_format=torch.channels_last) for thing in (module, batch))
    graph = trace(module).graph
    assert graph is not None
    state = {key: value.clone() for key, value in module.state_dict().items()}
    with frozen(module), torch.inference_mode():
        found = folded(module, graph)
        assert found is not None
        left = [node for node in found.graph.nodes if node.op == "call_module"]
        assert not any(isinstance(found.get_submodule(str(node.target)), nn.BatchNorm2d) for node in left)
        called = [module.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"]
        norms = sum(isinstance(part, nn.BatchNorm2d) for part in called)
        assert sum(isinstance(part, Folded) for part in found.modules()) == norms
        expected = module(batch)
        assert (found(batch) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    module, batch = module.double(), batch.double()
    with frozen(module), torch.inference_mode():
        found, exact = folded(module, graph), module(batch)
        assert found is not None
        assert (found(batch) - exact).abs().max() <= 1e-11 * exact.abs().max()


def test_large_weights_are_not_copied(net: Callable[..., Any]) -> None:
    module, batch = net(), noise(2)
    graph = trace(module).graph
    assert graph is not None
    with frozen(module), torch.inference_mode():
        found, expected = folded(module, graph, largest=2000), module(batch)
        assert found is not None
        copies = [part.weight.numel() for part in found.modules() if isinstance(part, Folded)]
        assert 0 < max(copies) <= 2000
        assert (found(batch) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_cannot_be_folded_is_left_alone(net: Callable[..., Any]) -> None:
    module = net()
    graph = trace(module).graph
    assert graph is not None
    with frozen(module):
        handle = module.layer1.register_forward_hook(lambda *_: None)
        assert folded(module, graph) is None
        handle.remove()
        assert folded(module.half(), graph) is None
    assert cam_maps(module.float(), noise(1), targets=0)["layer4"].isfinite().all()


class Odd(nn.Module):
    """Additions and normalisations that must not be folded, or only in part."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, bias=True)
        self.one = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 1)
        self.two = nn.BatchNorm2d(4, affine=False)
        self.three = nn.BatchNorm2d(4)
        self.free = nn.BatchNorm2d(4, track_running_stats=False)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.first(x))
        a = self.shared(x)  # used twice
        b = self.two(a) + self.three(a)
        c = self.two(self.shared(b))
        c = c + c.mean(dim=(2, 3), keepdim=True)  # used twice, and broadcast
        d = self.three(self.shared(c)) + 1.0
        e = self.three(self.shared(d))
        e += d
        f = self.three(self.shared(e)) + e
        return self.act(self.free(f)).mean(dim=(2, 3))


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_odd_additions_are_kept(memory: torch.memory_format) -> None:
    module = perturb(Odd()).eval().to(memory_format=memory)
    graph = trace(module).graph
    assert graph is not None
    with frozen(module), torch.no_grad():
        found = folded(module, graph)
        assert found is not None
        batch = noise(2, 9).to(memory_format=memory)
        torch.testing.assert_close(found(batch), module(batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "how",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 1), "padding": (0, 1)},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 1, "padding": 2},
        {"kernel_size": 3, "padding": 1, "groups": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize(("added", "relu"), [(False, False), (False, True), (True, True)])
def test_gradients_of_a_folded_step(how: dict[str, Any], added: bool, relu: bool, memory: torch.memory_format) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv, norm = nn.Conv2d(8, 12, **how), perturb(nn.BatchNorm2d(12))
        x = torch.randn(2, 8, 7, 6)
        with torch.no_grad():
            other = torch.randn_like(conv(x))
    conv, norm = (part.eval().requires_grad_(False).to(memory_format=memory) for part in (conv, norm))
    step = Folded(conv, norm, relu=relu, slope=True)

    def both(double: bool) -> list[Tensor]:
        given = [it.to(memory_format=memory).requires_grad_() for it in ((x, other) if added else (x,))]
        if double:
            given = [it.detach().double().requires_grad_() for it in given]
            out = copy.deepcopy(norm).double()(copy.deepcopy(conv).double()(given[0]))
            out = out + given[1] if added else out
            out = out.relu() if relu else out
        else:
            out = step(*given)
        first = torch.autograd.grad(out.mean(), given, retain_graph=True)  # its gradient is one number, repeated
        total = torch.autograd.grad(out.square().sum(), given, create_graph=True)
        (second,) = torch.autograd.grad(total[0].square().sum(), given[0])
        return [out.detach(), *first, *(it.detach() for it in total), second]

    for found, exact in zip(both(False), both(True), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))
