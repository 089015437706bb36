"""Shared by all commands: progress bars, and errors that are shown to the user as one line."""
