"""Which layers run: learned, fixed and stochastic policies, and REINFORCE."""
