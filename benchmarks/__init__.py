"""Every number in the docs, each one command: `python -m benchmarks.NAME --json FILE`."""
