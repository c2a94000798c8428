"""`python -m evle`, for launchers that start modules: accelerate launch -m evle ..."""

from evle.cli.main import main

main()
