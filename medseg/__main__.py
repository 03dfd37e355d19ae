"""`python -m medseg`, the command line where its script is not on the path."""

from medseg.cli import main

main()
