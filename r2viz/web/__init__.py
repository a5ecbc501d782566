"""The app: pages that ask, call the pipeline and show. Nothing here computes."""
