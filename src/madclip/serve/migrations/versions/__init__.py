"""One file for each change, which says what it follows."""
