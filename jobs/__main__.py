"""``python -m jobs COMMAND``: what ``vitpipe COMMAND`` does, where the command is not installed."""

from jobs.cli import main

main()
