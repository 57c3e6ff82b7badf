"""The calls of the REST interface, each a flow of steps; one module for each resource."""
