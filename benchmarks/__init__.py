"""Every speed, size and accuracy figure that the project states, as a command."""
