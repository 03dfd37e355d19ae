"""Run the command line as `python -m medseg`, in case its script is not on the path."""

from medseg.cli import main

main()
