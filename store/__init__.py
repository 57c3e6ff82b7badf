"""What persists and what the app and the worker agree on. No torch, no HTTP."""
