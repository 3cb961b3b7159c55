"""A Ray cluster: connect to it or start one, and send it jobs. Nothing else of the pipeline talks to Ray."""
