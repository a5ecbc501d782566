"""Inference over pictures and seeds: intervals, paired tests, strata, corrections, the table that decides claims."""

from r2viz.statistics.decision import CRITERIA, MARGIN, Criterion, Decision, decide
from r2viz.statistics.intervals import Interval, mean_interval, seed_interval, two_level_interval
from r2viz.statistics.paired import (
    COCO,
    SIZES,
    Test,
    difference_interval,
    holm,
    interaction_interval,
    mcnemar,
    sign_flip,
    strata_of,
    wilcoxon,
    within_interaction_interval,
)
from r2viz.statistics.resampling import (
    percentile_interval,
    resample_counts,
    resampled,
    stratified_intervals,
)

__all__ = [
    "COCO",
    "CRITERIA",
    "MARGIN",
    "SIZES",
    "Criterion",
    "Decision",
    "Interval",
    "Test",
    "decide",
    "difference_interval",
    "holm",
    "interaction_interval",
    "mcnemar",
    "mean_interval",
    "percentile_interval",
    "resample_counts",
    "resampled",
    "seed_interval",
    "sign_flip",
    "strata_of",
    "stratified_intervals",
    "two_level_interval",
    "wilcoxon",
    "within_interaction_interval",
]
