"""docs/API.md, made from the OpenAPI document and the prose in docs/api/."""
