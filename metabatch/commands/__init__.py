"""One module per executable: usage text, option conversion, one call, printing."""
