"""The one forward pass that the torch scorer, training and evaluation share."""
