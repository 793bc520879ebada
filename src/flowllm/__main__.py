"""`python -m flowllm` is the console command, also where the package is not installed."""

from flowllm.cli import main

main()
