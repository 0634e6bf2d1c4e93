"""This machine: a real S3 server on loopback."""
