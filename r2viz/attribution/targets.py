"""Which class a map explains: policies for a pair of networks, labels and indices for people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r2viz.errors import BadTarget, nearest, one_line
from r2viz.records import label_key

POLICIES = ("shared", "top1", "agree")
Vocabulary = Sequence[str]
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_TOP = re.compile(r"top([0-9]{1,3})")
VERSUS = " vs "


@dataclass(frozen=True)
class TargetPolicy:
    """How targets are chosen for networks with given class names; see `choose`.

    Attributes:
        name: what the user asked for: a policy, a label or an index.
        fixed: the class index of each network where the user named a class, else None.
        common: for each network, indices of the classes that all have, in one common order.
        against: the class whose logit is taken off, of each network, under a contrast `A vs B`.
        rank: under `shared`, which class in order of mean probability; 0 is the most probable one.
    """

    name: str
    fixed: tuple[int, ...] | None
    common: tuple[np.ndarray, ...]
    against: tuple[int, ...] | None = None
    rank: int = 0

    def choose(self, probabilities: Sequence[np.ndarray]) -> tuple[int, ...]:
        """One class index per network for one picture, from each network's probabilities `(classes,)`.

        `shared`: the class with the highest mean probability (or the next ones, by `rank`); `top1`: each network's
        own; `agree`: the common top-1.

        Raises:
            BadTarget: under `agree`, the networks' top-1 differ; under `shared`, they have no class in common.
        """
        if self.fixed is not None:
            return self.fixed
        own = tuple(int(values.argmax()) for values in probabilities)
        if self.name == "top1":
            return own
        if len(self.common[0]) == 0:
            raise BadTarget("the networks have no class in common; use --target top1, or give each its class names")
        shared = np.mean([values[indices] for values, indices in zip(probabilities, self.common, strict=True)], axis=0)
        # A stable sort: of equally probable classes the first comes first, as argmax has it.
        best = int(np.argsort(-shared, kind="stable")[self.rank]) if self.rank else int(shared.argmax())
        chosen = tuple(int(indices[best]) for indices in self.common)
        if self.name == "agree" and chosen != own:
            raise BadTarget(
                f"the networks disagree on this picture (classes {', '.join(map(str, own))}), and --target agree "
                "explains only where they agree; use shared or top1",
                code="bad_target.disagree",
            )
        return chosen


def policies(target: str | int, vocabularies: Sequence[Vocabulary]) -> list[TargetPolicy]:
    """`target` as the rules that it stands for: `top5` is five of them, anything else one; see `policy`.

    Raises:
        BadTarget: see `policy`; or there are fewer classes than asked for.
    """
    match = _TOP.fullmatch(str(target))
    if match is None or target == "top1" or any(target in labels for labels in vocabularies):
        return [policy(target, vocabularies)]
    common = _common(vocabularies)
    count = int(match[1])
    if not 1 <= count <= len(common[0]):
        raise BadTarget(f"target {target!r}: the networks have {len(common[0])} classes in common; give 1 to that many")
    names = ["shared", *(f"shared, rank {rank}" for rank in range(2, count + 1))]
    return [TargetPolicy(name, None, common, rank=rank) for rank, name in enumerate(names)]


def policy(target: str | int, vocabularies: Sequence[Vocabulary]) -> TargetPolicy:
    """`target` (a policy, a label, an index, or a contrast `A vs B` of two of them) for networks with these classes.

    Text that is a label is taken as one, also when it is a number; a number that is not text is always an index.

    Raises:
        BadTarget: a label or index that a network does not have.
    """
    common = _common(vocabularies)
    text = str(target)
    if text in POLICIES:
        return TargetPolicy(text, None, common)
    # Text of digits may be a label all the same: classes can be called by numbers, and not in order.
    if _WHOLE.fullmatch(text) and not (isinstance(target, str) and any(text in labels for labels in vocabularies)):
        return TargetPolicy(text, _by_index(int(text), vocabularies), common)
    wanted, versus, other = text.partition(VERSUS)
    if versus and not any(label_key(text) == label_key(label) for labels in vocabularies for label in labels):
        first, second = (policy(side.strip(), vocabularies).fixed for side in (wanted, other))
        if first is None or second is None:
            raise BadTarget(f"target {one_line(text, 80)!r} contrasts no two classes; give A vs B by labels or indices")
        if first == second:
            raise BadTarget(f"target {one_line(text, 80)!r} contrasts a class with itself; name two")
        return TargetPolicy(text, first, common, against=second)
    return TargetPolicy(text, tuple(_by_label(text, vocabulary) for vocabulary in vocabularies), common)


def _common(vocabularies: Sequence[Vocabulary]) -> tuple[np.ndarray, ...]:
    first = vocabularies[0]
    if all(tuple(other) == tuple(first) for other in vocabularies[1:]):
        return tuple(np.arange(len(first)) for _ in vocabularies)
    tables = [_unambiguous(vocabulary) for vocabulary in vocabularies]
    shared = [key for key in tables[0] if all(key in table for table in tables[1:])]
    return tuple(np.array([table[key] for key in shared], dtype=int) for table in tables)


def _unambiguous(vocabulary: Vocabulary) -> dict[str, int]:
    """Index by label, without labels that two classes share: ImageNet's Cardigan (a dog) and its cardigan."""
    keys = [label_key(label) for label in vocabulary]
    counts = Counter(keys)
    return {key: index for index, key in enumerate(keys) if counts[key] == 1}


def _by_index(index: int, vocabularies: Sequence[Vocabulary]) -> tuple[int, ...]:
    if any(tuple(other) != tuple(vocabularies[0]) for other in vocabularies[1:]):
        raise BadTarget(
            f"class {index} means different things to networks with different classes; name it by its label"
        )
    count = len(vocabularies[0])
    if not 0 <= index < count:
        raise BadTarget(f"no class {index}: there are {count} classes, 0 to {count - 1}")
    return tuple(index for _ in vocabularies)


def _by_label(label: str, vocabulary: Vocabulary) -> int:
    wanted = label_key(label)
    # As written, if that is one class: only a capital tells ImageNet's Cardigan, a dog, from its cardigan.
    exact = [index for index, known in enumerate(vocabulary) if known == label]
    matches = exact if len(exact) == 1 else [i for i, known in enumerate(vocabulary) if label_key(known) == wanted]
    if len(matches) == 1:
        return matches[0]
    shown = one_line(label, 80)
    if matches:
        raise BadTarget(f"the label {shown!r} names classes {', '.join(map(str, matches))}; give the index")
    near = [known for known in vocabulary if wanted and wanted in label_key(known)][:3]
    hint = f"; there are {', '.join(map(repr, near))}" if near else nearest(label, vocabulary)
    raise BadTarget(
        f"no class {shown!r} among the network's {len(vocabulary)}{hint or '; give a label of the network, an index, '}"
        f"{'' if hint else 'or one of ' + ', '.join(POLICIES)}",
        code="bad_target.label",
    )
