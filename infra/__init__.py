"""Where the house stands: clusters, stores, container images. Host and bucket names live only here."""
