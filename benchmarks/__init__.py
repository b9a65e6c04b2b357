"""Measurements, one file each: `make bench NAME=<name>`. Absolute times mean little on a shared machine: every figure
is a ratio to a peer or a limit, taken in the same run, interleaved, as a median of several repetitions."""
