"""`python -m evle`, for launchers that start modules: accelerate launch -m evle ..."""

from evle.cli import main

main()
