"""The HTTP front end: validates, enqueues, serves predictions. No training code."""
