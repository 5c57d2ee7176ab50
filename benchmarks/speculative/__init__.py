"""What a language model gains when a slice of it drafts: `python -m benchmarks.speculative RUN`."""
