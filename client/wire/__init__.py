"""The wire models, one module for each resource; `client.types` has all of them."""
