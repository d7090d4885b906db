"""Exit statuses of the `naiad` command; docs/configuration.md has them all."""

WRONG_SETUP = 2
"""A setting, a file or an option is wrong; another start would end in the same way."""
FAILED = 3
"""The model could not be loaded for another reason, or the device is not there, has failed or hangs."""
INTERRUPTED = 130
"""Ctrl+C, as of a shell's command after SIGINT."""
