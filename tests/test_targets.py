"""Which class is explained: policies, labels, indices, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from r2viz.attribution.scores import finer_score, rest_score
from r2viz.attribution.targets import POLICIES, policy
from r2viz.errors import BadTarget, ModelError

ANIMALS = ("tench", "great white shark", "crane", "king penguin", "crane", "dog_sled")
OTHERS = ("King Penguin", "baseball", "tench", "crane", "DOG SLED")


def chances(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


# One vocabulary


def test_shared_is_the_class_of_the_highest_mean() -> None:
    """Neither network's own top-1 need be it."""
    one, two = chances(0.5, 0.4, 0.1), chances(0.0, 0.45, 0.55)
    vocabulary = ("a", "b", "c")
    assert policy("shared", [vocabulary] * 2).choose([one, two]) == (1, 1)
    assert policy("top1", [vocabulary] * 2).choose([one, two]) == (0, 2)
    with pytest.raises(
        BadTarget, match=r"networks disagree on this picture \(classes 0, 2\).*use shared or top1"
    ) as bad:
        policy("agree", [vocabulary] * 2).choose([one, two])
    assert bad.value.code == "bad_target.disagree"


@pytest.mark.parametrize("name", POLICIES)
def test_where_both_agree_all_policies_do(name: str) -> None:
    both = [chances(0.1, 0.7, 0.2), chances(0.2, 0.5, 0.3)]
    assert policy(name, [("a", "b", "c")] * 2).choose(both) == (1, 1)


@pytest.mark.parametrize("name", POLICIES)
def test_one_network_is_its_own_top1(name: str) -> None:
    assert policy(name, [ANIMALS]).choose([chances(0.1, 0.1, 0.5, 0.1, 0.1, 0.1)]) == (2,)


def test_ties_take_the_first_class() -> None:
    even = [chances(0.4, 0.4, 0.2)] * 2
    for name in POLICIES:
        assert policy(name, [("a", "b", "c")] * 2).choose(even) == (0, 0)


def test_as_many_probabilities_as_networks() -> None:
    with pytest.raises(ValueError, match="zip"):
        policy("shared", [("a", "b")] * 2).choose([chances(0.5, 0.5)])


@pytest.mark.parametrize(
    "text",
    ["great white shark", "Great White Shark", "great_white_shark", " GREAT  white_shark ", "great\twhite shark"],
)
def test_labels_whatever_their_case_spaces_and_underscores(text: str) -> None:
    chosen = policy(text, [ANIMALS])
    assert chosen.fixed == (1,)
    assert chosen.choose([chances(1, 0, 0, 0, 0, 0)]) == (1,)
    assert policy("dog sled", [ANIMALS]).fixed == (5,)


@pytest.mark.parametrize(
    ("target", "index"), [(3, 3), ("3", 3), ("03", 3), ("+3", 3), (np.int64(3), 3), (0, 0), (5, 5)]
)
def test_indices(target: Any, index: int) -> None:
    assert policy(target, [ANIMALS, ANIMALS]).fixed == (index, index)


@pytest.mark.parametrize("target", [6, -1, "6", "-1", np.int64(6), 10**12, "999999999999999999"])
def test_index_out_of_range(target: Any) -> None:
    with pytest.raises(BadTarget, match=rf"no class {target}: there are 6 classes, 0 to 5"):
        policy(target, [ANIMALS])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("king pengiun", r"no class 'king pengiun' among the network's 6; did you mean 'king penguin'\?$"),
        ("shark", "no class 'shark' among the network's 6; there are 'great white shark'$"),
        ("Crane", "the label 'Crane' names classes 2, 4; give the index$"),
        (
            "qqqq",
            "no class 'qqqq' among the network's 6; give a label of the network, an index, or one of shared, top1",
        ),
        ("", "no class '' among the network's 6; give a label"),
        ("   ", "no class ' ' among the network's 6; give a label"),
        ("--3", "no class '--3' among"),
        ("-", "no class '-' among"),
        ("²", "no class '²' among"),  # a digit to `str.isdigit`, not to `int`
        ("٣", "no class '٣' among"),
        ("3.0", "no class '3.0' among"),
        ("1" * 5000, "no class '1{79}…' among"),  # more digits than `int` takes
        ("a\nb", r"no class 'a\\\\nb' among"),
        ("x" * 1000, "no class 'x{79}…' among"),
    ],
)
def test_labels_that_are_none(text: str, message: str) -> None:
    with pytest.raises(BadTarget, match=message) as bad:
        policy(text, [ANIMALS])
    assert "\n" not in str(bad.value)


