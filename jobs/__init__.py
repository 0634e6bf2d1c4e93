"""What is submitted to a cluster and what drives Ray: parse, build, call, exit code. ``cli.py`` is the command."""
