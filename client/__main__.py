"""``python -m client`` is ``bitpress``, where the script is not on the path."""

from client.cli import main

main()
