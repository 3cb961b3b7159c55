"""The report: one page of what manifests, metrics and parts say of some runs. It opens anywhere, and asks nobody."""
