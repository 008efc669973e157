"""Files that are read whole or refused in words, and written whole or not at all."""
