"""What is told of a run while it runs: on the terminal, in logs, to trackers and to Prometheus."""
