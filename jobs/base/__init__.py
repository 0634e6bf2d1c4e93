"""The commands by subject; each module gives functions that ``jobs/cli.py`` hangs on the command line."""
