"""The one decoding contract: which formats, which conversion to RGB, which resize. Used wherever pixels are read."""
