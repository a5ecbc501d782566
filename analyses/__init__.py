"""One script per figure or table of the paper, and one per claim of ours; see README.md."""
