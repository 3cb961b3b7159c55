"""From tokenized rows to parts: fragments between the passes, the parts themselves, and what a row gets of others."""
