"""Order, identity and caching of the stages. No tensor code, no Parquet code."""
