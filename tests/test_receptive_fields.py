"""The analysis of receptive fields: its decision rule on planted numbers, its report by small networks."""

import json

import numpy as np
import pandas as pd
import pytest
import tiny
from click.testing import CliRunner
from scipy import stats

from analyses import receptive_fields
from analyses.receptive_fields import main
from analyses.receptive_measured import Plan, theory
from analyses.receptive_verdict import LAST, SIZES, Comparison, compare, judge
from r2viz.statistics import Interval

SMALL = Plan(
    baseline="resnet26_mini", network="res2net26_mini", control="resnet26_mini", scales=("res2net26_mini",), side=64,
    seeds=2, scale_seeds=1, samples=1, sides=(48, 32),
)  # fmt: skip


# --- The rule --------------------------------------------------------------------------------------------------------


def planted(what: str, low: float, high: float) -> list[Comparison]:
    """A comparison whose ratio has these limits, the same by every size."""
    middle = (low + high) / 2
    ratio, difference = Interval(middle, low, high, 5), Interval(10 * (middle - 1), -1, 1, 5)
    return [Comparison(what, "A", "B", LAST, size, 512, 10.0, 10 * middle, ratio, difference, "seed") for size in SIZES]


LARGER, SAME, OPEN = (1.2, 1.3), (0.9, 1.04), (0.9, 1.3)


@pytest.mark.parametrize(
    ("random", "trained", "control", "finding", "said"),
    [
        (LARGER, LARGER, SAME, "supported", "Yes, by this measurement"),
        (LARGER, LARGER, LARGER, "supported in part", "It grows as much"),
        (LARGER, LARGER, (1.05, 1.1), "supported in part", "So splitting alone makes it larger, too, if by less"),
        (LARGER, LARGER, OPEN, "supported in part", "stays open whether splitting alone"),
        (LARGER, SAME, SAME, "supported in part", "In part"),
        (OPEN, LARGER, SAME, "supported in part", "With no growth to explain, it explains nothing"),
        (SAME, SAME, SAME, "not supported", "No: neither with random weights nor trained"),
        (SAME, SAME, LARGER, "not supported", "No: neither"),
        (OPEN, OPEN, SAME, "undecided", "Undecided"),
        (OPEN, SAME, SAME, "undecided", "the interval allows both"),
        ((float("nan"),) * 2, (float("nan"),) * 2, SAME, "undecided", "no interval"),
    ],
)
def test_the_verdict_follows_from_the_numbers(random, trained, control, finding, said):
    found = [*planted("random", *random), *planted("trained", *trained), *planted("control", *control)]
    answer, text = judge(found)
    assert answer == finding
    assert said in text
    assert "says nothing of trained networks of 50 layers" in text
    assert ("Yes" in text) == (finding == "supported")


@pytest.mark.parametrize(("own", "finding"), [(LARGER, "supported"), (SAME, "supported in part")])
def test_the_size_of_training_counts(own, finding):
    found = [*planted("random", *LARGER), *planted("trained", *LARGER), *planted("control", *SAME)]
    answer, text = judge([*found, *planted("trained, own size", *own)])
    assert answer == finding
    assert "On pictures of the size that they were trained with" in text


def test_the_verdict_says_where_other_sizes_differ():
    found = [*planted("random", *LARGER), *planted("trained", *LARGER), *planted("control", *SAME)]
    assert judge(found)[1].count("Other sizes say the same") == 2
    odd = [one for one in found if one.what != "random" or one.size != "side95"]
    odd += [one for one in planted("random", *OPEN) if one.size == "side95"]
    assert judge(odd)[1].count("Other sizes differ") == 1


# --- What it rests on ------------------------------------------------------------------------------------------------


