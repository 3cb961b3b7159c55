"""The losses as recipes name them: a class each, with its fields and with what it needs. No torch here.

The function of a loss has its class's `name`, and stands in the module of `losses/` that is called as the module here.
"""
