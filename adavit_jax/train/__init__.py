"""Training: phases, steps, checkpoints and the loop that runs them."""
