"""Commands that are not Lightning's, one file each: `run(arguments)` returns the exit status, line 1 says what it does.

Importing a command imports nothing heavy.
"""
