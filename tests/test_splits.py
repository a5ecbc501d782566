"""Statistics of splits against NumPy on all activations at once, however they were gathered."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from r2viz.errors import ModelError, TapError, UnknownName
from r2viz.partition.intervals import mean_intervals
from r2viz.partition.likeness import cka
from r2viz.partition.measure import Measured, measure
from r2viz.partition.moments import effective_rank, participation_ratio
from r2viz.partition.spectra import shuffled_power, window
from r2viz.split_records import PERMUTED, Histogram, Row
from r2viz.statistics import mean_interval
from r2viz.taps import tap
from tests.test_splits_places import official

PICTURES = 24


def pictures(count: int = PICTURES, size: int = 48, seed: int = 0) -> torch.Tensor:
    """Random pictures with some structure: noise at two scales."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, size // 8, size // 8, generator=generator)
    return nn.functional.interpolate(coarse, size=size, mode="bilinear") + 0.3 * torch.randn(
        count, 3, size, size, generator=generator
    )


def labels(count: int = PICTURES) -> list[int]:
    return [(7 * number) % 3 for number in range(count)]


def activations(module: nn.Module, batch: torch.Tensor, paths: list[str]) -> dict[str, np.ndarray]:
    """What goes into each `conv3`, float64 `(N, C, H, W)`, by the taps that everything else uses."""
    with torch.inference_mode(), tap(module, [f"{path}.conv3_in" for path in paths]) as taken:
        module(batch)
    return {path: taken[f"{path}.conv3_in"].double().numpy() for path in paths}


def by_key(rows: list[Row]) -> dict[tuple[str, str], float]:
    return {(row.split.tap, row.statistic): row.interval.mean for row in rows}


@pytest.fixture(scope="module")
def networks(net) -> dict[str, nn.Module]:
    return {"res2net": net("res2net", depths=(2, 1)), "resnet": net("resnet", depths=(2, 1))} | {"official": official()}


@pytest.fixture(scope="module")
def net():
    """As conftest's, with two stages only."""
    from r2viz.models.blocks import Bottleneck, Res2NetBlock
    from r2viz.models.resnet import ResNet
    from tests.conftest import perturb

    def build(kind: str = "res2net", *, seed: int = 0, depths=(2, 1), **options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            more = {"base_width": 48, "scale": 4, **options} if kind == "res2net" else options
            block = {"resnet": Bottleneck, "res2net": Res2NetBlock}[kind]
            module = ResNet(block, depths, widths=(8, 16), strides=(1, 2), num_classes=5, **more)
        return perturb(module, seed).eval()

    return build


@pytest.fixture(scope="module")
def measured(networks) -> dict[str, Measured]:
    return {name: measure(module, pictures().split(5), labels=labels(), name=name) for name, module in networks.items()}


# --- Each statistic --------------------------------------------------------------------------------------------------


def reference(x: np.ndarray, weight: np.ndarray, channels: np.ndarray, whole: list[np.ndarray]) -> dict[str, float]:
    """Slow and obvious: of one split, from all activations `(N, C, H, W)` of its block."""
    count = len(x)
    part = x[:, channels]
    flat = part.transpose(1, 0, 2, 3).reshape(len(channels), -1)
    energies = np.stack([(x[:, some] ** 2).sum(axis=(1, 2, 3)) for some in whole])
    after = np.stack(
        [(np.einsum("oc,nchw->nohw", weight[:, some], x[:, some]) ** 2).sum(axis=(1, 2, 3)) for some in whole]
    )
    mine = [np.array_equal(some, channels) for some in whole].index(True)
    eigenvalues = np.maximum(np.linalg.eigvalsh(np.cov(flat, bias=True)), 0)
    share = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    ratio, rank = eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), np.exp(-(share * np.log(share)).sum())
    classes = np.array(labels(count))
    means = np.stack([part[classes == label].mean(axis=(0, 2, 3)) for label in range(3)])
    live = means.max(axis=0) > 0
    best = means.max(axis=0)[live]
    rest = (means.sum(axis=0)[live] - best) / 2
    return {
        "mean": part.mean(),
        "variance": flat.var(axis=1).mean(),
        "sparsity": (part <= 0).mean(),
        "dead": (flat <= 0).all(axis=1).mean(),
        "energy": (energies[mine] / energies.sum(axis=0)).mean(),
        "energy_conv3": (after[mine] / after.sum(axis=0)).mean(),
        "participation_ratio": ratio,
        "participation_share": ratio / len(channels),
        "effective_rank": rank,
        "effective_share": rank / len(channels),
        "selectivity": ((best - rest) / (best + rest)).mean(),
    }


