"""What people see of plans and runs. It reads manifests and figures, and computes nothing else."""
