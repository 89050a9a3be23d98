"""``python -m star_export.cli``."""

from star_export.cli import main

main()
