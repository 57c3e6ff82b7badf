"""What `benchmarks.cpu` is made of: the nets, the runtimes they run on, and how these are timed."""