@pytest.mark.parametrize("name", ["res2net", "resnet", "official"])
def test_against_all_activations_at_once(name, networks, measured):
    module, found = networks[name], measured[name]
    acts = activations(module, pictures(), [block.path for block in found.blocks])
    values = by_key(found.rows())
    for block in found.blocks:
        weight = module.get_submodule(block.conv3).weight.detach().double().flatten(1).numpy()
        for part in block.parts:
            alike = [p.channels for p in block.parts if (p.split.kind == PERMUTED) == (part.split.kind == PERMUTED)]
            expected = reference(acts[block.path], weight, part.channels, alike)
            for statistic, value in expected.items():
                assert values[part.split.tap, statistic] == pytest.approx(value, rel=2e-5, abs=1e-7), (
                    part.split.tap,
                    statistic,
                )


def slow_spectrum(maps: np.ndarray, jump: float) -> tuple[float, float]:
    """Centroid and autocorrelation length of `(C, H, W)` by sums over all frequencies and all pairs of cells."""
    height, width = maps.shape[1:]
    hann = np.outer(
        np.sin(np.pi * (np.arange(height) + 0.5) / height) ** 2, np.sin(np.pi * (np.arange(width) + 0.5) / width) ** 2
    )
    windowed = (maps - maps.mean(axis=(1, 2), keepdims=True)) * hann
    rows, columns = np.arange(height), np.arange(width)
    above = below = 0.0
    for ky in range(height):
        for kx in range(width):
            if ky == kx == 0:
                continue
            wave = np.exp(-2j * np.pi * (ky * rows[:, None] / height + kx * columns[None] / width))
            power = (np.abs((windowed * wave).sum(axis=(1, 2))) ** 2).sum()
            f = np.hypot(min(ky, height - ky) / height, min(kx, width - kx) / width) / jump
            above, below = above + f * power, below + power
    lengths = []
    for axis, size in ((1, height), (2, width)):
        curve = [
            (windowed * np.roll(windowed, lag, axis=axis)).sum() / (hann * np.roll(hann, lag, axis=axis - 1)).sum()
            for lag in range(size // 2 + 1)
        ]
        lag = next((lag for lag, value in enumerate(curve) if value / curve[0] < np.exp(-1)), None)
        if lag is None:
            return above / below, np.nan
        before, at = curve[lag - 1] / curve[0], curve[lag] / curve[0]
        lengths.append(jump * (lag - 1 + (before - np.exp(-1)) / (before - at)))
    return above / below, float(np.mean(lengths))


@pytest.mark.parametrize("name", ["res2net", "resnet"])
def test_spectra_against_sums_over_all_frequencies(name, networks, measured):
    found = measured[name]
    acts = activations(networks[name], pictures(), [block.path for block in found.blocks])
    values = by_key(found.rows())
    for block in found.blocks[1:]:
        jump = {"layer1": 4.0, "layer2": 8.0}[block.stage]
        assert block.parts[0].split.jump == (jump, jump)
        for part in block.parts[::3]:
            each = np.array([slow_spectrum(maps, jump) for maps in acts[block.path][:, part.channels]])
            assert values[part.split.tap, "centroid"] == pytest.approx(each[:, 0].mean(), rel=1e-4)
            assert values[part.split.tap, "correlation_length"] == pytest.approx(np.nanmean(each[:, 1]), rel=1e-3)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (6, 9)])
def test_the_null_is_the_average_over_shuffled_pixels(height, width):
    chance = np.random.default_rng(0)
    given = chance.gamma(0.5, size=(height, width))
    given = (given - given.mean()) / given.std()
    both = np.outer(window(height), window(width))
    draws = np.stack([chance.permutation(given.ravel()).reshape(height, width) for _ in range(20000)])
    power = (np.abs(np.fft.rfft2(draws * both)) ** 2).mean(axis=0)
    np.testing.assert_allclose(power, shuffled_power(height, width), rtol=0.06)


