"""One module per pipeline stage; each has the name of its rule, its command and its test file."""
