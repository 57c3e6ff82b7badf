"""The architectures that a checkpoint can be loaded into."""