def test_a_wave_has_its_own_frequency_and_noise_that_of_the_null(measured):
    class Waves(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1 = nn.Sequential(Passing())

        def forward(self, x):
            return self.layer1(x)

    class Passing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Identity(), nn.Identity()
            self.conv3 = nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.conv3(self.conv2(self.conv1(x)))

    x = torch.arange(64.0)
    wave = (2 * torch.pi * x / 8).sin().expand(64, 64)
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    batch = torch.stack([wave, wave.T, noise, noise.flip(0)])[None]
    found = measure(Waves(), batch, groups=2, statistics=["spectra"])
    values = by_key(found.rows())
    assert values["layer1.0.group0", "centroid"] == pytest.approx(1 / 8, abs=0.01)
    assert values["layer1.0.group1", "centroid"] == pytest.approx(
        values["layer1.0.group1", "centroid_shuffled"], rel=0.03
    )
    assert values["layer1.0.group1", "correlation_length"] == pytest.approx(
        values["layer1.0.group1", "correlation_length_shuffled"], rel=0.1
    )
    waves = next(one for one in found.spectra() if one.split.tap == "layer1.0.group0")
    assert waves.power.sum() == pytest.approx(1)
    assert waves.frequency[waves.power.argmax()] == pytest.approx(1 / 8, abs=0.01)


def test_quantiles_and_histograms(networks, measured):
    found = measured["res2net"]
    acts = activations(networks["res2net"], pictures(), [block.path for block in found.blocks])
    rows = by_key(found.rows())
    for histogram in found.histograms():
        split = histogram.split
        part = next(p for block in found.blocks for p in block.parts if p.split == split)
        values = acts[split.path][:, part.channels].ravel()
        assert histogram.total == values.size
        assert histogram.zeros == (values == 0).sum()
        expected = np.histogram(values[values != 0], histogram.edges)[0]
        np.testing.assert_array_equal(histogram.counts, expected)
        for share in (5, 25, 50, 75, 95):
            expected = np.quantile(values, share / 100)
            assert rows[split.tap, f"q{share:02d}"] == histogram.quantile(share / 100)
            assert rows[split.tap, f"q{share:02d}"] == pytest.approx(expected, rel=0.06, abs=1e-3)


def test_a_histogram_of_both_signs():
    values = torch.tensor([-8.3, -1.53, -0.0, 0.0, 0.25, 0.26, 3.0])
    from r2viz.partition.histograms import Histograms
    from r2viz.partition.look import Look, Scratch
    from r2viz.partition.places import blocks

    block = blocks(nn.Sequential(_Middle()), groups=1, permuted=False)[0]
    held = Histograms.empty(block)
    held.add(Look(values[None, None, None], np.array([0]), Scratch(), (1, 7)))
    edges, counts, zeros = held.of(0)
    assert zeros == 2
    np.testing.assert_array_equal(counts, np.histogram(values[values != 0].numpy(), edges)[0])
    histogram = Histogram(block.parts[0].split, edges, counts, zeros)
    assert histogram.quantile(0.5) == 0
    assert -9 <= histogram.quantile(0.01) <= -8  # an eighth of an octave


class _Middle(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Identity(), nn.Identity(), nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.conv3(x)


def slow_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, equation 5, term by term."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        one = np.ones(n)
        return (
            np.trace(k @ m)
            + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ k @ m @ one)
        ) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_cka_within_and_between_networks(networks, measured):
    first, second = measured["resnet"], measured["res2net"]
    means = {
        name: {path: x.mean(axis=(2, 3)) for path, x in activations(networks[name], pictures(), ["layer1.1"]).items()}
        for name in ("resnet", "res2net")
    }
    for found, (left, right) in (
        (second.likenesses()[1], ("res2net", "res2net")),
        (first.likenesses(second)[1], ("resnet", "res2net")),
    ):
        assert found.between == (left != right)
        assert found.n == PICTURES
        parts = {part.split.tap: part for one in (first, second) for block in one.blocks for part in block.parts}
        for row, one in enumerate(found.rows):
            for column, other in enumerate(found.columns):
                expected = slow_cka(
                    means[left]["layer1.1"][:, parts[one.tap].channels],
                    means[right]["layer1.1"][:, parts[other.tap].channels],
                )
                assert found.values[row, column] == pytest.approx(expected, abs=1e-4)
    within = second.likenesses()[1]
    np.testing.assert_allclose(within.values.diagonal(), 1)
    assert (within.low <= within.values + 1e-12).all()


def test_cka_of_unrelated_features_is_not_lifted_by_few_pictures():
    chance = np.random.default_rng(0)
    found = [cka([one @ one.T for one in chance.standard_normal((2, 20, 200))])[0, 1] for _ in range(50)]
    assert abs(np.mean(found)) < 0.02


# --- However it is gathered ------------------------------------------------------------------------------------------


def numbers(found: Measured) -> dict[str, np.ndarray]:
    rows = found.rows()
    curves = {f"{one.split.tap} power": np.stack([one.power, one.low, one.high]) for one in found.spectra()}
    likeness = {f"{one.rows[0].path} cka": np.stack([one.values, one.low, one.high]) for one in found.likenesses()}
    counts = {f"{one.split.tap} histogram": np.append(one.counts, one.zeros) for one in found.histograms()}
    said = {
        f"{row.split.tap} {row.statistic}": np.array([row.interval.mean, row.interval.low, row.interval.high])
        for row in rows
    }
    return said | curves | likeness | counts


def alike(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], *, rtol: float = 2e-6, atol: float = 1e-7):
    # Every shard subtracts its own first pictures' means in float32 before all is added in float64.
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=rtol, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def shards(networks) -> tuple[list[Measured], dict[str, np.ndarray], Measured]:
    """Six of four pictures each, measured apart, and what one measurement of all says."""
    module, found = networks["res2net"], []
    from r2viz.partition.places import blocks

    places = blocks(module, name="res2net", layers=["layer1.1"])
    shuffled = np.random.default_rng(0).permutation(labels())
    whole = Measured(places, ("moments", "covariance", "spectra", "selectivity", "quantiles", "cka"))
    for number, batch in enumerate(pictures().split(4)):
        cut = slice(4 * number, 4 * number + 4)
        one = Measured(places, whole.chosen)
        for taker in (one, whole):
            taker.take(module, batch, first=cut.start, labels=np.array(labels())[cut], shuffled=shuffled[cut])
        found.append(one)
    return found, numbers(whole), whole


