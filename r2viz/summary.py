"""A record in a few lines of text."""

from __future__ import annotations

from r2viz.errors import one_line
from r2viz.records import CamRecord


def lines(record: CamRecord) -> list[str]:
    """What the command line prints for a picture: each network's target, top-1, and how its map lies."""
    targets = " / ".join(dict.fromkeys(view.target.label for view in record.views))
    own = record.policy in ("shared", "top1", "agree") or record.policy.startswith("shared, rank")
    policy = record.policy if own else "named"
    said = [f"{record.picture.name}: {record.method_title} of {targets!r} ({policy})"]
    width = max(len(view.title) for view in record.views)
    for view in record.views:
        said.append(
            f"  {view.title:<{width}}  target {view.target.probability:7.2%}  "
            f"top-1 {one_line(view.top[0].label)} {view.top[0].probability:.2%}  weights: {view.weights['source']}"
        )
        for map_ in view.maps:
            inside = record.inside(view, map_.layer)
            share = "" if inside is None else f"  {inside}"
            state = "constant map, nothing to show" if map_.constant else f"raw maximum {map_.raw.max():.4g}"
            said.append(f"  {'':<{width}}  {map_.layer}: {state}{share}")
    for layer in record.layers:
        agreement = record.agreement(layer)
        if agreement is not None:
            said.append(f"  {layer}: {agreement}")
        ratio = record.maximum_ratio(layer)
        if ratio is not None:
            said.append(f"  {layer}: ratio of raw maxima {ratio:.3g}, second network over first")
    if record.random:
        said.append("  RANDOM WEIGHTS: untrained networks; the maps say nothing about learning")
    return said + [f"  note: {note}" for note in (*record.picture.notes, *record.notes)]
