"""A model, from its files to the devices that hold it."""