def contents(found: Measured) -> dict[str, np.ndarray]:
    """All that is gathered, in a form that does not depend on the order: quicker than all that comes of it."""
    everyone = np.ones(8, bool)
    result: dict[str, np.ndarray] = {}
    for path, gathered in found.held.items():
        moments = gathered.moments
        for number in range(len(moments.block.parts)):
            for groups in (everyone, np.arange(8) == number):
                if moments.pictures[groups].sum():
                    result[f"{path} {number} {groups.sum()}"] = moments.covariance(number, groups)
        result[f"{path} mean"] = moments.shift + moments.total / np.maximum(moments.positions, 1)[:, None]
        result[f"{path} alive"], result[f"{path} each"] = moments.alive, moments.each.sorted()[1]
        result |= {f"{path} curves {name}": value for name, value in enumerate(gathered.spectra.curves())}
        result[f"{path} spectra"] = gathered.spectra.each.sorted()[1]
        result |= {f"{path} {key}": value for key, value in gathered.classes.state().items()}
        result |= {f"{path} kept {key}": value for key, value in gathered.likeness.state().items()}
        result[f"{path} histogram"] = gathered.histograms.counts
    return result


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_merging_in_any_order_is_one_pass(shards, data):
    left = list(shards[0])
    while len(left) > 1:
        first = left.pop(data.draw(st.integers(0, len(left) - 1)))
        second = left.pop(data.draw(st.integers(0, len(left) - 1)))
        left.append(first.merge(second))
    assert left[0].pictures == PICTURES
    alike(contents(left[0]), contents(shards[2]))


def test_arrays_bring_everything_to_another_machine(shards, tmp_path):
    found, expected, _ = shards
    sent = []
    for number, one in enumerate(found):
        np.savez(tmp_path / f"{number}.npz", **one.arrays())
        with np.load(tmp_path / f"{number}.npz") as stored:
            sent.append(Measured.from_arrays(one.blocks, dict(stored)))
    whole = sent[0]
    for one in sent[1:]:
        whole = whole.merge(one)
    alike(numbers(whole), expected)


def test_a_picture_in_two_shards_is_an_error(shards):
    found = shards[0]
    with pytest.raises(ModelError, match="picture number 0 was measured twice; give each shard's first number"):
        found[0].merge(found[0]).rows()


def test_shards_of_other_statistics_do_not_merge(shards, networks):
    one = measure(networks["res2net"], pictures(2), statistics=["mean"], layers=["layer1.1"])
    with pytest.raises(ModelError, match="cannot be merged"):
        one.merge(shards[0][0])


