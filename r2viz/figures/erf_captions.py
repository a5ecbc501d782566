"""What figures of effective receptive fields say in words: sizes, what was measured on what, and what they embed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from r2viz.erf_records import Erf, ErfRecord
from r2viz.figures.axes import with_interval
from r2viz.statistics import Interval

SIZES = {"sigma": "σ", "square50": "50 % within", "square95": "95 % within"}
"""Sizes that stand beneath a map, and how they are called there."""


def erf_provenance(record: ErfRecord) -> str:
    """What a figure of the record embeds: its digest and what it was made from, as one JSON object."""
    return json.dumps(
        {
            "r2viz": record.versions["r2viz"],
            "digest": record.digest,
            "networks": [
                {"model": view.model, "weights": dict(view.weights), "seed": view.seed} for view in record.views
            ],
            "layers": list(record.layers),
            "protocol": record.protocol,
            "source": record.source,
            "input_size": list(record.input_size),
            "inputs": record.inputs.as_dict(),
            "versions": dict(record.versions),
        },
        ensure_ascii=False,
    )


def size_lines(erf: Erf) -> list[str]:
    """What theory allows and what was measured, a line each."""
    lines = [f"theory: {_theory(erf)}"]
    for name, title in SIZES.items():
        found = erf.interval(name) if name in erf.each else Interval(math.nan, math.nan, math.nan, 0)
        lines.append(f"{title} {with_interval(found)}" + (" px" if found.n else ""))
    return lines


def _theory(erf: Erf) -> str:
    theory = erf.theory
    if theory is None:
        return "unknown"
    if theory.unbounded:
        return f"{theory.min} px to unbounded"
    return f"{theory.min} to {theory.max} px" if theory.min != theory.max else f"{theory.max} px"


def made_of(record: ErfRecord, erfs: Sequence[Erf]) -> list[str]:
    """Sentences of every caption: what was measured, on what, with which weights."""
    first = erfs[0]
    counts = sorted({erf.inputs for erf in erfs})
    count = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    of = {"pictures": "picture", "noise": "noise input"}.get(first.source, first.source)
    inputs = f"{count} {of}{'s' if counts[-1] != 1 else ''} of {first.input_size[1]} × {first.input_size[0]} px"
    said = [f"Effective receptive field after {record.protocol_title}: {first.definition}. {inputs}."]
    said += [
        f"{view.title}: weights {view.weights['source']}."
        for view in record.views
        if any(one is erf for one in view.erfs for erf in erfs)
    ]
    calibrated = max(erf.calibrated for erf in erfs)
    if calibrated:
        said.append(f"Batch normalisation was calibrated on {calibrated} inputs.")
    said += [f"Note: {note}." for note in record.notes]
    return said


def noted(erfs: Sequence[Erf]) -> list[str]:
    """The fields' remarks as sentences; of those that differ in numbers only, the first and how many more."""
    notes: dict[str, dict[str, None]] = {}
    for erf in erfs:
        for note in erf.notes:
            notes.setdefault("".join(letter for letter in note if not letter.isdigit()), {})[note] = None
    return [
        f"Note: {next(iter(alike))}{f' (and {len(alike) - 1} more of this kind)' if len(alike) > 1 else ''}."
        for alike in notes.values()
    ]


def warned(record: ErfRecord) -> list[str]:
    random = [view.title for view in record.views if view.random]
    if not random:
        return []
    who = "RANDOM WEIGHTS" if len(random) == len(record.views) else f"RANDOM WEIGHTS in {', '.join(random)}"
    return [f"{who}: the field of an untrained network. It says nothing about what training makes of it."]


def last_line(record: ErfRecord) -> str:
    return f"r2viz {record.versions['r2viz']} · {record.digest[:16]}"
