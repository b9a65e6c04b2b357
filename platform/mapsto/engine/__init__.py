"""Training in pure torch: the loop over a run's microbatches, one DDP module per phase, and what goes with it. No Ray."""
