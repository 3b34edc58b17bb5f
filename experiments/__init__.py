"""The studies of the paper, re-run: see the README beside this file."""