def test_many_labels_that_contain_the_word_are_cut_to_three() -> None:
    with pytest.raises(BadTarget, match=r"there are 'dog 0', 'dog 1', 'dog 2'$"):
        policy("dog", [tuple(f"dog {index}" for index in range(100))])


def test_classes_called_by_numbers() -> None:
    """A folder of classes sorted as text: "10" is class 2. Text is the label first; a number is the index."""
    folders = ("0", "1", "10", "2")
    assert policy("10", [folders]).fixed == (2,)
    assert policy("2", [folders]).fixed == (3,)
    assert policy(2, [folders]).fixed == (2,)
    assert policy("3", [folders]).fixed == (3,)  # no such label, so the index
    assert policy("10", [folders, ("10", "x")]).fixed == (2, 0)


# Two vocabularies


def test_common_classes_are_found_by_label() -> None:
    """A label of two classes, the first network's crane, is none of the common ones."""
    both = policy("shared", [ANIMALS, OTHERS])
    pairs = {(ANIMALS[i], OTHERS[j]) for i, j in zip(*both.common, strict=True)}
    assert pairs == {("tench", "tench"), ("king penguin", "King Penguin"), ("dog_sled", "DOG SLED")}
    # The first is sure of a crane, the second of a baseball; of what both know, the penguin has the highest mean.
    one, two = chances(0.1, 0.0, 0.6, 0.2, 0.0, 0.1), chances(0.3, 0.6, 0.1, 0.0, 0.0)
    assert both.choose([one, two]) == (3, 0)
    assert policy("top1", [ANIMALS, OTHERS]).choose([one, two]) == (2, 1)
    with pytest.raises(BadTarget, match="disagree"):
        policy("agree", [ANIMALS, OTHERS]).choose([one, two])
    sure = [chances(0, 0, 0, 1, 0, 0), chances(1, 0, 0, 0, 0)]
    assert policy("agree", [ANIMALS, OTHERS]).choose(sure) == (3, 0)


def test_a_label_must_be_known_to_both() -> None:
    assert policy("king penguin", [ANIMALS, OTHERS]).fixed == (3, 0)
    with pytest.raises(BadTarget, match="no class 'baseball' among the network's 6"):
        policy("baseball", [ANIMALS, OTHERS])
    with pytest.raises(BadTarget, match="no class 'great white shark' among the network's 5"):
        policy("great white shark", [ANIMALS, OTHERS])


def test_an_index_means_different_things_to_different_networks() -> None:
    for target in (1, "1"):
        with pytest.raises(
            BadTarget, match="class 1 means different things to networks with different classes; name it"
        ):
            policy(target, [ANIMALS, OTHERS])


def test_no_class_in_common() -> None:
    apart = [("a", "b"), ("c", "d")]
    both = [chances(1, 0), chances(0, 1)]
    for name in ("shared", "agree"):
        with pytest.raises(BadTarget, match="no class in common; use --target top1"):
            policy(name, apart).choose(both)
    assert policy("top1", apart).choose(both) == (0, 1)


def test_equal_vocabularies_of_any_sequence_type() -> None:
    assert policy(1, [list(ANIMALS), ANIMALS]).fixed == (1, 1)
    assert len(policy("shared", [list(ANIMALS), ANIMALS]).common[0]) == 6  # by position, so both cranes too


