"""The tables and figures of the BWNH paper, made again, each by a command.

Hu, Wang and Cheng, "From Hashing to CNNs: Training Binary Weight Networks via Hashing", AAAI 2018.
Every command measures with the code that compresses in a job, and writes a page with a table, a
plot and a record of all figures under docs/results/.
"""
