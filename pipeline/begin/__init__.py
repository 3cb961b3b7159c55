"""`raydpo init`: what is seen of data, model and machine, and the recipe and cluster file that follow from it."""