def test_batch_size_and_threads_do_not_count(networks, measured):
    module, expected = networks["res2net"], numbers(measured["res2net"])
    threads = torch.get_num_threads()
    for count, at_once in ((1, 1), (2, 24)):
        torch.set_num_threads(count)
        try:
            found = numbers(measure(module, pictures().split(at_once), labels=labels(), name="res2net"))
        finally:
            torch.set_num_threads(threads)
        for name in found:
            if name.endswith("histogram"):  # a value at a bin's edge may be rounded to either side
                assert abs(found[name].sum() - expected[name].sum()) == 0
                continue
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_channels_last_is_the_same(networks, measured):
    module = networks["resnet"]
    found = measure(module, pictures().to(memory_format=torch.channels_last).split(5), labels=labels(), name="resnet")
    alike(by_array(found), by_array(measured["resnet"]), rtol=1e-4, atol=1e-5)


def by_array(found: Measured) -> dict[str, np.ndarray]:
    return {" ".join(key): np.array(value) for key, value in by_key(found.rows()).items()}


def test_blocks_of_float32_are_as_exact_as_float64_throughout(networks):
    module = networks["res2net"]
    rows = by_key(measure(module, pictures(), statistics=["moments", "covariance"]).rows())
    whole = by_key(measure(_Upcast(module), pictures(), statistics=["moments", "covariance"]).rows())
    for (name, statistic), value in whole.items():
        assert rows[name.removeprefix("net."), statistic] == pytest.approx(value, rel=1e-5, abs=1e-7)


class _Upcast(nn.Module):
    """The same network in float64: activations differ by float32's rounding at most."""

    def __init__(self, module: nn.Module):
        super().__init__()
        import copy

        self.net = copy.deepcopy(module).double()

    def forward(self, x):
        return self.net(x)


def test_intervals_are_those_of_one_by_one():
    chance = np.random.default_rng(0)
    data = chance.gamma(1.0, size=(40, 6))
    data[3, 1] = np.nan
    data[:, 2] = 4.0
    data[:, 3] = np.nan
    for column, found in enumerate(mean_intervals(data)):
        expected = mean_interval(data[:, column])
        assert found.n == expected.n
        np.testing.assert_allclose(
            [found.mean, found.low, found.high], [expected.mean, expected.low, expected.high], rtol=1e-9
        )
    assert len(mean_intervals(data[:1])) == 6


# --- The network is left alone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["res2net", "resnet", "official"])
@pytest.mark.parametrize("size", [48, 160])  # at the larger one, blocks write over their own memory
def test_logits_are_the_same_to_the_last_bit(name, networks, size):
    module, batch = networks[name], pictures(8, size)
    with torch.inference_mode():
        expected = module(batch)
    logits: list[torch.Tensor] = []
    measure(module, [batch], outputs=logits.append)
    assert torch.equal(logits[0], expected)


def test_nothing_stays_behind(networks):
    module = networks["res2net"]
    module.train()
    before = {name: dict(part.__dict__) for name, part in module.named_modules()}
    wanting = [parameter.requires_grad for parameter in module.parameters()]
    try:
        measure(module, pictures(2))
        with pytest.raises(ModelError):
            measure(module, pictures(2) * float("nan"))
        for name, part in module.named_modules():
            assert part.__dict__.keys() == before[name].keys()
            assert part.training
        assert [parameter.requires_grad for parameter in module.parameters()] == wanting
    finally:
        module.eval()


def test_measuring_frees_blocks_to_reuse_their_memory(networks):
    """Hooks would forbid it, and cost a Res2Net half a forward pass."""
    module = networks["res2net"]
    found: list[bool] = []
    from r2viz.models.blocks import unwatched

    block, forward = module.layer1[1], type(module.layer1[1]).forward

    def asked(x, shortcut=None):
        found.append(unwatched(block, x))
        return forward(block, x, shortcut)

    block.forward = asked
    try:
        measure(module, pictures(16, 160), statistics=["mean"])
    finally:
        del block.forward
    assert found == [True]


def test_compiled_parts_cannot_be_seen(networks):
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = networks["res2net"]

        def forward(self, x):
            return x

    with pytest.raises(TapError, match="never reached"):
        measure(Skipping(), pictures(1))


# --- Edges -----------------------------------------------------------------------------------------------------------


