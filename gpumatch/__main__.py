"""Run the command line as `python -m gpumatch`."""

from gpumatch.cli import script

script()
