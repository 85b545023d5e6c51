"""Files that people have: measurements in, positions out."""
