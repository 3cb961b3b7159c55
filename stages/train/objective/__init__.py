"""What is minimised, and what is told of it: losses as recipes name them, their functions, the loss of a step."""
