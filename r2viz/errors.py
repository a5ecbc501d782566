"""One family of exceptions: every refusal that a user can cause.

Messages are one line: what happened, what came, what was expected, what to do. The command line and the app
show ``str(error)`` as it is; batch tables store ``error.code``. This room imports nothing of r2viz.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class R2VizError(Exception):
    """Base of all errors that r2viz raises on purpose; `code` is a stable word for tables and JSON."""

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(" ".join(message.split()))
        if code is not None:
            self.code = code


class BadImage(R2VizError):
    """A picture that cannot be decoded, or must not be (size caps)."""

    code = "bad_image"


class BadData(R2VizError):
    """A data set that cannot be trained on: its layout, columns, labels or pictures."""

    code = "bad_data"


class BadWeights(R2VizError):
    """A weights file that is unreadable, does not fit, or must not be loaded."""

    code = "bad_weights"


class WeightsUnavailable(R2VizError):
    """Weights that are neither cached nor reachable."""

    code = "weights_unavailable"


class UnknownName(R2VizError):
    """A model, layer, label or method that does not exist; the message suggests the nearest."""

    code = "unknown_name"


class BadTarget(R2VizError):
    """A target that the network does not have, or that leaves nothing to explain."""

    code = "bad_target"


class BadRegion(R2VizError):
    """A box or mask that does not fit its picture."""

    code = "bad_region"


class TapError(R2VizError):
    """A tap that did not fire, fired twice, or gave something other than a feature map."""

    code = "tap"


class ModelError(R2VizError):
    """A network in a state or of a kind that the analysis cannot use."""

    code = "model"


class OutputError(R2VizError):
    """An output that exists already or cannot be written."""

    code = "output"


class BadRecord(R2VizError):
    """A saved record that cannot be read back."""

    code = "bad_record"


def one_line(text: str, limit: int = 200) -> str:
    """`text` with control characters escaped and cut to `limit` characters: fit for a message or a caption."""
    safe = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name nearest to `name`, or `""` when none is near."""
    candidates = {candidate.casefold(): candidate for candidate in known}
    match = difflib.get_close_matches(name.casefold(), candidates, n=1, cutoff=0.6)
    return f"; did you mean {candidates[match[0]]!r}?" if match else ""
