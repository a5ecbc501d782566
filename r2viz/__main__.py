"""`python -m r2viz` is the command `r2viz`."""

from r2viz.cli import main

if __name__ == "__main__":
    main()
