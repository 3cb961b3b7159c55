"""completions -> triples, by what a judge says of them."""
