"""Readable messages for mistakes on the command line and for runs that fail."""
