"""12,000 images of Fashion-MNIST as two parquet files; ``README.md`` tells where they come from."""
