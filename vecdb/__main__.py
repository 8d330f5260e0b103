"""`python -m vecdb` is the same as `vecdb`."""

from .cli import main

main()
