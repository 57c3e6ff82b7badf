"""What each stage of a job does, in its own process: one stage a file.

Each stage's function makes the steps of that stage (see `worker.stage_context`). A step is told in
``files`` what the steps before it left, by role, and says in ``files`` what it leaves itself; its
other results are the figures that the job's record and its report show.
"""