def test_dead_and_constant_channels(net):
    module = net("res2net")
    block = module.layer1[1]
    with torch.no_grad():
        for index, value in ((0, -1.0), (1, 5.3)):
            block.bns[index].weight.zero_()
            block.bns[index].bias.fill_(value)
        block.bns[2].weight[0] = 0
        block.bns[2].bias[0] = -3
    found = measure(module, pictures(), labels=labels(), layers=["layer1.1"])
    values = by_key(found.rows())
    width = block.width
    assert values["layer1.1.split0", "dead"] == 1
    assert values["layer1.1.split0", "sparsity"] == 1
    assert values["layer1.1.split0", "energy"] == 0
    assert values["layer1.1.split1", "dead"] == 0
    assert values["layer1.1.split1", "mean"] == pytest.approx(5.3)
    assert values["layer1.1.split1", "q50"] == pytest.approx(5.3, rel=0.06)
    assert values["layer1.1.split2", "dead"] == pytest.approx(1 / width)
    for tap_ in ("layer1.1.split0", "layer1.1.split1"):
        assert values[tap_, "variance"] == 0
        for statistic in ("participation_ratio", "effective_rank"):
            assert np.isnan(values[tap_, statistic]), (tap_, statistic)
    assert np.isnan(values["layer1.1.split0", "centroid"])
    likeness = found.likenesses()[0]
    assert np.isnan(likeness.values[0]).all()
    assert np.isnan(likeness.values[1]).all()
    assert np.isfinite(likeness.values[2:, 2:]).all()


def test_one_picture(networks):
    found = measure(networks["res2net"], pictures(1))
    for row in found.rows():
        assert row.interval.n <= 1
        assert not np.isfinite(row.interval.low)
    values = by_key(found.rows())
    assert np.isfinite(values["layer1.1.split0", "participation_ratio"])
    assert np.isnan(found.likenesses()[0].values).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, networks, net):
    module = net("res2net").to(dtype)
    found = by_key(measure(module, pictures(8), statistics=["moments", "covariance"]).rows())
    expected = by_key(measure(networks["res2net"], pictures(8), statistics=["moments", "covariance"]).rows())
    loose = 0.02 if dtype == torch.float16 else 0.12
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=loose, abs=0.02), key


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_names_its_layer(value, net):
    module = net("res2net")
    with torch.no_grad():
        module.layer1[1].bns[1].bias[0] = value
    with pytest.raises(ModelError, match=r"at 'layer1\.1\.conv3_in' are NaN or infinite \(in layer1\.1\.split1"):
        measure(module, pictures(2))


def test_values_too_large_to_be_squared(net):
    module = net("res2net")
    with torch.no_grad():
        module.layer1[1].bns[1].bias[0] = 1e30
    with pytest.raises(ModelError, match=r"'layer1\.1\.conv3_in' reach 1\.\de\+30, too much to be squared"):
        measure(module, torch.cat([pictures(1), 3 * pictures(1)]) * torch.tensor([1.0, 2.0])[:, None, None, None])


def test_what_is_refused(networks):
    module = networks["res2net"]
    for wrong, said in (
        ({"statistics": ["centriod"]}, "no statistic 'centriod'; did you mean 'centroid'"),
        ({"statistics": ["selectivity"]}, "class selectivity needs labels"),
        ({"labels": [1]}, "1 labels came for more pictures"),
        ({"labels": [1, 2, 3]}, "3 labels came for 2 pictures"),
    ):
        with pytest.raises((UnknownName, ModelError), match=said):
            measure(module, pictures(2), **wrong)
    with pytest.raises(ModelError, match="no pictures came"):
        measure(module, [])
    with pytest.raises(ModelError, match=r"a batch is torch.int64 \(2,\)"):
        measure(module, [torch.tensor([1, 2])])


def test_ratio_and_rank_of_known_spectra():
    assert participation_ratio(np.eye(5)) == pytest.approx(5)
    assert effective_rank(np.eye(5)) == pytest.approx(5)
    assert participation_ratio(np.diag([1.0, 0, 0])) == pytest.approx(1)
    assert np.isnan(effective_rank(np.zeros((2, 2))))


def batches(count: int) -> Iterator[torch.Tensor]:
    yield from pictures(count).split(8)


def test_state_grows_by_numbers_of_pictures_only(networks):
    def size(count: int) -> tuple[int, int]:
        arrays = measure(networks["res2net"], batches(count)).arrays()
        growing = sum(value.nbytes for key, value in arrays.items() if key.endswith(("/each", "/index", "/means")))
        return sum(value.nbytes for value in arrays.values()) - growing, growing

    (fixed, few), (same, many) = size(8), size(32)
    assert abs(fixed - same) < 100  # the digits of the number of pictures
    assert many == 4 * few
    json.dumps({"per picture": few / 8})
