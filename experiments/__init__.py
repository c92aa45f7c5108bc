"""One readable script per study, each run by `python -m experiments.NAME`."""
