"""The work: each stage is one function from files to files. See CONTRIBUTING.md for the stage contract."""
