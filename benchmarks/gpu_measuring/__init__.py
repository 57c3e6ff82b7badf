"""The parts of `benchmarks.gpu`: networks, rival, timing, ceilings of the card, tables."""