def test_imagenets_dog_and_its_jacket() -> None:
    """Two classes that only a capital tells apart."""
    from r2viz.models.model import class_names

    names = class_names("imagenet")
    assert policy("Cardigan", [names, names]).fixed == (264, 264)
    assert policy("cardigan", [names]).fixed == (474,)
    with pytest.raises(BadTarget, match="the label 'CARDIGAN' names classes 264, 474; give the index"):
        policy("CARDIGAN", [names])
    assert policy("baseball", [names, names]).fixed == (429, 429)
    assert policy("King_Penguin", [names]).fixed == (145,)
    with pytest.raises(BadTarget, match=r"did you mean 'golden retriever'\?"):
        policy("golden_retreiver", [names])


# Scores: the number that a target stands for


LOGITS = torch.tensor([[3.0, 1.0, 2.5, -4.0, 2.0], [0.0, 0.5, -0.5, 4.0, -9.0]])
ROWS = torch.tensor([0, 1])


def test_rest_is_the_logit_and_its_log_probability() -> None:
    found = rest_score([2, 3], LOGITS)(LOGITS, ROWS)
    expected = [LOGITS[n, c] + torch.log_softmax(LOGITS[n], dim=0)[c] for n, c in ((0, 2), (1, 3))]
    assert torch.allclose(found, torch.stack(expected))
    assert torch.equal(rest_score(lambda output: output[:, 1], LOGITS)(LOGITS, ROWS), LOGITS[:, 1])


@pytest.mark.parametrize(
    ("target", "near"), [([0, 3], [[2, 4, 1], [1, 0, 2]]), (None, [[2, 4, 1], [1, 0, 2]]), (1, [[4, 2, 0], [0, 2, 3]])]
)
def test_finer_compares_with_the_nearest_logits(target: Any, near: list[list[int]]) -> None:
    """Of classes that are equally near the first counts: beside 0.5, 0 and -0.5 come before 4."""
    wanted = [0, 3] if target is None else np.broadcast_to(target, 2)
    expected = [LOGITS[n, wanted[n]] - 0.6 * LOGITS[n, near[n]].mean() for n in (0, 1)]
    assert torch.allclose(finer_score(target, LOGITS)(LOGITS, ROWS), torch.stack(expected))


def test_finer_keeps_the_classes_of_the_first_output_and_follows_rows() -> None:
    """A variant of a picture is held against the same classes, whatever its own logits are."""
    score = finer_score([0, 3], LOGITS, others=1, gamma=1)
    other = torch.randn(3, 5)
    expected = torch.stack([other[0, 3] - other[0, 1], other[1, 0] - other[1, 2], other[2, 3] - other[2, 1]])
    assert torch.allclose(score(other, torch.tensor([1, 0, 1])), expected)


def test_finer_takes_ties_in_order_and_as_many_as_there_are() -> None:
    even = torch.zeros(1, 4)
    other = torch.tensor([[1.0, 2, 4, 8]])
    assert finer_score(1, even, others=2)(other, torch.tensor([0])) == pytest.approx(2 - 0.6 * (1 + 4) / 2)
    assert finer_score(1, even, others=9)(other, torch.tensor([0])) == pytest.approx(2 - 0.6 * (1 + 4 + 8) / 3)


@pytest.mark.parametrize(
    ("target", "output", "error", "message"),
    [
        (lambda output: output[:, 0], LOGITS, BadTarget, "the target is a function; give a class index, or use method"),
        (0, LOGITS[:, :1], BadTarget, "the network has one class; use method 'gradcam'"),
        (7, LOGITS, BadTarget, "class 7 does not exist: the network has classes 0 to 4"),
        (0, LOGITS[None], ModelError, "a classifier's output"),
    ],
)
def test_finer_refuses_in_one_line(target: Any, output: torch.Tensor, error: Any, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        finer_score(target, output)
    assert "\n" not in str(caught.value)
