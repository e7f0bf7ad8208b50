"""Point operations, one folder per family, under the names that users of the compiled packages know."""
