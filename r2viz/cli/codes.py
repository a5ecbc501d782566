"""Exit codes: done, failed, wrong usage, done but some inputs were bad, interrupted."""

DONE, FAILED, USAGE, PARTLY, INTERRUPTED = 0, 1, 2, 3, 130
