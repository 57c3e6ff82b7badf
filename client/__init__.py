"""A typed httpx client and the ``bitpress`` command line built on it."""
