"""triples -> tokenized, checked and identified pairs, in fixed parts."""
