"""A stage whose module is never imported to its end, as if torch took for ever."""

import threading

threading.Event().wait()