def table(ratio: float, spread: float, units: int = 30) -> pd.DataFrame:
    chance = np.random.default_rng(0)
    base = np.exp(chance.normal(3, 0.5, units))
    rows = []
    for name, values in (("a", base), ("b", base * ratio * np.exp(chance.normal(0, spread, units)))):
        rows += [
            {"network": name, "title": name.upper(), "weights": "random", "side": 64, "layer": LAST, "unit": unit}
            | dict.fromkeys(SIZES, value)
            for unit, value in enumerate(values)
        ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("unit", ["seed", "picture"])
def test_what_differs_between_units_cancels(unit):
    # Units differ by a factor of e, the networks by 1.1: without pairing the interval would hold 1.
    found = compare("random", table(1.1, 0.02), {"network": "a"}, {"network": "b"}, unit=unit)
    assert [one.size for one in found] == list(SIZES)
    assert found[0].ratio.low < 1.1 < found[0].ratio.high
    assert found[0].answer == "larger"
    assert (found[0].first, found[0].second, found[0].ratio.n) == ("A", "B", 30)


def test_rows_of_one_unit_are_one():
    rows = table(1.1, 0.02)
    twice = compare("random", pd.concat([rows, rows]), {"network": "a"}, {"network": "b"}, unit="picture")
    once = compare("random", rows, {"network": "a"}, {"network": "b"}, unit="picture")
    assert twice[0].ratio == once[0].ratio


def test_intervals_over_seeds_are_students():
    rows = table(1.1, 0.02, units=4)
    found = compare("random", rows, {"network": "a"}, {"network": "b"}, unit="seed")[0]
    a, b = (rows[rows.network == name].sigma.to_numpy() for name in "ab")
    expected = stats.t.interval(0.95, 3, loc=(b - a).mean(), scale=stats.sem(b - a))
    assert (found.difference.low, found.difference.high) == pytest.approx(expected)


def test_theory_holds_the_papers_polynomial_and_the_controls_size():
    taps, paths, stairs = theory(["resnet50", "res2net50_48w_2s", "res2net50_26w_4s"])
    last = taps[taps.tap == LAST].set_index("network")["max"]
    assert list(last) == [427, 427, 1131]
    split = paths[(paths.network == "Res2Net-50 26w-4s") & (paths.tap == "layer1.1.split2")]
    assert split["size"].max() == 43
    assert stairs["resnet50"].taps[LAST] == dict(zip(*paths_of(paths, "ResNet-50"), strict=True))


def paths_of(paths: pd.DataFrame, network: str) -> tuple[list[int], list[int]]:
    part = paths[(paths.network == network) & (paths.tap == LAST)]
    return list(part["size"]), list(part["paths"])


# --- The report ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("fields")
    for seed in range(3):
        Image.fromarray(tiny.photo(70, 90, seed)).save(folder / f"{seed}.png")
    (folder / "no.png").write_text("no picture")
    with pytest.MonkeyPatch.context() as patch, tiny.one_thread():
        patch.setattr(receptive_fields, "QUICK", SMALL)
        arguments = ["--quick", *(str(folder / f"{seed}.png") for seed in range(3)), "-o", str(folder / "out")]
        done = CliRunner().invoke(main, arguments)
        bad = CliRunner().invoke(main, ["--quick", str(folder / "no.png"), "-o", str(folder / "bad")])
        again = CliRunner().invoke(main, arguments)
    return folder, done, bad, again


def test_the_report_is_written_with_all_that_it_promises(made):
    folder, done, _, _ = made
    assert done.exit_code == 0, done.output
    out = folder / "out"
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures == {
        f"{name}.{kind}"
        for name in ("staircase", "erf_random", "radial_random", "scales", "erf_trained", "erf_splits", "erf_training")
        for kind in ("png", "pdf")
    }
    for name in ("theory_splits", "theory_paths", "random_sizes", "scales", "trained_sizes", "training_compared"):
        csv = pd.read_csv(out / "tables" / f"{name}.csv")
        assert len(csv) == len(pd.read_parquet(out / "tables" / f"{name}.parquet")) > 0
    about = json.loads((out / "report.json").read_text())
    assert about["finding"] in done.output
    assert about["finding"] in ("supported", "supported in part", "not supported", "undecided")
    assert "r2viz mini" in about["provenance"]["weights of Res2Net-26 mini"]
    seconds = json.loads((out / "run.json").read_text())["seconds"]
    assert set(seconds) == {"theory", "random weights", "trained pair", "intervals"}


def test_the_verdicts_numbers_are_those_of_the_tables(made):
    folder, *_ = made
    out = folder / "out"
    compared = pd.read_csv(out / "tables" / "trained_compared.csv")
    row = compared[(compared.layer == LAST) & (compared["size"] == "sigma") & (compared.input == 48)].iloc[0]
    sizes = pd.read_csv(out / "tables" / "trained_sizes.csv")
    part = sizes[(sizes.layer == LAST) & (sizes.side == 48) & (sizes.weights == "trained")]
    by_network = part.pivot_table(index="unit", columns="network", values="sigma")
    ratio = np.exp(np.log(by_network.res2net26_mini / by_network.resnet26_mini).mean())
    assert row.ratio == pytest.approx(ratio)
    assert f"ratio {ratio:.2f} [" in json.loads((out / "report.json").read_text())["verdict"]


def test_nothing_of_nothing_and_nothing_over_what_is_there(made):
    folder, _, bad, again = made
    assert bad.exit_code == 1
    assert "none of the 1 pictures could be used" in bad.stderr
    assert not (folder / "bad").exists()
    assert again.exit_code == 1
    assert "exists already; use --overwrite" in again.stderr
