"""``python -m longformer``, the command where it is not installed, as in a checkout."""

from longformer.cli import main

main()
