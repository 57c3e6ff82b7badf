"""The commands of ``bitpress``, one module for each concept."""
