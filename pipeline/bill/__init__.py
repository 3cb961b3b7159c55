"""What a plan will cost: rows, tokens, arithmetic, time, bytes, memory; from manifests, heads of files, first rows."""
