"""Object stores: a real S3 server on this machine, and the policy of a bucket."""
