"""`scripts/soak`."""

from tests.soak.soak import main

main()
