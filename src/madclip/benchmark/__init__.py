"""The published tables in one command each, against methods of comparison on equal terms."""
