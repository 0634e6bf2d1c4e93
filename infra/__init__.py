"""Where vitpipe runs: clusters, stores, container images. Only this folder names hosts and buckets."""
