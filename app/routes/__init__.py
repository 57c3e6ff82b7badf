"""One thin module of routes per resource."""
